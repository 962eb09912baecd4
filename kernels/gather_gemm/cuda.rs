//! The host's side of `gather_gemm.cu`: weights in the layout that the kernels read, and launches.

use super::filter::{Table, bias_table};
use super::{FilterSpec, GatherGemm, Placement};
use crate::cuda::params::{GatherGemmParams, Window};
use crate::cuda::{Buffer, Channels, CudaQueue, Filter, Rows, check};
use crate::error::require;
use crate::{ActiveSet, Error, Result};

/// Columns of the narrowest tile. Groups of a convolution share a tile as long as they fit: it costs nothing.
const TILE_COLUMNS: usize = 64;
/// Largest side of a map: kernels keep coordinates in 16 bits.
const MOST_PIXELS: usize = 16_000;
/// Elements of the longest vector that kernels load.
const VECTOR: usize = 8;

/// A convolution's weights, in f32, laid out for the device.
#[derive(Clone, Debug)]
pub struct Packed {
    /// `[c_out][weight_pitch]`, a row being `[kernel_h][kernel_w][group_in]`.
    pub weight: Vec<f32>,
    /// `[classes][bias_pitch]`, or `[c_out]` with one class.
    pub bias: Vec<f32>,
    /// `[c_out]`.
    pub output_constant: Option<Vec<f32>>,
    shape: GatherGemmParams,
}

impl Packed {
    /// Packs weights for an input whose pixels are `pixel` elements apart: at least `c_in`, more where pixels are padded.
    ///
    /// Groups that are narrower than a tile are merged, with zeros off the diagonal. Where all taps of a kernel row lie
    /// inside and one behind the other in memory (a stem behind a border), the row becomes one tap: it reads whole vectors,
    /// of which the last may reach up to seven elements behind the last pixel. Those count for nothing but have to be there
    /// and finite.
    ///
    /// # Errors
    /// When a size does not fit the geometry, the geometry is impossible or its sizes do not fit 32 bits.
    pub fn new(spec: &FilterSpec<'_>, pixel: usize) -> Result<Self> {
        let g = spec.geometry;
        spec.check("filter")?;
        require("filter", "an input pixel", pixel, &[g.c_in], &g)?;
        let taps = g.kernel * g.kernel;
        let merged = (1..=g.groups)
            .filter(|merged| g.groups.is_multiple_of(*merged) && merged * g.group_out() <= TILE_COLUMNS)
            .max()
            .unwrap_or(1);
        let inside = (g.output.h - 1) * g.stride + g.kernel <= g.input.h
            && (g.output.w - 1) * g.stride + g.kernel <= g.input.w
            && (g.pad_top, g.pad_left) == (0, 0);
        let folded = g.groups == 1 && g.kernel > 1 && inside && g.c_in < VECTOR;
        // Elements of a tap, and from one of the convolution's taps to the next in a row of weights.
        let (run, kernel_w, apart) = match folded {
            true => ((g.kernel * pixel).next_multiple_of(VECTOR), 1, pixel),
            false => (merged * g.group_in(), g.kernel, merged * g.group_in()),
        };
        let row = g.kernel * kernel_w * run;
        let weight_pitch = row.next_multiple_of(VECTOR);
        let sides = [g.input.h, g.input.w, g.output.h, g.output.w].into_iter().max().unwrap_or(0);
        let (side, elements) = (sides.saturating_add(g.kernel), weight_pitch.saturating_mul(g.c_out));
        if side > MOST_PIXELS || elements.max(pixel.saturating_mul(side)) >= 1 << 31 {
            let why = "maps above 16000 pixels a side and weights above 2³¹ elements are not supported";
            return Err(Error::Geometry { op: "filter", why, geometry: g.to_string() });
        }
        let mut weight = vec![0.0; g.c_out * weight_pitch];
        for (o, to) in weight.chunks_exact_mut(weight_pitch).enumerate() {
            let from = &spec.weight[o * taps * g.group_in()..][..taps * g.group_in()];
            let first = o / g.group_out() % merged * g.group_in();
            for (tap, channels) in from.chunks_exact(g.group_in()).enumerate() {
                let (r, s) = (tap / g.kernel, tap % g.kernel);
                let at = r * kernel_w * run + s * apart;
                to[at + first..][..channels.len()].copy_from_slice(channels);
            }
        }
        let Table { values: bias, pitch, classes } = bias_table(spec, 0);
        let shape = GatherGemmParams {
            window: Window { kernel_w: kernel_w as u32, ..Window::from(&g) },
            group_in: run as u32,
            group_out: (merged * g.group_out()) as u32,
            groups: (g.groups / merged) as u32,
            input_pitch: pixel as u32,
            output_pitch: g.c_out as u32,
            weight_pitch: weight_pitch as u32,
            bias_pitch: if classes > 1 { pitch as u32 } else { 0 },
            split: 1,
            ..GatherGemmParams::default()
        };
        let output_constant = spec.output_constant.map(<[f32]>::to_vec);
        Ok(Self { weight, bias, output_constant, shape })
    }

    /// Parameters of a call, without what differs from call to call: addresses, lists, placements, activation.
    pub fn params(&self) -> GatherGemmParams {
        self.shape
    }
}

pub(crate) fn run(
    queue: &mut CudaQueue<'_>,
    filter: &Filter,
    call: GatherGemm<'_, Buffer, Rows, Channels>,
) -> Result<()> {
    let GatherGemm { active, input, input_rows, output, output_rows, residual, act } = call;
    let ActiveSet { rows, c_in, c_out } = active;
    let (op, g, batch) = ("gather_gemm", &filter.geometry, rows.batch);
    let shape = format_args!("{g}, batch {batch}");
    check::rows(op, rows, g.output.pixels(), &shape)?;
    check::channels(op, c_in, g.c_in, batch, &shape)?;
    check::channels(op, c_out, g.c_out, batch, &shape)?;
    if input_rows == Placement::Compact && !g.is_pointwise() {
        let why = "compact input rows need a 1×1 kernel with stride 1";
        return Err(Error::Geometry { op, why, geometry: shape.to_string() });
    }
    require(op, "input", input.len, &[batch, g.input.pixels(), filter.pixel], &shape)?;
    require(op, "output", output.len, &[batch, g.output.pixels(), g.c_out], &shape)?;
    let row_list = queue.rows(rows);
    let inputs = queue.channels(c_in);
    let outputs = queue.channels(c_out);
    let params = GatherGemmParams {
        rows: row_list,
        c_in: inputs,
        c_out: outputs,
        input: queue.at(&input.memory),
        output: queue.at(&output.memory),
        weight: queue.at(&filter.weight),
        bias: queue.at(&filter.bias),
        output_constant: queue.maybe_at(filter.output_constant.as_ref()),
        input_rows: input_rows.into(),
        output_rows: output_rows.into(),
        residual: u32::from(residual),
        act: act.into(),
        ..filter.params
    };
    let device = queue.shape();
    let tile = device.tile(&params);
    let params = GatherGemmParams { split: device.parts(&params, &tile), ..params };
    let params = match params.split {
        1 => params,
        _ => {
            let (sums, counters) = queue.parts(params.partial_len(&tile), params.tiles(&tile))?;
            GatherGemmParams { partial: sums, arrived: counters, ..params }
        }
    };
    let launch = params.launch(device.dtype(), &tile, device.most());
    // SAFETY: operands were checked above and agree with the geometry that the filter was packed for.
    unsafe { queue.launch(&launch, &params, &format_args!("{op}, {shape}")) }
}
