//! Two training steps against PyTorch, recorded by `fixtures/training/training_step.py`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use laud::autograd::KernelMaps;
use laud::checkpoint::Checkpoint;
use laud::train::{Cost, Losses, MapOps, Plain, Recipe, Sampling, Setup, Trainer};
use laud_models::NetConfig;
use serde_json::Value;

struct Recorded {
    spec: laud_models::NetSpec,
    numbers: Value,
    tensors: HashMap<String, Tensor>,
}

impl Recorded {
    fn open(mode: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training");
        let file = Checkpoint::open(&folder.join(format!("training_step_{mode}.safetensors"))).unwrap();
        let tensor = |name: &String| {
            let shape = file.tensors()[name].shape.clone();
            Tensor::from_vec(file.read_f32(name).unwrap(), shape, &Device::Cpu).unwrap()
        };
        Self {
            spec: NetConfig::from_json(&file.metadata()["config"]).unwrap().build().unwrap(),
            numbers: serde_json::from_str(&file.metadata()["numbers"]).unwrap(),
            tensors: file.tensors().keys().map(|name| (name.clone(), tensor(name))).collect(),
        }
    }

    /// Tensors whose name begins with `prefix`, without it.
    fn under(&self, prefix: &str) -> HashMap<String, Tensor> {
        let stripped = |(name, tensor): (&String, &Tensor)| {
            Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
        };
        self.tensors.iter().filter_map(stripped).collect()
    }

    fn number(&self, name: &str) -> f64 {
        self.numbers[name].as_f64().unwrap()
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_near(got: &[f32], want: &[f32], abs: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= abs + 1e-4 * want.abs(), "{what}: {got}, PyTorch {want}");
    }
}

fn two_steps(mode: &str, maps: Arc<dyn MapOps>) {
    let recorded = Recorded::open(mode);
    let recipe = Recipe {
        target: Some(recorded.number("target")),
        official_last_rate_only: true,
        ..Recipe::default()
    };
    let mut trainer = Trainer::new(Setup {
        weights: recorded.under("weight."),
        teacher: Some((recorded.spec.without_gates(), recorded.under("teacher."))),
        cost: Some(Cost::macs(&recorded.spec, recipe.rate_gradient()).unwrap()),
        spec: recorded.spec.clone(),
        recipe,
        steps: 2,
        maps,
    })
    .unwrap();
    let (images, noise) = (&recorded.tensors["images"], recorded.under("noise."));
    let labels = recorded.tensors["labels"].to_dtype(DType::U32).unwrap();
    for step in 1..=2 {
        let noise = |gate: &str, shape: &[usize]| {
            assert_eq!(noise[gate].dims(), shape, "{gate}");
            Ok(noise[gate].clone())
        };
        let sampling = Sampling { temperature: recorded.number("temperature"), noise: &noise };
        let losses = trainer.losses_under(images, &labels, sampling, recorded.number("progress")).unwrap();
        let Losses { total, cross_entropy, distillation, cost_loss, .. } = &losses;
        let parts = [cross_entropy.as_ref(), distillation.as_ref(), cost_loss.as_ref(), Some(total)];
        let parts: Vec<f32> = parts.map(|part| part.unwrap().to_scalar().unwrap()).to_vec();
        assert_near(&parts, &values(&recorded.tensors[&format!("losses.{step}")]), 1e-4, "losses");
        trainer.descend(&losses, recorded.number("lr")).unwrap();
        for (name, want) in recorded.under(&format!("after.{step}.")) {
            assert_near(
                &values(&trainer.weights()[&name]),
                &values(&want),
                1e-4,
                &format!("{name}, step {step}"),
            );
        }
    }
}

#[test]
fn a_layer_gated_step_is_pytorchs() {
    two_steps("layer", Arc::new(Plain));
    two_steps("layer", Arc::new(KernelMaps::<f32>::new(2).unwrap()));
}

#[test]
fn a_patch_and_channel_gated_step_is_pytorchs() {
    two_steps("both", Arc::new(Plain));
    two_steps("both", Arc::new(KernelMaps::<f32>::new(2).unwrap()));
}
