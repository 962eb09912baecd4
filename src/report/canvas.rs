//! Axes that charts are drawn on, as SVG.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

/// Series, one after another; they can be told apart on white and on black.
pub(super) const COLORS: [RGBColor; 8] = [
    RGBColor(47, 126, 204),
    RGBColor(230, 126, 34),
    RGBColor(39, 160, 110),
    RGBColor(155, 102, 214),
    RGBColor(214, 69, 93),
    RGBColor(24, 163, 178),
    RGBColor(176, 130, 58),
    RGBColor(128, 134, 148),
];
/// Becomes the color of the text around a chart on a page.
const INK: RGBColor = RGBColor(1, 2, 3);

/// Where a chart is seen.
#[derive(Clone, Copy)]
pub(super) enum Look<'a> {
    /// By itself: black on white, under a title.
    Paper(&'a str),
    /// Inside a page, whose colors it takes.
    Page,
}

impl Look<'_> {
    /// Of axes, text and lines that are no series.
    pub(super) fn ink(self) -> RGBColor {
        match self {
            Self::Paper(_) => BLACK,
            Self::Page => INK,
        }
    }
}

pub(super) type Chart<'a, X, Y> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>;

/// Draws axes and what `content` adds.
pub(super) fn drawn<X, Y>(
    look: Look<'_>,
    (x_label, y_label): (&str, &str),
    x: X,
    y: Y,
    content: impl for<'a> FnOnce(&mut Chart<'a, X::CoordDescType, Y::CoordDescType>) -> Result<()>,
) -> Result<String>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let (mut svg, ink) = (String::new(), look.ink());
    {
        // Charts on a page get narrow: fewer pixels, so that text stays legible when they are.
        let (size, text, margin, [below, left]) = match look {
            Look::Paper(_) => ((720, 480), 14, 12, [44, 64]),
            Look::Page => ((520, 370), 18, 6, [54, 66]),
        };
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let mut builder = ChartBuilder::on(&root);
        if let Look::Paper(title) = look {
            root.fill(&WHITE).map_err(failed)?;
            builder.caption(title, ("sans-serif", 20));
        }
        let mut chart = builder
            .margin(margin)
            .x_label_area_size(below)
            .y_label_area_size(left)
            .build_cartesian_2d(x, y)
            .map_err(failed)?;
        let style = TextStyle::from(("sans-serif", text).into_font()).color(&ink);
        chart
            .configure_mesh()
            .x_desc(x_label)
            .y_desc(y_label)
            .x_labels(8)
            .y_labels(8)
            .axis_style(ink.mix(0.5))
            .bold_line_style(ink.mix(0.12))
            .light_line_style(TRANSPARENT)
            .label_style(style)
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .draw()
            .map_err(failed)?;
        content(&mut chart)?;
        root.present().map_err(failed)?;
    }
    Ok(match look {
        Look::Paper(_) => svg,
        Look::Page => svg.replace("\"#010203\"", "\"currentColor\""),
    })
}

/// As short as three digits behind the point allow.
fn number(value: &f64) -> String {
    ((value * 1e3).round() / 1e3).to_string()
}

pub(super) fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}
