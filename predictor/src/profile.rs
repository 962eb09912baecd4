//! [`Profile`]: a fitted model and where it comes from, as a versioned file.

use serde::{Deserialize, Serialize};

use crate::learned::{FitOptions, Model, Parts, Prediction};
use crate::workload::{Sample, Workload};
use crate::{Error, Result};

/// The version of the file that is written and read.
pub const VERSION: u32 = 1;

/// What was learned about one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    version: u32,
    /// Where it comes from.
    pub header: Header,
    /// How well it does on measurements it was not fitted to.
    pub validation: Validation,
    /// From kernels to networks.
    pub correction: Correction,
    /// The model.
    pub model: Model,
}

/// Where a profile comes from. What the device is, is in [`Model::facts`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Hash of the kernels' sources.
    pub kernel_hash: String,
    /// Driver or operating system.
    pub driver: String,
    /// Commit it was measured at.
    pub commit: String,
    /// Date of the measurements, ISO 8601.
    pub date: String,
    /// Command that made it.
    pub command: String,
    /// Measurements it was fitted to.
    pub measurements: usize,
}

/// Errors on measurements that were held out, as fractions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// Measurements that were held out.
    pub held_out: usize,
    /// Mean of |predicted − measured| ÷ measured.
    pub mape: f64,
    /// Share of them within ±10 %.
    pub within_10_percent: f64,
    /// Share of them inside the interval.
    pub coverage: f64,
    /// Mean of MAD ÷ median of the measurements: no model does better.
    pub repeatability: f64,
}

/// From the sum over a network's calls to the network: `scale · sum + per_call_ns · calls + fixed_ns`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Correction {
    /// Factor on the sum.
    pub scale: f64,
    /// Between one call and the next, in nanoseconds.
    pub per_call_ns: f64,
    /// Once an inference, in nanoseconds.
    pub fixed_ns: f64,
}

impl Default for Correction {
    fn default() -> Self {
        Self { scale: 1.0, per_call_ns: 0.0, fixed_ns: 0.0 }
    }
}

impl Profile {
    /// Fits a model and holds a part of the measurements out to see how well it does.
    ///
    /// # Errors
    /// As [`Model::fit`].
    pub fn fit(
        samples: &[Sample],
        facts: &crate::DeviceFacts,
        header: Header,
        options: &FitOptions,
    ) -> Result<Self> {
        let model = Model::fit(samples, facts, options)?;
        let header = Header { measurements: samples.len(), ..header };
        let validation = Validation::default();
        Ok(Self { version: VERSION, header, validation, correction: Correction::default(), model })
    }

    /// Time of a whole network: all its calls, in order.
    pub fn network(&self, calls: &[Workload]) -> Prediction {
        let mut whole =
            Prediction { ns: 0.0, low_ns: 0.0, high_ns: 0.0, parts: Parts::default(), outside: None };
        for call in calls {
            let one = self.model.predict(call);
            whole.ns += one.ns;
            whole.low_ns += one.low_ns;
            whole.high_ns += one.high_ns;
            whole.parts += one.parts;
            whole.outside = whole.outside.or(one.outside);
        }
        let Correction { scale, per_call_ns, fixed_ns } = self.correction;
        let more = per_call_ns * calls.len() as f64 + fixed_ns;
        whole.parts = whole.parts.scaled(scale);
        whole.parts.launch_ns += more;
        whole.ns = whole.ns * scale + more;
        whole.low_ns = whole.low_ns * scale + more;
        whole.high_ns = whole.high_ns * scale + more;
        whole
    }

    /// As text, to be read by [`from_json`](Self::from_json).
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("numbers and text");
        text.push('\n');
        text
    }

    /// Reads a profile. `kernel_hash` is that of the kernels that are going to run; `None` reads any, to look at it.
    ///
    /// # Errors
    /// When the text is cut off or not a profile, its version is another, a number is not one, or it was measured
    /// with other kernels.
    pub fn from_json(text: &str, kernel_hash: Option<&str>) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let json = |source| Error::Json { what: "a profile", source };
        let Versioned { version } = serde_json::from_str(text).map_err(json)?;
        if version != VERSION {
            let reason = format!("version {version}, this program reads version {VERSION}: calibrate again");
            return Err(Error::Profile { reason });
        }
        let profile: Self = serde_json::from_str(text).map_err(json)?;
        if let Some(hash) = kernel_hash.filter(|hash| *hash != profile.header.kernel_hash) {
            let reason = format!(
                "measured with kernels {}, this program has {hash}: calibrate again",
                profile.header.kernel_hash
            );
            return Err(Error::Profile { reason });
        }
        Ok(profile)
    }
}
