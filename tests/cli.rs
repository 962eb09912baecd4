//! The program from outside: what it prints, what it writes, and one line with exit status 1 for whatever is wrong.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use laud::checkpoint::{Checkpoint, TensorData, TensorOut, write_safetensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::fixtures::NAMES;

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_laud"));
    command.env_clear().stdin(Stdio::null());
    command
}

pub(crate) fn laud<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    command().args(args).output().unwrap()
}

/// Runs a command line that has to succeed, without a word on stderr; what it prints.
#[track_caller]
pub(crate) fn prints(line: &str) -> String {
    let output = laud(line.split_whitespace());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "laud {line}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub(crate) fn prints_json(line: &str) -> Value {
    serde_json::from_str(&prints(line)).unwrap()
}

/// Runs a command line that has to fail with one line that contains every one of `words`.
#[track_caller]
pub(crate) fn fails(line: &str, words: &[&str]) -> String {
    let output = laud(line.split_whitespace());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "laud {line}: {errors}");
    assert!(errors.starts_with("error: ") && errors.lines().count() == 1, "laud {line}: {errors}");
    for word in words {
        assert!(errors.contains(word), "laud {line}: no `{word}` in: {errors}");
    }
    errors
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub(crate) fn photo() -> String {
    format!("{}/models/zoo/photos/zebra.jpg", env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn files_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A folder and the path of a file in it.
pub(crate) fn file_with(name: &str, bytes: &[u8]) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn run_needs_nothing_and_knows_the_photographs() {
    let text = prints("run --time 1ms");
    for class in ["flamingo", "zebra", "balloon", "school bus", "steam locomotive", "daisy"] {
        assert!(text.contains(class), "{text}");
    }
    assert!(text.contains("static network: nothing is skipped"), "{text}");
    let report = prints_json(&format!("run --json --time 1ms --threads 1 {}", photo()));
    assert_eq!(report["images"][0]["top"][0]["name"], "zebra");
    assert!(report["images"][0]["latency_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(report["images"][0]["static_latency_ms"], Value::Null);
}

#[test]
fn run_forces_densities_draws_and_records() {
    let folder = tempfile::tempdir().unwrap();
    let (masks, record) = (folder.path().join("masks"), folder.path().join("densities.jsonl"));
    let line = format!(
        "run {0} {0} --density 0.25 --pattern scattered --seed 3 --time 1ms --masks {1} --record-densities {2}",
        photo(),
        masks.display(),
        record.display()
    );
    let text = prints(&line);
    assert!(text.contains("the gates are not trained") && text.contains("MACs of 301 M"), "{text}");
    assert_eq!(files_in(&masks), ["zebra-2.png", "zebra.png"]);
    assert!(image::open(masks.join("zebra.png")).unwrap().width() > 500);
    let lines = fs::read_to_string(record).unwrap();
    assert_eq!(lines.lines().count(), 2);
    for line in lines.lines() {
        let blocks = serde_json::from_str::<Value>(line).unwrap()["blocks"].clone();
        let gated = blocks.as_array().unwrap().iter().filter_map(|block| block["patches"].as_f64());
        let gated: Vec<f64> = gated.collect();
        assert_eq!(gated.len(), 10);
        assert!(gated.iter().all(|density| (density - 0.25).abs() < 0.02), "{gated:?}");
    }
    assert_eq!(files_in(folder.path()), ["densities.jsonl", "masks"]);
}

#[test]
fn run_takes_what_the_network_was_trained_for() {
    let text = prints("run --model cifar_resnet20 --time 1ms");
    assert!(text.contains("CIFAR-10 test image 0 (cat)"), "{text}");
    for mode in ["layer", "channel", "both", "spatial"] {
        let text = prints(&format!("run --model cifar_resnet20 --density 0.5 --mode {mode} --time 1ms"));
        assert!(text.contains(&format!("gates: {mode}")), "{text}");
    }
}

#[test]
fn verify_agrees_with_every_fixture() {
    let names = NAMES.iter().map(|name| fixture(&format!("{name}.safetensors")));
    let official = ["checkpoint_official.pth.tar", "checkpoint_official.expected.safetensors"].map(fixture);
    let output = laud(std::iter::once(PathBuf::from("verify")).chain(names).chain(official));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("agrees").count(), NAMES.len() + 2, "{text}");
}

#[test]
fn verify_says_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("altered.safetensors");
    let source = Checkpoint::open(&fixture("resnet_layer.safetensors")).unwrap();
    let bytes: Vec<_> = source.tensors().keys().map(|name| source.read_bytes(name).unwrap()).collect();
    let mut tensors: std::collections::BTreeMap<_, _> = source
        .tensors()
        .iter()
        .zip(&bytes)
        .map(|((name, info), bytes)| {
            (name.clone(), TensorOut { shape: info.shape.clone(), data: TensorData::Raw(info.dtype, bytes) })
        })
        .collect();
    let zeros = [0.0; 40];
    tensors.get_mut("fixture.logits").unwrap().data = TensorData::F32(&zeros);
    let skipped = [0; 4];
    tensors.get_mut("fixture.mask.layer1.0.masker_spatial").unwrap().data = TensorData::U8(&skipped);
    let total = [1.0];
    tensors.get_mut("fixture.macs_total").unwrap().data = TensorData::F64(&total);
    write_safetensors(&path, &tensors, source.metadata()).unwrap();
    let output = laud(["verify", path.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    for wrong in ["DIFFERS", "logits are off", "layer1.0.masker_spatial", "total of multiply-accumulates"] {
        assert!(text.contains(wrong), "{wrong}: {text}");
    }
    assert!(!text.contains("stage 1 is off"), "{text}");
}

#[test]
fn infer_writes_what_verify_reads() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("checkpoint_official.pth.tar");
    let recorded = fixture("checkpoint_official.expected.safetensors");
    let out = folder.path().join("out.safetensors");
    let config = folder.path().join("config.json");
    let official = Checkpoint::open(&recorded).unwrap();
    fs::write(&config, &official.metadata()["config"]).unwrap();
    prints(&format!(
        "infer --input {} --output {} --model {} --config {}",
        recorded.display(),
        out.display(),
        model.display(),
        config.display()
    ));
    let written = Checkpoint::open(&out).unwrap();
    assert_eq!(written.metadata().keys().collect::<Vec<_>>(), ["config"]);
    let names = |file: &Checkpoint| {
        file.tensors().keys().filter(|name| *name != "fixture.input").cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(&written), names(&official));
    for name in names(&written).iter().filter(|name| name.starts_with("fixture.mask.")) {
        assert_eq!(written.tensors()[name].shape, official.tensors()[name].shape);
        assert_eq!(written.read_u8(name).unwrap(), official.read_u8(name).unwrap());
    }
}

#[test]
fn bench_reports_latency_and_efficiency() {
    let report = prints_json(
        "bench --json --model cifar_resnet20 --batch 2 --threads 1 --iterations 4 --warm-up 1 --pause 1ms",
    );
    for key in ["min", "mean", "median", "p90", "p95", "p99"] {
        assert!(report["latency_ms"][key].as_f64().unwrap() > 0.0, "{report}");
    }
    assert_eq!((report["batch"].as_u64(), report["iterations"].as_u64()), (Some(2), Some(4)));
    assert_eq!(report["pause_ms"], 1.0);
    assert!(report.get("static_latency_ms").is_none() && report.get("eta").is_none());

    let report = prints_json(
        "bench --json --model resnet18 --input-size 64 --mode layer --density 0.5 --static --iterations 4 --profile",
    );
    let eta = report["eta"].as_f64().unwrap();
    let fraction = report["macs"]["fraction"].as_f64().unwrap();
    let speedup = report["static_latency_ms"]["median"].as_f64().unwrap()
        / report["latency_ms"]["median"].as_f64().unwrap();
    assert!((eta - speedup * fraction).abs() < 1e-9, "{report}");
    assert_eq!(report["profile"]["blocks"].as_array().unwrap().len(), 8);

    let report = prints_json("bench --json --model cifar_resnet20 --density 0.25,0.75 --iterations 2");
    let densities: Vec<_> =
        report["runs"].as_array().unwrap().iter().map(|run| run["density"].as_f64()).collect();
    assert_eq!(densities, [Some(0.25), Some(0.75)]);
}

#[test]
fn bench_prints_tables_and_writes_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let text = prints(&format!(
        "bench --model cifar_resnet20 --density 0.5 --static --iterations 3 --profile --trace {}",
        trace.display()
    ));
    for word in ["median", "η", "gate µs", "layer3.2", "head", "faster"] {
        assert!(text.contains(word) || word == "faster" && text.contains("slower"), "{word}: {text}");
    }
    let trace: Value = serde_json::from_str(&fs::read_to_string(trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|event| event["name"] == "layer2.0" && event["dur"].as_f64() > Some(0.0)));
    assert_eq!(files_in(folder.path()), ["trace.json"]);
}

#[test]
fn inspect_describes_names_and_files() {
    let text = prints("inspect resnet50 --mode spatial --granularity 4-4-2-1");
    for word in
        ["resnet50", "random weights", "patches of 4-4-2-1", "25.6 M", "4.09 G", "14×14 patches of 4×4"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    let text = prints("inspect mobilenet_v2 --mode both --density 0.5");
    for word in ["4 groups of 8 channels\n", "7×7 patches of 4×4 in 2, 12 groups of 16 channels\n"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let report =
        prints_json(&format!("inspect --json {}", fixture("resnet_both_s2221_g2.safetensors").display()));
    assert_eq!(report["gates"], "both, patches of 2-2-2-1, channel groups of 2");
    assert_eq!(report["stages"].as_array().unwrap().len(), 4);
    assert!(report["config_from"].as_str().unwrap().contains("metadata"));
}

#[test]
fn predict_prints_the_simulators_rows() {
    let csv = prints(
        "predict --csv --mode static,layer,spatial,channel --granularity 4-4-2-1 --density 0.5 --batch 128",
    );
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("model,hardware,mode,granularity,activation,latency_s,static_latency_s"));
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.iter().map(|row| row[2]).collect::<Vec<_>>(), ["static", "layer", "spatial", "channel"]);
    // The official simulator's value.
    assert!((rows[0][5].parse::<f64>().unwrap() / 0.1162110916614966 - 1.0).abs() < 1e-9);
    let report = prints_json("predict --json --device v100,tx2 --model resnet50,regnety004 --density 0.5,1");
    assert_eq!(report.as_array().unwrap().len(), 8);
    assert!(prints("predict").contains("predicted, not measured"));
    fails("predict --device gtx", &["gtx", "v100, 3090"]);
    fails("predict --model vgg", &["vgg", "resnet50, resnet101"]);
    fails("predict --granularity 4-4", &["granularities", "resnet50"]);
    fails("predict --granularity 4-x-1", &["4-x-1"]);
}

#[test]
fn completions_and_help_print() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(prints(&format!("completions {shell}")).contains("laud"));
    }
    assert!(prints("--version").starts_with("laud "));
    for command in [
        "",
        "run",
        "bench",
        "eval",
        "rank",
        "experiment",
        "report",
        "advise",
        "inspect",
        "infer",
        "quantize",
        "verify",
        "predict",
    ] {
        assert!(prints(&format!("{command} --help")).contains("Usage:"));
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = command()
        .args(["predict", "--csv", "--density", "0.1,0.2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(child.wait().unwrap().success() && errors.is_empty(), "{errors}");
}

#[test]
fn a_model_that_cannot_be_is_named() {
    fails("run --model resnet5", &["--model resnet5", "resnet50", "mobilenet_v2"]);
    fails("run --model no/such.safetensors", &["no/such.safetensors"]);
    fails("run --model resnet50 --mode spatial --granularity 4-4", &["resnet50", "spatial_granularity"]);
    fails("run --model resnet50 --mode channel --group 3", &["channel_granularity", "3"]);
    fails("run --model mobilenet_v2 --mode spatial", &["mobilenet_v2", "--density"]);
    fails("run --model cifar_resnet20 --padding tf --masks x", &["static", "--density"]);
    fails("bench --static", &["--static", "--density"]);
    fails("bench --model resnet50 --input-size 9999999", &["resnet50", "9999999"]);
    let layer = fixture("resnet_layer.safetensors");
    let errors = fails(&format!("run --model {} --mode spatial", layer.display()), &["dyn_mode", "layer"]);
    assert!(errors.contains("resnet_layer.safetensors"), "{errors}");
    let (_folder, config) = file_with("config.json", br#"{"arch": "resnet50", "depths": [1, "x"]}"#);
    fails(&format!("inspect --config {config} --model {}", layer.display()), &["config.json", "depths"]);
    let (_folder, config) = file_with("config.json", br#"{"dyn_mode": "layer", "depths": [9, 9, 9, 9]}"#);
    fails(
        &format!("inspect --config {config} --model {}", layer.display()),
        &["resnet_layer.safetensors", "depths"],
    );
}

#[test]
fn flags_say_what_shapes_cannot() {
    let source = Checkpoint::open(&fixture("resnet_layer.safetensors")).unwrap();
    let bytes: Vec<_> = source.tensors().keys().map(|name| source.read_bytes(name).unwrap()).collect();
    let tensors = source.tensors().iter().zip(&bytes).filter(|((name, _), _)| !name.starts_with("fixture."));
    let tensors = tensors.map(|((name, info), bytes)| {
        (name.clone(), TensorOut { shape: info.shape.clone(), data: TensorData::Raw(info.dtype, bytes) })
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bare.safetensors");
    write_safetensors(&path, &tensors.collect(), &Default::default()).unwrap();
    let path = path.display();
    fails(&format!("inspect {path}"), &["bare.safetensors", "dyn_mode", "--mode"]);
    let report = prints_json(&format!("inspect --json {path} --mode layer --input-size 64"));
    assert_eq!((&report["gates"], &report["config_from"]), (&"layer".into(), &"tensor shapes".into()));
    fails(&format!("inspect {path} --mode channel"), &["bare.safetensors", "dyn_mode"]);
    // A sidecar is the same said in a file, and is held against the flags.
    fs::write(folder.path().join("bare.safetensors.json"), r#"{"dyn_mode": "layer", "input_size": 64}"#)
        .unwrap();
    let report = prints_json(&format!("inspect --json {path} --input-size 96"));
    assert!(report["config_from"].as_str().unwrap().ends_with("bare.safetensors.json"), "{report}");
    assert_eq!(report["input"]["size"]["h"], 96);
    fails(
        &format!("inspect {path} --mode spatial"),
        &["bare.safetensors.json", "dyn_mode", "spatial", "layer"],
    );
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    fails("run --device cuda", &["cuda:0"]);
    fails("bench --device cuda:7", &["cuda:7"]);
    fails("device-suite --device cpu --out /no/such/folder", &["cuda:N"]);
    fails("kernels compile --arch sm_90,x --out /no/such/folder", &["--arch x", "sm_80"]);
    fails("run --dtype f16", &["f16", "CUDA"]);
    fails("run --isa sse9", &["sse9", "portable"]);
    fails("run --plan /no/such/plan.json", &["/no/such/plan.json"]);
    let (_folder, plan) = file_with("plan.json", br#"{"network": "x", "blocks": []}"#);
    fails(&format!("run --plan {plan}"), &["plan.json", "0 blocks"]);
}

#[test]
fn wrong_arguments_are_usage_errors() {
    for line in [
        "run --density 1.5",
        "run --density nan",
        "run --threads 0",
        "run --threads 9999",
        "run --dtype f64",
        "run --device tpu",
        "bench --batch 0",
        "bench --iterations 0",
        "bench --duration 0s",
        "bench --iterations 5 --duration 5s",
        "run --granularity 4-",
        "run --mode sideways",
        "verify",
        "verify x --tolerance -1",
        "nothing",
    ] {
        let output = laud(line.split_whitespace());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "laud {line}: {errors}");
        assert!(errors.starts_with("error: ") && !errors.contains("panicked"), "laud {line}: {errors}");
    }
    fails("run --density 0.1,0.2", &["--density"]);
}

#[test]
fn predictor_evaluates_itself_on_measurements_of_others() {
    let data = "--dataset predictor/tests/data/gpu_conv";
    let report = prints_json(&format!("predictor evaluate {data} --leave-out v100 --shots 10 --json"));
    assert_eq!((report["gpu"].as_str(), report["used"].as_u64()), (Some("v100"), Some(10)));
    let error = report["mape_percent"].as_f64().unwrap();
    assert!((1.0..25.0).contains(&error), "{error}");
    let table = prints(&format!("predictor evaluate {data} --gpu t4 --train-samples 150"));
    assert!(table.contains("t4") && !table.contains("v100"), "{table}");
    fails(&format!("predictor evaluate {data} --leave-out h100"), &["--leave-out", "h100", "p100, t4, v100"]);
    fails("predictor evaluate --dataset tests/fixtures", &["tests/fixtures", "conv_<gpu>.csv"]);
    fails("predictor check --measurements nowhere.csv --profile x.json", &["nowhere.csv", "cannot read"]);
}
