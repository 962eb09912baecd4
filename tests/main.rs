//! Map of the tests:
//! `oracle` the masked-dense network against the official PyTorch code ·
//! `oracle_cases` the same against loops and arithmetic done by hand ·
//! `cli` the program from outside.
//! Support: `fixtures` reads what the official code computed · `naive` the network in f64 loops · `compare` says how far
//! two tensors are apart.

mod cli;
mod compare;
mod fixtures;
mod naive;
mod oracle;
mod oracle_cases;
