//! [`Workload`]: one call of one kernel, in numbers; [`Sample`]: how long one took.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// One call of one kernel, in numbers only: a row of the measurements' CSV file and the question that is put to a
/// [`Model`](crate::learned::Model).
///
/// A field that means nothing to an operation has the value that [`Workload::new`] gives it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// The kernel.
    pub op: Op,
    /// What activations and weights are stored as.
    pub dtype: DType,
    /// Samples.
    pub batch: u32,
    /// Input map's height.
    pub in_h: u32,
    /// Input map's width.
    pub in_w: u32,
    /// Output map's height.
    pub out_h: u32,
    /// Output map's width.
    pub out_w: u32,
    /// Input channels, active or not.
    pub c_in: u32,
    /// Output channels, active or not; hidden channels of a squeeze-excitation.
    pub c_out: u32,
    /// Side of the filter; 1 where there is none.
    pub kernel: u32,
    /// Stride.
    pub stride: u32,
    /// Convolution groups.
    pub groups: u32,
    /// Active output pixels over the batch; rows of a [`Op::Linear`].
    pub rows: u32,
    /// Maximal stretches of active pixels that are neighbours in a line of the map: what patches leave to gathering.
    /// Lines of the map where every pixel is active.
    pub runs: u32,
    /// Active input channels, mean over the samples.
    pub c_in_active: f64,
    /// Active output channels, mean over the samples.
    pub c_out_active: f64,
    /// Whether the input's active channels are listed, per sample, rather than all.
    pub c_in_listed: bool,
    /// Whether the output's active channels are listed.
    pub c_out_listed: bool,
    /// Consecutive channels that are skipped together; 1 where no channels are.
    pub group_size: u32,
    /// Whether the output is added to what is there.
    pub residual: bool,
    /// Input rows lie next to each other rather than at their pixels.
    pub input_compact: bool,
    /// Output rows lie next to each other.
    pub output_compact: bool,
    /// How rows get to the multiplication.
    pub route: Route,
    /// Which of the kernel's tile shapes; 0: its only one, or the one it takes by itself.
    pub tile: u32,
    /// Threads.
    pub threads: u32,
    /// Where operands are when the call begins.
    pub cache: Cache,
}

/// The kernels that a network's time is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Convolution over an active set.
    GatherGemm,
    /// Depthwise convolution over an active set.
    Depthwise,
    /// Max pooling.
    MaxPool,
    /// Mean over active pixels.
    MeanPool,
    /// Squeeze-excitation.
    SqueezeExcite,
    /// A gate's decisions about patches.
    PatchGate,
    /// Fully connected layer in f32, of a gate or the classifier.
    Linear,
    /// Shortcut that strides and pads channels with zeros.
    PadChannels,
    /// Images to the layout inside.
    FromNchw,
    /// The layout inside to the public one.
    ToNchw,
    /// Decisions to lists of active pixels and channels.
    Compact,
    /// What an inference costs besides its kernels.
    Overhead,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::GatherGemm,
        Self::Depthwise,
        Self::MaxPool,
        Self::MeanPool,
        Self::SqueezeExcite,
        Self::PatchGate,
        Self::Linear,
        Self::PadChannels,
        Self::FromNchw,
        Self::ToNchw,
        Self::Compact,
        Self::Overhead,
    ];

    /// As in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::GatherGemm => "gather_gemm",
            Self::Depthwise => "depthwise",
            Self::MaxPool => "max_pool",
            Self::MeanPool => "mean_pool",
            Self::SqueezeExcite => "squeeze_excite",
            Self::PatchGate => "patch_gate",
            Self::Linear => "linear",
            Self::PadChannels => "pad_channels",
            Self::FromNchw => "from_nchw",
            Self::ToNchw => "to_nchw",
            Self::Compact => "compact",
            Self::Overhead => "overhead",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Storage type, and how products of it are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// 32-bit floating point.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Stored as 32-bit floating point, multiplied with 10 bits of mantissa on tensor cores.
    Tf32,
    /// Whole numbers, −127 to 127.
    Int8,
}

