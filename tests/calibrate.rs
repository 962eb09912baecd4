//! Measuring, resuming, profiles and plans, from outside. Nothing here depends on how long anything takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cli::{command, fails, files_in, laud, prints};
use laud::calibrate::{Budget, Journal, measure};
use laud::exec::Prober;
use laud::predictor::workload::{Op, Workload};
use laud::predictor::{DeviceFacts, measurements};

/// A profile of a moment's measurements.
fn calibrated(folder: &Path) -> PathBuf {
    let file = folder.join("here.json");
    // As long as it takes to have enough on a slow machine.
    for _ in 0..100 {
        let line = format!("calibrate --threads 1 --budget 1s --out {}", file.display());
        let output = laud(line.split_whitespace());
        if output.status.success() {
            return file;
        }
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains("run again"), "{errors}");
    }
    panic!("no profile after 100 tries")
}

fn measured(csv: &Path) -> Vec<laud::predictor::workload::Sample> {
    measurements::read(&fs::read_to_string(csv).unwrap()).unwrap()
}

#[test]
fn what_was_measured_before_a_kill_is_in_the_profile() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("here.json");
    let line = format!("calibrate --threads 1 --budget 10m --out {}", file.display());
    let mut child = command().args(line.split_whitespace()).spawn().unwrap();
    let journal = || fs::read_dir(folder.path()).unwrap().next().map(|entry| entry.unwrap().path());
    let lines = |path: &Path| fs::read_to_string(path).unwrap_or_default().lines().count();
    let start = Instant::now();
    while journal().is_none_or(|path| lines(&path) < 60) {
        assert!(start.elapsed() < Duration::from_secs(300), "nothing is measured");
        assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let journal = journal().unwrap();
    // As if it had been killed while it wrote.
    let mut text = fs::read_to_string(&journal).unwrap();
    text.truncate(text.rfind('\n').unwrap() + 1);
    let before = measurements::read(&text).unwrap();
    fs::write(&journal, text + "gather_gemm,f32,1,7,").unwrap();
    let report = prints(&line.replace("10m", "500ms"));
    assert!(report.contains(&format!("{} of them before", before.len())), "{report}");
    let after = measured(&file.with_extension("csv"));
    assert_eq!(after[..before.len()], before[..], "a measurement is lost");
    assert_eq!(files_in(folder.path()), ["here.csv", "here.json"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_loses_no_measurement() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("here.json");
    // No file may grow beyond a few blocks; to write more is an error, as on a full disk.
    let line = format!(
        "trap '' XFSZ; ulimit -f 4; exec '{}' calibrate --threads 1 --budget 10m --out '{}'",
        command().get_program().display(),
        file.display()
    );
    let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("cannot write") && errors.contains("kept"), "{errors}");
    let [journal] = &files_in(folder.path())[..] else { panic!("{:?}", files_in(folder.path())) };
    let text = fs::read_to_string(folder.path().join(journal)).unwrap();
    let before = measurements::read(&text[..text.rfind('\n').unwrap() + 1]).unwrap();
    assert!(!before.is_empty());
    let after = measured(&calibrated(folder.path()).with_extension("csv"));
    assert_eq!(after[..before.len()], before[..], "a measurement is lost");
}

#[test]
fn a_profile_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("here.json");
    fs::write(&file, "mine").unwrap();
    let line = format!("calibrate --budget 1s --out {}", file.display());
    fails(&line, &["here.json", "stays as it is"]);
    fs::rename(&file, folder.path().join("here.csv")).unwrap();
    fails(&line, &["here.csv", "stays as it is"]);
    assert_eq!(fs::read_to_string(folder.path().join("here.csv")).unwrap(), "mine");
}

#[test]
fn a_calibration_that_cannot_be_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fails(&format!("calibrate --budget 1s --out {}", at("no/such/folder.json")), &["cannot write"]);
    fails(&format!("calibrate --budget 1s --out {}", at("x.csv")), &["JSON"]);
    fails(&format!("calibrate --device cuda:0 --budget 1s --out {}", at("x.json")), &["cuda:0"]);
    fails(&format!("calibrate --isa sse9 --budget 1s --out {}", at("x.json")), &["sse9"]);
    fails(&format!("calibrate --threads 1 --budget 1ms --out {}", at("x.json")), &["--budget", "kept"]);
    let zero = laud(["calibrate", "--budget", "0s", "--out", &at("x.json")]);
    assert_eq!(zero.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&zero.stderr).contains("above 0"));
    assert!(!folder.path().join("x.json").exists());
}

