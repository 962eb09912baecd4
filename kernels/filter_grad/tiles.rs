//! filter_grad sample after sample. In bfloat16 on tiles both operands are laid out as tiles read them, for as many samples as
//! fit the second-level cache, and multiplied then: the sum, often larger than both, is met once for all of these samples.
//!
//! The reduction runs over positions: output pixels, and what lies between them in a line as long as the input's, where the
//! gradient is zero. So a tap is a shift. With a stride, each phase of the input is a map of its own.

#![expect(
    clippy::extra_unused_type_parameters,
    reason = "`dispatch` hands on an element type; here it is known"
)]

use super::FilterGrad;
use crate::error::require;
use crate::simd::tiles::{Product, SIDE, Tiles, step_len};
use crate::simd::{Simd, dispatch};
use crate::{Buffer, ConvGeometry, DType, Element, Error, Isa, Result};
use half::bf16;

/// Samples are taken together while their operands take no more.
const WAITING_BYTES: usize = 1 << 20;
/// Values of a line of cache.
const LINE: usize = 32;
/// Positions that are met in a step.
const DEPTH: usize = step_len::<bf16>();

/// Adds the parts of one sample after another, those in bfloat16 some together where there are tiles. It is memory, too: one for
/// each thread is kept, whatever is summed.
#[derive(Default)]
pub struct Summing {
    waiting: Option<Waiting>,
    /// Inputs `[phase, channel, position]`, channels and positions filled up with zeros.
    inputs: Option<Buffer<bf16>>,
    /// Gradients `[panel of 16 channels, pair of positions, channel, 2]`.
    grads: Option<Buffer<bf16>>,
    sums: Option<Buffer<f32>>,
    offsets: Vec<usize>,
}

/// What waits to be multiplied.
struct Waiting {
    shape: Shape,
    samples: usize,
}

/// How a convolution's operands lie.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    geometry: ConvGeometry,
    /// Positions of a line, and lines, of one phase.
    line: usize,
    lines: usize,
    /// Phases along a side.
    phases: usize,
    /// Steps of the reduction over a sample.
    steps: usize,
    /// Values from a channel's sample to its next.
    span: usize,
    /// Samples that there is room for.
    room: usize,
    /// Values from channel to channel: an odd number of cache lines.
    pitch: usize,
}

impl Shape {
    fn new(geometry: ConvGeometry) -> Self {
        let ConvGeometry { input, output, kernel, stride, c_in, c_out, .. } = geometry;
        let (line, lines) = (input.w.div_ceil(stride), input.h.div_ceil(stride));
        let phases = kernel.min(stride);
        let steps = (output.h * line).div_ceil(DEPTH);
        let furthest = (kernel - 1) / stride * (line + 1);
        let span = (steps * DEPTH + furthest).max(lines * line).next_multiple_of(LINE);
        let channels = phases * phases * c_in.next_multiple_of(SIDE);
        let sample = 2 * (channels * span + c_out.next_multiple_of(SIDE) * steps * DEPTH);
        let room = (WAITING_BYTES / sample).max(1);
        let pitch = room * span;
        let pitch = pitch + if (pitch / LINE).is_multiple_of(2) { LINE } else { 0 };
        Self { geometry, line, lines, phases, steps, span, room, pitch }
    }

    /// Channels of one phase, filled up.
    fn channels(&self) -> usize {
        self.geometry.c_in.next_multiple_of(SIDE)
    }

    /// Panels of output channels.
    fn panels(&self) -> usize {
        self.geometry.c_out.div_ceil(SIDE)
    }

    /// Values of a panel.
    fn panel(&self) -> usize {
        self.room * self.steps * DEPTH * SIDE
    }

    fn inputs(&self) -> usize {
        self.phases * self.phases * self.channels() * self.pitch
    }
}

impl Summing {
    /// Adds one sample's part to `call.sum`, now or with [`finish`](Self::finish); until then every call is of the same
    /// convolution and sum.
    ///
    /// # Errors
    /// As for [`run`](super::run), samples of another convolution that have not been finished, and where memory runs out.
    pub fn add<E: Element>(&mut self, isa: Isa, call: FilterGrad<'_, E>) -> Result<()> {
        if E::DTYPE != DType::Bf16 || !isa.has_tiles_of(E::DTYPE) {
            return super::run(isa, call);
        }
        call.check()?;
        let samples = match &self.waiting {
            Some(Waiting { shape, .. }) if shape.geometry != call.geometry => {
                let geometry = format!("{}, not {}", shape.geometry, call.geometry);
                let why = "samples of another convolution wait to be finished";
                return Err(Error::Geometry { op: "filter_grad", why, geometry });
            }
            Some(Waiting { samples, .. }) => *samples,
            None => 0,
        };
        let shape = Shape::new(call.geometry);
        let inputs = room(&mut self.inputs, shape.inputs(), "inputs of a gradient")?;
        let grads = room(&mut self.grads, shape.panels() * shape.panel(), "gradients")?;
        lay_inputs::<bf16>(isa, &shape, samples, bytemuck::cast_slice(call.input), inputs);
        lay_grads::<bf16>(isa, &shape, samples, bytemuck::cast_slice(call.grad), grads);
        self.waiting = Some(Waiting { shape, samples: samples + 1 });
        if samples + 1 == shape.room {
            self.finish(isa, call.sum)?;
        }
        Ok(())
    }

