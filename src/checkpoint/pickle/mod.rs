//! A pickle machine that executes nothing.
//!
//! A pickle is a program; Python's own reader runs whatever that program names. This one knows the opcodes that
//! `torch.save` writes (protocols 2 to 5) and builds plain data. It imports and calls nothing, so there is nothing to
//! escape from; the policy below is about *which files are believed*:
//!
//! * Calls to the few globals that state dicts are made of (ordered dicts, tensor and parameter rebuilders) are
//!   understood, from their arguments, as data.
//! * Any other global becomes `Value::Opaque` when it is called or instantiated: training scripts store
//!   arguments, schedulers and NumPy scalars beside the weights, and those must not make the weights unreadable. Where
//!   a *weight* turns out to be opaque, opening the file fails and names the global.
//! * A global of a module whose purpose is to run code, start processes or reach the network refuses the whole file as
//!   soon as it is named, even in an entry nobody asks for: no training script puts one there.
//!
//! Memory is bounded by the program's length: every opcode makes at most one value of fixed size, strings borrow from
//! the program, and nothing is sized by a number the program states.

mod call;
mod machine;
mod reader;
mod value;

use super::error::ErrorKind;
use machine::Machine;
pub(super) use value::{Heap, Ref, Tensor, Value};

/// The longest program that is read; a tensor takes about a hundred bytes of it.
pub(super) const MAX_PROGRAM_BYTES: u64 = 8 << 20;

/// Runs a program to its STOP; returns everything it built and the result.
pub(super) fn run(program: &[u8]) -> Result<(Heap<'_>, Ref), ErrorKind> {
    let mut machine = Machine::new(program);
    loop {
        let at = machine.position();
        match machine.step() {
            Ok(None) => {}
            Ok(Some(result)) => return Ok((machine.into_heap(), result)),
            Err(fault) => return Err(fault.at(at)),
        }
    }
}

/// What stopped the machine.
enum Fault {
    Damaged(String),
    Refused(String),
}

impl Fault {
    fn at(self, position: usize) -> ErrorKind {
        match self {
            Self::Damaged(detail) => ErrorKind::damaged(format!("data.pkl, byte {position}: {detail}")),
            Self::Refused(global) => {
                ErrorKind::Refused { program: "data.pkl".into(), global: super::error::one_line(&global) }
            }
        }
    }
}

fn damaged<T>(detail: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(detail.into()))
}
