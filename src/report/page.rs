//! Results of experiments as one HTML page that needs nothing else: pictures and styles are inside, and there are no scripts.

use super::plots::{self, Cost, Mark, color};
use crate::evaluate::{Latency, Row, front, with_static};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::fmt::Write;

/// What a page is made of.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// First line.
    pub title: &'a str,
    /// Rows on the same images, at least one.
    pub rows: &'a [Row],
    /// Milliseconds that an image may take.
    pub deadline_ms: Option<f64>,
    /// PNG files and what is on them.
    pub pictures: &'a [(Vec<u8>, String)],
}

/// Rows whose densities and latencies are drawn.
const DRAWN: usize = 6;

impl Page<'_> {
    /// The page.
    ///
    /// # Errors
    /// Rows on different images; a chart that cannot be drawn.
    pub fn html(&self) -> Result<String> {
        let rows = with_static(self.rows);
        ensure!(!rows.is_empty(), "a report of no results");
        let set = |row: &Row| (row.cell.data.clone(), row.found.images);
        if let Some(other) = rows.iter().find(|row| set(row) != set(&rows[0])) {
            let [(a, n), (b, m)] = [set(&rows[0]), set(other)];
            ensure!(
                false,
                "accuracy on {n} images of {a} does not compare with that on {m} of {b}; report one set at a time"
            );
        }
        let names: Vec<String> = distinct(rows.iter().map(name));
        let series: Vec<usize> =
            rows.iter().map(|row| names.iter().position(|other| *other == name(row)).unwrap_or(0)).collect();
        let mut html = String::new();
        let title = escape(self.title);
        write!(
            html,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>\n{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n",
            include_str!("page.css")
        )?;
        self.intro(&rows, &mut html)?;
        self.tiles(&rows, &mut html)?;
        html += "<div class=\"cards\">\n";
        self.charts(&rows, &series, &names, &mut html)?;
        html += "</div>\n";
        self.pictures(&mut html)?;
        self.table(&rows, &mut html)?;
        origins(&rows, &mut html)?;
        html += "</main>\n</body>\n</html>\n";
        Ok(html)
    }

    fn intro(&self, rows: &[Row], html: &mut String) -> Result<()> {
        let first = &rows[0];
        let data = first.cell.data.rsplit(['/', '\\']).next().unwrap_or_default();
        writeln!(
            html,
            "<p class=\"quiet\">{} measured points on {} images of {}. Every number is measured; latency is that of single \
             inferences on the device named with it, static networks in turns with those that skip.</p>",
            rows.len(),
            first.found.images,
            escape(data)
        )?;
        if rows.iter().any(|row| !row.origin.trained) {
            writeln!(
                html,
                "<p>Some gates are <b>not trained</b> (marked * below): costs and latencies mean something, accuracy suffers.</p>"
            )?;
        }
        Ok(())
    }

    /// The most important numbers.
    fn tiles(&self, rows: &[Row], html: &mut String) -> Result<()> {
        *html += "<div class=\"tiles\">\n";
        let mut tile = |number: String, what: String| {
            writeln!(
                html,
                "<div class=\"card tile\"><b>{}</b><span class=\"quiet\">{}</span></div>",
                escape(&number),
                escape(&what)
            )
        };
        let best = front(rows, |row| Cost::Latency.of(row));
        let most = rows.iter().max_by(|a, b| a.found.top1.total_cmp(&b.found.top1));
        if let Some(row) = most {
            tile(
                percent(row.found.top1),
                format!(
                    "most accurate: {}, {} in {}",
                    name(row),
                    row.cell.policy,
                    ms(row.found.typical_ms())
                ),
            )?;
        }
        if let Some(&row) = best.first() {
            let row = &rows[row];
            tile(
                ms(row.found.typical_ms()),
                format!(
                    "fastest at its accuracy: {}, {}, top-1 {}",
                    name(row),
                    row.cell.policy,
                    percent(row.found.top1)
                ),
            )?;
        }
        // Against the static network, with no more than a point lost.
        let gain = |row: &Row| {
            let compared = row.found.compared.as_ref()?;
            let lost = compared.top1 - row.found.top1;
            row.found.speedup().filter(|_| lost <= 0.01)
        };
        let fastest =
            rows.iter().filter_map(|row| Some((gain(row)?, row))).max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((factor, row)) = fastest {
            tile(
                format!("{factor:.2}×"),
                format!(
                    "the static network's speed at no more than a point lost: {}, {}",
                    name(row),
                    row.cell.policy
                ),
            )?;
        }
        if let Some(deadline) = self.deadline_ms {
            let within: Vec<&Row> = rows.iter().filter(|row| row.found.latency_ms.p95 <= deadline).collect();
            let pick = within.iter().max_by(|a, b| a.found.top1.total_cmp(&b.found.top1));
            match pick {
                Some(row) => tile(
                    percent(row.found.top1),
                    format!(
                        "the most accurate of {} within {} at p95: {}, {}",
                        within.len(),
                        ms(deadline),
                        name(row),
                        row.cell.policy
                    ),
                )?,
                None => tile("none".into(), format!("keeps within {} at p95", ms(deadline)))?,
            }
        }
        *html += "</div>\n";
        Ok(())
    }

    fn charts(&self, rows: &[Row], series: &[usize], names: &[String], html: &mut String) -> Result<()> {
        let key = |entries: Vec<(usize, String)>, line: bool| {
            let class = if line { " class=\"line\"" } else { "" };
            let mut key = String::from("<ul class=\"key\">");
            for (series, name) in entries {
                let plotters::style::RGBColor(r, g, b) = color(series);
                let name = escape(&name);
                key += &format!("<li><i{class} style=\"background:rgb({r},{g},{b})\"></i>{name}</li>");
            }
            key + "</ul>"
        };
        let networks = || key(names.iter().cloned().enumerate().collect(), false);
        let marks = match (
            rows.iter().any(|row| Mark::of(row) == Mark::Static),
            rows.iter().any(|row| Mark::of(row) == Mark::NoSkip),
        ) {
            (true, true) => " Squares are static networks, triangles gates that keep everything.",
            (true, false) => " Squares are static networks.",
            (false, true) => " Triangles are gates that keep everything.",
            (false, false) => "",
        };
        let deadline = if self.deadline_ms.is_some() { " The dashed line is the deadline." } else { "" };
        let note = format!("The line joins what nothing beats; thin bars are 95 % intervals.{marks}");
        let chart = plots::accuracy(rows, series, Cost::Latency, self.deadline_ms)?;
        card(html, "Accuracy against measured latency", &format!("{note}{deadline}"), &chart, &networks())?;
        let chart = plots::accuracy(rows, series, Cost::Macs, None)?;
        card(html, "Accuracy against multiply-accumulates", &note, &chart, &networks())?;

        let best = front(rows, |row| Cost::Latency.of(row));
        let gated: Vec<usize> = (0..rows.len())
            .filter(|&row| !rows[row].found.blocks.is_empty() && rows[row].macs() < 1.0)
            .collect();
        // Those that nothing beats first.
        let mut drawn: Vec<usize> = gated.iter().copied().filter(|row| best.contains(row)).collect();
        drawn.extend(gated.iter().copied().filter(|row| !best.contains(row)));
        drawn.truncate(DRAWN);
        let label = |row: &Row| format!("{}, {}", name(row), row.cell.policy);
        let lines = |rows: &[(&Row, usize)]| {
            key(rows.iter().map(|&(row, series)| (series, label(row))).collect(), true)
        };
        if !drawn.is_empty() {
            let chosen: Vec<(&Row, usize)> =
                drawn.iter().enumerate().map(|(series, &row)| (&rows[row], series)).collect();
            let chart = plots::densities(&chosen)?;
            card(
                html,
                "What each block computes",
                "Means over the images, halo included.",
                &chart,
                &lines(&chosen),
            )?;
        }
        let plain = rows.iter().position(|row| Mark::of(row) == Mark::Static);
        let chosen = drawn.iter().take(DRAWN - 1).copied().chain(plain);
        let chosen: Vec<(&Row, usize)> =
            chosen.enumerate().map(|(series, row)| (&rows[row], series)).collect();
        if !chosen.is_empty() {
            let chart = plots::latencies(&chosen, self.deadline_ms)?;
            let note = format!("Thin lines at p50, p95 and p99.{deadline}");
            card(html, "How latency is distributed", &note, &chart, &lines(&chosen))?;
        }
        if rows.iter().any(|row| row.found.predicted_ms.is_some()) {
            let chart = plots::predicted(rows, series)?;
            card(
                html,
                "Predicted against measured latency",
                "Medians; thin lines at ±10 %.",
                &chart,
                &networks(),
            )?;
        }
        Ok(())
    }

    fn pictures(&self, html: &mut String) -> Result<()> {
        if self.pictures.is_empty() {
            return Ok(());
        }
        *html += "<h2>What was computed</h2>\n<p class=\"quiet\">Of the first block with a gate in each stage: bright is \
                  computed, dark is skipped.</p>\n<div class=\"cards\">\n";
        for (png, caption) in self.pictures {
            let (data, caption) = (base64(png), escape(caption));
            writeln!(
                html,
                "<figure class=\"card\"><img alt=\"{caption}\" loading=\"lazy\" src=\"data:image/png;base64,{data}\">\
                 <figcaption>{caption}</figcaption></figure>"
            )?;
        }
        *html += "</div>\n";
        Ok(())
    }

    fn table(&self, rows: &[Row], html: &mut String) -> Result<()> {
        let best: BTreeSet<usize> = front(rows, |row| Cost::Latency.of(row)).into_iter().collect();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|&a, &b| Cost::Latency.of(&rows[a]).total_cmp(&Cost::Latency.of(&rows[b])));
        *html += "<h2>All points</h2>\n<p class=\"quiet\">Fastest first; bold is what nothing beats. The change in accuracy and the \
                  speed are against the same network without gates, measured in turns; of medians, or means where images leave early.</p>\n<div class=\"card wide\"><table>\n<tr>\
                  <th class=\"text\">network</th><th class=\"text\">policy</th><th class=\"text\">where</th><th>top-1</th>\
                  <th>change</th><th>agrees</th><th>MACs</th><th>mean</th><th>p50</th><th>p95</th><th>p99</th><th>speed</th></tr>\n";
        for i in order {
            let row = &rows[i];
            let compared = row.found.compared.as_ref();
            let of =
                |text: &dyn Fn(&crate::evaluate::Compared) -> String| compared.map_or(String::new(), text);
            let class = if best.contains(&i) { " class=\"best\"" } else { "" };
            let Latency { mean, p50, p95, p99, .. } = row.found.latency_ms;
            write!(html, "<tr{class}>")?;
            for text in [name(row), row.cell.policy.clone(), row.place()] {
                write!(html, "<td class=\"text\">{}</td>", escape(&text))?;
            }
            let numbers = [
                percent(row.found.top1),
                of(&|other| format!("{:+.1}", 100.0 * (row.found.top1 - other.top1))),
                of(&|other| percent(other.agreement)),
                percent(row.macs()),
            ];
            numbers.iter().try_for_each(|text| write!(html, "<td>{text}</td>"))?;
            for time in [mean, p50, p95, p99] {
                let late = self.deadline_ms.is_some_and(|deadline| time > deadline);
                write!(html, "<td{}>{}</td>", if late { " class=\"late\"" } else { "" }, ms(time))?;
            }
            let speed = row.found.speedup().map_or(String::new(), |speed| format!("{speed:.2}×"));
            writeln!(html, "<td>{speed}</td></tr>")?;
        }
        *html += "</table></div>\n";
        Ok(())
    }
}

