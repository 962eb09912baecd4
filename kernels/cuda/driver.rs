//! [`Driver`]: the few things a device has to do for us.
//!
//! Two kinds exist: [`Device`](super::Device), a GPU behind its driver, and in the tests a host that runs the kernels in
//! place of one. Everything above is the same for both.

use super::launch::Launch;
use super::params::Address;
use crate::{Error, Result};
use std::fmt;
use std::sync::Arc;

/// A device, or what stands for one.
///
/// # Safety
/// Memory that is handed out is valid for its length, aligned to 256 bytes, and nobody else's until it is freed.
pub unsafe trait Driver: Send + Sync + 'static {
    /// What it is.
    fn properties(&self) -> &Properties;
    /// Takes memory of the device, zeroed.
    ///
    /// # Errors
    /// When there is none.
    fn allocate(&self, bytes: usize) -> Result<Address, Failure>;
    /// Gives memory of the device back.
    ///
    /// # Safety
    /// It is the caller's, from [`allocate`](Self::allocate), and nothing under way uses it.
    unsafe fn free(&self, address: Address);
    /// Takes zeroed memory of this machine that the device can copy from and to while others work.
    ///
    /// # Errors
    /// When there is none.
    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, Failure>;
    /// Gives it back.
    ///
    /// # Safety
    /// It is the caller's, from [`allocate_host`](Self::allocate_host), and nothing under way uses it.
    unsafe fn free_host(&self, at: *mut u8);
    /// Copies to the device and waits.
    ///
    /// # Errors
    /// When the device does not answer.
    ///
    /// # Safety
    /// The memory from `to` on is valid for `from.len()` bytes, and nothing under way uses it.
    unsafe fn write(&self, to: Address, from: &[u8]) -> Result<(), Failure>;
    /// A queue of its own.
    ///
    /// # Errors
    /// When the device has no more.
    fn stream(&self) -> Result<Box<dyn Stream>, Failure>;
}

/// Work of a device, done in order, some time after it is asked for.
///
/// Between [`record`](Self::record) and [`recorded`](Self::recorded) nothing is done; what is asked for is kept and done
/// as one at every [`replay`](Self::replay).
pub trait Stream: Send {
    /// Launches a kernel with one struct of parameters.
    ///
    /// # Errors
    /// When there is no such kernel or the device refuses the launch.
    ///
    /// # Safety
    /// `params` are what the kernel takes, and all memory they name stays valid for what it does there, until the
    /// stream has been waited for and for every replay.
    unsafe fn launch(&mut self, launch: &Launch, params: &[u64]) -> Result<(), Failure>;
    /// Copies to the device.
    ///
    /// # Errors
    /// When the device refuses.
    ///
    /// # Safety
    /// Both sides are valid for `bytes`, as long as in [`launch`](Self::launch); `from` was allocated by the driver.
    unsafe fn copy_in(&mut self, to: Address, from: *const u8, bytes: usize) -> Result<(), Failure>;
    /// Copies from the device.
    ///
    /// # Errors
    /// When the device refuses.
    ///
    /// # Safety
    /// As in [`copy_in`](Self::copy_in), the other way round.
    unsafe fn copy_out(&mut self, to: *mut u8, from: Address, bytes: usize) -> Result<(), Failure>;
    /// Copies within the device.
    ///
    /// # Errors
    /// When the device refuses.
    ///
    /// # Safety
    /// Both sides are valid for `bytes`, as long as in [`launch`](Self::launch), and do not overlap.
    unsafe fn copy(&mut self, to: Address, from: Address, bytes: usize) -> Result<(), Failure>;
    /// Waits until everything asked for is done.
    ///
    /// # Errors
    /// When something failed meanwhile.
    fn wait(&mut self) -> Result<(), Failure>;

    /// From here on, keep what is asked for.
    ///
    /// # Errors
    /// When the device cannot.
    fn record(&mut self) -> Result<(), Failure>;
    /// Ends recording; gives the number of what was recorded, for this stream.
    ///
    /// # Errors
    /// When something in between cannot be recorded.
    fn recorded(&mut self) -> Result<usize, Failure>;
    /// Ends a recording that failed, and forgets it.
    fn abandon(&mut self);
    /// In a recording: what is asked for from here to [`end_when`](Self::end_when) is done only if `number`, a `u32`, is
    /// not 0 when its turn comes. False where that cannot be had: then it is always done, and there is nothing to end.
    ///
    /// # Errors
    /// When the device refuses.
    ///
    /// # Safety
    /// As for memory in [`launch`](Self::launch).
    unsafe fn when(&mut self, number: Address) -> Result<bool, Failure>;
    /// Ends what is done under a condition.
    ///
    /// # Errors
    /// When none was begun, or something in between cannot be recorded.
    fn end_when(&mut self) -> Result<(), Failure>;
    /// Does what was recorded.
    ///
    /// # Errors
    /// When the device refuses.
    ///
    /// # Safety
    /// What was recorded is still valid.
    unsafe fn replay(&mut self, number: usize) -> Result<(), Failure>;

