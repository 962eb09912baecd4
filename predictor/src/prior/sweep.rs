use std::fmt;

use super::{Mode, Network, Prior};
use crate::{Density, Result};

/// One row of a sweep. [`fmt::Display`] writes it as CSV with the columns of [`SweepRow::HEADER`].
///
/// Mode `channel` is the exact expectation of the official mode of that name, which draws at random.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepRow {
    /// Name of the network.
    pub model: String,
    /// Name of the device.
    pub hardware: String,
    /// Name of the mode, without granularities.
    pub mode: &'static str,
    /// Granularity per stage, such as `4-4-2-1`.
    pub granularity: String,
    /// Density in every block (the paper's activation rate).
    pub activation: Density,
    /// Latency of the batch, in seconds.
    pub latency_s: f64,
    /// Latency of the batch of the dense network, in seconds.
    pub static_latency_s: f64,
}

impl SweepRow {
    /// Names of the columns.
    pub const HEADER: &'static str = "model,hardware,mode,granularity,activation,latency_s,static_latency_s";
}

impl fmt::Display for SweepRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, granularity, activation, latency_s, static_latency_s, .. } = self;
        let (model, hardware) = (Field(&self.model), Field(&self.hardware));
        write!(f, "{model},{hardware},{mode},{granularity},{activation},{latency_s:?},{static_latency_s:?}")
    }
}

/// Text as a CSV field, quoted where it has to be.
struct Field<'a>(&'a str);

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains([',', '"', '\n', '\r']) {
            write!(f, "\"{}\"", self.0.replace('"', "\"\""))
        } else {
            f.write_str(self.0)
        }
    }
}

impl Prior {
    /// Predictions of `network` in every mode at every density, for a batch of `batch` samples. Mode static has one row,
    /// at density 1.
    pub fn sweep(
        &self,
        network: &Network,
        modes: &[Mode],
        densities: &[Density],
        batch: u32,
    ) -> Result<Vec<SweepRow>> {
        let static_latency_s = self.network(network, &Mode::Static, Density::ONE, batch)?.total_s();
        let mut rows = Vec::new();
        for mode in modes {
            let densities = if *mode == Mode::Static { &[Density::ONE] } else { densities };
            for &activation in densities {
                rows.push(SweepRow {
                    model: network.name().to_owned(),
                    hardware: self.device().name.clone(),
                    mode: mode.name(),
                    granularity: mode.granularity(network),
                    activation,
                    latency_s: self.network(network, mode, activation, batch)?.total_s(),
                    static_latency_s,
                });
            }
        }
        Ok(rows)
    }
}
