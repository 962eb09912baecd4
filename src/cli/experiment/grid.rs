//! The grid: a TOML file.

use super::super::model::{Model, ModelArgs};
use anyhow::{Context, Result, anyhow, ensure};
use laud::policy::early_exits;
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// What a cell without gates has for a policy.
pub(super) const STATIC: &str = "static";

/// Everything that a grid can say.
pub(super) const EXAMPLE: &str = r#"# Every model, with every gate it is given, on every device, is evaluated by every policy.
data = "images"                 # as --data of eval
limit = 500                     # only the first images; leave out for all
repeat = 3                      # every inference is timed so often, the median counts
batch = 1                       # images of an inference
policies = ["learned", "threshold:0.5", "topk:0.5", "budget:0.6", "random:0.5", "always", "exit:24:0.9"]
threads = [1, 2]
devices = ["cpu"]
dtypes = ["f32"]
seeds = [0]                     # of what is random: a policy, gates that are not trained
pictures = 3                    # draw what is computed of the first images
# profile = "here.json"         # predict latency too, on the kind of device and type it was made on by laud calibrate

[[models]]
model = ["cifar_resnet20"]      # as --model; several, such as one trained for each target
mode = ["spatial", "channel"]   # as --mode: gates that are added to weights without any, or those they have
granularity = ["4-2-1"]         # as --granularity
# group = ["8"]                 # as --group
# policies = ["learned"]        # instead of those above
"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Experiment {
    pub(super) data: PathBuf,
    pub(super) limit: Option<usize>,
    #[serde(default = "one")]
    pub(super) batch: usize,
    #[serde(default = "one")]
    pub(super) repeat: usize,
    #[serde(default)]
    policies: Vec<String>,
    #[serde(default = "one_thread")]
    threads: Vec<usize>,
    #[serde(default = "cpu")]
    devices: Vec<String>,
    #[serde(default = "f32")]
    dtypes: Vec<String>,
    #[serde(default = "first_seed")]
    seeds: Vec<u64>,
    #[serde(default)]
    pub(super) pictures: usize,
    pub(super) profile: Option<PathBuf>,
    models: Vec<Models>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Models {
    model: OneOrMore,
    mode: Option<OneOrMore>,
    granularity: Option<OneOrMore>,
    group: Option<OneOrMore>,
    policies: Option<Vec<String>>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

fn one() -> usize {
    1
}

fn one_thread() -> Vec<usize> {
    vec![1]
}

fn cpu() -> Vec<String> {
    vec!["cpu".into()]
}

fn f32() -> Vec<String> {
    vec!["f32".into()]
}

fn first_seed() -> Vec<u64> {
    vec![0]
}

/// Where a cell is evaluated.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) device: String,
    pub(super) threads: usize,
    pub(super) dtype: String,
}

/// A network with its gates.
pub(super) struct Variant {
    pub(super) name: String,
    pub(super) mode: Option<String>,
    pub(super) granularity: Option<String>,
    pub(super) group: Option<String>,
    pub(super) label: String,
    /// With gates of the first seed, where they are not trained.
    pub(super) model: Model,
    /// With those of the other seeds.
    others: Vec<(u64, Model)>,
    policies: Option<Vec<String>>,
}

