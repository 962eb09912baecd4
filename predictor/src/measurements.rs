//! Raw measurements as CSV: a line per [`Sample`], a column per field.

use serde::{Deserialize, Serialize};

use crate::workload::{Cache, DType, Op, Route, Sample, Workload};
use crate::{Error, Result};

/// A line of the file; `csv` cannot flatten.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    op: Op,
    dtype: DType,
    batch: u32,
    in_h: u32,
    in_w: u32,
    out_h: u32,
    out_w: u32,
    c_in: u32,
    c_out: u32,
    kernel: u32,
    stride: u32,
    groups: u32,
    rows: u32,
    runs: u32,
    c_in_active: f64,
    c_out_active: f64,
    c_in_listed: bool,
    c_out_listed: bool,
    group_size: u32,
    residual: bool,
    input_compact: bool,
    output_compact: bool,
    route: Route,
    tile: u32,
    threads: u32,
    cache: Cache,
    median_ns: f64,
    mad_ns: f64,
    repeats: u32,
}

/// Share of the times of one thing, the quickest, whose median counts.
const QUICKEST: f64 = 1.0 / 3.0;

/// What something takes undisturbed: the median of the quickest third of its times. What others do to a shared machine makes
/// it slower and never faster. Not a number of none.
pub fn undisturbed(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.truncate((QUICKEST * times.len() as f64).ceil() as usize);
    median(times)
}

/// The middle one, or the mean of the two in the middle. Not a number of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n => (values[(n - 1) / 2] + values[n / 2]) / 2.0,
    }
}

/// Names of the columns, in their order.
pub const COLUMNS: [&str; 29] = [
    "op",
    "dtype",
    "batch",
    "in_h",
    "in_w",
    "out_h",
    "out_w",
    "c_in",
    "c_out",
    "kernel",
    "stride",
    "groups",
    "rows",
    "runs",
    "c_in_active",
    "c_out_active",
    "c_in_listed",
    "c_out_listed",
    "group_size",
    "residual",
    "input_compact",
    "output_compact",
    "route",
    "tile",
    "threads",
    "cache",
    "median_ns",
    "mad_ns",
    "repeats",
];

/// The table, header first.
pub fn write(samples: &[Sample]) -> String {
    let mut text = header();
    samples.iter().for_each(|sample| text.push_str(&line(sample)));
    text
}

/// The header alone, with its newline: what an empty file begins with.
pub fn header() -> String {
    COLUMNS.join(",") + "\n"
}

/// One measurement's line, with its newline: what is appended as soon as it is taken.
pub fn line(sample: &Sample) -> String {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.serialize(Line::from(sample)).expect("plain fields");
    let bytes = writer.into_inner().expect("memory does not fail");
    String::from_utf8(bytes).expect("written from text")
}

/// Reads what [`write()`] writes.
///
/// # Errors
/// Names line and column of the first field that is missing, not of its type, or an impossible number.
pub fn read(text: &str) -> Result<Vec<Sample>> {
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let fail = |line, column: Option<&str>, reason| Error::Csv {
        what: "measurements".to_owned(),
        line,
        column: column.map(str::to_owned),
        reason,
    };
    let header = reader.headers().map_err(|error| fail(1, None, error.to_string()))?.clone();
    if header.iter().ne(COLUMNS) {
        let expected = COLUMNS.iter().zip(header.iter().map(Some).chain(std::iter::repeat(None)));
        let reason = match expected.into_iter().find(|(name, found)| Some(**name) != *found) {
            Some((name, Some(found))) => format!("`{found}` stands where `{name}` is expected"),
            Some((name, None)) => format!("column `{name}` is missing"),
            None => format!("{} columns instead of {}", header.len(), COLUMNS.len()),
        };
        return Err(fail(1, None, reason));
    }
    let mut samples = Vec::new();
    for line in reader.deserialize::<Line>() {
        let at = samples.len() as u64 + 2;
        let line = line.map_err(|error| {
            let at = error.position().map_or(at, csv::Position::line);
            match error.kind() {
                csv::ErrorKind::Deserialize { err, .. } => {
                    let column = err.field().and_then(|field| COLUMNS.get(field as usize).copied());
                    fail(at, column, err.kind().to_string())
                }
                csv::ErrorKind::UnequalLengths { len, .. } => {
                    fail(at, None, format!("{len} fields instead of {}", COLUMNS.len()))
                }
                _ => fail(at, None, error.to_string()),
            }
        })?;
        let sample = Sample::from(line);
        sample.check().map_err(|error| match error {
            Error::Workload { field, value, need } => fail(at, Some(field), format!("{value} is not {need}")),
            other => other,
        })?;
        samples.push(sample);
    }
    Ok(samples)
}