fn card(html: &mut String, title: &str, note: &str, chart: &str, key: &str) -> Result<()> {
    writeln!(
        html,
        "<section class=\"card\"><h2>{title}</h2><p class=\"quiet\">{note}</p>\n<div role=\"img\" aria-label=\"{title}\">{chart}</div>\n{key}</section>"
    )?;
    Ok(())
}

fn origins(rows: &[Row], html: &mut String) -> Result<()> {
    let list = |of: &dyn Fn(&Row) -> Option<String>| distinct(rows.iter().filter_map(of)).join(" · ");
    writeln!(
        html,
        "<p class=\"quiet\">Measured {} at commit {} on {} ({}).",
        escape(&list(&|row| Some(row.origin.date.clone()))),
        escape(&list(&|row| Some(row.origin.commit.clone()))),
        escape(&list(&|row| Some(row.origin.machine.clone()))),
        escape(&list(&|row| Some(row.origin.device.clone())))
    )?;
    let profiles = list(&|row| row.origin.profile.clone());
    if !profiles.is_empty() {
        write!(html, " Predictions by the profile of {}.", escape(&profiles))?;
    }
    *html += "</p>\n";
    Ok(())
}

/// Network and gates, with a star where they are not trained.
fn name(row: &Row) -> String {
    let star = if row.origin.trained { "" } else { " *" };
    row.network() + star
}

