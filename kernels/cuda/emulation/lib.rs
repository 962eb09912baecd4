//! Runs the CUDA kernels on the host: the same `.cu` files, compiled as C++ against `emulation.h`. For tests, where there
//! is no GPU; a thousand times slower than one.

mod driver;

pub use driver::EmulatedDevice;

use std::ffi::{CStr, c_char, c_void};

/// A host that runs kernels in place of a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Emulator {
    /// Threads of the operating system that share the thread blocks of a launch.
    pub workers: u32,
    /// Order in which threads take turns, and thread blocks; with an odd seed asynchronous copies land at once, with an
    /// even one when they are waited for. Results must not depend on it.
    pub seed: u64,
}

impl Default for Emulator {
    fn default() -> Self {
        Self { workers: 1, seed: 0 }
    }
}

/// What a kernel says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Name it is launched by.
    pub name: String,
    /// Bytes of its only argument, a struct.
    pub params: usize,
    /// Threads of a thread block; 0: any multiple of 32.
    pub threads: usize,
    /// Bytes of dynamic shared memory that it needs at least.
    pub shared: usize,
}

/// What a launch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Bytes that asynchronous copies read from global memory.
    pub copied: u64,
    /// Products of the tensor cores.
    pub products: u64,
}

#[repr(C)]
struct KernelInfo {
    name: *const c_char,
    params: usize,
    threads: usize,
    shared: usize,
}

unsafe extern "C" {
    fn laud_emulation_launch(
        name: *const u8,
        name_len: usize,
        grid: *const u32,
        block: *const u32,
        shared_bytes: usize,
        args: *mut *mut c_void,
        workers: u32,
        seed: u64,
        counts: *mut [u64; 2],
    ) -> *const c_char;
    fn laud_emulation_free(error: *const c_char);
    fn laud_emulation_kernel(i: usize, info: *mut KernelInfo) -> bool;
}

impl Emulator {
    /// Runs a kernel to its end: `cuLaunchKernel` by name.
    ///
    /// # Errors
    /// When there is no such kernel, a launch parameter is out of bounds, or a thread does what a GPU would not survive
    /// or not define: deadlock, a lane outside its own mask, misaligned copies.
    ///
    /// # Safety
    /// `args` points to one argument of the type the kernel takes, every address in it is one of this process and valid
    /// for what the kernel does there, and nothing else accesses that memory meanwhile.
    pub unsafe fn launch(
        &self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: usize,
        args: &mut [*mut c_void],
    ) -> Result<(), String> {
        // SAFETY: forwarded.
        unsafe { self.launch_counted(name, grid, block, shared_bytes, args) }.map(|_| ())
    }

    /// The same, and counts what the launch did.
    ///
    /// # Errors
    /// See [`launch`](Self::launch).
    ///
    /// # Safety
    /// See [`launch`](Self::launch).
    pub unsafe fn launch_counted(
        &self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: usize,
        args: &mut [*mut c_void],
    ) -> Result<Counts, String> {
        let mut counts = [0; 2];
        // SAFETY: the name and the sizes are valid for the call; the rest is the caller's word.
        let error = unsafe {
            laud_emulation_launch(
                name.as_ptr(),
                name.len(),
                grid.as_ptr(),
                block.as_ptr(),
                shared_bytes,
                args.as_mut_ptr(),
                self.workers,
                self.seed,
                &mut counts,
            )
        };
        if error.is_null() {
            return Ok(Counts { copied: counts[0], products: counts[1] });
        }
        // SAFETY: an error is a string that ends in zero, ours until it is freed.
        let text = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
        // SAFETY: freed once.
        unsafe { laud_emulation_free(error) };
        Err(format!("{name}: {text}"))
    }

    /// Every kernel there is, by name.
    pub fn kernels() -> Vec<Kernel> {
        let mut info = KernelInfo { name: std::ptr::null(), params: 0, threads: 0, shared: 0 };
        let mut kernels = Vec::new();
        // SAFETY: `info` is valid, and only read where the call has filled it.
        while unsafe { laud_emulation_kernel(kernels.len(), &mut info) } {
            let KernelInfo { name, params, threads, shared } = info;
            // SAFETY: a kernel's name is a literal.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
            kernels.push(Kernel { name, params, threads, shared });
        }
        kernels
    }
}
