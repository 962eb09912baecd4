use laud::checkpoint::Checkpoint;
use laud::{CheckpointWeights, Session};
use laud_models::{BlockRates, BlockSpec, SampleMasks};

use crate::compare::assert_close;
use crate::execute::{isas, macs, recorded, run, samples, session};
use crate::fixtures::{Fixture, NAMES};
use crate::oracle::{FLOOR, RELATIVE};

#[test]
fn official_results_are_reproduced() {
    for name in NAMES {
        let fixture = Fixture::load(name);
        for isa in isas() {
            for threads in [1, 2] {
                let session =
                    session(&fixture.spec, &fixture.weights, |builder| builder.isa(isa).threads(threads));
                let what = format!("{name} on {isa} with {threads} threads");
                assert_official(&what, &fixture, &session);
            }
        }
    }
}

/// The official training script's own file: pickled, under its `module.` names.
#[test]
fn an_official_checkpoint_runs() {
    let fixture = Fixture::load("checkpoint_official.expected");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/checkpoint_official.pth.tar");
    let checkpoint = Checkpoint::open(path.as_ref()).unwrap();
    let weights = CheckpointWeights::new(&checkpoint);
    weights.check(&fixture.spec).unwrap();
    let session = Session::builder(fixture.spec.clone()).threads(1).build(&weights).unwrap();
    assert_official("checkpoint", &fixture, &session);
}

pub(crate) fn assert_official(what: &str, fixture: &Fixture, session: &Session) {
    let given = recorded(&fixture.spec, &fixture.masks);
    for found in [run(session, &fixture.input, None), run(session, &fixture.input, Some(&given))] {
        for (block, (found, official)) in
            fixture.spec.blocks.iter().zip(found.masks.iter().zip(&fixture.masks))
        {
            assert_eq!(found, official, "{what}, {}", block.name);
        }
        assert_eq!(found.stages.len(), fixture.stages.len());
        for (index, (stage, official)) in found.stages.iter().zip(&fixture.stages).enumerate() {
            assert_close(&format!("{what}, stage {}", index + 1), stage, official, RELATIVE, FLOOR);
        }
        assert_close(&format!("{what}, logits"), &found.logits, &fixture.logits, RELATIVE, FLOOR);
        for (index, (block, trace)) in fixture.spec.blocks.iter().zip(&found.output.trace.blocks).enumerate()
        {
            let what = format!("{what}, {}", block.name);
            let samples = samples(block, &fixture.masks[index], fixture.input.dim(0).unwrap());
            assert_eq!((trace.macs, trace.dense_macs), macs(block, &samples), "{what}");
            let grouped = block.convs.iter().any(|conv| conv.groups > 1);
            if block.squeeze_excite.is_none() && !(grouped && block.gate.channel.is_some()) {
                assert_eq!((trace.macs, trace.dense_macs), official_macs(block, &samples), "{what}");
            }
        }
    }
}

/// Multiply-accumulates of the block and with everything active as the official code counts each sample's, over the
/// batch and without the maskers. It multiplies rates, which for grouped convolutions is a mean over all masks.
fn official_macs(block: &BlockSpec, samples: &[SampleMasks]) -> (u64, u64) {
    let count = |sample: &SampleMasks| {
        let rates = BlockRates::of(block, std::slice::from_ref(sample)).unwrap();
        block.macs(&rates).unwrap()
    };
    let counts: Vec<_> = samples.iter().map(count).collect();
    let macs: f64 = counts.iter().map(|count| count.sparse - count.masker as f64).sum();
    (macs.round() as u64, counts.iter().map(|count| count.dense - count.masker).sum())
}
