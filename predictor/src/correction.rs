//! [`Correction`]: from calls on their own to calls inside a network.
//!
//! Inside a network a call finds its operand where the call before left it, and its code where its last use was many calls ago.
//! How much that matters differs from kernel to kernel, and networks that were timed block by block tell.

use serde::{Deserialize, Serialize};

use crate::learned::scales::{Priors, Scales};
use crate::workload::{Op, Route, Workload};
use crate::{Error, Result};

/// Factors on the time of a call on its own, by kernel, and what passes between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Correction {
    /// [`Op::GatherGemm`] from 100 µs on.
    pub gather_gemm: f64,
    /// The same up to 10 µs; in between it passes over.
    pub short_gather_gemm: f64,
    /// The same of rows that are listed, where networks have shown it. `None`: as long as others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_listed_gemm: Option<f64>,
    /// [`Op::Depthwise`].
    pub depthwise: f64,
    /// [`Op::SqueezeExcite`].
    pub squeeze_excite: f64,
    /// [`Op::Linear`].
    pub linear: f64,
    /// [`Op::MaxPool`] and [`Op::MeanPool`].
    pub pooling: f64,
    /// [`Op::PatchGate`], which reads what the block before has just written.
    pub patch_gate: f64,
    /// [`Op::FromNchw`], which reads what the caller wrote.
    pub from_nchw: f64,
    /// Everything else.
    pub other: f64,
    /// Between one call and the next, nanoseconds.
    pub per_call_ns: f64,
    /// Bytes of the outermost cache that weights stay in from one inference to the next, where networks have shown it: others
    /// may share the cache. `None`: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_bytes: Option<u64>,
}

/// Factors, and the time between calls.
const KINDS: usize = 11;
/// How far kernels are expected to be from what they are on their own: a tenth.
const PRIORS: Priors<KINDS> =
    Priors { common: 0.05, each: [0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1.0], noise: 0.05 };
/// What is expected to pass between two calls, nanoseconds.
const BETWEEN_NS: f64 = 100.0;
/// Calls of `gather_gemm` are short up to the one and long from the other, nanoseconds.
const SHORT_NS: f64 = 1e4;
const LONG_NS: f64 = 1e5;

/// Calls of a network that were timed together.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    kinds: [f64; KINDS],
    ns: f64,
}

impl Timed {
    /// No call yet, of those that took `ns` together.
    pub fn new(ns: f64) -> Self {
        Self { kinds: [0.0; KINDS], ns }
    }

    /// Adds calls that are expected to take `ns` each on their own.
    pub fn add(&mut self, call: &Workload, ns: f64, times: f64) {
        for (i, share) in kinds(call, ns) {
            self.kinds[i] += times * share * ns;
        }
        self.kinds[KINDS - 1] += times * BETWEEN_NS;
    }
}

/// Which factors a call is multiplied with, in which shares.
fn kinds(call: &Workload, ns: f64) -> [(usize, f64); 2] {
    let kind = match call.op {
        Op::GatherGemm => {
            let long = ((ns / SHORT_NS).ln() / (LONG_NS / SHORT_NS).ln()).clamp(0.0, 1.0);
            let short = if call.route == Route::Dense { 1 } else { 2 };
            return [(0, long), (short, 1.0 - long)];
        }
        Op::Depthwise => 3,
        Op::SqueezeExcite => 4,
        Op::Linear => 5,
        Op::MaxPool | Op::MeanPool => 6,
        Op::PatchGate => 7,
        Op::FromNchw => 8,
        Op::PadChannels | Op::ToNchw | Op::Compact | Op::Overhead => 9,
    };
    [(kind, 1.0), (kind, 0.0)]
}

impl Default for Correction {
    /// Calls inside a network are those on their own.
    fn default() -> Self {
        Self::of([1.0; KINDS - 1], 0.0)
    }
}

impl Correction {
    /// The most likely factors; those of kernels that hardly occur stay near those of the others. Parts without a call or
    /// a time are left out.
    pub fn fit(parts: &[Timed]) -> Self {
        let known = parts.iter().filter(|part| part.ns > 0.0 && part.kinds.iter().sum::<f64>() > 0.0);
        let rows: Vec<_> = known.map(|part| (part.kinds, part.ns)).collect();
        if rows.is_empty() {
            return Self::default();
        }
        let factors = Scales::fit(&rows, &PRIORS).factors();
        Self::of(std::array::from_fn(|i| factors[i]), BETWEEN_NS * factors[KINDS - 1])
    }

