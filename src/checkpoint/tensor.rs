//! Where a tensor lies in its file, and the table of all of them under cleaned names.

use std::collections::BTreeMap;

use super::dtype::DType;
use super::error::{ErrorKind, quote};

/// The type, shape and place of one tensor; proven to lie within its file when the checkpoint was opened.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: DType,
    /// Row-major dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    elements: usize,
    pub(super) layout: Layout,
}

#[derive(Clone, Debug)]
pub(super) enum Layout {
    /// Row-major little-endian elements from this byte of the file.
    Plain { offset: u64 },
    /// Elements of a storage, which is one entry of a zip archive.
    Storage { entry: usize, first: usize, strides: Vec<usize> },
}

impl TensorInfo {
    /// `None` if the size in bytes overflows.
    pub(super) fn new(dtype: DType, shape: Vec<usize>, layout: Layout) -> Option<Self> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        // Also as f32, which is how it is read: a Vec holds at most isize::MAX bytes.
        elements.checked_mul(dtype.size_bytes().max(4)).filter(|&bytes| isize::try_from(bytes).is_ok())?;
        Some(Self { dtype, shape, elements, layout })
    }

    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Bytes of the elements, packed.
    pub fn byte_len(&self) -> usize {
        self.elements * self.dtype.size_bytes()
    }

    /// Whether the elements lie one after the other in row-major order.
    pub(super) fn is_packed(&self) -> bool {
        let Layout::Storage { strides, .. } = &self.layout else { return true };
        if self.elements == 0 {
            return true;
        }
        let mut expected = 1;
        self.shape.iter().zip(strides).rev().all(|(&dim, &stride)| {
            let packed = dim == 1 || stride == expected;
            expected *= dim;
            packed
        })
    }
}

/// Tensors under cleaned names.
///
/// Cleaning strips the prefixes that wrappers add (`module.` of DataParallel and of weight averaging, `_orig_mod.` of
/// torch.compile), as often as they repeat, and drops `num_batches_tracked`, which inference never reads.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    pub(super) by_name: BTreeMap<String, TensorInfo>,
}

impl Tensors {
    /// Two names that are equal after cleaning are an error: neither could be preferred.
    pub(super) fn insert(&mut self, raw_name: &str, info: TensorInfo) -> Result<(), ErrorKind> {
        let Some(name) = clean(raw_name) else { return Ok(()) };
        if self.by_name.insert(name.to_owned(), info).is_some() {
            return Err(ErrorKind::damaged(format!("two tensors are named {}", quote(name))));
        }
        Ok(())
    }
}

/// The cleaned name; `None` for a tensor that is dropped.
pub(super) fn clean(raw_name: &str) -> Option<&str> {
    let mut name = raw_name;
    while let Some(rest) = name.strip_prefix("module.").or_else(|| name.strip_prefix("_orig_mod.")) {
        name = rest;
    }
    (name != "num_batches_tracked" && !name.ends_with(".num_batches_tracked")).then_some(name)
}
