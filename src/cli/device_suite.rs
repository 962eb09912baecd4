//! `laud device-suite`: everything that can be asked of a device, and a report about the answers.

use super::output::{json, save, tiny};
use super::toolchain::ToolchainArgs;
use super::{Cli, one_line};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use laud::exec::Request;
use laud::gate::{Given, Learned, Pattern, Policy};
use laud::{Device, Element, Output, RandomWeights, Session};
use laud_kernels::cuda::{Driver, source_hash};
use laud_models::{NetConfig, NetSpec, SMALL_NETWORKS};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Check a CUDA device against the CPU and recorded results, and measure it
#[derive(Args)]
pub(super) struct DeviceSuite {
    /// Which one: cuda:N
    #[arg(long, value_name = "DEVICE")]
    device: Device,
    /// Folder for device-suite.json, device-suite.md and a profile; what is there of an earlier run is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Files with recorded results, for `laud verify`
    #[arg(long, value_name = "FILE", num_args = 1..)]
    fixtures: Vec<PathBuf>,
    /// Commit that the program was built from, for the report
    #[arg(long, value_name = "HASH", default_value = "not told")]
    commit: String,
    /// Leave out the measurements
    #[arg(long)]
    no_bench: bool,
    #[command(flatten)]
    toolchain: ToolchainArgs,
}

const BATCH: usize = 3;
/// Element types, and how far the largest logit may be off, as a part of it: f32 sums in another order, and what
/// rounding in each of up to 40 layers makes of it.
const ELEMENTS: [(&str, Element, f64); 4] = [
    ("f32", Element::F32, 1e-4),
    ("tf32", Element::Tf32, 3e-2),
    ("f16", Element::F16, 3e-2),
    ("bf16", Element::Bf16, 0.15),
];
/// What is measured: arguments of `laud bench`, and batches.
const BENCHES: [(&str, &[u32]); 6] = [
    ("--model resnet50", &[1, 8, 128]),
    ("--model resnet101", &[1, 8, 128]),
    ("--model resnet101 --mode layer --density 0.5,1 --static", &[1, 8, 128]),
    ("--model resnet101 --mode spatial --granularity 4-4-2-1 --density 0.5,1 --static", &[1, 8, 128]),
    ("--model resnet101 --mode channel --group 8 --density 0.5,1 --static", &[1, 8, 128]),
    (
        "--model resnet101 --mode spatial --granularity 4-4-2-1 --density 0.5 --static --input-size 800x1333",
        &[1],
    ),
];
/// What is planned with a quick profile, and checked: arguments of `laud plan`.
const PLANNED: &str = "--model cifar_resnet20 --mode spatial --granularity 4-2-1 --density 0.5 --batch 8";
const PLANNED_DTYPE: &str = "f16";
/// Element types that are measured.
const MEASURED: [&str; 3] = ["f16", "bf16", "tf32"];

/// What came of one step.
struct Step {
    name: String,
    seconds: f64,
    outcome: Result<Value>,
}

