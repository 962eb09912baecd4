use super::{Linear, PatchGate, cell};
use crate::simd::{Simd, dispatch};
use crate::{Element, Error, Extent, Isa, Result, Team};
use std::ops::Range;

/// Margins of every cell: `[batch, grid.h, grid.w]`. `input` holds `batch` maps of size `map`, all pixels.
///
/// # Errors
/// When an operand is too small.
pub fn patch<E: Element>(
    isa: Isa,
    team: &mut Team,
    gate: &PatchGate,
    input: &[E],
    batch: usize,
    map: Extent,
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
    let parts = parts(gate.grid, map, c);
    let width = gate.grid.w;
    let lines = batch * gate.grid.h;
    let sample = |line: usize| &input[line / gate.grid.h * map.pixels() * c..][..map.pixels() * c];
    let part_of = |line: usize, part: usize| {
        let ys = cell(line % gate.grid.h, gate.grid.h, map.h);
        ys.start + ys.len() * part / parts..ys.start + ys.len() * (part + 1) / parts
    };
    let mut sums = [0.0; MOST_SUMS];
    let apart = parts > 1 && team.threads() > 1 && lines * parts * width <= MOST_SUMS;
    if apart {
        let sums = crate::Disjoint::new(&mut sums);
        team.for_each(lines * parts, |chunk, _| {
            // SAFETY: each part of a line is one chunk's.
            let sums = unsafe { sums.slice(chunk * width..(chunk + 1) * width) };
            let (line, part) = (chunk / parts, chunk % parts);
            cells_of_line(isa, gate, sample(line), map, part_of(line, part), sums);
        });
    }
    let margins = crate::Disjoint::new(margins);
    let finish = |line: usize, _worker: usize| {
        // SAFETY: each line of cells is one chunk's.
        let margins = unsafe { margins.slice(line * width..(line + 1) * width) };
        margins.fill(0.0);
        for part in 0..parts {
            let mut own = [0.0; MOST_SUMS];
            let sums = match apart {
                true => &sums[(line * parts + part) * width..][..width],
                false if parts == 1 => {
                    cells_of_line(isa, gate, sample(line), map, part_of(line, 0), margins);
                    break;
                }
                false => {
                    cells_of_line(isa, gate, sample(line), map, part_of(line, part), &mut own[..width]);
                    &own[..width]
                }
            };
            margins.iter_mut().zip(sums).for_each(|(margin, sum)| *margin += sum);
        }
        let ys = cell(line % gate.grid.h, gate.grid.h, map.h);
        for (gx, margin) in margins.iter_mut().enumerate() {
            let pixels = ys.len() * cell(gx, width, map.w).len();
            *margin = *margin / pixels as f32 + gate.bias;
        }
    };
    match apart {
        true => (0..lines).for_each(|line| finish(line, 0)),
        false => team.for_each(lines, finish),
    }
    Ok(())
}

/// Parts of all lines of cells of a sample, at least, and values that are worth a part of their own.
const PARTS: usize = 4;
const PART_VALUES: usize = 16384;
/// Most partial sums that are kept.
const MOST_SUMS: usize = 256;

/// Into how many parts each line of cells is cut.
fn parts(grid: Extent, map: Extent, c: usize) -> usize {
    let values = map.pixels() * c / grid.h.max(1);
    let most = if grid.w <= MOST_SUMS { values / PART_VALUES } else { 1 };
    PARTS.div_ceil(grid.h.max(1)).min(most).max(1)
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
    let output = crate::Disjoint::new(output);
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
