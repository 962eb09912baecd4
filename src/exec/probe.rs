//! [`Probe`]: kernel calls made one at a time for the clock, through the operations that an inference issues.
//!
//! A set of workloads goes round: everything is driven out of the caches, then every call of the set runs, each behind
//! a pass over its input, as the operation before it in a network would leave it. That is the time with weights in
//! memory. What is asked for warm runs a second time, now with the weights where the set left them.

use super::around::{Around, COPIED, copy, memory_map};
use super::draw;
use anyhow::{Context, Result, ensure};
use draw::Drawn;
use laud_kernels::compact::{Branch, BranchRows, ListChannels, Schedule};
use laud_kernels::depthwise::Depthwise;
use laud_kernels::gate::{Linear, PatchGate};
use laud_kernels::gather_gemm::{FilterSpec, GatherGemm, Placement};
use laud_kernels::layout::FromNchw;
use laud_kernels::max_pool::MaxPool;
use laud_kernels::mean_pool::{Mean, MeanPool};
use laud_kernels::shortcut::PadChannels;
use laud_kernels::squeeze_excite::{SqueezeExcite, WeightsSpec};
use laud_kernels::{Act, ActiveSet, Backend, ConvGeometry, Extent};
use laud_predictor::workload::{Cache, Op, Workload};

/// Something that runs kernel calls for the clock, whatever the backend.
pub trait Prober {
    /// Device in a few words.
    fn describe(&self) -> String;

    /// Makes the operands of a set of calls. Gives the workloads as they will be run: lists of active pixels can't have
    /// every combination of rows and runs, so the nearest is taken.
    ///
    /// # Errors
    /// When a workload is impossible, not one that the executor issues, or memory runs out.
    fn prepare(&mut self, workloads: &[Workload]) -> Result<Vec<Workload>>;

    /// Runs every call of the set once and writes what each took, in nanoseconds.
    ///
    /// # Errors
    /// Those of the kernels.
    fn round(&mut self, ns: &mut [u64]) -> Result<()>;
}

/// Calls on a backend.
pub struct Probe<B: Backend> {
    backend: B,
    around: Around,
    scratch: B::Scratch,
    set: Vec<Prepared<B>>,
    memory: Option<Memory<B>>,
    /// What is copied.
    far: [B::Buffer; 2],
}

/// One call.
struct Prepared<B: Backend> {
    workload: Workload,
    kind: Kind<B>,
    rows: B::Rows,
    c_in: B::Channels,
    c_out: B::Channels,
}

enum Kind<B: Backend> {
    Gemm(B::Filter),
    Depthwise(B::Depthwise),
    Squeeze(B::SqueezeExcite),
    MaxPool(ConvGeometry),
    MeanPool,
    PatchGate(B::PatchGate),
    Linear(B::Linear),
    PadChannels,
    FromNchw,
    Compact(Listing<B>),
}

/// Decisions and what is listed from them.
struct Listing<B: Backend> {
    branch: Branch,
    keep: B::Vector<bool>,
    rows: Vec<B::Rows>,
    starts: B::Vector<u32>,
}

/// Operands that the calls of a set share.
struct Memory<B: Backend> {
    source: B::Buffer,
    input: B::Buffer,
    output: B::Buffer,
    features: [B::Vector<f32>; 2],
    images: Vec<f32>,
}

/// Values of an operand, at most.
pub(super) const MOST: usize = 1 << 26;
/// Images are stored in whole vectors of at most so many channels.
const VECTOR: usize = 8;

