use std::sync::Arc;

use candle_core::Tensor;
use laud::plan::ExecutionPlan;
use laud::train::{BlockMasks, Decisions, Evaluation, MaskedNetwork, PerGate, random_images, random_weights};
use laud::{Element, Session};
use laud_models::NetSpec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::compare::{assert_close, distance, values};
use crate::execute::{Found, isas, macs, recorded, run, samples, session};
use crate::networks::{NAMED, networks};
use crate::oracle::{FLOOR, RELATIVE};
use crate::oracle_cases::net;

/// Activations and weights rounded to 8 bits in each of up to 40 layers, some of which have two channels only: errors of
/// the largest logit.
const RELATIVE_BF16: f32 = 0.15;
/// Margins this small beside the gate's largest may round to the other side of 0.
const MARGIN: f32 = 1e-4;
/// Samples of the batches; each has decisions of its own.
pub(crate) const BATCH: usize = 3;

/// How many units of each gate are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Keep {
    Nothing,
    OneUnit,
    Half,
    Everything,
    /// Sample 0 nothing, 1 one unit, 2 everything; by turns from block to block.
    InTurns,
}

pub(crate) const KEEPS: [Keep; 5] =
    [Keep::Nothing, Keep::OneUnit, Keep::Half, Keep::Everything, Keep::InTurns];

/// Decisions for every gate of the network.
pub(crate) fn decisions(spec: &NetSpec, keep: Keep, seed: u64) -> Vec<BlockMasks> {
    let mut state = seed;
    let mut random = |end: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % end
    };
    let mut units = |block: usize, units: usize| -> Vec<bool> {
        let mut all = Vec::with_capacity(BATCH * units);
        for sample in 0..BATCH {
            let keep = match keep {
                Keep::InTurns => [Keep::Nothing, Keep::OneUnit, Keep::Everything][(sample + block) % 3],
                keep => keep,
            };
            let one = random(units);
            all.extend((0..units).map(|unit| match keep {
                Keep::Nothing => false,
                Keep::OneUnit => unit == one,
                Keep::Half => random(2) == 1,
                _ => true,
            }));
        }
        all
    };
    let block = |(index, block): (usize, &laud_models::BlockSpec)| PerGate {
        spatial: block.gate.spatial.as_ref().map(|gate| units(index, gate.grid.h * gate.grid.w)),
        channel: block.gate.channel.as_ref().map(|gate| units(index + 1, gate.groups)),
    };
    spec.blocks.iter().enumerate().map(block).collect()
}

/// The decisions of one sample.
fn one(masks: &[BlockMasks], sample: usize) -> Vec<BlockMasks> {
    let of = |all: &Vec<bool>| all[sample * all.len() / BATCH..(sample + 1) * all.len() / BATCH].to_vec();
    let block = |masks: &BlockMasks| PerGate {
        spatial: masks.spatial.as_ref().map(of),
        channel: masks.channel.as_ref().map(of),
    };
    masks.iter().map(block).collect()
}

/// A network on the oracle and on every executor.
struct Parity<'a> {
    what: &'a str,
    spec: NetSpec,
    oracle: MaskedNetwork,
    images: Tensor,
    /// f32 that gathers; f32 that computes every pixel; f32 that gathers squares of cells; f32 on two threads; bf16.
    /// On each instruction set.
    executors: Vec<[Session; 5]>,
}

impl<'a> Parity<'a> {
    fn new(what: &'a str, spec: NetSpec, pool: &Arc<rayon::ThreadPool>) -> Self {
        let weights = random_weights(&spec, 11).unwrap();
        let executor = |isa| {
            let sparse = session(&spec, &weights, |builder| builder.isa(isa).threads(1));
            let plan = ExecutionPlan::with_threshold(&spec, 0.0);
            let dense = session(&spec, &weights, |builder| builder.isa(isa).threads(1).plan(plan));
            let mut plan = ExecutionPlan::sparse(&spec);
            plan.blocks.iter_mut().zip([2, 3].into_iter().cycle()).for_each(|(b, side)| b.granularity = side);
            let coarse = session(&spec, &weights, |builder| builder.isa(isa).threads(1).plan(plan));
            let pooled = session(&spec, &weights, |builder| builder.isa(isa).pool(pool.clone()));
            let bf16 = session(&spec, &weights, |builder| builder.isa(isa).threads(1).element(Element::Bf16));
            [sparse, dense, coarse, pooled, bf16]
        };
        Self {
            oracle: MaskedNetwork::new(&spec, &weights).unwrap(),
            images: random_images(&spec, BATCH, 13).unwrap(),
            executors: isas().into_iter().map(executor).collect(),
            what,
            spec,
        }
    }