impl DeviceSuite {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let Device::Cuda(number) = self.device else { bail!("--device: the suite is for cuda:N") };
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("{}: cannot make it", self.out.display()))?;
        let driver = self.toolchain.toolchain().open(number).context("--device")?;
        let mut steps = Vec::new();
        let mut step = |name: String, work: &mut dyn FnMut() -> Result<Value>| -> Result<()> {
            let start = Instant::now();
            let outcome = work();
            let seconds = start.elapsed().as_secs_f64();
            let verdict = outcome.as_ref().map_or_else(one_line, |_| "ok".to_owned());
            writeln!(out, "{seconds:7.1} s  {name}: {verdict}")?;
            out.flush()?;
            steps.push(Step { name, seconds, outcome });
            Ok(())
        };
        for (i, network) in SMALL_NETWORKS.iter().enumerate() {
            for (name, element, tolerance) in ELEMENTS {
                step(format!("network {} in {name} against the CPU", i + 1), &mut || {
                    against_cpu(network, &driver, element, tolerance)
                })?;
            }
        }
        let device = format!("--device cuda:{number}");
        for file in &self.fixtures {
            for (name, _, tolerance) in ELEMENTS {
                let line = format!("verify --json {device} --dtype {name} --tolerance {tolerance}");
                step(format!("{} in {name}", file.display()), &mut || self.command(&line, Some(file)))?;
            }
        }
        for (arguments, batches) in BENCHES.iter().filter(|_| !self.no_bench) {
            for (batch, dtype) in batches.iter().flat_map(|batch| MEASURED.map(|dtype| (batch, dtype))) {
                let line = format!("bench {arguments} --batch {batch} --dtype {dtype}");
                let full = format!("{line} --json --profile --duration 1s {device}");
                step(line, &mut || self.command(&full, None))?;
            }
        }
        if !self.no_bench {
            step(format!("calibrate --quick --dtype {PLANNED_DTYPE}"), &mut || self.calibrate(&device))?;
            let [_, line] = self.profiled(&device);
            step(format!("plan {PLANNED} --verify"), &mut || self.command(&line, Some(&self.profile())))?;
        }
        let failed = steps.iter().filter(|step| step.outcome.is_err()).count();
        let mut text = Vec::new();
        json(&mut text, &self.report(&*driver, &steps))?;
        save(&self.out.join("device-suite.json"), &String::from_utf8_lossy(&text))?;
        save(&self.out.join("device-suite.md"), &self.markdown(&*driver, &steps))?;
        ensure!(failed == 0, "device-suite: {failed} of {} steps failed", steps.len());
        Ok(())
    }

    fn profile(&self) -> PathBuf {
        self.out.join("profile.json")
    }

    /// A profile of a minute; what the command says about it.
    fn calibrate(&self, device: &str) -> Result<Value> {
        let profile = self.profile();
        for file in [profile.clone(), profile.with_extension("csv")].iter().filter(|file| file.exists()) {
            std::fs::remove_file(file).with_context(|| format!("{}: cannot remove", file.display()))?;
        }
        let [line, _] = self.profiled(device);
        let text = self.printed(&line, Some(&profile))?;
        Ok(json!({ "printed": String::from_utf8_lossy(&text) }))
    }

    /// What a command of this program prints as JSON.
    fn command(&self, line: &str, file: Option<&PathBuf>) -> Result<Value> {
        serde_json::from_slice(&self.printed(line, file)?).context("what the command printed")
    }

    /// What a command of this program prints.
    fn printed(&self, line: &str, file: Option<&PathBuf>) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        Cli::try_parse_from(self.words(line, file)).context("a command of the suite")?.run(&mut text)?;
        Ok(text)
    }

    /// A command line whose last argument is `file`, maybe the last flag's value.
    fn words(&self, line: &str, file: Option<&PathBuf>) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["laud".into()];
        words.extend(line.split_whitespace().map(Into::into));
        words.splice(2..2, self.toolchain.arguments());
        words.extend(file.map(|file| file.as_os_str().to_owned()));
        words
    }

    /// The profile is calibrated, and what is planned with it.
    fn profiled(&self, device: &str) -> [String; 2] {
        let more = format!("{device} --dtype {PLANNED_DTYPE}");
        [
            format!("calibrate --quick {more} --out"),
            format!("plan {PLANNED} --verify --json {more} --profile"),
        ]
    }

    fn about(&self, driver: &dyn Driver) -> Vec<(&'static str, Value)> {
        let p = driver.properties();
        let version = |v: u32| format!("{}.{}", v / 1000, v % 1000 / 10);
        vec![
            ("device", json!(p.name)),
            ("compute_capability", json!(format!("{}.{}", p.capability / 10, p.capability % 10))),
            ("multiprocessors", json!(p.multiprocessors)),
            ("memory_bytes", json!(p.memory_bytes)),
            ("clock_khz", json!(p.clock_khz[0])),
            ("memory_clock_khz", json!(p.clock_khz[1])),
            ("driver_cuda", json!(version(p.driver_version))),
            ("laud", json!(env!("CARGO_PKG_VERSION"))),
            ("kernels", json!(format!("{:016x}", source_hash()))),
            ("commit", json!(self.commit)),
        ]
    }

    fn report(&self, driver: &dyn Driver, steps: &[Step]) -> Value {
        let steps = steps.iter().map(|step| match &step.outcome {
            Ok(result) => json!({ "step": step.name, "seconds": step.seconds, "ok": true, "result": result }),
            Err(error) => {
                json!({ "step": step.name, "seconds": step.seconds, "ok": false, "error": one_line(error) })
            }
        });
        let about: serde_json::Map<_, _> =
            self.about(driver).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        json!({ "about": about, "steps": steps.collect::<Vec<_>>() })
    }

    fn markdown(&self, driver: &dyn Driver, steps: &[Step]) -> String {
        let mut text = format!("# {}\n\n", driver.properties().name);
        for (name, value) in self.about(driver) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = writeln!(text, "* {name}: {value}");
        }
        text.push_str(
            "\n| measurement | ms | static ms | speed-up | η | TFLOP/s |\n|---|---|---|---|---|---|\n",
        );
        for (step, result) in steps.iter().filter_map(|step| Some((step, step.outcome.as_ref().ok()?))) {
            let runs = result["runs"].as_array().cloned().unwrap_or_else(|| vec![result.clone()]);
            for run in runs.iter().filter(|run| run["latency_ms"].is_object()) {
                let number = |value: &Value, digits: usize| {
                    value.as_f64().map_or_else(String::new, |value| format!("{value:.digits$}"))
                };
                let density = run["density"].as_f64().map_or_else(String::new, |d| format!(", density {d}"));
                let ms = &run["latency_ms"]["median"];
                let rate = run["macs"]["done"].as_f64().zip(ms.as_f64()).map(|(macs, ms)| 2e-9 * macs / ms);
                let _ = writeln!(
                    text,
                    "| {}{density} | {} | {} | {} | {} | {} |",
                    step.name,
                    number(ms, 3),
                    number(&run["static_latency_ms"]["median"], 3),
                    number(&run["speedup"], 2),
                    number(&run["eta"], 2),
                    number(&json!(rate), 1),
                );
            }
        }
        text.push_str("\n| check | |\n|---|---|\n");
        for step in steps {
            match &step.outcome {
                Ok(result) if result["latency_ms"].is_object() || result["runs"].is_array() => {}
                Ok(result) => {
                    let error = result["worst"]
                        .as_f64()
                        .map_or_else(|| "ok".to_owned(), |e| format!("ok, {}", tiny(e)));
                    let _ = writeln!(text, "| {} | {error} |", step.name);
                }
                Err(error) => {
                    let _ =
                        writeln!(text, "| {} | FAILED: {} |", step.name, one_line(error).replace('|', "/"));
                }
            }
        }
        text
    }
}

