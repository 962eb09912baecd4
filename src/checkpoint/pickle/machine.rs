//! The opcodes: a stack, its marks, a memo and a heap.

use std::collections::HashMap;

use super::reader::Reader;
use super::value::{Global, Heap, Ref, Value};
use super::{Fault, call, damaged};

pub(super) struct Machine<'p> {
    reader: Reader<'p>,
    heap: Heap<'p>,
    stack: Vec<Ref>,
    /// Stack heights at the open MARKs.
    marks: Vec<usize>,
    memo: HashMap<u32, Ref>,
}

impl<'p> Machine<'p> {
    pub(super) fn new(program: &'p [u8]) -> Self {
        Self {
            reader: Reader::new(program),
            heap: Heap::default(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    /// The byte of the program that the next step starts at.
    pub(super) fn position(&self) -> usize {
        self.reader.position()
    }

    pub(super) fn into_heap(self) -> Heap<'p> {
        self.heap
    }

    /// Executes one opcode; the result at STOP. Numbers are those of CPython's `pickletools`.
    pub(super) fn step(&mut self) -> Result<Option<Ref>, Fault> {
        match self.reader.byte()? {
            0x80 => match self.reader.byte()? {
                2..=5 => {}
                version => return damaged(format!("pickle protocol {version} is not 2 to 5")),
            },
            0x95 => drop(self.reader.array::<8>()?), // FRAME: a hint for buffered readers
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),

            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool),
            b'K' => {
                let byte = self.reader.byte()?;
                self.push(Value::Int(byte.into()));
            }
            b'M' => {
                let bytes = self.reader.array()?;
                self.push(Value::Int(u16::from_le_bytes(bytes).into()));
            }
            b'J' => {
                let bytes = self.reader.array()?;
                self.push(Value::Int(i32::from_le_bytes(bytes).into()));
            }
            0x8a => {
                let length = self.reader.length1()?;
                let bytes = self.reader.take(length)?;
                self.push(long(bytes));
            }
            0x8b => {
                let length = self.reader.length4()?;
                let bytes = self.reader.take(length)?;
                self.push(long(bytes));
            }
            b'G' => {
                self.reader.array::<8>()?;
                self.push(Value::Number);
            }

            // Text: SHORT_BINUNICODE, BINUNICODE, BINUNICODE8.
            opcode @ (0x8c | b'X' | 0x8d) => {
                let length = match opcode {
                    0x8c => self.reader.length1()?,
                    b'X' => self.reader.length4()?,
                    _ => self.reader.length8()?,
                };
                let text = self.reader.text(length)?;
                self.push(Value::Str(text));
            }
            // Bytes: SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8.
            opcode @ (b'C' | b'B' | 0x8e | 0x96) => {
                let length = match opcode {
                    b'C' => self.reader.length1()?,
                    b'B' => self.reader.length4()?,
                    _ => self.reader.length8()?,
                };
                self.reader.take(length)?;
                self.push(Value::Bytes);
            }

            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items));
            }
            opcode @ 0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let Some(start) = self.stack.len().checked_sub(count).filter(|&at| at >= self.floor()) else {
                    return damaged("the stack is empty");
                };
                let items = self.stack.split_off(start);
                self.push(Value::Tuple(items));
            }
            b']' => self.push(Value::List(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            // Sets hold nothing that a state dict needs: EMPTY_SET, ADDITEMS, FROZENSET.
            0x8f => self.push(Value::Opaque(Global::new("builtins", "set"))),
            0x90 => drop(self.pop_mark()?),
            0x91 => {
                self.pop_mark()?;
                self.push(Value::Opaque(Global::new("builtins", "frozenset")));
            }

            b'q' => {
                let slot = self.reader.byte()?.into();
                self.memoize(slot)?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.reader.array()?);
                self.memoize(slot)?;
            }
            0x94 => {
                let slot = u32::try_from(self.memo.len()).unwrap_or(u32::MAX);
                self.memoize(slot)?;
            }
            b'h' => {
                let slot = self.reader.byte()?.into();
                self.recall(slot)?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.reader.array()?);
                self.recall(slot)?;
            }

            b'c' => {
                let module = self.reader.line()?;
                let name = self.reader.line()?;
                self.push_global(Global::new(module, name))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.heap.get(module), self.heap.get(name)) {
                    (&Value::Str(module), &Value::Str(name)) => {
                        self.push_global(Global::new(module, name))?
                    }
                    _ => return damaged("a global is named by something that is not text"),
                }
            }
            b'R' => {
                let arguments = self.pop()?;
                let callee = self.pop()?;
                let value = call::reduce(&self.heap, callee, arguments)?;
                self.push(value);
            }
            0x81 => {
                self.pop()?;
                let class = self.pop()?;
                let value = call::instantiate(&self.heap, class)?;
                self.push(value);
            }
            0x92 => {
                self.pop()?;
                self.pop()?;
                let class = self.pop()?;
                let value = call::instantiate(&self.heap, class)?;
                self.push(value);
            }
            // BUILD hands attributes to an object, such as a state dict's `_metadata`; none of them is a weight.
            b'b' => {
                self.pop()?;
                self.top()?;
            }
            b'Q' => {
                let id = self.pop()?;
                let value = call::storage(&self.heap, id)?;
                self.push(value);
            }
            other => return damaged(format!("opcode {other:#04x} is not one that torch.save writes")),
        }
        Ok(None)
    }

    fn push(&mut self, value: Value<'p>) {
        let made = self.heap.add(value);
        self.stack.push(made);
    }

    fn push_global(&mut self, global: Global<'p>) -> Result<(), Fault> {
        if call::is_dangerous(global) {
            return Err(Fault::Refused(global.to_string()));
        }
        self.push(Value::Global(Box::new(global)));
        Ok(())
    }

    /// The stack height that pops stop at: the innermost MARK.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Ref, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Result<Ref, Fault> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.floor() => Ok(top),
            _ => damaged("the stack is empty"),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Ref>, Fault> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => damaged("no mark is open"),
        }
    }

    fn memoize(&mut self, slot: u32) -> Result<(), Fault> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), Fault> {
        match self.memo.get(&slot) {
            Some(&value) => {
                self.stack.push(value);
                Ok(())
            }
            None => damaged(format!("memo slot {slot} is empty")),
        }
    }

    /// Appends to the list on top. Opaque objects take items too (subclasses of list) and stay opaque.
    fn append(&mut self, items: &[Ref]) -> Result<(), Fault> {
        let top = self.top()?;
        match self.heap.get_mut(top) {
            Value::List(list) => list.extend_from_slice(items),
            Value::Opaque(_) => {}
            other => return damaged(format!("items are appended to {}", other.kind())),
        }
        Ok(())
    }

    /// Sets alternating keys and values in the dict on top, or in an opaque object.
    fn set_items(&mut self, items: &[Ref]) -> Result<(), Fault> {
        let (pairs, rest) = items.as_chunks();
        if !rest.is_empty() {
            return damaged("a key has no value");
        }
        let top = self.top()?;
        match self.heap.get_mut(top) {
            Value::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Value::Opaque(_) => {}
            other => return damaged(format!("items are set in {}", other.kind())),
        }
        Ok(())
    }
}

/// A little-endian two's complement integer of any length; beyond 64 bits it is only a number.
fn long<'p>(bytes: &[u8]) -> Value<'p> {
    let Some(&last) = bytes.last() else { return Value::Int(0) };
    if bytes.len() > 8 {
        return Value::Number;
    }
    let mut extended = [if last >= 0x80 { 0xff } else { 0 }; 8];
    extended[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(extended))
}
