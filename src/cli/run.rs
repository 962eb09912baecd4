//! `laud run`: what is on a photograph, and what it cost to see that.

use super::device::DeviceArgs;
use super::force::ForceArgs;
use super::model::{Model, ModelArgs, Origin};
use super::output::{json, ms, percent, save, si, speed};
use super::timing::{Limit, interleave};
use anyhow::{Context, Result, ensure};
use clap::Args;
use laud::evaluate::recorded;
use laud::exec::{BlockTrace, Request};
use laud::gate::Policy;
use laud::policy::{Exit, Look};
use laud::report::{BlockView, KeepGrid, Sheet, save_png};
use laud::vision::{Labels, Preprocess, RgbImage, image};
use laud::{Output, Session, zoo};
use laud_models::NetSpec;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name what is on images, and show what it cost
#[derive(Args)]
pub(super) struct Run {
    /// JPEG, PNG, WebP or BMP [default: the photographs that come with the program]
    #[arg(value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Draw what each block computed: a PNG an image
    #[arg(long, value_name = "DIR")]
    masks: Option<PathBuf>,
    /// Write each block's densities: JSON lines, one an image
    #[arg(long, value_name = "FILE")]
    record_densities: Option<PathBuf>,
    /// Time each image for about this long
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = super::parse::duration)]
    time: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    force: ForceArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What is run, and how.
struct Setup {
    model: Model,
    session: Session,
    /// The same network without gates; `None` where there are none.
    plain: Option<Session>,
    policy: Box<dyn Policy>,
    preprocess: Preprocess,
}

/// What came of one image.
struct Seen {
    name: String,
    view: RgbImage,
    output: Output,
    ms: f64,
    static_ms: Option<f64>,
    top: Vec<(usize, f64)>,
}

impl Run {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let model = self.model.resolve(&self.force)?;
        let gated = model.is_gated();
        ensure!(
            gated || self.masks.is_none(),
            "--masks: {} is static and decides nothing; take a network with gates, or add --density",
            model.spec.name
        );
        let builder = self.device.builder()?;
        let (exits, density) = (self.force.exits()?, self.force.single()?);
        let decider = |spec: &NetSpec| self.force.policy(spec, 1, density, &self.device);
        let policy = decider(&model.spec)?;
        let session = builder.leaving_early(&model, &exits, &decider)?;
        let adaptive = gated || !exits.is_empty();
        let plain = adaptive.then(|| builder.static_session(&model)).transpose()?;
        let preprocess = Preprocess::new(&session.spec().input)?;
        let setup = Setup { model, session, plain, policy, preprocess };
        let images = self.images(&setup.model.spec)?;

        if !self.json {
            setup.print_head(&self.force, out)?;
        }
        let (mut seen, mut densities) = (Vec::new(), String::new());
        let mut pictures = self.masks.as_deref().map(Pictures::new).transpose()?;
        for pending in images {
            let (name, image) = pending.load()?;
            let one = setup.see(name, &image, self.time)?;
            if let Some(pictures) = &mut pictures {
                pictures.draw(&setup, &one)?;
            }
            if self.record_densities.is_some() {
                densities += &densities_line(&setup.model.spec, &one.name, &one.output, 0)?;
            }
            match self.json {
                true => seen.push(one.json(&setup.model)),
                false => one.print(&setup.model, out)?,
            }
            out.flush()?;
        }
        if let Some(path) = &self.record_densities {
            save(path, &densities)?;
        }
        match self.json {
            true => json(out, &setup.json(&self.force, seen)),
            false => setup.print_foot(pictures.as_ref(), out),
        }
    }

    /// The images, decoded when it is their turn.
    fn images(&self, spec: &NetSpec) -> Result<Vec<Pending>> {
        if !self.images.is_empty() {
            return Ok(self.images.iter().cloned().map(Pending::File).collect());
        }
        if Labels::for_classes(spec.head.fc.c_out) != Some(Labels::Cifar10) {
            return Ok(zoo::photos()?.into_iter().map(|(name, photo)| Pending::Here(name, photo)).collect());
        }
        let set = zoo::cifar10_images()?;
        let one = |i: usize| {
            let sample = set.get(i)?;
            let class = Labels::Cifar10.name(sample.label).unwrap_or_default();
            Ok(Pending::Here(format!("CIFAR-10 test image {i} ({class})"), sample.image))
        };
        (0..6).map(one).collect()
    }
}

