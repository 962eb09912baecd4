//! [`Device`]: a GPU behind NVIDIA's driver.
//!
//! The driver is looked for at run time. Every call here comes after the test that it is there: without it the functions
//! of the driver's library panic.

use super::driver::{Driver, Failure, Properties, Stream};
use super::launch::Launch;
use super::params::Address;
use super::stream::{DeviceStream, try_conditions};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A GPU.
#[derive(Clone)]
pub struct Device(pub(super) Arc<Inner>);

pub(super) struct Inner {
    device: sys::CUdevice,
    pub(super) context: sys::CUcontext,
    pub(super) properties: Properties,
    kernels: Mutex<Kernels>,
    /// Whether graphs can have conditions; nothing until that was tried.
    conditions: OnceLock<bool>,
}

// SAFETY: the driver's handles may be used from any thread that has made the context current.
unsafe impl Send for Inner {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Inner {}

#[derive(Default)]
struct Kernels {
    modules: Vec<sys::CUmodule>,
    found: HashMap<String, Kernel>,
}

#[derive(Clone, Copy)]
struct Kernel {
    function: sys::CUfunction,
    /// Dynamic shared memory it may be launched with.
    shared: u32,
}

/// Dynamic shared memory that needs no permission.
const SHARED_BYTES: u32 = 48 << 10;

/// The number of devices.
///
/// # Errors
/// In words, when there is no driver or it does not answer.
pub fn count() -> Result<usize, String> {
    // SAFETY: only tries to open the library.
    if !unsafe { sys::is_culib_present() } {
        return Err("no CUDA driver: libcuda was not found".to_owned());
    }
    // SAFETY: the library is there.
    check(unsafe { sys::cuInit(0) })
        .map_err(|failure| format!("the CUDA driver does not start: {failure}"))?;
    let mut count = 0;
    // SAFETY: the driver has started.
    check(unsafe { sys::cuDeviceGetCount(&mut count) })
        .map_err(|failure| format!("the CUDA driver does not tell its devices: {failure}"))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

impl Device {
    /// Opens a device by its number, without kernels.
    ///
    /// # Errors
    /// In words, when it is not there.
    pub(super) fn open(number: usize) -> Result<Self, String> {
        let count = count()?;
        let Some(ordinal) = c_int::try_from(number).ok().filter(|_| number < count) else {
            return Err(match count {
                0 => "the CUDA driver has no device".to_owned(),
                _ => format!("there is no such device; the last one is cuda:{}", count - 1),
            });
        };
        let mut device = 0;
        // SAFETY: the driver has started, and has this device.
        check(unsafe { sys::cuDeviceGet(&mut device, ordinal) }).map_err(|failure| failure.to_string())?;
        let properties = properties(device).map_err(|failure| failure.to_string())?;
        let mut context = std::ptr::null_mut();
        // SAFETY: as above; released when the last owner goes.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })
            .map_err(|failure| format!("no context: {failure}"))?;
        let (kernels, conditions) = (Mutex::default(), OnceLock::new());
        Ok(Self(Arc::new(Inner { device, context, properties, kernels, conditions })))
    }

    /// Finds out whether graphs can have conditions, with the kernel that they need, if it was loaded.
    pub(super) fn look_for_conditions(&self) {
        self.0.conditions.get_or_init(|| try_conditions(self));
    }

    /// Loads kernels from machine code.
    ///
    /// # Errors
    /// In the driver's words.
    pub(super) fn load(&self, code: &[u8]) -> Result<(), String> {
        self.0.bind().map_err(|failure| failure.to_string())?;
        // What the driver reads has to be whole: it is not told how long it is.
        if !is_whole(code) {
            return Err("a file that is cut off, or none of machine code".to_owned());
        }
        let mut module = std::ptr::null_mut();
        // SAFETY: the code is an ELF file, all of which is there.
        check(unsafe { sys::cuModuleLoadData(&mut module, code.as_ptr().cast()) })
            .map_err(|failure| failure.to_string())?;
        self.0.kernels.lock().unwrap_or_else(PoisonError::into_inner).modules.push(module);
        Ok(())
    }
}

/// Whether this is an ELF file of 64 bits whose tables lie inside.
fn is_whole(code: &[u8]) -> bool {
    let number = |at: usize, len: usize| -> Option<u64> {
        let bytes = code.get(at..at + len)?;
        Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    };
    let table = |at: usize, size: usize, count: usize| -> Option<bool> {
        let end = number(size, 2)?.checked_mul(number(count, 2)?)?.checked_add(number(at, 8)?)?;
        Some(end <= code.len() as u64)
    };
    let sections = || -> Option<bool> {
        let (first, size, count) =
            (number(40, 8)? as usize, number(58, 2)? as usize, number(60, 2)? as usize);
        for i in 0..count {
            let at = first.checked_add(i.checked_mul(size)?)?;
            // A section of type 8 takes no room in the file.
            if number(at + 4, 4)? != 8
                && number(at + 24, 8)?.checked_add(number(at + 32, 8)?)? > code.len() as u64
            {
                return Some(false);
            }
        }
        Some(true)
    };
    code.starts_with(b"\x7fELF\x02\x01")
        && table(32, 54, 56) == Some(true)
        && table(40, 58, 60) == Some(true)
        && sections() == Some(true)
}

impl Inner {
    /// Whether graphs can have conditions.
    pub(super) fn has_conditions(&self) -> bool {
        self.conditions.get().copied().unwrap_or(false)
    }

    /// Makes the context this thread's.
    pub(super) fn bind(&self) -> Result<(), Failure> {
        // SAFETY: the context is retained as long as this lives.
        check(unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// A kernel by its name, allowed the shared memory it is launched with.
    pub(super) fn kernel(&self, launch: &Launch) -> Result<sys::CUfunction, Failure> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kernel = match kernels.found.get(&launch.kernel) {
            Some(kernel) => *kernel,
            None => Kernel { function: find(&kernels.modules, &launch.kernel)?, shared: SHARED_BYTES },
        };
        if launch.shared > kernel.shared {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a module that is loaded.
            check(unsafe { sys::cuFuncSetAttribute(kernel.function, attribute, launch.shared as c_int) })?;
            kernel.shared = launch.shared;
        }
        kernels.found.insert(launch.kernel.clone(), kernel);
        Ok(kernel.function)
    }
}

fn find(modules: &[sys::CUmodule], name: &str) -> Result<sys::CUfunction, Failure> {
    let text = CString::new(name).map_err(|_| Failure::Other("a zero byte in a name".to_owned()))?;
    for module in modules {
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in zero.
        if check(unsafe { sys::cuModuleGetFunction(&mut function, *module, text.as_ptr()) }).is_ok() {
            return Ok(function);
        }
    }
    Err(Failure::Other(format!("there is no kernel {name}")))
}

impl Drop for Inner {
    fn drop(&mut self) {
        let kernels = self.kernels.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: nobody has the modules or the context any more; what fails here cannot be helped.
        unsafe {
            sys::cuCtxSetCurrent(self.context);
            for module in &kernels.modules {
                sys::cuModuleUnload(*module);
            }
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

// SAFETY: the driver's memory is valid, aligned to 256 bytes and nobody else's.
unsafe impl Driver for Device {
    fn properties(&self) -> &Properties {
        &self.0.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Failure> {
        self.0.bind()?;
        let mut address = 0;
        // SAFETY: a context is current; the memory is ours once it is there.
        unsafe {
            check(sys::cuMemAlloc_v2(&mut address, bytes))?;
            let zeroed = check(sys::cuMemsetD8_v2(address, 0, bytes))
                .and_then(|()| check(sys::cuStreamSynchronize(std::ptr::null_mut())));
            if let Err(failure) = zeroed {
                sys::cuMemFree_v2(address);
                return Err(failure);
            }
        }
        Ok(address)
    }

    unsafe fn free(&self, address: Address) {
        // SAFETY: the caller's word; what fails here cannot be helped.
        unsafe {
            let _ = self.0.bind();
            sys::cuMemFree_v2(address);
        }
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, Failure> {
        /// For every context.
        const PORTABLE: u32 = 1;
        self.0.bind()?;
        let mut at = std::ptr::null_mut();
        // SAFETY: a context is current; the memory is ours once it is there.
        unsafe {
            check(sys::cuMemHostAlloc(&mut at, bytes, PORTABLE))?;
            std::ptr::write_bytes(at.cast::<u8>(), 0, bytes);
        }
        Ok(at.cast())
    }

    unsafe fn free_host(&self, at: *mut u8) {
        // SAFETY: the caller's word; what fails here cannot be helped.
        unsafe {
            let _ = self.0.bind();
            sys::cuMemFreeHost(at.cast());
        }
    }

    unsafe fn write(&self, to: Address, from: &[u8]) -> Result<(), Failure> {
        self.0.bind()?;
        // SAFETY: the caller's word.
        unsafe {
            check(sys::cuMemcpyHtoD_v2(to, from.as_ptr().cast(), from.len()))?;
            // A copy from pageable memory may come back before it has arrived.
            check(sys::cuStreamSynchronize(std::ptr::null_mut()))
        }
    }

    fn stream(&self) -> Result<Box<dyn Stream>, Failure> {
        Ok(Box::new(DeviceStream::new(&self.0)?))
    }
}

/// What the driver says about a device.
fn properties(device: sys::CUdevice) -> Result<Properties, Failure> {
    use sys::CUdevice_attribute as Attribute;
    let attribute = |attribute| -> Result<u32, Failure> {
        let mut value = 0;
        // SAFETY: the device is one of the driver's.
        check(unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let mut name = [0u8; 256];
    let (mut bytes, mut version) = (0, 0);
    // SAFETY: the device is one of the driver's; the name has room for what is said, and ends in zero.
    unsafe {
        check(sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int - 1, device))?;
        check(sys::cuDeviceTotalMem_v2(&mut bytes, device))?;
        check(sys::cuDriverGetVersion(&mut version))?;
    }
    let name = CStr::from_bytes_until_nul(&name)
        .map_or_else(|_| String::new(), |name| name.to_string_lossy().into());
    let told = |kind| attribute(kind).unwrap_or(0);
    Ok(Properties {
        name,
        capability: 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: bytes as u64,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2_bytes: told(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).into(),
        clock_khz: [
            told(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
            told(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE),
        ],
        bus_bits: told(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH),
        driver_version: u32::try_from(version).unwrap_or(0),
    })
}

/// The driver's answer in words.
pub(super) fn check(outcome: sys::CUresult) -> Result<(), Failure> {
    match outcome {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(Failure::OutOfMemory),
        error => {
            let mut text = std::ptr::null();
            // SAFETY: the driver answered, so it is there; what it gives is a string of its own, or null.
            let words = unsafe {
                match sys::cuGetErrorString(error, &mut text) {
                    sys::CUresult::CUDA_SUCCESS if !text.is_null() => CStr::from_ptr(text).to_string_lossy(),
                    _ => "no description".into(),
                }
            };
            Err(Failure::Other(format!("{error:?}: {words}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn cut_off_machine_code_is_not_loaded() {
        // A header, and a section of 16 bytes behind it and its table.
        let mut code = vec![0u8; 64 + 64 + 16];
        code[..6].copy_from_slice(b"\x7fELF\x02\x01");
        code[40] = 64;
        code[58] = 64;
        code[60] = 1;
        code[64 + 24] = 128;
        code[64 + 32] = 16;
        assert!(is_whole(&code));
        for len in 0..code.len() {
            assert!(!is_whole(&code[..len]), "{len} bytes");
        }
        code[64 + 32..64 + 40].fill(255);
        assert!(!is_whole(&code));
        assert!(!is_whole(b"//\n.version 9.0"));
    }
}
