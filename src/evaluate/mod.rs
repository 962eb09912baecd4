//! What a network does on labelled images: how often it is right, what it computes, how long it takes, and where it
//! differs from itself with everything active; and whether a plan was chosen well.

mod advise;
mod images;
mod latency;
mod rank;
mod regret;
mod results;
mod tally;

pub use advise::{Advice, Quantile, Question, Step, advise, with_static};
pub use images::{Batch, Images};
pub use latency::Latency;
pub use rank::{importance, usage};
pub use regret::{BlockRegret, Regret, WholeRegret, verify};
#[cfg(test)]
pub(crate) use results::tests::row;
pub use results::{Cell, Origin, Picture, Results, Row, front, load};
pub use tally::{BlockShare, Compared, Computed, Difference, Evaluation, ExitShare, Macs};

use crate::exec::{Output, Request};
use crate::gate::{Policy, UnitKind};
use crate::plan::{ExecutionPlan, Recorded, Setting, lower, network_ns};
use crate::session::Session;
use anyhow::{Result, ensure};
use latency::Times;
use laud_models::NetSpec;
use laud_predictor::profile::Profile;
use tally::Tally;

/// Who is evaluated, and against what.
#[derive(Clone, Copy)]
pub struct Contest<'a> {
    /// The network.
    pub session: &'a Session,
    /// Who decides.
    pub policy: &'a dyn Policy,
    /// The same network without gates: it takes turns with the other.
    pub plain: Option<&'a Session>,
    /// What latency is predicted from.
    pub forecast: Option<Forecast<'a>>,
    /// Every inference is timed so often; its median counts. At least 1.
    pub repeat: usize,
    /// Whether whoever follows wants to see masks.
    pub masks: bool,
}

/// A calibrated device and what is run there.
#[derive(Clone, Copy)]
pub struct Forecast<'a> {
    /// The device.
    pub profile: &'a Profile,
    /// How blocks are run.
    pub plan: &'a ExecutionPlan,
    /// One image on it.
    pub setting: Setting,
}

/// How far an evaluation is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Images so far.
    pub images: usize,
    /// Of them right.
    pub right: usize,
}

/// Sees each batch when it is done, with the masks where a contest asks for them.
pub type Follow<'a> = dyn FnMut(&Batch<'_>, Option<&Output>, Progress) -> Result<()> + 'a;

/// Evaluates `contest` on `images`.
///
/// # Errors
/// An image that cannot be read; what an inference fails with; a forecast of more than one image at once.
pub fn evaluate(contest: &Contest<'_>, images: &Images<'_>, follow: &mut Follow<'_>) -> Result<Evaluation> {
    let Contest { session, policy, plain, forecast, repeat, masks } = *contest;
    ensure!(repeat > 0, "every image is timed at least once");
    ensure!(
        forecast.is_none() || images.batch() == 1,
        "latency is predicted of one image at once, not of {}",
        images.batch()
    );
    let spec = session.spec();
    let (mut output, mut other, mut masked) = (Output::default(), Output::default(), Output::default());
    let mut tally = Tally::new(spec, plain.is_some(), forecast.is_some());
    let mut times = [Times::new(repeat), Times::new(repeat)];
    images.for_each(|batch| {
        let request =
            Request { images: batch.values, batch: batch.n, features: false, masks: false, timed: false };
        // A first inference makes memory and, for the first batch, warms up.
        for _ in 0..repeat + usize::from(batch.first == 0) {
            times[0].time(|| session.infer_with(request, policy, &mut output))?;
            if let Some(plain) = plain {
                times[1].time(|| plain.infer_into(request, &mut other))?;
            }
        }
        let ms = [0, 1].map(|side| times[side].take() / batch.n as f64);
        if masks || forecast.is_some() {
            session.infer_with(Request { masks: true, ..request }, policy, &mut masked)?;
        }
        let predicted = forecast.map(|forecast| forecast.ms(spec, &masked)).transpose()?;
        tally.add(spec, batch, (&output, ms[0]), plain.map(|_| (&other, ms[1])), predicted);
        follow(batch, masks.then_some(&masked), tally.progress())
    })?;
    tally.evaluation(images.batch())
}

impl Forecast<'_> {
    /// Of an inference of one image that kept its masks.
    fn ms(&self, spec: &NetSpec, output: &Output) -> Result<f64> {
        let activities = recorded(spec, "", output, 0)?.activities();
        let lowered = lower(spec, self.plan, &activities, &self.setting);
        Ok(network_ns(self.profile, lowered.calls()) / 1e6)
    }
}

/// What was active for sample `n` of an inference that kept its masks.
///
/// # Errors
/// When it kept none.
pub fn recorded(spec: &NetSpec, file: &str, output: &Output, n: usize) -> Result<Recorded> {
    ensure!(
        output.masks.len() == spec.blocks.len(),
        "masks of {} blocks of {}",
        output.masks.len(),
        spec.name
    );
    let batch = output.trace.batch;
    Recorded::of(spec, file, |block, kind| {
        let all = match kind {
            UnitKind::Patch => &output.masks[block].patches,
            UnitKind::ChannelGroup => &output.masks[block].channel_groups,
        };
        &all[n * all.len() / batch..(n + 1) * all.len() / batch]
    })
}