    /// Adds what has not been added yet.
    ///
    /// # Errors
    /// A sum that is too small, and where memory runs out.
    pub fn finish(&mut self, isa: Isa, sum: &mut [f32]) -> Result<()> {
        let Some(Waiting { shape, samples }) = self.waiting.take() else { return Ok(()) };
        require("filter_grad", "sum", sum.len(), &[shape.geometry.weights()], &shape.geometry)?;
        let (Some(inputs), Some(grads)) = (&self.inputs, &self.grads) else { return Ok(()) };
        let sums = room(&mut self.sums, 4 * SIDE * SIDE, "sums of tiles")?;
        let g = shape.geometry;
        let tiles = Tiles::new(isa);
        let panel = |j: usize| grads.as_slice()[j.min(shape.panels() - 1) * shape.panel()..].as_ptr();
        for (j, column) in (0..g.c_out).step_by(2 * SIDE).enumerate() {
            let columns = (g.c_out - column).min(2 * SIDE);
            let b = std::array::from_fn(|i| panel(2 * j + i));
            for (r, s) in (0..g.kernel * g.kernel).map(|tap| (tap / g.kernel, tap % g.kernel)) {
                let phase = r % g.stride * shape.phases + s % g.stride;
                let shift = r / g.stride * shape.line + s / g.stride;
                self.offsets.clear();
                let starts = (0..samples).map(|sample| sample * shape.span + shift);
                let steps = starts.flat_map(|start| (0..shape.steps).map(move |step| start + step * DEPTH));
                self.offsets.extend(steps.map(|value| 2 * value));
                for row in (0..g.c_in).step_by(2 * SIDE) {
                    let first = |row: usize| {
                        inputs.as_slice()[(phase * shape.channels() + row) * shape.pitch..].as_ptr()
                    };
                    let two_rows = row + SIDE < g.c_in;
                    let product = Product {
                        a: [first(row), if two_rows { first(row + SIDE) } else { first(row) }],
                        offsets: self.offsets.as_ptr(),
                        pitch: 2 * shape.pitch,
                        two_rows,
                        asked: [(0, SIDE); 2],
                        b,
                        columns: columns.div_ceil(SIDE),
                        steps: self.offsets.len(),
                        sums: sums.as_mut_ptr(),
                        adds: false,
                        turns: std::ptr::null(),
                        begin: [std::ptr::null(); 2],
                        ahead: std::ptr::null(),
                        lines: 0,
                    };
                    // SAFETY: channels are filled up to whole tiles, and a channel's positions to where the last tap of the
                    // last step reads; panels hold as many steps; there is room for four tiles of sums.
                    unsafe { tiles.multiply(&product) };
                    let start = ((r * g.kernel + s) * g.c_in + row) * g.c_out + column;
                    let rows = (g.c_in - row).min(2 * SIDE);
                    let width = columns.next_multiple_of(SIDE);
                    add::<f32>(isa, sums, (width, columns), &mut sum[start..], (g.c_out, rows));
                }
            }
        }
        Ok(())
    }
}

/// As many values, what they are left open.
fn room<'a, E: Element>(buffer: &'a mut Option<Buffer<E>>, len: usize, what: &str) -> Result<&'a mut [E]> {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < len) {
        *buffer = None;
    }
    let buffer = match buffer {
        Some(buffer) => buffer,
        None => buffer.insert(Buffer::zeroed(len, what)?),
    };
    Ok(&mut buffer.as_mut_slice()[..len])
}

dispatch! {
    fn add<E>(sums: &[f32], width: (usize, usize), to: &mut [f32], rows: (usize, usize)) = add_set
}

/// Adds `rows` rows of sums, `columns` of each `width`, to rows that are `pitch` apart.
#[inline(always)]
fn add_set<S: Simd, E: Element>(
    sums: &[f32],
    (width, columns): (usize, usize),
    to: &mut [f32],
    (pitch, rows): (usize, usize),
) {
    for (sums, to) in sums.chunks_exact(width).zip(to.chunks_mut(pitch)).take(rows) {
        match columns == 2 * SIDE {
            true => to[..2 * SIDE].iter_mut().zip(&sums[..2 * SIDE]).for_each(|(to, sum)| *to += sum),
            false => to[..columns].iter_mut().zip(sums).for_each(|(to, sum)| *to += sum),
        }
    }
}

