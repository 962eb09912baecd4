//! What lies on the device: activations, values, lists.

use super::driver::{DeviceMemory, Driver, HostMemory};
use super::params::{self, Address};
use crate::{Error, Result, Value};
use std::marker::PhantomData;
use std::sync::Arc;

/// Activations on the device.
pub struct Buffer {
    pub(crate) memory: Arc<DeviceMemory>,
    pub(crate) len: usize,
}

/// Values on the device, and where this machine writes and reads them.
pub struct Vector<T> {
    pub(crate) memory: Arc<DeviceMemory>,
    pub(crate) host: Arc<HostMemory>,
    len: usize,
    value: PhantomData<T>,
}

impl Buffer {
    pub(crate) fn zeroed(driver: &Arc<dyn Driver>, len: usize, element: usize, what: &str) -> Result<Self> {
        let bytes = len.checked_mul(element).filter(|bytes| isize::try_from(*bytes).is_ok());
        let bytes = bytes.ok_or_else(|| Error::OutOfMemory { what: what.to_owned(), bytes: usize::MAX })?;
        Ok(Self { memory: DeviceMemory::new(driver, bytes, what)?, len })
    }
}

impl<T: Value> Vector<T> {
    pub(crate) fn zeroed(driver: &Arc<dyn Driver>, len: usize, what: &str) -> Result<Self> {
        let out_of_memory = || Error::OutOfMemory { what: what.to_owned(), bytes: usize::MAX };
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(out_of_memory)?;
        let (memory, host) = (DeviceMemory::new(driver, bytes, what)?, HostMemory::new(driver, bytes, what)?);
        Ok(Self { memory, host, len, value: PhantomData })
    }

    /// Values, on the device as here.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// What was fetched.
    ///
    /// # Safety
    /// What was issued has been waited for, and nothing is issued while the values are looked at.
    pub(crate) unsafe fn values(&self) -> Result<&[T]> {
        // SAFETY: nothing writes, by the caller's word, and this reference is not written through.
        let bytes = unsafe { self.host.part(0, self.bytes()) };
        bytemuck::checked::try_cast_slice(bytes).map_err(|error| Error::Device {
            what: "reading values".to_owned(),
            why: format!("the device wrote what is none of them: {error}"),
        })
    }

    /// What will be uploaded.
    ///
    /// # Safety
    /// What was issued has been waited for.
    pub(crate) unsafe fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: nothing reads or writes, by the caller's word.
        let bytes = unsafe { self.host.part(0, self.bytes()) };
        bytemuck::checked::cast_slice_mut(bytes)
    }
}

/// Active pixels, listed on the device.
pub struct Rows {
    /// Room for indices of `capacity` pixels.
    index: Arc<DeviceMemory>,
    /// Room for where the rows of each sample start.
    starts: Arc<DeviceMemory>,
    capacity: usize,
    /// How many samples of how many pixels.
    pub(crate) batch: usize,
    pub(crate) pixels: usize,
    listed: Listed,
}

/// What a list says.
enum Listed {
    /// Every pixel.
    All,
    /// What was listed, here or in another list, with the place of the samples' first rows.
    Some { index: Arc<DeviceMemory>, starts: Arc<DeviceMemory>, at: Address },
}

impl Rows {
    pub(crate) fn with_capacity(driver: &Arc<dyn Driver>, batch: usize, pixels: usize) -> Result<Self> {
        let capacity = batch.saturating_mul(pixels);
        let index = DeviceMemory::new(driver, capacity.saturating_mul(size_of::<u32>()), "a list of pixels")?;
        let starts = DeviceMemory::new(driver, (batch + 1) * size_of::<u32>(), "numbers of pixels")?;
        Ok(Self { index, starts, capacity, batch: 0, pixels: 0, listed: Listed::All })
    }

    pub(crate) fn set_all(&mut self, batch: usize, pixels: usize) {
        (self.batch, self.pixels, self.listed) = (batch, pixels, Listed::All);
    }

