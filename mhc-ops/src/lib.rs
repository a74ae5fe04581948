//! Fused operators for hyper-connections (HC, mHC: arXiv 2512.24880) on NVIDIA, AMD and CPU, forward and backward.
//!
//! ```
//! use mhc_ops::{DType, Init, MhcLayer, Numerics, Save, Stream, Tensor};
//!
//! let stream = Stream::new(mhc_ops::best()?)?; //            or what MHC_DEVICE names
//! let layer = MhcLayer::new(&stream, Numerics::default(), &Init::MhcCu { seed: 1 }.params(4, 64)?)?; // n = 4, C = 64
//! let x = Tensor::zeros(&stream, DType::Bf16, &[17, 4, 64])?; // T = 17 tokens
//! let (layer_input, pending) = layer.pre(x, Save::All)?; //    [17, 64]
//! let y = layer_input; //                                      your sub-layer: y = F(layer_input)
//! let (x_next, saved) = layer.post(pending, y)?; //            [17, 4, 64]
//! assert_eq!(x_next.shape(), [17, 4, 64]);
//! # drop(saved);
//! # Ok::<(), mhc_ops::Error>(())
//! ```
//!
//! Where to look:
//! * [`best`], [`devices`], [`Report`]: which devices there are, and why others are not.
//! * [`functional`]: every operator as a typed function. [`ops`] holds their attributes.
//! * [`MhcLayer`]: parameters and operators put together, with the slot for a sub-layer, forward and backward.
//! * [`Numerics`]: every convention in which implementations differ, by name.
//! * `checkpoint` (with the feature of this name): safetensors files of this library, DeepSeek-V4, mHC.cu and Liger.
//!
//! Letters, everywhere: T tokens, n streams, C channels; `x [T, n, C]`, `y [T, C]`, `phi [n(n+2), n·C]`, and `mixes [T, n(n+2)]`, the
//! coefficients `[H_pre n | H_post n | H_res n·n]` of every token.
//!
//! Features: `cuda` and `hip` (default) add the backends, which look for the vendor's driver when the program runs; nothing of
//! theirs is needed to build. `checkpoint` adds safetensors.

#[cfg(feature = "checkpoint")]
pub mod checkpoint;
mod detect;
pub mod functional;
mod init;
mod layer;
mod params;

#[cfg(feature = "checkpoint")]
pub use checkpoint::{Checkpoint, CheckpointWriter, Format};
pub use detect::{BackendReport, DEVICE_VARIABLE, Report, backends, best, devices, open};
pub use init::Init;
pub use layer::{
    Grads, MhcLayer, Params, Pending, PendingBackward, Projection, Save, SavedByForward, SavedCoefficients,
    SavedForBackward,
};
pub use mhc_core::{
    AnyOp, Backend, DType, DevPtr, Device, DeviceId, DeviceInfo, Dims, Element, Eps, Error, Layout, MAX_STREAMS,
    Missing, Numerics, Order, Orientation, Probe, Problem, RawStream, RawView, Result, SinkhornForm, Start, Stream,
    Support, Tensor, View, ViewMut, bf16, f16, ops,
};
pub use params::{HostHead, HostParams, HostProjection};