    fn of(factors: [f64; KINDS - 1], per_call_ns: f64) -> Self {
        Self {
            gather_gemm: factors[0],
            short_gather_gemm: factors[1],
            short_listed_gemm: Some(factors[2]),
            depthwise: factors[3],
            squeeze_excite: factors[4],
            linear: factors[5],
            pooling: factors[6],
            patch_gate: factors[7],
            from_nchw: factors[8],
            other: factors[9],
            per_call_ns,
            kept_bytes: None,
        }
    }

    /// How far times are off with these factors: the mean of |ln(predicted ÷ measured)|, by time. 0 without any.
    pub fn misfit(&self, parts: &[Timed]) -> f64 {
        let factors = self.factors();
        let (mut sum, mut total) = (0.0, 0.0);
        for Timed { kinds, ns } in parts.iter().filter(|part| part.ns > 0.0) {
            let calls: f64 = factors.iter().zip(kinds).map(|(factor, ns)| factor * ns).sum();
            let predicted = calls + kinds[KINDS - 1] * self.per_call_ns / BETWEEN_NS;
            if predicted > 0.0 {
                sum += ns * (predicted / ns).ln().abs();
                total += ns;
            }
        }
        if total > 0.0 { sum / total } else { 0.0 }
    }

    fn factors(&self) -> [f64; KINDS - 1] {
        [
            self.gather_gemm,
            self.short_gather_gemm,
            self.short_listed_gemm.unwrap_or(self.short_gather_gemm),
            self.depthwise,
            self.squeeze_excite,
            self.linear,
            self.pooling,
            self.patch_gate,
            self.from_nchw,
            self.other,
        ]
    }

    /// Factor on a call that takes `ns` on its own.
    pub fn factor(&self, call: &Workload, ns: f64) -> f64 {
        let factors = self.factors();
        kinds(call, ns).iter().map(|(i, share)| share * factors[*i]).sum()
    }

    /// # Errors
    /// When a factor is not above 0 or the time between calls is negative.
    pub(crate) fn check(&self) -> Result<()> {
        let factors = self.factors().into_iter().all(|factor| factor.is_finite() && factor > 0.0);
        if factors && self.per_call_ns.is_finite() && self.per_call_ns >= 0.0 {
            return Ok(());
        }
        Err(Error::Profile { reason: format!("the correction {self:?} has a number that is not above 0") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_correction_that_was_put_in_is_found() {
        let truth = Correction {
            depthwise: 1.2,
            gather_gemm: 0.95,
            short_gather_gemm: 1.1,
            short_listed_gemm: Some(0.95),
            per_call_ns: 300.0,
            ..Correction::default()
        };
        let dense = |op| Workload::new(op, 8, 8, 16, 16);
        let listed = Workload { route: Route::Implicit, ..dense(Op::GatherGemm) };
        let parts: Vec<Timed> = (0..200)
            .map(|i| {
                let calls = [
                    (dense(Op::GatherGemm), 3e3 * f64::from(1 + i % 7)),
                    (listed, 4e3 * f64::from(i % 5)),
                    (dense(Op::GatherGemm), 2e5 * f64::from(i % 3)),
                    (dense(Op::Depthwise), 1e4 * f64::from(i % 11)),
                ];
                let times = f64::from(1 + i % 4);
                let inside = |(call, ns): &(Workload, f64)| truth.factor(call, *ns) * ns + truth.per_call_ns;
                let mut part = Timed::new(times * calls.iter().map(inside).sum::<f64>());
                calls.iter().for_each(|(call, ns)| part.add(call, *ns, times));
                part
            })
            .collect();
        let found = Correction::fit(&parts);
        for (found, truth) in found.factors().iter().zip(truth.factors()) {
            assert!((found / truth - 1.0).abs() < 0.02, "{found} for {truth}");
        }
        assert!((found.per_call_ns - 300.0).abs() < 30.0, "{found:?}");
        assert!(truth.misfit(&parts) < 1e-12 && found.misfit(&parts) < 0.02);
        assert!(Correction::default().misfit(&parts) > 0.03);
        assert_eq!(truth.misfit(&[Timed::new(0.0), Timed::new(1.0)]), 0.0);
        assert_eq!(Correction::fit(&[]), Correction::default());
        assert_eq!(Correction::fit(&[Timed::new(5.0), Timed::new(0.0)]), Correction::default());
    }

    #[test]
    fn few_parts_change_little() {
        let mut part = Timed::new(2e6);
        let call = Workload::new(Op::GatherGemm, 56, 56, 64, 64);
        part.add(&call, 1e6, 1.0);
        let found = Correction::fit(&[part]);
        assert!((1.0..1.3).contains(&found.gather_gemm) && (0.9..1.2).contains(&found.linear), "{found:?}");
        let factors = [1e4, 2e4, 5e4, 1e5].map(|ns| found.factor(&call, ns));
        assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]), "{factors:?}");
    }
}