impl DType {
    /// Bytes of an element.
    pub fn bytes(self) -> u32 {
        match self {
            Self::F32 | Self::Tf32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// As in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Tf32 => "tf32",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How rows get to the multiplication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Every pixel: nothing is gathered.
    Dense,
    /// Rows are gathered while their operands are loaded.
    Implicit,
    /// Rows are copied next to each other first.
    Explicit,
}

/// Where operands are when a call begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// In memory.
    Cold,
    /// In the caches, as far as they fit.
    Warm,
}

/// How long a workload took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// What was timed.
    pub workload: Workload,
    /// Median of the quickest third of the repeats, in nanoseconds: what it takes undisturbed, at the pace that the device mostly has.
    pub median_ns: f64,
    /// Median absolute deviation of all repeats, in nanoseconds.
    pub mad_ns: f64,
    /// Number of repeats.
    pub repeats: u32,
}

impl Workload {
    /// The dense pointwise `op` on one sample of `h × w` pixels and `c_in → c_out` channels, fp32, one thread, warm:
    /// where a description starts.
    pub fn new(op: Op, h: u32, w: u32, c_in: u32, c_out: u32) -> Self {
        Self {
            op,
            dtype: DType::F32,
            batch: 1,
            in_h: h,
            in_w: w,
            out_h: h,
            out_w: w,
            c_in,
            c_out,
            kernel: 1,
            stride: 1,
            groups: 1,
            rows: h.saturating_mul(w),
            runs: h,
            c_in_active: c_in.into(),
            c_out_active: c_out.into(),
            c_in_listed: false,
            c_out_listed: false,
            group_size: 1,
            residual: false,
            input_compact: false,
            output_compact: false,
            route: Route::Dense,
            tile: 0,
            threads: 1,
            cache: Cache::Warm,
        }
    }

    /// Output pixels over the batch, active or not.
    pub fn pixels(&self) -> u64 {
        u64::from(self.batch) * u64::from(self.out_h) * u64::from(self.out_w)
    }

    /// Active fraction of the output pixels; 1 of none.
    pub fn row_density(&self) -> f64 {
        if self.pixels() == 0 { 1.0 } else { f64::from(self.rows) / self.pixels() as f64 }
    }

    /// Whether a convolution reads images: few channels, and nothing outside of their border.
    pub fn reads_image(&self) -> bool {
        /// Fewer input channels than any map behind a stem has.
        const CHANNELS: u32 = 8;
        let inside = |output: u32, input: u32| {
            let last = u64::from(output.saturating_sub(1)) * u64::from(self.stride);
            last + u64::from(self.kernel) <= u64::from(input)
        };
        self.op == Op::GatherGemm
            && (self.groups, self.c_in < CHANNELS, self.kernel > 1) == (1, true, true)
            && inside(self.out_h, self.in_h)
            && inside(self.out_w, self.in_w)
    }

    /// Multiply-accumulates of what is active, not padded to tiles.
    pub fn macs(&self) -> f64 {
        let taps = f64::from(self.kernel).powi(2);
        match self.op {
            Op::Depthwise => f64::from(self.rows) * taps * self.c_out_active,
            _ => {
                f64::from(self.rows) * taps * self.c_in_active * self.c_out_active
                    / f64::from(self.groups.max(1))
            }
        }
    }

