//! `--model` and the flags that describe it: from a name or a file to a network with weights.

use super::force::ForceArgs;
use super::parse;
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use laud::checkpoint::Checkpoint;
use laud::exec::Weights;
use laud::{CheckpointWeights, RandomWeights, zoo};
use laud_models::{
    ChannelMasker, GateMode, MapSize, NetConfig, NetSpec, PaddingStyle, PerStage, RANGE_PREFIX, Shapes,
    infer, preset_names,
};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Most bytes of a configuration file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// What is run when no model is named.
pub(super) const DEFAULT: &str = "mobilenet_v2";

#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelArgs {
    /// Weights file, trained network (mobilenet_v2, cifar_resnet56_jpeg_layer, ...), or architecture with random weights
    /// (resnet50, ...) [default: mobilenet_v2]
    #[arg(long, short, value_name = "NAME|FILE")]
    pub(super) model: Option<String>,
    /// Architecture as JSON [default: the file's metadata, FILE.json, or what tensor shapes tell]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Top-level entry of a PyTorch file that holds the weights
    #[arg(long, value_name = "KEY")]
    entry: Option<String>,
    /// Family or preset that a file's tensors are of
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Gates: none, spatial, layer, channel or both; one, or one a stage as in layer-layer-none-none
    #[arg(long, value_name = "MODE", value_parser = parse::per_stage_mode)]
    mode: Option<PerStage<GateMode>>,
    /// Side of a patch in output pixels; one, or one a stage as in 4-4-2-1
    #[arg(long, value_name = "S", value_parser = parse::per_stage_number)]
    granularity: Option<PerStage<usize>>,
    /// Channels in a channel group; one, or one a stage
    #[arg(long, value_name = "G", value_parser = parse::per_stage_number)]
    group: Option<PerStage<usize>>,
    /// Layers of the channel gates
    #[arg(long, value_name = "KIND")]
    masker: Option<Masker>,
    /// Reduction of the channel gates' hidden layer
    #[arg(long, value_name = "R")]
    reduction: Option<usize>,
    /// Image size in pixels: 224, or height and width as in 480x640
    #[arg(long, value_name = "SIZE", value_parser = parse::map_size)]
    input_size: Option<MapSize>,
    /// How convolutions pad
    #[arg(long, value_name = "STYLE")]
    padding: Option<Padding>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Masker {
    /// Pool and one linear layer
    Mlp1,
    /// Pool and two linear layers
    Mlp2,
    /// Convolution, pool, linear layer
    #[value(name = "conv_linear")]
    ConvLinear,
}

#[derive(Clone, Copy, ValueEnum)]
enum Padding {
    /// Alike on every side
    Torchvision,
    /// TensorFlow's SAME
    Tf,
}

/// A network with weights.
pub(super) struct Model {
    pub(super) spec: NetSpec,
    pub(super) config: NetConfig,
    /// The file or name, for messages.
    pub(super) label: String,
    pub(super) origin: Origin,
    /// Where the architecture is known from.
    pub(super) config_from: String,
    /// Gates that the weights do not have.
    pub(super) attached: bool,
    checkpoint: Option<Checkpoint>,
    seed: u64,
}

/// Where weights come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    File,
    Zoo,
    Random,
}

