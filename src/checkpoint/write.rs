//! Writing safetensors, all or nothing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::dtype::DType;
use super::error::{ErrorKind, Result, quote};
use crate::files::write_atomically;

/// The elements of a tensor to write, row-major.
#[derive(Clone, Copy, Debug)]
pub enum TensorData<'a> {
    /// Single-precision floats.
    F32(&'a [f32]),
    /// Double-precision floats.
    F64(&'a [f64]),
    /// Bytes, such as masks.
    U8(&'a [u8]),
    /// Little-endian elements of any type.
    Raw(DType, &'a [u8]),
}

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct TensorOut<'a> {
    /// Dimensions; their product is the number of elements.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: TensorData<'a>,
}

impl TensorData<'_> {
    fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
            Self::U8(_) => DType::U8,
            Self::Raw(dtype, _) => *dtype,
        }
    }

    fn byte_len(&self) -> usize {
        match self {
            Self::F32(x) => size_of_val(*x),
            Self::F64(x) => size_of_val(*x),
            Self::U8(x) | Self::Raw(_, x) => x.len(),
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::F32(x) => x.iter().try_for_each(|x| out.write_all(&x.to_le_bytes())),
            Self::F64(x) => x.iter().try_for_each(|x| out.write_all(&x.to_le_bytes())),
            Self::U8(x) | Self::Raw(_, x) => out.write_all(x),
        }
    }
}

/// Writes a safetensors file that either appears complete under `path` or not at all.
///
/// The bytes go to a temporary file in the same directory, reach the disk, and take the name by a rename; a file
/// that was there before is replaced in that instant. The same input gives the same bytes.
///
/// # Errors
/// A shape that does not fit its elements, a tensor named `__metadata__`, or any failure to write; what was at `path`
/// is then untouched and the temporary file is gone.
pub fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, TensorOut<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let (header, ordered) = header(tensors, metadata).map_err(|kind| kind.at(path))?;
    write_atomically(path, |out| {
        out.write_all(&header)?;
        ordered.iter().try_for_each(|tensor| tensor.data.write(out))
    })
    .map_err(|error| ErrorKind::Io(error).at(path))
}

/// The header with its length in front, and the tensors in the order it lists them.
fn header<'a>(
    tensors: &'a BTreeMap<String, TensorOut<'a>>,
    metadata: &BTreeMap<String, String>,
) -> std::result::Result<(Vec<u8>, Vec<&'a TensorOut<'a>>), ErrorKind> {
    let mut ordered: Vec<(&String, &TensorOut<'_>)> = tensors.iter().collect();
    // Widest elements first: every tensor is then aligned to its element. The sort is stable, so names stay in order.
    ordered.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.data.dtype().size_bytes()));

    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0;
    for (name, tensor) in &ordered {
        let dtype = tensor.data.dtype();
        let wanted = tensor.shape.iter().try_fold(dtype.size_bytes(), |n, &d| n.checked_mul(d));
        if wanted != Some(tensor.data.byte_len()) {
            return Err(ErrorKind::damaged(format!(
                "tensor {} has shape {:?} but {} bytes of {dtype}",
                quote(name),
                tensor.shape,
                tensor.data.byte_len()
            )));
        }
        if *name == "__metadata__" {
            return Err(ErrorKind::damaged("no tensor can be named `__metadata__`"));
        }
        let end = offset + tensor.data.byte_len();
        let entry = json!({ "dtype": dtype.name(), "shape": tensor.shape, "data_offsets": [offset, end] });
        entries.insert((*name).clone(), entry);
        offset = end;
    }
    let mut json = serde_json::Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok((header, ordered.into_iter().map(|(_, tensor)| tensor).collect()))
}
