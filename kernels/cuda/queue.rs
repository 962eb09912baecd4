//! [`CudaQueue`]: operations of one inference, on their way to the device.

use super::driver::{DeviceMemory, Driver, Failure, HostMemory, Stream};
use super::launch::Launch;
use super::memory::{Channels, Rows};
use super::params::{self, Address};
use super::shape::Shape;
use crate::{Error, Result};
use std::fmt::Display;
use std::ops::Range;
use std::panic::Location;
use std::sync::Arc;

/// Working memory of one inference on the device.
pub struct CudaScratch {
    driver: Arc<dyn Driver>,
    shape: Shape,
    stream: Box<dyn Stream>,
    recordings: Vec<Recording>,
    /// Keys of programs that were issued once. What a driver loads when a kernel is first used is loaded then.
    seen: Vec<u64>,
    /// Images on their way in.
    images: Option<(Arc<DeviceMemory>, Arc<HostMemory>)>,
    /// Whether images are being copied.
    bringing: bool,
    /// Memory that operations leave as zero.
    pub(crate) zeros: Memory,
    /// Memory that operations leave as it happens to be.
    pub(crate) room: [Memory; 3],
    /// The same, for parts of sums.
    pub(crate) partial: Memory,
    /// Memory that what was issued and not yet waited for uses.
    pending: Vec<Used>,
}

/// Operations that were kept.
struct Recording {
    key: u64,
    number: usize,
    /// What they use stays alive with them.
    used: Vec<Used>,
}

/// Memory of either side.
type Used = Arc<dyn Send + Sync>;

/// Memory that grows.
#[derive(Default)]
pub(crate) struct Memory(Option<Arc<DeviceMemory>>);

impl Memory {
    /// Makes it at least as long.
    pub(crate) fn reserve(&mut self, driver: &Arc<dyn Driver>, bytes: usize, what: &str) -> Result<()> {
        if self.0.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            self.0 = Some(DeviceMemory::new(driver, bytes, what)?);
        }
        Ok(())
    }
}

/// Bytes of images that are copied while the next are made ready.
const COPY_BYTES: usize = 1 << 20;

impl CudaScratch {
    pub(crate) fn new(driver: &Arc<dyn Driver>, shape: Shape) -> Result<Self> {
        let stream = driver.stream().map_err(|failure| failure.during("making a stream"))?;
        Ok(Self {
            driver: driver.clone(),
            shape,
            stream,
            recordings: vec![],
            seen: vec![],
            images: None,
            bringing: false,
            zeros: Memory::default(),
            room: Default::default(),
            partial: Memory::default(),
            pending: vec![],
        })
    }

    pub(crate) fn queue(&mut self) -> CudaQueue<'_> {
        CudaQueue { scratch: self, stamps: 0 }
    }
}

/// Operations of one inference on the device, in order. They run some time after they are issued; whoever lets go of the
/// queue waits for them.
pub struct CudaQueue<'q> {
    pub(crate) scratch: &'q mut CudaScratch,
    stamps: usize,
}

impl Drop for CudaQueue<'_> {
    fn drop(&mut self) {
        // What failed was told to whoever read; nothing is read any more.
        let _ = self.wait();
    }
}

