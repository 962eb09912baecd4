//! Accuracy against cost, densities and latencies of measured points, as SVG for a page.

use super::canvas::{COLORS, Chart, Look, drawn, failed};
use crate::evaluate::{Row, front};
use anyhow::{Result, anyhow};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// What accuracy is drawn against.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    /// Latency, milliseconds: the median, or the mean where images leave early.
    Latency,
    /// Multiply-accumulates an image, millions.
    Macs,
}

impl Cost {
    pub(super) fn of(self, row: &Row) -> f64 {
        match self {
            Self::Latency => row.found.typical_ms(),
            Self::Macs => row.found.macs.done / 1e6,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Latency => "latency, ms an image (measured)",
            Self::Macs => "multiply-accumulates, millions an image",
        }
    }
}

/// Color of a series.
pub(super) fn color(series: usize) -> RGBColor {
    COLORS[series % COLORS.len()]
}

/// How points of a policy look.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// A network without gates.
    Static,
    /// Gates that keep everything.
    NoSkip,
    /// Anything else.
    Skips,
}

impl Mark {
    pub(super) fn of(row: &Row) -> Self {
        match row.cell.policy.as_str() {
            "static" => Self::Static,
            "always" => Self::NoSkip,
            _ => Self::Skips,
        }
    }
}

/// Top-1 accuracy of every row against what it costs; `series` is the number of each row's color. The line joins what
/// nothing beats, thin bars are 95 % intervals.
pub(super) fn accuracy(
    rows: &[Row],
    series: &[usize],
    cost: Cost,
    deadline_ms: Option<f64>,
) -> Result<String> {
    let deadline = deadline_ms.filter(|_| cost == Cost::Latency);
    let point = |row: &Row| (cost.of(row), 100.0 * row.found.top1);
    let interval =
        |row: &Row| 196.0 * (row.found.top1 * (1.0 - row.found.top1) / row.found.images as f64).sqrt();
    let xs = || rows.iter().map(|row| point(row).0).chain(deadline);
    let (x_low, x_high) = range(xs(), 0.06)?;
    let (y_low, y_high) = range(rows.iter().map(|row| point(row).1), 0.08)?;
    let (y_low, y_high) = ((y_low - 0.5).max(0.0), (y_high + 0.5).min(101.0));
    let ink = Look::Page.ink();
    let labels = (cost.label(), "top-1 accuracy, %");
    drawn(Look::Page, labels, x_low.max(0.0)..x_high, y_low..y_high, |chart| {
        if let Some(deadline) = deadline {
            vertical(chart, deadline, y_low..y_high)?;
        }
        for (row, &series) in rows.iter().zip(series) {
            let ((x, y), half) = (point(row), interval(row));
            let ends = [(x, (y - half).max(y_low)), (x, (y + half).min(y_high))];
            chart
                .draw_series(LineSeries::new(ends, color(series).mix(0.25).stroke_width(1)))
                .map_err(failed)?;
        }
        let best = front(rows, |row| cost.of(row));
        let line = best.iter().map(|&row| point(&rows[row]));
        chart.draw_series(LineSeries::new(line, ink.mix(0.45).stroke_width(2))).map_err(failed)?;
        for (row, &series) in rows.iter().zip(series) {
            mark(chart, point(row), Mark::of(row), color(series))?;
        }
        Ok(())
    })
}

type Linear<'a> = Chart<'a, RangedCoordf64, RangedCoordf64>;

fn mark(chart: &mut Linear<'_>, at: (f64, f64), mark: Mark, color: RGBColor) -> Result<()> {
    let drawn = match mark {
        Mark::Skips => chart.draw_series([Circle::new(at, 5, color.mix(0.85).filled())]).map(|_| ()),
        Mark::NoSkip => chart.draw_series([TriangleMarker::new(at, 7, color.filled())]).map(|_| ()),
        Mark::Static => {
            let square = EmptyElement::at(at) + Rectangle::new([(-5, -5), (5, 5)], color.stroke_width(2));
            chart.draw_series([square]).map(|_| ())
        }
    };
    drawn.map_err(failed)
}

fn vertical(chart: &mut Linear<'_>, x: f64, y: std::ops::Range<f64>) -> Result<()> {
    let pieces = 40;
    let step = (y.end - y.start) / f64::from(pieces);
    for piece in (0..pieces).step_by(2) {
        let from = y.start + step * f64::from(piece);
        let style = RGBColor(214, 69, 93).stroke_width(2);
        chart.draw_series(LineSeries::new([(x, from), (x, from + step)], style)).map_err(failed)?;
    }
    Ok(())
}

