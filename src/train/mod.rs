//! The masked-dense network: every convolution runs on every position and channel, and masks multiply what a gate switched
//! off. It is what the official LAUDNet code computes (imagenet_classification/models/laud_resnet.py, laud_regnet.py), what
//! networks are trained as, and the slow answer that the sparse executor is tested against; it shares no code with that.
//!
//! Letters: `n` samples, `c` channels, `h w` map size; `m` cells of a spatial mask, `g` channel groups, `u` units of either.
//! Maps are `[n, c, h, w]`, f32.
//!
//! ```
//! use laud::train::{Decisions, MaskedNetwork, random_images, random_weights};
//! use laud_models::NetConfig;
//!
//! let config = r#"{"arch": "resnet20", "input_size": 8, "dyn_mode": "both",
//!     "spatial_granularity": [2, 2, 1], "channel_granularity": 4}"#;
//! let spec = NetConfig::from_json(config)?.build()?;
//! let network = MaskedNetwork::new(&spec, &random_weights(&spec, 1)?)?;
//! let images = random_images(&spec, 2, 7)?;
//!
//! // The gates decide; then the same decisions are forced, which must give the same logits.
//! let learned = network.forward(&images, &Decisions::Learned)?;
//! let forced = network.forward(&images, &Decisions::Given(&learned.masks))?;
//! assert_eq!(learned.logits.to_vec2::<f32>()?, forced.logits.to_vec2::<f32>()?);
//! assert_eq!(learned.masks[0].spatial.as_ref().map(Vec::len), Some(2 * 4 * 4));
//! # Ok::<(), anyhow::Error>(())
//! ```

mod block;
mod cost;
mod course;
mod decisions;
mod gate;
mod init;
mod layers;
mod loss;
mod maps;
mod network;
mod pool;
mod random;
mod ranges;
mod recipe;
mod resized;
mod schedule;
mod sgd;
mod thin;
mod trainer;
mod unfold;

pub use block::Residual;
pub use cost::{BlockLatency, Cost, LatencyModel, RateGradient, Spent};
pub use course::{Course, EpochReport, Event, Precision, goes_on, steps_per_epoch};
pub use decisions::{BlockMargins, BlockMasks, Decisions, PerGate, Sampling};
pub use init::{GateBias, initial_weights, is_gate};
pub use layers::{Conv, Statistics};
pub use loss::{bounds, cost_target, cross_entropy, distillation};
pub(crate) use maps::same_shape;
pub use maps::{Map, MapOps, Plain};
pub use network::{Activity, Evaluation, MaskedNetwork};
pub use random::{random_images, random_weights};
pub use ranges::Ranges;
pub use recipe::{MapElement, Recipe, Trained};
pub use resized::resized;
pub use schedule::{cosine, exponential, lowered};
pub use sgd::Sgd;
pub use thin::thin;
pub use trainer::{Losses, Setup, StepReport, Trainer, correct};
pub use unfold::unfold_norms;
