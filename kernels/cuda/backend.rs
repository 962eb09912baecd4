//! [`Cuda`]: the operations of a [`Backend`], as launches.

use super::driver::Driver;
use super::launch::{GemmMath, GemmTile};
use super::memory::{Buffer, Channels, Rows, Vector};
use super::params::{
    CompactChannelsParams, CompactLevel, CompactRowsParams, DecideParams, DepthwiseParams, FromNchwParams,
    GatherGemmParams, LinearParams, MAX_LEVELS, MaxPoolParams, MeanPoolParams, PadChannelsParams,
    PatchGateParams, ScaleParams, ToNchwParams, Window,
};
use super::precision::Precision;
use super::queue::{CudaQueue, CudaScratch, Images};
use super::weights::{Depthwise, Filter, Linear, PatchGate, SqueezeExcite, check_fits};
use crate::compact::{Branch, BranchRows, ListChannels};
use crate::error::require;
use crate::gate::{self, Decide};
use crate::gather_gemm::{FilterSpec, GatherGemm, Placement};
use crate::layout::FromNchw;
use crate::max_pool::MaxPool;
use crate::mean_pool::{Mean, MeanPool};
use crate::shortcut::PadChannels;
use crate::squeeze_excite::WeightsSpec;
use crate::{ActiveSet, Backend, Error, Extent, Result, Value, depthwise, squeeze_excite};
use std::sync::Arc;

/// A CUDA device as a [`Backend`].
///
/// An inference that comes again is one launch of a graph: nothing in it waits for this machine, or is allocated.
#[derive(Clone)]
pub struct Cuda {
    driver: Arc<dyn Driver>,
    precision: Precision,
}

impl Cuda {
    /// A device behind its driver, storing and multiplying as `precision` says.
    pub fn new(driver: Arc<dyn Driver>, precision: Precision) -> Self {
        Self { driver, precision }
    }

    /// What it runs on.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }
}

/// What the operations of a queue depend on.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) precision: Precision,
    pub(super) capability: u32,
    pub(super) multiprocessors: u32,
    pub(super) shared_bytes: u32,
}

impl Shape {
    fn dtype(self) -> &'static str {
        self.precision.storage()
    }

    fn bytes(self) -> u32 {
        self.precision.bytes() as u32
    }

    /// Thread blocks that keep the device busy; each goes on to further work.
    fn most(self) -> u32 {
        8 * self.multiprocessors.max(1)
    }

    /// The kernel for a call: the largest tiles that give every multiprocessor something to do, on tensor cores where
    /// the operands and the device allow it.
    fn tile(self, params: &GatherGemmParams) -> GemmTile {
        let on_tensor_cores = self.capability >= 80 && params.suits_tensor_cores(self.bytes());
        let math = match self.precision {
            Precision::F16 | Precision::Bf16 if on_tensor_cores => GemmMath::TensorCores,
            Precision::Tf32 if on_tensor_cores => GemmMath::Tf32,
            _ => GemmMath::Simt,
        };
        let fits = |tile: &&GemmTile| {
            let wide = tile.columns > 64 && params.group_out <= 64;
            !wide && params.tiles(tile) >= self.multiprocessors as usize
        };
        let mut tiles = GemmTile::ALL.iter().filter(|tile| tile.math == math);
        let smallest = *tiles.clone().next_back().expect("every way to multiply has tiles");
        tiles.find(fits).copied().unwrap_or(smallest)
    }
}

impl Backend for Cuda {
    type Buffer = Buffer;
    type Vector<T: Value> = Vector<T>;
    type Rows = Rows;
    type Channels = Channels;
    type Images<'i> = Images;
    type Filter = Filter;
    type Depthwise = Depthwise;
    type SqueezeExcite = SqueezeExcite;
    type PatchGate = PatchGate;
    type Linear = Linear;
    type Scratch = CudaScratch;
    type Queue<'q> = CudaQueue<'q>;

    fn describe(&self) -> String {
        let p = self.driver.properties();
        let (major, minor) = (p.capability / 10, p.capability % 10);
        let multiprocessors = p.multiprocessors;
        format!("{}, {}, sm_{major}{minor}, {multiprocessors} multiprocessors", p.name, self.precision)
    }

