use super::{Linear, PatchGate, cell};
use crate::simd::{Simd, dispatch};
use crate::{Buffer, Disjoint, Element, Error, Extent, Isa, PartSums, Result, Team};
use std::ops::Range;

/// Margins of every cell: `[batch, grid.h, grid.w]`. `input` holds `batch` maps of size `map`, all pixels.
///
/// # Errors
/// When an operand is too small, before anything is written, or memory for the sums of parts runs out.
pub fn patch<E: Element>(
    isa: Isa,
    team: &mut Team,
    parts: &mut PartSums,
    gate: &PatchGate,
    input: &[E],
    (batch, map): (usize, Extent),
    margins: &mut [f32],
) -> Result<()> {
    let (c, cells) = (gate.weight.len(), gate.grid.pixels());
    let size = |what, got, need| match got >= need {
        true => Ok(()),
        false => {
            let geometry =
                format!("{}×{}×{c}, {}×{} cells, batch {batch}", map.h, map.w, gate.grid.h, gate.grid.w);
            Err(Error::Size { op: "gate", what, got, need, geometry })
        }
    };
    size("input", input.len(), batch * map.pixels() * c)?;
    size("margins", margins.len(), batch * cells)?;
    size("map", map.h.min(map.w), gate.grid.h.min(gate.grid.w).max(1))?;
    // Lines of cells are independent; where there are few, each is cut into parts. How depends on the gate and the map
    // alone, so that neither threads nor batch leave a trace in the sums.
    let pieces = pieces(gate.grid, map, c);
    let width = gate.grid.w;
    let lines = batch * gate.grid.h;
    let line_of = |line: usize| cell(line % gate.grid.h, gate.grid.h, map.h);
    let shared = Disjoint::new(margins);
    let finish = |line: usize, margins: &mut [f32]| {
        for (gx, margin) in margins.iter_mut().enumerate() {
            let pixels = line_of(line).len() * cell(gx, width, map.w).len();
            *margin = *margin / pixels as f32 + gate.bias;
        }
    };
    let sample = |line: usize| &input[line / gate.grid.h * map.pixels() * c..][..map.pixels() * c];
    if pieces == 1 {
        team.for_each(lines, |line, _| {
            // SAFETY: each line is one chunk's.
            let margins = unsafe { shared.slice(line * width..(line + 1) * width) };
            cells_of_line(isa, gate, sample(line), map, line_of(line), margins);
            finish(line, margins);
        });
        return Ok(());
    }
    let sums = parts.reserve(lines * pieces * width)?;
    let of_pieces = Disjoint::new(sums);
    team.for_each(lines * pieces, |chunk, _| {
        let (line, piece) = (chunk / pieces, chunk % pieces);
        let ys = line_of(line);
        let ys = ys.start + ys.len() * piece / pieces..ys.start + ys.len() * (piece + 1) / pieces;
        // SAFETY: each piece of a line is one chunk's.
        let sums = unsafe { of_pieces.slice(chunk * width..(chunk + 1) * width) };
        cells_of_line(isa, gate, sample(line), map, ys, sums);
    });
    for line in 0..lines {
        // SAFETY: nobody else has any.
        let margins = unsafe { shared.slice(line * width..(line + 1) * width) };
        let sums = &sums[line * pieces * width..(line + 1) * pieces * width];
        margins.copy_from_slice(&sums[..width]);
        for piece in sums[width..].chunks_exact(width) {
            margins.iter_mut().zip(piece).for_each(|(margin, sum)| *margin += sum);
        }
        finish(line, margins);
    }
    Ok(())
}

/// Pieces of all lines of cells of a sample, at least, and values that are worth a piece of their own.
const PIECES: usize = 4;
const PIECE_VALUES: usize = 16384;

/// Into how many pieces each line of cells is cut.
fn pieces(grid: Extent, map: Extent, c: usize) -> usize {
    let values = map.pixels() * c / grid.h.max(1);
    PIECES.div_ceil(grid.h.max(1)).min(values / PIECE_VALUES).max(1)
}