impl Model {
    /// Reads the weights; those of attached gates are random.
    pub(super) fn weights(&self) -> Result<Box<dyn Weights + '_>> {
        let random =
            (self.attached || self.checkpoint.is_none()).then(|| RandomWeights::new(&self.spec, self.seed));
        Ok(match (&self.checkpoint, random) {
            (Some(checkpoint), None) => Box::new(CheckpointWeights::new(checkpoint)),
            (Some(checkpoint), Some(gates)) => {
                Box::new(WithGates { trained: CheckpointWeights::new(checkpoint), gates })
            }
            (None, random) => Box::new(random.context("no weights")?),
        })
    }

    /// The network for images of another size.
    pub(super) fn resized(&self, size: MapSize) -> Result<NetSpec> {
        let config = NetConfig { input_size: Some(size), ..self.config.clone() };
        config.build().with_context(|| format!("{} for {}×{} pixels", self.label, size.h, size.w))
    }

    /// The weights in a few words.
    pub(super) fn weights_text(&self) -> String {
        match self.origin {
            Origin::File => self.label.clone(),
            Origin::Zoo => "trained".to_owned(),
            Origin::Random => format!("random weights (seed {})", self.seed),
        }
    }

    /// For JSON: `file`, `zoo` or `random`.
    pub(super) fn weights_kind(&self) -> &'static str {
        match self.origin {
            Origin::File => "file",
            Origin::Zoo => "zoo",
            Origin::Random => "random",
        }
    }

    /// The open file; `None` with random weights.
    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// Whether any block has a gate.
    pub(super) fn is_gated(&self) -> bool {
        self.spec.blocks.iter().any(|block| block.gate.is_some())
    }

    /// The gates in a few words: `spatial 4-4-2-1`, `layer`, `channel, groups of 2-2-2-2`.
    pub(super) fn gates_text(&self) -> String {
        let stages = self.spec.blocks.last().map_or(0, |block| block.stage + 1);
        let modes = self.config.dyn_mode.as_ref().and_then(|modes| modes.resolve("dyn_mode", stages).ok());
        let modes: Vec<&str> = modes.unwrap_or_default().into_iter().map(<&str>::from).collect();
        let list = |list: &Option<PerStage<usize>>| {
            let list =
                list.as_ref().and_then(|list| list.resolve("granularity", stages).ok()).unwrap_or_default();
            joined(&list)
        };
        let has = |wanted: &[&str]| modes.iter().any(|mode| wanted.contains(mode));
        let mut text = match modes.first() {
            Some(first) if modes.iter().all(|mode| mode == first) => (*first).to_owned(),
            _ => modes.join("-"),
        };
        if has(&["spatial", "both"]) {
            text += &format!(", patches of {}", list(&self.config.spatial_granularity));
        }
        if has(&["channel", "both"]) {
            text += &format!(", channel groups of {}", list(&self.config.channel_granularity));
        }
        text
    }
}

/// `4` where all are the same, else `4-4-2-1`.
fn joined(list: &[usize]) -> String {
    match list {
        [first, rest @ ..] if rest.iter().all(|entry| entry == first) => first.to_string(),
        _ => list.iter().map(usize::to_string).collect::<Vec<_>>().join("-"),
    }
}

struct WithGates<'a> {
    trained: CheckpointWeights<'a>,
    gates: RandomWeights,
}

impl Weights for WithGates<'_> {
    fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let range = name.starts_with(RANGE_PREFIX) && name.ends_with(".gate");
        if is_masker(name) || range { self.gates.tensor(name) } else { self.trained.tensor(name) }
    }
}

fn is_masker(name: &str) -> bool {
    name.contains(".masker_spatial.") || name.contains(".masker_channel.")
}

/// A configuration and where it comes from.
struct Told {
    config: NetConfig,
    from: String,
}

impl ModelArgs {
    /// The model, with gates attached where decisions are to be forced and it has none.
    pub(super) fn resolve(&self, force: &ForceArgs) -> Result<Model> {
        self.find(self.model.as_deref().unwrap_or(DEFAULT), None, force.attaches(), force.seed)
    }

    /// The model of this name or file.
    pub(super) fn named(name: &str) -> Self {
        Self { model: Some(name.to_owned()), ..Self::default() }
    }

    /// The model of this name or file with gates as `--mode`, `--granularity` and `--group` say.
    pub(super) fn with_gates(
        name: &str,
        mode: Option<&str>,
        granularity: Option<&str>,
        group: Option<&str>,
    ) -> Result<Self> {
        let list = |key: &str, text: Option<&str>| {
            let list = text.map(parse::per_stage_number).transpose();
            list.map_err(|why| anyhow!("{key} `{}`: {why}", text.unwrap_or_default()))
        };
        let modes = mode.map(parse::per_stage_mode).transpose();
        Ok(Self {
            mode: modes.map_err(|why| anyhow!("mode `{}`: {why}", mode.unwrap_or_default()))?,
            granularity: list("granularity", granularity)?,
            group: list("group", group)?,
            ..Self::named(name)
        })
    }

    /// The model to train: gates are added to weights that have none where `--mode` asks for them.
    pub(super) fn for_training(&self, seed: u64) -> Result<Model> {
        self.find(self.model.as_deref().unwrap_or(DEFAULT), None, self.mode.is_some(), seed)
    }

    /// The weights in `file`, described by another checkpoint's metadata where there is one.
    pub(super) fn open(&self, file: &Path, describes: Option<&Checkpoint>) -> Result<Model> {
        let told = describes.map(metadata_config).transpose()?.flatten();
        self.find(&file.to_string_lossy(), told, false, 0)
    }

    fn find(&self, name: &str, told: Option<Told>, attach: bool, seed: u64) -> Result<Model> {
        let path = Path::new(name);
        let known = zoo::names().any(|known| known == name);
        let looks_like_a_file = name.contains(['/', '\\', '.']) || path.is_file();
        if known && !looks_like_a_file {
            let checkpoint = zoo::load(name)?;
            return self.described(checkpoint, None, Origin::Zoo, attach, seed);
        }
        if looks_like_a_file {
            let checkpoint = match &self.entry {
                Some(entry) => Checkpoint::open_entry(path, entry),
                None => Checkpoint::open(path),
            }?;
            return self.described(checkpoint, told, Origin::File, attach, seed);
        }
        self.random(name, attach, seed)
    }

