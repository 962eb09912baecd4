use super::micro::UNIT;
use super::tiles;
#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
use crate::simd::tiles::{MOST_COLUMNS, SIDE, in_turn, step_len, without_sign};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Kind, Portable, Simd};
use crate::{Buffer, ConvGeometry, DType, Element, Error, Isa, Result};

/// What a filter is made of: a convolution whose BatchNorm is folded.
#[derive(Clone, Copy, Debug)]
pub struct FilterSpec<'a> {
    /// Geometry.
    pub geometry: ConvGeometry,
    /// `[c_out, kernel, kernel, c_in / groups]`.
    pub weight: &'a [f32],
    /// `[c_out]`.
    pub bias: &'a [f32],
    /// `[c_in]`: what an inactive input channel is worth; `None`: zero.
    pub input_constant: Option<&'a [f32]>,
    /// `[c_out]`: what an inactive output channel is worth, subtracted from what is stored; `None`: zero.
    pub output_constant: Option<&'a [f32]>,
    /// Where some output channels may be inactive, how many neighbours are active or not together: the weights are laid
    /// out for it. Calls may come with any channels all the same.
    pub output_group: Option<usize>,
}

impl FilterSpec<'_> {
    /// Rejects impossible geometries and operands of another size.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        let g = self.geometry;
        g.check(op)?;
        for (what, got, need) in [
            ("weight", self.weight.len(), g.weights()),
            ("bias", self.bias.len(), g.c_out),
            ("input constant", self.input_constant.map_or(g.c_in, <[f32]>::len), g.c_in),
            ("output constant", self.output_constant.map_or(g.c_out, <[f32]>::len), g.c_out),
        ] {
            if got != need {
                return Err(Error::Size { op, what, got, need, geometry: g.to_string() });
            }
        }
        Ok(())
    }
}

impl FilterSpec<'_> {
    /// Whether every sum over whole numbers of a byte, with the bias, is a number of 32 bits.
    fn is_moderate(&self) -> bool {
        let largest = |values: &[f32]| values.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
        let terms = self.geometry.weights() / self.geometry.c_out;
        let constant = self.input_constant.map_or(0.0, largest);
        let sum = terms as f32 * largest(self.weight) * (128.0 + constant);
        sum + largest(self.bias) < (1u32 << 30) as f32
    }
}

/// A convolution's weights, packed for one instruction set.
///
/// Columns are cut into panels as wide as the GEMM tile, whose rows are `[tap][input channel]`; a layout says in
/// which order they lie. A grouped convolution has a panel (or several) per group; groups narrower than a vector share
/// one, with zeros off the diagonal.
pub struct Filter<E> {
    geometry: ConvGeometry,
    pub(super) panels: Vec<Panel>,
    pub(super) data: Buffer<E>,
    /// `[classes][c_out + slack]`: the bias with the input constant folded in, one row per set of taps inside.
    pub(super) bias: Vec<f32>,
    pub(super) bias_stride: usize,
    pub(super) output_constant: Option<Vec<f32>>,
    /// `[c_out + slack]`: what a column's sums are multiplied with, where weights are whole numbers; else empty.
    pub(super) scale: Vec<f32>,
    /// Kernel rows are read as one tap each: without padding their pixels are neighbours in memory.
    pub(super) folded: bool,
    /// In turns, every kernel row begins a step of tiles, so that they can read it where its pixels' channels are neighbours.
    pub(super) lines: bool,
    pub(super) layout: Layout,
    /// What is computed at once where panels are streamed, and where they are units.
    pub(super) tile: Tile,
    pub(super) units_tile: Tile,
}

/// In which order packed weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Panel by panel, row by row: the kernel streams them.
    Panels,
    /// Panels are `UNIT` columns wide, the kernel puts several side by side, and the order is
    /// `[pair of rows][column][row of the pair]`: whatever is active, the cache lines that are read are used, and loads
    /// are whole vectors.
    Units,
    /// Panels are one tile wide, and so many rows lie in turns as tiles want, `[turn][column][row of the turn]`, in the order
    /// of [`place_in_blocks`], with zeros behind the last row up to a whole step of tiles.
    Turns,
}

/// Some consecutive columns of a filter and the input channels they read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    pub(super) c_out: usize,
    pub(super) columns: usize,
    pub(super) c_in: usize,
    pub(super) inputs: usize,
    /// Stored columns: `columns` rounded up to whole vectors.
    pub(super) stored: usize,
    pub(super) offset: usize,
}

impl Panel {
    /// Place of the first weight of a row, from the panel's start, unless panels are units.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> usize {
        row * self.stored
    }
}

/// Elements behind the end of packed data and bias that vector loads may touch.
pub(super) const SLACK: usize = 64;

