//! The tensors that a network needs, by name and shape.

use std::collections::BTreeMap;
use std::fmt;

use crate::{ChannelHead, ConvSpec, GateSpec, LinearSpec, NetSpec, NormSpec, Shortcut};

/// Tensor names and shapes, for example of a checkpoint.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// A tensor that a network needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Learned, or a running statistic.
    pub kind: ParameterKind,
}

/// How a tensor comes to its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParameterKind {
    /// By gradient descent.
    Learned,
    /// BatchNorm's running mean and variance.
    Statistic,
}

/// How a set of tensors differs from what a network needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Needed and absent.
    pub missing: Vec<Parameter>,
    /// Present and not needed.
    pub extra: Vec<String>,
    /// Of another shape: what is needed, and the shape that is there.
    pub wrong: Vec<(Parameter, Vec<usize>)>,
}

impl Parameter {
    /// Number of elements, saturating.
    pub fn elements(&self) -> u64 {
        crate::macs::product(&self.shape)
    }

    /// Whether a tensor of `shape` holds this parameter: equal, or one of both has two more dimensions of 1 behind it
    /// (a linear layer stored as a 1×1 convolution, or the other way round).
    pub fn accepts(&self, shape: &[usize]) -> bool {
        let pointwise = |long: &[usize], short: &[usize]| {
            short.len() == 2 && long.strip_prefix(short).is_some_and(|rest| rest == [1, 1])
        };
        self.shape == shape || pointwise(&self.shape, shape) || pointwise(shape, &self.shape)
    }
}

impl NetSpec {
    /// Every tensor of the network in the order of execution; a block's maskers come behind its other tensors.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut list = List(Vec::new());
        list.conv(&self.stem.conv);
        for block in &self.blocks {
            for conv in &block.convs {
                list.conv(conv);
            }
            if let Some(se) = &block.squeeze_excite {
                list.pointwise(&se.fc1);
                list.pointwise(&se.fc2);
            }
            if let Shortcut::Projection(conv) = &block.shortcut {
                list.conv(conv);
            }
            list.gate(&block.gate);
        }
        if let Some(conv) = &self.head.conv {
            list.conv(conv);
        }
        list.linear(&self.head.fc);
        list.0
    }

    /// Number of learned values; running statistics do not count.
    pub fn parameter_count(&self) -> u64 {
        let learned = self.parameters().into_iter().filter(|p| p.kind == ParameterKind::Learned);
        learned.fold(0, |sum, p| sum.saturating_add(p.elements()))
    }

    /// Compares `shapes` with [`parameters`](Self::parameters); `*.num_batches_tracked` is never extra.
    pub fn compare(&self, shapes: &Shapes) -> Mismatch {
        let mut left: std::collections::BTreeSet<&str> = shapes.keys().map(String::as_str).collect();
        let mut mismatch = Mismatch::default();
        for parameter in self.parameters() {
            left.remove(parameter.name.as_str());
            match shapes.get(&parameter.name) {
                None => mismatch.missing.push(parameter),
                Some(shape) if !parameter.accepts(shape) => mismatch.wrong.push((parameter, shape.clone())),
                Some(_) => {}
            }
        }
        let extra = left.into_iter().filter(|name| !name.ends_with(".num_batches_tracked"));
        mismatch.extra = extra.map(str::to_owned).collect();
        mismatch
    }

    /// The same network with every block static.
    #[must_use]
    pub fn without_gates(&self) -> Self {
        let mut net = self.clone();
        net.blocks.iter_mut().for_each(|block| block.gate = GateSpec::default());
        net
    }
}