/// Logits of a network on the device against the CPU's in f32, at several densities and three times each: once issued,
/// once recorded, once replayed.
fn against_cpu(network: &str, driver: &Arc<dyn Driver>, element: Element, tolerance: f64) -> Result<Value> {
    let spec: NetSpec = NetConfig::from_json(network)?.build()?;
    let weights = RandomWeights::new(&spec, 1);
    let cpu = Session::builder(spec.clone()).device(Device::Cpu).build(&weights)?;
    let cuda = Session::builder(spec.clone()).cuda(driver.clone()).element(element).build(&weights)?;
    let size = spec.input.channels * spec.input.size.h * spec.input.size.w;
    let images: Vec<f32> = (0..BATCH * size).map(|i| (i * 37 % 255) as f32 / 127.5 - 1.0).collect();
    let mut policies: Vec<(String, Box<dyn Policy>)> = Vec::new();
    for density in [0.0, 0.1, 0.5, 1.0] {
        let given = Given::forced(&spec, BATCH, density, Pattern::Clustered, 3)?;
        policies.push((format!("density {density}"), Box::new(given)));
    }
    if element == Element::F32 {
        policies.push(("learned gates".to_owned(), Box::new(Learned)));
    }
    let (mut expected, mut found) = (Output::default(), Output::default());
    let mut worst = 0f64;
    for (what, policy) in &policies {
        for batch in [BATCH, 1] {
            let images = &images[..batch * size];
            let request = Request { images, batch, features: false, masks: true, timed: false };
            cpu.infer_with(request, &**policy, &mut expected)?;
            let mut first: Option<Vec<f32>> = None;
            for _ in 0..3 {
                cuda.infer_with(request, &**policy, &mut found)?;
                let scale = expected.logits.iter().fold(0f64, |most, x| most.max(f64::from(x.abs())));
                let off = expected.logits.iter().zip(&found.logits).map(|(a, b)| f64::from((a - b).abs()));
                let error =
                    off.fold(0f64, |most, x| if x.is_nan() { f64::INFINITY } else { most.max(x) }) / scale;
                ensure!(
                    error <= tolerance,
                    "{what}, batch {batch}: off by {} of the largest logit",
                    tiny(error)
                );
                ensure!(found.masks == expected.masks, "{what}, batch {batch}: other decisions");
                ensure!(
                    first.as_ref().is_none_or(|first| *first == found.logits),
                    "{what}, batch {batch}: another result when it is repeated"
                );
                first.get_or_insert_with(|| found.logits.clone());
                worst = worst.max(error);
            }
        }
    }
    Ok(json!({ "worst": worst }))
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::*;

    #[test]
    fn commands_of_the_suite_are_commands() {
        let line = "laud device-suite --device cuda:3 --out report --cuda-kernels kernels";
        let Command::DeviceSuite(suite) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("another command")
        };
        let device = "--device cuda:3";
        for line in suite.profiled(device) {
            let words = suite.words(&line, Some(&suite.profile()));
            assert!(words.contains(&"--cuda-kernels".into()) && words.contains(&"kernels".into()));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
        let file = PathBuf::from("recorded.safetensors");
        let verify = format!("verify --json {device} --tolerance 1e-3");
        Cli::try_parse_from(suite.words(&verify, Some(&file))).unwrap_or_else(|error| panic!("{error}"));
        for (arguments, _) in BENCHES {
            let bench = format!("bench {arguments} --json --profile --duration 1s {device}");
            Cli::try_parse_from(suite.words(&bench, None)).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
