//! How things are printed: numbers with units, aligned columns, JSON.

use anyhow::{Context, Result};
use laud::files::write_atomically;
use serde::Serialize;
use std::io::Write;
use std::path::Path;

/// Milliseconds with three significant digits.
pub(super) fn ms(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2} ms"),
        v if v < 100.0 => format!("{v:.1} ms"),
        v => format!("{v:.0} ms"),
    }
}

/// A count with a unit prefix: `4.09 G`.
pub(super) fn si(value: f64) -> String {
    let (scaled, prefix) = match value.abs() {
        v if v >= 1e12 => (value / 1e12, "T"),
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => return format!("{value:.0}"),
    };
    match scaled.abs() {
        v if v < 10.0 => format!("{scaled:.2} {prefix}"),
        v if v < 100.0 => format!("{scaled:.1} {prefix}"),
        _ => format!("{scaled:.0} {prefix}"),
    }
}

/// A share as a percentage.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// An error or tolerance.
pub(super) fn tiny(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.1e}") }
}

/// `faster` or `slower`, with the factor.
pub(super) fn speed(factor: f64) -> String {
    if factor >= 1.0 { format!("{factor:.2}× faster") } else { format!("{:.2}× slower", 1.0 / factor) }
}

/// Pretty JSON and a line end.
pub(super) fn json(out: &mut dyn Write, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    Ok(writeln!(out, "{text}")?)
}

/// Writes a text file, all or nothing.
pub(super) fn save(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, |out| out.write_all(text.as_bytes()))
        .with_context(|| format!("{}: cannot write", path.display()))
}

/// Columns that line up. The first is flush left, the others flush right.
#[derive(Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Whether the first row holds titles.
    header: bool,
    /// Columns, counted from 0, that are flush left too.
    left: Vec<usize>,
}

impl Table {
    pub(super) fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { rows: vec![header.map(str::to_owned).to_vec()], header: true, left: Vec::new() }
    }

    pub(super) fn left(mut self, column: usize) -> Self {
        self.left.push(column);
        self
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints the rows, the header among them where there is one.
    pub(super) fn print(&self, out: &mut dyn Write) -> Result<()> {
        let width = |text: &str| text.chars().count();
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0)
            })
            .collect();
        // A column without content below its title is left out.
        let filled = |column: usize| {
            self.rows
                .iter()
                .skip(usize::from(self.header))
                .any(|row| row.get(column).is_some_and(|cell| !cell.is_empty()))
        };
        let shown: Vec<usize> = (0..columns).filter(|&column| filled(column)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for &column in &shown {
                let cell = row.get(column).map_or("", String::as_str);
                let pad = " ".repeat(widths[column] - width(cell));
                if !line.is_empty() {
                    line.push_str("  ");
                }
                match column == 0 || self.left.contains(&column) {
                    true => line.extend([cell, &pad]),
                    false => line.extend([&*pad, cell]),
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([si(4.089e9), si(300.77e6), si(17.0), si(2.5e13)], ["4.09 G", "301 M", "17", "25.0 T"]);
        assert_eq!([ms(1.234), ms(12.34), ms(123.4)], ["1.23 ms", "12.3 ms", "123 ms"]);
        assert_eq!([speed(2.0), speed(0.5)], ["2.00× faster", "2.00× slower"]);
    }

    #[test]
    fn columns_line_up_and_empty_ones_go() {
        let mut table = Table::new(["name", "gone", "µs"]);
        table.row(["a".into(), String::new(), "1".into()]);
        table.row(["long".into(), String::new(), "100".into()]);
        let mut text = Vec::new();
        table.print(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "name   µs\na       1\nlong  100\n");
    }
}
