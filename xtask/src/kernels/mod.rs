//! `cargo xtask kernels`: compiles the device sources for every architecture, without a GPU, into what the crates embed.

mod build;
pub mod cuda;
pub mod hip;
pub mod manifest;
#[cfg(test)]
pub mod tests;
pub mod vendor;
mod wheel;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use self::{cuda::Cuda, hip::Hip, vendor::Vendor};
use crate::home::Home;

/// Compile the device sources into the images that the crates embed
///
/// Needs no GPU, no CUDA toolkit and no ROCm: the pinned compilers are downloaded with pip, or MHC_NVRTC and MHC_ZIG name their files.
/// Sources that have not changed since the manifest was written are not compiled again.
#[derive(clap::Args)]
pub struct Args {
    /// Whose images
    #[arg(long, value_enum, default_value_t = Whose::Cuda)]
    backend: Whose,
    /// Compile everything again, write nothing, and fail where the committed images are not what comes out
    #[arg(long)]
    check: bool,
    /// Compile nothing, and fail where a source is not the one that the committed images were compiled from
    #[arg(long, conflicts_with = "check")]
    fresh: bool,
    /// These sources only
    #[arg(value_name = "SOURCE")]
    only: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Whose {
    Cuda,
    Hip,
    All,
}

pub fn run(args: &Args) -> Result<()> {
    let home = Home::find()?;
    let (cuda, hip) = (args.backend != Whose::Hip, args.backend != Whose::Cuda);
    for name in &args.only {
        let known = (cuda && has::<Cuda>(name)) || (hip && has::<Hip>(name));
        ensure!(known, "there is no device source `{name}`");
    }
    if cuda {
        build::run::<Cuda>(args, &home)?;
    }
    if hip {
        build::run::<Hip>(args, &home)?;
    }
    Ok(())
}

fn has<V: Vendor>(source: &str) -> bool {
    V::jobs().iter().any(|job| job.source.name == source)
}
