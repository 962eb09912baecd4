//! [`Profile`]: a fitted model and where it comes from, as a versioned file.

use serde::{Deserialize, Serialize};
use std::collections::btree_map::{BTreeMap, Entry};

use crate::correction::Correction;
use crate::learned::{FitOptions, Model, Outside, Prediction, predict_held_out};
use crate::workload::{DType, Sample, Workload};
use crate::{DeviceFacts, DeviceKind, Error, Result};

/// The version of the file that is written and read.
pub const VERSION: u32 = 4;

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
    /// Mean of MAD ÷ time of the measurements: what repeats at one visit differ by.
    pub repeatability: f64,
    /// Mean of the difference ÷ time of two measurements of one call at different times, and so in other memory: no model
    /// does better than a part of that. `None`: nothing was measured twice.
    #[serde(default)]
    pub visits_differ: Option<f64>,
}

impl Profile {
    /// Fits a model to all measurements; how well it does is found out with shapes held out
    /// ([`predict_held_out`]), where there are enough.
    ///
    /// # Errors
    /// As [`Model::fit`].
    pub fn fit(
        samples: &[Sample],
        facts: &DeviceFacts,
        header: Header,
        options: &FitOptions,
    ) -> Result<Self> {
        let model = Model::fit(samples, facts, options)?;
        let header = Header { measurements: samples.len(), ..header };
        let validation = match predict_held_out(samples, facts, options) {
            Ok(predictions) => Validation::of(samples, &predictions),
            Err(_) => Validation::default(),
        };
        Ok(Self { version: VERSION, header, validation, correction: Correction::default(), model })
    }

    /// Time of a whole network: its calls, and how often each is made.
    pub fn network<'a>(&self, calls: impl IntoIterator<Item = (&'a Workload, f64)>) -> Prediction {
        let mut whole = Prediction::default();
        // Errors of different calls partly cancel: the spreads add up as independent ones and common ones half and half.
        let (mut squares, mut spread) = ([0.0; 2], [0.0; 2]);
        for (call, times) in calls {
            let one = self.model.predict(call);
            let (scaled, between) =
                (times * self.correction.factor(call, one.ns), times * self.correction.per_call_ns);
            whole.ns += scaled * one.ns + between;
            whole.parts += one.parts.scaled(scaled);
            whole.parts.launch_ns += between;
            whole.outside = whole.outside.or(one.outside);
            for (i, off) in [one.ns - one.low_ns, one.high_ns - one.ns].into_iter().enumerate() {
                squares[i] += (scaled * off).powi(2);
                spread[i] += scaled * off;
            }
        }
        let off = |i: usize| 0.5 * (squares[i].sqrt() + spread[i]);
        (whole.low_ns, whole.high_ns) = ((whole.ns - off(0)).max(0.0), whole.ns + off(1));
        whole
    }

    /// Time of each call inside a network, nanoseconds.
    pub fn calls_ns(&self, calls: &[&Workload]) -> impl Iterator<Item = f64> {
        let inside = |(call, ns): (&&Workload, f64)| {
            self.correction.factor(call, ns) * ns + self.correction.per_call_ns
        };
        calls.iter().zip(self.model.predict_ns(calls)).map(inside)
    }

    /// As text, to be read by [`from_json`](Self::from_json).
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string(self).expect("numbers and text");
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
        profile.check()?;
        kernel_hash.map_or(Ok(()), |hash| profile.check_kernels(hash))?;
        Ok(profile)
    }

    /// Checks that it was measured with the kernels of this hash.
    ///
    /// # Errors
    /// When it was not.
    pub fn check_kernels(&self, hash: &str) -> Result<()> {
        if hash == self.header.kernel_hash {
            return Ok(());
        }
        let measured = &self.header.kernel_hash;
        let reason = format!("measured with kernels {measured}, this program has {hash}: calibrate again");
        Err(Error::Profile { reason })
    }

    /// Checks that it can be asked about inferences on a device of this kind with values of this type.
    ///
    /// # Errors
    /// When another kind was measured, or another type.
    pub fn check_use(&self, kind: DeviceKind, dtype: DType) -> Result<()> {
        let facts = self.model.facts();
        let dtypes = self.model.dtypes();
        let reason = if facts.kind != kind {
            format!("measured on a {} device ({}), not on {}", facts.kind, facts.name, kind)
        } else if !dtypes.contains(&dtype) {
            let measured: Vec<&str> = dtypes.into_iter().map(DType::name).collect();
            format!("measured with {}, not with {dtype}", measured.join(", "))
        } else {
            return Ok(());
        };
        Err(Error::Profile { reason: format!("{reason}: calibrate that too") })
    }

    fn check(&self) -> Result<()> {
        let Validation { mape, within_10_percent, coverage, repeatability, visits_differ, .. } =
            self.validation;
        let numbers = [
            ("visits_differ", visits_differ.unwrap_or(0.0)),
            ("mape", mape),
            ("within_10_percent", within_10_percent),
            ("coverage", coverage),
            ("repeatability", repeatability),
        ];
        if let Some((field, value)) =
            numbers.into_iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0))
        {
            return Err(Error::Profile { reason: format!("{field} = {value} is not a number from 0 on") });
        }
        self.correction.check()?;
        self.model.check()
    }
}

