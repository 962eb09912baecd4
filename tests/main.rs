//! Map of the tests:
//! `oracle` the masked-dense network against the official PyTorch code ·
//! `oracle_cases` the same against loops and arithmetic done by hand ·
//! `executor_fixtures` the executor against the official code ·
//! `cuda` the same on the CUDA backend, whose kernels run on this machine · `cuda_calibrate` profiles and plans of such a device ·
//! `cuda_tiles` what its predictor counts with is what is launched ·
//! `parity` the executor against the oracle, over named and generated networks ·
//! `session` a session as its users have it: threads, memory used again, bad input ·
//! `policies` skip policies by name, run · `early_exits` samples that smaller images answer ·
//! `cli` the program from outside · `bad_input` the same with files that are damaged or do not fit ·
//! `evaluate` what it measures on labelled images ·
//! `experiment` grids of that, pages and advice made of them ·
//! `calibrate` measuring, resuming and profiles from outside · `plan` what plans are made from and what they change ·
//! `autograd` the kernels as candle operations, against candle ·
//! `training_step` steps of training against PyTorch ·
//! `quantize` how large values become, and files that say so ·
//! `start` what training starts from · `course` whole trainings, cut off and gone on with ·
//! `zoo` what ships · `architecture` what may know what.
//! Support: `fixtures` reads what the official code computed · `naive` the network in f64 loops · `execute` runs the
//! executor · `networks` makes small networks · `compare` says how far two tensors are apart.

mod architecture;
mod autograd;
mod bad_input;
mod calibrate;
mod cli;
mod compare;
mod course;
mod cuda;
mod cuda_calibrate;
mod cuda_tiles;
mod early_exits;
mod evaluate;
mod execute;
mod executor_fixtures;
mod experiment;
mod fixtures;
mod naive;
mod networks;
mod oracle;
mod oracle_cases;
mod parity;
mod plan;
mod policies;
mod quantize;
mod session;
mod start;
mod training_step;
mod zoo;
