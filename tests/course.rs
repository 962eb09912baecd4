//! A whole training: cut off and gone on with, and what errors leave behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::bail;
use candle_core::{Device, Tensor};
use laud::autograd::kernel_maps;
use laud::checkpoint::{Checkpoint, DType};
use laud::train::{
    Cost, Course, Decisions, Event, MapElement, MaskedNetwork, Recipe, Setup, Trainer, distillation,
    initial_weights, random_images, resized, steps_per_epoch,
};
use laud::vision::Batches;
use laud_models::{MapSize, NetConfig, NetSpec};

const CONFIG: &str =
    r#"{"arch": "cifar_resnet", "depths": [1, 1], "widths": [4, 8], "stem_width": 4, "dyn_mode": "layer"}"#;

fn recipe() -> Recipe {
    Recipe { epochs: 3, batch: 8, target: Some(0.5), seed: 5, skip_from: 0.6, ..Recipe::default() }
}

/// With a teacher, the same network without gates, where the recipe has a use for it.
fn course<'a>(folder: &Path, data: &'a Batches, recipe: Recipe) -> Course<'a> {
    let config = NetConfig::from_json(CONFIG).unwrap();
    let spec = config.build().unwrap();
    let weights = initial_weights(&spec, recipe.seed, recipe.gate_bias()).unwrap();
    let taught = recipe.distill_features > 0.0;
    let trainer = Trainer::new(Setup {
        teacher: taught.then(|| (spec.without_gates(), weights.clone())),
        weights,
        cost: Some(Cost::macs(&spec, recipe.rate_gradient()).unwrap()),
        steps: recipe.epochs * steps_per_epoch(data.len(), recipe.batch).unwrap(),
        maps: kernel_maps(recipe.dtype, 2).unwrap(),
        spec,
        recipe,
    })
    .unwrap();
    Course::new(folder, (trainer, config), data, Some(data), 2, BTreeMap::new()).unwrap()
}

fn images() -> Batches {
    let spec: NetSpec = NetConfig::from_json(CONFIG).unwrap().build().unwrap();
    Batches::new(laud::zoo::cifar10_images().unwrap(), &spec.input).unwrap()
}

fn read(folder: &Path, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(file)).unwrap()
}

#[test]
fn a_training_that_was_cut_off_ends_with_the_same_weights() {
    is_gone_on_with(recipe());
    is_gone_on_with(Recipe { dtype: MapElement::Bf16, ..recipe() });
    is_gone_on_with(Recipe { labels: false, distill_features: 1.0, target_by: 0.4, ..recipe() });
}

fn is_gone_on_with(recipe: Recipe) {
    let (data, folder) = (images(), tempfile::tempdir().unwrap());
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    course(&whole, &data, recipe.clone()).run(|_| Ok(())).unwrap();
    // Before the first saved state, between two, behind one, and in the second epoch's last step.
    for at in [1, 3, 5, 8] {
        let mut course = course(&cut, &data, recipe.clone());
        course.resume().unwrap();
        let stopped = course.run(|event| match event {
            Event::Step(report) if report.step == at => bail!("cut off"),
            _ => Ok(()),
        });
        assert_eq!(stopped.unwrap_err().to_string(), "cut off");
        let log = String::from_utf8(read(&cut, "log.jsonl")).unwrap();
        let last = log.lines().last().unwrap();
        assert!(last.starts_with(&format!("{{\"step\":{at},")), "the log has every step at once: {last}");
    }
    let mut last = course(&cut, &data, recipe);
    assert!(last.resume().unwrap());
    last.run(|_| Ok(())).unwrap();
    for file in ["model.safetensors", "state.safetensors", "log.jsonl"] {
        assert!(read(&whole, file) == read(&cut, file), "{file}");
    }
    let log = String::from_utf8(read(&whole, "log.jsonl")).unwrap();
    let epochs = log.lines().filter(|line| line.contains("top1")).count();
    assert_eq!((log.lines().count(), epochs), (12 + 3, 3));
}

