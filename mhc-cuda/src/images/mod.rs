//! Kernel images: which are embedded, and which of them a device is given.

mod choose;
mod load;
mod targets;

use mhc_core::gpu::images::Image;

pub(crate) use load::load;
pub use targets::{WAVE, headers, options, sources, targets, tuned};

/// Every embedded image.
pub(crate) const IMAGES: &[Image] = include!("../../kernels/gen/index.rs");
