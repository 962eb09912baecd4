use super::{Linear, PatchGate, cell};
use crate::simd::{Simd, dispatch};
use crate::{Disjoint, Element, Error, Extent, Isa, PartSums, Result, Team};
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
    let sums = parts.reserve(lines * pieces * width)?;
    let shared = Disjoint::new(sums);
    team.for_each(lines * pieces, |chunk, _| {
        let (line, piece) = (chunk / pieces, chunk % pieces);
        let sample = &input[line / gate.grid.h * map.pixels() * c..][..map.pixels() * c];
        let ys = line_of(line);
        let ys = ys.start + ys.len() * piece / pieces..ys.start + ys.len() * (piece + 1) / pieces;
        // SAFETY: each piece of a line is one chunk's.
        let sums = unsafe { shared.slice(chunk * width..(chunk + 1) * width) };
        cells_of_line(isa, gate, sample, map, ys, sums);
    });
    let margins = Disjoint::new(margins);
    team.for_each(lines, |line, _| {
        // SAFETY: each line is one chunk's.
        let margins = unsafe { margins.slice(line * width..(line + 1) * width) };
        let sums = &sums[line * pieces * width..(line + 1) * pieces * width];
        margins.copy_from_slice(&sums[..width]);
        for piece in sums[width..].chunks_exact(width) {
            margins.iter_mut().zip(piece).for_each(|(margin, sum)| *margin += sum);
        }
        for (gx, margin) in margins.iter_mut().enumerate() {
            let pixels = line_of(line).len() * cell(gx, width, map.w).len();
            *margin = *margin / pixels as f32 + gate.bias;
        }
    });
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
    let mut total = quads.remainder().chunks_exact(c).map(|a| dot::<S, E>(a, b)).sum();
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

/// `Σ a·b`, in four interleaved partial sums.
#[inline(always)]
pub(crate) fn dot<S: Simd, E: Element>(a: &[E], b: &[f32]) -> f32 {
    let len = a.len().min(b.len());
    let (a, b) = (a.as_ptr(), b.as_ptr());
    // SAFETY: reads stay below `len` of both slices; `dispatch` vouches for the instruction set.
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        let mut at = 0;
        while at + 4 * S::LANES <= len {
            for (j, sum) in sums.iter_mut().enumerate() {
                let from = at + j * S::LANES;
                *sum = S::fma(S::load(a.add(from)), S::load_f32(b.add(from)), *sum);
            }
            at += 4 * S::LANES;
        }
        while at < len {
            let n = S::LANES.min(len - at);
            sums[0] = S::fma(S::load_first(a.add(at), n), S::load_first(b.add(at), n), sums[0]);
            at += n;
        }
        S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    }
}

/// `output[n] = relu?(weight · input[n] + bias)` for every row of `input`.
///
/// # Errors
/// When an operand's size does not fit the layer.
pub fn linear(isa: Isa, team: &mut Team, layer: &Linear, input: &[f32], output: &mut [f32]) -> Result<()> {
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
    // Small layers are not worth waking anybody.
    let pieces = (batch * layer.weight.len() / 65536 + 1).min(4 * team.threads()).min(c_out);
    let output = Disjoint::new(output);
    team.for_each(pieces, |piece, _| {
        for o in c_out * piece / pieces..c_out * (piece + 1) / pieces {
            for n in 0..batch {
                let sum = layer.bias[o]
                    + dot_of::<f32>(isa, &input[n * c_in..(n + 1) * c_in], &layer.weight[o * c_in..]);
                // SAFETY: feature `o` is one piece's.
                unsafe {
                    output.slice(n * c_out + o..n * c_out + o + 1)[0] =
                        if layer.relu { sum.max(0.0) } else { sum }
                };
            }
        }
    });
    Ok(())
}

dispatch! {
    fn dot_of<E>(a: &[E], b: &[f32]) -> f32 = dot
}
