use crate::files::Lines;
use anyhow::{Context, Result};
use laud_predictor::measurements;
use laud_predictor::workload::Sample;
use std::fs;
use std::path::Path;

/// The measurements of a calibration that is not finished: a CSV file that only grows, a line reaching the disk as soon
/// as it is measured.
#[derive(Debug)]
pub struct Journal {
    lines: Lines,
    samples: Vec<Sample>,
}

impl Journal {
    /// Opens the journal at `path`, or begins one. A last line that was cut off while it was written is removed.
    ///
    /// # Errors
    /// When the file cannot be read or written or holds something else than measurements.
    pub fn open(path: &Path) -> Result<Self> {
        let read = |text: &str| match text {
            "" => Ok(None),
            lines => measurements::read(lines)
                .map(Some)
                .with_context(|| format!("{}: remove it to calibrate from the start", path.display())),
        };
        let (mut lines, samples) = Lines::open(path, read)?;
        if samples.is_none() {
            lines.append(&measurements::header())?;
        }
        Ok(Self { lines, samples: samples.unwrap_or_default() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.lines.path()
    }

    /// What it held when it was opened.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Adds a measurement, which is on the disk when this returns.
    ///
    /// # Errors
    /// When the disk does not take it; everything before stays.
    pub fn append(&mut self, sample: &Sample) -> Result<()> {
        self.lines.append(&measurements::line(sample))
    }

    /// Removes the file: its measurements are in a profile now.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn finish(self) -> Result<()> {
        fs::remove_file(self.path()).with_context(|| format!("{}: cannot remove", self.path().display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use laud_predictor::workload::{Op, Workload};

    fn sample(c: u32) -> Sample {
        let workload = Workload::new(Op::GatherGemm, 7, 7, c, 8);
        Sample { workload, median_ns: 1000.0 + f64::from(c), mad_ns: 1.0, repeats: 9 }
    }

    #[test]
    fn nothing_is_lost_wherever_writing_stops() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        let mut journal = Journal::open(&path).unwrap();
        (1..4).for_each(|c| journal.append(&sample(c)).unwrap());
        drop(journal);
        let whole = fs::read(&path).unwrap();
        let header = measurements::header().len();
        for end in 0..=whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let lines = whole[header.min(end)..end].iter().filter(|byte| **byte == b'\n').count();
            let mut journal = Journal::open(&path).unwrap();
            assert_eq!(journal.samples(), (1..=lines as u32).map(sample).collect::<Vec<_>>(), "cut at {end}");
            journal.append(&sample(9)).unwrap();
            drop(journal);
            assert_eq!(Journal::open(&path).unwrap().samples().last(), Some(&sample(9)));
        }
    }

    #[test]
    fn something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        fs::write(&path, "dear diary\nnothing\n").unwrap();
        assert!(Journal::open(&path).unwrap_err().to_string().contains("remove it"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "dear diary\nnothing\n");
    }
}