impl CudaQueue<'_> {
    /// Where memory that an operation uses begins. It is kept until the operation is done, and for every replay.
    pub(crate) fn at(&mut self, memory: &Arc<DeviceMemory>) -> Address {
        self.scratch.pending.push(memory.clone());
        memory.address()
    }

    /// The same for what may be missing: 0 then.
    pub(crate) fn maybe_at(&mut self, memory: Option<&Arc<DeviceMemory>>) -> Address {
        memory.map_or(0, |memory| self.at(memory))
    }

    /// What operations depend on.
    pub(crate) fn shape(&self) -> Shape {
        self.scratch.shape
    }

    /// A list of rows as kernels take it; its memory is kept, the same way.
    pub(crate) fn rows(&mut self, rows: &Rows) -> params::Rows {
        let (list, used) = rows.params();
        self.hold(used);
        list
    }

    /// The same of channels.
    pub(crate) fn channels(&mut self, channels: &Channels) -> params::Channels {
        let (list, used) = channels.params();
        self.hold(used);
        list
    }

    fn hold<'a>(&mut self, memory: impl IntoIterator<Item = Option<&'a Arc<DeviceMemory>>>) {
        self.scratch.pending.extend(memory.into_iter().flatten().map(|memory| memory.clone() as Used));
    }

    /// Where memory of the scratch begins, which has been reserved for at least `bytes`.
    pub(crate) fn reserved(
        &mut self,
        part: impl Fn(&CudaScratch) -> &Memory,
        bytes: usize,
    ) -> Result<Address> {
        let memory = part(self.scratch).0.clone().filter(|memory| memory.bytes() >= bytes);
        match memory {
            Some(memory) => Ok(self.at(&memory)),
            None => Err(Error::Device {
                what: "working memory".to_owned(),
                why: format!("{bytes} bytes were not reserved"),
            }),
        }
    }

    /// Where so many parts of sums, and counters of those that are there, begin.
    pub(crate) fn parts(&mut self, sums: usize, counters: usize) -> Result<(Address, Address)> {
        let sums = self.reserved(|scratch| &scratch.partial, sums * size_of::<f32>())?;
        Ok((sums, self.reserved(|scratch| &scratch.zeros, counters * size_of::<u32>())?))
    }

    /// In a recording: what is issued until [`end_when`](Self::end_when) is done only if a list has a row. False where
    /// the device cannot, or the list has all.
    pub(crate) fn when(&mut self, rows: &Rows) -> Result<bool> {
        let list = self.rows(rows);
        if list.index == 0 {
            return Ok(false);
        }
        let count = list.start + u64::from(list.batch) * size_of::<u32>() as u64;
        // SAFETY: the number behind the samples' first rows is the list's, whose memory is kept.
        unsafe { self.scratch.stream.when(count) }.map_err(|failure| failure.during("beginning a condition"))
    }

    /// Ends it.
    pub(crate) fn end_when(&mut self) -> Result<()> {
        self.scratch.stream.end_when().map_err(|failure| failure.during("ending a condition"))
    }

    /// Launches a kernel; `operation` says in errors what it is part of.
    ///
    /// # Safety
    /// `params` are what the kernel takes, and all memory they name is valid for it and was passed to [`at`](Self::at),
    /// [`rows`](Self::rows) or [`channels`](Self::channels).
    #[track_caller]
    pub(crate) unsafe fn launch<P: bytemuck::Pod>(
        &mut self,
        launch: &Launch,
        params: &P,
        operation: &dyn Display,
    ) -> Result<()> {
        if launch.is_empty() {
            return Ok(());
        }
        let place = Location::caller();
        // SAFETY: the caller's word; what is used is kept.
        unsafe { self.scratch.stream.launch(launch, bytemuck::cast_slice(std::slice::from_ref(params))) }.map_err(
            |failure| {
                let Launch { kernel, grid: [x, y, z], threads, shared } = launch;
                failure.during(format_args!(
                    "{operation}: {kernel} in {x}×{y}×{z} thread blocks of {threads} with {shared} bytes of shared \
                     memory ({}:{})",
                    place.file(),
                    place.line()
                ))
            },
        )
    }

    /// Copies from this machine to the device, when it is its turn.
    pub(crate) fn copy_in(
        &mut self,
        to: &Arc<DeviceMemory>,
        from: &Arc<HostMemory>,
        bytes: Range<usize>,
    ) -> Result<()> {
        let address = self.at(to) + bytes.start as u64;
        self.scratch.pending.push(from.clone());
        assert!(bytes.end <= to.bytes() && bytes.end <= from.bytes(), "both sides are as long");
        // SAFETY: both are as long, and kept.
        unsafe { self.scratch.stream.copy_in(address, from.at(bytes.start), bytes.len()) }
            .map_err(|failure| failure.during(format_args!("copying {} bytes to the device", bytes.len())))
    }

    /// Copies from one memory of the device to another, from byte `at` of it on.
    pub(crate) fn copy(
        &mut self,
        to: &Arc<DeviceMemory>,
        at: usize,
        from: &Arc<DeviceMemory>,
        bytes: usize,
    ) -> Result<()> {
        assert!(bytes <= from.bytes() && at + bytes <= to.bytes(), "both sides are as long");
        assert!(!Arc::ptr_eq(to, from), "two memories");
        let (to, from) = (self.at(to) + at as u64, self.at(from));
        // SAFETY: both are as long, and kept.
        unsafe { self.scratch.stream.copy(to, from, bytes) }
            .map_err(|failure| failure.during(format_args!("copying {bytes} bytes within the device")))
    }

    /// Copies from the device to this machine.
    pub(crate) fn copy_out(
        &mut self,
        to: &Arc<HostMemory>,
        from: &Arc<DeviceMemory>,
        bytes: usize,
    ) -> Result<()> {
        let address = self.at(from);
        self.scratch.pending.push(to.clone());
        assert!(bytes <= from.bytes() && bytes <= to.bytes(), "both sides are as long");
        // SAFETY: both are as long, and kept.
        unsafe { self.scratch.stream.copy_out(to.at(0), address, bytes) }
            .map_err(|failure| failure.during(format_args!("copying {bytes} bytes from the device")))
    }

    /// Waits for everything issued.
    pub(crate) fn wait(&mut self) -> Result<()> {
        if self.scratch.pending.is_empty() {
            return Ok(());
        }
        let outcome = self.scratch.stream.wait();
        self.scratch.pending.clear();
        self.scratch.bringing = false;
        outcome.map_err(|failure| failure.during("an inference"))
    }

    /// Brings images in; they are copied while the next are made ready.
    pub(crate) fn bring(&mut self, images: &[f32]) -> Result<Images> {
        let bytes = size_of_val(images);
        if self.scratch.images.as_ref().is_none_or(|(memory, _)| memory.bytes() < bytes) {
            let driver = &self.scratch.driver;
            let memory = DeviceMemory::new(driver, bytes, "images")?;
            self.scratch.images = Some((memory, HostMemory::new(driver, bytes, "images")?));
            // What was recorded reads the old ones.
            self.scratch.recordings.clear();
        }
        if self.scratch.bringing {
            // The last copies have to be done before their source is written again.
            self.wait()?;
        }
        self.scratch.bringing = true;
        let (memory, host) = self.scratch.images.as_ref().expect("made above");
        let (memory, host) = (memory.clone(), host.clone());
        for (i, part) in bytemuck::cast_slice(images).chunks(COPY_BYTES).enumerate() {
            // SAFETY: the memory is the scratch's, which is this queue's alone, and nothing is under way.
            unsafe { host.part(i * COPY_BYTES, part.len()) }.copy_from_slice(part);
            self.copy_in(&memory, &host, i * COPY_BYTES..i * COPY_BYTES + part.len())?;
        }
        Ok(Images { address: memory.address(), len: images.len() })
    }

    /// Replays what was recorded under a key, if anything was.
    pub(crate) fn replay(&mut self, key: u64) -> Result<bool> {
        let Some(at) = self.scratch.recordings.iter().position(|recording| recording.key == key) else {
            return Ok(false);
        };
        let number = self.scratch.recordings[at].number;
        // Something has to be waited for, also where nothing was brought in.
        self.scratch.pending.extend(self.scratch.recordings[at].used.first().cloned());
        // SAFETY: the recording keeps all memory that its operations use.
        unsafe { self.scratch.stream.replay(number) }
            .map_err(|failure| failure.during("replaying an inference"))?;
        Ok(true)
    }

    /// Whether a program with this key was issued before; from now on it was.
    pub(crate) fn seen(&mut self, key: u64) -> bool {
        let seen = self.scratch.seen.contains(&key);
        if !seen {
            self.scratch.seen.push(key);
        }
        seen
    }

    /// Records what `program` issues, and does it once.
    pub(crate) fn record<X: From<Error>>(
        &mut self,
        key: u64,
        program: impl FnOnce(&mut Self) -> Result<(), X>,
    ) -> Result<(), X> {
        let recording = |failure: Failure| failure.during("recording an inference");
        let before = std::mem::take(&mut self.scratch.pending);
        self.scratch.stream.record().map_err(recording)?;
        let outcome = program(self);
        let used = std::mem::replace(&mut self.scratch.pending, before);
        if let Err(error) = outcome {
            self.scratch.stream.abandon();
            return Err(error);
        }
        let number = self.scratch.stream.recorded().map_err(recording)?;
        self.scratch.recordings.push(Recording { key, number, used });
        self.replay(key)?;
        Ok(())
    }

    pub(crate) fn start_stamps(&mut self) {
        self.stamps = 0;
    }

    pub(crate) fn stamp(&mut self) -> Result<()> {
        self.stamps += 1;
        self.scratch.stream.stamp(self.stamps - 1).map_err(|failure| failure.during("noting the time"))
    }

    pub(crate) fn lap(&mut self, i: usize) -> Result<u64> {
        self.wait()?;
        self.scratch.stream.lap(i).map_err(|failure| failure.during("telling the time"))
    }
}

/// Images on the device, `[n, c, h, w]`.
#[derive(Clone, Copy)]
pub struct Images {
    pub(crate) address: Address,
    pub(crate) len: usize,
}
