//! Memory of maps that are done with, for those to come: a step needs the same sizes as the step before.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use laud_kernels::Element;

/// Memory by number of values.
pub(super) struct Shelf<E>(Mutex<HashMap<usize, Vec<Vec<E>>>>);

impl<E> Default for Shelf<E> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Memory that goes back to its shelf.
pub(super) struct Buffer<E> {
    values: Vec<E>,
    shelf: Arc<Shelf<E>>,
}

impl<E: Element> Shelf<E> {
    /// `len` values, whatever they are.
    pub(super) fn any(this: &Arc<Self>, len: usize) -> Buffer<E> {
        let found = this.stock().get_mut(&len).and_then(Vec::pop);
        Buffer { values: found.unwrap_or_else(|| vec![E::from_f32(0.0); len]), shelf: this.clone() }
    }

    /// `len` zeros.
    pub(super) fn zeros(this: &Arc<Self>, len: usize) -> Buffer<E> {
        let mut buffer = Self::any(this, len);
        buffer.fill(E::from_f32(0.0));
        buffer
    }
}

impl<E> Shelf<E> {
    fn stock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Vec<Vec<E>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.values
    }
}

impl<E> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.values
    }
}

impl<E> Drop for Buffer<E> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        self.shelf.stock().entry(values.len()).or_default().push(values);
    }
}