    fn element_bytes(&self) -> usize {
        self.precision.bytes()
    }

    fn map_bytes(&self) -> usize {
        MAP_BYTES
    }

    fn buffer(&self, len: usize, what: &str) -> Result<Buffer> {
        Buffer::zeroed(&self.driver, len, self.precision.bytes(), what)
    }

    fn image(&self, batch: usize, bordered: Extent, c: usize) -> Result<Buffer> {
        self.buffer(batch * bordered.pixels() * self.pixel(c), "image")
    }

    fn vector<T: Value>(&self, len: usize, what: &str) -> Result<Vector<T>> {
        Vector::zeroed(&self.driver, len, what)
    }

    fn rows(&self, batch: usize, pixels: usize) -> Result<Rows> {
        Rows::with_capacity(&self.driver, batch, pixels)
    }

    fn channels(&self, batch: usize, total: usize) -> Result<Channels> {
        Channels::with_capacity(&self.driver, batch, total)
    }

    fn filter(&self, spec: &FilterSpec<'_>) -> Result<Filter> {
        Filter::pack(&self.driver, self.precision, spec, spec.geometry.c_in)
    }

    fn image_filter(&self, spec: &FilterSpec<'_>) -> Result<Filter> {
        Filter::pack(&self.driver, self.precision, spec, self.pixel(spec.geometry.c_in))
    }

    fn depthwise_filter(&self, spec: &FilterSpec<'_>) -> Result<Depthwise> {
        Depthwise::pack(&self.driver, spec)
    }

    fn squeeze_excite_weights(&self, spec: &WeightsSpec<'_>) -> Result<SqueezeExcite> {
        SqueezeExcite::new(&self.driver, spec)
    }

    fn patch_gate_weights(&self, gate: gate::PatchGate) -> Result<PatchGate> {
        PatchGate::new(&self.driver, &gate)
    }

    fn linear_weights(&self, layer: gate::Linear) -> Result<Linear> {
        Linear::new(&self.driver, &layer)
    }

    fn scratch(&self) -> Result<CudaScratch> {
        let p = self.driver.properties();
        let (capability, multiprocessors, shared_bytes) = (p.capability, p.multiprocessors, p.shared_bytes);
        let shape = Shape { precision: self.precision, capability, multiprocessors, shared_bytes };
        CudaScratch::new(&self.driver, shape)
    }

    fn reserve(&self, _scratch: &mut CudaScratch, _filter: &Filter, _channels: bool) -> Result<()> {
        Ok(())
    }

    fn reserve_squeeze_excite(
        &self,
        scratch: &mut CudaScratch,
        weights: &SqueezeExcite,
        batch: usize,
    ) -> Result<()> {
        let widths = [weights.squeeze.c_in, weights.squeeze.c_out, weights.excite.c_out];
        for (memory, width) in scratch.room.iter_mut().zip(widths) {
            memory.reserve(&self.driver, floats(batch, width), "squeeze-excitation")?;
        }
        Ok(())
    }

    fn reserve_rows(&self, scratch: &mut CudaScratch, branch: &Branch, batch: usize) -> Result<()> {
        let words = 2 + batch.saturating_mul(branch.convs.len());
        scratch.zeros.reserve(&self.driver, words.saturating_mul(size_of::<u32>()), "compaction")
    }

    fn reserve_stamps(&self, _scratch: &mut CudaScratch, _count: usize) -> Result<()> {
        Ok(())
    }