impl<B: Backend> Probe<B> {
    /// Without calls yet.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(backend: B, around: Around) -> Result<Self> {
        let scratch = backend.scratch()?;
        let far = || backend.buffer(around.far, "what is copied around calls");
        let far = [far()?, far()?];
        Ok(Self { backend, around, scratch, set: Vec::new(), memory: None, far })
    }

    fn prepare_one(&mut self, w: &Workload) -> Result<Prepared<B>> {
        w.check()?;
        let g = geometry(w);
        let map = Extent { h: w.out_h as usize, w: w.out_w as usize };
        let batch = w.batch as usize;
        let largest = g.weights().max(batch * g.input.pixels() * g.c_in).max(batch * map.pixels() * g.c_out);
        ensure!(largest <= MOST, "an operand has {largest} values, at most {MOST} are measured");
        let pixels = draw::rows(w);
        let inputs = draw::channels(w, w.c_in, w.c_in_active, w.c_in_listed);
        let outputs = draw::channels(w, w.c_out, w.c_out_active, w.c_out_listed);
        let drawn = Workload {
            rows: pixels.count as u32,
            runs: pixels.runs,
            c_in_active: inputs.count,
            c_out_active: outputs.count,
            ..*w
        };
        let listed = w.c_in_listed || w.c_out_listed;
        let kind = match w.op {
            Op::GatherGemm => {
                let (weight, bias) = (draw::values(g.weights(), 0.02), vec![0.1; g.c_out]);
                // As LAUDNet's ResNet, whose inactive channels are worth a constant.
                let (input, output) = (vec![0.01; g.c_in], vec![0.01; g.c_out]);
                let constant = g.groups == 1;
                let spec = FilterSpec {
                    geometry: g,
                    weight: &weight,
                    bias: &bias,
                    input_constant: (constant && w.c_in_listed).then_some(&input),
                    output_constant: (constant && w.c_out_listed).then_some(&output),
                    output_group: w.c_out_listed.then_some(w.group_size as usize),
                };
                let filter = match w.reads_image() {
                    true => self.backend.image_filter(&spec)?,
                    false => self.backend.filter(&spec)?,
                };
                self.backend.reserve(&mut self.scratch, &filter, listed)?;
                Kind::Gemm(filter)
            }
            Op::Depthwise => {
                let (weight, bias) = (draw::values(g.weights(), 0.02), vec![0.1; g.c_out]);
                let spec = FilterSpec {
                    geometry: g,
                    weight: &weight,
                    bias: &bias,
                    input_constant: None,
                    output_constant: None,
                    output_group: None,
                };
                Kind::Depthwise(self.backend.depthwise_filter(&spec)?)
            }
            Op::SqueezeExcite => {
                let (c, q) = (g.c_in, g.c_out);
                let (fc1, fc2) = (draw::values(c * q, 0.02), draw::values(c * q, 0.02));
                let (bias1, bias2) = (vec![0.1; q], vec![0.1; c]);
                let spec = WeightsSpec { c, q, fc1: &fc1, bias1: &bias1, fc2: &fc2, bias2: &bias2 };
                let weights = self.backend.squeeze_excite_weights(&spec)?;
                self.backend.reserve_squeeze_excite(&mut self.scratch, &weights, batch)?;
                Kind::Squeeze(weights)
            }
            Op::MaxPool => Kind::MaxPool(g),
            Op::MeanPool => Kind::MeanPool,
            Op::PatchGate => {
                let cells = |pixels: usize| pixels.div_ceil(PATCH);
                let grid = Extent { h: cells(map.h), w: cells(map.w) };
                let gate = PatchGate { weight: draw::values(g.c_in, 0.02), bias: 0.0, grid };
                Kind::PatchGate(self.backend.patch_gate_weights(gate)?)
            }
            Op::Linear => {
                let weight = draw::values(g.c_in * g.c_out, 0.02);
                Kind::Linear(self.backend.linear_weights(Linear::new(weight, vec![0.1; g.c_out], false)?)?)
            }
            Op::PadChannels => Kind::PadChannels,
            Op::FromNchw => Kind::FromNchw,
            Op::Compact => Kind::Compact(self.listing(branch(&g), batch, &pixels)?),
            Op::ToNchw | Op::Overhead => anyhow::bail!("{} is not timed by itself", w.op),
        };
        let rows = self.rows(batch, map, &pixels)?;
        let (c_in, c_out) = (self.channels(&inputs, w, g.c_in)?, self.channels(&outputs, w, g.c_out)?);
        Ok(Prepared { workload: drawn, kind, rows, c_in, c_out })
    }

    /// The list of the pixels drawn.
    fn rows(&mut self, batch: usize, map: Extent, pixels: &Drawn) -> Result<B::Rows> {
        if pixels.keep.is_none() {
            let mut rows = self.backend.rows(batch, 0)?;
            B::all_rows(&mut rows, batch, map.pixels());
            return Ok(rows);
        }
        let pointwise = ConvGeometry::pointwise(map, 1, 1);
        let branch = Branch { grid: map, convs: vec![pointwise], everywhere: false };
        let mut listing = self.listing(branch, batch, pixels)?;
        self.backend.run(&mut self.scratch, |queue| {
            B::play(queue, None, &[], |queue, _| listing.list(queue, batch))
        })?;
        listing.rows.pop().context("a list for the only convolution")
    }

    fn listing(&mut self, branch: Branch, batch: usize, pixels: &Drawn) -> Result<Listing<B>> {
        let all = vec![true; batch * branch.grid.pixels()];
        let kept = pixels.keep.as_ref().unwrap_or(&all);
        let mut keep = self.backend.vector(kept.len(), "decisions")?;
        let rows = branch.convs.iter().map(|conv| self.backend.rows(batch, conv.output.pixels()));
        let rows = rows.collect::<laud_kernels::Result<Vec<_>>>()?;
        let starts = self.backend.vector(branch.convs.len() * (batch + 1), "numbers of rows")?;
        self.backend.reserve_rows(&mut self.scratch, &branch, batch)?;
        self.backend.run(&mut self.scratch, |queue| {
            B::upload(queue, &mut keep, |keep: &mut [bool]| keep.copy_from_slice(kept))
        })?;
        Ok(Listing { branch, keep, rows, starts })
    }

    fn channels(&mut self, drawn: &Drawn, w: &Workload, total: usize) -> Result<B::Channels> {
        let batch = w.batch as usize;
        let mut channels = self.backend.channels(batch, total)?;
        let Some(kept) = &drawn.keep else {
            B::all_channels(&mut channels, total);
            return Ok(channels);
        };
        // Whole groups are drawn as far as they divide the channels.
        let group = Some(w.group_size as usize).filter(|size| total.is_multiple_of(*size)).unwrap_or(1);
        let mut keep = self.backend.vector(kept.len() / group, "decisions")?;
        self.backend.run(&mut self.scratch, |queue| {
            B::upload(queue, &mut keep, |keep: &mut [bool]| {
                keep.iter_mut().zip(kept.chunks(group)).for_each(|(keep, kept)| *keep = kept[0]);
            })?;
            B::play(queue, None, &[], |queue, _| {
                let (keep, channels) = (&keep, &mut channels);
                B::list_channels(queue, ListChannels { batch, group, total, keep, keep_at: 0, channels })
            })
        })?;
        Ok(channels)
    }
}

