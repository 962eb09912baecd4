//! `--density`, `--pattern`, `--seed`: decisions that are forced instead of learned.

use super::device::DeviceArgs;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use laud::gate::{Given, Pattern, Policy};
use laud::policy::{Exit, Subject, early_exits, named};
use laud_models::NetSpec;

#[derive(Args)]
#[command(next_help_heading = "Forced decisions")]
pub(super) struct ForceArgs {
    /// Force this share of every gate's units, 0..=1; a static network gets untrained gates for it
    #[arg(long, value_name = "D", value_delimiter = ',', value_parser = super::parse::density)]
    pub(super) density: Vec<f64>,
    /// Who decides: learned, threshold:T, topk:K|SHARE, budget:SHARE (of the multiply-accumulates),
    /// budget:Nms:PROFILE, pruned:SHARE:SCORES or importance:SHARE:SCORES (see rank), random:RATE, always or never; with
    /// exit:SIZE:CONFIDENCE+ or
    /// exit:NAME|FILE:CONFIDENCE+ in front, images of which a smaller version or another network is sure leave early
    #[arg(long, value_name = "NAME", default_value = "learned", conflicts_with = "density")]
    policy: String,
    /// How forced patches lie on the map
    #[arg(long, value_name = "PATTERN", default_value = "clustered", requires = "density")]
    pattern: PatternArg,
    /// Seed of forced decisions, random weights and random images
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum PatternArg {
    /// In a few blobs, as learned masks do
    Clustered,
    /// Independently of each other
    Scattered,
}

impl ForceArgs {
    /// Decisions at `density`, or the learned ones.
    pub(super) fn policy(
        &self,
        spec: &NetSpec,
        samples: usize,
        density: Option<f64>,
        device: &DeviceArgs,
    ) -> Result<Box<dyn Policy>> {
        let Some(density) = density else {
            let (threads, dtype, kind) = (device.threads(), device.dtype(), device.kind());
            let subject = Subject { spec, seed: self.seed, threads, dtype, kind };
            let (_, behind) = early_exits(&self.policy).context("--policy")?;
            return named(behind, subject).context("--policy");
        };
        let pattern = match self.pattern {
            PatternArg::Clustered => Pattern::Clustered,
            PatternArg::Scattered => Pattern::Scattered,
        };
        Ok(Box::new(Given::forced(spec, samples, density, pattern, self.seed)?))
    }

    /// Early exits in front of the network.
    pub(super) fn exits(&self) -> Result<Vec<Exit>> {
        Ok(early_exits(&self.policy).context("--policy")?.0)
    }

    /// Name of who decides, early exits included.
    pub(super) fn title(&self, policy: &dyn Policy) -> String {
        match self.exits() {
            Ok(exits) if !exits.is_empty() => self.policy.clone(),
            _ => policy.name().to_owned(),
        }
    }

    /// For commands that look at no photographs.
    pub(super) fn no_exits(&self, command: &str) -> Result<()> {
        ensure!(
            self.exits()?.is_empty(),
            "--policy {}: {command} knows no early exits; run, eval and experiment do",
            self.policy
        );
        Ok(())
    }

    /// Whether decisions are anything but the trained gates': a static network gets untrained gates for them.
    pub(super) fn attaches(&self) -> bool {
        let behind = early_exits(&self.policy).map_or(&*self.policy, |(_, behind)| behind);
        !self.density.is_empty() || behind != "learned"
    }

    /// `clustered` or `scattered`.
    pub(super) fn pattern(&self) -> &'static str {
        match self.pattern {
            PatternArg::Clustered => "clustered",
            PatternArg::Scattered => "scattered",
        }
    }

    /// The one density, for commands that take no list.
    pub(super) fn single(&self) -> Result<Option<f64>> {
        ensure!(self.density.len() <= 1, "--density: give one; only bench takes a list");
        Ok(self.density.first().copied())
    }
}