impl Validation {
    /// How far predictions are from the measurements they are about. A kernel that was not measured at all counts as not
    /// predicted.
    pub fn of(samples: &[Sample], predictions: &[Prediction]) -> Self {
        let known = || {
            let pairs = samples.iter().zip(predictions);
            pairs.filter(|(_, prediction)| !matches!(prediction.outside, Some(Outside::Op(_))))
        };
        let held_out = known().count();
        let n = held_out.max(1) as f64;
        let (mut mape, mut within, mut inside, mut repeatability) = (0.0, 0.0, 0.0, 0.0);
        for (sample, &Prediction { ns, low_ns, high_ns, .. }) in known() {
            let off = (ns / sample.median_ns - 1.0).abs();
            mape += off / n;
            within += f64::from(u8::from(off <= 0.1)) / n;
            inside += f64::from(u8::from((low_ns..=high_ns).contains(&sample.median_ns))) / n;
            repeatability += sample.mad_ns / sample.median_ns / n;
        }
        let visits_differ = visits_differ(samples);
        Self { held_out, mape, within_10_percent: within, coverage: inside, repeatability, visits_differ }
    }
}

/// Mean of the difference ÷ time of measurements of one call and the first one of it.
fn visits_differ(samples: &[Sample]) -> Option<f64> {
    let mut first: BTreeMap<String, f64> = BTreeMap::new();
    let (mut sum, mut count) = (0.0, 0);
    for Sample { workload, median_ns, .. } in samples {
        match first.entry(format!("{workload:?}")) {
            Entry::Vacant(place) => drop(place.insert(*median_ns)),
            Entry::Occupied(before) => {
                sum += (median_ns / before.get() - 1.0).abs();
                count += 1;
            }
        }
    }
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceFacts;
    use crate::random::Random;
    use crate::workload::Op;

    /// A device whose every multiply-accumulate takes 0.02 ns, and every call 300 ns.
    fn samples(n: usize) -> Vec<Sample> {
        let mut random = Random::new(2);
        (0..n)
            .map(|_| {
                let side = 4 + random.below(24) as u32;
                let c = |random: &mut Random| 16 * (1 + random.below(30) as u32);
                let mut workload = Workload::new(Op::GatherGemm, side, side, c(&mut random), c(&mut random));
                workload.kernel = 1 + 2 * random.below(2) as u32;
                let noise = 1.0 + 0.02 * (random.unit() - 0.5);
                let median_ns = (300.0 + 0.02 * workload.macs()) * noise;
                Sample { workload, median_ns, mad_ns: 0.01 * median_ns, repeats: 9 }
            })
            .collect()
    }

    #[test]
    fn second_visits_are_compared_with_the_first() {
        let mut samples = samples(10);
        assert_eq!(visits_differ(&samples), None);
        let mut again = samples[3];
        again.median_ns *= 1.1;
        let mut other = samples[4];
        other.median_ns *= 0.7;
        samples.extend([again, other]);
        let differ = visits_differ(&samples).unwrap();
        assert!((differ - 0.2).abs() < 1e-9, "{differ}");
    }

    fn header() -> Header {
        Header {
            kernel_hash: "abc".to_owned(),
            driver: "none".to_owned(),
            commit: "0".to_owned(),
            date: "2026-01-01".to_owned(),
            command: "test".to_owned(),
            measurements: 0,
        }
    }

    fn profile() -> Profile {
        Profile::fit(&samples(300), &DeviceFacts::example("test"), header(), &FitOptions::default()).unwrap()
    }

    #[test]
    fn a_profile_validates_itself_and_is_read_back() {
        let profile = profile();
        let Validation { held_out, mape, coverage, .. } = profile.validation;
        assert_eq!((held_out, profile.header.measurements, profile.model.samples()), (300, 300, 300));
        assert!(mape < 0.05 && coverage > 0.75, "{:?}", profile.validation);
        assert_eq!(Profile::from_json(&profile.to_json(), Some("abc")).unwrap(), profile);
        assert_eq!(Profile::from_json(&profile.to_json(), None).unwrap(), profile);
    }

    #[test]
    fn what_is_no_profile_of_these_kernels_is_refused() {
        let json = profile().to_json();
        let said = |text: &str| Profile::from_json(text, Some("abc")).unwrap_err().to_string();
        assert!(
            Profile::from_json(&json, Some("other")).unwrap_err().to_string().contains("calibrate again")
        );
        assert!(said(&json[..json.len() / 2]).contains("cannot parse a profile"));
        assert!(said("").contains("cannot parse a profile"));
        assert!(
            said(&json.replacen(&format!("\"version\":{VERSION}"), "\"version\":0", 1)).contains("version 0")
        );
        let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let mut broken = |path: &str, to: serde_json::Value| {
            let before = std::mem::replace(value.pointer_mut(path).unwrap(), to);
            let said = said(&value.to_string());
            *value.pointer_mut(path).unwrap() = before;
            said
        };
        let minus = serde_json::json!(-1.0);
        assert!(broken("/correction/linear", minus.clone()).contains("linear: -1"));
        assert!(broken("/validation/mape", minus.clone()).contains("mape"));
        assert!(broken("/model/ops/0/regression/coefficients/0", minus).contains("gather_gemm"));
        assert!(broken("/model/ops/0/measured", serde_json::json!([])).contains("ranges"));
        assert!(broken("/model/facts/lanes", serde_json::json!(0)).contains("lanes"));
        assert!(broken("/header/date", serde_json::json!(1)).contains("cannot parse"));
    }

    #[test]
    fn a_profile_answers_about_what_was_measured() {
        let profile = profile();
        profile.check_use(DeviceKind::Cpu, DType::F32).unwrap();
        let said = |kind, dtype| profile.check_use(kind, dtype).unwrap_err().to_string();
        assert!(said(DeviceKind::Cuda, DType::F32).contains("on a cpu device (test), not on cuda"));
        for dtype in [DType::Bf16, DType::Int8] {
            let wanted = format!("measured with f32, not with {dtype}");
            assert!(said(DeviceKind::Cpu, dtype).contains(&wanted));
        }
    }

    #[test]
    fn times_of_many_calls_are_those_of_each() {
        let model = profile().model;
        let calls: Vec<Workload> = samples(70).iter().map(|sample| sample.workload).collect();
        let unmeasured = Workload::new(Op::Depthwise, 14, 14, 64, 64);
        for count in [1, 3, 40, 70] {
            let calls: Vec<&Workload> = calls[..count].iter().chain([&unmeasured]).collect();
            let together = model.predict_ns(&calls);
            for (call, ns) in calls.iter().zip(&together) {
                let one = model.predict(call).ns;
                assert!((ns - one).abs() <= 1e-12 * one, "{call}: {ns} and {one}");
            }
            assert_eq!((together[0] > 0.0, together[count]), (true, 0.0));
        }
    }

    #[test]
    fn a_network_is_the_sum_of_its_calls_and_what_is_around_them() {
        let mut profile = profile();
        let call = Workload::new(Op::GatherGemm, 14, 14, 64, 128);
        let one = profile.model.predict(&call);
        let whole = profile.network([(&call, 1.0), (&call, 2.5)]);
        assert!((whole.ns / (3.5 * one.ns) - 1.0).abs() < 1e-12);
        assert!((whole.parts.total_ns() / whole.ns - 1.0).abs() < 1e-12);
        assert!(whole.low_ns > 3.5 * one.low_ns && whole.high_ns < 3.5 * one.high_ns);
        profile.correction = Correction {
            gather_gemm: 1.1,
            short_gather_gemm: 1.1,
            per_call_ns: 100.0,
            ..Correction::default()
        };
        let more = profile.network([(&call, 1.0), (&call, 2.5)]);
        assert!((more.ns - (1.1 * whole.ns + 350.0)).abs() < 1e-6);
        assert!((more.ns - 3.5 * profile.calls_ns(&[&call]).next().unwrap()).abs() < 1e-6);
        assert!((more.parts.total_ns() / more.ns - 1.0).abs() < 1e-12);
    }
}
