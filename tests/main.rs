//! Map of the tests:
//! `oracle` the masked-dense network, against the official PyTorch code and against arithmetic done by hand.
//! Support: `fixtures` reads what the official code computed, `compare` says how far two tensors are apart.

mod compare;
mod fixtures;
mod oracle;
