use super::toolchain::ToolchainArgs;
use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use laud_kernels::cuda::ARCHITECTURES;
use std::io::Write;
use std::path::PathBuf;

/// Compile the CUDA kernels for other machines; no GPU is needed
#[derive(Args)]
pub(super) struct Kernels {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile every kernel to machine code, for machines that have a driver and no NVRTC
    Compile(Compile),
}

#[derive(Args)]
struct Compile {
    /// Architectures, such as sm_80,sm_90a [default: all from sm_75 on]
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = ARCHITECTURES.map(String::from), hide_default_value = true)]
    arch: Vec<String>,
    /// Folder to write to; give it to --cuda-kernels
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    toolchain: ToolchainArgs,
}

impl Kernels {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<()> {
        let Command::Compile(Compile { arch, out: folder, toolchain }) = &self.command;
        let name = |arch: &str| {
            let number = arch.strip_prefix("sm_").map(|number| number.trim_end_matches(['a', 'f']));
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()))
        };
        for arch in arch {
            ensure!(name(arch), "--arch {arch}: architectures are named like sm_80 or sm_90a");
        }
        let toolchain = toolchain.toolchain();
        for arch in arch {
            let files = toolchain.compile(std::slice::from_ref(arch), folder)?;
            let bytes: u64 = files.iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
            let place = files.first().and_then(|file| file.parent()).unwrap_or(folder);
            writeln!(out, "{arch}: {} files, {} KiB in {}", files.len(), bytes / 1024, place.display())?;
        }
        Ok(())
    }
}