    /// An architecture by name, with random weights.
    fn random(&self, name: &str, attach: bool, seed: u64) -> Result<Model> {
        let config = NetConfig { arch: Some(name.to_owned()), ..NetConfig::default() };
        let told = self.config.as_deref().map(read_config).transpose()?;
        let config = match &told {
            Some(told) => merge(config, told)?,
            None => config,
        };
        let unknown = || {
            let names: Vec<_> = zoo::names().chain(preset_names()).collect();
            let mut names: Vec<_> =
                names.iter().enumerate().filter(|(i, n)| !names[..*i].contains(n)).map(|(_, n)| *n).collect();
            names.sort_unstable();
            anyhow!(
                "--model {name}: no such file, and no network of that name; known are {}",
                names.join(", ")
            )
        };
        if let Err(laud_models::Error::UnknownNetwork { .. }) = config.clone().complete() {
            return Err(unknown());
        }
        let context = || format!("--model {name}");
        let plain = config.clone().complete().with_context(context)?;
        let wants_gates = self.mode.is_some() || attach && plain.dyn_mode.is_none();
        let mut config = self.hints().or(config);
        if wants_gates {
            config = self
                .gated(&config, self.mode.clone().unwrap_or(PerStage::All(GateMode::Spatial)))
                .with_context(context)?;
        }
        let mut config = config.complete().with_context(context)?;
        config.name.get_or_insert_with(|| name.to_owned());
        let spec = config.build().with_context(context)?;
        let from = told.map_or_else(|| "its name".to_owned(), |told| told.from);
        Ok(Model {
            attached: false,
            spec,
            config,
            label: name.to_owned(),
            origin: Origin::Random,
            config_from: from,
            checkpoint: None,
            seed,
        })
    }

    fn described(
        &self,
        checkpoint: Checkpoint,
        told: Option<Told>,
        origin: Origin,
        attach: bool,
        seed: u64,
    ) -> Result<Model> {
        let label = checkpoint.path().display().to_string();
        let told = match (&self.config, told) {
            (Some(file), _) => Some(read_config(file)?),
            (None, Some(told)) => Some(told),
            (None, None) => match metadata_config(&checkpoint)? {
                Some(told) => Some(told),
                None if origin == Origin::File => sidecar(checkpoint.path())?,
                None => None,
            },
        };
        let shapes = CheckpointWeights::new(&checkpoint).shapes();
        ensure!(!shapes.is_empty(), "{label}: holds no weights");
        let attached = attach && !shapes.keys().any(|name| is_masker(name));
        let (mut hints, from) = (self.hints(), told.as_ref().map(|told| told.from.clone()));
        if attached {
            hints = NetConfig {
                input_size: hints.input_size,
                arch: hints.arch,
                padding: hints.padding,
                ..NetConfig::default()
            };
        }
        let hints = match &told {
            Some(told) => merge(hints, told)?,
            None => hints,
        };
        let mut config = self.inferred(&shapes, &hints).with_context(|| label.clone())?;
        if attached {
            let mode = self.mode.clone().unwrap_or(PerStage::All(GateMode::Spatial));
            config = self.gated(&config, mode).with_context(|| label.clone())?;
        }
        if config.name.is_none() {
            config.name = checkpoint.path().file_stem().map(|stem| stem.to_string_lossy().into_owned());
        }
        let spec = config.build().with_context(|| label.clone())?;
        let from = from.unwrap_or_else(|| "tensor shapes".to_owned());
        Ok(Model {
            spec,
            config,
            label,
            origin,
            config_from: from,
            attached,
            checkpoint: Some(checkpoint),
            seed,
        })
    }

    fn inferred(&self, shapes: &Shapes, hints: &NetConfig) -> Result<NetConfig> {
        infer(shapes, hints).map_err(|error| {
            use laud_models::Error as E;
            let help = match &error {
                E::Missing { key: "dyn_mode" | "spatial_granularity", .. } => {
                    "; use --mode and --granularity, or --config"
                }
                E::Missing { key: "padding", .. } => "; use --padding, --arch or --config",
                E::Missing { .. } => "; use --config",
                E::Contradiction { key: "dyn_mode", found, .. } if found == "no gates" => {
                    "; add --density or --policy to attach untrained ones"
                }
                _ => "",
            };
            if help.is_empty() { error.into() } else { anyhow!("{error}{help}") }
        })
    }

