//! Evaluations in a file: JSON lines, of which each says everything about where it comes from.

use super::{Evaluation, Latency};
use crate::files::Lines;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One evaluation of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What was asked for.
    pub cell: Cell,
    /// Where it was done.
    pub origin: Origin,
    /// What came of it.
    pub found: Evaluation,
    /// What was computed of the first images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pictures: Vec<Picture>,
}

/// A point of a grid. Two rows of the same cell say the same, but for the machine's moods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Weights file or name.
    pub model: String,
    /// Gates as they were asked for; `None`: as the weights have them.
    pub mode: Option<String>,
    /// Side of a patch, one or one a stage.
    pub granularity: Option<String>,
    /// Channels in a channel group.
    pub group: Option<String>,
    /// Who decides; `static` where there are no gates.
    pub policy: String,
    /// Where it runs.
    pub device: String,
    /// Threads of an inference.
    pub threads: usize,
    /// What activations and weights are stored as.
    pub dtype: String,
    /// Of what is random.
    pub seed: u64,
    /// Labelled images.
    pub data: String,
    /// Only so many of them.
    pub limit: Option<usize>,
    /// Images of an inference.
    pub batch: usize,
    /// Times that each is timed.
    pub repeat: usize,
}

/// Where numbers come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Commit of the program.
    pub commit: String,
    /// Date in UTC, ISO 8601.
    pub date: String,
    /// The device, as a session describes it.
    pub device: String,
    /// The processor.
    pub machine: String,
    /// Hash of the kernels' sources.
    pub kernels: String,
    /// Profile that latency is predicted from.
    pub profile: Option<String>,
    /// The network's name.
    pub network: String,
    /// Its gates in a few words; `None` without any.
    pub gates: Option<String>,
    /// Whether the gates are trained: answers of others mean little.
    pub trained: bool,
}

/// A picture of what was computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// File, from the folder of the results.
    pub file: String,
    /// What is on it.
    pub caption: String,
}

impl Row {
    /// Network and gates, as short as it can be said; weights files go by their own name, or their folder's where that is
    /// no more than `model`.
    pub fn network(&self) -> String {
        let path = Path::new(&self.cell.model);
        let named = |path: Option<&Path>| path?.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let file = named(Some(path)).filter(|_| path.extension().is_some());
        let file = file.map(|stem| if stem == "model" { named(path.parent()).unwrap_or(stem) } else { stem });
        let network = file.unwrap_or_else(|| self.origin.network.clone());
        self.origin.gates.as_ref().map_or_else(|| network.clone(), |gates| format!("{network}, {gates}"))
    }

    /// Multiply-accumulates of those with everything active, `0..=1`.
    pub fn macs(&self) -> f64 {
        self.found.macs.done / self.found.macs.dense
    }

    /// Device, threads and type.
    pub fn place(&self) -> String {
        let Cell { device, threads, dtype, .. } = &self.cell;
        let threads = if *threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        format!("{device}, {threads}, {dtype}")
    }
}

/// A results file that grows.
pub struct Results {
    lines: Lines,
    rows: Vec<Row>,
}

impl Results {
    /// Opens the file, or begins one. A last line that was cut off is removed.
    ///
    /// # Errors
    /// When it cannot be read or written, holds something else, or somebody else writes it.
    pub fn open(path: &Path) -> Result<Self> {
        let (lines, rows) = Lines::open(path, |text| parse(text, path))?;
        Ok(Self { lines, rows })
    }

    /// The rows so far.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Adds a row, which is on the disk when this returns.
    ///
    /// # Errors
    /// When the disk does not take it; what was there stays.
    pub fn push(&mut self, row: Row) -> Result<()> {
        self.lines.append(&serde_json::to_string(&row).context("cannot write a row")?)?;
        self.rows.push(row);
        Ok(())
    }
}

/// Reads a results file, without a last line that is cut off.
///
/// # Errors
/// Names file and line of the first thing that is wrong; no rows.
pub fn load(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let rows = parse(&text[..whole], path)?;
    ensure!(!rows.is_empty(), "{}: no results", path.display());
    Ok(rows)
}

