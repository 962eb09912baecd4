//! `laud report`: results of experiments as a page.

use super::advise::load_all;
use super::output::save;
use super::parse;
use anyhow::{Context, Result, ensure};
use clap::Args;
use laud::evaluate::Row;
use laud::report::Page;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Make one HTML page of results: accuracy against latency, densities, distributions, masks
#[derive(Args)]
pub(super) struct ReportArgs {
    /// Results of experiments: JSON lines
    #[arg(value_name = "RESULTS", required = true)]
    results: Vec<PathBuf>,
    /// Page to write
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// What an image may take: 33ms
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    deadline: Option<Duration>,
    /// First line
    #[arg(long, value_name = "TEXT", default_value = "Accuracy and measured latency")]
    title: String,
    /// Pictures at most
    #[arg(long, value_name = "N", default_value_t = 8)]
    pictures: usize,
}

/// Most bytes of a picture.
const MAX_PICTURE_BYTES: u64 = 8 << 20;

impl ReportArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let rows = load_all(&self.results)?;
        let pictures = self.pictures(&rows)?;
        let deadline_ms = self.deadline.map(|deadline| deadline.as_secs_f64() * 1e3);
        let page = Page { title: &self.title, rows: &rows, deadline_ms, pictures: &pictures };
        save(&self.out, &page.html()?)?;
        Ok(writeln!(out, "{}: {} results", self.out.display(), rows.len())?)
    }

    /// Pictures of the rows in turns, so that each is seen before any is seen twice.
    fn pictures(&self, rows: &[Row]) -> Result<Vec<(Vec<u8>, String)>> {
        let longest = rows.iter().map(|row| row.pictures.len()).max().unwrap_or(0);
        let turns =
            (0..longest).flat_map(|at| rows.iter().filter_map(move |row| Some((row, row.pictures.get(at)?))));
        let folders: Vec<&Path> =
            self.results.iter().map(|file| file.parent().unwrap_or(Path::new(""))).collect();
        let read = |(row, picture): (&Row, &laud::evaluate::Picture)| {
            let found = folders.iter().map(|folder| folder.join(&picture.file)).find(|path| path.is_file());
            let path =
                found.with_context(|| format!("{}: no such picture beside the results", picture.file))?;
            let mut png = Vec::new();
            let file = std::fs::File::open(&path).with_context(|| path.display().to_string())?;
            file.take(MAX_PICTURE_BYTES + 1)
                .read_to_end(&mut png)
                .with_context(|| path.display().to_string())?;
            ensure!(
                png.starts_with(b"\x89PNG") && png.len() as u64 <= MAX_PICTURE_BYTES,
                "{}: not a PNG of at most {} MiB",
                path.display(),
                MAX_PICTURE_BYTES >> 20
            );
            Ok((png, format!("{}, {}: {}", row.network(), row.cell.policy, picture.caption)))
        };
        turns.take(self.pictures).map(read).collect()
    }
}