impl Experiment {
    pub(super) fn load(path: &Path) -> Result<Self> {
        let name = || path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| format!("{}: cannot read", name()))?;
        let grid: Self = toml::from_str(&text).map_err(|error| {
            // The line has the key in it.
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.get(..at).map_or(0, |before| before.matches('\n').count());
            let source = text.lines().nth(line).unwrap_or_default().trim();
            anyhow!("{}: line {} (`{source}`): {}", name(), line + 1, error.message())
        })?;
        let numbers = [("batch", grid.batch), ("repeat", grid.repeat), ("limit", grid.limit.unwrap_or(1))];
        for (key, value) in numbers.into_iter().chain(grid.threads.iter().map(|n| ("threads", *n))) {
            ensure!((1..=1 << 20).contains(&value), "{}: {key} = {value} is not in 1..=1048576", name());
        }
        let lists = [
            ("threads", grid.threads.is_empty()),
            ("devices", grid.devices.is_empty()),
            ("dtypes", grid.dtypes.is_empty()),
            ("seeds", grid.seeds.is_empty()),
            ("models", grid.models.is_empty()),
        ];
        for (key, empty) in lists {
            ensure!(!empty, "{}: {key} is empty", name());
        }
        ensure!(
            grid.profile.is_none() || grid.batch == 1,
            "{}: profile: latency is predicted of one image at once; batch = {}",
            name(),
            grid.batch
        );
        Ok(grid)
    }

    pub(super) fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        for device in &self.devices {
            for dtype in &self.dtypes {
                for &threads in &self.threads {
                    places.push(Place { device: device.clone(), threads, dtype: dtype.clone() });
                }
            }
        }
        places
    }

    /// Every network with every gate; all weights are opened.
    pub(super) fn variants(&self) -> Result<Vec<Variant>> {
        let mut variants = Vec::new();
        for entry in &self.models {
            let list = |list: &Option<OneOrMore>| match list {
                None => vec![None],
                Some(OneOrMore::One(one)) => vec![Some(one.clone())],
                Some(OneOrMore::More(more)) => more.iter().cloned().map(Some).collect(),
            };
            for name in list(&Some(entry.model.clone())).into_iter().flatten() {
                for mode in list(&entry.mode) {
                    for granularity in list(&entry.granularity) {
                        for group in list(&entry.group) {
                            let gates = [&mode, &granularity, &group].map(Option::as_deref);
                            variants.push(self.variant(entry, &name, gates)?);
                        }
                    }
                }
            }
        }
        ensure!(!variants.is_empty(), "models: an empty list leaves nothing to evaluate");
        Ok(variants)
    }

    fn variant(&self, entry: &Models, name: &str, gates: [Option<&str>; 3]) -> Result<Variant> {
        let [mode, granularity, group] = gates;
        let words = [Some(name), mode, granularity, group];
        let label = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
        let args = ModelArgs::with_gates(name, mode, granularity, group)
            .with_context(|| format!("models: {label}"))?;
        let resolve = |seed| args.for_training(seed).with_context(|| format!("models: {label}"));
        let model = resolve(self.seeds[0])?;
        let mut others = Vec::new();
        for &seed in self.seeds.iter().skip(1).filter(|_| model.attached) {
            others.push((seed, resolve(seed)?));
        }
        let owned = |text: Option<&str>| text.map(str::to_owned);
        ensure!(
            !model.is_gated() || !entry.policies.as_ref().unwrap_or(&self.policies).is_empty(),
            "policies: none for {label}"
        );
        Ok(Variant {
            name: name.to_owned(),
            mode: owned(mode),
            granularity: owned(granularity),
            group: owned(group),
            policies: entry.policies.clone(),
            label,
            model,
            others,
        })
    }
}

impl Variant {
    /// Policies with the seeds that make a difference.
    pub(super) fn policies(&self, grid: &Experiment) -> Vec<(String, u64)> {
        let policies = self.policies.as_ref().unwrap_or(&grid.policies);
        if !self.model.is_gated() {
            // Without gates there is nothing to decide about but whether an image leaves early.
            let leaving = |policy: &&String| !matches!(early_exits(policy), Ok((exits, behind)) if exits.is_empty() || behind != "learned");
            let all = [STATIC.to_owned()].into_iter().chain(policies.iter().filter(leaving).cloned());
            return all.map(|policy| (policy, grid.seeds[0])).collect();
        }
        let mut all = Vec::new();
        for &seed in &grid.seeds {
            for policy in policies {
                let behind = early_exits(policy).map_or(&**policy, |(_, behind)| behind);
                let random = ["random", "forced"].iter().any(|name| behind.starts_with(name));
                if seed == grid.seeds[0] || random || self.model.attached {
                    all.push((policy.clone(), seed));
                }
            }
        }
        all
    }

    /// The model with gates of a seed.
    pub(super) fn of_seed(&self, seed: u64) -> &Model {
        self.others.iter().find(|(of, _)| *of == seed).map_or(&self.model, |(_, model)| model)
    }
}
