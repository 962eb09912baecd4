//! Reading one tensor.

use super::dtype::DType;
use super::error::{ErrorKind, Result, quote};
use super::tensor::{Layout, TensorInfo};
use super::{Checkpoint, torch};

impl Checkpoint {
    /// The elements as `f32`, row-major, whatever their type; wider types round to nearest.
    ///
    /// # Errors
    /// No such tensor, or its bytes cannot be read: a checksum that does not match, a file cut short since it was
    /// opened.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.read(name, |info| {
            let mut out = Vec::new();
            self.stream(info, 4, &mut out, |bytes, out| info.dtype.extend_f32(bytes, out))?;
            Ok(out)
        })
    }

    /// As [`read_f32`](Self::read_f32), with every element proven finite: what weights are read with.
    ///
    /// # Errors
    /// Also [`ErrorKind::NonFinite`], which says where.
    pub fn read_finite_f32(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.read_f32(name)?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => {
                let kind = ErrorKind::NonFinite { tensor: name.to_owned(), index, value: values[index] };
                Err(kind.at(self.path()))
            }
        }
    }

    /// The elements of a mask: type `U8` or `BOOL`, row-major, as stored.
    ///
    /// # Errors
    /// As [`read_f32`](Self::read_f32); also any other type.
    pub fn read_u8(&self, name: &str) -> Result<Vec<u8>> {
        self.read(name, |info| match info.dtype {
            DType::U8 | DType::Bool => self.bytes(info),
            other => Err(ErrorKind::unsupported(format!("tensor {} is {other}, not U8", quote(name)))),
        })
    }

    /// The elements as little-endian bytes of their own type, row-major and packed.
    ///
    /// # Errors
    /// As [`read_f32`](Self::read_f32).
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.read(name, |info| self.bytes(info))
    }

    fn read<T>(
        &self,
        name: &str,
        read: impl FnOnce(&TensorInfo) -> std::result::Result<T, ErrorKind>,
    ) -> Result<T> {
        let info = self.tensors().get(name).ok_or_else(|| ErrorKind::MissingTensor(name.to_owned()));
        info.and_then(read).map_err(|kind| kind.at(self.path()))
    }

    fn bytes(&self, info: &TensorInfo) -> std::result::Result<Vec<u8>, ErrorKind> {
        let mut out = Vec::new();
        self.stream(info, info.dtype.size_bytes(), &mut out, |bytes, out: &mut Vec<u8>| {
            out.extend_from_slice(bytes)
        })?;
        Ok(out)
    }

    /// Passes the tensor's elements to `sink`, row-major, packed and little-endian, in pieces of whole elements; `out`
    /// gets room for all of them, `out_bytes` each, where the file is known to hold them.
    fn stream<T>(
        &self,
        info: &TensorInfo,
        out_bytes: usize,
        out: &mut Vec<T>,
        mut sink: impl FnMut(&[u8], &mut Vec<T>),
    ) -> std::result::Result<(), ErrorKind> {
        if info.elements() == 0 {
            return Ok(());
        }
        let length = info.byte_len() as u64;
        // Compressed tensors, whose size is a claim until they are unpacked, may be larger than the file.
        if length <= self.source.len() {
            let items = info.elements() * out_bytes / size_of::<T>();
            out.try_reserve_exact(items).map_err(|_| {
                ErrorKind::unsupported(format!("there is no memory for {} elements", info.elements()))
            })?;
        }
        let element = info.dtype.size_bytes();
        match (&info.layout, &self.archive) {
            (&Layout::Plain { offset }, _) => {
                torch::pieces(&mut self.source.cursor_at(offset), length, &mut |bytes| sink(bytes, out))?;
                Ok(())
            }
            (&Layout::Storage { entry, first, .. }, Some(archive)) if info.is_packed() => {
                let range = ((first * element) as u64, length);
                if !archive.big_endian {
                    return archive.stream(&self.source, entry, range, &mut |bytes| sink(bytes, out));
                }
                let mut swapped = Vec::new();
                archive.stream(&self.source, entry, range, &mut |bytes| {
                    swapped.clear();
                    swapped.extend_from_slice(bytes);
                    swapped.chunks_exact_mut(element).for_each(<[u8]>::reverse);
                    sink(&swapped, out);
                })
            }
            (Layout::Storage { entry, first, strides }, Some(archive)) => {
                let reach: usize =
                    info.shape.iter().zip(strides).map(|(&dim, &stride)| (dim - 1) * stride).sum();
                let mut span = Vec::new();
                let range = ((first * element) as u64, ((reach + 1) * element) as u64);
                archive.stream(&self.source, *entry, range, &mut |bytes| span.extend_from_slice(bytes))?;
                if archive.big_endian {
                    span.chunks_exact_mut(element).for_each(<[u8]>::reverse);
                }
                gather(&span, element, &info.shape, strides, &mut |bytes| sink(bytes, out));
                Ok(())
            }
            (Layout::Storage { .. }, None) => unreachable!("only an archive has storages"),
        }
    }
}

/// Passes the elements of a strided view to `sink` in row-major order. `span` starts at its first element and reaches
/// to its last; no dimension is 0.
fn gather(span: &[u8], element: usize, shape: &[usize], strides: &[usize], sink: &mut dyn FnMut(&[u8])) {
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    loop {
        sink(&span[at * element..][..element]);
        // The odometer: the last dimension turns fastest.
        let mut dim = shape.len();
        loop {
            let Some(next) = dim.checked_sub(1) else { return };
            dim = next;
            index[dim] += 1;
            at += strides[dim];
            if index[dim] < shape[dim] {
                break;
            }
            at -= index[dim] * strides[dim];
            index[dim] = 0;
        }
    }
}
