//! `laud experiment`, `laud report` and `laud advise`: a grid of evaluations from outside, cut off and gone on with, and what
//! is made of its results.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::cli::{command, fails, files_in, prints, prints_json};
use crate::evaluate::cifar;

fn grid(folder: &Path, more: &str) -> String {
    let text = format!(
        "data = \"{}\"\nlimit = 6\npolicies = [\"always\", \"random:0.5\", \"topk:0.5\", \"exit:24:0.9\"]\n{more}\n\
         [[models]]\nmodel = \"cifar_resnet20\"\nmode = \"spatial\"\ngranularity = [\"4-2-1\", \"2\"]\n\
         [[models]]\nmodel = \"cifar_resnet20\"\n",
        cifar()
    );
    let path = folder.join("grid.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn rows(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("grid.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_grid_is_evaluated_once_and_becomes_a_page_and_advice() {
    let folder = tempfile::tempdir().unwrap();
    let file = grid(folder.path(), "seeds = [0, 1]\npictures = 1");
    let plan = prints(&format!("experiment {file} --dry-run"));
    // Untrained gates differ by seed; the network without any is one.
    assert_eq!(plan.matches("·  ").count() / 2, 18, "{plan}");
    assert_eq!(files_in(folder.path()), ["grid.toml"]);

    let file = grid(folder.path(), "pictures = 1");
    let text = prints(&format!("experiment {file}"));
    assert!(text.contains("10 evaluations, 0 of them done") && text.contains("[10/10]"), "{text}");
    let found = rows(folder.path());
    assert_eq!(found.len(), 10);
    for row in &found {
        let origin = &row["origin"];
        assert!(origin["commit"].as_str().is_some_and(|commit| !commit.is_empty()), "{row}");
        assert_eq!((origin["profile"].is_null(), row["found"]["images"].as_u64()), (true, Some(6)));
        let gated = row["cell"]["mode"] == "spatial";
        assert_eq!(row["pictures"].as_array().map_or(0, Vec::len), usize::from(gated));
        let policy = row["cell"]["policy"].as_str().unwrap();
        assert_eq!(policy == "static", row["found"]["static"].is_null());
        assert!(gated || ["static", "exit:24:0.9"].contains(&policy), "{policy}");
        assert_eq!(row["found"]["exits"].is_null(), !policy.starts_with("exit:"));
    }
    assert!(prints(&format!("experiment {file}")).contains("10 evaluations, 10 of them done"));
    assert_eq!(rows(folder.path()), found);

    let (results, page) = (folder.path().join("grid.jsonl"), folder.path().join("page.html"));
    let (results, page) = (results.display(), page.display().to_string());
    prints(&format!("report {results} --out {page} --deadline 50ms --title Numbers"));
    let html = fs::read_to_string(&page).unwrap();
    assert_eq!((html.matches("<svg").count(), html.matches("<img").count()), (4, 8));
    assert!(html.contains("<h1>Numbers</h1>") && html.contains("topk:0.5") && !html.contains("<script"));

    let line = format!("advise --results {results} --budget");
    let text = prints(&format!("{line} 10s"));
    assert!(text.contains("the most accurate of 10 measured points"), "{text}");
    // Whether anything is faster and worse is a matter of the machine's load.
    let front = prints_json(&format!("{line} 10s --json"));
    assert_eq!(text.contains("points per ms"), front["front"].as_array().unwrap().len() > 1, "{text}");
    let advice = prints_json(&format!("{line} 10s --quantile p50 --json"));
    let best = found.iter().map(|row| row["found"]["top1"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(advice["pick"]["top1"].as_f64(), Some(best));
    let fastest = advice["front"][0]["latency_ms"]["p50"].as_f64();
    assert_eq!(advice["fastest"]["latency_ms"]["p50"].as_f64(), fastest);
    fails(&format!("{line} 0.001ms"), &["nothing that was measured", "the fastest takes"]);
    fails(&format!("{line} 10s --devices cuda:3"), &["cuda:3"]);
    fs::remove_dir_all(folder.path().join("grid.pictures")).unwrap();
    fails(&format!("report {results} --out {page}"), &["grid.pictures", "no such picture"]);
}

#[test]
fn what_is_killed_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let file = grid(folder.path(), "");
    let target = folder.path().join("grid.jsonl");
    let mut child =
        command().args(["experiment", &file]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let whole = || fs::read_to_string(&target).unwrap_or_default().matches('\n').count();
    while whole() < 2 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = whole();
    assert!(before >= 2);
    // And as if it had been cut off in the middle of a line.
    let text = fs::read_to_string(&target).unwrap();
    fs::write(&target, format!("{text}{{\"cell\": {{\"mod")).unwrap();
    let text = prints(&format!("experiment {file}"));
    assert!(text.contains(&format!("10 evaluations, {before} of them done")), "{text}");
    assert_eq!(rows(folder.path()).len(), 10);
}

#[test]
fn grids_that_cannot_be_are_one_line_that_names_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grid.toml");
    let good = format!("data = \"{}\"\npolicies = [\"always\"]\n", cifar());
    let model = "[[models]]\nmodel = \"cifar_resnet20\"\n";
    for (text, words) in [
        (format!("{good}limt = 3\n{model}"), vec!["line 3", "limt", "limit"]),
        (format!("{good}limit = \"many\"\n{model}"), vec!["line 3", "limit = \"many\"", "invalid type"]),
        (format!("{good}repeat = 0\n{model}"), vec!["repeat = 0"]),
        (format!("{good}seeds = []\n{model}"), vec!["seeds is empty"]),
        (format!("{good}{model}mode = 3\n"), vec!["line 5", "mode = 3"]),
        (format!("{good}{model}mode = \"sideways\"\n"), vec!["mode `sideways`"]),
        (
            format!("{good}{model}mode = \"layer\"\npolicies = [\"topk:0.5\"]\n"),
            vec!["policies", "layer", "one unit"],
        ),
        (
            format!("{good}{model}mode = \"layer\"\npolicies = [\"best\"]\n"),
            vec!["policies", "best", "there are learned"],
        ),
        (format!("{good}threads = [0]\n{model}"), vec!["threads = 0"]),
        (format!("{good}devices = [\"tpu\"]\n{model}"), vec!["tpu"]),
        (format!("{good}[[models]]\nmodel = \"no_such_net\"\n"), vec!["models: no_such_net"]),
        (good.clone(), vec!["models"]),
        (format!("data = \"/no/such\"\n{model}"), vec!["data", "/no/such"]),
        ("data = ".into(), vec!["line 1"]),
    ] {
        fs::write(&path, &text).unwrap();
        let error = fails(&format!("experiment {}", path.display()), &words);
        assert!(error.contains("grid.toml"), "{error}");
        assert_eq!(files_in(folder.path()), ["grid.toml"], "{text}");
    }
    fails("experiment /no/such.toml", &["/no/such.toml", "cannot read"]);
    fails("report /no/such.jsonl", &["/no/such.jsonl", "cannot read"]);
    fs::write(&path, "{}\n").unwrap();
    fails(&format!("report {0} --out {0}.html", path.display()), &["line 1", "no result"]);
    let example = prints("experiment --example");
    assert!(example.contains("[[models]]") && example.contains("policies"));
}
