use std::collections::hash_map::{Entry, HashMap};

use super::{FitOptions, Model, Prediction};
use crate::random::Random;
use crate::workload::{DType, Op, Sample, Workload};
use crate::{DeviceFacts, Error, Result};

/// Parts that the shapes are cut into, each of which is predicted from the others.
const FOLDS: usize = 5;

/// What makes a shape, whatever of it is active.
type Shape = (Op, DType, [u32; 8]);

fn shape(w: &Workload) -> Shape {
    (w.op, w.dtype, [w.batch, w.in_h, w.in_w, w.c_in, w.c_out, w.kernel, w.stride, w.groups])
}

/// Predicts every measurement with a model that was fitted without any measurement of its shape, at whatever density,
/// granularity, number of threads or state of the caches: one prediction a sample, in their order.
///
/// # Errors
/// As [`Model::fit`]; [`Error::Fit`] where there are fewer shapes than parts.
pub fn predict_held_out(
    samples: &[Sample],
    facts: &DeviceFacts,
    options: &FitOptions,
) -> Result<Vec<Prediction>> {
    let mut shapes: HashMap<Shape, usize> = HashMap::new();
    let of: Vec<usize> = samples
        .iter()
        .map(|sample| {
            let next = shapes.len();
            match shapes.entry(shape(&sample.workload)) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(fresh) => *fresh.insert(next),
            }
        })
        .collect();
    if shapes.len() < FOLDS {
        let reason = format!("{} shapes; {FOLDS} are needed to hold some out", shapes.len());
        return Err(Error::Fit { reason });
    }
    let order = Random::new(options.seed).permutation(shapes.len());
    let mut predictions = vec![Prediction::default(); samples.len()];
    for fold in 0..FOLDS {
        let is_out = |i: usize| order[of[i]] % FOLDS == fold;
        let used: Vec<Sample> = (0..samples.len()).filter(|&i| !is_out(i)).map(|i| samples[i]).collect();
        let model = Model::fit(&used, facts, options)?;
        for i in (0..samples.len()).filter(|&i| is_out(i)) {
            predictions[i] = model.predict(&samples[i].workload);
        }
    }
    Ok(predictions)
}