/// Place of a weight in a panel of [`UNIT`] columns.
pub(super) fn unit_place(row: usize, column: usize) -> usize {
    row / 2 * (2 * UNIT) + 2 * column + row % 2
}

/// Place of a step in a reduction over `inputs` channels of `taps` taps that meets [`step_len`] channels of all taps before the
/// next ones.
pub(super) fn place_in_blocks<E>(tap: usize, input: usize, taps: usize, inputs: usize) -> usize {
    let len = step_len::<E>();
    let first = input / len * len;
    first * taps + tap * len.min(inputs - first) + input - first
}

/// Stored row of an input channel, of a panel's `inputs`, in turns; with `lines` every kernel row begins a step.
fn row_in_turns<E>(g: &ConvGeometry, lines: bool, inputs: usize, tap: usize, input: usize) -> usize {
    match lines {
        true => tap / g.kernel * line_depth::<E>(g, inputs) + tap % g.kernel * inputs + input,
        false => place_in_blocks::<E>(tap, input, g.kernel * g.kernel, inputs),
    }
}

/// Where kernel rows begin steps, a reduction takes at most so many tenths of the steps that it takes otherwise. Of bytes these
/// are few, so that the copies that rows otherwise need weigh more.
const fn most_line_steps<E>() -> usize {
    if size_of::<E>() == 1 { 30 } else { 15 }
}

/// Stored rows of a kernel row that begins a step.
fn line_depth<E>(g: &ConvGeometry, inputs: usize) -> usize {
    (g.kernel * inputs).next_multiple_of(step_len::<E>())
}

/// Stored rows of a panel in turns.
fn depth_in_turns<E>(g: &ConvGeometry, lines: bool, inputs: usize) -> usize {
    match lines {
        true => g.kernel * line_depth::<E>(g, inputs),
        false => (g.kernel * g.kernel * inputs).next_multiple_of(step_len::<E>()),
    }
}

/// Place of a weight in a panel of `stored` columns whose rows lie in turns.
pub(super) fn turn_place<E>(row: usize, column: usize, stored: usize) -> usize {
    let turn = in_turn::<E>();
    row / turn * (turn * stored) + turn * column + row % turn
}

impl<E: Element> Filter<E> {
    /// Packs weights for `isa`.
    ///
    /// # Errors
    /// When a size does not fit the geometry, the geometry is impossible, or memory runs out.
    pub fn pack(isa: Isa, spec: &FilterSpec<'_>) -> Result<Self> {
        Self::pack_in(isa, spec, Buffer::zeroed)
    }

    /// As [`pack`](Self::pack), into memory that `zeroed` gives.
    pub(crate) fn pack_in(
        isa: Isa,
        spec: &FilterSpec<'_>,
        zeroed: impl FnOnce(usize, &str) -> Result<Buffer<E>>,
    ) -> Result<Self> {
        let g = spec.geometry;
        spec.check("filter")?;
        let high = vector_tiles(isa)[0];
        let in_units = spec.output_group.is_some_and(|group| group.is_multiple_of(UNIT))
            && g.c_in.is_multiple_of(UNIT)
            && high.columns.is_multiple_of(2 * UNIT);
        let layout = match g.groups {
            _ if isa.has_tiles_of(E::DTYPE) => Layout::Turns,
            1 if in_units => Layout::Units,
            _ => Layout::Panels,
        };
        let tile = match layout {
            Layout::Panels => tile_for(isa, &g),
            Layout::Units => high,
            Layout::Turns => tiles::tile(isa, g.c_out),
        };
        let taps = g.kernel * g.kernel;
        let inside = (g.output.h - 1) * g.stride + g.kernel <= g.input.h
            && (g.output.w - 1) * g.stride + g.kernel <= g.input.w;
        let one_step = layout != Layout::Turns || g.kernel * g.c_in <= step_len::<E>();
        let folded = g.groups == 1 && g.pad_top == 0 && g.pad_left == 0 && inside && g.kernel > 1 && one_step;
        let few_steps = g.kernel <= most_line_steps::<E>() * (taps * g.c_in).div_ceil(step_len::<E>()) / 10;
        let odd = g.kernel > 1 && !g.group_in().is_multiple_of(step_len::<E>());
        // Channels of a filter that is gated come listed, and are packed again; where there are many, rows that are gathered
        // one by one are copied more quickly otherwise.
        let gated = spec.output_group.is_some() || spec.input_constant.is_some();
        let narrow = g.groups > 1 || !gated && g.c_in < 3 * step_len::<E>();
        let lines = layout == Layout::Turns && if folded { few_steps } else { odd && narrow };
        let (panels, len) = match layout {
            Layout::Units => cut(&g, UNIT, UNIT, |inputs| taps * inputs),
            Layout::Turns => cut(&g, SIDE, SIDE, |inputs| depth_in_turns::<E>(&g, lines, inputs)),
            Layout::Panels => cut(&g, tile.lanes, tile.columns, |inputs| taps * inputs),
        };
        let mut data = zeroed(len + SLACK, "packed weights")?;
        if E::DTYPE == DType::Int8 && !spec.is_moderate() {
            let why = "weights or biases are too large for whole numbers";
            return Err(Error::Geometry { op: "filter", why, geometry: g.to_string() });
        }
        let units = E::weight_units(spec.weight, g.c_out);
        for panel in &panels {
            let out = &mut data.as_mut_slice()[panel.offset..];
            for (o, unit) in (panel.c_out..).zip(&units[panel.c_out..panel.c_out + panel.columns]) {
                let first = o / g.group_out() * g.group_in() - panel.c_in;
                for tap in 0..taps {
                    let source = &spec.weight[(o * taps + tap) * g.group_in()..][..g.group_in()];
                    for (c, &w) in source.iter().enumerate() {
                        let (row, column) = (tap * panel.inputs + first + c, o - panel.c_out);
                        let at = match layout {
                            Layout::Units => unit_place(row, column),
                            Layout::Turns => {
                                let row = row_in_turns::<E>(&g, lines, panel.inputs, tap, first + c);
                                turn_place::<E>(row, column, panel.stored)
                            }
                            Layout::Panels => panel.row(row) + column,
                        };
                        out[at] = E::from_f32(w / unit);
                    }
                }
            }
        }
        if layout == Layout::Turns && without_sign::<E>(isa) {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(data.as_mut_slice());
            bytes.iter_mut().for_each(|byte| *byte ^= 128);
        }
        let Table { values: bias, pitch: bias_stride, .. } = bias_table(spec, SLACK);
        let output_constant = spec.output_constant.map(|constant| {
            let mut padded = constant.to_vec();
            padded.resize(g.c_out + SLACK, 0.0);
            padded
        });
        let scale = match E::DTYPE {
            DType::Int8 => units.into_iter().chain([0.0; SLACK]).collect(),
            _ => vec![],
        };
        Ok(Self {
            geometry: g,
            panels,
            data,
            bias,
            bias_stride,
            output_constant,
            scale,
            folded,
            lines,
            layout,
            tile,
            units_tile: Tile { columns: high.columns / 2, ..high },
        })
    }