#[test]
fn a_student_comes_closer_to_the_stages_of_its_teacher() {
    let (data, folder) = (images(), tempfile::tempdir().unwrap());
    let distances = |name: &str, weight: f64| {
        let recipe = Recipe { labels: false, distill_features: weight, epochs: 10, ..recipe() };
        let mut distances = Vec::new();
        let mut course = course(&folder.path().join(name), &data, recipe);
        course
            .run(|event| {
                if let Event::Step(step) = event {
                    distances.extend(step.features);
                }
                Ok(())
            })
            .unwrap();
        distances
    };
    let (weak, strong) = (distances("weak", 1e-6), distances("strong", 1.0));
    // The student sees statistics of its batch, the teacher stored ones.
    assert!(weak[0] == strong[0] && weak[0] > 0.0, "{} and {}", weak[0], strong[0]);
    let last = |distances: &[f64]| distances.iter().rev().take(4).sum::<f64>() / 4.0;
    assert!(last(&strong) < 0.9 * last(&weak), "{} and {}", last(&strong), last(&weak));
}

#[test]
fn without_bounds_only_the_whole_cost_counts() {
    let (data, folder) = (images(), tempfile::tempdir().unwrap());
    let first_step = |name: &str, bounds_until: f64| {
        let mut first = None;
        let recipe = Recipe { bounds_until, ..recipe() };
        let outcome = course(&folder.path().join(name), &data, recipe).run(|event| {
            if let Event::Step(step) = event {
                first = Some((step.cost.unwrap(), step.cost_loss.unwrap()));
            }
            bail!("one is enough")
        });
        assert_eq!(outcome.unwrap_err().to_string(), "one is enough");
        first.unwrap()
    };
    let ((cost, free), (same, bound)) = (first_step("free", 0.0), first_step("bound", 0.33));
    assert_eq!(cost, same);
    assert!((free - (cost - 0.5).powi(2)).abs() < 1e-6, "{free} at a cost of {cost}");
    assert!(bound > free + 1e-3, "{bound}, {free}");
}

#[test]
fn another_recipe_does_not_go_on_from_a_state() {
    let (data, folder) = (images(), tempfile::tempdir().unwrap());
    course(folder.path(), &data, recipe()).run(|_| Ok(())).unwrap();
    let other = Recipe { seed: 6, ..recipe() };
    let message = course(folder.path(), &data, other).resume().unwrap_err().to_string();
    assert!(message.contains("state.safetensors: is of another training"), "{message}");
}

#[test]
fn a_loss_that_is_no_number_leaves_the_last_good_state() {
    let (data, folder) = (images(), tempfile::tempdir().unwrap());
    let wild = Recipe { lr: Some(1e12), epochs: 40, ..recipe() };
    let error = course(folder.path(), &data, wild).run(|_| Ok(())).unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("the loss is") && message.contains("training stopped"), "{message}");
    let state = folder.path().join("state.safetensors");
    assert!(!state.exists() || Checkpoint::open(&state).is_ok());
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_the_state_before_stays() {
    let (data, folder) = (images(), tempfile::tempdir().unwrap());
    let mut first = course(folder.path(), &data, recipe());
    let stop = first.run(|event| match event {
        Event::Step(report) if report.step == 3 => bail!("enough"),
        _ => Ok(()),
    });
    assert!(stop.is_err());
    let before = read(folder.path(), "state.safetensors");
    // A folder in the place of the file: the rename fails, as writing does on a full disk.
    std::fs::create_dir_all(folder.path().join("model.safetensors/in the way")).unwrap();
    let mut second = course(folder.path(), &data, recipe());
    assert!(second.resume().unwrap());
    let message = format!("{:#}", second.run(|_| Ok(())).unwrap_err());
    assert!(message.contains("model.safetensors") && message.contains("last good state"), "{message}");
    assert!(Checkpoint::open(&folder.path().join("state.safetensors")).is_ok());
    assert!(!before.is_empty());
}