dispatch! {
    /// Adds up `Σ weight · pixel` over the lines of pixels `ys`, cell by cell.
    fn cells_of_line<E>(gate: &PatchGate, sample: &[E], map: Extent, ys: Range<usize>, sums: &mut [f32]) = cells_of_line_set
}

#[inline(always)]
fn cells_of_line_set<S: Simd, E: Element>(
    gate: &PatchGate,
    sample: &[E],
    map: Extent,
    ys: Range<usize>,
    sums: &mut [f32],
) {
    let c = gate.weight.len();
    for (gx, sum) in sums.iter_mut().enumerate() {
        *sum = 0.0;
        let xs = cell(gx, gate.grid.w, map.w);
        for y in ys.clone() {
            // A line of a cell's pixels is contiguous, the weights repeat.
            *sum += dots::<S, E>(&sample[(y * map.w + xs.start) * c..(y * map.w + xs.end) * c], &gate.weight);
        }
    }
}

/// `Σ a·b` over all runs of `b.len()` values in `a`.
#[inline(always)]
fn dots<S: Simd, E: Element>(a: &[E], b: &[f32]) -> f32 {
    let c = b.len();
    let quads = a.chunks_exact(4 * c);
    let mut total = quads.remainder().chunks_exact(c).map(|a| dot::<S, E, f32, 1>([a], b, 0)[0]).sum();
    // SAFETY: reads stay below `4 · c` of a quad and `c` of `b`; `dispatch` vouches for the instruction set.
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        for quad in quads {
            let (a, b) = (quad.as_ptr(), b.as_ptr());
            let mut at = 0;
            while at + S::LANES <= c {
                let weight = S::load_f32(b.add(at));
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(S::load(a.add(j * c + at)), weight, *sum);
                }
                at += S::LANES;
            }
            if at < c {
                let weight = S::load_first(b.add(at), c - at);
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(S::load_first(a.add(j * c + at), c - at), weight, *sum);
                }
            }
        }
        total += S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
    }
    total
}

/// `Σ a·b` for every `a`, each in four interleaved partial sums. `b` is asked for so many values ahead.
#[inline(always)]
fn dot<S: Simd, A: Element, B: Element, const N: usize>(a: [&[A]; N], b: &[B], ahead: usize) -> [f32; N] {
    let len = a.iter().map(|a| a.len()).fold(b.len(), usize::min);
    let (a, b) = (a.map(<[A]>::as_ptr), b.as_ptr());
    // SAFETY: reads stay below `len` of all slices, and what is asked for is not read; `dispatch` vouches for the
    // instruction set.
    unsafe {
        let mut sums = [[S::splat(0.0); 4]; N];
        let mut at = 0;
        while at + 4 * S::LANES <= len {
            for j in 0..4 {
                let from = at + j * S::LANES;
                let weight = S::load(b.add(from));
                S::prefetch(b.wrapping_add(from + ahead).cast());
                for (sums, a) in sums.iter_mut().zip(a) {
                    sums[j] = S::fma(S::load(a.add(from)), weight, sums[j]);
                }
            }
            at += 4 * S::LANES;
        }
        while at < len {
            let n = S::LANES.min(len - at);
            let weight = S::load_first(b.add(at), n);
            for (sums, a) in sums.iter_mut().zip(a) {
                sums[0] = S::fma(S::load_first(a.add(at), n), weight, sums[0]);
            }
            at += n;
        }
        sums.map(|[a, b, c, d]| S::sum(S::add(S::add(a, b), S::add(c, d))))
    }
}

/// A fully connected layer's weights.
pub struct LinearWeights<E> {
    /// `[c_out, c_in]`.
    weight: Buffer<E>,
    /// `[c_out]`: what the weights of a feature are multiples of.
    unit: Vec<f32>,
    bias: Vec<f32>,
    relu: bool,
}

