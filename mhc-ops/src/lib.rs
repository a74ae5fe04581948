//! Fused operators for hyper-connections (HC, mHC: arXiv 2512.24880) on NVIDIA, AMD and CPU, forward and backward.

#[cfg(feature = "checkpoint")]
pub mod checkpoint;
mod detect;
pub mod functional;
mod init;
mod params;

#[cfg(feature = "checkpoint")]
pub use checkpoint::{Checkpoint, CheckpointWriter, Format};
pub use detect::{BackendReport, DEVICE_VARIABLE, Report, backends, best, devices, open};
pub use init::Init;
pub use mhc_core::{
    AnyOp, Backend, DType, DevPtr, Device, DeviceId, DeviceInfo, Dims, Element, Eps, Error, Layout, MAX_STREAMS,
    Missing, Numerics, Order, Orientation, Probe, Problem, RawStream, RawView, Result, SinkhornForm, Start, Stream,
    Support, Tensor, View, ViewMut, bf16, f16, ops,
};
pub use params::{HostHead, HostParams, HostProjection};
