//! Which units matter, whatever the image: scores for [`Ranked`](crate::gate::Ranked).

use super::{Batch, Images, tally::logits};
use crate::exec::{Output, Request};
use crate::gate::{BlockScores, Decisions, Policy, Rule, ScoredBy, Scores, UnitKind, Units};
use crate::session::Session;
use anyhow::{Result, ensure};
use laud_models::NetSpec;

/// How often `policy` keeps each unit: the share of the images. `progress` is told how many images are done.
///
/// # Errors
/// A network without gates; what an inference fails with.
pub fn usage(
    session: &Session,
    policy: &dyn Policy,
    images: &Images<'_>,
    progress: &mut dyn FnMut(usize),
) -> Result<Scores> {
    let mut scores = Scores::zero(session.spec(), ScoredBy::Usage, images.len())?;
    let (mut output, share) = (Output::default(), 1.0 / images.len() as f64);
    images.for_each(|batch| {
        session.infer_with(Request { masks: true, ..request(batch) }, policy, &mut output)?;
        for (scores, masks) in scores.blocks.iter_mut().zip(&output.masks) {
            for (scores, keep) in
                [(&mut scores.patches, &masks.patches), (&mut scores.channels, &masks.channel_groups)]
            {
                for keep in keep.chunks_exact(scores.len().max(1)) {
                    scores
                        .iter_mut()
                        .zip(keep)
                        .for_each(|(score, keep)| *score += share * f64::from(u8::from(*keep)));
                }
            }
        }
        progress(batch.first + batch.n);
        Ok(())
    })?;
    Ok(scores)
}

/// By how much the mean cross-entropy grows when one unit is left out and everything else is computed: an inference for each
/// unit and image. `progress` is told how many images are done.
///
/// # Errors
/// As [`usage`].
pub fn importance(session: &Session, images: &Images<'_>, progress: &mut dyn FnMut(usize)) -> Result<Scores> {
    let mut scores = Scores::zero(session.spec(), ScoredBy::Importance, images.len())?;
    let (mut output, share) = (Output::default(), 1.0 / images.len() as f64);
    images.for_each(|batch| {
        let mut loss = |left_out: Option<(usize, UnitKind, usize)>| -> Result<f64> {
            session.infer_with(request(batch), &AllBut(left_out), &mut output)?;
            Ok((0..batch.n).map(|i| cross_entropy(logits(&output, i), batch.label(i))).sum())
        };
        let whole = loss(None)?;
        for (number, block) in scores.blocks.iter_mut().enumerate() {
            for (kind, scores) in
                [(UnitKind::Patch, &mut block.patches), (UnitKind::ChannelGroup, &mut block.channels)]
            {
                for (unit, score) in scores.iter_mut().enumerate() {
                    *score += share * (loss(Some((number, kind, unit)))? - whole);
                }
            }
        }
        progress(batch.first + batch.n);
        Ok(())
    })?;
    Ok(scores)
}

fn request<'a>(batch: &Batch<'a>) -> Request<'a> {
    Request { images: batch.values, batch: batch.n, features: false, masks: false, timed: false }
}

fn cross_entropy(logits: &[f32], label: usize) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    largest + sum.ln() - f64::from(logits[label])
}

/// Everything but one unit of a block.
struct AllBut(Option<(usize, UnitKind, usize)>);

impl Policy for AllBut {
    fn name(&self) -> &str {
        "all but one"
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Given(self)
    }
}

impl Decisions for AllBut {
    fn decide(&self, units: Units, keep: &mut [bool]) {
        keep.fill(true);
        if let Some((block, kind, unit)) = self.0
            && (units.block, units.kind) == (block, kind)
        {
            keep.iter_mut().skip(unit).step_by(units.per_sample).for_each(|keep| *keep = false);
        }
    }
}

impl Scores {
    /// No unit has any yet.
    fn zero(spec: &NetSpec, by: ScoredBy, images: usize) -> Result<Self> {
        let block = |block: &laud_models::BlockSpec| BlockScores {
            block: block.name.clone(),
            patches: vec![0.0; block.gate.spatial.as_ref().map_or(0, |gate| gate.grid.h * gate.grid.w)],
            channels: vec![0.0; block.gate.channel.as_ref().map_or(0, |gate| gate.groups)],
        };
        let scores =
            Self { network: spec.name.clone(), by, images, blocks: spec.blocks.iter().map(block).collect() };
        let units =
            scores.blocks.iter().map(|block| block.patches.len() + block.channels.len()).sum::<usize>();
        ensure!(units > 0, "{} has no gates: there are no units to rank", spec.name);
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_entropy_is_that_of_the_softmax() {
        assert!((cross_entropy(&[0.0, 0.0], 1) - 2f64.ln()).abs() < 1e-12);
        assert!((cross_entropy(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
    }

    #[test]
    fn one_unit_of_every_sample_is_left_out() {
        let mut keep = [false; 6];
        let units = Units { block: 2, kind: UnitKind::Patch, first: 0, batch: 2, per_sample: 3 };
        AllBut(Some((2, UnitKind::Patch, 1))).decide(units, &mut keep);
        assert_eq!(keep, [true, false, true, true, false, true]);
        AllBut(Some((1, UnitKind::Patch, 1))).decide(units, &mut keep);
        assert_eq!(keep, [true; 6]);
    }
}