impl<E: Element> LinearWeights<E> {
    /// Weights of `layer`.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn pack(layer: &Linear) -> Result<Self> {
        Self::pack_in(layer, Buffer::zeroed)
    }

    /// As [`pack`](Self::pack), into memory that `zeroed` gives.
    pub(crate) fn pack_in(
        layer: &Linear,
        zeroed: impl FnOnce(usize, &str) -> Result<Buffer<E>>,
    ) -> Result<Self> {
        let mut weight = zeroed(layer.weight.len(), "weights of a fully connected layer")?;
        let unit = E::weight_units(&layer.weight, layer.c_out());
        let features = weight.as_mut_slice().chunks_exact_mut(layer.c_in());
        for ((to, from), unit) in features.zip(layer.weight.chunks_exact(layer.c_in())).zip(&unit) {
            to.iter_mut().zip(from).for_each(|(to, &w)| *to = E::from_f32(w / unit));
        }
        Ok(Self { weight, unit, bias: layer.bias.clone(), relu: layer.relu })
    }

    /// Input features.
    pub fn c_in(&self) -> usize {
        self.weight.len() / self.bias.len()
    }

    /// Output features.
    pub fn c_out(&self) -> usize {
        self.bias.len()
    }
}

/// Weights of a piece of a layer: less is not worth waking anybody.
const PIECE_WEIGHTS: usize = 65536;
/// Weights come from far away and are used once. They are asked for a page ahead: what the processor does on its own ends
/// with the page.
const AHEAD_BYTES: usize = 4096;

/// `output[n] = relu?(weight · input[n] + bias)` for every row of `input`.
///
/// # Errors
/// When an operand's size does not fit the layer.
pub fn linear<E: Element>(
    isa: Isa,
    team: &mut Team,
    layer: &LinearWeights<E>,
    input: &[f32],
    output: &mut [f32],
) -> Result<()> {
    let (c_in, c_out) = (layer.c_in(), layer.c_out());
    let batch = input.len() / c_in;
    if input.len() != batch * c_in || output.len() != batch * c_out {
        let geometry = format!("{c_in} → {c_out}, batch {batch}");
        return Err(Error::Size {
            op: "linear",
            what: "output",
            got: output.len(),
            need: batch * c_out,
            geometry,
        });
    }
    let weight = layer.weight.as_slice();
    let pieces = (batch * weight.len() / PIECE_WEIGHTS + 1).min(4 * team.threads()).min(c_out);
    let output = Disjoint::new(output);
    team.for_each(pieces, |piece, _| {
        for o in c_out * piece / pieces..c_out * (piece + 1) / pieces {
            let weight = &weight[o * c_in..(o + 1) * c_in];
            for (several, input) in input.chunks(SAMPLES * c_in).enumerate() {
                let ahead = if several == 0 { AHEAD_BYTES / size_of::<E>() } else { 0 };
                let sums = samples::<E>(isa, input, weight, ahead);
                for (i, sum) in sums.into_iter().enumerate().take(input.len() / c_in) {
                    let sum = layer.bias[o] + layer.unit[o] * sum;
                    let at = (several * SAMPLES + i) * c_out + o;
                    // SAFETY: feature `o` is one piece's.
                    let output = unsafe { output.slice(at..at + 1) };
                    output[0] = if layer.relu { sum.max(0.0) } else { sum };
                }
            }
        }
    });
    Ok(())
}

/// Samples that meet a weight when it is read.
const SAMPLES: usize = 4;

dispatch! {
    /// `Σ input·weight` of up to [`SAMPLES`] samples.
    fn samples<E>(input: &[f32], weight: &[E], ahead: usize) -> [f32; SAMPLES] = samples_set
}

#[inline(always)]
fn samples_set<S: Simd, E: Element>(input: &[f32], weight: &[E], ahead: usize) -> [f32; SAMPLES] {
    let c = weight.len();
    let sample = |i: usize| &input[i * c..(i + 1) * c];
    if input.len() == SAMPLES * c {
        return dot::<S, f32, E, SAMPLES>(std::array::from_fn(sample), weight, ahead);
    }
    let mut sums = [0.0; SAMPLES];
    for (i, sum) in sums.iter_mut().enumerate().take(input.len() / c) {
        [*sum] = dot::<S, f32, E, 1>([sample(i)], weight, if i == 0 { ahead } else { 0 });
    }
    sums
}
