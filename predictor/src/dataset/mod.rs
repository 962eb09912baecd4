//! Measured convolutions of other people's GPUs: how well does the learned predictor do where one knows neither the
//! kernels nor owns the device?
//!
//! A data set is a pair of files for each GPU: `conv_<gpu>.csv` with the columns `latency_ms, batch, in_channels,
//! out_channels, kernel, input_size, stride, padding`, and `<gpu>.spec.json` with the published figures `Device`,
//! `Mem_Bw` (GB/s), `Num_Sm` and `SingleFLOPs` (GFLOP/s). That is the form of the measurements of NeuSight (Lee, Phanishayee
//! and Mahajan, ASPLOS 2025).
//!
//! **Drift.** In those measurements the least latency grows in proportion to the line of the file, by up to 0.7 ms: the
//! session added it, not the convolution. The model has a term for it, so that training tells it apart. A prediction is
//! about a shape alone and does not know its line: it assumes the middle of the session. What the errors are when the
//! moment is known is reported beside.

mod evaluate;
mod read;
mod terms;
mod transfer;

pub use evaluate::{Evaluation, same_device};
pub use read::{Conv, Gpu, GpuSpec, Timing};
pub use transfer::{Shots, leave_out};
