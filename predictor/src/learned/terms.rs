//! The analytic terms: what a call does, counted from its numbers and the tile of the kernels.

use super::Parts;
use crate::DeviceFacts;
use crate::workload::{Op, Workload};

/// Amounts of work, of which each has a time a unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Terms {
    values: [f64; Self::LEN],
    op: Op,
}

impl Terms {
    const LEN: usize = 7;

    /// Of one call.
    pub(super) fn of(w: &Workload, facts: &DeviceFacts) -> Self {
        let taps = f64::from(w.kernel).powi(2);
        let rows = f64::from(w.rows);
        let tiles = (rows / f64::from(facts.tile_rows)).ceil() * f64::from(facts.tile_rows);
        let columns = (w.c_out_active / f64::from(facts.lanes)).ceil() * f64::from(facts.lanes);
        let bytes = f64::from(w.dtype.bytes());
        let share = 1.0 / f64::from(w.threads.min(facts.cores));
        let inputs = w.c_in_active / f64::from(w.groups.max(1));
        let values = match w.op {
            Op::GatherGemm | Op::Linear => [
                tiles * taps * inputs * columns * share,
                taps * inputs * w.c_out_active * bytes,
                rows * (w.c_in_active + w.c_out_active) * bytes * share,
                rows * taps * share,
                f64::from(w.runs) * share,
                1.0,
                f64::from(w.threads - 1),
            ],
            _ => [
                rows * taps * w.c_out_active * share,
                0.0,
                rows * (w.c_in_active + w.c_out_active) * bytes * share,
                rows * taps * share,
                f64::from(w.runs) * share,
                1.0,
                f64::from(w.threads - 1),
            ],
        };
        Self { values, op: w.op }
    }

    /// In a fixed order.
    pub(super) fn values(&self) -> Vec<f64> {
        self.values.to_vec()
    }

    /// The terms' times, by what they are.
    pub(super) fn parts(&self, coefficients: &[f64]) -> Parts {
        let ns = |i: usize| coefficients.get(i).copied().unwrap_or(0.0) * self.values[i];
        let whole: f64 = (0..Self::LEN).map(ns).sum();
        match self.op {
            Op::PatchGate => Parts { gate_ns: whole, ..Parts::default() },
            Op::Compact => Parts { compaction_ns: whole, ..Parts::default() },
            _ => Parts {
                compute_ns: ns(0),
                memory_ns: ns(1) + ns(2),
                gather_ns: ns(3) + ns(4),
                launch_ns: ns(5) + ns(6),
                ..Parts::default()
            },
        }
    }
}
