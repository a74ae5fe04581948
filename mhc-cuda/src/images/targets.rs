//! What is compiled, for which architectures, and how.

use mhc_core::{gpu::Source, ops};

/// Sources tuned for one architecture.
const TUNED: &[Source] = &[];

/// The lanes of a warp.
pub const WAVE: u32 = 32;

/// Architectures that every portable source is compiled for. Machine code runs on the same major architecture and an equal or higher
/// minor one: `sm_80` serves 8.0 and 8.7, `sm_86` 8.6 and 8.9, `sm_100` 10.0 and 10.3, `sm_120` 12.0 and 12.1. The driver compiles
/// `compute_80`, NVIDIA's assembly, for whatever else there is or comes.
const PORTABLE: [&str; 6] = ["sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_80"];

/// Every device source: the portable ones, and those tuned for one architecture.
pub fn sources() -> impl Iterator<Item = &'static Source> {
    ops::SOURCES.iter().chain(TUNED)
}

/// What a source is compiled for: as `nvrtc` names it, `sm_90` or `compute_80`.
pub fn targets(source: &Source) -> Vec<String> {
    // `sm90a`, as the entries have it at their end, is `sm_90a`.
    match (source.entries)().first().map_or("", |e| e.arch).strip_prefix("sm") {
        Some(arch) => vec![format!("sm_{arch}")],
        None => PORTABLE.map(String::from).to_vec(),
    }
}

/// The compiler's options for a target.
pub fn options(target: &str) -> Vec<String> {
    let architecture = format!("--gpu-architecture={target}");
    [&architecture, "--std=c++17", "--ptxas-options=-v"].map(String::from).to_vec()
}
