//! [`Toolchain`]: where kernels and libraries come from.

use super::device::Device;
use super::driver::Driver;
use super::nvrtc::Nvrtc;
use super::source::{self, OPTIONAL, UNITS, Unit};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where kernels and libraries come from. Nothing is looked up in the environment: who reads that says so here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toolchain {
    /// Folders that may hold NVRTC, the compiler library.
    pub libraries: Vec<PathBuf>,
    /// Roots of CUDA toolkits and of Python environments, where it may lie in the usual places.
    pub roots: Vec<PathBuf>,
    /// Folder of kernels that were compiled beforehand, by [`compile`](Self::compile).
    pub compiled: Option<PathBuf>,
    /// Folder where compiled kernels are kept from run to run; `None`: nowhere.
    pub cache: Option<PathBuf>,
}

/// Architectures that kernels are compiled for unless somebody says otherwise.
pub const ARCHITECTURES: [&str; 8] =
    ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120"];

/// Where a toolkit lies when nobody says.
const USUAL_ROOT: &str = "/usr/local/cuda";
/// Folders below a root that may hold NVRTC.
const BELOW_ROOT: [&str; 4] = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];

impl Toolchain {
    /// Opens CUDA device `number`, with all kernels loaded.
    ///
    /// # Errors
    /// When there is no driver or no such device, or the kernels can neither be found nor compiled.
    pub fn open(&self, number: usize) -> Result<Arc<dyn Driver>> {
        let device = Device::open(number).map_err(|why| failed(format!("cuda:{number}"), why))?;
        for unit in UNITS {
            self.load(&device, unit)
                .map_err(|why| failed(format!("cuda:{number}: {}.cu", unit.name), why))?;
        }
        for unit in OPTIONAL {
            let _ = self.load(&device, unit);
        }
        device.look_for_conditions();
        Ok(Arc::new(device))
    }

    /// Compiles all kernels for every architecture (`sm_90a` for example) into `folder`, which
    /// [`compiled`](Self::compiled) may name on another machine. No GPU is needed. Gives the files.
    ///
    /// # Errors
    /// When NVRTC is not found, does not know an architecture, or a file cannot be written.
    pub fn compile(&self, architectures: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
        let compiler =
            Nvrtc::load(&self.folders()).map_err(|why| failed("compiling kernels".to_owned(), why))?;
        let mut files = Vec::new();
        for arch in architectures {
            for unit in UNITS.iter().chain(OPTIONAL) {
                let what = || format!("{}.cu for {arch} by {}", unit.name, compiler.version());
                let code = compiler.compile(unit, arch).map_err(|why| failed(what(), why))?;
                let file = file(folder, arch, unit);
                write(&file, &code).map_err(|why| failed(file.display().to_string(), why))?;
                files.push(file);
            }
        }
        Ok(files)
    }

    /// Loads one unit: compiled beforehand, kept from before, or compiled now.
    fn load(&self, device: &Device, unit: &Unit) -> Result<(), String> {
        let architectures = suitable(device.properties().capability);
        let mut refused = String::new();
        for folder in self.compiled.iter().chain(&self.cache) {
            for file in architectures.iter().map(|arch| file(folder, arch, unit)) {
                let Ok(code) = std::fs::read(&file) else { continue };
                match device.load(&code) {
                    Ok(()) => return Ok(()),
                    Err(why) => refused = format!("; {} was refused: {why}", file.display()),
                }
            }
        }
        let compiler = Nvrtc::load(&self.folders()).map_err(|why| {
            format!(
                "{why}; install it, name its folder, or give kernels that were compiled beforehand{refused}"
            )
        })?;
        let arch = &architectures[0];
        let code = compiler
            .compile(unit, arch)
            .map_err(|why| format!("{} for {arch}: {why}{refused}", compiler.version()))?;
        device
            .load(&code)
            .map_err(|why| format!("as {} compiled it for {arch}: {why}", compiler.version()))?;
        if let Some(cache) = &self.cache {
            // A cache that cannot be written costs time, nothing else.
            let _ = write(&file(cache, arch, unit), &code);
        }
        Ok(())
    }

    /// Where NVRTC may lie, the surest place first.
    fn folders(&self) -> Vec<PathBuf> {
        let mut folders = self.libraries.clone();
        for root in self.roots.iter().map(PathBuf::as_path).chain([Path::new(USUAL_ROOT)]) {
            folders.extend(BELOW_ROOT.iter().map(|below| root.join(below)));
            let pythons = std::fs::read_dir(root.join("lib")).into_iter().flatten().flatten();
            for python in pythons.map(|entry| entry.path().join("site-packages/nvidia")) {
                folders.extend([python.join("cu13/lib"), python.join("cuda_nvrtc/lib")]);
            }
        }
        folders
    }
}

/// Architectures whose machine code runs on a device of this compute capability, the best first.
fn suitable(capability: u32) -> Vec<String> {
    let (major, minor) = (capability / 10, capability % 10);
    let mut architectures: Vec<_> = (0..=minor).rev().map(|minor| format!("sm_{major}{minor}")).collect();
    if capability >= 90 {
        architectures.insert(0, format!("sm_{capability}a"));
    }
    architectures
}

/// Where a unit's machine code is kept: a folder for the source, one for the architecture.
fn file(folder: &Path, arch: &str, unit: &Unit) -> PathBuf {
    folder.join(format!("{:016x}", source::hash())).join(arch).join(format!("{}.cubin", unit.name))
}

/// Writes a file whole or not at all.
fn write(file: &Path, bytes: &[u8]) -> Result<(), String> {
    let temporary = file.with_extension(format!("{}.part", std::process::id()));
    let parent = file.parent().unwrap_or(Path::new("."));
    let outcome = std::fs::create_dir_all(parent)
        .and_then(|()| std::fs::write(&temporary, bytes))
        .and_then(|()| std::fs::rename(&temporary, file));
    outcome.map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        format!("cannot write: {error}")
    })
}

fn failed(what: String, why: String) -> Error {
    Error::Device { what, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_for_the_device_itself_comes_first() {
        assert_eq!(suitable(75), ["sm_75", "sm_74", "sm_73", "sm_72", "sm_71", "sm_70"]);
        assert_eq!(suitable(90), ["sm_90a", "sm_90"]);
        assert_eq!(suitable(121), ["sm_121a", "sm_121", "sm_120"]);
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = Toolchain::default().open(4096).err().expect("no machine has so many").to_string();
        assert!(error.starts_with("cuda:4096: "), "{error}");
    }
}