#[test]
fn profiles_are_shown_compared_and_merged() {
    let folder = tempfile::tempdir().unwrap();
    let file = calibrated(folder.path());
    let show = prints(&format!("profile show {}", file.display()));
    assert!(show.contains("those of this program") && show.contains("gather_gemm"), "{show}");
    let diff = prints(&format!("profile diff {0} {0}", file.display()));
    assert!(diff.contains("1.000"), "{diff}");
    let both = folder.path().join("both.json");
    let merge = prints(&format!("profile merge {0} {0} --out {1}", file.display(), both.display()));
    let count = measured(&file.with_extension("csv")).len();
    assert!(merge.contains(&format!("{} measurements of 2 profiles", 2 * count)), "{merge}");
    fails(&format!("profile merge {0} {0} --out {1}", file.display(), both.display()), &["stays as it is"]);
}

#[test]
fn damaged_and_foreign_profiles_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = calibrated(folder.path());
    let text = fs::read_to_string(&file).unwrap();
    let other = folder.path().join("other.json");
    let plan = format!(
        "plan --model cifar_resnet20 --mode spatial --granularity 2 --density 0.5 --profile {}",
        other.display()
    );
    fails(&plan, &["other.json", "cannot read"]);
    fs::write(&other, &text[..text.len() / 2]).unwrap();
    fails(&plan, &["other.json"]);
    fs::write(&other, text.replace(laud::kernels::SOURCE_HASH, "0123456789abcdef")).unwrap();
    fails(&plan, &["other.json", "0123456789abcdef", "calibrate again"]);
    fs::write(&other, text.replace("{\"version\":", "{\"version\":9")).unwrap();
    fails(&plan, &["other.json", "version"]);
    let csv = file.with_extension("csv");
    let table = fs::read_to_string(&csv).unwrap();
    let line = table.lines().nth(1).unwrap();
    let cells: Vec<&str> = line.split(',').collect();
    for bad in ["NaN", "-3", "inf"] {
        let mut cells = cells.clone();
        let at = measurements::COLUMNS.iter().position(|column| *column == "median_ns").unwrap();
        cells[at] = bad;
        fs::write(&csv, table.replace(line, &cells.join(","))).unwrap();
        fails(&format!("profile diff {0} {0}", file.display()), &["line 2", "median_ns"]);
    }
}

/// A machine that is half as fast for its first rounds.
struct SlowAtFirst {
    rounds: usize,
    calls: Vec<Workload>,
}

impl Prober for SlowAtFirst {
    fn describe(&self) -> String {
        "slow at first".into()
    }

    fn prepare(&mut self, workloads: &[Workload]) -> anyhow::Result<Vec<Workload>> {
        self.calls = workloads.to_vec();
        Ok(self.calls.clone())
    }

    fn round(&mut self, ns: &mut [u64]) -> anyhow::Result<()> {
        self.rounds += 1;
        let factor = if self.rounds <= 60 { 2 } else { 1 };
        for (ns, call) in ns.iter_mut().zip(&self.calls) {
            *ns = factor * (1000 + call.macs() as u64 / 50);
        }
        Ok(())
    }
}

#[test]
fn what_turns_out_to_have_been_measured_on_a_slow_machine_is_measured_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(&folder.path().join("journal.csv")).unwrap();
    let candidates = (1..=200).map(|c| Workload::new(Op::GatherGemm, 7, 7, 8 * c, 64)).collect();
    let prober: Box<dyn Prober> = Box::new(SlowAtFirst { rounds: 0, calls: Vec::new() });
    let mut seconds = 0;
    let measured = measure(
        &mut [(1, prober)],
        candidates,
        (&DeviceFacts::example("test"), 0),
        Budget { time: Duration::from_secs(40), measurements: 1000 },
        &mut journal,
        &mut || {
            seconds += 1;
            Duration::from_secs(seconds)
        },
        &mut |_| Ok(()),
    )
    .unwrap();
    assert!(measured.samples.len() >= 200, "{} samples", measured.samples.len());
    for sample in &measured.samples {
        assert_eq!(sample.median_ns, 1000.0 + (sample.workload.macs() as u64 / 50) as f64);
    }
    let slow = journal.path().to_owned();
    let text = fs::read_to_string(slow).unwrap();
    assert!(measurements::read(&text).unwrap().len() > measured.samples.len(), "nothing was measured slowly");
}
