//! How good predictions are, as pictures: SVG.

use super::canvas::{COLORS, Chart, Look, drawn, failed};
use anyhow::{Result, anyhow};
use laud_predictor::learned::Prediction;
use laud_predictor::workload::{Op, Sample};
use plotters::prelude::*;

/// Points that a picture shows at most; of more it shows every second, every third, ...
const POINTS: usize = 2000;

/// Predicted against measured time of calls, in microseconds, both axes logarithmic; the lines are at ±10 %.
///
/// # Errors
/// When nothing was measured or the picture cannot be drawn.
pub fn predicted_vs_measured(samples: &[Sample], predictions: &[Prediction]) -> Result<String> {
    let points: Vec<(Op, f64, f64)> = samples
        .iter()
        .zip(predictions)
        .filter(|(_, prediction)| prediction.ns > 0.0)
        .step_by(samples.len().div_ceil(POINTS).max(1))
        .map(|(sample, prediction)| (sample.workload.op, sample.median_ns / 1e3, prediction.ns / 1e3))
        .collect();
    let all = || points.iter().flat_map(|&(_, x, y)| [x, y]);
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    if points.is_empty() {
        return Err(anyhow!("nothing to draw"));
    }
    let range = || (0.8 * low..1.25 * high).log_scale();
    let look = Look::Paper("Predicted against measured");
    drawn(look, ("measured, µs", "predicted, µs"), range(), range(), |chart| {
        for off in [0.9, 1.0, 1.1] {
            let ends = [low, high].map(|x| (x, off * x));
            chart.draw_series(LineSeries::new(ends, BLACK.mix(0.4))).map_err(failed)?;
        }
        scatter(chart, points.iter().map(|&(op, x, y)| (op, (x, y))))
    })
}

/// Error of calls against the active share of its pixels times that of its channels.
///
/// # Errors
/// As [`predicted_vs_measured`].
pub fn error_vs_density(samples: &[Sample], predictions: &[Prediction]) -> Result<String> {
    const MOST: f64 = 60.0;
    let points: Vec<(Op, (f64, f64))> = samples
        .iter()
        .zip(predictions)
        .filter(|(_, prediction)| prediction.ns > 0.0)
        .step_by(samples.len().div_ceil(POINTS).max(1))
        .map(|(sample, prediction)| {
            let w = &sample.workload;
            let channels = w.c_in_active / f64::from(w.c_in) * w.c_out_active / f64::from(w.c_out);
            let error = 100.0 * (prediction.ns / sample.median_ns - 1.0);
            (w.op, (w.row_density() * channels, error.clamp(-MOST, MOST)))
        })
        .collect();
    if points.is_empty() {
        return Err(anyhow!("nothing to draw"));
    }
    let labels = ("density of rows and channels", "error, % (beyond 60 % drawn at 60 %)");
    drawn(Look::Paper("Error against density"), labels, 0.0..1.02, -65.0..65.0, |chart| {
        for error in [-10.0, 0.0, 10.0] {
            let ends = [(0.0, error), (1.02, error)];
            chart.draw_series(LineSeries::new(ends, BLACK.mix(0.4))).map_err(failed)?;
        }
        scatter(chart, points.iter().copied())
    })
}

/// How many choices have which regret; `regrets` are fractions.
///
/// # Errors
/// As [`predicted_vs_measured`].
pub fn regret_histogram(regrets: &[f64]) -> Result<String> {
    const BARS: usize = 24;
    if regrets.is_empty() {
        return Err(anyhow!("nothing to draw"));
    }
    let worst = regrets.iter().copied().fold(0.01, f64::max) * 100.0;
    let width = worst / BARS as f64;
    let mut counts = [0u32; BARS];
    for regret in regrets {
        counts[((100.0 * regret / width) as usize).min(BARS - 1)] += 1;
    }
    let most = f64::from(counts.iter().copied().max().unwrap_or(1));
    drawn(
        Look::Paper("Regret of the choices"),
        ("regret, %", "choices"),
        0.0..worst * 1.02,
        0.0..most * 1.1,
        |chart| {
            let bars = counts.iter().enumerate().map(|(i, &count)| {
                let x = i as f64 * width;
                Rectangle::new([(x, 0.0), (x + 0.9 * width, f64::from(count))], COLORS[0].filled())
            });
            chart.draw_series(bars).map_err(failed)?;
            Ok(())
        },
    )
}

/// Points in the color of their kernel, and a legend.
fn scatter<X, Y>(
    chart: &mut Chart<'_, X, Y>,
    points: impl Iterator<Item = (Op, (f64, f64))> + Clone,
) -> Result<()>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    let of = |op: Op| points.clone().filter(move |point| point.0 == op).map(|(_, at)| at);
    let present = Op::ALL.into_iter().filter(|&op| of(op).next().is_some());
    for (i, op) in present.enumerate() {
        let color = COLORS[i.min(COLORS.len() - 1)];
        let dots = of(op).map(|at| Circle::new(at, 2, color.mix(0.6).filled()));
        let legend = move |(x, y)| Circle::new((x + 8, y), 4, color.filled());
        chart.draw_series(dots).map_err(failed)?.label(op.name()).legend(legend);
    }
    let position = SeriesLabelPosition::UpperLeft;
    let labels = &mut chart.configure_series_labels();
    labels
        .position(position)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 14))
        .draw()
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use laud_predictor::workload::Workload;

    fn measured() -> (Vec<Sample>, Vec<Prediction>) {
        let pairs = (1..30).map(|i| {
            let workload = Workload::new(if i % 3 == 0 { Op::Depthwise } else { Op::GatherGemm }, 7, 7, 8, 8);
            let ns = 1000.0 * f64::from(i * i);
            let prediction = Prediction { ns: ns * 1.05, ..Prediction::default() };
            (Sample { workload, median_ns: ns, mad_ns: 1.0, repeats: 9 }, prediction)
        });
        pairs.unzip()
    }

    #[test]
    fn charts_are_svg_with_a_dot_for_every_measurement() {
        let (samples, predictions) = measured();
        for svg in [predicted_vs_measured(&samples, &predictions), error_vs_density(&samples, &predictions)] {
            let svg = svg.unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            // And one for each of two kernels in the legend.
            assert_eq!(svg.matches("<circle").count(), samples.len() + 2);
            assert!(svg.contains("gather_gemm") && svg.contains("depthwise"));
        }
        let svg = regret_histogram(&[0.0, 0.0, 0.01, 0.08]).unwrap();
        assert!(svg.contains("regret, %"));
    }

    #[test]
    fn nothing_is_not_drawn() {
        assert!(predicted_vs_measured(&[], &[]).is_err());
        assert!(error_vs_density(&[], &[]).is_err());
        assert!(regret_histogram(&[]).is_err());
    }
}
