//! The vocabulary of `mhc-ops` and its truth.
//!
//! Dimensions, element types, borrowed operands, operator descriptions, the traits that a backend implements, errors, and for every
//! operator a float64 reference of its forward and backward. No vendor library, no threads, no file system but for the cache of kernels
//! that a run-time compiler made.
//!
//! Letters, everywhere: T tokens, n streams, C channels, K = n·C, L sub-layers; `x [T, n, C]` streams, `y [T, C]` sub-layer output,
//! `phi [n(n+2), K]` projection, `mixes [T, n(n+2)] = [H_pre n | H_post n | H_res n·n]`.

mod desc;
mod device;
mod dims;
mod dtype;
mod error;
pub mod gpu;
pub mod numerics;
mod op;
pub mod ops;
mod real;
mod stream;
mod tensor;
pub mod validate;
mod view;

pub use desc::{DTypeRule, Fill, OpDesc, Role, Slot};
pub use device::{Backend, Device, DeviceInfo, Kernel, Missing, Probe, RawStream, Support};
pub use dims::{Axis, Dims, MAX_STREAMS};
pub use dtype::{DType, Element, bf16, f16};
pub use error::{Error, Result};
pub use numerics::{Eps, Numerics, Order, Orientation, SinkhornForm, Start};
pub use op::{Case, Cost, Inputs, Level, Op, Outputs, Problem, Tolerance, stream_dims};
pub use ops::AnyOp;
pub use real::{Dual, Real};
pub use stream::Stream;
pub use tensor::Tensor;
pub use view::{DevPtr, DeviceId, Layout, MAX_RANK, RawView, View, ViewMut};