    fn check(&self) {
        KEEPS.iter().for_each(|&keep| self.check_given(keep));
        self.check_learned();
    }

    fn check_given(&self, keep: Keep) {
        let masks = decisions(&self.spec, keep, 17);
        let expected = self.oracle.forward(&self.images, &Decisions::Given(&masks)).unwrap();
        let policy = recorded(&self.spec, &masks);
        for [sparse, dense, coarse, pooled, bf16] in &self.executors {
            let what = format!("{} keeping {keep:?} on {}", self.what, sparse.describe());
            let found = run(sparse, &self.images, Some(&policy));
            assert_eq!(found.masks, masks, "{what}");
            assert_same(&what, &found, &expected);
            self.check_macs(&what, &found);
            // What is computed for nothing and the number of threads change no bit.
            for other in [dense, coarse, pooled] {
                let other = run(other, &self.images, Some(&policy));
                assert_eq!(values(&found.logits), values(&other.logits), "{what}");
            }
            // Nor do the other samples of the batch.
            for sample in 0..BATCH {
                let policy = recorded(&self.spec, &one(&masks, sample));
                let alone = run(sparse, &self.images.narrow(0, sample, 1).unwrap(), Some(&policy));
                let among = found.logits.get(sample).unwrap();
                assert_eq!(values(&alone.logits), values(&among), "{what}, sample {sample} alone");
            }
            let logits = run(bf16, &self.images, Some(&policy)).logits;
            let apart = distance(&logits, &expected.logits);
            assert!(apart <= RELATIVE_BF16, "{what}: bf16 is {apart} of the largest logit off");
        }
    }

    /// The oracle follows the executor's gates, and has to agree wherever its own are clear.
    fn check_learned(&self) {
        for [sparse, ..] in &self.executors {
            let what = format!("{} learned on {}", self.what, sparse.describe());
            let found = run(sparse, &self.images, None);
            let expected = self.oracle.forward(&self.images, &Decisions::Given(&found.masks)).unwrap();
            assert_same(&what, &found, &expected);
            for (block, (masks, margins)) in
                self.spec.blocks.iter().zip(found.masks.iter().zip(&expected.margins))
            {
                for (keep, margins) in
                    [(&masks.spatial, &margins.spatial), (&masks.channel, &margins.channel)]
                {
                    let (keep, margins) = (keep.as_deref().unwrap_or(&[]), margins.as_deref().unwrap_or(&[]));
                    assert_eq!(keep.len(), margins.len());
                    let largest = margins.iter().fold(0f32, |most, margin| most.max(margin.abs()));
                    for (&keep, &margin) in keep.iter().zip(margins) {
                        let clear = margin.abs() > MARGIN * largest;
                        assert!(!clear || keep == (margin > 0.0), "{what}, {}: margin {margin}", block.name);
                    }
                }
            }
        }
    }

    fn check_macs(&self, what: &str, found: &Found) {
        for ((block, masks), trace) in
            self.spec.blocks.iter().zip(&found.masks).zip(&found.output.trace.blocks)
        {
            let counts = macs(block, &samples(block, masks, BATCH));
            assert_eq!((trace.macs, trace.dense_macs), counts, "{what}, {}", block.name);
        }
    }
}

fn assert_same(what: &str, found: &Found, expected: &Evaluation) {
    assert_eq!(found.stages.len(), expected.stages.len());
    for (index, (found, expected)) in found.stages.iter().zip(&expected.stages).enumerate() {
        assert_close(&format!("{what}, stage {}", index + 1), found, expected, RELATIVE, FLOOR);
    }
    assert_close(&format!("{what}, logits"), &found.logits, &expected.logits, RELATIVE, FLOOR);
}

fn pool() -> Arc<rayon::ThreadPool> {
    Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap())
}

#[test]
fn named_networks_agree_with_the_oracle() {
    let pool = pool();
    for (name, json) in NAMED {
        Parity::new(name, net(json), &pool).check();
    }
}

#[test]
fn generated_networks_agree_with_the_oracle() {
    let pool = pool();
    let config = ProptestConfig {
        cases: 100,
        rng_seed: RngSeed::Fixed(23),
        failure_persistence: None,
        max_shrink_iters: 64,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&networks(), |json| {
        Parity::new(&json, net(&json), &pool).check();
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