    /// What the flags say.
    fn hints(&self) -> NetConfig {
        let (kind, layers) = match self.masker {
            None => (None, None),
            Some(Masker::Mlp1) => (Some(ChannelMasker::Mlp), Some(1)),
            Some(Masker::Mlp2) => (Some(ChannelMasker::Mlp), Some(2)),
            Some(Masker::ConvLinear) => (Some(ChannelMasker::ConvLinear), None),
        };
        NetConfig {
            arch: self.arch.clone(),
            dyn_mode: self.mode.clone(),
            spatial_granularity: self.granularity.clone(),
            channel_granularity: self.group.clone(),
            channel_masker: kind.map(PerStage::All),
            channel_masker_layers: layers.map(PerStage::All),
            reduction: self.reduction,
            input_size: self.input_size,
            padding: self.padding.map(|padding| match padding {
                Padding::Torchvision => PaddingStyle::Torchvision,
                Padding::Tf => PaddingStyle::Tf,
            }),
            ..NetConfig::default()
        }
    }

    /// `config` with gates on every block that can have one; granularities that suit the maps where none is given.
    fn gated(&self, config: &NetConfig, mode: PerStage<GateMode>) -> Result<NetConfig> {
        let plain = NetConfig { dyn_mode: None, ..config.clone() }.build()?;
        let stages = plain.blocks.last().map_or(0, |block| block.stage + 1);
        let (mut patch, mut group) = (vec![1; stages], vec![16; stages]);
        for block in &plain.blocks {
            // 4-4-2-1 for the maps of a ResNet at 224 pixels, as in the paper.
            patch[block.stage] = power_of_two(block.output.h.min(block.output.w) / 7).min(4);
            let width = block.convs[0].c_out;
            let divides = width & width.wrapping_neg();
            group[block.stage] = divides.min(power_of_two(width / 4)).min(group[block.stage]);
        }
        let hints = self.hints();
        Ok(NetConfig {
            dyn_mode: Some(mode),
            spatial_granularity: hints.spatial_granularity.clone().or(Some(PerStage::Each(patch))),
            channel_granularity: hints.channel_granularity.clone().or(Some(PerStage::Each(group))),
            ..hints.or(config.clone())
        })
    }
}

/// The largest power of two up to `n`; 1 of 0.
fn power_of_two(n: usize) -> usize {
    1 << n.max(1).ilog2()
}

/// Flags over a configuration. Only the image size may be another; anything else said twice has to be the same.
fn merge(flags: NetConfig, told: &Told) -> Result<NetConfig> {
    let object = |config: &NetConfig| match serde_json::to_value(config) {
        Ok(Value::Object(entries)) => entries,
        _ => Map::new(),
    };
    let (said, config) = (object(&flags), object(&told.config));
    for (key, flag) in said.iter().filter(|(key, _)| *key != "input_size") {
        if let Some(other) = config.get(key).filter(|other| !same(flag, other)) {
            bail!("{}: `{key}` is {other}, which contradicts {flag} on the command line", told.from);
        }
    }
    Ok(flags.or(told.config.clone()))
}

/// Equal, or a list of nothing but the other.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a == b,
        (Value::Array(list), one) | (one, Value::Array(list)) => list.iter().all(|entry| entry == one),
        (a, b) => a == b,
    }
}

fn metadata_config(checkpoint: &Checkpoint) -> Result<Option<Told>> {
    let Some(json) = checkpoint.metadata().get("config") else { return Ok(None) };
    let from = format!("metadata of {}", checkpoint.path().display());
    let config = NetConfig::from_json(json).with_context(|| from.clone())?;
    Ok(Some(Told { config, from }))
}

/// `FILE.json`, or the file's name with `json` for its extension.
fn sidecar(file: &Path) -> Result<Option<Told>> {
    let mut appended = file.as_os_str().to_owned();
    appended.push(".json");
    let candidates = [PathBuf::from(appended), file.with_extension("json")];
    candidates.iter().find(|path| path.is_file()).map(|path| read_config(path)).transpose()
}

fn read_config(path: &Path) -> Result<Told> {
    let from = path.display().to_string();
    let mut json = String::new();
    let file = File::open(path).with_context(|| from.clone())?;
    file.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut json).with_context(|| from.clone())?;
    ensure!(json.len() as u64 <= MAX_CONFIG_BYTES, "{from}: larger than {} MiB", MAX_CONFIG_BYTES >> 20);
    let config = NetConfig::from_json(&json).with_context(|| from.clone())?;
    Ok(Told { config, from })
}