    /// Says that the list will be written to its own memory, and where the samples' first rows will be: at `at` in
    /// other memory, or in its own.
    pub(crate) fn list(
        &mut self,
        (batch, pixels): (usize, usize),
        starts: Option<(&Arc<DeviceMemory>, Address)>,
    ) -> Result<()> {
        let (need, own) = (batch.saturating_mul(pixels), self.starts.bytes() / size_of::<u32>());
        if self.capacity < need || own <= batch {
            let geometry = format!("batch {batch}, {pixels} pixels");
            return Err(Error::Size { op: "compact", what: "list", got: self.capacity, need, geometry });
        }
        let (starts, at) = starts.unwrap_or((&self.starts, self.starts.address()));
        (self.batch, self.pixels) = (batch, pixels);
        self.listed = Listed::Some { index: self.index.clone(), starts: starts.clone(), at };
        Ok(())
    }

    /// Becomes the same list as `other`, wherever that lies.
    pub(crate) fn share(&mut self, other: &Rows, starts: &Arc<DeviceMemory>, at: Address) {
        (self.batch, self.pixels) = (other.batch, other.pixels);
        self.listed = match &other.listed {
            Listed::All => Listed::All,
            Listed::Some { index, .. } => Listed::Some { index: index.clone(), starts: starts.clone(), at },
        };
    }

    /// As kernels take it, and the memory in it.
    pub(crate) fn params(&self) -> (params::Rows, [Option<&Arc<DeviceMemory>>; 2]) {
        let (batch, pixels) = (self.batch as u32, self.pixels as u32);
        match &self.listed {
            Listed::All => (params::Rows { index: 0, start: 0, batch, pixels }, [None, None]),
            Listed::Some { index, starts, at } => {
                let rows = params::Rows { index: index.address(), start: *at, batch, pixels };
                (rows, [Some(index), Some(starts)])
            }
        }
    }
}

/// Active channels, listed on the device.
pub struct Channels {
    pub(crate) index: Arc<DeviceMemory>,
    pub(crate) count: Arc<DeviceMemory>,
    pub(crate) total: usize,
    /// Channels that are active together; `None`: all are.
    group: Option<usize>,
    pub(crate) batch: usize,
}

impl Channels {
    pub(crate) fn with_capacity(driver: &Arc<dyn Driver>, batch: usize, total: usize) -> Result<Self> {
        let words = |n: usize| n.saturating_mul(size_of::<u32>());
        let index = DeviceMemory::new(driver, words(batch.saturating_mul(total)), "a list of channels")?;
        let count = DeviceMemory::new(driver, words(batch), "numbers of channels")?;
        Ok(Self { index, count, total, group: None, batch: 0 })
    }

    pub(crate) fn set_all(&mut self, total: usize) {
        (self.total, self.group) = (total, None);
    }

    /// Says that the list will be written.
    pub(crate) fn list(&mut self, batch: usize, total: usize, group: usize) -> Result<()> {
        let (got, need) = (self.index.bytes() / size_of::<u32>(), batch.saturating_mul(total));
        if got < need || self.count.bytes() / size_of::<u32>() < batch {
            let geometry = format!("batch {batch}, {total} channels");
            return Err(Error::Size { op: "compact", what: "list", got, need, geometry });
        }
        (self.batch, self.total, self.group) = (batch, total, Some(group));
        Ok(())
    }

    /// Samples it lists; `None` while all channels of any sample are active.
    pub(crate) fn samples(&self) -> Option<usize> {
        self.group.map(|_| self.batch)
    }

    /// As kernels take it, and the memory in it.
    pub(crate) fn params(&self) -> (params::Channels, [Option<&Arc<DeviceMemory>>; 2]) {
        let total = self.total as u32;
        match self.group {
            None => (params::Channels { index: 0, count: 0, total, group: total }, [None, None]),
            Some(group) => {
                let (index, count) = (self.index.address(), self.count.address());
                let channels = params::Channels { index, count, total, group: group as u32 };
                (channels, [Some(&self.index), Some(&self.count)])
            }
        }
    }
}