/// An image that was not looked at yet.
enum Pending {
    File(PathBuf),
    Here(String, RgbImage),
}

impl Pending {
    fn load(self) -> Result<(String, RgbImage)> {
        match self {
            Self::File(path) => Ok((path.display().to_string(), image::load(&path)?)),
            Self::Here(name, image) => Ok((name, image)),
        }
    }
}

impl Setup {
    /// Infers one image, several times for the clock.
    fn see(&self, name: String, image: &RgbImage, time: Duration) -> Result<Seen> {
        let view = self.preprocess.view(image)?;
        let mut values = vec![0.0; self.preprocess.values()];
        self.preprocess.write_nchw(image, &mut values)?;
        let request = Request { images: &values, batch: 1, features: false, masks: false, timed: false };
        let mut output = Output::default();
        self.session.infer_with(Request { masks: true, ..request }, &*self.policy, &mut output)?;

        let mut scratch = Output::default();
        let limit = Limit { warm_up: 2, rounds: 3, duration: time, most: 200, pause: Duration::ZERO };
        let sides = 1 + usize::from(self.plain.is_some());
        let times = interleave(sides, limit, |side| match (&self.plain, side) {
            (Some(plain), 1) => plain.infer_into(request, &mut scratch),
            _ => self.session.infer_with(request, &*self.policy, &mut scratch),
        })?;
        let (ms, static_ms) = (times[0].median(), times.get(1).map(|times| times.median()));
        let top = top(&output.logits, 5);
        Ok(Seen { name, view, output, ms, static_ms, top })
    }

    fn print_head(&self, force: &ForceArgs, out: &mut dyn Write) -> Result<()> {
        head(&self.model, &self.session, force, out)?;
        if self.model.origin == Origin::Random {
            writeln!(out, "the weights are random: times and counts mean something, names do not")?;
        }
        Ok(())
    }

    fn print_foot(&self, pictures: Option<&Pictures>, out: &mut dyn Write) -> Result<()> {
        if let Some(pictures) = pictures {
            writeln!(out, "\nwhat each block computed: {}", pictures.folder.display())?;
        }
        Ok(())
    }

    fn json(&self, force: &ForceArgs, images: Vec<Value>) -> Value {
        json!({
            "model": self.model.spec.name,
            "weights": self.model.weights_kind(),
            "device": self.session.describe(),
            "policy": force.title(&*self.policy),
            "gates": self.model.is_gated().then(|| self.model.gates_text()),
            "gates_trained": self.model.is_gated().then(|| trained(&self.model)),
            "density": force.density.first(),
            "images": images,
        })
    }
}

/// Whether the gates' weights are somebody's training.
pub(super) fn trained(model: &Model) -> bool {
    !model.attached && model.origin != Origin::Random
}

