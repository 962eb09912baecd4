//! The command line: one file a subcommand, which parses, calls and prints.

mod advise;
mod bench;
mod calibrate;
mod completions;
mod data;
mod device;
mod device_suite;
mod eval;
mod experiment;
mod force;
mod infer;
mod inspect;
mod kernels;
mod model;
mod output;
mod parse;
mod plan;
mod plan_verify;
mod predict;
mod predict_profile;
mod predictor;
mod profile;
mod quantize;
mod rank;
mod report;
mod run;
mod timing;
mod toolchain;
mod train;
mod verify;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::io::{self, Write};

/// A runtime for input-adaptive vision networks: skip patches, layers and channels, and be faster for it.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, disable_help_flag = true)]
pub(crate) struct Cli {
    /// Print help
    // The short form for both flags: the long one spreads each option over three lines.
    #[arg(short, long, action = clap::ArgAction::HelpShort, global = true, display_order = 1000)]
    help: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Run),
    Bench(bench::Bench),
    Eval(Box<eval::Eval>),
    Rank(rank::Rank),
    Experiment(experiment::ExperimentArgs),
    Report(report::ReportArgs),
    Advise(advise::AdviseArgs),
    Inspect(inspect::Inspect),
    Infer(infer::Infer),
    Train(train::Train),
    Quantize(quantize::Quantize),
    Verify(verify::Verify),
    Predict(predict::Predict),
    Predictor(predictor::Predictor),
    Kernels(kernels::Kernels),
    DeviceSuite(device_suite::DeviceSuite),
    Calibrate(calibrate::Calibrate),
    Profile(profile::ProfileArgs),
    Plan(Box<plan::Plan>),
    Completions(completions::Completions),
}

impl Cli {
    /// Runs the subcommand and prints to `out`.
    pub(crate) fn run(self, out: &mut dyn Write) -> Result<()> {
        match self.command {
            Command::Run(command) => command.run(out),
            Command::Bench(command) => command.run(out),
            Command::Eval(command) => command.run(out),
            Command::Rank(command) => command.run(out),
            Command::Experiment(command) => command.run(out),
            Command::Report(command) => command.run(out),
            Command::Advise(command) => command.run(out),
            Command::Inspect(command) => command.run(out),
            Command::Infer(command) => command.run(out),
            Command::Train(command) => command.run(out),
            Command::Quantize(command) => command.run(out),
            Command::Verify(command) => command.run(out),
            Command::Predict(command) => command.run(out),
            Command::Predictor(command) => command.run(out),
            Command::Kernels(command) => command.run(out),
            Command::DeviceSuite(command) => command.run(out),
            Command::Calibrate(command) => command.run(out),
            Command::Profile(command) => command.run(out),
            Command::Plan(command) => command.run(out),
            Command::Completions(command) => command.run(out),
        }
    }
}

/// Whether printing failed because the reader went away.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    io.into_iter().any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The error and its causes in one line; a cause that the text before it already repeats is left out.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
    }
    line.split(|c: char| c.is_control())
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}
