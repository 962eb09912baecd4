use crate::Emulator;
use laud_kernels::cuda::launch::Launch;
use laud_kernels::cuda::params::{Address, ConditionParams};
use laud_kernels::cuda::{Driver, Failure, Properties, Stream};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A host that stands for a device: its memory is this process's, and what is asked for is done at once. A copy is the
/// same device.
#[derive(Clone)]
pub struct EmulatedDevice(Arc<Inner>);

struct Inner {
    emulator: Emulator,
    properties: Properties,
    /// Bytes that may be taken.
    limit: usize,
    taken: Mutex<HashMap<u64, Layout>>,
    /// Kernels that are refused begin with this.
    refused: Mutex<Option<String>>,
    launches: AtomicUsize,
}

/// What memory is aligned to.
const ALIGNMENT: usize = 256;

impl EmulatedDevice {
    /// A device of compute capability 9.0 with `multiprocessors` and `limit` bytes of memory.
    pub fn new(emulator: Emulator, multiprocessors: u32, limit: usize) -> Self {
        let properties = Properties {
            name: "emulated device".to_owned(),
            capability: 90,
            multiprocessors,
            memory_bytes: limit as u64,
            shared_bytes: 227 << 10,
            ..Properties::default()
        };
        let (taken, launches) = (Mutex::default(), AtomicUsize::new(0));
        Self(Arc::new(Inner { emulator, properties, limit, taken, refused: Mutex::default(), launches }))
    }

    /// From now on refuses to launch kernels whose names begin like this; `None`: no more.
    pub fn refuse(&self, kernels: Option<&str>) {
        *self.0.refused.lock().unwrap_or_else(PoisonError::into_inner) = kernels.map(str::to_owned);
    }

    /// Kernels run so far.
    pub fn launches(&self) -> usize {
        self.0.launches.load(Ordering::SeqCst)
    }

    /// Pieces of memory that are taken.
    pub fn allocations(&self) -> usize {
        self.0.taken().len()
    }
}

impl Inner {
    fn taken(&self) -> MutexGuard<'_, HashMap<u64, Layout>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, bytes: usize) -> Result<*mut u8, Failure> {
        let mut taken = self.taken();
        let used: usize = taken.values().map(Layout::size).sum();
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT).map_err(|_| Failure::OutOfMemory)?;
        if used.saturating_add(layout.size()) > self.limit {
            return Err(Failure::OutOfMemory);
        }
        // SAFETY: the layout is not empty.
        let at = unsafe { alloc_zeroed(layout) };
        if at.is_null() {
            return Err(Failure::OutOfMemory);
        }
        taken.insert(at as u64, layout);
        Ok(at)
    }

    /// # Safety
    /// The memory is from `take`, and nobody uses it.
    unsafe fn give_back(&self, at: u64) {
        if let Some(layout) = self.taken().remove(&at) {
            // SAFETY: taken with this layout and not given back before.
            unsafe { dealloc(at as *mut u8, layout) }
        }
    }
}