/// Model, device and gates: the first lines of `run`, `bench` and `eval`.
pub(super) fn head(model: &Model, session: &Session, force: &ForceArgs, out: &mut dyn Write) -> Result<()> {
    let spec = &model.spec;
    let size = spec.input.size;
    writeln!(
        out,
        "{}  ·  {}  ·  {} parameters  ·  {}×{} pixels",
        spec.name,
        model.weights_text(),
        si(spec.parameter_count() as f64),
        size.h,
        size.w
    )?;
    writeln!(out, "{}", session.describe())?;
    for Exit { look, confidence } in force.exits()? {
        let look = match look {
            Look::Smaller(size) => format!("at {}×{} pixels", size.h, size.w),
            Look::Other(name) => format!("by {name}"),
        };
        writeln!(out, "early exit {look}: answers what it gives a probability of {confidence}")?;
    }
    if !model.is_gated() {
        if force.exits()?.is_empty() {
            writeln!(out, "static network: nothing is skipped")?;
        }
        return Ok(());
    }
    let forced = match force.density.as_slice() {
        [] => String::new(),
        list => {
            let list: Vec<_> = list.iter().map(f64::to_string).collect();
            format!("  ·  forced to density {}, {}", list.join(", "), force.pattern())
        }
    };
    writeln!(out, "gates: {}{forced}", model.gates_text())?;
    if model.attached {
        writeln!(out, "the gates are not trained: times and counts mean something, answers suffer")?;
    } else if !forced.is_empty() && model.origin != Origin::Random {
        writeln!(out, "decisions are forced, not learned: answers suffer")?;
    }
    Ok(())
}

impl Seen {
    fn print(&self, model: &Model, out: &mut dyn Write) -> Result<()> {
        let trace = &self.output.trace;
        let speed = self
            .static_ms
            .map_or(String::new(), |other| format!("  static {}  {}", ms(other), speed(other / self.ms)));
        writeln!(out, "\n{}", self.name)?;
        let names: Vec<String> = self.top.iter().map(|(class, _)| class_name(model, *class)).collect();
        for (name, (_, probability)) in names.iter().zip(&self.top) {
            writeln!(out, "  {:>7}  {name}", percent(*probability))?;
        }
        let (done, dense) = (trace.macs() as f64, trace.dense_macs() as f64);
        let macs = match self.static_ms {
            Some(_) => format!("{} MACs of {} ({})", si(done), si(dense), percent(done / dense)),
            None => format!("{} MACs", si(dense)),
        };
        write!(out, "  {}{speed}  ·  {macs}", ms(self.ms))?;
        let computed = Computed::of(&model.spec, &trace.blocks);
        for (what, share) in [("patches", computed.patches), ("channels", computed.channels)] {
            if let Some(share) = share {
                write!(out, "  ·  {what} {}", percent(share))?;
            }
        }
        match trace.exits.iter().find(|exit| exit.answered > 0) {
            Some(exit) => write!(out, "  ·  left at {}×{}", exit.size.h, exit.size.w)?,
            None if model.is_gated() => {
                write!(out, "  ·  blocks {} of {}", computed.blocks, trace.blocks.len())?
            }
            None => (),
        }
        Ok(writeln!(out)?)
    }

    fn json(&self, model: &Model) -> Value {
        let trace = &self.output.trace;
        let computed = Computed::of(&model.spec, &trace.blocks);
        let top = |&(class, probability): &(usize, f64)| json!({ "class": class, "name": class_name(model, class), "probability": probability });
        json!({
            "file": self.name,
            "top": self.top.iter().map(top).collect::<Vec<_>>(),
            "latency_ms": self.ms,
            "static_latency_ms": self.static_ms,
            "macs": { "done": trace.macs(), "dense": trace.dense_macs() },
            "left_at": trace.exits.iter().find(|exit| exit.answered > 0).map(|exit| exit.size),
            "computed": {
                "blocks": computed.blocks as f64 / trace.blocks.len().max(1) as f64,
                "patches": computed.patches,
                "channel_groups": computed.channels,
            },
        })
    }
}

/// How much of a network was computed.
pub(super) struct Computed {
    /// Blocks of which anything was.
    pub(super) blocks: usize,
    /// Mean over the blocks with a gate over patches; `None` without any.
    pub(super) patches: Option<f64>,
    /// Mean over the blocks with a gate over channel groups.
    pub(super) channels: Option<f64>,
}