    /// Checks that the numbers can be those of a call: sizes between 1 and 2²⁴, groups that divide the channels,
    /// not more active than there is. The error names field and value.
    pub fn check(&self) -> Result<()> {
        const MOST: u32 = 1 << 24;
        let sizes = [
            ("batch", self.batch),
            ("in_h", self.in_h),
            ("in_w", self.in_w),
            ("out_h", self.out_h),
            ("out_w", self.out_w),
            ("c_in", self.c_in),
            ("c_out", self.c_out),
            ("kernel", self.kernel),
            ("stride", self.stride),
            ("groups", self.groups),
            ("group_size", self.group_size),
            ("threads", self.threads),
        ];
        if let Some((field, value)) = sizes.into_iter().find(|(_, value)| !(1..=MOST).contains(value)) {
            return Err(Error::Workload { field, value: value.into(), need: "in 1..=16777216" });
        }
        let fail = |field, value: f64, need| Err(Error::Workload { field, value, need });
        let pixels = self.pixels() as f64;
        if pixels > f64::from(u32::MAX) {
            return fail("out_h", self.out_h.into(), "a map whose batch has below 2^32 pixels");
        }
        if f64::from(self.rows) > pixels && self.op != Op::Linear {
            return fail("rows", self.rows.into(), "at most the output pixels of the batch");
        }
        if self.runs > self.rows {
            return fail("runs", self.runs.into(), "at most rows");
        }
        for (field, value, total) in
            [("c_in_active", self.c_in_active, self.c_in), ("c_out_active", self.c_out_active, self.c_out)]
        {
            if !(0.0..=f64::from(total)).contains(&value) {
                return fail(field, value, "a number between 0 and the channels");
            }
        }
        if !self.c_in.is_multiple_of(self.groups) || !self.c_out.is_multiple_of(self.groups) {
            return fail("groups", self.groups.into(), "a divisor of c_in and c_out");
        }
        Ok(())
    }
}

impl Sample {
    /// Checks workload and times: positive median, a deviation that is not negative, at least one repeat.
    pub fn check(&self) -> Result<()> {
        self.workload.check()?;
        if !(self.median_ns.is_finite() && self.median_ns > 0.0) {
            return Err(Error::Workload { field: "median_ns", value: self.median_ns, need: "positive" });
        }
        if !(self.mad_ns.is_finite() && self.mad_ns >= 0.0) {
            return Err(Error::Workload { field: "mad_ns", value: self.mad_ns, need: "0 or more" });
        }
        if self.repeats == 0 {
            return Err(Error::Workload { field: "repeats", value: 0.0, need: "1 or more" });
        }
        Ok(())
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, batch, in_h, in_w, out_h, out_w, c_in, c_out, kernel, stride, groups, .. } = self;
        write!(f, "{op} {batch}×{in_h}×{in_w}×{c_in} → {out_h}×{out_w}×{c_out} k{kernel} s{stride}")?;
        if *groups > 1 {
            write!(f, " g{groups}")?;
        }
        write!(f, ", {} rows in {} runs", self.rows, self.runs)?;
        if self.c_in_listed || self.c_out_listed {
            write!(f, ", {:.1} → {:.1} channels active", self.c_in_active, self.c_out_active)?;
        }
        write!(f, ", {} threads", self.threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_numbers_are_refused_by_field() {
        let good = Workload::new(Op::GatherGemm, 7, 7, 64, 128);
        good.check().unwrap();
        let field = |change: &dyn Fn(&mut Workload)| {
            let mut bad = good;
            change(&mut bad);
            match bad.check() {
                Err(Error::Workload { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(field(&|w| w.batch = 0), "batch");
        assert_eq!(field(&|w| w.rows = 50), "rows");
        assert_eq!(field(&|w| w.runs = 50), "runs");
        assert_eq!(field(&|w| w.c_in_active = f64::NAN), "c_in_active");
        assert_eq!(field(&|w| w.c_out_active = 129.0), "c_out_active");
        assert_eq!(field(&|w| w.groups = 3), "groups");
        assert_eq!(field(&|w| w.threads = u32::MAX), "threads");
        let sample = Sample { workload: good, median_ns: f64::NAN, mad_ns: 0.0, repeats: 3 };
        assert!(matches!(sample.check(), Err(Error::Workload { field: "median_ns", .. })));
        assert!(Sample { median_ns: 5.0, mad_ns: -1.0, ..sample }.check().is_err());
        assert!(Sample { median_ns: 5.0, repeats: 0, ..sample }.check().is_err());
        Sample { median_ns: 5.0, ..sample }.check().unwrap();
    }
}