fn distinct(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = Vec::new();
    all.for_each(|one| {
        if !seen.contains(&one) {
            seen.push(one);
        }
    });
    seen
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn ms(value: f64) -> String {
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} ms")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let number = (0..3).fold(0, |number, i| number << 8 | u32::from(group.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let digit = DIGITS[(number >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= group.len() { digit as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::{BlockShare, row};

    fn rows() -> Vec<Row> {
        let mut rows = vec![
            row("learned", 0.9, 1.0),
            row("always", 0.92, 2.0),
            row("random:0.5", 0.6, 1.1),
            row("static", 0.93, 1.9),
        ];
        rows[0].found.blocks = (0..3)
            .map(|i| BlockShare {
                block: format!("b{i}"),
                patches: Some(0.5),
                channel_groups: None,
                macs: 0.6,
            })
            .collect();
        rows[3].origin.gates = None;
        rows[2].origin.trained = false;
        rows[2].cell.policy = "<b>&".into();
        rows
    }

    fn page(rows: &[Row]) -> Result<String> {
        let pictures = [(b"png".to_vec(), "a \"cat\"".to_owned())];
        Page { title: "a < b", rows, deadline_ms: Some(1.5), pictures: &pictures }.html()
    }

    #[test]
    fn everything_is_inside_the_page() {
        let html = page(&rows()).unwrap();
        assert_eq!(html.matches("<svg").count(), 5);
        for word in [
            "latency, ms an image (measured)",
            "predicted, ms",
            "data:image/png;base64,cG5n",
            "currentColor",
            "not trained",
            "a &lt; b",
            "&lt;b&gt;&amp;",
            "the most accurate of 2 within",
        ] {
            assert!(html.contains(word), "{word}");
        }
        for outside in ["<script", "src=\"http", "href=", "@import", "<b>&"] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert_eq!(html.matches("<tr").count(), 5);
    }

    #[test]
    fn other_images_and_no_rows_are_errors() {
        let mut mixed = rows();
        mixed[1].found.images = 100;
        assert!(page(&mixed).unwrap_err().to_string().contains("does not compare"));
        assert!(page(&[]).is_err());
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        let words = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|word| base64(word.as_bytes()));
        assert_eq!(words, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }
}
