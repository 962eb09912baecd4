//! The calls that are understood, and the globals that condemn a file.

use super::value::{Global, Heap, Ref, Storage, Tensor, Value};
use super::{Fault, damaged};
use crate::checkpoint::dtype::DType;

/// Modules that run code, start processes, load libraries or talk to the outside: by their first component.
const DANGEROUS_MODULES: &[&str] = &[
    "_pickle",
    "_posixsubprocess",
    "_winapi",
    "aiohttp",
    "asyncio",
    "bdb",
    "cPickle",
    "cProfile",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "ensurepip",
    "ftplib",
    "http",
    "httplib",
    "imp",
    "importlib",
    "inspect",
    "marshal",
    "multiprocessing",
    "nt",
    "operator",
    "os",
    "pdb",
    "pickle",
    "pip",
    "platform",
    "popen2",
    "posix",
    "profile",
    "pty",
    "pydoc",
    "requests",
    "runpy",
    "shelve",
    "shutil",
    "signal",
    "smtplib",
    "socket",
    "subprocess",
    "sys",
    "telnetlib",
    "tempfile",
    "threading",
    "timeit",
    "trace",
    "urllib",
    "urllib2",
    "venv",
    "webbrowser",
    "winreg",
];

/// The built-in names that only make data; every other one (`eval`, `exec`, `getattr`, `open`, …) is dangerous.
const HARMLESS_BUILTINS: &[&str] = &[
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "long",
    "object",
    "range",
    "set",
    "slice",
    "str",
    "tuple",
    "unicode",
    "xrange",
];

pub(super) fn is_dangerous(global: Global<'_>) -> bool {
    let top = global.module.split('.').next().unwrap_or_default();
    match top {
        "builtins" | "__builtin__" | "__builtins__" => !HARMLESS_BUILTINS.contains(&global.name),
        _ => DANGEROUS_MODULES.contains(&top),
    }
}

/// REDUCE: what `callee(*arguments)` would be.
pub(super) fn reduce<'p>(heap: &Heap<'p>, callee: Ref, arguments: Ref) -> Result<Value<'p>, Fault> {
    let Value::Tuple(arguments) = heap.get(arguments) else {
        return damaged("a call has no tuple of arguments");
    };
    let global = match heap.get(callee) {
        Value::Global(global) => **global,
        // A call of what a call returned.
        Value::Opaque(global) => return Ok(Value::Opaque(*global)),
        other => return damaged(format!("{} is called", other.kind())),
    };
    match (global.module, global.name) {
        // Its items follow as SETITEMS.
        ("collections", "OrderedDict") if arguments.is_empty() => Ok(Value::Dict(Vec::new())),
        ("torch._utils", "_rebuild_tensor_v2") => tensor(heap, arguments),
        ("torch._utils", "_rebuild_parameter") => parameter(heap, arguments),
        _ => Ok(Value::Opaque(global)),
    }
}

/// NEWOBJ: what `class.__new__(class, …)` would be.
pub(super) fn instantiate<'p>(heap: &Heap<'p>, class: Ref) -> Result<Value<'p>, Fault> {
    match heap.get(class) {
        Value::Global(global) if **global == Global::new("collections", "OrderedDict") => {
            Ok(Value::Dict(Vec::new()))
        }
        Value::Global(global) => Ok(Value::Opaque(**global)),
        Value::Opaque(global) => Ok(Value::Opaque(*global)),
        other => damaged(format!("{} is instantiated", other.kind())),
    }
}

/// BINPERSID: `('storage', torch.FloatStorage, '0', 'cpu', 1176)`.
pub(super) fn storage<'p>(heap: &Heap<'p>, id: Ref) -> Result<Value<'p>, Fault> {
    if let Value::Tuple(id) = heap.get(id)
        && let &[tag, class, key, _device, elements, ..] = id.as_slice()
        && let Value::Str("storage") = heap.get(tag)
        && let Value::Global(class) = heap.get(class)
        && matches!(class.module, "torch" | "torch.storage" | "torch.cuda")
        && let &Value::Str(key) = heap.get(key)
        && let Some(elements) = heap.size(elements)
    {
        let dtype = DType::from_torch_storage(class.name);
        return Ok(Value::Storage(Box::new(Storage { dtype, class: class.name, key, elements })));
    }
    damaged("a persistent id is not that of a storage")
}

/// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks, …)`.
///
/// The arguments are looked at only if the tensor turns out to be a weight; copying them here would let a short
/// program, which can pass one long tuple to many calls, fill the memory.
fn tensor<'p>(heap: &Heap<'p>, arguments: &[Ref]) -> Result<Value<'p>, Fault> {
    if let &[storage, first, shape, strides, ..] = arguments
        && let Value::Storage(storage) = heap.get(storage)
    {
        return Ok(Value::Tensor(Box::new(Tensor { storage: **storage, first, shape, strides })));
    }
    damaged("_rebuild_tensor_v2 is called with arguments that describe no tensor")
}

/// `_rebuild_parameter(tensor, requires_grad, backward_hooks)` is the tensor.
fn parameter<'p>(heap: &Heap<'p>, arguments: &[Ref]) -> Result<Value<'p>, Fault> {
    let Some(&data) = arguments.first() else {
        return damaged("_rebuild_parameter is called without a tensor");
    };
    match heap.get(data) {
        Value::Tensor(tensor) => Ok(Value::Tensor(tensor.clone())),
        Value::Opaque(global) => Ok(Value::Opaque(*global)),
        other => damaged(format!("_rebuild_parameter is called with {}", other.kind())),
    }
}
