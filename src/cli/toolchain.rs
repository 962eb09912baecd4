//! `--cuda-libraries`, `--cuda-kernels`, `--cuda-cache`, and the variables that say the same.

use clap::Args;
use laud_kernels::cuda::Toolchain;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Args, Default)]
#[command(next_help_heading = "CUDA")]
pub(super) struct ToolchainArgs {
    /// Folders that hold NVRTC, before CUDA_HOME, CUDA_PATH, VIRTUAL_ENV and /usr/local/cuda
    #[arg(long, value_name = "DIR", env = "LAUD_CUDA_LIBRARIES", value_delimiter = ':', hide_env = true)]
    cuda_libraries: Vec<PathBuf>,
    /// Kernels that were compiled beforehand, by `laud kernels compile`
    #[arg(long, value_name = "DIR", env = "LAUD_CUDA_KERNELS", hide_env = true)]
    cuda_kernels: Option<PathBuf>,
    /// Where compiled kernels are kept [default: laud in the user's cache folder]
    #[arg(long, value_name = "DIR", env = "LAUD_CUDA_CACHE", hide_env = true)]
    cuda_cache: Option<PathBuf>,
}

impl ToolchainArgs {
    /// The same said again, for another command.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let libraries = self.cuda_libraries.iter().map(|folder| ("--cuda-libraries", folder));
        let kernels = self.cuda_kernels.iter().map(|folder| ("--cuda-kernels", folder));
        let cache = self.cuda_cache.iter().map(|folder| ("--cuda-cache", folder));
        let all = libraries.chain(kernels).chain(cache);
        all.flat_map(|(flag, folder)| [flag.into(), folder.as_os_str().to_owned()]).collect()
    }

    pub(super) fn toolchain(&self) -> Toolchain {
        let folder = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let user = || folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
        Toolchain {
            libraries: self.cuda_libraries.clone(),
            roots: ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV"].into_iter().filter_map(folder).collect(),
            compiled: self.cuda_kernels.clone(),
            cache: self.cuda_cache.clone().or_else(|| Some(user()?.join("laud"))),
        }
    }
}
