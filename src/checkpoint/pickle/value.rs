//! What a program builds.

use std::fmt;

use crate::checkpoint::dtype::DType;

/// The most dimensions a tensor may have.
const MAX_RANK: usize = 8;

/// The place of a value in its [`Heap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::checkpoint) struct Ref(u32);

/// Every value of one run. Values refer to each other by [`Ref`], so that structures with several owners, even cyclic ones, are plain
/// data; whoever walks them bounds the depth.
#[derive(Debug, Default)]
pub(in crate::checkpoint) struct Heap<'p>(Vec<Value<'p>>);

impl<'p> Heap<'p> {
    pub(super) fn add(&mut self, value: Value<'p>) -> Ref {
        // An opcode makes at most one value, and programs are limited to far fewer than 2^32 opcodes.
        let place = u32::try_from(self.0.len()).expect("programs are short");
        self.0.push(value);
        Ref(place)
    }

    pub(in crate::checkpoint) fn get(&self, at: Ref) -> &Value<'p> {
        &self.0[at.0 as usize]
    }

    pub(super) fn get_mut(&mut self, at: Ref) -> &mut Value<'p> {
        &mut self.0[at.0 as usize]
    }

    /// A tuple of integers that are not negative: at most [`MAX_RANK`], since a program can name one tuple many times.
    pub(in crate::checkpoint) fn sizes(&self, at: Ref) -> Option<Vec<usize>> {
        let Value::Tuple(items) = self.get(at) else { return None };
        if items.len() > MAX_RANK {
            return None;
        }
        items.iter().map(|&item| self.size(item)).collect()
    }

    /// An integer that is not negative.
    pub(in crate::checkpoint) fn size(&self, at: Ref) -> Option<usize> {
        match self.get(at) {
            &Value::Int(size) => usize::try_from(size).ok(),
            _ => None,
        }
    }
}

/// One value. What a state dict has no use for is kept only as its kind.
#[derive(Debug)]
pub(in crate::checkpoint) enum Value<'p> {
    None,
    Bool,
    Int(i64),
    /// A float, or an integer beyond 64 bits.
    Number,
    Str(&'p str),
    Bytes,
    Tuple(Vec<Ref>),
    List(Vec<Ref>),
    Dict(Vec<(Ref, Ref)>),
    Global(Box<Global<'p>>),
    Storage(Box<Storage<'p>>),
    Tensor(Box<Tensor<'p>>),
    /// What calling or instantiating this global would have made.
    Opaque(Global<'p>),
}

// What a one-byte opcode costs: the longest program must not fill the memory.
const _: () = assert!(size_of::<Value<'_>>() <= 40);

impl Value<'_> {
    /// For messages: "a dict", "an object of argparse.Namespace".
    pub(in crate::checkpoint) fn kind(&self) -> String {
        match self {
            Self::None => "None".into(),
            Self::Bool => "a bool".into(),
            Self::Int(_) | Self::Number => "a number".into(),
            Self::Str(_) => "text".into(),
            Self::Bytes => "bytes".into(),
            Self::Tuple(_) => "a tuple".into(),
            Self::List(_) => "a list".into(),
            Self::Dict(_) => "a dict".into(),
            Self::Global(global) => format!("the global {global}"),
            Self::Storage(_) => "a storage".into(),
            Self::Tensor(_) => "a tensor".into(),
            Self::Opaque(global) => format!("an object of {global}"),
        }
    }
}

/// `module.name`, never imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::checkpoint) struct Global<'p> {
    pub(super) module: &'p str,
    pub(super) name: &'p str,
}

impl<'p> Global<'p> {
    pub(super) const fn new(module: &'p str, name: &'p str) -> Self {
        Self { module, name }
    }
}

impl fmt::Display for Global<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

/// A one-dimensional array that tensors are views of.
#[derive(Clone, Copy, Debug)]
pub(in crate::checkpoint) struct Storage<'p> {
    /// `None` for an element type that this room does not read; an error only once a weight has it.
    pub(in crate::checkpoint) dtype: Option<DType>,
    /// The storage's class, such as `FloatStorage`.
    pub(in crate::checkpoint) class: &'p str,
    /// Its bytes are the archive entry `data/<key>`.
    pub(in crate::checkpoint) key: &'p str,
    pub(in crate::checkpoint) elements: usize,
}

/// A view of a storage, as the program describes it; nothing is proven yet.
#[derive(Clone, Copy, Debug)]
pub(in crate::checkpoint) struct Tensor<'p> {
    pub(in crate::checkpoint) storage: Storage<'p>,
    /// Its first element in the storage.
    pub(in crate::checkpoint) first: Ref,
    pub(in crate::checkpoint) shape: Ref,
    /// In elements.
    pub(in crate::checkpoint) strides: Ref,
}