impl<B: Backend> Listing<B> {
    fn list(&mut self, queue: &mut B::Queue<'_>, batch: usize) -> laud_kernels::Result<()> {
        let call = BranchRows {
            branch: &self.branch,
            batch,
            keep: &self.keep,
            keep_at: 0,
            schedule: Schedule { granularity: 1, dense_above: 1.0 },
            rows: &mut self.rows,
            others: None,
            starts: &mut self.starts,
            starts_at: 0,
        };
        B::list_rows(queue, call)
    }
}

/// A branch around one convolution, as a bottleneck's.
fn branch(g: &ConvGeometry) -> Branch {
    let pointwise = |map| ConvGeometry::pointwise(map, 1, 1);
    let middle = ConvGeometry { c_in: 1, c_out: 1, groups: 1, ..*g };
    Branch { grid: g.output, convs: vec![pointwise(g.input), middle, pointwise(g.output)], everywhere: false }
}

/// Side of a patch where a gate is timed.
const PATCH: usize = 4;

impl<B: Backend> Prober for Probe<B> {
    fn describe(&self) -> String {
        self.backend.describe()
    }

    fn prepare(&mut self, workloads: &[Workload]) -> Result<Vec<Workload>> {
        self.set.clear();
        self.memory = None;
        for workload in workloads {
            let prepared = self.prepare_one(workload).with_context(|| workload.to_string())?;
            self.set.push(prepared);
        }
        let sizes = |size: &dyn Fn(&Workload) -> usize| {
            self.set.iter().map(|call| size(&call.workload)).max().unwrap_or(0)
        };
        // Images may be stored with more channels than they have.
        let padded = |c: u32| (c as usize).next_multiple_of(if (c as usize) < VECTOR { VECTOR } else { 1 });
        let input = sizes(&|w| (w.batch * w.in_h * w.in_w) as usize * padded(w.c_in));
        let output = sizes(&|w| (w.batch * w.out_h * w.out_w) as usize * padded(w.c_in.max(w.c_out)));
        let features = sizes(&|w| w.batch as usize * w.c_in.max(w.c_out).max(w.out_h * w.out_w) as usize);
        let images = sizes(&|w| match w.op {
            Op::FromNchw => (w.batch * w.in_h * w.in_w * w.c_in) as usize,
            _ => 0,
        });
        let buffer = |len: usize, what: &str| self.backend.buffer(len, what);
        let len = input.next_multiple_of(COPIED * COPIED);
        let mut memory = Memory::<B> {
            source: buffer(len, "operands")?,
            input: buffer(len, "operands")?,
            output: buffer(output, "operands")?,
            features: [
                self.backend.vector(features, "features")?,
                self.backend.vector(features, "features")?,
            ],
            images: draw::values(len.max(images), 1.0),
        };
        let Memory { source, images: drawn, .. } = &mut memory;
        self.backend.run(&mut self.scratch, |queue| {
            B::play(queue, None, drawn, |queue, images| {
                let (c, image, border) = (COPIED, memory_map(len), Extent::default());
                let call = FromNchw {
                    batch: 1,
                    c,
                    image,
                    border,
                    bordered: image,
                    scale: None,
                    input: images,
                    output: source,
                };
                B::from_nchw(queue, call)
            })
        })?;
        memory.images.truncate(images);
        self.backend.reserve_stamps(&mut self.scratch, 4 * self.set.len())?;
        self.memory = Some(memory);
        Ok(self.set.iter().map(|call| call.workload).collect())
    }

