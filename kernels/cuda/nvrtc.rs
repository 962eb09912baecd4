//! NVRTC, NVIDIA's compiler library: found, loaded, asked.

use super::source::{HEADERS, OPTIONS, Unit};
use cudarc::nvrtc::sys;
use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};

/// The compiler, loaded.
pub(super) struct Nvrtc {
    version: (i32, i32),
}

impl Nvrtc {
    /// Loads NVRTC from the first of `folders` that holds one, else from where the system finds libraries.
    ///
    /// # Errors
    /// In words, when there is none.
    pub(super) fn load(folders: &[PathBuf]) -> Result<Self, String> {
        let loaded = folders.iter().find_map(|folder| preload(folder));
        // SAFETY: only tries to open the library.
        if !unsafe { sys::is_culib_present() } {
            let why = match loaded {
                Some(Err(why)) => format!(" ({why})"),
                _ => String::new(),
            };
            return Err(format!("the CUDA compiler library libnvrtc was not found{why}"));
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are valid; the library is there and has had this function from its first version on.
        let outcome = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        match outcome {
            sys::nvrtcResult::NVRTC_SUCCESS => Ok(Self { version: (major, minor) }),
            error => Err(format!("libnvrtc does not tell its version: {error:?}")),
        }
    }

    /// Major and minor number.
    pub(super) fn version(&self) -> String {
        format!("NVRTC {}.{}", self.version.0, self.version.1)
    }

    /// Compiles one unit for `arch`, `sm_90a` for example, to machine code.
    ///
    /// # Errors
    /// The compiler's words.
    pub(super) fn compile(&self, unit: &Unit, arch: &str) -> Result<Vec<u8>, String> {
        let text = |text: &str| CString::new(text).map_err(|_| "a zero byte in the source".to_owned());
        let headers: Vec<_> = HEADERS.iter().map(|(_, header)| text(header)).collect::<Result<_, _>>()?;
        let names: Vec<_> = HEADERS.iter().map(|(name, _)| text(name)).collect::<Result<_, _>>()?;
        let pointers =
            |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<*const c_char>>();
        let (source, name) = (text(unit.text)?, text(&format!("{}.cu", unit.name))?);
        let (header_texts, header_names) = (pointers(&headers), pointers(&names));
        let mut program = std::ptr::null_mut();
        // SAFETY: every string ends in zero and outlives the program; the arrays are as long as they say.
        let outcome = unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                header_texts.len() as i32,
                header_texts.as_ptr(),
                header_names.as_ptr(),
            )
        };
        if outcome != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(format!("nvrtcCreateProgram: {outcome:?}"));
        }
        let program = Program(program);
        let arch = format!("--gpu-architecture={arch}");
        let options: Vec<_> =
            OPTIONS.into_iter().chain([arch.as_str()]).map(text).collect::<Result<_, _>>()?;
        program.compile(&options)?;
        program.machine_code()
    }
}

/// A program that is being compiled.
struct Program(sys::nvrtcProgram);

impl Program {
    fn compile(&self, options: &[CString]) -> Result<(), String> {
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is one, the options end in zero.
        let outcome = unsafe { sys::nvrtcCompileProgram(self.0, pointers.len() as i32, pointers.as_ptr()) };
        match outcome {
            sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
            outcome => Err(format!("{outcome:?}: {}", self.log())),
        }
    }

    /// The compiler's words, in one line.
    fn log(&self) -> String {
        let mut bytes = 0;
        // SAFETY: the program is one.
        if unsafe { sys::nvrtcGetProgramLogSize(self.0, &mut bytes) } != sys::nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        let mut log = vec![0u8; bytes];
        // SAFETY: the log is as long as it was said to be.
        let outcome = unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) };
        let log =
            String::from_utf8_lossy(if outcome == sys::nvrtcResult::NVRTC_SUCCESS { &log } else { &[] });
        log.trim_end_matches('\0').split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn machine_code(&self) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program is one.
        let outcome = unsafe { sys::nvrtcGetCUBINSize(self.0, &mut bytes) };
        if outcome != sys::nvrtcResult::NVRTC_SUCCESS || bytes == 0 {
            return Err(format!("no machine code: {outcome:?}"));
        }
        let mut code = vec![0u8; bytes];
        // SAFETY: the code is as long as it was said to be.
        match unsafe { sys::nvrtcGetCUBIN(self.0, code.as_mut_ptr().cast()) } {
            sys::nvrtcResult::NVRTC_SUCCESS => Ok(code),
            outcome => Err(format!("nvrtcGetCUBIN: {outcome:?}")),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is one, and this is its end.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// Opens NVRTC in `folder`, if it is there, by its path: whoever asks for it by its name gets the same one. It opens a
/// library beside it by a bare name, which therefore comes first.
fn preload(folder: &Path) -> Option<Result<(), String>> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("libnvrtc") && name.contains(".so") && !name.contains(".alt."))
        .collect();
    // The newest first, so that what belongs together is opened together.
    names.sort_by(|a, b| b.cmp(a));
    let library = names.iter().find(|name| name.starts_with("libnvrtc.so"))?;
    let builtins = names.iter().find(|name| name.starts_with("libnvrtc-builtins.so"));
    Some(builtins.into_iter().chain([library]).try_for_each(|name| open(&folder.join(name))))
}

#[cfg(unix)]
fn open(path: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: NVIDIA's libraries may be loaded at any time; it stays loaded.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    library.map(std::mem::forget).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(not(unix))]
fn open(path: &Path) -> Result<(), String> {
    // SAFETY: NVIDIA's libraries may be loaded at any time; it stays loaded.
    let library = unsafe { libloading::Library::new(path) };
    library.map(std::mem::forget).map_err(|error| format!("{}: {error}", path.display()))
}