    /// Geometry it was packed for.
    pub fn geometry(&self) -> &ConvGeometry {
        &self.geometry
    }

    /// Steps of the reduction over `inputs` channels of every tap, whole steps of tiles.
    pub(super) fn depth_in_turns(&self, inputs: usize) -> usize {
        depth_in_turns::<E>(&self.geometry, self.lines, inputs)
    }

    /// Stored row of an input channel, of a panel's `inputs`, in turns.
    pub(super) fn row_in_turns(&self, inputs: usize, tap: usize, input: usize) -> usize {
        row_in_turns::<E>(&self.geometry, self.lines, inputs, tap, input)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<E>() + (self.bias.len() + self.scale.len()) * size_of::<f32>()
    }

    /// Row of the bias table for the output pixel `(y, x)`.
    #[inline(always)]
    pub(super) fn class(&self, y: usize, x: usize) -> usize {
        if self.bias.len() == self.bias_stride {
            return 0;
        }
        let g = &self.geometry;
        let cut = |at: usize, pad: usize, size: usize| {
            let first = (at * g.stride) as isize - pad as isize;
            Cut {
                before: (-first).max(0) as usize,
                after: (first + g.kernel as isize - size as isize).max(0) as usize,
            }
        };
        let (rows, columns) = cuts(g);
        let (y, x) = (cut(y, g.pad_top, g.input.h), cut(x, g.pad_left, g.input.w));
        let row = y.before * (rows.after + 1) + y.after;
        (row * (columns.before + 1) + x.before) * (columns.after + 1) + x.after
    }
}

/// Kernel rows (or columns) that lie outside the input.
#[derive(Clone, Copy)]
struct Cut {
    before: usize,
    after: usize,
}

/// The most kernel rows and columns that lie outside anywhere.
fn cuts(g: &ConvGeometry) -> (Cut, Cut) {
    let most = |pad: usize, output: usize, input: usize| Cut {
        before: pad,
        after: ((output - 1) * g.stride + g.kernel).saturating_sub(input + pad),
    };
    (most(g.pad_top, g.output.h, g.input.h), most(g.pad_left, g.output.w, g.input.w))
}

/// Bias rows: one for every way the kernel can be cut off, in the order of [`Filter::class`].
fn classes(g: &ConvGeometry) -> Vec<(Cut, Cut)> {
    let (rows, columns) = cuts(g);
    let ways = |most: Cut| {
        (0..=most.before).flat_map(move |before| (0..=most.after).map(move |after| Cut { before, after }))
    };
    ways(rows).flat_map(|y| ways(columns).map(move |x| (y, x))).collect()
}