fn laud(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_laud")).arg("train").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_trains_gates_that_other_commands_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let records = laud_models::zoo::CIFAR10_IMAGES;
    let (learn, test) = records.split_at(16 * 3073);
    std::fs::write(path("learn.bin"), learn).unwrap();
    std::fs::write(path("test.bin"), test).unwrap();
    let arguments = [
        "--data",
        &path("learn.bin"),
        "--held-out",
        &path("test.bin"),
        "--validation",
        &path("test.bin"),
        "--out",
        &path("out"),
        "--model",
        "cifar_resnet20",
        "--mode",
        "layer",
        "--epochs",
        "1",
        "--batch",
        "8",
        "--target",
        "0.6",
        "--threads",
        "2",
    ];
    let (fine, out, error) = laud(&arguments);
    assert!(fine && out.contains("epoch 1") && out.contains("validation top-1"), "{out}{error}");
    let model = path("out/model.safetensors");
    for arguments in [vec!["eval", "--data", &path("test.bin"), "--model", &model], vec!["inspect", &model]] {
        let output = Command::new(env!("CARGO_BIN_EXE_laud")).args(&arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let (fine, _, error) = laud(&[&arguments[..1], &[&path("test.bin")], &arguments[2..]].concat());
    assert!(!fine && error.contains("must not be learned from"), "{error}");
}

#[test]
fn images_held_back_are_measured_on_and_filters_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let records = laud_models::zoo::CIFAR10_IMAGES;
    let (learn, test) = records.split_at(24 * 3073);
    for (name, records) in [("all.bin", records), ("learn.bin", learn), ("test.bin", test)] {
        std::fs::write(path(name), records).unwrap();
    }
    let train = |data: &str, out: &str, more: &[&str]| {
        let (data, out) = (path(data), path(out));
        let (model, gates) = (["--model", "cifar_resnet20"], ["--mode", "layer", "--target", "0.6"]);
        let steps = ["--epochs", "1", "--batch", "8", "--threads", "2", "--freeze-filters"];
        let arguments = [&["--data", &data, "--out", &out], &model[..], &gates, &steps, more].concat();
        let (fine, text, error) = laud(&arguments);
        assert!(fine && (text.contains("validation top-1") || text.contains("are done")), "{text}{error}");
        Checkpoint::open(&Path::new(&out).join("model.safetensors")).unwrap()
    };
    let split = train("all.bin", "split", &["--hold-back", "8"]);
    let apart = train("learn.bin", "apart", &["--validation", &path("test.bin")]);
    let start = laud::zoo::load("cifar_resnet20").unwrap();
    let mut moved = 0;
    for (name, info) in split.tensors() {
        let values = split.read_f32(name).unwrap();
        assert_eq!(values, apart.read_f32(name).unwrap(), "{name}");
        let Some(before) = start.tensors().get(name) else { continue };
        let same = values == start.read_f32(name).unwrap();
        assert!(same || info.shape.len() == 1, "{name} {:?}", before.shape);
        moved += usize::from(!same);
    }
    assert!(moved > 0, "normalisations move");

    // A training that is over is written once more, here in another precision.
    let half = train("all.bin", "split", &["--hold-back", "8", "--half"]);
    for (name, info) in half.tensors() {
        let halved = info.shape.len() > 1 && !laud::train::is_gate(name);
        assert_eq!(info.dtype == DType::F16, halved, "{name}");
        let (single, half) = (split.read_f32(name).unwrap(), half.read_f32(name).unwrap());
        let tolerance = if halved { 1e-3 } else { 0.0 };
        assert!(single.iter().zip(&half).all(|(a, b)| (a - b).abs() <= tolerance * (a.abs() + 1e-3)));
    }
}

#[test]
fn an_early_exit_learns_from_smaller_images_what_its_teacher_says_of_large_ones() {
    let large: NetSpec = NetConfig::from_json(CONFIG).unwrap().build().unwrap();
    let config =
        NetConfig { input_size: Some(MapSize { h: 20, w: 24 }), ..NetConfig::from_json(CONFIG).unwrap() };
    let small = config.build().unwrap();
    let weights = initial_weights(&large, 5, Default::default()).unwrap();
    let recipe = Recipe { labels: false, batch_statistics: false, ..Recipe::default() };
    let trainer = |student: &NetSpec, teacher: &NetSpec| {
        let (weights, maps) = (weights.clone(), kernel_maps(MapElement::F32, 1)?);
        let teacher = Some((teacher.without_gates(), weights.clone()));
        let recipe = recipe.clone();
        Trainer::new(Setup { spec: student.clone(), weights, teacher, cost: None, recipe, steps: 3, maps })
    };
    let images = random_images(&large, 4, 1).unwrap();
    let labels = Tensor::zeros(4, candle_core::DType::U32, &Device::Cpu).unwrap();
    let loss = |trainer: &Trainer, images: &Tensor| {
        trainer.losses(images, &labels).unwrap().distillation.unwrap().to_scalar::<f32>().unwrap()
    };
    let logits = |spec: &NetSpec, images: &Tensor| {
        let network = MaskedNetwork::new(&spec.without_gates(), &weights).unwrap();
        network.forward(images, &Decisions::Learned).unwrap().logits
    };
    let learns = trainer(&small.without_gates(), &large).unwrap();
    assert_eq!(learns.input(), large.input.size);
    let smaller = resized(&images, small.input.size).unwrap();
    let expected = distillation(&logits(&small, &smaller), &logits(&large, &images), 4.0).unwrap();
    let (got, expected) = (loss(&learns, &images), expected.to_scalar::<f32>().unwrap());
    assert!((got - expected).abs() < 1e-3 * expected, "{got} {expected}");
    // The smaller one may be the teacher too.
    assert_eq!(trainer(&large.without_gates(), &small).unwrap().input(), large.input.size);
    let hinted = Recipe { distill_features: 1.0, ..recipe.clone() };
    let (spec, maps) = (small.clone(), kernel_maps(MapElement::F32, 1).unwrap());
    let teacher = Some((large.without_gates(), weights.clone()));
    let setup = Setup { spec, weights: weights.clone(), teacher, cost: None, recipe: hinted, steps: 3, maps };
    let error = Trainer::new(setup).err().unwrap().to_string();
    assert!(error.contains("32×32") && error.contains("20×24"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("all.bin"), laud_models::zoo::CIFAR10_IMAGES).unwrap();
    let (all, out) = (path("all.bin"), path("out"));
    let model = ["--model", "cifar_resnet20", "--input-size", "24", "--teacher", "cifar_resnet20"];
    let steps = ["--epochs", "1", "--batch", "8", "--threads", "2", "--lr", "0.001", "--hold-back", "16"];
    let (fine, text, error) = laud(&[&["--data", &all, "--out", &out], &model[..], &steps].concat());
    assert!(fine && text.contains("validation top-1"), "{text}{error}");
    let policy = format!("exit:{}:0.5", path("out/model.safetensors"));
    let report = crate::cli::prints_json(&format!(
        "eval --json --model cifar_resnet20 --data {all} --policy {policy}"
    ));
    assert_eq!(
        (report["exits"][0]["size"]["w"].as_u64(), report["exits"][0]["images"].as_u64()),
        (Some(24), Some(32))
    );
    assert!(report["exits"][0]["answered"].as_u64().unwrap() > 16, "{report}");
}

#[test]
fn thinned_networks_start_at_the_target_and_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("images.bin"), laud_models::zoo::CIFAR10_IMAGES).unwrap();
    let (data, out) = (path("images.bin"), path("out"));
    let recipe =
        ["--epochs", "1", "--batch", "16", "--no-labels", "--stored-statistics", "--noise-until", "0"];
    let network = ["--model", "cifar_resnet20", "--mode", "channel", "--group", "4"];
    let start = ["--thin-images", "8", "--target", "0.7", "--data", &data, "--out", &out];
    let arguments = [&network[..], &recipe, &start].concat();
    let (fine, _, error) = laud(&arguments);
    assert!(fine, "{error}");
    let log = std::fs::read_to_string(folder.path().join("out/log.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    let cost = first["cost"].as_f64().unwrap();
    assert!(cost <= 0.7 + 1e-6 && cost > 0.65, "the first step costs {cost}");
    let model = read(folder.path(), "out/model.safetensors");
    let (fine, output, error) = laud(&arguments);
    assert!(fine && output.contains("2 of 2 steps are done"), "{output}{error}");
    assert!(read(folder.path(), "out/model.safetensors") == model, "nothing is thinned anew");
    // Without a step the network is written as training would start.
    let other = path("start");
    let arguments: Vec<&str> = (arguments.iter())
        .map(|&argument| {
            if argument == "1" {
                "0"
            } else if argument == out {
                &other
            } else {
                argument
            }
        })
        .collect();
    let (fine, output, error) = laud(&arguments);
    assert!(fine && output.contains("0 steps"), "{output}{error}");
    let start = Checkpoint::open(&folder.path().join("start/model.safetensors")).unwrap();
    let weight = start.read_f32("layer1.0.masker_channel.conv.2.weight").unwrap();
    let bias = start.read_f32("layer1.0.masker_channel.conv.2.bias").unwrap();
    assert!(weight.iter().all(|w| *w == 0.0) && bias[0] > 0.0, "gates treat all images alike: {bias:?}");
}

#[test]
fn errors_of_the_command_name_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let jpk = [b"JPK1".as_slice(), &1u32.to_le_bytes(), &[3], &4u32.to_le_bytes(), b"junk"].concat();
    std::fs::write(path("broken.jpk"), jpk).unwrap();
    std::fs::write(path("few.bin"), &laud_models::zoo::CIFAR10_IMAGES[..3073]).unwrap();
    std::fs::create_dir_all(folder.path().join("classes/cat")).unwrap();
    let message = |data: &str, more: &[&str]| {
        let (data, out) = (path(data), path("out"));
        let arguments = [&["--data", &data, "--out", &out, "--epochs", "1", "--model"], more].concat();
        let (fine, _, error) = laud(&arguments);
        assert!(!fine && error.starts_with("error: ") && error.trim().lines().count() == 1, "{error}");
        error
    };
    assert!(message("broken.jpk", &["resnet20", "--batch", "1"]).contains("record 0"));
    assert!(message("few.bin", &["resnet20", "--batch", "8"]).contains("fewer than the 8"));
    assert!(message("classes", &["resnet20"]).contains("no images"));
    assert!(message("few.bin", &["resnet20", "--lr", "-1"]).contains("lr is -1"));
    assert!(message("few.bin", &["resnet20", "--batch", "1", "--target", "0.5"]).contains("no gates"));
    assert!(message("few.bin", &["resnet20", "--batch", "1", "--no-labels"]).contains("teacher"));
    let thin = ["resnet20", "--batch", "1", "--thin-images", "1"];
    assert!(message("few.bin", &thin).contains("thin_images is 1: gates that start at a target need one"));
    let thin = [&thin[..], &["--target", "0.5"]].concat();
    assert!(message("few.bin", &thin).contains("has its own gates or none"));
    let layers = [&["cifar_resnet20", "--mode", "layer"], &thin[1..]].concat();
    assert!(message("few.bin", &layers).contains("gets others, use --mode channel"));
    assert!(
        message("few.bin", &["resnet20", "--batch", "1", "--distill-features", "1"])
            .contains("needs a teacher")
    );
}