impl Mismatch {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.wrong.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Tensors of each kind that are named.
        const SHOWN: usize = 4;
        let mut groups = Vec::new();
        let mut group = |title: &str, names: Vec<String>, total: usize| {
            if total > 0 {
                let more = if total > SHOWN { format!(" and {} more", total - SHOWN) } else { String::new() };
                groups.push(format!("{total} {title}: {}{more}", names.join(", ")));
            }
        };
        let missing = self.missing.iter().take(SHOWN).map(|p| format!("{} {:?}", p.name, p.shape));
        group("missing", missing.collect(), self.missing.len());
        let wrong = self.wrong.iter().take(SHOWN);
        let wrong = wrong.map(|(p, found)| format!("{} {found:?} instead of {:?}", p.name, p.shape));
        group("of another shape", wrong.collect(), self.wrong.len());
        group("not of this network", self.extra.iter().take(SHOWN).cloned().collect(), self.extra.len());
        write!(f, "tensors do not fit the network: {}", groups.join("; "))
    }
}

struct List(Vec<Parameter>);

impl List {
    fn push(&mut self, name: String, shape: &[usize]) {
        self.0.push(Parameter { name, shape: shape.to_vec(), kind: ParameterKind::Learned });
    }

    fn norm(&mut self, norm: &NormSpec, c: usize) {
        for (suffix, kind) in [
            ("weight", ParameterKind::Learned),
            ("bias", ParameterKind::Learned),
            ("running_mean", ParameterKind::Statistic),
            ("running_var", ParameterKind::Statistic),
        ] {
            self.0.push(Parameter { name: format!("{}.{suffix}", norm.prefix), shape: vec![c], kind });
        }
    }

    fn conv(&mut self, conv: &ConvSpec) {
        let c_in = conv.c_in / conv.groups.max(1);
        self.push(conv.weight.clone(), &[conv.c_out, c_in, conv.kernel, conv.kernel]);
        if let Some(bias) = &conv.bias {
            self.push(bias.clone(), &[conv.c_out]);
        }
        if let Some(norm) = &conv.norm {
            self.norm(norm, conv.c_out);
        }
    }

    fn linear(&mut self, linear: &LinearSpec) {
        self.push(linear.weight.clone(), &[linear.c_out, linear.c_in]);
        if let Some(bias) = &linear.bias {
            self.push(bias.clone(), &[linear.c_out]);
        }
    }

    /// A linear layer that the checkpoint stores as a 1×1 convolution.
    fn pointwise(&mut self, linear: &LinearSpec) {
        self.push(linear.weight.clone(), &[linear.c_out, linear.c_in, 1, 1]);
        if let Some(bias) = &linear.bias {
            self.push(bias.clone(), &[linear.c_out]);
        }
    }

    fn gate(&mut self, gate: &GateSpec) {
        if let Some(spatial) = &gate.spatial {
            self.push(format!("{}.conv.weight", spatial.prefix), &[2, spatial.c_in, 1, 1]);
            self.push(format!("{}.conv.bias", spatial.prefix), &[2]);
        }
        let Some(gate) = &gate.channel else { return };
        let (prefix, c_in, logits) = (&gate.prefix, gate.c_in, gate.groups.saturating_mul(2));
        match gate.head {
            ChannelHead::Mlp1 => {
                self.push(format!("{prefix}.conv.weight"), &[logits, c_in]);
                self.push(format!("{prefix}.conv.bias"), &[logits]);
            }
            ChannelHead::Mlp2 { hidden } => {
                self.push(format!("{prefix}.conv.0.weight"), &[hidden, c_in]);
                self.push(format!("{prefix}.conv.0.bias"), &[hidden]);
                self.push(format!("{prefix}.conv.2.weight"), &[logits, hidden]);
                self.push(format!("{prefix}.conv.2.bias"), &[logits]);
            }
            ChannelHead::ConvLinear { hidden } => {
                self.push(format!("{prefix}.conv.0.weight"), &[hidden, c_in, 1, 1]);
                let norm = NormSpec { prefix: format!("{prefix}.conv.1"), eps: crate::layers::NORM_EPS };
                self.norm(&norm, hidden);
                self.push(format!("{prefix}.linear.weight"), &[logits, hidden]);
                self.push(format!("{prefix}.linear.bias"), &[logits]);
            }
        }
    }
}
