//! The bytes of a program, taken in order and never past their end.

use super::{Fault, damaged};

pub(super) struct Reader<'p> {
    program: &'p [u8],
    position: usize,
}

impl<'p> Reader<'p> {
    pub(super) fn new(program: &'p [u8]) -> Self {
        Self { program, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn byte(&mut self) -> Result<u8, Fault> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        match self.program[self.position..].first_chunk() {
            Some(&bytes) => {
                self.position += N;
                Ok(bytes)
            }
            None => damaged("the program ends early"),
        }
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'p [u8], Fault> {
        match self.program[self.position..].get(..length) {
            Some(bytes) => {
                self.position += length;
                Ok(bytes)
            }
            None => damaged("the program ends early"),
        }
    }

    pub(super) fn text(&mut self, length: usize) -> Result<&'p str, Fault> {
        match std::str::from_utf8(self.take(length)?) {
            Ok(text) => Ok(text),
            Err(_) => damaged("text is not UTF-8"),
        }
    }

    /// Text up to a line feed, which is consumed.
    pub(super) fn line(&mut self) -> Result<&'p str, Fault> {
        let Some(length) = self.program[self.position..].iter().position(|&b| b == b'\n') else {
            return damaged("the program ends early");
        };
        let line = self.text(length)?;
        self.position += 1;
        Ok(line)
    }

    pub(super) fn length1(&mut self) -> Result<usize, Fault> {
        self.byte().map(usize::from)
    }

    pub(super) fn length4(&mut self) -> Result<usize, Fault> {
        self.array().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    pub(super) fn length8(&mut self) -> Result<usize, Fault> {
        // A length that does not fit is longer than any program.
        self.array().map(|bytes| usize::try_from(u64::from_le_bytes(bytes)).unwrap_or(usize::MAX))
    }
}
