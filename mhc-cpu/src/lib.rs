//! The CPU backend: SIMD kernels over std::arch, chosen at run time, with rayon over tokens.
//!
//! Layers, bottom up: `simd` (vectors), `rows` (what is done to the rows of one token), `call` (a validated launch and its
//! parallel loops), `reduce` (sums over tokens), `coeffs` and `projection` (the two halves of `pre`), `ops` (one file per operator), `device`.

mod call;
mod coeffs;
mod device;
mod lanes;
mod ops;
mod projection;
mod reduce;
mod rows;
mod simd;
mod sinkhorn;

pub use device::{Cpu, CpuDevice};
pub use simd::Level;
