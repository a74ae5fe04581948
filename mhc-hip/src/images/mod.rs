//! Kernel images: which are embedded, and which of them a device is given.

mod elf;
mod load;
mod targets;

use mhc_core::gpu::images::Image;

pub(crate) use elf::check;
#[cfg(test)]
pub(crate) use elf::tests::object as elf_object;
pub use load::embedded;
pub(crate) use load::{Gpu, load};
pub use targets::{code, family, headers, object_version, options, sources, targets, tuned, wave};

/// Every embedded image.
pub(crate) const IMAGES: &[Image] = include!("../../kernels/gen/index.rs");
