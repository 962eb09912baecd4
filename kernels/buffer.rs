use crate::{Element, Error, Result};

/// One cache line; also the widest vector.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 64]);

/// Memory for activations or packed weights, aligned to cache lines, zero at first.
pub struct Buffer<E> {
    lines: Vec<Line>,
    len: usize,
    element: std::marker::PhantomData<E>,
}

impl<E: Element> Buffer<E> {
    /// `len` elements, all zero. `what` names the buffer should memory run out.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeroed(len: usize, what: &str) -> Result<Self> {
        let lines = len.checked_mul(size_of::<E>()).map(|bytes| bytes.div_ceil(64));
        let out_of_memory =
            || Error::OutOfMemory { what: what.to_owned(), bytes: len.saturating_mul(size_of::<E>()) };
        let mut vec = Vec::new();
        vec.try_reserve_exact(lines.ok_or_else(out_of_memory)?).map_err(|_| out_of_memory())?;
        vec.resize(lines.unwrap_or(0), Line([0; 64]));
        Ok(Self { lines: vec, len, element: std::marker::PhantomData })
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
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// All elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [E] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