fn parse(text: &str, path: &Path) -> Result<Vec<Row>> {
    let row = |(at, line): (usize, &str)| {
        let row: Row = serde_json::from_str(line)
            .with_context(|| format!("{}: line {}: no result of an experiment", path.display(), at + 1))?;
        let Latency { percentiles, .. } = &row.found.latency_ms;
        ensure!(
            percentiles.len() == 101,
            "{}: line {}: {} percentiles, not 101",
            path.display(),
            at + 1,
            percentiles.len()
        );
        Ok(row)
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(row).collect()
}

/// The rows that no other one is at least as good as in both: `cost`, the less the better, and accuracy. Ascending.
pub fn front(rows: &[Row], cost: impl Fn(&Row) -> f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows.len()).filter(|&i| cost(&rows[i]).is_finite()).collect();
    let key = |i: usize| (cost(&rows[i]), rows[i].found.top1);
    order.sort_by(|&a, &b| key(a).0.total_cmp(&key(b).0).then(key(b).1.total_cmp(&key(a).1)));
    let mut best = f64::NEG_INFINITY;
    order.retain(|&i| {
        let better = rows[i].found.top1 > best;
        best = best.max(rows[i].found.top1);
        better
    });
    order
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::evaluate::{Computed, Macs};

    /// A row of the accuracy and latency.
    pub(crate) fn row(policy: &str, top1: f64, ms: f64) -> Row {
        let latency = |scale: f64| {
            Latency::of(&(0..200).map(|i| scale * (ms + 0.001 * f64::from(i))).collect::<Vec<_>>())
        };
        Row {
            cell: Cell {
                model: "net".into(),
                mode: None,
                granularity: None,
                group: None,
                policy: policy.into(),
                device: "cpu".into(),
                threads: 1,
                dtype: "f32".into(),
                seed: 0,
                data: "set".into(),
                limit: None,
                batch: 1,
                repeat: 1,
            },
            origin: Origin {
                commit: "c".into(),
                date: "2026-01-01".into(),
                device: "cpu".into(),
                machine: "m".into(),
                kernels: "k".into(),
                profile: None,
                network: "net".into(),
                gates: Some("layer".into()),
                trained: true,
            },
            found: Evaluation {
                images: 200,
                batch: 1,
                top1,
                top5: 1.0,
                macs: Macs { done: 1e6 * ms, most: 1e6 * ms, dense: 1e7 },
                exits: Vec::new(),
                computed: Computed { blocks: 0.5, patches: 0.5, channel_groups: 1.0 },
                blocks: vec![],
                latency_ms: latency(1.0).unwrap(),
                predicted_ms: Some(latency(1.1).unwrap()),
                compared: None,
            },
            pictures: vec![],
        }
    }

    #[test]
    fn nothing_is_lost_wherever_writing_stops() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        let mut results = Results::open(&path).unwrap();
        for name in ["a", "b", "c"] {
            results.push(row(name, 0.5, 1.0)).unwrap();
        }
        assert!(Results::open(&path).err().unwrap().to_string().contains("somebody else"));
        drop(results);
        assert_eq!(load(&path).unwrap().len(), 3);
        let whole = std::fs::read(&path).unwrap();
        for end in (0..whole.len()).step_by(97).chain([whole.len() - 1, whole.len()]) {
            std::fs::write(&path, &whole[..end]).unwrap();
            let lines = whole[..end].iter().filter(|byte| **byte == b'\n').count();
            let mut results = Results::open(&path).unwrap();
            assert_eq!(results.rows().len(), lines, "cut at {end}");
            results.push(row("d", 0.5, 1.0)).unwrap();
            drop(results);
            assert_eq!(load(&path).unwrap()[lines].cell.policy, "d");
        }
    }

    #[test]
    fn something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, "{}\ndear diary").unwrap();
        let error = format!("{:#}", Results::open(&path).err().unwrap());
        assert!(error.contains("x.jsonl: line 1") && error.contains("cell"), "{error}");
        assert!(load(&path).is_err() && load(folder.path()).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\ndear diary");
    }

    #[test]
    fn networks_of_files_go_by_the_file() {
        let mut row = row("p", 0.5, 1.0);
        let mut name = |model: &str| {
            row.cell.model = model.into();
            row.network()
        };
        let names = ["resnet50", "a/b50.safetensors", "a/g56/model.safetensors", "model.pth"].map(&mut name);
        assert_eq!(names, ["net, layer", "b50, layer", "g56, layer", "model, layer"]);
    }

    #[test]
    fn the_front_holds_what_nothing_beats() {
        let rows = [(0.9, 3.0), (0.8, 1.0), (0.8, 2.0), (0.95, 4.0), (0.85, 5.0)]
            .map(|(top1, ms)| row("p", top1, ms));
        assert_eq!(front(&rows, |row| row.found.latency_ms.p50), [1, 0, 3]);
    }
}