/// Biases with the input constant folded in.
pub(super) struct Table {
    /// `[classes][pitch]`.
    pub(super) values: Vec<f32>,
    pub(super) pitch: usize,
    /// One without an input constant: then it does not matter which taps lie inside.
    pub(super) classes: usize,
}

/// The table of biases, with `slack` values behind each row.
pub(super) fn bias_table(spec: &FilterSpec<'_>, slack: usize) -> Table {
    let (c_out, pitch) = (spec.geometry.c_out, spec.geometry.c_out + slack);
    let all = classes(&spec.geometry);
    let classes = if spec.input_constant.is_some() { all.len() } else { 1 };
    let mut values = vec![0.0; classes * pitch];
    for (row, class) in values.chunks_exact_mut(pitch).zip(all) {
        row[..c_out].copy_from_slice(spec.bias);
        if let Some(constant) = spec.input_constant {
            fold_constant(&mut row[..c_out], spec, constant, class);
        }
    }
    Table { values, pitch, classes }
}

/// Adds the response to the constant field `constant` that the taps inside see.
fn fold_constant(bias: &mut [f32], spec: &FilterSpec<'_>, constant: &[f32], (y, x): (Cut, Cut)) {
    let g = spec.geometry;
    let inside = |cut: Cut| cut.before..g.kernel.saturating_sub(cut.after);
    for (o, bias) in bias.iter_mut().enumerate() {
        let constant = &constant[o / g.group_out() * g.group_in()..][..g.group_in()];
        let mut sum = 0.0f64;
        for r in inside(y) {
            for s in inside(x) {
                let tap = &spec.weight[((o * g.kernel + r) * g.kernel + s) * g.group_in()..][..g.group_in()];
                sum += tap.iter().zip(constant).map(|(&w, &c)| f64::from(w) * f64::from(c)).sum::<f64>();
            }
        }
        *bias = (f64::from(*bias) + sum) as f32;
    }
}

/// Cuts the columns into panels, which have so many rows for their inputs; with the length of all.
fn cut(g: &ConvGeometry, lanes: usize, width: usize, rows: impl Fn(usize) -> usize) -> (Vec<Panel>, usize) {
    let mut panels = Vec::new();
    let mut offset = 0;
    let together = if g.groups == 1 { 1 } else { (lanes / g.group_out()).clamp(1, g.groups) };
    for group in (0..g.groups).step_by(together) {
        let groups = together.min(g.groups - group);
        let end = (group + groups) * g.group_out();
        for c_out in (group * g.group_out()..end).step_by(width) {
            let columns = width.min(end - c_out);
            let stored = columns.next_multiple_of(lanes);
            let inputs = groups * g.group_in();
            let c_in = group * g.group_in();
            panels.push(Panel { c_out, columns, c_in, inputs, stored, offset });
            offset += rows(inputs) * stored;
        }
    }
    (panels, offset)
}

/// What is computed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Values of a vector.
    pub lanes: usize,
    /// Output channels of a full panel.
    pub columns: usize,
    /// Most rows that meet a full panel.
    pub rows: usize,
}

/// Maps of so many pixels have rows for many tiles: lower and wider ones ask the caches and the front of the pipeline for
/// less there, which counts most where another program shares them.
const MANY_PIXELS: usize = 196;

/// The GEMM tile of a convolution whose panels are streamed.
fn tile_for(isa: Isa, g: &ConvGeometry) -> Tile {
    let [high, wide] = vector_tiles(isa);
    let many = g.groups == 1 && g.output.pixels() >= MANY_PIXELS;
    if many && g.c_out.is_multiple_of(wide.columns) { wide } else { high }
}

/// The GEMM tile of an instruction set and a type of elements, where rows are few.
pub fn tile(isa: Isa, dtype: DType) -> Tile {
    if isa.has_tiles_of(dtype) { tiles::tile(isa, MOST_COLUMNS * SIDE) } else { vector_tiles(isa)[0] }
}

/// The usual tile, and the one for many rows.
fn vector_tiles(isa: Isa) -> [Tile; 2] {
    fn of<S: Simd>() -> [Tile; 2] {
        [(S::NV, S::MR), S::WIDE].map(|(vectors, rows)| Tile {
            lanes: S::LANES,
            columns: S::LANES * vectors,
            rows,
        })
    }
    match isa.0 {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Kind::Amx => of::<Avx512>(),
        #[cfg(target_arch = "x86_64")]
        Kind::Vnni | Kind::Avx512 => of::<Avx512>(),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => of::<Avx2>(),
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => of::<Neon>(),
        Kind::Portable => of::<Portable>(),
        #[cfg(test)]
        Kind::SoftTiles => of::<Portable>(),
    }
}
