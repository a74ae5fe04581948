//! Checkpoints: safetensors files in the naming and layout of this library and of others.
//!
//! | [`Format`] | tensors behind the prefix | n·n block |
//! |---|---|---|
//! | [`Mhc`](Format::Mhc) | `phi [n(n+2), n·C]`, `alpha [3]`, `bias [n(n+2)]`, `norm_weight [n·C]`, `w [C]` | `[to][from]` |
//! | [`DeepSeekV4`](Format::DeepSeekV4) | `fn [n(n+2), n·C]`, `scale [3]`, `base [n(n+2)]` | `[from][to]` |
//! | [`MhcCu`](Format::MhcCu) | `phi_pre [n, n·C]`, `phi_post`, `phi_res [n·n, n·C]`, `alpha_pre`, `alpha_post`, `alpha_res`, `b_pre [n]`, `b_post`, `b_res [n, n]`, or `H_pre [n]`, `H_post`, `H_res [n, n]`; `rmsnorm_weight [C]` | `[to][from]` |
//! | [`Liger`](Format::Liger) | `phi [n·C, n(n+2)]`, `b [n(n+2)]`, `alpha_pre`, `alpha_post`, `alpha_res` | `[to][from]` |
//!
//! A prefix is everything in front of these names. DeepSeek-V4's own files want `layers.3.hc_attn_` and `layers.3.hc_ffn_`, and
//! `hc_head_` for the head; files in Transformers' naming `model.layers.3.attn_hc.` and `model.hc_head.hc_`. A name may have `.weight`
//! behind it, as GGUF's names have. Elements may be f32, bf16 or f16; f32 is written.
//!
//! ```
//! use mhc_ops::{Checkpoint, CheckpointWriter, Format, Init};
//! # let dir = std::env::temp_dir().join(format!("mhc-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir).unwrap();
//! let path = dir.join("layer.safetensors");
//! let params = Init::Liger { seed: 1 }.params(4, 64)?;
//! CheckpointWriter::new().layer(Format::Liger, "layers.0.", &params)?.save(&path)?;
//! assert_eq!(Checkpoint::open(&path)?.layer(Format::Liger, "layers.0.")?, params);
//! # std::fs::remove_dir_all(&dir).unwrap();
//! # Ok::<(), mhc_ops::Error>(())
//! ```

mod format;
mod read;
mod write;

use mhc_core::{Error, Orientation};

pub use read::Checkpoint;
pub use write::CheckpointWriter;

/// Whose naming and layout a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// This library's.
    Mhc,
    /// DeepSeek-V4's, and TileKernels'.
    DeepSeekV4,
    /// mHC.cu's, dynamic or static.
    MhcCu,
    /// Liger-Kernel's.
    Liger,
}

impl Format {
    /// How the n·n block lies in its tensors.
    pub const fn orientation(self) -> Orientation {
        match self {
            Self::DeepSeekV4 => Orientation::FromTo,
            Self::Mhc | Self::MhcCu | Self::Liger => Orientation::ToFrom,
        }
    }

    /// The name in messages.
    const fn name(self) -> &'static str {
        match self {
            Self::Mhc => "mhc-ops",
            Self::DeepSeekV4 => "DeepSeek-V4",
            Self::MhcCu => "mHC.cu",
            Self::Liger => "Liger",
        }
    }
}

fn error(path: &std::path::Path, why: impl core::fmt::Display) -> Error {
    Error::Checkpoint(format!("{}: {why}", path.display()))
}
