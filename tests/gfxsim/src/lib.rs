//! A functional model of AMD GPUs behind AMD's own HIP runtime.
//!
//! AMD's runtime can drive a model instead of a device: it loads the library that `HSA_MODEL_LIB` names and tells it where queues and
//! allocations are. This crate is such a library. It takes packets from the queues and executes the kernels' real machine code, one wave
//! after the other; everything above that (memory, modules, streams, events, graphs, errors, the compiler) is AMD's own.
//!
//! README.md says what is modelled and what is not.

#![allow(missing_docs)] // fields and arms are named after the hardware's manuals, which explain them

pub mod arch;
mod code;
mod comgr;
pub mod compiler;
mod descriptor;
pub mod direct;
mod dispatch;
mod float;
mod group;
mod inst;
mod memory;
mod model;
mod ops;
mod queue;
mod text;
pub mod topology;
pub mod traffic;
mod vector;
mod wave;

pub use memory::Fault;
