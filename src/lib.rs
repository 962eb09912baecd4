//! A runtime for input-adaptive vision networks.
//!
//! Some parts of an image are easy. A *gate* in front of a residual block looks at the feature map and names the
//! *units* that are worth computing: patches, groups of channels, or the whole block. laud computes those units densely,
//! in place, and nothing else. A network without gates is the case where every unit is active: same code, same path.
//! What was computed, and what that cost, is in the [`Trace`] of every inference.
//!
//! # In order of use
//!
//! 1. [`checkpoint`] opens weights, safetensors or PyTorch, without trusting them; [`zoo`] has trained networks.
//! 2. A [`NetSpec`](models::NetSpec) says what the network is. It is built from a
//!    [`NetConfig`](models::NetConfig), which a user writes or [`infer`](models::infer()) reads off the tensors' shapes; what
//!    shapes cannot tell, a checkpoint's metadata or the user states.
//! 3. [`Session`] joins specification, weights and device: reads every weight once, folds BatchNorm, packs.
//! 4. [`vision`] decodes photographs and prepares them as the weights expect; [`Session::infer`] runs them.
//! 5. [`Output`] has the logits. [`Session::infer_into`] writes into an output that is used again, and a
//!    [`Request`](exec::Request) asks for more: feature maps, masks, times.
//! 6. The [`Trace`] counts multiply-accumulates and active units, block by block; [`report`] draws it.
//! 7. A [`Policy`](gate::Policy) decides what a gate's numbers mean: [`Learned`](gate::Learned) is the trained rule,
//!    [`Always`](gate::Always) the static network, [`Given`](gate::Given) recorded or forced decisions; [`policy`] has
//!    all of them by name, and a policy of one's own is a type with two methods. In front of any of them,
//!    [`SessionBuilder::early_exit`] lets samples leave of which a smaller image says enough. [`evaluate`] says what each
//!    is worth.
//! 8. An [`ExecutionPlan`](plan::ExecutionPlan) says, block by block, from which density on gathering no longer pays.
//!    It changes times, never results. [`calibrate`] measures a device once; [`plan::search`] chooses from the profile
//!    that comes of it, and the session watches whether times are as expected ([`Watch`](exec::Watch)).
//!
//! 9. [`Element`] is what values are stored as. [`quantize`] measures what the smallest of them, whole numbers, needs to know.
//!
//! [`train`] is the other half: the same networks with masks that multiply, in candle, differentiable, and what trains them.
//! The executor is tested against it. It is slow by itself; [`autograd`] computes its maps on the kernels.
//!
//! # What is on this photograph?
//!
//! ```
//! use laud::models::{NetConfig, infer};
//! use laud::vision::{Labels, Preprocess};
//! use laud::{CheckpointWeights, Session, zoo};
//!
//! let checkpoint = zoo::load("mobilenet_v2")?;
//! let weights = CheckpointWeights::new(&checkpoint);
//! let stated = NetConfig::from_json(&checkpoint.metadata()["config"])?;
//! let spec = infer(&weights.shapes(), &stated)?.build()?;
//! let session = Session::builder(spec).build(&weights)?;
//!
//! let photos = zoo::photos()?;
//! let (_, zebra) = photos.iter().find(|(name, _)| name == "zebra.jpg").expect("one of the photographs");
//! let preprocess = Preprocess::new(&session.spec().input)?;
//! let mut image = vec![0.0; preprocess.values()];
//! preprocess.write_nchw(zebra, &mut image)?;
//!
//! let logits = session.infer(&image, 1)?.logits;
//! let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("1000 classes");
//! assert_eq!(Labels::ImageNet.name(best), Some("zebra"));
//! # anyhow::Ok(())
//! ```
//!
//! # What does skipping save?
//!
//! Forced decisions answer that before anything is trained: a small network with random weights, of which half of every
//! map is computed.
//!
//! ```
//! use laud::gate::{Given, Pattern};
//! use laud::models::NetConfig;
//! use laud::{RandomWeights, Session};
//!
//! let config = r#"{"arch": "resnet20", "dyn_mode": "spatial", "spatial_granularity": [4, 2, 1]}"#;
//! let spec = NetConfig::from_json(config)?.build()?;
//! let (samples, seed) = (1, 7);
//! let half = Given::forced(&spec, samples, 0.5, Pattern::Clustered, seed)?;
//! let session = Session::builder(spec.clone()).policy(half).build(&RandomWeights::new(&spec, seed))?;
//!
//! let trace = session.infer(&[0.5; 3 * 32 * 32], samples)?.trace;
//! assert!(trace.blocks.iter().all(|block| block.patches.density() == 0.5));
//! assert!(trace.macs() < trace.dense_macs());
//! # anyhow::Ok(())
//! ```
//!
//! # Letters and units
//!
//! `n` samples, `c` channels, `h w` rows and columns of a map in pixels; maps are `[n, c, h, w]` at this edge and
//! `[n, h, w, c]` inside. `S` is a patch's side in output pixels, `G` the channels of a group. *Density* is the active
//! fraction, `0..=1`. Times are nanoseconds (`_ns`), costs multiply-accumulates over the whole batch.
#![forbid(unsafe_code)]

pub mod autograd;
pub mod calibrate;
pub mod checkpoint;
pub mod evaluate;
pub mod exec;
pub mod files;
pub mod gate;
pub mod plan;
pub mod policy;
pub mod quantize;
mod random;
pub mod report;
mod session;
pub mod train;
pub mod vision;
mod weights;
pub mod zoo;

pub use exec::{Output, Trace};
#[doc(no_inline)]
pub use laud_kernels as kernels;
#[doc(no_inline)]
pub use laud_models as models;
#[doc(no_inline)]
pub use laud_predictor as predictor;
pub use session::{Device, Element, Session, SessionBuilder};
pub use weights::{CheckpointWeights, FIXTURE_PREFIX, RandomWeights, TensorMap};
