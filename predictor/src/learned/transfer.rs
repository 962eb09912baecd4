use super::scales::{Priors, Scales};
use super::{Model, Parts};
use crate::workload::Sample;
use crate::{DeviceFacts, Error, Result};

/// How far another device is from this one before anything was measured on it.
const PRIORS: Priors<6> = Priors { common: 0.7, each: [0.3, 0.4, 0.3, 0.3, 0.3, 0.4], noise: 0.1 };

impl Model {
    /// This model on another device, of which a handful of measurements are known: what the kernels do and what the terms
    /// leave over stays, what a unit of each kind of work takes is fitted.
    ///
    /// # Errors
    /// [`Error::Fit`] without shots, [`Error::Workload`] for an impossible one, [`Error::Device`] for impossible facts.
    pub fn transfer(&self, facts: &DeviceFacts, shots: &[Sample]) -> Result<Self> {
        facts.check()?;
        shots.iter().try_for_each(Sample::check)?;
        let mut model = Self { facts: facts.clone(), ..self.clone() };
        let rows: Vec<([f64; 6], f64)> = shots
            .iter()
            .filter(|shot| model.find(&shot.workload).is_some())
            .map(|shot| (list(&model.predict(&shot.workload).parts), shot.median_ns))
            .collect();
        if rows.is_empty() {
            return Err(Error::Fit {
                reason: "no shot of a kernel that the other device was measured on".to_owned(),
            });
        }
        let factors = Scales::fit(&rows, &PRIORS).factors();
        for op in &mut model.ops {
            op.scale(facts, &factors);
        }
        // What is still off is off alike for calls of one kernel, as far as its shots say so; and it widens the intervals.
        for op in &mut model.ops {
            let off: Vec<f64> = shots
                .iter()
                .filter(|shot| (shot.workload.op, shot.workload.dtype) == (op.op, op.dtype))
                .map(|shot| (shot.median_ns / op.predict(&shot.workload, facts).ns).ln())
                .collect();
            op.shift(&off);
        }
        Ok(model)
    }
}

fn list(parts: &Parts) -> [f64; 6] {
    let Parts { compute_ns, memory_ns, gather_ns, gate_ns, compaction_ns, launch_ns } = *parts;
    [compute_ns, memory_ns, gather_ns, gate_ns, compaction_ns, launch_ns]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceFacts;
    use crate::learned::FitOptions;
    use crate::random::Random;
    use crate::workload::{Op, Workload};

    /// A device whose multiply-accumulates take `mac_ns`, whose weights take `byte_ns` and whose calls take 400 ns.
    fn samples(n: usize, seed: u64, mac_ns: f64, byte_ns: f64) -> Vec<Sample> {
        let mut random = Random::new(seed);
        (0..n)
            .map(|_| {
                let side = 4 + random.below(24) as u32;
                let mut c = || 16 * (1 + random.below(30) as u32);
                let (c_in, c_out) = (c(), c());
                let mut workload = Workload::new(Op::GatherGemm, side, side, c_in, c_out);
                workload.cache =
                    if random.below(2) == 0 { crate::workload::Cache::Cold } else { workload.cache };
                let cold = f64::from(u8::from(workload.cache == crate::workload::Cache::Cold));
                let bytes = 4.0 * f64::from(c_in * c_out);
                let median_ns = 400.0 + mac_ns * workload.macs() + byte_ns * bytes * cold;
                Sample { workload, median_ns, mad_ns: 0.0, repeats: 9 }
            })
            .collect()
    }

    fn error(model: &Model, samples: &[Sample]) -> f64 {
        let off = |sample: &Sample| (model.predict(&sample.workload).ns / sample.median_ns - 1.0).abs();
        samples.iter().map(off).sum::<f64>() / samples.len() as f64
    }

    #[test]
    fn ten_measurements_make_a_model_of_another_device() {
        let from =
            Model::fit(&samples(400, 1, 0.01, 0.05), &DeviceFacts::example("a"), &FitOptions::default())
                .unwrap();
        let there = samples(300, 2, 0.03, 0.06);
        let shots = samples(10, 3, 0.03, 0.06);
        let model = from.transfer(&DeviceFacts::example("b"), &shots).unwrap();
        let (before, after) = (error(&from, &there), error(&model, &there));
        assert!(before > 0.4 && after < 0.1, "{before} → {after}");
        assert_eq!(model.facts().name, "b");
        let narrow = from.predict(&there[0].workload);
        let wide = model.predict(&there[0].workload);
        assert!(wide.high_ns / wide.low_ns > narrow.high_ns / narrow.low_ns);
    }

    #[test]
    fn shots_of_nothing_known_are_an_error() {
        let from =
            Model::fit(&samples(60, 1, 0.01, 0.05), &DeviceFacts::example("a"), &FitOptions::default())
                .unwrap();
        assert!(matches!(from.transfer(&DeviceFacts::example("b"), &[]), Err(Error::Fit { .. })));
        let mut other = samples(3, 2, 0.01, 0.05);
        other.iter_mut().for_each(|sample| sample.workload.op = Op::MaxPool);
        assert!(matches!(from.transfer(&DeviceFacts::example("b"), &other), Err(Error::Fit { .. })));
    }
}
