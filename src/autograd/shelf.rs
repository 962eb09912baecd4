//! Memory of maps that are done with, for those to come: a step needs the same sizes as the step before.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Memory by number of values.
#[derive(Default)]
pub(super) struct Shelf(Mutex<HashMap<usize, Vec<Vec<f32>>>>);

/// Memory that goes back to its shelf.
pub(super) struct Buffer {
    values: Vec<f32>,
    shelf: Arc<Shelf>,
}

impl Shelf {
    /// `len` values, whatever they are.
    pub(super) fn any(this: &Arc<Self>, len: usize) -> Buffer {
        let found = this.stock().get_mut(&len).and_then(Vec::pop);
        Buffer { values: found.unwrap_or_else(|| vec![0.0; len]), shelf: this.clone() }
    }

    /// `len` zeros.
    pub(super) fn zeros(this: &Arc<Self>, len: usize) -> Buffer {
        let mut buffer = Self::any(this, len);
        buffer.fill(0.0);
        buffer
    }

    fn stock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Vec<Vec<f32>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        self.shelf.stock().entry(values.len()).or_default().push(values);
    }
}
