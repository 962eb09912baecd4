//! What do our own kernels bring to training? A step's forward and backward half on candle's operations and on the runtime's
//! kernels in f32 and in bf16, interleaved.
//!
//! `cargo bench --bench train_step -- [NETWORK…] [mode=layer] [batch=N] [threads=N] [ways=candle,f32,bf16]`

mod common;

use candle_core::{Device, Tensor, Var};
use half::bf16;
use laud::autograd::KernelMaps;
use laud::train::{
    Decisions, MapOps, MaskedNetwork, Statistics, cross_entropy, random_images, random_weights,
};
use laud_models::NetConfig;
use std::collections::HashMap;
use std::sync::Arc;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let number = |name, default| option(name).and_then(|n| n.parse().ok()).unwrap_or(default);
    let (batch, threads): (usize, usize) = (number("batch", 32), number("threads", 2));
    let only: Vec<&str> =
        words.iter().map(String::as_str).filter(|word| word.starts_with("resnet")).collect();
    println!("forward and backward of {batch} images, {threads} threads, statistics of the batch");
    for name in if only.is_empty() { vec!["resnet20", "resnet56"] } else { only } {
        let mode = option("mode").unwrap_or("none");
        let config = format!(
            r#"{{"arch": "{name}", "dyn_mode": "{mode}", "spatial_granularity": 4, "channel_granularity": 4}}"#
        );
        let spec = NetConfig::from_json(&config).and_then(|config| config.build()).expect("a network");
        let weights = random_weights(&spec, 1).expect("weights");
        let variables: HashMap<String, Tensor> = weights
            .iter()
            .map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).expect("a variable").into_inner()))
            .collect();
        let network = || MaskedNetwork::new(&spec, &variables).expect("a network");
        let ours = |maps: Arc<dyn MapOps>| network().with_maps(maps);
        let single = ours(Arc::new(KernelMaps::<f32>::new(threads).expect("threads")));
        let half = ours(Arc::new(KernelMaps::<bf16>::new(threads).expect("threads")));
        let candle = network();
        let images = random_images(&spec, batch, 2).expect("images");
        let labels = Tensor::zeros(batch, candle_core::DType::U32, &Device::Cpu).expect("labels");
        let step = |network: &MaskedNetwork| {
            let activity =
                network.forward_train(&images, &Decisions::Learned, Statistics::Batch).expect("forward");
            cross_entropy(&activity.logits, &labels).and_then(|loss| Ok(loss.backward()?)).expect("backward");
        };
        let ways: Vec<(&str, &MaskedNetwork)> = [("candle", &candle), ("f32", &single), ("bf16", &half)]
            .into_iter()
            .filter(|(name, _)| option("ways").is_none_or(|ways| ways.split(',').any(|way| way == *name)))
            .collect();
        let step = &step;
        let mut candidates: Vec<Box<dyn FnMut() + '_>> =
            ways.iter().map(|&(_, network)| Box::new(move || step(network)) as Box<dyn FnMut()>).collect();
        let times = common::interleave(&mut candidates, 5, 1e6);
        print!("{name:10}");
        for ((way, _), time) in ways.iter().zip(&times) {
            let faster = times[0].median_ns / time.median_ns;
            print!("   {way} {:8.1} ms, {faster:.1}×", time.median_ns / 1e6);
        }
        println!("   noise {:.0} %", common::noise(&times));
    }
}