/// Sixteen channels at two positions: one is the lower half of each word, the next the upper.
type Pair = [u32; SIDE];

/// The first of sixteen channels at two positions; the rest, and what is outside, is zero.
#[inline(always)]
fn pair(two: [&[bf16]; 2]) -> Pair {
    let [a, b] = two.map(|values| match values.first_chunk::<SIDE>() {
        Some(values) => *values,
        None => {
            let mut filled = [bf16::ZERO; SIDE];
            filled[..values.len()].copy_from_slice(values);
            filled
        }
    });
    std::array::from_fn(|i| u32::from(a[i].to_bits()) | u32::from(b[i].to_bits()) << 16)
}

/// The lower halves of two rows in turns, or the upper.
#[inline(always)]
fn turns(a: &Pair, b: &Pair, from: usize) -> Pair {
    let (a, b) = (&a[from..from + SIDE / 2], &b[from..from + SIDE / 2]);
    [a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3], a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]]
}

/// Rows become columns: four times, rows eight apart take turns.
#[inline(always)]
fn transposed(mut rows: [Pair; SIDE]) -> [Pair; SIDE] {
    for _ in 0..4 {
        let before = rows;
        for (i, two) in rows.chunks_exact_mut(2).enumerate() {
            let (a, b) = (&before[i], &before[i + SIDE / 2]);
            (two[0], two[1]) = (turns(a, b, 0), turns(a, b, SIDE / 2));
        }
    }
    rows
}

dispatch! {
    fn lay_inputs<E>(shape: &Shape, sample: usize, input: &[bf16], to: &mut [bf16]) = lay_inputs_set
}

#[inline(always)]
fn lay_inputs_set<S: Simd, E: Element>(shape: &Shape, sample: usize, input: &[bf16], to: &mut [bf16]) {
    let &Shape { geometry: g, line, lines, phases, span, pitch, .. } = shape;
    for (phase, first) in
        (0..phases * phases).flat_map(|phase| (0..span).step_by(DEPTH).map(move |first| (phase, first)))
    {
        // Where the channels of these positions lie.
        let mut at = [None; DEPTH];
        for (i, at) in at.iter_mut().enumerate() {
            let (y, x) = ((first + i) / line, (first + i) % line);
            let (row, column) = (y * g.stride + phase / phases, x * g.stride + phase % phases);
            let inside = y < lines && row < g.input.h && column < g.input.w;
            *at = inside.then_some((row * g.input.w + column) * g.c_in);
        }
        for channel in (0..g.c_in).step_by(SIDE) {
            let n = (g.c_in - channel).min(SIDE);
            let values = |i: usize| at[i].map_or(&[][..], |at| &input[at + channel..][..n]);
            let mut pairs = [[0; SIDE]; SIDE];
            for (i, to) in pairs.iter_mut().enumerate() {
                *to = pair([values(2 * i), values(2 * i + 1)]);
            }
            let start = (phase * shape.channels() + channel) * pitch + sample * span + first;
            for (i, pair) in transposed(pairs).iter().enumerate() {
                let to = &mut to[start + i * pitch..][..DEPTH];
                to.copy_from_slice(bytemuck::cast_slice(pair));
            }
        }
    }
}

dispatch! {
    fn lay_grads<E>(shape: &Shape, sample: usize, grad: &[bf16], to: &mut [bf16]) = lay_grads_set
}

#[inline(always)]
fn lay_grads_set<S: Simd, E: Element>(shape: &Shape, sample: usize, grad: &[bf16], to: &mut [bf16]) {
    let &Shape { geometry: g, line, steps, .. } = shape;
    for position in (0..steps * DEPTH).step_by(2) {
        let at = [position, position + 1].map(|position| {
            let (y, x) = (position / line, position % line);
            (y < g.output.h && x < g.output.w).then_some((y * g.output.w + x) * g.c_out)
        });
        for (j, channel) in (0..g.c_out).step_by(SIDE).enumerate() {
            let n = (g.c_out - channel).min(SIDE);
            let values = |at: Option<usize>| at.map_or(&[][..], |at| &grad[at + channel..][..n]);
            let start = j * shape.panel() + (sample * steps * DEPTH + position) * SIDE;
            to[start..][..2 * SIDE].copy_from_slice(bytemuck::cast_slice(&pair(at.map(values))));
        }
    }
}
