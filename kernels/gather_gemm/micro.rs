//! The register tile: up to `S::MR` gathered rows × one panel of columns, over the whole reduction.

/// A stretch of the reduction: consecutive input channels of one tap.
#[derive(Clone, Copy, Default)]
pub(super) struct Segment {
    pub(super) tap: u32,
    /// First input channel, from where the tap's row starts.
    pub(super) c_in: u32,
    /// Input channels.
    pub(super) inputs: u32,
    /// Place in the order of the reduction of the first input channel: the panel row it meets, or where the list of
    /// rows says which.
    pub(super) panel_row: u32,
}

use super::epilogue::{Epilogue, Sums, before_residual, finish};
use crate::simd::tiles::MOST_COLUMNS;
use crate::simd::{Outlined, Simd, dispatch};
use crate::{DType, Element};
use std::ops::Range;

/// A block of gathered rows × one panel, computed tile by tile. Pointers that are indexed by row have `rows` entries.
#[derive(Clone, Copy)]
pub(super) struct Strip<'a, E> {
    /// Where each row's input of each tap starts; tile after tile, `[n_taps][rows of the tile]`.
    pub(super) taps: *const *const E,
    pub(super) n_taps: usize,
    pub(super) rows: usize,
    /// Number of tiles, which share the rows evenly: the first ones may have one more.
    pub(super) tiles: usize,
    /// The reduction.
    pub(super) segments: &'a [Segment],
    /// The weights.
    pub(super) panel: PanelRows<E>,
    /// `[rows][stored]`, to keep sums in between.
    pub(super) sums: *mut f32,
    /// What will be multiplied with next; it is asked for while this is being multiplied.
    pub(super) next: Option<PanelRows<E>>,
    pub(super) end: Epilogue<E>,
}

/// Where the rows of a panel lie.
#[derive(Clone, Copy)]
pub(super) struct PanelRows<E> {
    /// With `apart`, where every [`UNIT`] columns start; otherwise all are where row 0 starts, and rows are `stored`
    /// long.
    pub(super) units: [*const E; MOST_COLUMNS],
    /// Which [`RUN`] rows every [`RUN`] steps of the reduction meet, with `apart` which [`UNIT`]. Null: all rows follow each
    /// other.
    pub(super) listed: *const u32,
    /// Units lie apart, in the order of [`unit_place`](super::filter::unit_place). Sums over even and odd rows are then
    /// kept side by side in twice as many lanes, and added at the end.
    pub(super) apart: bool,
}

/// Channels that are stored and met together where only some are active: columns of a filter, steps of a reduction.
pub(super) const UNIT: usize = 8;
/// Units that the widest tile meets at a time.
pub(super) const MAX_UNITS: usize = 2;
/// Steps of a reduction that are done at a time; where only some channels are met, these are neighbours.
pub(super) const RUN: usize = 4;