/// Multiply-accumulates of each block of those with everything active; `rows` with the numbers of their colors.
pub(super) fn densities(rows: &[(&Row, usize)]) -> Result<String> {
    let blocks = rows.iter().map(|(row, _)| row.found.blocks.len()).max().unwrap_or(0);
    if blocks == 0 {
        return Err(anyhow!("nothing to draw"));
    }
    let labels = ("block", "share of its MACs computed, %");
    drawn(Look::Page, labels, 0.5..blocks as f64 + 0.5, 0.0..102.0, |chart| {
        for &(row, series) in rows {
            let line: Vec<_> =
                (1..).zip(&row.found.blocks).map(|(at, block)| (f64::from(at), 100.0 * block.macs)).collect();
            lines(chart, line.clone(), series)?;
            chart
                .draw_series(line.into_iter().map(|at| Circle::new(at, 3, color(series).filled())))
                .map_err(failed)?;
        }
        Ok(())
    })
}

/// Share of the images that take no longer, up to a bit above the slowest row's 99th percentile.
pub(super) fn latencies(rows: &[(&Row, usize)], deadline_ms: Option<f64>) -> Result<String> {
    let all = || rows.iter().map(|(row, _)| &row.found.latency_ms);
    let fastest = all().map(|latency| latency.percentiles[0]);
    let (low, high) = range(fastest.chain(all().map(|latency| latency.p99)).chain(deadline_ms), 0.05)?;
    let ink = Look::Page.ink();
    let labels = ("latency, ms an image (measured)", "images that take no longer, %");
    drawn(Look::Page, labels, low.max(0.0)..high, 0.0..102.0, |chart| {
        for share in [50.0, 95.0, 99.0] {
            let ends = [(low.max(0.0), share), (high, share)];
            chart.draw_series(LineSeries::new(ends, ink.mix(0.3))).map_err(failed)?;
        }
        if let Some(deadline) = deadline_ms {
            vertical(chart, deadline, 0.0..102.0)?;
        }
        for &(row, series) in rows {
            let percentiles = (0..).zip(&row.found.latency_ms.percentiles);
            let inside = percentiles.map(|(share, ms)| (*ms, f64::from(share))).filter(|(ms, _)| *ms <= high);
            lines(chart, inside.collect(), series)?;
        }
        Ok(())
    })
}

fn lines(chart: &mut Linear<'_>, line: Vec<(f64, f64)>, series: usize) -> Result<()> {
    chart.draw_series(LineSeries::new(line, color(series).stroke_width(2))).map_err(failed)?;
    Ok(())
}

/// Median latency, predicted against measured; the lines are at ±10 %.
pub(super) fn predicted(rows: &[Row], series: &[usize]) -> Result<String> {
    let both = |(row, &series): (&Row, &usize)| {
        Some((row.found.typical_ms(), row.found.predicted_ms.as_ref()?.p50, series))
    };
    let points: Vec<(f64, f64, usize)> =
        rows.iter().zip(series).filter_map(both).filter(|(_, ms, _)| *ms > 0.0).collect();
    let all = || points.iter().flat_map(|&(x, y, _)| [x, y]);
    let (low, high) = range(all(), 0.08)?;
    let low = low.max(0.0);
    let ink = Look::Page.ink();
    let labels = ("measured, ms", "predicted, ms");
    drawn(Look::Page, labels, low..high, low..high, |chart| {
        for (off, share) in [(0.9, 0.2), (1.0, 0.5), (1.1, 0.2)] {
            let ends = [low.max(low / off), high.min(high / off)].map(|x| (x, off * x));
            chart.draw_series(LineSeries::new(ends, ink.mix(share))).map_err(failed)?;
        }
        let dots =
            points.iter().map(|&(x, y, series)| Circle::new((x, y), 5, color(series).mix(0.85).filled()));
        chart.draw_series(dots).map_err(failed)?;
        Ok(())
    })
}

/// From the least to the largest value, and a share of that more on both sides.
fn range(values: impl Iterator<Item = f64>, more: f64) -> Result<(f64, f64)> {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return Err(anyhow!("nothing to draw"));
    }
    let off = more * (high - low).max(0.02 * high.abs()).max(1e-6);
    Ok((low - off, high + off))
}
