use laud::train::{Decisions, MaskedNetwork};

use crate::compare::assert_close;
use crate::fixtures::{Fixture, NAMES};

/// f32 sums of up to 2304 products in another order, through up to 30 layers.
pub(crate) const RELATIVE: f32 = 1e-4;
/// Values this small beside the largest are sums that cancel.
pub(crate) const FLOOR: f32 = 0.1;

#[test]
fn official_results_are_reproduced() {
    for name in NAMES {
        let fixture = Fixture::load(name);
        let network = MaskedNetwork::new(&fixture.spec, &fixture.weights).unwrap();
        for decisions in [Decisions::Learned, Decisions::Given(&fixture.masks)] {
            let found = network.forward(&fixture.input, &decisions).unwrap();
            for (block, (found, official)) in
                fixture.spec.blocks.iter().zip(found.masks.iter().zip(&fixture.masks))
            {
                assert_eq!(found, official, "{name} {}", block.name);
            }
            assert_eq!(found.stages.len(), fixture.stages.len());
            for (index, (stage, official)) in found.stages.iter().zip(&fixture.stages).enumerate() {
                assert_close(&format!("{name} stage {}", index + 1), stage, official, RELATIVE, FLOOR);
            }
            assert_close(&format!("{name} logits"), &found.logits, &fixture.logits, RELATIVE, FLOOR);
        }
    }
}