/// The same fields one after another, both ways.
macro_rules! flat {
    ($($field:ident)*) => {
        impl From<&Sample> for Line {
            fn from(&Sample { workload: Workload { $($field),* }, median_ns, mad_ns, repeats }: &Sample) -> Self {
                Self { $($field),*, median_ns, mad_ns, repeats }
            }
        }

        impl From<Line> for Sample {
            fn from(Line { $($field),*, median_ns, mad_ns, repeats }: Line) -> Self {
                Self { workload: Workload { $($field),* }, median_ns, mad_ns, repeats }
            }
        }
    };
}

flat! {
    op dtype batch in_h in_w out_h out_w c_in c_out kernel stride groups rows runs c_in_active c_out_active c_in_listed
    c_out_listed group_size residual input_compact output_compact route tile threads cache
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undisturbed_times_are_the_middle_of_the_quickest_third() {
        assert_eq!(undisturbed(vec![9.0, 1.0, 50.0, 2.0, 70.0, 3.0, 60.0, 80.0, 40.0]), 2.0);
        assert_eq!(undisturbed(vec![5.0, 1.0, 3.0, 9.0]), 2.0);
        assert_eq!(undisturbed(vec![7.0]), 7.0);
        assert_eq!((median(vec![9.0, 1.0, 2.0]), median(vec![9.0, 1.0, 2.0, 4.0])), (2.0, 3.0));
        assert!(undisturbed(Vec::new()).is_nan());
    }

    fn sample() -> Sample {
        let workload = Workload {
            c_in_active: 21.5,
            c_in_listed: true,
            ..Workload::new(Op::GatherGemm, 14, 14, 64, 256)
        };
        Sample { workload, median_ns: 1234.5, mad_ns: 6.25, repeats: 9 }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let samples = [sample(), Sample { median_ns: 0.1 + 0.2, ..sample() }];
        assert_eq!(read(&write(&samples)).unwrap(), samples);
        assert_eq!(read(&header()).unwrap(), []);
        assert_eq!(write(&samples[..1]), header() + &line(&samples[0]));
    }

    #[test]
    fn a_wrong_field_is_named_by_line_and_column() {
        let text = write(&[sample(), sample()]);
        let error = |text: &str| read(text).unwrap_err().to_string();
        let second = |from: &str, to: &str| {
            let (head, last) = text.trim_end().rsplit_once('\n').unwrap();
            error(&format!("{head}\n{}\n", last.replacen(from, to, 1)))
        };
        let said = second("1234.5", "NaN");
        assert!(said.contains("line 3") && said.contains("median_ns") && said.contains("NaN"), "{said}");
        let said = second("1234.5", "-3");
        assert!(said.contains("median_ns") && said.contains("-3"), "{said}");
        let said = second("gather_gemm", "gemm");
        assert!(said.contains("line 3") && said.contains("gemm"), "{said}");
        let said = second("f32,1,", "f32,x,");
        assert!(said.contains("column batch"), "{said}");
        let said = second(",9", "");
        assert!(said.contains("line 3") && said.contains("28 fields"), "{said}");
        let said = error(&text.replacen("dtype", "type", 1));
        assert!(said.contains("line 1") && said.contains("`type`") && said.contains("`dtype`"), "{said}");
        assert!(error("").contains("missing"), "{}", error(""));
    }
}
