//! The header of a safetensors file: 8 bytes of length, JSON, then the tensors back to back.
//!
//! The `safetensors` crate validates a header only together with the whole file in memory and lets a repeated name
//! win silently, so the header is parsed here, from its own bytes. Accepted: exactly what the format document allows
//! (<https://github.com/huggingface/safetensors#format>): unique names, offsets that cover the data section without
//! hole or overlap, sizes that agree with dtype and shape.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};

use super::dtype::DType;
use super::error::{ErrorKind, quote};
use super::source::Source;
use super::tensor::{Layout, TensorInfo, Tensors};

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;

/// The tensors and the `__metadata__` of the file; reads nothing but the header.
pub(super) fn read_header(source: &Source) -> Result<(Tensors, BTreeMap<String, String>), ErrorKind> {
    let mut length = [0; LENGTH_BYTES as usize];
    source.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    let room = source.len().saturating_sub(LENGTH_BYTES);
    if length > room {
        return Err(ErrorKind::damaged(format!(
            "the header claims {length} bytes, the file has {room} left"
        )));
    }
    if length > MAX_HEADER_BYTES {
        return Err(ErrorKind::damaged(format!(
            "the header claims {length} bytes, the format allows {MAX_HEADER_BYTES}"
        )));
    }
    // Proven to be in the file, so the allocation is no larger than the file.
    let mut json = vec![0; length as usize];
    source.read_exact_at(&mut json, LENGTH_BYTES)?;
    let header: Header =
        serde_json::from_slice(&json).map_err(|e| ErrorKind::damaged(format!("bad header: {e}")))?;
    drop(json);
    let tensors = locate(header.tensors, LENGTH_BYTES + length, room - length)?;
    Ok((tensors, header.metadata))
}

/// Proves that the entries tile the `data_bytes` bytes from `data_start` on.
fn locate(
    mut entries: Vec<(String, RawInfo)>,
    data_start: u64,
    data_bytes: u64,
) -> Result<Tensors, ErrorKind> {
    entries.sort_by_key(|(_, info)| info.data_offsets);
    let mut tensors = Tensors::default();
    let mut end = 0;
    for (name, info) in entries {
        let (from, to) = info.data_offsets;
        let Some(dtype) = DType::from_safetensors(&info.dtype) else {
            return Err(ErrorKind::unsupported(format!(
                "tensor {} has dtype {}, which is not supported",
                quote(&name),
                quote(&info.dtype)
            )));
        };
        if from != end || to < from || to > data_bytes {
            return Err(ErrorKind::damaged(format!(
                "tensor {} claims bytes {from}..{to}, but the next free byte is {end} of {data_bytes}",
                quote(&name)
            )));
        }
        end = to;
        let shape: Option<Vec<usize>> = info.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let info = shape
            .and_then(|shape| TensorInfo::new(dtype, shape, Layout::Plain { offset: data_start + from }));
        match info {
            Some(info) if info.byte_len() as u64 == to - from => tensors.insert(&name, info)?,
            _ => {
                return Err(ErrorKind::damaged(format!(
                    "tensor {}: {} bytes do not hold its shape in {dtype}",
                    quote(&name),
                    to - from
                )));
            }
        }
    }
    if end != data_bytes {
        return Err(ErrorKind::damaged(format!(
            "the tensors end at byte {end} of {data_bytes} in the data section"
        )));
    }
    Ok(tensors)
}

#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawInfo)>,
}

#[derive(Deserialize)]
struct RawInfo {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                let mut seen = BTreeSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format_args!(
                            "the name {} appears twice",
                            quote(&name)
                        )));
                    }
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<Metadata>()?.0;
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// `__metadata__`: strings to strings, `null` where a writer had none, no key twice.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings to strings")
            }

            fn visit_unit<E>(self) -> Result<Metadata, E> {
                Ok(Metadata(BTreeMap::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if let Some(_first) = strings.insert(key, value) {
                        return Err(A::Error::custom("__metadata__ has a key twice"));
                    }
                }
                Ok(Metadata(strings))
            }
        }
        deserializer.deserialize_any(Strings)
    }
}