// SAFETY: memory is allocated for every caller anew, with the alignment asked for.
unsafe impl Driver for EmulatedDevice {
    fn properties(&self) -> &Properties {
        &self.0.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Failure> {
        self.0.take(bytes).map(|at| at as u64)
    }

    unsafe fn free(&self, address: Address) {
        // SAFETY: the caller's word.
        unsafe { self.0.give_back(address) }
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, Failure> {
        self.0.take(bytes)
    }

    unsafe fn free_host(&self, at: *mut u8) {
        // SAFETY: the caller's word.
        unsafe { self.0.give_back(at as u64) }
    }

    unsafe fn write(&self, to: Address, from: &[u8]) -> Result<(), Failure> {
        // SAFETY: the caller's word.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) }
        Ok(())
    }

    fn stream(&self) -> Result<Box<dyn Stream>, Failure> {
        Ok(Box::new(Done {
            device: self.0.clone(),
            recording: None,
            under: None,
            recorded: vec![],
            stamps: vec![],
        }))
    }
}

/// Work that is done as soon as it is asked for.
struct Done {
    device: Arc<Inner>,
    recording: Option<Vec<Work>>,
    /// What is recorded under a condition.
    under: Option<(Condition, Vec<Work>)>,
    recorded: Vec<Vec<Work>>,
    stamps: Vec<Instant>,
}

/// What can be asked for.
enum Work {
    Launch { launch: Launch, params: Vec<u64> },
    Copy { to: u64, from: u64, bytes: usize },
    When { condition: Condition, work: Vec<Work> },
}

/// What a kernel sets.
type Condition = Box<AtomicU32>;

impl Done {
    /// # Safety
    /// The addresses in it are valid for what it does.
    unsafe fn ask(&mut self, work: Work) -> Result<(), Failure> {
        let under = self.under.as_mut().map(|(_, work)| work);
        match under.or(self.recording.as_mut()) {
            Some(recording) => {
                recording.push(work);
                Ok(())
            }
            // SAFETY: the caller's word.
            None => unsafe { self.device.run(&work) },
        }
    }
}

impl Inner {
    /// # Safety
    /// As for [`Done::ask`].
    unsafe fn run(&self, work: &Work) -> Result<(), Failure> {
        match work {
            Work::Launch { launch, params } => {
                self.launches.fetch_add(1, Ordering::SeqCst);
                let block = [launch.threads, 1, 1];
                let mut args = [params.as_ptr().cast_mut().cast()];
                // SAFETY: the caller's word about what the parameters name.
                unsafe {
                    self.emulator.launch(
                        &launch.kernel,
                        launch.grid,
                        block,
                        launch.shared as usize,
                        &mut args,
                    )
                }
                .map_err(Failure::Other)
            }
            Work::Copy { to, from, bytes } => {
                // SAFETY: the caller's word; both sides are allocations of their own.
                unsafe { std::ptr::copy_nonoverlapping(*from as *const u8, *to as *mut u8, *bytes) };
                Ok(())
            }
            Work::When { condition, work } if condition.load(Ordering::SeqCst) != 0 => {
                // SAFETY: the caller's word.
                work.iter().try_for_each(|work| unsafe { self.run(work) })
            }
            Work::When { .. } => Ok(()),
        }
    }
}

impl Stream for Done {
    unsafe fn launch(&mut self, launch: &Launch, params: &[u64]) -> Result<(), Failure> {
        let refused = self.device.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if refused.is_some_and(|start| launch.kernel.starts_with(&start)) {
            return Err(Failure::Other("refused".to_owned()));
        }
        // SAFETY: the caller's word.
        unsafe { self.ask(Work::Launch { launch: launch.clone(), params: params.to_vec() }) }
    }

    unsafe fn copy_in(&mut self, to: Address, from: *const u8, bytes: usize) -> Result<(), Failure> {
        // SAFETY: the caller's word.
        unsafe { self.ask(Work::Copy { to, from: from as u64, bytes }) }
    }

    unsafe fn copy(&mut self, to: Address, from: Address, bytes: usize) -> Result<(), Failure> {
        // SAFETY: the caller's word.
        unsafe { self.ask(Work::Copy { to, from, bytes }) }
    }

    unsafe fn copy_out(&mut self, to: *mut u8, from: Address, bytes: usize) -> Result<(), Failure> {
        // SAFETY: the caller's word.
        unsafe { self.ask(Work::Copy { to: to as u64, from, bytes }) }
    }

    fn wait(&mut self) -> Result<(), Failure> {
        match self.recording {
            None => Ok(()),
            Some(_) => Err(Failure::Other("a recording must not wait".to_owned())),
        }
    }

    fn record(&mut self) -> Result<(), Failure> {
        self.recording = Some(vec![]);
        Ok(())
    }

    fn recorded(&mut self) -> Result<usize, Failure> {
        let work = self.recording.take().ok_or_else(|| Failure::Other("nothing was recorded".to_owned()))?;
        self.recorded.push(work);
        Ok(self.recorded.len() - 1)
    }

    fn abandon(&mut self) {
        (self.recording, self.under) = (None, None);
    }

    unsafe fn when(&mut self, number: Address) -> Result<bool, Failure> {
        if self.recording.is_none() || self.under.is_some() {
            return Ok(false);
        }
        let condition = Condition::default();
        let params = [condition.as_ptr() as u64, number];
        // SAFETY: the kernel takes an address to write to, which lives as long as the recording, and one to read.
        unsafe { self.launch(&ConditionParams::launch(), &params) }?;
        self.under = Some((condition, vec![]));
        Ok(true)
    }

    fn end_when(&mut self) -> Result<(), Failure> {
        let none = || Failure::Other("no condition was begun".to_owned());
        let (condition, work) = self.under.take().ok_or_else(none)?;
        self.recording.as_mut().ok_or_else(none)?.push(Work::When { condition, work });
        Ok(())
    }

    unsafe fn replay(&mut self, number: usize) -> Result<(), Failure> {
        // SAFETY: the caller's word about everything that was recorded.
        self.recorded[number].iter().try_for_each(|work| unsafe { self.device.run(work) })
    }

    fn stamp(&mut self, i: usize) -> Result<(), Failure> {
        self.stamps.truncate(i);
        self.stamps.push(Instant::now());
        Ok(())
    }

    fn lap(&mut self, i: usize) -> Result<u64, Failure> {
        match (self.stamps.get(i), self.stamps.get(i + 1)) {
            (Some(from), Some(to)) => Ok(to.duration_since(*from).as_nanos() as u64),
            _ => Err(Failure::Other(format!("stamp {i} or the next one is missing"))),
        }
    }
}