    fn run<R: Send>(
        &self,
        scratch: &mut CudaScratch,
        inference: impl FnOnce(&mut CudaQueue<'_>) -> R + Send,
    ) -> R {
        inference(&mut scratch.queue())
    }

    fn play<X: From<Error>>(
        queue: &mut CudaQueue<'_>,
        key: Option<u64>,
        images: &[f32],
        program: impl FnOnce(&mut CudaQueue<'_>, Images) -> Result<(), X>,
    ) -> Result<(), X> {
        let images = queue.bring(images)?;
        let Some(key) = key else {
            queue.start_stamps();
            return program(queue, images);
        };
        if queue.replay(key)? {
            return Ok(());
        }
        if !queue.seen(key) {
            return program(queue, images);
        }
        queue.record(key, |queue| program(queue, images))
    }

    fn upload<T: Value>(
        queue: &mut CudaQueue<'_>,
        vector: &mut Vector<T>,
        fill: impl FnOnce(&mut [T]),
    ) -> Result<()> {
        queue.wait()?;
        // SAFETY: everything issued has been waited for.
        fill(unsafe { vector.values_mut() });
        queue.copy_in(&vector.memory, &vector.host, 0..vector.bytes())
    }

    fn fetch<T: Value>(queue: &mut CudaQueue<'_>, vector: &mut Vector<T>) -> Result<()> {
        queue.copy_out(&vector.host, &vector.memory, vector.bytes())
    }

    fn read<'v, T: Value>(queue: &mut CudaQueue<'_>, vector: &'v Vector<T>) -> Result<&'v [T]> {
        queue.wait()?;
        // SAFETY: everything issued has been waited for; operations that would write take the vector mutably, and a
        // replay is of a program that did.
        unsafe { vector.values() }
    }

    fn stamp(queue: &mut CudaQueue<'_>) {
        // A stamp that failed has no time, which is an error when somebody asks for it.
        let _ = queue.stamp();
    }

    fn lap(queue: &mut CudaQueue<'_>, i: usize) -> Result<u64> {
        queue.lap(i)
    }

    fn all_rows(rows: &mut Rows, batch: usize, pixels: usize) {
        rows.set_all(batch, pixels);
    }

    fn all_channels(channels: &mut Channels, total: usize) {
        channels.set_all(total);
    }

    /// What is in a list is known to the device only; and there a row found by its pixel is as quick to read.
    fn same_rows(_a: &Rows, _b: &Rows) -> bool {
        false
    }

    fn patch_gate(
        queue: &mut CudaQueue<'_>,
        gate: &PatchGate,
        input: &Buffer,
        batch: usize,
        map: Extent,
        margins: &mut Vector<f32>,
    ) -> Result<()> {
        let PatchGate { weight, c, bias, grid } = gate;
        let shape = format_args!("{}×{}×{c}, {}×{} cells, batch {batch}", map.h, map.w, grid.h, grid.w);
        require("gate", "input", input.len, &[batch, map.h, map.w, *c], &shape)?;
        require("gate", "margins", margins.len(), &[batch, grid.h, grid.w], &shape)?;
        let params = PatchGateParams {
            input: queue.at(&input.memory),
            weight: queue.at(weight),
            margin: queue.at(&margins.memory),
            keep: 0,
            batch: batch as u32,
            h: map.h as u32,
            w: map.w as u32,
            c: *c as u32,
            grid_h: grid.h as u32,
            grid_w: grid.w as u32,
            bias: *bias,
            threshold: 0.0,
        };
        let launch = params.launch(queue.shape().dtype());
        // SAFETY: operands were checked above.
        unsafe { queue.launch(&launch, &params, &format_args!("gate, {shape}")) }
    }

    fn linear(
        queue: &mut CudaQueue<'_>,
        layer: &Linear,
        batch: usize,
        input: &Vector<f32>,
        output: &mut Vector<f32>,
    ) -> Result<()> {
        let (c_in, c_out) = (layer.c_in, layer.c_out);
        let shape = format_args!("{c_in} → {c_out}, batch {batch}");
        require("linear", "input", input.len(), &[batch, c_in], &shape)?;
        require("linear", "output", output.len(), &[batch, c_out], &shape)?;
        let (input, output) = (queue.at(&input.memory), queue.at(&output.memory));
        // SAFETY: operands were checked above.
        unsafe { linear(queue, layer, batch, input, output) }
    }

    fn decide(queue: &mut CudaQueue<'_>, call: Decide<'_, Vector<f32>, Vector<bool>>) -> Result<()> {
        let Decide { units, margins, at_least, keep, keep_at } = call;
        let shape = format_args!("{units} units");
        require("decide", "margins", margins.len(), &[units], &shape)?;
        require("decide", "decisions", keep.len().saturating_sub(keep_at), &[units], &shape)?;
        let params = DecideParams {
            margin: queue.at(&margins.memory),
            keep: queue.at(&keep.memory) + keep_at as u64,
            len: units as u32,
            threshold: at_least,
        };
        // SAFETY: operands were checked above.
        unsafe { queue.launch(&params.launch(), &params, &format_args!("decide, {shape}")) }
    }

    /// The granularity of a schedule is a hint, which is not followed.
    fn list_rows(
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
        if convs == 0 || convs > MAX_LEVELS {
            let why = "a branch has one to four convolutions";
            return Err(Error::Geometry { op: "compact", why, geometry: shape.to_string() });
        }
        branch.convs.iter().try_for_each(check_fits)?;
        // From this many kept cells on nothing is gathered; as many as there are: always is.
        let dense_from = (1..=cells).find(|&active| !schedule.gathers(active, cells)).unwrap_or(cells);
        let full_above = if branch.everywhere { 0 } else { dense_from.saturating_sub(1) };
        let full = branch.everywhere || dense_from < cells;
        let start_of = |i: usize| size_of::<u32>() * (starts_at + i * (batch + 1));
        let at = starts.memory.address();
        let mut level = [CompactLevel::default(); MAX_LEVELS];
        for (depth, level) in level[..convs].iter_mut().enumerate() {
            let i = convs - 1 - depth;
            let (conv, starts_here) = (&branch.convs[i], at + start_of(i) as u64);
            let map = (batch, conv.output.pixels());
            let next = branch.convs.get(i + 1);
            let shared = !full && next.is_some_and(crate::ConvGeometry::is_pointwise);
            if shared {
                let (list, next) = rows.split_at_mut(i + 1);
                list[i].share(&next[0], &starts.memory, starts_here);
            } else {
                rows[i].list(map, Some((&starts.memory, starts_here)))?;
            }
            let (listed, used) = rows[i].params();
            queue.hold(used);
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
            let (listed, used) = others.params();
            queue.hold(used);
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
            reserved: 0,
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

    fn list_channels(
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

    fn gather_gemm(
        queue: &mut CudaQueue<'_>,
        filter: &Filter,
        call: GatherGemm<'_, Buffer, Rows, Channels>,
    ) -> Result<()> {
        let GatherGemm { active, input, input_rows, output, output_rows, residual, act } = call;
        let ActiveSet { rows, c_in, c_out } = active;
        let (op, g, batch) = ("gather_gemm", &filter.geometry, rows.batch);
        let shape = format_args!("{g}, batch {batch}");
        check_rows(op, rows, g.output.pixels(), &shape)?;
        check_channels(op, c_in, g.c_in, batch, &shape)?;
        check_channels(op, c_out, g.c_out, batch, &shape)?;
        if input_rows == Placement::Compact && !g.is_pointwise() {
            let why = "compact input rows need a 1×1 kernel with stride 1";
            return Err(Error::Geometry { op, why, geometry: shape.to_string() });
        }
        require(op, "input", input.len, &[batch, g.input.pixels(), filter.pixel], &shape)?;
        require(op, "output", output.len, &[batch, g.output.pixels(), g.c_out], &shape)?;
        let (row_list, used) = rows.params();
        queue.hold(used);
        let (inputs, used) = c_in.params();
        queue.hold(used);
        let (outputs, used) = c_out.params();
        queue.hold(used);
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
        let launch = params.launch(device.dtype(), &device.tile(&params), device.most());
        // SAFETY: operands were checked above and agree with the geometry that the filter was packed for.
        unsafe { queue.launch(&launch, &params, &format_args!("{op}, {shape}")) }
    }

    fn depthwise(
        queue: &mut CudaQueue<'_>,
        filter: &Depthwise,
        call: depthwise::Depthwise<'_, Buffer, Rows, Channels>,
    ) -> Result<()> {
        let depthwise::Depthwise { rows, channels, input, input_channels, output, output_rows, act } = call;
        let (op, g, batch) = ("depthwise", &filter.geometry, rows.batch);
        let shape = format_args!("{g}, batch {batch}");
        check_rows(op, rows, g.output.pixels(), &shape)?;
        check_channels(op, channels, g.c_in, batch, &shape)?;
        require(op, "input", input.len, &[batch, g.input.pixels(), g.c_in], &shape)?;
        require(op, "output", output.len, &[batch, g.output.pixels(), g.c_out], &shape)?;
        let (row_list, used) = rows.params();
        queue.hold(used);
        let (channel_list, used) = channels.params();
        queue.hold(used);
        let params = DepthwiseParams {
            rows: row_list,
            channels: channel_list,
            window: Window::from(g),
            input: queue.at(&input.memory),
            output: queue.at(&output.memory),
            weight: queue.at(&filter.weight),
            bias: queue.at(&filter.bias),
            minus_constant: queue.maybe_at(filter.minus_constant.as_ref()),
            output_constant: queue.maybe_at(filter.output_constant.as_ref()),
            input_channels: input_channels.into(),
            output_rows: output_rows.into(),
            act: act.into(),
            reserved: 0,
        };
        let device = queue.shape();
        let launch = params.launch(device.dtype(), device.bytes(), device.most());
        // SAFETY: operands were checked above and agree with the geometry that the filter was packed for.
        unsafe { queue.launch(&launch, &params, &format_args!("{op}, {shape}")) }
    }

    fn max_pool(queue: &mut CudaQueue<'_>, call: MaxPool<'_, Buffer>) -> Result<()> {
        let MaxPool { geometry: g, batch, input, output } = call;
        g.check("max_pool")?;
        check_fits(&g)?;
        if g.c_in != g.c_out {
            let why = "pooling keeps the number of channels";
            return Err(Error::Geometry { op: "max_pool", why, geometry: g.to_string() });
        }
        require("max_pool", "input", input.len, &[batch, g.input.pixels(), g.c_in], &g)?;
        require("max_pool", "output", output.len, &[batch, g.output.pixels(), g.c_out], &g)?;
        let params = MaxPoolParams {
            window: Window::from(&g),
            input: queue.at(&input.memory),
            output: queue.at(&output.memory),
            batch: batch as u32,
            c: g.c_in as u32,
        };
        let device = queue.shape();
        let launch = params.launch(device.dtype(), device.bytes(), device.most());
        // SAFETY: operands were checked above.
        unsafe { queue.launch(&launch, &params, &format_args!("max_pool, {g}, batch {batch}")) }
    }

    fn mean_pool(
        queue: &mut CudaQueue<'_>,
        call: MeanPool<'_, Buffer, Vector<f32>, Rows, Channels>,
    ) -> Result<()> {
        let MeanPool { rows, channels, input, input_rows, mean, output } = call;
        let shape = check_pool("mean_pool", (rows, channels), input, input_rows, mean)?;
        require("mean_pool", "output", output.len(), &[rows.batch, channels.total], &shape)?;
        let output = queue.at(&output.memory);
        // SAFETY: operands were checked above.
        unsafe { mean_pool(queue, (rows, channels), input, input_rows, mean, (false, output)) }
    }

    fn squeeze_excite(
        queue: &mut CudaQueue<'_>,
        weights: &SqueezeExcite,
        call: squeeze_excite::SqueezeExcite<'_, Buffer, Rows, Channels>,
    ) -> Result<()> {
        let squeeze_excite::SqueezeExcite { rows, channels, data, data_rows, mean } = call;
        let op = "squeeze_excite";
        let (batch, c) = (rows.batch, weights.squeeze.c_in);
        let shape = check_pool(op, (rows, channels), data, data_rows, mean)?;
        check_channels(op, channels, c, batch, &shape)?;
        let means = queue.reserved(|scratch| &scratch.room[0], floats(batch, c))?;
        let hidden = queue.reserved(|scratch| &scratch.room[1], floats(batch, weights.squeeze.c_out))?;
        let factor = queue.reserved(|scratch| &scratch.room[2], floats(batch, c))?;
        // SAFETY: operands were checked above, and the room is as large.
        unsafe {
            mean_pool(queue, (rows, channels), data, data_rows, mean, (true, means))?;
            linear(queue, &weights.squeeze, batch, means, hidden)?;
            linear(queue, &weights.excite, batch, hidden, factor)?;
        }
        let (row_list, used) = rows.params();
        queue.hold(used);
        let (channel_list, used) = channels.params();
        queue.hold(used);
        let params = ScaleParams {
            rows: row_list,
            channels: channel_list,
            data: queue.at(&data.memory),
            factor,
            data_rows: data_rows.into(),
            reserved: 0,
        };
        let device = queue.shape();
        let launch = params.launch(device.dtype(), device.bytes(), device.most());
        // SAFETY: as above.
        unsafe { queue.launch(&launch, &params, &format_args!("{op}, {shape}")) }
    }

    fn pad_channels(queue: &mut CudaQueue<'_>, call: PadChannels<'_, Buffer>) -> Result<()> {
        call.check(call.input.len, call.output.len)?;
        let PadChannels { batch, input_map, output_map, c_in, c_out, stride, before, input, output } = call;
        let params = PadChannelsParams {
            input: queue.at(&input.memory),
            output: queue.at(&output.memory),
            batch: batch as u32,
            in_h: input_map.h as u32,
            in_w: input_map.w as u32,
            out_h: output_map.h as u32,
            out_w: output_map.w as u32,
            c_in: c_in as u32,
            c_out: c_out as u32,
            stride: stride as u32,
            before: before as u32,
            reserved: 0,
        };
        let device = queue.shape();
        let launch = params.launch(device.dtype(), device.bytes(), device.most());
        let shape = format_args!("{c_in} → {c_out} channels, stride {stride}, batch {batch}");
        // SAFETY: operands were checked above.
        unsafe { queue.launch(&launch, &params, &format_args!("shortcut, {shape}")) }
    }

    fn from_nchw(queue: &mut CudaQueue<'_>, call: FromNchw<'_, Buffer, Images>) -> Result<()> {
        let device = queue.shape();
        let pitch = call.c.next_multiple_of(device.precision.vector());
        call.check(call.input.len, call.output.len, pitch)?;
        let FromNchw { batch, c, image, border, bordered, input, output } = call;
        let params = FromNchwParams {
            input: input.address,
            output: queue.at(&output.memory),
            batch: batch as u32,
            c: c as u32,
            h: image.h as u32,
            w: image.w as u32,
            border_top: border.h as u32,
            border_left: border.w as u32,
            out_h: bordered.h as u32,
            out_w: bordered.w as u32,
            pitch: pitch as u32,
            reserved: 0,
        };
        let shape = format_args!("{c}×{}×{}, batch {batch}", image.h, image.w);
        // SAFETY: operands were checked above; the scratch holds the images.
        unsafe { queue.launch(&params.launch(device.dtype()), &params, &format_args!("layout, {shape}")) }
    }

    fn to_nchw(
        queue: &mut CudaQueue<'_>,
        batch: usize,
        map: Extent,
        c: usize,
        input: &Buffer,
        output: &mut Vector<f32>,
    ) -> Result<()> {
        let shape = format_args!("{c}×{}×{}, batch {batch}", map.h, map.w);
        require("layout", "input", input.len, &[batch, c, map.h, map.w], &shape)?;
        require("layout", "output", output.len(), &[batch, c, map.h, map.w], &shape)?;
        let params = ToNchwParams {
            input: queue.at(&input.memory),
            output: queue.at(&output.memory),
            batch: batch as u32,
            c: c as u32,
            pixels: map.pixels() as u32,
            reserved: 0,
        };
        let launch = params.launch(queue.shape().dtype());
        // SAFETY: operands were checked above.
        unsafe { queue.launch(&launch, &params, &format_args!("layout, {shape}")) }
    }
}

/// Bytes of the largest map of an inference: rows and elements are counted in 32 bits.
const MAP_BYTES: usize = 1 << 31;

impl Cuda {
    /// Elements from pixel to pixel of an image: whole vectors.
    fn pixel(&self, c: usize) -> usize {
        c.next_multiple_of(self.precision.vector())
    }
}

fn floats(batch: usize, width: usize) -> usize {
    batch.saturating_mul(width).saturating_mul(size_of::<f32>())
}

fn check_rows(op: &'static str, rows: &Rows, pixels: usize, shape: &dyn std::fmt::Display) -> Result<()> {
    if rows.pixels == pixels {
        return Ok(());
    }
    let geometry = format!("{shape}, rows of maps with {} pixels", rows.pixels);
    Err(Error::Geometry { op, why: "the active rows are pixels of another map", geometry })
}

fn check_channels(
    op: &'static str,
    channels: &Channels,
    total: usize,
    batch: usize,
    shape: &dyn std::fmt::Display,
) -> Result<()> {
    if channels.total != total {
        let geometry = format!("{shape}, active channels of {}", channels.total);
        return Err(Error::Geometry { op, why: "the active channels are of another layer", geometry });
    }
    require(op, "active channels", channels.samples().unwrap_or(batch), &[batch], &shape)
}

/// Checks what an operation on listed rows of data relies on; gives its shape in words.
fn check_pool(
    op: &'static str,
    (rows, channels): (&Rows, &Channels),
    data: &Buffer,
    placement: Placement,
    mean: Mean,
) -> Result<String> {
    let (batch, pixels, c) = (rows.batch, rows.pixels, channels.total);
    let shape = format!("batch {batch}, {pixels} pixels, {c} channels");
    if mean == Mean::AllPixels && placement == Placement::Compact {
        return Err(Error::Geometry { op, why: "compact rows are not all pixels", geometry: shape });
    }
    require(op, "input", data.len, &[batch, pixels, c], &shape)?;
    require(op, "active channels", channels.samples().unwrap_or(batch), &[batch], &shape)?;
    Ok(shape)
}

/// # Safety
/// Operands have been checked; `output` is `[batch, c]` and held by the queue.
unsafe fn mean_pool(
    queue: &mut CudaQueue<'_>,
    (rows, channels): (&Rows, &Channels),
    input: &Buffer,
    input_rows: Placement,
    mean: Mean,
    (by_channel, output): (bool, super::params::Address),
) -> Result<()> {
    let (row_list, used) = rows.params();
    queue.hold(used);
    let (channel_list, used) = channels.params();
    queue.hold(used);
    let params = MeanPoolParams {
        rows: row_list,
        channels: channel_list,
        input: queue.at(&input.memory),
        output,
        partial: 0,
        arrived: 0,
        input_rows: input_rows.into(),
        mean: mean.into(),
        by_channel: u32::from(by_channel),
        split: 1,
    };
    let launch = params.launch(queue.shape().dtype());
    let (batch, pixels, c) = (rows.batch, rows.pixels, channels.total);
    let shape = format_args!("mean_pool, batch {batch}, {pixels} pixels, {c} channels");
    // SAFETY: the caller's word.
    unsafe { queue.launch(&launch, &params, &shape) }
}

/// # Safety
/// `input` is `[batch, c_in]` and `output` `[batch, c_out]`, both held by the queue.
unsafe fn linear(
    queue: &mut CudaQueue<'_>,
    layer: &Linear,
    batch: usize,
    input: super::params::Address,
    output: super::params::Address,
) -> Result<()> {
    let (c_in, c_out) = (layer.c_in, layer.c_out);
    let params = LinearParams {
        input,
        weight: queue.at(&layer.weight),
        bias: queue.at(&layer.bias),
        output,
        keep: 0,
        batch: batch as u32,
        c_in: c_in as u32,
        c_out: c_out as u32,
        act: layer.act,
        threshold: 0.0,
        reserved: 0,
    };
    // SAFETY: the caller's word.
    unsafe {
        queue.launch(&params.launch(), &params, &format_args!("linear, {c_in} → {c_out}, batch {batch}"))
    }
}
