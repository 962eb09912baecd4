//! `laud eval` and `laud rank`: numbers on labelled images, from outside.

use std::fs;

use serde_json::Value;

use crate::cli::{fails, files_in, prints, prints_json};

pub(crate) fn cifar() -> String {
    format!("{}/models/zoo/cifar10_images/cifar10_test_32.bin", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn eval_counts() {
    let set = cifar();
    let report = prints_json(&format!("eval --json --model cifar_resnet20 --data {set} --batch 5"));
    assert_eq!((report["images"].as_u64(), report["batch"].as_u64()), (Some(32), Some(5)));
    assert!(report["top1"].as_f64().unwrap() > 0.85, "{report}");
    assert_eq!(report["top5"], 1.0);
    assert_eq!(report["static"], Value::Null);
    let latency = |q: &str| report["latency_ms"][q].as_f64().unwrap();
    assert!(0.0 < latency("p50") && latency("p50") <= latency("p95") && latency("p95") <= latency("p99"));
    let photos = format!("{}/models/zoo/photos", env!("CARGO_MANIFEST_DIR"));
    let text = prints(&format!("eval --data {photos} --limit 4"));
    assert!(text.contains("top-1   100.0 %") && text.contains("4 images"), "{text}");
    fails(&format!("eval --model cifar_resnet20 --data {photos}"), &["photos", "10 classes"]);
}

#[test]
fn eval_says_where_skipping_differs() {
    let line = format!("eval --model cifar_resnet20 --data {}", cifar());
    let same = prints_json(&format!("{line} --policy always --json"));
    let compared = &same["static"];
    assert_eq!(
        (compared["agreement"].as_f64(), compared["differs"].as_array().map(Vec::len)),
        (Some(1.0), Some(0))
    );
    assert_eq!(compared["top1"], same["top1"]);
    let report = prints_json(&format!("{line} --policy topk:0.25 --seed 3 --json"));
    let compared = &report["static"];
    let differs = compared["differs"].as_array().unwrap();
    let sum = |key: &str| differs.iter().map(|entry| entry[key].as_u64().unwrap()).sum::<u64>();
    assert!(sum("images") > 0);
    assert_eq!(compared["agreement"].as_f64().unwrap(), 1.0 - sum("images") as f64 / 32.0);
    assert_eq!(compared["only_static_right"].as_u64(), Some(sum("static_right")));
    let lost = (sum("static_right") as f64 - sum("dynamic_right") as f64) / 32.0;
    assert!((compared["top1"].as_f64().unwrap() - report["top1"].as_f64().unwrap() - lost).abs() < 1e-9);
    let shares = report["blocks"].as_array().unwrap().iter().filter_map(|block| block["patches"].as_f64());
    assert!(shares.into_iter().all(|share| share == 0.25), "{report}");
    assert!(report["macs"]["done"].as_f64().unwrap() < 0.7 * report["macs"]["dense"].as_f64().unwrap());
    let text = prints(&format!("{line} --policy random:0.5 --blocks"));
    for word in ["agrees", "with skipping", "layer3.2", "static"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn eval_counts_who_leaves_early() {
    let line = format!("eval --model cifar_resnet20 --data {}", cifar());
    let report = prints_json(&format!("{line} --policy exit:24:0.9 --batch 5 --json"));
    let (exit, macs) = (&report["exits"][0], &report["macs"]);
    let answered = exit["answered"].as_u64().unwrap();
    assert_eq!((exit["images"].as_u64(), exit["size"]["h"].as_u64()), (Some(32), Some(24)));
    assert!(answered > 0 && answered < 32, "{report}");
    // 24 × 24 pixels are 9 sixteenths of 32 × 32; the classifier costs next to nothing.
    let share = macs["done"].as_f64().unwrap() / macs["dense"].as_f64().unwrap();
    let expected = 9.0 / 16.0 + (32 - answered) as f64 / 32.0;
    assert!((share - expected).abs() < 1e-3, "{share} {expected}");
    let stayed = report["computed"]["blocks"].as_f64().unwrap();
    assert!((stayed - (32 - answered) as f64 / 32.0).abs() < 1e-9, "{report}");
    assert!(report["static"]["top1"].as_f64().unwrap() > 0.85 && report["policy"] == "exit:24:0.9");
    let text = prints(&format!("{line} --policy exit:24:0.9"));
    assert!(text.contains(&format!("24×24 answers {answered} of 32")) && text.contains("mean"), "{text}");
    // Gates of an exit are decided by the same policy.
    let gated = prints_json(&format!("{line} --policy exit:24:1+topk:0.25 --json"));
    assert_eq!(gated["exits"][0]["answered"], 0);
    fails(&format!("{line} --policy exit:24"), &["--policy", "exit:24", "needs a size or a network"]);
    fails(&format!("{line} --policy exit:0:0.5"), &["`0` is not a size"]);
    fails("bench --model cifar_resnet20 --policy exit:24:0.5", &["bench knows no early exits"]);
}

#[test]
fn rank_measures_what_policies_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let network = "--model cifar_resnet20 --mode layer";
    let line = format!("{network} --data {} --limit 8", cifar());
    let (usage, importance) = (file("usage.json"), file("importance.json"));
    let text = prints(&format!("rank --by usage {line} --out {usage}"));
    assert!(text.contains("scores of 9 units on 8 images"), "{text}");
    prints(&format!("rank --by importance {line} --batch 8 --out {importance}"));
    let scores: Value = serde_json::from_str(&fs::read_to_string(&importance).unwrap()).unwrap();
    let scores =
        scores["blocks"].as_array().unwrap().iter().map(|block| block["patches"][0].as_f64().unwrap());
    let scores: Vec<f64> = scores.collect();
    // A trained network misses its blocks.
    assert!(scores.len() == 9 && scores.iter().sum::<f64>() > 0.5, "{scores:?}");
    let eval = |policy: &str| prints_json(&format!("eval --json {line} --policy {policy}"));
    let oracle = eval(&format!("importance:0.67:{importance}"));
    assert!((oracle["computed"]["blocks"].as_f64().unwrap() - 6.0 / 9.0).abs() < 1e-9);
    let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let skipped = oracle["blocks"].as_array().unwrap().iter().zip(&scores);
    assert!(skipped.into_iter().any(|(block, score)| *score == least && block["patches"] == 0.0));
    eval(&format!("pruned:0.5:{usage}"));
    let wrong = format!("eval {line} --policy");
    fails(&format!("{wrong} pruned:0.5:{importance}"), &["importance.json", "Importance", "Usage"]);
    fails(&format!("{wrong} importance:0.5:{}", cifar()), &["cifar10_test_32.bin"]);
    let other = format!("eval --model cifar_resnet20 --mode spatial --data {} --policy", cifar());
    fails(&format!("{other} pruned:0.5:{usage}"), &["usage.json", "1 scores"]);
    fails(&format!("{wrong} topk:0.5"), &["--policy", "one unit each"]);
    fails(&format!("rank --by usage --model cifar_resnet20 --data {} --out {usage}", cifar()), &["no gates"]);
    assert_eq!(files_in(folder.path()), ["importance.json", "usage.json"]);
}