impl Computed {
    pub(super) fn of(spec: &NetSpec, blocks: &[BlockTrace]) -> Self {
        let mean =
            |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        let both = || spec.blocks.iter().zip(blocks);
        let patches = both().filter(|(spec, _)| spec.gate.spatial.as_ref().is_some_and(|gate| !gate.layer));
        let channels = both().filter(|(spec, _)| spec.gate.channel.is_some());
        Self {
            blocks: blocks.iter().filter(|block| block.patches.active > 0).count(),
            patches: mean(patches.map(|(_, block)| block.patches.density()).collect()),
            channels: mean(channels.map(|(_, block)| block.channel_groups.density()).collect()),
        }
    }
}

pub(super) fn class_name(model: &Model, class: usize) -> String {
    let name = Labels::for_classes(model.spec.head.fc.c_out).and_then(|labels| labels.name(class));
    name.map_or_else(|| format!("class {class}"), str::to_owned)
}

/// The `count` most probable classes with their probabilities, best first.
pub(super) fn top(logits: &[f32], count: usize) -> Vec<(usize, f64)> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut classes: Vec<(usize, f64)> = weights.into_iter().map(|weight| weight / sum).enumerate().collect();
    classes.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    classes.truncate(count);
    classes
}

/// What was active for sample `n` of an inference that kept its masks, as a line.
pub(super) fn densities_line(spec: &NetSpec, file: &str, output: &Output, n: usize) -> Result<String> {
    let recorded = recorded(spec, file, output, n)?;
    Ok(serde_json::to_string(&recorded).context("cannot write densities")? + "\n")
}

/// What each block decided about sample `n` of an inference that kept its masks.
pub(super) fn block_views(spec: &NetSpec, output: &Output, n: usize) -> Result<Vec<BlockView>> {
    let batch = output.trace.batch;
    let part = |all: &[bool]| all[n * all.len() / batch..(n + 1) * all.len() / batch].to_vec();
    let view = |(block, masks): (&laud_models::BlockSpec, &laud::exec::BlockMasks)| {
        let grid = block.gate.spatial.as_ref().map(|gate| gate.grid);
        let spatial = grid.map(|grid| KeepGrid::new(grid.h, grid.w, part(&masks.patches))).transpose()?;
        let channels = block.gate.channel.as_ref().map(|_| part(&masks.channel_groups));
        Ok(BlockView { name: block.name.clone(), spatial, channels })
    };
    spec.blocks.iter().zip(&output.masks).map(view).collect()
}

/// A folder of contact sheets.
struct Pictures {
    folder: PathBuf,
    taken: HashSet<String>,
}

impl Pictures {
    fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{}: cannot make the folder", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), taken: HashSet::new() })
    }

    fn draw(&mut self, setup: &Setup, seen: &Seen) -> Result<()> {
        let trace = &seen.output.trace;
        let (class, probability) = seen.top.first().copied().unwrap_or_default();
        let file = Path::new(&seen.name)
            .file_name()
            .map_or(seen.name.clone(), |name| name.to_string_lossy().into_owned());
        let title = format!("{file}: {}, {:.0} %", class_name(&setup.model, class), 100.0 * probability);
        let share = trace.macs() as f64 / trace.dense_macs() as f64;
        let note = format!(
            "{} · {} · {:.0} % of the multiply-accumulates",
            setup.model.spec.name,
            setup.policy.name(),
            100.0 * share
        );
        let blocks = block_views(&setup.model.spec, &seen.output, 0)?;
        let sheet = Sheet { title: &title, note: &note, view: &seen.view, blocks: &blocks };
        save_png(&sheet.draw()?, &self.path(&file))
    }

    /// A name that no earlier image took.
    fn path(&mut self, file: &str) -> PathBuf {
        let stem = Path::new(file).file_stem().map_or("image".into(), |stem| stem.to_string_lossy());
        let names = std::iter::once(format!("{stem}.png")).chain((2..).map(|n| format!("{stem}-{n}.png")));
        let name = names.into_iter().find(|name| self.taken.insert(name.clone())).unwrap_or_default();
        self.folder.join(name)
    }
}