    fn round(&mut self, ns: &mut [u64]) -> Result<()> {
        let Self { backend, around, scratch, set, memory, far } = self;
        let memory = memory.as_mut().context("no calls are prepared")?;
        ensure!(ns.len() == set.len(), "{} times for {} calls", ns.len(), set.len());
        let images = std::mem::take(&mut memory.images);
        let runs = |call: &Prepared<B>, cache: Cache| cache == Cache::Cold || call.workload.cache == cache;
        let outcome = backend.run(scratch, |queue| {
            B::play(queue, None, &images, |queue, images| {
                for (cache, copies, len) in
                    [(Cache::Cold, around.ahead, around.far), (Cache::Warm, 1, around.near)]
                {
                    let [from, to] = &mut *far;
                    (0..copies).try_for_each(|_| copy::<B>(queue, from, to, len))?;
                    for call in set.iter_mut().filter(|call| runs(call, cache)) {
                        call.touch(queue, memory)?;
                        B::stamp(queue);
                        call.issue(queue, images, memory)?;
                        B::stamp(queue);
                    }
                }
                anyhow::Ok(())
            })?;
            let all = [Cache::Cold, Cache::Warm].into_iter().flat_map(|cache| {
                let set = set.iter().enumerate();
                set.filter(move |(_, call)| runs(call, cache)).map(|(i, _)| i)
            });
            for (at, i) in all.enumerate() {
                ns[i] = B::lap(queue, 2 * at)?;
            }
            Ok(())
        });
        memory.images = images;
        outcome
    }
}

fn geometry(w: &Workload) -> ConvGeometry {
    let [in_h, in_w, out_h, out_w] = [w.in_h, w.in_w, w.out_h, w.out_w].map(|n| n as usize);
    let (kernel, stride) = (w.kernel as usize, w.stride as usize);
    // More padding before than behind, as torchvision's even padding leaves it where the stride does not divide.
    let pad =
        |input: usize, output: usize| ((output - 1) * stride + kernel).saturating_sub(input).div_ceil(2);
    ConvGeometry {
        input: Extent { h: in_h, w: in_w },
        output: Extent { h: out_h, w: out_w },
        c_in: w.c_in as usize,
        c_out: w.c_out as usize,
        kernel,
        stride,
        pad_top: pad(in_h, out_h),
        pad_left: pad(in_w, out_w),
        groups: w.groups as usize,
    }
}

