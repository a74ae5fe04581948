//! Kernel images: which are embedded, and which of them a device is given.

mod cache;
mod choose;
mod load;
mod targets;

pub(crate) use load::Attempts;
pub use targets::{WAVE, headers, options, sources, targets, tuned};

/// An embedded image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    /// The device source.
    pub source: &'static str,
    /// The element type of its entries.
    pub dtype: &'static str,
    /// `sm_90`, `compute_80`.
    pub target: &'static str,
    /// Its size.
    pub bytes: usize,
    /// A Zstandard frame.
    pub data: &'static [u8],
}

/// Every embedded image.
pub(crate) const IMAGES: &[Image] = include!("../../kernels/gen/index.rs");