dispatch! {
    /// Computes a strip.
    ///
    /// Every pointer must be valid for what the shape says, with `SLACK` readable elements behind panel, bias and
    /// constant; no other thread touches the outputs meanwhile.
    pub(super) fn compute<E>(strip: &Strip<'_, E>) = compute_set
}

/// Bytes of a panel's rows that are multiplied with all rows of a strip before the next ones are: these and the next ones
/// together stay in the second-level cache.
const PART: usize = 144 << 10;
/// The same of wide tiles, which read them twice as often for as many sums.
const WIDE_PART: usize = 96 << 10;
/// The same where a strip has few rows: these stay in the first-level cache. What comes next has to arrive soon there, and
/// its lines would wait behind those that every tile asks the second-level cache for.
const SMALL_PART: usize = 32 << 10;
/// At most as many.
pub(super) const FEW_ROWS: usize = 100;

#[inline(always)]
fn compute_set<S: Simd, E: Element>(strip: &Strip<'_, E>) {
    const { assert!(S::MR * S::NV * S::LANES <= 12 * 32 && S::WIDE.0 * S::WIDE.1 <= S::MR * S::NV) };
    let depth = strip.segments.last().map_or(0, |last| (last.panel_row + last.inputs) as usize);
    let bytes = depth * strip.end.stored * size_of::<E>();
    let part = match strip.end.stored / S::LANES {
        _ if strip.rows <= FEW_ROWS => SMALL_PART,
        vectors if vectors > S::NV => WIDE_PART,
        _ => PART,
    };
    let length = strip.segments.len().div_ceil(bytes.div_ceil(part).max(1)).max(1);
    let parts = strip.segments.len().div_ceil(length).max(1);
    let first_step =
        |part: usize| strip.segments.get(part * length).map_or(depth, |first| first.panel_row as usize);
    for part in 0..parts {
        let segments = &strip.segments[part * length..strip.segments.len().min((part + 1) * length)];
        let last = part + 1 == parts;
        let coming = match last {
            false => Some((strip.panel, first_step(part + 1)..first_step(part + 2))),
            true => strip.next.map(|next| (next, 0..first_step(1))),
        };
        let turn = if strip.panel.apart { UNIT } else { RUN };
        let turns: usize = segments.iter().map(|segment| (segment.inputs as usize).div_ceil(turn)).sum();
        let mut ahead = Ahead::new(coming, strip.end.stored, strip.tiles * turns.max(1));
        // SAFETY: the caller of `compute` vouches for the pointers; `dispatch` for the instruction set.
        unsafe { compute_part::<S, E>(strip, segments, (part == 0, last), parts > 1, &mut ahead) };
    }
}

/// Multiplies with some rows of the panel. The `first` part starts from zero, the others from the sums so far; the
/// `last` finishes.
///
/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn compute_part<S: Simd, E: Element>(
    strip: &Strip<'_, E>,
    segments: &[Segment],
    ends: (bool, bool),
    keep: bool,
    ahead: &mut Ahead<E>,
) {
    let last = ends.1;
    let widest = S::NV.max(S::WIDE.0);
    let (height, taller) = (strip.rows / strip.tiles, strip.rows % strip.tiles);
    let vectors = match strip.panel.apart {
        true => strip.end.columns.div_ceil(UNIT) * 2 * UNIT / S::LANES,
        false => strip.end.stored / S::LANES,
    };
    let mut first = 0;
    for tile in 0..strip.tiles {
        let rows = height + usize::from(tile < taller);
        let sums = if keep { strip.sums.wrapping_add(first * vectors * S::LANES) } else { strip.sums };
        macro_rules! by_rows {
            ($nv:literal: $($mr:literal)*) => {
                match (strip.panel.apart, strip.panel.listed.is_null()) {
                    (false, true) => by_rows!(STREAM, $nv: $($mr)*),
                    (false, false) => by_rows!(RUNS, $nv: $($mr)*),
                    (true, _) => by_rows!(UNITS, $nv: $($mr)*),
                }
            };
            ($gather:ident, $nv:literal: $($mr:literal)*) => {
                match rows {
                    // SAFETY: the caller of `compute` vouches for the pointers; `dispatch` for the instruction set.
                    $($mr => unsafe {
                        S::outlined(Tile::<E, $mr, $nv, $gather> { strip, segments, first, ahead, ends, sums })
                    },)*
                    _ => unreachable!("a tile has as many rows"),
                }
            };
        }
        match vectors {
            1 => by_rows!(1: 1 2 3 4 5 6 7 8 9 10 11 12),
            2 => by_rows!(2: 1 2 3 4 5 6 7 8 9 10 11 12),
            3 if widest >= 3 => by_rows!(3: 1 2 3 4 5 6),
            4 if widest >= 4 => by_rows!(4: 1 2 3 4 5 6),
            _ => unreachable!("a panel has as many vectors as a tile"),
        }
        if last && !strip.end.whole() {
            let sums = if strip.panel.apart { Sums::Apart(sums) } else { Sums::Rows(sums) };
            // SAFETY: see above.
            unsafe { finish::<S, E>(&strip.end, first..first + rows, vectors, sums) };
        }
        first += rows;
    }
}

/// Progress through the rows of a panel that will be multiplied with soon.
struct Ahead<E> {
    panel: PanelRows<E>,
    /// Next cache line to ask for, in [`FRACTION`]s: of the panel's rows, or with a list of the listed ones; with units of
    /// each unit.
    at: usize,
    end: usize,
    /// To ask for at every turn of the reduction, so that the loads are spread over the multiplication.
    step: usize,
}

/// Of a cache line.
const FRACTION: usize = 64;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Cache lines of some rows of a panel, or of a unit.
const fn lines<E>(rows: usize, columns: usize) -> usize {
    (rows * columns * size_of::<E>()).div_ceil(LINE)
}

impl<E> Ahead<E> {
    fn new(coming: Option<(PanelRows<E>, Range<usize>)>, stored: usize, turns: usize) -> Self {
        let nothing =
            PanelRows { units: [std::ptr::null(); MOST_COLUMNS], listed: std::ptr::null(), apart: false };
        let (panel, steps) = coming.unwrap_or((nothing, 0..0));
        let line = |step: usize| match (panel.apart, panel.listed.is_null()) {
            (true, _) => step / UNIT * lines::<E>(UNIT, UNIT),
            (false, false) => step / RUN * lines::<E>(RUN, stored),
            (false, true) => lines::<E>(step, stored),
        };
        let (at, end) = (FRACTION * line(steps.start), FRACTION * line(steps.end));
        Ahead { panel, at, end, step: (end - at).div_ceil(turns) }
    }

    /// Asks for some more of a panel of `columns` stored columns that is met as `GATHER` says.
    ///
    /// Progress stays in memory: the loops around have no register to spare.
    ///
    /// # Safety
    /// Inside a function compiled for `S`; a list has the rows it was promised for.
    #[inline(always)]
    unsafe fn ask<S: Simd, const GATHER: u8>(&mut self, columns: usize) {
        // SAFETY: see above; the field is valid for reading and writing.
        unsafe {
            let at = (&raw const self.at).read_volatile();
            let end = self.end.min(at + self.step);
            if at >= end {
                return;
            }
            (&raw mut self.at).write_volatile(end);
            for at in at.div_ceil(FRACTION)..end.div_ceil(FRACTION) {
                let (row, line) = match GATHER {
                    STREAM => (0, at),
                    _ => {
                        let len = if GATHER == RUNS { RUN * columns } else { UNIT * UNIT };
                        let lines = lines::<E>(1, len);
                        (*self.panel.listed.add(at / lines) as usize * len, at % lines)
                    }
                };
                for unit in &self.panel.units[..if GATHER == UNITS { MAX_UNITS } else { 1 }] {
                    S::prefetch_far(unit.wrapping_add(row).cast::<u8>().wrapping_add(line * LINE));
                }
            }
        }
    }
}

/// Panel rows follow each other.
const STREAM: u8 = 0;
/// Panel rows are listed [`RUN`] at a time.
const RUNS: u8 = 1;
/// Panel rows are listed [`UNIT`] at a time and their units lie apart.
const UNITS: u8 = 2;

/// One tile: `MR` rows × `NV` vectors of sums. The first rows of the panel start from zero, the last ones finish.
struct Tile<'a, 'b, E, const MR: usize, const NV: usize, const GATHER: u8> {
    strip: &'a Strip<'b, E>,
    segments: &'a [Segment],
    /// First row of the strip.
    first: usize,
    ahead: &'a mut Ahead<E>,
    ends: (bool, bool),
    sums: *mut f32,
}

impl<E: Element, const MR: usize, const NV: usize, const GATHER: u8> Outlined
    for Tile<'_, '_, E, MR, NV, GATHER>
{
    /// # Safety
    /// As for [`compute`], inside a function compiled for `S`.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Tile { strip, segments, first, ahead, ends: (start, last), sums } = self;
        if MR * NV > S::MR * S::NV || GATHER == UNITS && NV * S::LANES > MAX_UNITS * 2 * UNIT {
            unreachable!("larger than the tile of this instruction set");
        }
        // SAFETY: see above.
        unsafe {
            // Of what is written.
            let vectors = if GATHER == UNITS { NV.div_ceil(2) } else { NV };
            if last {
                // The output, which is to be written (and with a residual to be read) when the sums are ready.
                for i in 0..MR {
                    let out = (*strip.end.out.add(first + i)).wrapping_add(strip.end.column).cast::<u8>();
                    for line in 0..(vectors * S::LANES * size_of::<E>()).div_ceil(LINE) {
                        S::prefetch_write(out.wrapping_add(line * LINE));
                    }
                }
            }
            let mut acc = [[S::splat(0.0); NV]; MR];
            if !start {
                for (i, acc) in acc.iter_mut().enumerate() {
                    for (j, acc) in acc.iter_mut().enumerate() {
                        *acc = S::load_f32(sums.add((i * NV + j) * S::LANES).cast_const());
                    }
                }
            }
            let taps = strip.taps.add(first * strip.n_taps);
            let listed = if GATHER == STREAM { std::ptr::null() } else { strip.panel.listed };
            for segment in segments {
                let starts = taps.add(segment.tap as usize * MR);
                let a: [*const E; MR] = std::array::from_fn(|i| (*starts.add(i)).add(segment.c_in as usize));
                let order = segment.panel_row as usize;
                let mut b = strip.panel.units[0].wrapping_add(order * NV * S::LANES);
                let inputs = segment.inputs as usize;
                macro_rules! step {
                    ($k:expr, $columns:expr) => {
                        let columns: [S::V; NV] = $columns;
                        for i in 0..MR {
                            let value = S::splat((*a[i].add($k)).to_f32());
                            for j in 0..NV {
                                acc[i][j] = S::fma(value, columns[j], acc[i][j]);
                            }
                        }
                    };
                }
                let mut k = 0;
                while GATHER != UNITS && k + RUN <= inputs {
                    ahead.ask::<S, GATHER>(NV * S::LANES);
                    if GATHER == RUNS {
                        let run = *listed.add((order + k) / RUN) as usize;
                        b = strip.panel.units[0].wrapping_add(run * (RUN * NV * S::LANES));
                    }
                    step!(k, std::array::from_fn(|j| S::load(b.add(j * S::LANES))));
                    step!(k + 1, std::array::from_fn(|j| S::load(b.add((NV + j) * S::LANES))));
                    step!(k + 2, std::array::from_fn(|j| S::load(b.add((2 * NV + j) * S::LANES))));
                    step!(k + 3, std::array::from_fn(|j| S::load(b.add((3 * NV + j) * S::LANES))));
                    b = b.wrapping_add(RUN * NV * S::LANES);
                    k += RUN;
                }
                while GATHER == UNITS && k < inputs {
                    let place = (order + k) / UNIT;
                    let row = *listed.add(place) as usize * (UNIT * UNIT);
                    let units: [*const E; MAX_UNITS] = std::array::from_fn(|i| strip.panel.units[i].add(row));
                    ahead.ask::<S, GATHER>(NV * S::LANES);
                    for pair in 0..UNIT / 2 {
                        let columns: [S::V; NV] = std::array::from_fn(|j| {
                            let (unit, lane) = (j * S::LANES / (2 * UNIT), j * S::LANES % (2 * UNIT));
                            S::load(units[unit].add(pair * 2 * UNIT + lane))
                        });
                        for i in 0..MR {
                            let values = S::splat_pair(a[i].add(k + 2 * pair));
                            for j in 0..NV {
                                acc[i][j] = S::fma(values, columns[j], acc[i][j]);
                            }
                        }
                    }
                    k += UNIT;
                }
                while GATHER == STREAM && k < inputs {
                    step!(k, std::array::from_fn(|j| S::load(b.add(j * S::LANES))));
                    b = b.wrapping_add(NV * S::LANES);
                    k += 1;
                }
            }
            // Written out row by row: in a loop that the compiler does not unroll accumulators would live in memory.
            macro_rules! every_row {
                ($row:ident) => { every_row!($row: 0 1 2 3 4 5 6 7 8 9 10 11) };
                ($row:ident: $($i:literal)*) => { $(if $i < MR { $row!($i, acc[$i % MR]); })* };
            }
            if !(last && strip.end.whole()) {
                macro_rules! keep {
                    ($i:literal, $acc:expr) => {
                        for j in 0..NV {
                            S::store_f32(sums.add(($i * NV + j) * S::LANES), $acc[j]);
                        }
                    };
                }
                every_row!(keep);
                return;
            }
            let (least, most) = strip.end.act.range();
            let (least, most) = (S::splat(least), S::splat(most));
            let Epilogue { residual, column, bias, bias_stride, scale, constant, .. } = strip.end;
            let (out, class) = (strip.end.out.add(first), strip.end.class.add(first));
            // Branches, which cost less between two tiles than to add what is zero.
            macro_rules! write {
                ($i:literal, $acc:expr) => {
                    let out = (*out.add($i)).add(column);
                    let bias = match bias_stride {
                        0 => bias,
                        stride => bias.add(*class.add($i) as usize * stride),
                    };
                    let mut v: [S::V; NV] = $acc;
                    for j in 0..vectors {
                        if GATHER == UNITS {
                            v[j] = S::add_pairs(v[2 * j % NV], v[(2 * j + 1) % NV]);
                        }
                        let bias = S::load_f32(bias.add(j * S::LANES));
                        v[j] = match E::DTYPE {
                            DType::Int8 => S::fma(v[j], S::load_f32(scale.add(j * S::LANES)), bias),
                            _ => S::add(v[j], bias),
                        };
                    }
                    if residual {
                        for j in 0..vectors {
                            v[j] = before_residual::<S, E>(v[j]);
                            v[j] = S::add(v[j], S::load(out.add(j * S::LANES).cast_const()));
                        }
                    }
                    for j in 0..vectors {
                        // The value is the second operand, which x86's max and min hand on when it is NaN.
                        v[j] = S::min(most, S::max(least, v[j]));
                    }
                    if !constant.is_null() {
                        for j in 0..vectors {
                            v[j] = S::sub(v[j], S::load_f32(constant.add(j * S::LANES)));
                        }
                    }
                    for j in 0..vectors {
                        S::store(out.add(j * S::LANES), v[j]);
                    }
                };
            }
            every_row!(write);
        }
    }
}
