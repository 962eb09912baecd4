use super::Target;
use crate::exec::{Output, Request, Trace};
use crate::gate::{Given, Pattern};
use crate::plan::{Activity, Call, ExecutionPlan, Lowered, Setting, lower};
use crate::{RandomWeights, Session};
use anyhow::Result;
use laud_models::{NetConfig, NetSpec};
use laud_predictor::correction::{Correction, Timed};
use laud_predictor::learned::Model;
use laud_predictor::profile::Profile;
use std::time::Duration;

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
/// Visits to each network at each density, at least: a slow phase of the machine lasts for seconds and hits some of them only.
const VISITS: usize = 5;
/// Share of a calibration that visits take, so that there are as many all along it.
const SHARE: f64 = 0.125;
/// Inferences of a visit that do not count: by then weights are where they stay from one inference to the next, which in a large
/// outermost cache takes several.
const WARM_UP: usize = 8;
/// Inferences of a visit that do.
const ROUNDS: usize = 5;

/// As many of its parts as a whole network counts for: what they are off by in common matters more than each of them.
const WHOLE: usize = 10;

/// Of the outermost cache, what may be left of it to weights between two inferences.
const CACHE_SHARES: [f64; 5] = [1.0, 0.5, 0.25, 0.125, 0.0625];

/// Networks whose blocks are timed while kernels are measured, to find what the sum over their calls has to be corrected by.
pub struct Networks {
    target: Target,
    threads: u32,
    sessions: Vec<Option<Session>>,
    cases: Vec<Case>,
    /// Visits so far; cases take turns.
    visits: usize,
    spent: Duration,
}

/// A network at one density, and its inferences so far.
struct Case {
    /// Which network.
    network: usize,
    spec: NetSpec,
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

impl Networks {
    /// `networks`, such as [`NETWORKS`], on a device.
    ///
    /// # Errors
    /// When a configuration is none.
    pub fn new(target: &Target, threads: u32, networks: &[(&str, &[f64])]) -> Result<Self> {
        let mut cases = Vec::new();
        for (network, &(config, densities)) in networks.iter().enumerate() {
            let spec = NetConfig::from_json(config)?.build()?;
            for &density in densities {
                cases.push(Case::new(network, &spec, density)?);
            }
        }
        let sessions = networks.iter().map(|_| None).collect();
        Ok(Self { target: target.clone(), threads, sessions, cases, visits: 0, spent: Duration::ZERO })
    }

    /// Visits the next network, unless that has had its share of the time since a calibration began.
    ///
    /// # Errors
    /// When a network cannot be run.
    pub fn keep_up(&mut self, elapsed: Duration) -> Result<()> {
        if self.spent < elapsed.mul_f64(SHARE) && !self.cases.is_empty() { self.visit() } else { Ok(()) }
    }

    fn visit(&mut self) -> Result<()> {
        let count = self.cases.len();
        let case = &mut self.cases[self.visits % count];
        self.visits += 1;
        let session = match &mut self.sessions[case.network] {
            Some(session) => session,
            none => {
                let builder = self.target.session(case.spec.clone(), self.threads as usize);
                none.insert(builder.build(&RandomWeights::new(&case.spec, 1))?)
            }
        };
        self.spent += case.visit(session)?;
        Ok(())
    }

    /// What the sum over the calls has to be corrected by, from all visits and as many more as it takes.
    ///
    /// # Errors
    /// When a network cannot be run.
    pub fn correct(mut self, profile: &Profile) -> Result<Correction> {
        while self.cases.iter().any(|case| case.traces.len() < VISITS * ROUNDS) {
            self.visit()?;
        }
        let setting = Setting::of(profile, self.threads as usize, self.target.dtype());
        let fits = CACHE_SHARES.into_iter().map(|share| {
            let l3_bytes = (setting.l3_bytes as f64 * share) as u64;
            let mut timed = Vec::new();
            for case in &self.cases {
                let parts = case.parts(&Setting { l3_bytes, ..setting })?;
                let ns = parts.iter().map(|part| part.ns).sum();
                let whole = Part { calls: parts.iter().flat_map(|part| part.calls.clone()).collect(), ns };
                timed.extend(parts.iter().map(|part| part.timed(&profile.model)));
                timed.extend([whole.timed(&profile.model); WHOLE]);
            }
            let correction = Correction::fit(&timed);
            let kept_bytes = (share < 1.0 && l3_bytes > 0).then_some(l3_bytes);
            anyhow::Ok((correction.misfit(&timed), Correction { kept_bytes, ..correction }))
        });
        let fits = fits.collect::<Result<Vec<_>>>()?;
        let best = fits.into_iter().min_by(|(a, _), (b, _)| a.total_cmp(b));
        Ok(best.map_or_else(Correction::default, |(_, correction)| correction))
    }
}

impl Case {
    fn new(network: usize, spec: &NetSpec, density: f64) -> Result<Self> {
        let size = spec.input.size;
        let values = spec.input.channels * size.h * size.w;
        Ok(Self {
            network,
            spec: spec.clone(),
            policy: Given::forced(spec, 1, density, Pattern::Clustered, 5)?,
            images: (0..values).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect(),
            output: Output::default(),
            traces: Vec::new(),
        })
    }

    /// Gives how long all its inferences took.
    fn visit(&mut self, session: &Session) -> Result<Duration> {
        let request = Request { images: &self.images, batch: 1, features: false, masks: true, timed: true };
        let mut ns = 0;
        for round in 0..WARM_UP + ROUNDS {
            session.infer_with(request, &self.policy, &mut self.output)?;
            ns += self.output.trace.total_ns();
            if round >= WARM_UP {
                self.traces.push(self.output.trace.clone());
            }
        }
        Ok(Duration::from_nanos(ns))
    }

    /// What its stem, blocks and head take.
    fn parts(&self, setting: &Setting) -> Result<Vec<Part>> {
        let (spec, masks) = (&self.spec, &self.output.masks);
        let activities = spec.blocks.iter().zip(masks);
        let activities = activities
            .map(|(block, masks)| Activity::of(block, &masks.patches, &masks.channel_groups, 1))
            .collect::<Result<Vec<_>>>()?;
        let Lowered { stem, blocks, head } = lower(spec, &ExecutionPlan::sparse(spec), &activities, setting);
        // Means over the inferences of middling length: unlike medians they add up to what those take.
        let mut middling: Vec<&Trace> = self.traces.iter().collect();
        middling.sort_by_key(|trace| trace.total_ns());
        let quarter = middling.len() / 4;
        let middling = &middling[quarter..middling.len() - quarter];
        let time = |of: &dyn Fn(&Trace) -> u64| {
            middling.iter().map(|trace| of(trace) as f64).sum::<f64>() / middling.len().max(1) as f64
        };
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
            timed.add(workload, model.predict(workload).ns, *times);
        });
        timed
    }
}
