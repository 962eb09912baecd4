//! A skip policy of one's own against the public API: patches near the middle of the image only, and every block's channels.
//!
//! `cargo run --release --example custom_policy`

use laud::gate::{Always, Decisions, Learned, Policy, Rule, UnitKind, Units};
use laud::models::{NetConfig, NetSpec};
use laud::{RandomWeights, Session};

/// Keeps the patches whose centre lies within `radius` of the middle; 1 reaches the middle of an edge.
struct Centre {
    radius: f64,
    /// Rows and columns of each block's mask.
    grids: Vec<(usize, usize)>,
}

impl Centre {
    fn new(spec: &NetSpec, radius: f64) -> Self {
        let grid = |block: &laud::models::BlockSpec| {
            block.gate.spatial.as_ref().map_or((1, 1), |gate| (gate.grid.h, gate.grid.w))
        };
        Self { radius, grids: spec.blocks.iter().map(grid).collect() }
    }
}

impl Policy for Centre {
    fn name(&self) -> &str {
        "centre"
    }

    // Decided beforehand: the margins of the gates are not looked at.
    fn rule(&self) -> Rule<'_> {
        Rule::Given(self)
    }
}

impl Decisions for Centre {
    fn decide(&self, units: Units, keep: &mut [bool]) {
        if units.kind == UnitKind::ChannelGroup {
            return keep.fill(true);
        }
        let (h, w) = self.grids[units.block];
        let off = |at: usize, side: usize| (2.0 * at as f64 + 1.0) / side as f64 - 1.0;
        for (cell, keep) in keep.iter_mut().enumerate() {
            let cell = cell % units.per_sample;
            *keep = off(cell / w, h).hypot(off(cell % w, w)) <= self.radius;
        }
    }
}

fn main() -> anyhow::Result<()> {
    let config = r#"{"arch": "resnet20", "dyn_mode": "spatial", "spatial_granularity": [4, 2, 1]}"#;
    let spec = NetConfig::from_json(config)?.build()?;
    let weights = RandomWeights::new(&spec, 7);
    let image = vec![0.5; 3 * 32 * 32];
    let centre = Session::builder(spec.clone()).policy(Centre::new(&spec, 0.8)).build(&weights)?;
    let everything = Session::builder(spec.clone()).policy(Always).build(&weights)?;
    let learned = Session::builder(spec).policy(Learned).build(&weights)?;
    for session in [centre, everything, learned] {
        let trace = session.infer(&image, 1)?.trace;
        println!(
            "{:5.1} % of the multiply-accumulates",
            100.0 * trace.macs() as f64 / trace.dense_macs() as f64
        );
    }
    Ok(())
}
