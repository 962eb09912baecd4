//! The architectures as data: which layers a network has, what its tensors are called, where its gates sit.
//!
//! In the order of use:
//!
//! 1. [`NetConfig`] is what a user or a checkpoint's metadata says: a family or preset name, gates, sizes.
//!    [`infer`] makes one from the tensor names and shapes of a checkpoint, with hints for what shapes cannot tell.
//! 2. [`NetConfig::build`] makes the [`NetSpec`]: stem, residual blocks ([`BlockSpec`]) with their gates ([`GateSpec`]), head.
//! 3. [`NetSpec::parameters`] lists the tensors that it needs; [`NetSpec::compare`] says what a checkpoint lacks.
//! 4. [`NetSpec::macs`] is the official accounting of its cost at given densities; [`MaskGrid`] defines what a coarse
//!    spatial mask means to each convolution.
//!
//! Nothing here holds a tensor. Sizes from outside are checked before anything is built from them: what
//! [`NetConfig::build`] returns is consistent and small enough to allocate.
//!
//! ```
//! use laud_models::NetConfig;
//!
//! let config = NetConfig::from_json(r#"{"arch": "uni_resnet50", "dyn_mode": "layer"}"#)?;
//! let net = config.build()?;
//! let names: Vec<_> = net.parameters().into_iter().map(|parameter| parameter.name).collect();
//! assert!(names.contains(&"layer1.0.masker_spatial.conv.weight".to_owned()));
//! let (skipped, full) = (net.macs_at(0.0)?.total(), net.macs_at(1.0)?.total());
//! assert_eq!((skipped, full), (481_584_384.0, 4_091_045_120.0));
//! # Ok::<(), laud_models::Error>(())
//! ```
//!
//! # Letters and units
//!
//! `h`, `w` rows and columns of a map in pixels, `c` channels; `S` side of a patch in output pixels of its block, `G`
//! consecutive channels of a group. A shape is that of the checkpoint's tensor, `[k, c, r, s]` for a convolution: output
//! channel, input channel of the group, kernel row, kernel column. Costs are multiply-accumulates of one sample. A
//! *density* is an active fraction, `0..=1`.
#![forbid(unsafe_code)]

mod config;
mod contradiction;
mod error;
mod family;
mod gates;
mod infer;
mod layers;
mod macs;
mod mask;
mod names;
mod parameters;
mod ranges;
mod small;
mod spec;
mod stage;
mod validate;
pub mod zoo;

pub use config::*;
pub use error::Error;
pub use family::preset_names;
pub use infer::infer;
pub use macs::*;
pub use mask::MaskGrid;
pub use names::canonical_name;
pub use parameters::*;
pub use ranges::RANGE_PREFIX;
pub use small::SMALL_NETWORKS;
pub use spec::*;
pub use stage::*;