fn placement(compact: bool) -> Placement {
    if compact { Placement::Compact } else { Placement::Natural }
}

impl<B: Backend> Prepared<B> {
    /// Writes the input, as the operation before would.
    fn touch(&self, queue: &mut B::Queue<'_>, memory: &mut Memory<B>) -> Result<()> {
        let w = &self.workload;
        if matches!(self.kind, Kind::Linear(_) | Kind::FromNchw | Kind::Compact(_)) {
            return Ok(());
        }
        let len = (w.batch * w.in_h * w.in_w * w.c_in) as usize;
        copy::<B>(queue, &memory.source, &mut memory.input, len.next_multiple_of(COPIED * COPIED))
    }

    fn issue(
        &mut self,
        queue: &mut B::Queue<'_>,
        images: B::Images<'_>,
        memory: &mut Memory<B>,
    ) -> Result<()> {
        let w = &self.workload;
        let Memory { input, output, features: [from, to], .. } = memory;
        let Self { rows, c_in, c_out, .. } = self;
        let (rows, c_in, c_out) = (&*rows, &*c_in, &*c_out);
        let batch = w.batch as usize;
        let (input_map, output_map) = (
            Extent { h: w.in_h as usize, w: w.in_w as usize },
            Extent { h: w.out_h as usize, w: w.out_w as usize },
        );
        let (input_rows, output_rows) = (placement(w.input_compact), placement(w.output_compact));
        match &mut self.kind {
            Kind::Gemm(filter) => {
                let active = ActiveSet { rows, c_in, c_out };
                let (residual, act) = (w.residual, Act::Relu);
                let input = &*input;
                let call = GatherGemm { active, input, input_rows, output, output_rows, residual, act };
                B::gather_gemm(queue, filter, call)?;
            }
            Kind::Depthwise(filter) => {
                let input_channels = placement(w.c_in_listed);
                let (channels, input, act) = (c_out, &*input, Act::Relu);
                let call = Depthwise { rows, channels, input, input_channels, output, output_rows, act };
                B::depthwise(queue, filter, call)?;
            }
            Kind::Squeeze(weights) => {
                let (channels, data, mean) = (c_in, input, Mean::Active);
                let call = SqueezeExcite { rows, channels, data, data_rows: input_rows, mean };
                B::squeeze_excite(queue, weights, call)?;
            }
            Kind::MaxPool(geometry) => {
                let (geometry, input) = (*geometry, &*input);
                B::max_pool(queue, MaxPool { geometry, batch, input, output })?;
            }
            Kind::MeanPool => {
                let (channels, input, mean, output) = (c_in, &*input, Mean::Active, to);
                B::mean_pool(queue, MeanPool { rows, channels, input, input_rows, mean, output })?;
            }
            Kind::PatchGate(gate) => {
                B::patch_gate(queue, gate, input, batch, input_map, to)?;
            }
            Kind::Linear(layer) => B::linear(queue, layer, batch, from, to)?,
            Kind::Compact(listing) => listing.list(queue, batch)?,
            Kind::PadChannels => {
                let (c_in, c_out) = (w.c_in as usize, w.c_out as usize);
                let (stride, before, input) = (w.stride as usize, (c_out - c_in) / 2, &*input);
                let call =
                    PadChannels { batch, input_map, output_map, c_in, c_out, stride, before, input, output };
                B::pad_channels(queue, call)?;
            }
            Kind::FromNchw => {
                let c = w.c_in as usize;
                let border =
                    Extent { h: (output_map.h - input_map.h) / 2, w: (output_map.w - input_map.w) / 2 };
                let (image, bordered, input) = (input_map, output_map, images);
                let call = FromNchw { batch, c, image, border, bordered, scale: None, input, output };
                B::from_nchw(queue, call)?;
            }
        }
        Ok(())
    }
}