    /// Notes when everything before it is done, as stamp `i`.
    ///
    /// # Errors
    /// When the device refuses.
    fn stamp(&mut self, i: usize) -> Result<(), Failure>;
    /// Nanoseconds from stamp `i` to the next one, both of which are behind us.
    ///
    /// # Errors
    /// When a stamp was not noted.
    fn lap(&mut self, i: usize) -> Result<u64, Failure>;
}

/// What a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// For people.
    pub name: String,
    /// Compute capability, ten times the major plus the minor number.
    pub capability: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Dynamic shared memory that a thread block may have, bytes.
    pub shared_bytes: u32,
    /// Bytes of the cache that all multiprocessors share; 0 where it is not told.
    pub l2_bytes: u64,
    /// Clock of the multiprocessors and of the memory, kHz; 0 where it is not told.
    pub clock_khz: [u32; 2],
    /// Width of the memory's bus, bits; 0 where it is not told.
    pub bus_bits: u32,
    /// CUDA version of the driver, 1000 times the major plus ten times the minor number.
    pub driver_version: u32,
}

/// Why a device did not do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No memory left.
    OutOfMemory,
    /// Anything else, in the driver's words.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl Failure {
    /// As an error of doing `what`.
    pub(crate) fn during(self, what: impl fmt::Display) -> Error {
        Error::Device { what: what.to_string(), why: self.to_string() }
    }
}

/// Memory of a device, freed with its last owner.
pub(crate) struct DeviceMemory {
    driver: Arc<dyn Driver>,
    address: Address,
    bytes: usize,
}

impl DeviceMemory {
    /// Zeroed memory. Reads a little behind its end are harmless: kernels load whole vectors.
    pub(crate) fn new(driver: &Arc<dyn Driver>, bytes: usize, what: &str) -> Result<Arc<Self>> {
        let padded = bytes.checked_add(SLACK).ok_or(Failure::OutOfMemory);
        let address = padded.and_then(|bytes| driver.allocate(bytes)).map_err(|failure| match failure {
            Failure::OutOfMemory => {
                Error::OutOfMemory { what: format!("{what} on {}", driver.properties().name), bytes }
            }
            other => other.during(format_args!("allocating {bytes} bytes for {what}")),
        })?;
        Ok(Arc::new(Self { driver: driver.clone(), address, bytes }))
    }

    /// Memory that holds `values`.
    pub(crate) fn holding<T: bytemuck::NoUninit>(
        driver: &Arc<dyn Driver>,
        values: &[T],
        what: &str,
    ) -> Result<Arc<Self>> {
        let bytes = bytemuck::cast_slice(values);
        let memory = Self::new(driver, bytes.len(), what)?;
        // SAFETY: the memory is as long, and nobody has seen it.
        unsafe { driver.write(memory.address, bytes) }
            .map_err(|failure| failure.during(format_args!("copying {what} to the device")))?;
        Ok(memory)
    }

    /// Where it begins.
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Bytes behind the end of what was asked for.
const SLACK: usize = 256;

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: this was its last owner; streams are waited for before they let go of what they use.
        unsafe { self.driver.free(self.address) }
    }
}

/// Memory of this machine that a device copies from and to.
pub(crate) struct HostMemory {
    driver: Arc<dyn Driver>,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is this owner's alone, wherever it is.
unsafe impl Send for HostMemory {}
// SAFETY: shared references only read.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    pub(crate) fn new(driver: &Arc<dyn Driver>, bytes: usize, what: &str) -> Result<Arc<Self>> {
        let at = driver.allocate_host(bytes.max(1)).map_err(|failure| match failure {
            Failure::OutOfMemory => Error::OutOfMemory { what: format!("the host's copy of {what}"), bytes },
            other => other.during(format_args!("allocating {bytes} bytes for the host's copy of {what}")),
        })?;
        Ok(Arc::new(Self { driver: driver.clone(), at, bytes }))
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where byte `at` lies.
    pub(crate) fn at(&self, at: usize) -> *mut u8 {
        assert!(at <= self.bytes);
        self.at.wrapping_add(at)
    }

    /// `len` bytes from `at` on, to read and write.
    ///
    /// # Safety
    /// Neither a device nor anybody else accesses them meanwhile.
    #[allow(clippy::mut_from_ref, reason = "the caller says that this is the only reference")]
    pub(super) unsafe fn part(&self, at: usize, len: usize) -> &mut [u8] {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.bytes));
        // SAFETY: inside, initialised when it was allocated, and nobody else's by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(at), len) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: this was its owner; streams are waited for before they let go of what they use.
        unsafe { self.driver.free_host(self.at) }
    }
}
