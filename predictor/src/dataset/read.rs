use serde::Deserialize;

use crate::{Error, Result};

/// Published figures of a GPU, as `<gpu>.spec.json` gives them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct GpuSpec {
    /// The vendor's name.
    #[serde(rename = "Device")]
    pub device: String,
    /// Memory bandwidth, GB/s.
    #[serde(rename = "Mem_Bw")]
    pub bandwidth_gb_per_s: f64,
    /// Multiprocessors.
    #[serde(rename = "Num_Sm")]
    pub multiprocessors: f64,
    /// Peak fp32 rate, GFLOP/s.
    #[serde(rename = "SingleFLOPs")]
    pub gflops: f64,
}

/// A dense fp32 convolution of a vendor's library, square in everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Conv {
    /// Samples.
    pub batch: u32,
    /// Input channels.
    pub in_channels: u32,
    /// Output channels.
    pub out_channels: u32,
    /// Side of the filter.
    pub kernel: u32,
    /// Side of the input map.
    pub input_size: u32,
    /// Stride.
    pub stride: u32,
    /// Zeros around the input.
    pub padding: u32,
}

/// One line of `conv_<gpu>.csv`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// What was timed.
    pub conv: Conv,
    /// Milliseconds.
    pub latency_ms: f64,
    /// When in the measuring session, `0..1`: the line's place in the file.
    pub moment: f64,
}

/// A GPU and what was measured on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// Short name, as in the file names.
    pub name: String,
    /// Its published figures.
    pub spec: GpuSpec,
    /// Measurements in the order of the file.
    pub timings: Vec<Timing>,
}

impl Conv {
    /// Side of the output map; 0 where the filter does not fit.
    pub fn output_size(&self) -> u32 {
        let padded = self.input_size + 2 * self.padding;
        if padded < self.kernel { 0 } else { (padded - self.kernel) / self.stride.max(1) + 1 }
    }
}

impl Gpu {
    /// Reads the texts of `conv_<name>.csv` and `<name>.spec.json`.
    ///
    /// # Errors
    /// Names the file, and the line and column of the first value that is missing or impossible.
    pub fn read(name: &str, csv: &str, spec: &str) -> Result<Self> {
        let spec: GpuSpec =
            serde_json::from_str(spec).map_err(|source| Error::Json { what: "a GPU's figures", source })?;
        let figures = [
            ("Mem_Bw", spec.bandwidth_gb_per_s),
            ("Num_Sm", spec.multiprocessors),
            ("SingleFLOPs", spec.gflops),
        ];
        for (field, value) in figures {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::Device { device: name.to_owned(), field, value });
            }
        }
        let timings = timings(name, csv)?;
        Ok(Self { name: name.to_owned(), spec, timings })
    }
}

fn timings(name: &str, text: &str) -> Result<Vec<Timing>> {
    #[derive(Deserialize)]
    struct Line {
        latency_ms: f64,
        batch: u32,
        in_channels: u32,
        out_channels: u32,
        kernel: u32,
        input_size: u32,
        stride: u32,
        padding: u32,
    }
    let fail = |line: u64, column: Option<&str>, reason: String| Error::Csv {
        what: format!("conv_{name}.csv"),
        line,
        column: column.map(str::to_owned),
        reason,
    };
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| fail(1, None, error.to_string()))?.clone();
    let mut lines = Vec::new();
    for line in reader.deserialize::<Line>() {
        let at = lines.len() as u64 + 2;
        let line = line.map_err(|error| match error.kind() {
            csv::ErrorKind::Deserialize { err, .. } => {
                let column = err.field().and_then(|field| header.get(field as usize));
                fail(at, column, err.kind().to_string())
            }
            _ => fail(at, None, error.to_string()),
        })?;
        let Line { latency_ms, batch, in_channels, out_channels, kernel, input_size, stride, padding } = line;
        if !(latency_ms.is_finite() && latency_ms > 0.0) {
            return Err(fail(at, Some("latency_ms"), format!("{latency_ms} is not a time")));
        }
        let sizes = [
            ("batch", batch),
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("kernel", kernel),
            ("input_size", input_size),
            ("stride", stride),
            ("padding", padding + 1),
        ];
        if let Some((column, value)) = sizes.into_iter().find(|(_, value)| !(1..=1 << 20).contains(value)) {
            return Err(fail(at, Some(column), format!("{value} is not a size")));
        }
        let conv = Conv { batch, in_channels, out_channels, kernel, input_size, stride, padding };
        if conv.output_size() == 0 {
            return Err(fail(at, Some("kernel"), format!("{kernel} is larger than the padded input")));
        }
        lines.push((conv, latency_ms));
    }
    let n = lines.len() as f64;
    let timing = |(i, (conv, latency_ms))| Timing { conv, latency_ms, moment: i as f64 / n };
    Ok(lines.into_iter().enumerate().map(timing).collect())
}
