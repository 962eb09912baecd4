use crate::{Element, Error, Result};
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// One cache line; also the widest vector.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 64]);

/// Memory for activations or packed weights, aligned to cache lines, zero at first.
pub struct Buffer<E> {
    /// Keeps the lines alive; other buffers may have other lines of it.
    _memory: Arc<Memory>,
    lines: NonNull<Line>,
    len: usize,
    element: std::marker::PhantomData<E>,
}

// SAFETY: the lines are this buffer's alone and hold plain values.
unsafe impl<E: Send> Send for Buffer<E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for Buffer<E> {}

impl<E: Element> Buffer<E> {
    /// `len` elements, all zero. `what` names the buffer should memory run out.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeroed(len: usize, what: &str) -> Result<Self> {
        let lines = lines_of::<E>(len, what)?;
        Ok(Self::carve(Arc::new(Memory::new(lines, what)?), 0, len))
    }

    /// The lines from `start` on, which must be nobody else's and inside.
    fn carve(memory: Arc<Memory>, start: usize, len: usize) -> Self {
        let count = (len * size_of::<E>()).div_ceil(64);
        assert!(start + count <= memory.count);
        // SAFETY: the lines are inside the memory, and nobody else has them.
        let lines = unsafe {
            let lines = memory.lines.add(start);
            lines.write_bytes(0, count);
            lines
        };
        Self { _memory: memory, lines, len, element: std::marker::PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All elements.
    pub fn as_slice(&self) -> &[E] {
        // SAFETY: as many elements lie in this buffer's lines, which were zeroed; any bits are an element.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// All elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [E] {
        // SAFETY: as above, and nobody else has these lines.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_ptr().cast(), self.len) }
    }
}

/// Working memory for the sums of the parts that a reduction is cut into. It grows with the calls.
pub struct PartSums(Buffer<f32>);

impl PartSums {
    /// Empty working memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new() -> Result<Self> {
        Ok(Self(Buffer::zeroed(0, "sums of parts")?))
    }

    /// `len` sums of any value.
    pub(crate) fn reserve(&mut self, len: usize) -> Result<&mut [f32]> {
        if self.0.len() < len {
            self.0 = Buffer::zeroed(len, "sums of parts")?;
        }
        Ok(&mut self.0.as_mut_slice()[..len])
    }
}

fn out_of_memory(what: &str, bytes: usize) -> Error {
    Error::OutOfMemory { what: what.to_owned(), bytes }
}

/// Lines that `len` elements take.
fn lines_of<E>(len: usize, what: &str) -> Result<usize> {
    let bytes = len.checked_mul(size_of::<E>()).filter(|&bytes| bytes <= isize::MAX as usize / 2);
    bytes.map(|bytes| bytes.div_ceil(64)).ok_or_else(|| out_of_memory(what, usize::MAX))
}

/// A huge page. Memory that is walked through in large strides spends much time on looking up addresses otherwise.
const HUGE: usize = 2 << 20;
/// What is as large gets huge pages of its own.
const LARGE: usize = HUGE / 8;

/// Lines of one allocation, uninitialised.
struct Memory {
    lines: NonNull<Line>,
    count: usize,
    layout: Layout,
}

// SAFETY: only buffers reach the lines, and each its own.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(count: usize, what: &str) -> Result<Self> {
        let align = if count * 64 >= LARGE { HUGE } else { 64 };
        let bytes = (count * 64).next_multiple_of(align);
        let layout = Layout::from_size_align(bytes, align).map_err(|_| out_of_memory(what, bytes))?;
        if count == 0 {
            return Ok(Self { lines: NonNull::dangling(), count, layout });
        }
        // SAFETY: the size is not zero.
        let start = unsafe { std::alloc::alloc(layout) };
        let lines = NonNull::new(start.cast()).ok_or_else(|| out_of_memory(what, bytes))?;
        #[cfg(target_os = "linux")]
        if align == HUGE {
            // SAFETY: advice about memory that is ours; it may be refused without harm.
            unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Ok(Self { lines, count, layout })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.count > 0 {
            // SAFETY: allocated in `new` with this layout.
            unsafe { std::alloc::dealloc(self.lines.as_ptr().cast(), self.layout) };
        }
    }
}

/// Hands out buffers side by side from large allocations, which are given back when the last of their buffers is
/// dropped: for weights, which come in many sizes and stay.
#[derive(Default)]
pub(crate) struct Arena {
    /// The allocation in use, and its lines that are taken.
    current: Mutex<Option<(Arc<Memory>, usize)>>,
}

/// Bytes of an allocation; what is not handed out is never touched and takes no memory.
const CHUNK: usize = 16 * HUGE;

impl Arena {
    /// As [`Buffer::zeroed`].
    pub(crate) fn zeroed<E: Element>(&self, len: usize, what: &str) -> Result<Buffer<E>> {
        let lines = lines_of::<E>(len, what)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((memory, taken)) =
            current.as_mut().filter(|(memory, taken)| memory.count - taken >= lines)
        {
            let start = std::mem::replace(taken, *taken + lines);
            return Ok(Buffer::carve(memory.clone(), start, len));
        }
        let memory = Memory::new(lines.max(CHUNK / 64), what).or_else(|_| Memory::new(lines, what))?;
        let (memory, _) = current.insert((Arc::new(memory), lines));
        Ok(Buffer::carve(memory.clone(), 0, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_an_arena_are_zero_and_do_not_overlap() {
        let arena = Arena::default();
        let sizes = [1, 100, 0, 3 << 20, 40, CHUNK / 4, 7, CHUNK / 2, 5];
        let mut buffers: Vec<Buffer<f32>> =
            sizes.iter().map(|&len| arena.zeroed(len, "test").unwrap()).collect();
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.as_slice().as_ptr().addr() % 64, 0);
            assert!(buffer.as_slice().iter().all(|&value| value == 0.0));
            buffer.as_mut_slice().fill(i as f32);
        }
        drop(arena);
        for (i, (buffer, len)) in buffers.iter().zip(sizes).enumerate() {
            assert_eq!(buffer.len(), len);
            assert!(buffer.as_slice().iter().all(|&value| value == i as f32));
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for len in [usize::MAX, usize::MAX / 4, isize::MAX as usize / 8] {
            assert!(matches!(Buffer::<f32>::zeroed(len, "test"), Err(Error::OutOfMemory { .. })));
            assert!(matches!(Arena::default().zeroed::<f32>(len, "test"), Err(Error::OutOfMemory { .. })));
        }
    }
}
