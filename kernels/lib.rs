//! The primitives of the laud runtime: what a dynamic network is made of, one folder per operation.
//!
//! # In order of use
//!
//! An inference looks at a feature map, lists what is active, computes that densely and returns it:
//!
//! | step | operation | gives |
//! |---|---|---|
//! | come in | [`layout`] | the image, NCHW and f32, as NHWC in the backend's element type |
//! | decide | [`gate`] | a margin per unit, kept where it is not negative |
//! | compact | [`compact`] | margins' decisions as ordered lists, [`Rows`] and [`Channels`], with the halo a kernel needs |
//! | compute | [`gather_gemm`], [`depthwise`] | convolutions over an [`ActiveSet`] |
//! | | [`squeeze_excite`], [`max_pool`], [`mean_pool`], [`shortcut`] | what lies between and around them |
//! | return | the last [`gather_gemm`] | the residual sum, in place, active rows only |
//!
//! Training needs two more, on slices: [`batch_norm`] with batch statistics and its gradient, and [`filter_grad`].
//!
//! [`Backend`] has every operation as a method; [`Cpu`] runs them here, [`cuda::Cuda`] on a GPU. Weights are prepared once and shared;
//! buffers and scratch belong to one inference. An operation checks its operands against its geometry before it
//! touches them: what does not fit is an [`Error`] that names the operation and both sizes. Every operation has a
//! definition in naive loops that it is tested against, and gives the same bits on any number of threads.
//!
//! # Letters and units
//!
//! `n` samples, `h` rows, `w` columns, `c` channels of a feature map; `k`, `r`, `s` output channel, kernel row and
//! kernel column of a filter. Activations are `[n, h, w, c]`, weights `krsc`; sizes count elements unless they end in
//! `bytes`. A *row* of the implicit GEMM is an output pixel of one sample, `(n·h + y)·w + x`; a *column* is a channel.
//! Elements are stored as f32, bf16 or whole numbers of a byte ([`Element`]); sums are f32, or of bytes whole numbers of 32 bits where
//! the processor multiplies those.
//!
//! # Two pixels of four
//!
//! ```
//! use laud_kernels::gather_gemm::{FilterSpec, GatherGemm, Placement};
//! use laud_kernels::{Act, ActiveSet, Backend, Channels, ConvGeometry, Cpu, Extent, Isa, Rows};
//!
//! // A 1×1 convolution from two channels to one on a 2×2 map: z = 10·a + b.
//! let map = Extent { h: 2, w: 2 };
//! let (c_in, c_out) = (2, 1);
//! let geometry = ConvGeometry::pointwise(map, c_in, c_out);
//! let cpu = Cpu::<f32>::new(Isa::detect(), None);
//! let filter = cpu.filter(&FilterSpec {
//!     geometry,
//!     weight: &[10.0, 1.0],
//!     bias: &[0.0],
//!     input_constant: None,
//!     output_constant: None,
//!     output_group: None,
//! })?;
//! let mut scratch = cpu.scratch()?;
//! cpu.reserve(&mut scratch, &filter, false)?;
//! let mut input = cpu.buffer(map.pixels() * c_in, "input")?;
//! input.as_mut_slice().copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
//! let mut output = cpu.buffer(map.pixels() * c_out, "output")?;
//!
//! // The diagonal is active.
//! let mut rows = Rows::with_capacity(1, map.pixels());
//! rows.clear(map.pixels());
//! rows.push(0);
//! rows.push(3);
//! rows.end_sample();
//! let (every_in, every_out) = (Channels::all(c_in), Channels::all(c_out));
//!
//! cpu.run(&mut scratch, |queue| {
//!     let call = GatherGemm {
//!         active: ActiveSet { rows: &rows, c_in: &every_in, c_out: &every_out },
//!         input: &input,
//!         input_rows: Placement::Natural,
//!         output: &mut output,
//!         output_rows: Placement::Natural,
//!         residual: false,
//!         act: Act::Relu,
//!     };
//!     Cpu::gather_gemm(queue, &filter, call)
//! })?;
//! assert_eq!(output.as_slice(), [12.0, 0.0, 0.0, 78.0]);
//! # Ok::<(), laud_kernels::Error>(())
//! ```

/// Hash of the sources of the CPU's kernels, tests apart: times measured with other kernels say nothing about these.
pub const SOURCE_HASH: &str = env!("LAUD_KERNELS_HASH");
/// The same of what is only for CUDA.
pub const CUDA_SOURCE_HASH: &str = env!("LAUD_CUDA_KERNELS_HASH");

mod active;
mod backend;
pub mod batch_norm;
mod buffer;
pub mod compact;
mod compiled;
mod cpu;
mod crew;
pub mod cuda;
pub mod depthwise;
mod disjoint;
mod element;
mod error;
pub mod filter_grad;
pub mod gate;
pub mod gather_gemm;
mod geometry;
pub mod layout;
pub mod max_pool;
pub mod mean_pool;
pub mod shortcut;
mod simd;
pub mod squeeze_excite;
mod team;
#[cfg(test)]
mod testing;

pub use active::{ActiveSet, Channels, Rows};
pub use backend::{Backend, Value};
pub use buffer::{Buffer, PartSums};
pub use cpu::{Cpu, CpuQueue};
pub use crew::Crew;
pub(crate) use disjoint::Disjoint;
pub use element::{DType, Element};
pub use error::{Error, Result};
pub use geometry::{Act, ConvGeometry, Extent};
pub use simd::Isa;
pub use team::Team;
