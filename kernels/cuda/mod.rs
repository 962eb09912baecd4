//! **cuda**: the GPU side of every operation.
//!
//! Each operation's folder holds its kernels, `<op>.cu`, written in the dialect of `device.h`: no header of a toolkit, so
//! that they compile at run time on a machine that has a driver only, by nvcc in the checks, and as host C++ for the
//! tests, against `emulation/`. A kernel `<op>_<layout>_<dtype>[_<variant>]` takes one struct of [`params`] by value; what
//! else a launch needs is in [`launch`].

pub mod launch;
pub mod params;
