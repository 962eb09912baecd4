use super::Target;
use super::time::median;
use crate::exec::{Output, Request, Trace};
use crate::gate::{Given, Pattern};
use crate::plan::{Activity, Call, ExecutionPlan, Lowered, Setting, lower};
use crate::{RandomWeights, Session};
use anyhow::Result;
use laud_models::{NetConfig, NetSpec};
use laud_predictor::correction::{Correction, Timed};
use laud_predictor::learned::Model;
use laud_predictor::profile::Profile;

/// Whole networks that the sum over their calls is compared with, and the densities.
pub const NETWORKS: [(&str, &[f64]); 8] = [
    (
        r#"{"arch": "resnet50", "dyn_mode": "spatial", "spatial_granularity": [4, 4, 2, 1]}"#,
        &[0.2, 0.5, 0.8, 1.0],
    ),
    (r#"{"arch": "resnet50", "dyn_mode": "channel", "channel_granularity": 8}"#, &[0.3, 0.7]),
    (
        r#"{"arch": "regnet_y_400mf", "dyn_mode": "spatial", "spatial_granularity": [4, 4, 2, 1]}"#,
        &[0.3, 0.6, 1.0],
    ),
    (r#"{"arch": "mobilenet_v2"}"#, &[1.0]),
    (r#"{"arch": "mobilenet_v2", "dyn_mode": "spatial", "spatial_granularity": 2}"#, &[0.4]),
    (r#"{"arch": "resnet18", "dyn_mode": "layer"}"#, &[1.0]),
    (r#"{"arch": "cifar_resnet56", "dyn_mode": "layer"}"#, &[0.5, 1.0]),
    (r#"{"arch": "cifar_resnet20", "dyn_mode": "spatial", "spatial_granularity": 4}"#, &[0.5]),
];
/// Visits to each network, with all the others in between: a slow phase of the machine, which lasts for seconds, hits some
/// of them only.
const VISITS: usize = 5;
/// Inferences of a visit that do not count, and that may.
const WARM_UP: usize = 2;
const ROUNDS: usize = 5;
/// Inferences of a visit that count: the fastest ones. Those of all visits together would be of the machine's best moments,
/// and tell networks to take less than they do on most days.
const COUNTED: usize = 2;

/// Of the outermost cache, what may be left of it to weights between two inferences.
const CACHE_SHARES: [f64; 5] = [1.0, 0.5, 0.25, 0.125, 0.0625];

/// A network at one density, and its inferences so far.
struct Case<'a> {
    session: &'a Session,
    policy: Given,
    images: Vec<f32>,
    output: Output,
    traces: Vec<Trace>,
}

/// Part of an inference: its calls and how long they took together.
struct Part {
    calls: Vec<Call>,
    ns: f64,
}

/// Times blocks inside of `networks`, such as [`NETWORKS`], and finds what the sum over their calls has to be corrected by.
///
/// # Errors
/// When a network cannot be run.
pub fn correct(
    profile: &Profile,
    target: &Target,
    threads: u32,
    networks: &[(&str, &[f64])],
) -> Result<Correction> {
    let networks = networks.iter().map(|&(config, densities)| {
        let spec = NetConfig::from_json(config)?.build()?;
        let session = target.session(spec.clone(), threads as usize).build(&RandomWeights::new(&spec, 1))?;
        anyhow::Ok((spec, session, densities))
    });
    let networks = networks.collect::<Result<Vec<_>>>()?;
    let cases = networks.iter().flat_map(|(spec, session, densities)| {
        densities.iter().map(move |&density| Case::new(session, spec, density))
    });
    let mut cases = cases.collect::<Result<Vec<_>>>()?;
    for _ in 0..VISITS {
        cases.iter_mut().try_for_each(Case::visit)?;
    }
    let setting = Setting::of(profile, threads as usize, target.dtype());
    let fits = CACHE_SHARES.into_iter().map(|share| {
        let l3_bytes = (setting.l3_bytes as f64 * share) as u64;
        let mut parts = Vec::new();
        for case in &cases {
            parts.extend(case.parts(&Setting { l3_bytes, ..setting })?);
        }
        let timed: Vec<_> = parts.iter().map(|part| part.timed(&profile.model)).collect();
        let correction = Correction::fit(&timed);
        let kept_bytes = (share < 1.0 && l3_bytes > 0).then_some(l3_bytes);
        anyhow::Ok((correction.misfit(&timed), Correction { kept_bytes, ..correction }))
    });
    let fits = fits.collect::<Result<Vec<_>>>()?;
    let best = fits.into_iter().min_by(|(a, _), (b, _)| a.total_cmp(b));
    Ok(best.map_or_else(Correction::default, |(_, correction)| correction))
}

impl<'a> Case<'a> {
    fn new(session: &'a Session, spec: &NetSpec, density: f64) -> Result<Self> {
        let size = spec.input.size;
        let values = spec.input.channels * size.h * size.w;
        Ok(Self {
            session,
            policy: Given::forced(spec, 1, density, Pattern::Clustered, 5)?,
            images: (0..values).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect(),
            output: Output::default(),
            traces: Vec::new(),
        })
    }

    fn visit(&mut self) -> Result<()> {
        let request = Request { images: &self.images, batch: 1, features: false, masks: true, timed: true };
        let before = self.traces.len();
        for round in 0..WARM_UP + ROUNDS {
            self.session.infer_with(request, &self.policy, &mut self.output)?;
            if round >= WARM_UP {
                self.traces.push(self.output.trace.clone());
            }
        }
        self.traces[before..].sort_by_key(Trace::total_ns);
        self.traces.truncate(before + COUNTED);
        Ok(())
    }

    /// What its stem, blocks and head take.
    fn parts(&self, setting: &Setting) -> Result<Vec<Part>> {
        let (spec, masks) = (self.session.spec(), &self.output.masks);
        let activities = spec.blocks.iter().zip(masks);
        let activities = activities
            .map(|(block, masks)| Activity::of(block, &masks.patches, &masks.channel_groups, 1))
            .collect::<Result<Vec<_>>>()?;
        let Lowered { stem, blocks, head } = lower(spec, &ExecutionPlan::sparse(spec), &activities, setting);
        let time =
            |of: &dyn Fn(&Trace) -> u64| median(self.traces.iter().map(|trace| of(trace) as f64).collect());
        let mut parts = vec![
            Part { calls: stem, ns: time(&|trace| trace.stem_ns) },
            Part { calls: head, ns: time(&|trace| trace.head_ns) },
        ];
        parts.extend(blocks.into_iter().enumerate().map(|(i, calls)| {
            let ns = time(&|trace| trace.blocks[i].total_ns());
            Part { calls, ns }
        }));
        Ok(parts)
    }
}

impl Part {
    fn timed(&self, model: &Model) -> Timed {
        let mut timed = Timed::new(self.ns);
        self.calls.iter().for_each(|Call { workload, times }| {
            timed.add(workload.op, model.predict(workload).ns, *times);
        });
        timed
    }
}
