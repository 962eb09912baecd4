//! Kernels on the host, for the tests of the operations.

use laud_emulation::{Counts, Emulator};
use laud_kernels::cuda::launch::Launch;
use laud_kernels::cuda::params::{Address, Channels, Rows};

/// What activations are stored as on the device.
pub(crate) trait Storage: Copy + PartialEq + std::fmt::Debug + 'static {
    /// As in kernels' names.
    const NAME: &'static str;
    /// Largest relative error of one rounding, doubled for sums that were rounded before.
    const ROUNDING: f32;
    fn from_f32(x: f32) -> Self;
    fn to_f32(self) -> f32;
}

impl Storage for f32 {
    const NAME: &'static str = "f32";
    const ROUNDING: f32 = 1e-7;
    fn from_f32(x: f32) -> Self {
        x
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl Storage for half::f16 {
    const NAME: &'static str = "f16";
    const ROUNDING: f32 = 1e-3;
    fn from_f32(x: f32) -> Self {
        half::f16::from_f32(x)
    }
    fn to_f32(self) -> f32 {
        half::f16::to_f32(self)
    }
}

impl Storage for half::bf16 {
    const NAME: &'static str = "bf16";
    const ROUNDING: f32 = 8e-3;
    fn from_f32(x: f32) -> Self {
        half::bf16::from_f32(x)
    }
    fn to_f32(self) -> f32 {
        half::bf16::to_f32(self)
    }
}

/// Calls a generic function for every storage type.
macro_rules! for_each_storage {
    ($f:ident ( $($arg:expr),* )) => {{
        $f::<f32>($($arg),*);
        $f::<half::f16>($($arg),*);
        $f::<half::bf16>($($arg),*);
    }};
}
pub(crate) use for_each_storage;

/// Rounds to what `T` can hold.
pub(crate) fn round<T: Storage>(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&v| T::from_f32(v).to_f32()).collect()
}

pub(crate) fn store<T: Storage>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&v| T::from_f32(v)).collect()
}

pub(crate) fn load<T: Storage>(values: &[T]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

pub(crate) fn address<T>(memory: &[T]) -> Address {
    if memory.is_empty() { 16 } else { memory.as_ptr() as Address }
}

pub(crate) fn address_mut<T>(memory: &mut [T]) -> Address {
    if memory.is_empty() { 16 } else { memory.as_mut_ptr() as Address }
}

/// Results that are compared bit by bit.
pub(crate) trait Bits {
    fn bits(&self) -> Vec<u8>;
}

impl<T: bytemuck::Pod> Bits for Vec<T> {
    fn bits(&self) -> Vec<u8> {
        bytemuck::cast_slice(self).to_vec()
    }
}

impl<A: Bits, B: Bits> Bits for (A, B) {
    fn bits(&self) -> Vec<u8> {
        [self.0.bits(), self.1.bits()].concat()
    }
}

/// Runs `f` in different orders of threads and thread blocks, with copies that land early and late, and returns what it
/// gives in all of them.
pub(crate) fn in_any_order<R: Bits>(f: impl Fn(&Emulator) -> R) -> R {
    let result = f(&Emulator { workers: 1, seed: 0 });
    let again = f(&Emulator { workers: 2, seed: 3 });
    assert!(again.bits() == result.bits(), "results differ between orders of execution");
    result
}

/// Runs a kernel whose parameters point to live memory of the caller.
pub(crate) fn execute<P: bytemuck::Pod>(emulator: &Emulator, launch: &Launch, params: &P) -> Counts {
    if launch.is_empty() {
        return Counts { copied: 0, products: 0 };
    }
    let mut params = *params;
    let mut args = [(&raw mut params).cast()];
    let Launch { kernel, grid, threads, shared } = launch;
    let known = Emulator::kernels().into_iter().find(|known| known.name == *kernel);
    let known = known.unwrap_or_else(|| panic!("{kernel} is not there"));
    assert_eq!(known.params, size_of::<P>(), "{kernel} takes another struct");
    // SAFETY: the struct is the one that the kernel takes; the tests point it to memory that they hold.
    let outcome =
        unsafe { emulator.launch_counted(kernel, *grid, [*threads, 1, 1], *shared as usize, &mut args) };
    outcome.unwrap()
}

/// Rows as a device would hold them.
pub(crate) struct DeviceRows {
    index: Vec<u32>,
    start: Vec<u32>,
    batch: u32,
    pixels: u32,
    all: bool,
}

impl DeviceRows {
    pub(crate) fn new(rows: &crate::Rows) -> Self {
        let index =
            if rows.is_all() { vec![] } else { (0..rows.len()).map(|i| rows.pixel(i) as u32).collect() };
        let start = (0..rows.batch()).map(|n| rows.sample(n).end as u32);
        let start = std::iter::once(0).chain(start).collect();
        let (batch, pixels) = (rows.batch() as u32, rows.pixels() as u32);
        Self { index, start, batch, pixels, all: rows.is_all() }
    }

    pub(crate) fn params(&self) -> Rows {
        let (index, start) = if self.all { (0, 0) } else { (address(&self.index), address(&self.start)) };
        Rows { index, start, batch: self.batch, pixels: self.pixels }
    }
}

/// Channels as a device would hold them.
pub(crate) struct DeviceChannels {
    index: Vec<u32>,
    count: Vec<u32>,
    total: u32,
    group: u32,
    all: bool,
}

impl DeviceChannels {
    /// `group`: channels come in aligned runs of so many.
    pub(crate) fn new(channels: &crate::Channels, batch: usize, group: usize) -> Self {
        // A device does not notice that a list has everything.
        let (total, all) = (channels.total(), channels.batch().is_none());
        // What lies behind a sample's list is never read: no channel has that number.
        let mut index = vec![u32::MAX; if all { 0 } else { batch * total }];
        let mut count = vec![];
        for n in (0..batch).filter(|_| !all) {
            let list = channels.sample(n).unwrap();
            index[n * total..][..list.len()].copy_from_slice(list);
            count.push(list.len() as u32);
        }
        Self { index, count, total: total as u32, group: group as u32, all }
    }

    pub(crate) fn params(&self) -> Channels {
        let (index, count) = if self.all { (0, 0) } else { (address(&self.index), address(&self.count)) };
        Channels { index, count, total: self.total, group: self.group }
    }
}
