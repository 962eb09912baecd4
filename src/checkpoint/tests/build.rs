//! Builders of files that are as right or as wrong as a test needs.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A safetensors file of this header and data, the length being true.
pub(super) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A PyTorch archive with this program and these storages, `data/0` and on.
pub(super) fn torch(program: Program, storages: &[&[u8]]) -> Vec<u8> {
    let program = program.done();
    let storages: Vec<(String, &[u8])> =
        storages.iter().enumerate().map(|(key, bytes)| (format!("data/{key}"), *bytes)).collect();
    let mut entries = vec![("data.pkl", program.as_slice()), ("byteorder", b"little"), ("version", b"3\n")];
    entries.extend(storages.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
    archive(&entries, CompressionMethod::Stored)
}

/// A zip archive of these entries under the folder `net/`.
pub(super) fn archive(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(format!("net/{name}"), SimpleFileOptions::default().compression_method(method))
            .unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub(super) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A pickle under construction, protocol 2. Every method appends what it says.
#[derive(Clone)]
pub(super) struct Program(Vec<u8>);

impl Program {
    pub(super) fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn text(self, text: &str) -> Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }

    pub(super) fn int(self, value: i64) -> Self {
        self.raw(&[0x8a, 8]).raw(&value.to_le_bytes())
    }

    pub(super) fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    pub(super) fn tuple(self, items: &[i64]) -> Self {
        items.iter().fold(self.raw(b"("), |program, &item| program.int(item)).raw(b"t")
    }

    /// `{` and the mark of its items.
    pub(super) fn dict(self) -> Self {
        self.raw(b"}(")
    }

    /// The items since the mark, into the dict.
    pub(super) fn end(self) -> Self {
        self.raw(b"u")
    }

    pub(super) fn storage(self, class: &str, key: &str, elements: i64) -> Self {
        let program = self.raw(b"(").text("storage").global("torch", class).text(key).text("cpu");
        program.int(elements).raw(b"tQ")
    }

    pub(super) fn tensor(self, view: View<'_>) -> Self {
        let program = self.global("torch._utils", "_rebuild_tensor_v2").raw(b"(");
        let program = program.storage(view.class, view.key, view.elements).int(view.first);
        let program = program.tuple(view.shape).tuple(view.strides).raw(b"\x89");
        program.global("collections", "OrderedDict").raw(b")RtR")
    }

    /// A vector that fills storage `key`.
    pub(super) fn vector(self, key: &str, elements: i64) -> Self {
        self.tensor(View { key, elements, shape: &[elements], ..View::default() })
    }

    pub(super) fn done(mut self) -> Vec<u8> {
        self.0.push(b'.');
        self.0
    }
}

/// A tensor over a storage; by default an empty vector of floats.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) class: &'a str,
    pub(super) key: &'a str,
    pub(super) elements: i64,
    pub(super) first: i64,
    pub(super) shape: &'a [i64],
    pub(super) strides: &'a [i64],
}

impl Default for View<'_> {
    fn default() -> Self {
        Self { class: "FloatStorage", key: "0", elements: 0, first: 0, shape: &[0], strides: &[1] }
    }
}
