use super::{Linear, PatchGate, cell};
use crate::simd::{Simd, dispatch};
use crate::{Element, Error, Extent, Isa, Result, Team};

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
    // Lines of cells are independent; a single cell (layer skipping) is cut along its pixels instead.
    let lines = batch * gate.grid.h;
    let margins = crate::Disjoint::new(margins);
    let line = |line: usize, _worker: usize| {
        let (n, gy) = (line / gate.grid.h, line % gate.grid.h);
        // SAFETY: each line of cells is one chunk's.
        let margins = unsafe { margins.slice(line * gate.grid.w..(line + 1) * gate.grid.w) };
        let sample = &input[n * map.pixels() * c..(n + 1) * map.pixels() * c];
        cells_of_line(isa, gate, sample, map, gy, margins);
    };
    team.for_each(lines, line);
    Ok(())
}

dispatch! {
    fn cells_of_line<E>(gate: &PatchGate, sample: &[E], map: Extent, gy: usize, margins: &mut [f32]) = cells_of_line_set
}

#[inline(always)]
fn cells_of_line_set<S: Simd, E: Element>(
    gate: &PatchGate,
    sample: &[E],
    map: Extent,
    gy: usize,
    margins: &mut [f32],
) {
    let c = gate.weight.len();
    let ys = cell(gy, gate.grid.h, map.h);
    for (gx, margin) in margins.iter_mut().enumerate() {
        let xs = cell(gx, gate.grid.w, map.w);
        let pixels = (ys.len() * xs.len()) as f32;
        let mut sum = 0.0;
        for y in ys.clone() {
            // A line of a cell's pixels is contiguous, the weights repeat.
            for pixel in sample[(y * map.w + xs.start) * c..(y * map.w + xs.end) * c].chunks_exact(c) {
                sum += dot::<S, E>(pixel, &gate.weight);
            }
        }
        *margin = sum / pixels + gate.bias;
    }
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
