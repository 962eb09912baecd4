//! Operands for the clock: active pixels, active channels, values; always the same for the same workload.

use laud_predictor::workload::{Op, Route, Workload};

/// Which of some units are active; `keep` is `None` where all are.
pub(super) struct Drawn {
    pub(super) keep: Option<Vec<bool>>,
    /// Number of them: pixels over the batch, or channels, mean over the samples.
    pub(super) count: f64,
    /// Stretches of neighbours.
    pub(super) runs: u32,
}

/// Pixels `[batch, out_h, out_w]` with the workload's rows and runs, as near as a map allows.
pub(super) fn rows(w: &Workload) -> Drawn {
    let (h, width, batch) = (w.out_h as usize, w.out_w as usize, w.batch as usize);
    let pixels = h * width;
    let all = w.route == Route::Dense || w.rows as usize == batch * pixels;
    if (all && w.op != Op::Compact) || w.op == Op::Linear {
        return Drawn { keep: None, count: (batch * pixels) as f64, runs: (batch * h) as u32 };
    }
    let mut keep = vec![false; batch * pixels];
    let mut runs = 0;
    for (n, keep) in keep.chunks_exact_mut(pixels).enumerate() {
        let part = |total: u32| piece(total as usize, batch, n);
        runs += sample(part(w.rows), part(w.runs), h, width, keep);
    }
    let count = keep.iter().filter(|keep| **keep).count() as f64;
    Drawn { keep: Some(keep), count, runs: runs as u32 }
}

/// Part `i` of `total` cut evenly into `parts`.
fn piece(total: usize, parts: usize, i: usize) -> usize {
    total * (i + 1) / parts - total * i / parts
}

/// One sample: lines in the middle of the map, runs spread evenly along each. Returns how many runs.
fn sample(count: usize, runs: usize, h: usize, w: usize, keep: &mut [bool]) -> usize {
    let count = count.min(h * w);
    if count == 0 {
        return 0;
    }
    let runs = runs.clamp(count.div_ceil(w), count);
    let lines = runs.min(h).max(count.div_ceil(w)).min(h);
    let first = (h - lines) / 2;
    let mut made = 0;
    for line in 0..lines {
        let pixels = piece(count, lines, line);
        // A gap between two runs takes a pixel.
        let runs = piece(runs, lines, line).clamp(1, pixels.max(1)).min(w - pixels.min(w) + 1);
        let gaps = w - pixels;
        let mut x = 0;
        for run in 0..runs {
            // The gap before the first run may be empty, those between two may not.
            let gap = if run == 0 {
                gaps / (runs + 1)
            } else {
                piece(gaps - gaps / (runs + 1), runs, run - 1).max(1)
            };
            x += gap;
            for _ in 0..piece(pixels, runs, run) {
                if x < w {
                    keep[(first + line) * w + x] = true;
                    x += 1;
                }
            }
        }
        made += if pixels > 0 { runs } else { 0 };
    }
    made
}

/// Channels `[batch, total]`: whole groups, scattered.
pub(super) fn channels(w: &Workload, total: u32, active: f64, listed: bool) -> Drawn {
    let total = total as usize;
    if !listed {
        return Drawn { keep: None, count: total as f64, runs: 1 };
    }
    let size = (w.group_size as usize).clamp(1, total);
    let groups = total / size;
    let mut keep = vec![false; w.batch as usize * total];
    let (mut sum, mut random) = (0, 1);
    for (n, keep) in keep.chunks_exact_mut(total).enumerate() {
        let wanted = active / size as f64 * (n + 1) as f64 - (sum / size) as f64;
        let mut wanted = (wanted.round() as usize).clamp(1, groups);
        for group in 0..groups {
            // Each of those left is as likely as the next.
            if next(&mut random) % ((groups - group) as u64) < wanted as u64 {
                keep[group * size..(group + 1) * size].fill(true);
                sum += size;
                wanted -= 1;
            }
        }
    }
    Drawn { keep: Some(keep), count: sum as f64 / f64::from(w.batch), runs: 1 }
}

/// Values between `-scale` and `scale`.
pub(super) fn values(len: usize, scale: f32) -> Vec<f32> {
    let mut random = 7;
    (0..len).map(|_| scale * ((next(&mut random) >> 40) as f32 / (1u64 << 23) as f32 - 1.0)).collect()
}

/// Sebastiano Vigna's splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_runs_are_those_asked_for() {
        for (h, w, count, wanted) in [
            (14, 14, 98, 14),
            (14, 14, 98, 28),
            (7, 7, 1, 1),
            (56, 56, 1500, 120),
            (7, 7, 48, 8),
            (3, 40, 60, 30),
        ] {
            let workload = Workload {
                rows: 2 * count,
                runs: 2 * wanted,
                batch: 2,
                route: Route::Implicit,
                ..Workload::new(Op::GatherGemm, h, w, 8, 8)
            };
            let Drawn { keep, runs, .. } = rows(&workload);
            let keep = keep.unwrap();
            assert_eq!(keep.iter().filter(|keep| **keep).count(), 2 * count as usize, "{workload}");
            let first =
                |line: &[bool]| (0..line.len()).filter(|&x| line[x] && (x == 0 || !line[x - 1])).count();
            let found: usize = keep.chunks_exact(w as usize).map(first).sum();
            assert_eq!(found, runs as usize, "{workload}");
            assert!((f64::from(runs) - 2.0 * f64::from(wanted)).abs() <= 0.25 * f64::from(2 * wanted) + 2.0);
        }
    }

    #[test]
    fn channels_are_whole_groups_and_as_many_as_asked_for() {
        let workload = Workload { batch: 3, group_size: 8, ..Workload::new(Op::GatherGemm, 7, 7, 64, 256) };
        let Drawn { keep, count, .. } = channels(&workload, 256, 100.0, true);
        assert!((count - 100.0).abs() <= 3.0, "{count}");
        let groups = keep.unwrap();
        assert!(groups.chunks(8).all(|group| group.iter().all(|keep| *keep == group[0])));
    }
}
