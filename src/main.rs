//! The `laud` command: the whole program in one screen.
#![forbid(unsafe_code)]

mod cli;

use clap::Parser;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let outcome = cli.run(&mut out).and_then(|()| Ok(out.flush()?));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough.
        Err(error) if cli::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // What was printed before belongs in front of the error; a failure to print it is not the error.
            let _ = out.flush();
            let _ = writeln!(std::io::stderr(), "error: {}", cli::one_line(&error));
            ExitCode::FAILURE
        }
    }
}
