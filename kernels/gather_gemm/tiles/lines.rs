//! Lines of maps that are copied, with zeros around: there neighbouring output pixels lie evenly.

use super::super::GatherGemm;
use super::super::filter::place_in_blocks;
use super::super::rows::Cursor;
use super::super::scratch::Scratch;
use super::operand::{Operand, Window, copy_all, pitch};
use crate::simd::tiles::{SIDE, step_len};
use crate::simd::{Simd, dispatch};
use crate::{ConvGeometry, Element, Isa};
use std::ops::Range;

/// Consecutive lines of one map.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    sample: usize,
    /// First output line that is computed from them, and the last.
    first: usize,
    last: usize,
    /// Where the first line lies, in lines.
    place: usize,
}

/// Most rows of tiles for each row of the block, and where channels are too few to gather them well.
const MOST_WASTE: f32 = 1.7;
const MOST_WASTE_OF_FEW: f32 = 2.6;

/// Positions of a copied line, whole strides.
fn width(g: &ConvGeometry) -> usize {
    ((g.output.w - 1) * g.stride + g.kernel).next_multiple_of(g.stride)
}

/// Copies the lines of the maps that the rows read, with zeros around; a window is sixteen neighbouring positions there, or
/// every `stride`th one. With `lines` a position has no more than its `channels`, and every kernel row begins a step. False
/// where that does not pay or there is no room.
pub(super) fn map<E: Element>(
    isa: Isa,
    g: &ConvGeometry,
    call: &GatherGemm<'_, [E]>,
    block: (usize, usize),
    (channels, lines): (&Range<usize>, bool),
    scratch: &mut Scratch<E>,
) -> bool {
    let len = channels.len();
    let pitch = if lines { len * size_of::<E>() } else { pitch::<E>(len) };
    let width = width(g);
    let run = if lines { (g.kernel * len).next_multiple_of(step_len::<E>()) } else { step_len::<E>() };
    let Scratch { gathered, operand, .. } = scratch;
    let room = gathered.len() * size_of::<E>();
    let base = gathered.as_mut_slice().as_mut_ptr();
    let pays = match operand.mapped {
        Some((of, pays)) if of == len => pays,
        _ => operand.windows_in_lines(g, call, block, base, (pitch, run, room)),
    };
    operand.mapped = Some((len, pays));
    if !pays {
        return false;
    }
    let mut end = base;
    for strip in &operand.strips {
        let to = base.wrapping_byte_add(strip.place * width * pitch);
        copy_lines(isa, g, call.input, strip, (channels, pitch), to);
        end = to.wrapping_byte_add(strip.lines(g) * width * pitch);
    }
    // SAFETY: there is room for a run behind the last line.
    unsafe { end.write_bytes(0, run) };
    operand.pitch = g.stride * pitch;
    operand.offsets.clear();
    if lines {
        let row = |r: usize| (0..run / step_len::<E>()).map(move |step| r * width * pitch + step * 64);
        operand.offsets.extend((0..g.kernel).flat_map(row));
        return true;
    }
    let taps = g.kernel * g.kernel;
    for block in (0..len).step_by(step_len::<E>()) {
        let tap = |tap: usize| (tap / g.kernel * width + tap % g.kernel) * pitch + block * size_of::<E>();
        operand.offsets.extend((0..taps).map(tap));
        let place = |tap: usize| place_in_blocks::<E>(tap, block, taps, len);
        debug_assert_eq!(place(1) - place(0), step_len::<E>());
    }
    true
}

impl Lines {
    /// Number of lines.
    fn lines(&self, g: &ConvGeometry) -> usize {
        (self.last - self.first) * g.stride + g.kernel
    }
}

impl<E: Element> Operand<E> {
    /// The windows of a block in lines that are copied to `base`, their positions `pitch` bytes apart. False where copying
    /// does not pay, or there is no `room` for it and a `run` behind.
    fn windows_in_lines(
        &mut self,
        g: &ConvGeometry,
        call: &GatherGemm<'_, [E]>,
        (first_row, rows): (usize, usize),
        base: *const E,
        (pitch, run, room): (usize, usize, usize),
    ) -> bool {
        let active = call.active.rows;
        let width = width(g);
        let Self { windows, at, strips, .. } = self;
        windows.clear();
        at.clear();
        strips.clear();
        let mut cursor = Cursor::new(g.output, active.pixel(first_row));
        let mut lines = 0;
        let mut start = 0;
        for row in 0..rows {
            let (n, y, x) = cursor.locate(active.pixel(first_row + row));
            match strips.last_mut() {
                Some(strip) if strip.sample == n && (y - strip.last) * g.stride < g.kernel => {
                    lines += (y - strip.last) * g.stride;
                    strip.last = y;
                }
                _ => {
                    strips.push(Lines { sample: n, first: y, last: y, place: lines });
                    lines += g.kernel;
                }
            }
            let strip = strips[strips.len() - 1];
            let position = (strip.place + (y - strip.first) * g.stride) * width / g.stride + x;
            match windows.last_mut() {
                Some(window) if position < start + SIDE => window.rows += 1,
                _ => {
                    start = position;
                    let start = base.wrapping_byte_add(position * g.stride * pitch);
                    windows.push(Window { start, first: row as u32, rows: 1 });
                }
            }
            at.push((position - start + SIDE * ((windows.len() - 1) % 2)) as u8);
        }
        let waste = if pitch < 64 { MOST_WASTE_OF_FEW } else { MOST_WASTE };
        let tall = (windows.len() * SIDE) as f32 > waste * rows as f32 + SIDE as f32;
        // A tile reads behind the last line.
        let needed = (lines * width + SIDE * g.stride) * pitch + run * size_of::<E>();
        needed <= room && !tall && 4 * lines * width <= 3 * rows * g.kernel * g.kernel
    }
}

dispatch! {
    /// Copies channels of the lines that a strip reads, with zeros around, positions so many bytes apart.
    fn copy_lines<E>(
        g: &ConvGeometry,
        input: &[E],
        strip: &Lines,
        channels: (&Range<usize>, usize),
        to: *mut E,
    ) = copy_lines_set
}

#[inline(always)]
fn copy_lines_set<S: Simd, E: Element>(
    g: &ConvGeometry,
    input: &[E],
    strip: &Lines,
    (channels, pitch): (&Range<usize>, usize),
    to: *mut E,
) {
    let width = width(g);
    for line in 0..strip.lines(g) {
        let to = to.wrapping_byte_add(line * width * pitch);
        let y = (strip.first * g.stride + line).wrapping_sub(g.pad_top);
        let inside = if y < g.input.h { g.input.w.min(width - g.pad_left) } else { 0 };
        // SAFETY: there is room for as many lines.
        unsafe {
            to.cast::<u8>().write_bytes(0, g.pad_left * pitch);
            let to = to.byte_add(g.pad_left * pitch);
            if inside > 0 {
                let first = strip.sample * g.input.pixels() + y * g.input.w;
                let from = input[first * g.c_in..][..inside * g.c_in].as_ptr().add(channels.start);
                let len = channels.len();
                macro_rules! pixels {
                    ($len:expr) => {
                        for x in 0..inside {
                            copy_all(from.add(x * g.c_in), to.byte_add(x * pitch), $len);
                        }
                    };
                }
                // Lengths that the compiler knows are copied by moves alone.
                match len {
                    16 => pixels!(16),
                    24 => pixels!(24),
                    _ => pixels!(len),
                }
            }
            let right = width - g.pad_left - inside;
            to.byte_add(inside * pitch).cast::<u8>().write_bytes(0, right * pitch);
        }
    }
}
