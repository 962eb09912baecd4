//! Launches of `compact.cu`.

use super::{BranchRows, ListChannels};
use crate::cuda::params::{CompactChannelsParams, CompactLevel, CompactRowsParams, MAX_LEVELS};
use crate::cuda::{Channels, CudaQueue, Rows, Vector, check};
use crate::error::require;
use crate::{Error, Result};

pub(crate) fn list_rows(
    queue: &mut CudaQueue<'_>,
    call: BranchRows<'_, Vector<bool>, Vector<u32>, Rows>,
) -> Result<()> {
    let BranchRows { branch, batch, keep, keep_at, schedule, rows, others, starts, starts_at } = call;
    let (cells, convs) = (batch * branch.grid.pixels(), branch.convs.len());
    let shape =
        format_args!("{}×{} cells, {convs} convolutions, batch {batch}", branch.grid.h, branch.grid.w);
    require("compact", "decisions", keep.len().saturating_sub(keep_at), &[cells], &shape)?;
    require("compact", "lists", rows.len(), &[convs], &shape)?;
    require("compact", "starts", starts.len().saturating_sub(starts_at), &[convs, batch + 1], &shape)?;
    require("compact", "granularity", schedule.granularity, &[1], &shape)?;
    if convs == 0 || convs > MAX_LEVELS {
        let why = "a branch has one to four convolutions";
        return Err(Error::Geometry { op: "compact", why, geometry: shape.to_string() });
    }
    branch.convs.iter().try_for_each(check::fits)?;
    // From this many kept cells on nothing is gathered; as many as there are: always is.
    let dense_from = (1..=cells).find(|&active| !schedule.gathers(active, cells)).unwrap_or(cells);
    let full_above = if branch.everywhere { 0 } else { dense_from.saturating_sub(1) };
    let full = branch.everywhere || dense_from < cells;
    let side = if full_above == 0 { 1 } else { schedule.granularity.min(branch.grid.h.max(branch.grid.w)) };
    let start_of = |i: usize| size_of::<u32>() * (starts_at + i * (batch + 1));
    let at = starts.memory.address();
    let mut level = [CompactLevel::default(); MAX_LEVELS];
    for (depth, level) in level[..convs].iter_mut().enumerate() {
        let i = convs - 1 - depth;
        let (conv, starts_here) = (&branch.convs[i], at + start_of(i) as u64);
        let map = (batch, conv.output.pixels());
        let next = branch.convs.get(i + 1);
        // Only the last list has no whole squares.
        let as_next = depth > 1 || depth == 1 && side == 1;
        let shared = !full && as_next && next.is_some_and(crate::ConvGeometry::is_pointwise);
        if shared {
            let (list, next) = rows.split_at_mut(i + 1);
            list[i].share(&next[0], &starts.memory, starts_here);
        } else {
            rows[i].list(map, Some((&starts.memory, starts_here)))?;
        }
        let listed = queue.rows(&rows[i]);
        *level = CompactLevel {
            index: if shared { 0 } else { listed.index },
            start: starts_here,
            h: conv.output.h as u32,
            w: conv.output.w as u32,
            kernel: next.map_or(1, |next| next.kernel) as u32,
            stride: next.map_or(1, |next| next.stride) as u32,
            pad_top: next.map_or(0, |next| next.pad_top) as u32,
            pad_left: next.map_or(0, |next| next.pad_left) as u32,
            full: u32::from(full && depth > 0),
            ..CompactLevel::default()
        };
    }
    if let Some(others) = others {
        others.list((batch, branch.convs[convs - 1].output.pixels()), None)?;
        let listed = queue.rows(others);
        (level[0].other_index, level[0].other_start) = (listed.index, listed.start);
    }
    let params = CompactRowsParams {
        keep: queue.at(&keep.memory) + keep_at as u64,
        state: 0,
        kept: 0,
        batch: batch as u32,
        grid_h: branch.grid.h as u32,
        grid_w: branch.grid.w as u32,
        levels: convs as u32,
        full_above: full_above as u32,
        side: side as u32,
        level,
    };
    let state = queue.reserved(|scratch| &scratch.zeros, params.state_len() * size_of::<u32>())?;
    let params = CompactRowsParams { state, ..params };
    let launch = params.launch();
    if launch.shared > queue.shape().shared_bytes {
        let why = "maps are too large for the shared memory of the device";
        return Err(Error::Geometry { op: "compact", why, geometry: shape.to_string() });
    }
    // SAFETY: operands were checked above, lists when they were made.
    unsafe { queue.launch(&launch, &params, &format_args!("compact, {shape}")) }
}

pub(crate) fn list_channels(
    queue: &mut CudaQueue<'_>,
    call: ListChannels<'_, Vector<bool>, Channels>,
) -> Result<()> {
    let ListChannels { batch, group, total, keep, keep_at, channels } = call;
    let shape = format_args!("{total} channels in groups of {group}, batch {batch}");
    if group == 0 || !total.is_multiple_of(group) {
        let why = "the groups do not divide the channels";
        return Err(Error::Geometry { op: "compact", why, geometry: shape.to_string() });
    }
    let groups = total / group;
    require("compact", "decisions", keep.len().saturating_sub(keep_at), &[batch, groups], &shape)?;
    channels.list(batch, total, group)?;
    let params = CompactChannelsParams {
        keep: queue.at(&keep.memory) + keep_at as u64,
        index: queue.at(&channels.index),
        count: queue.at(&channels.count),
        batch: batch as u32,
        groups: groups as u32,
        group: group as u32,
        reserved: 0,
    };
    // SAFETY: operands were checked above.
    unsafe { queue.launch(&params.launch(), &params, &format_args!("compact, {shape}")) }
}
