//! Finding the weights among what a training script saved.
//!
//! Either one top-level entry of a known name holds them (`{"epoch": 90, "state_dict": {…}, "optimizer": {…}}`), or the
//! top level is itself the state dict. Nothing is guessed: two such entries are an error that names both.

use super::error::{ErrorKind, quote};
use super::pickle::{Heap, Ref, Tensor, Value};

/// Top-level keys under which training scripts keep weights.
const KNOWN_ENTRIES: &[&str] = &["state_dict", "model", "model_state_dict", "model_ema"];

/// The names and tensors of the state dict: of the top-level entry `wanted`, or of the only one there is.
///
/// Values that are neither tensors nor opaque (numbers, text, `None`, nested dicts) are no weights and are left out.
pub(super) fn find<'h, 'p>(
    heap: &'h Heap<'p>,
    root: Ref,
    wanted: Option<&str>,
) -> Result<Vec<(&'p str, &'h Tensor<'p>)>, ErrorKind> {
    let Value::Dict(top) = heap.get(root) else {
        return Err(ErrorKind::unsupported(format!(
            "holds {} instead of a state dict; save model.state_dict() instead of the model",
            heap.get(root).kind()
        )));
    };
    if let Some(wanted) = wanted {
        return match lookup(heap, top, wanted).map(|at| heap.get(at)) {
            Some(Value::Dict(entry)) => weights(heap, entry),
            Some(other) => Err(ErrorKind::unsupported(format!(
                "its entry {} is {}, not a state dict",
                quote(wanted),
                other.kind()
            ))),
            None => Err(ErrorKind::unsupported(format!(
                "has no entry {}; it has {}",
                quote(wanted),
                keys(heap, top)
            ))),
        };
    }

    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    for &name in KNOWN_ENTRIES {
        if let Some(at) = lookup(heap, top, name)
            && let Value::Dict(entry) = heap.get(at)
            && entry.iter().any(|&(_, value)| matches!(heap.get(value), Value::Tensor(_) | Value::Opaque(_)))
            // One dict under two names is no ambiguity.
            && candidates.iter().all(|seen| seen.at != at)
        {
            candidates.push(Candidate { name, at, entry });
        }
    }
    match candidates.as_slice() {
        [] if top.iter().any(|&(_, value)| matches!(heap.get(value), Value::Tensor(_))) => weights(heap, top),
        [] => Err(ErrorKind::unsupported(format!("has no entry with weights; it has {}", keys(heap, top)))),
        [only] => weights(heap, only.entry),
        several => {
            Err(ErrorKind::Ambiguous { candidates: several.iter().map(|c| c.name.to_owned()).collect() })
        }
    }
}

/// A known top-level entry that could hold the weights.
struct Candidate<'h> {
    name: &'static str,
    at: Ref,
    entry: &'h [(Ref, Ref)],
}

/// The value of a key; as in Python, the last one set.
fn lookup(heap: &Heap<'_>, dict: &[(Ref, Ref)], key: &str) -> Option<Ref> {
    dict.iter()
        .rev()
        .find(|&&(k, _)| matches!(heap.get(k), &Value::Str(k) if k == key))
        .map(|&(_, value)| value)
}

fn weights<'h, 'p>(
    heap: &'h Heap<'p>,
    dict: &[(Ref, Ref)],
) -> Result<Vec<(&'p str, &'h Tensor<'p>)>, ErrorKind> {
    let mut found = Vec::new();
    for &(key, value) in dict {
        match (heap.get(key), heap.get(value)) {
            (&Value::Str(name), Value::Tensor(tensor)) => found.push((name, &**tensor)),
            (&Value::Str(name), Value::Opaque(global)) => {
                return Err(ErrorKind::unsupported(format!(
                    "{} is made by {global}, which this reader does not know; save plain tensors",
                    quote(name)
                )));
            }
            (other, Value::Tensor(_)) => {
                return Err(ErrorKind::damaged(format!(
                    "a tensor is named by {} instead of text",
                    other.kind()
                )));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The first keys of a dict, for messages.
fn keys(heap: &Heap<'_>, dict: &[(Ref, Ref)]) -> String {
    let names = dict.iter().filter_map(|&(key, _)| match heap.get(key) {
        Value::Str(name) => Some(quote(name)),
        _ => None,
    });
    let names: Vec<String> = names.take(12).collect();
    if names.is_empty() { "no named entries".into() } else { names.join(", ") }
}
