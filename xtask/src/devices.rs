//! Which devices a task is to use, and what is said when they are not there.

use std::sync::Arc;

use anyhow::{Result, bail};
use clap::ValueEnum;
use mhc_ops::{Device, Probe, backends};

/// Backends by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// The host
    Cpu,
    /// NVIDIA GPUs
    Cuda,
    /// AMD GPUs
    Hip,
    /// Every backend that is usable here
    All,
}

impl Which {
    /// The name on the command line and in `MHC_TEST_BACKEND`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Hip => "hip",
            Self::All => "all",
        }
    }

    /// What the wanted backends said. An error, in the probe's words, if one asked for by name has no device.
    pub fn probe(self) -> Result<Vec<Probe>> {
        let probes: Vec<_> = backends().iter().map(|b| b.probe()).collect();
        if self == Self::All {
            return Ok(probes);
        }
        match probes.iter().find(|p| p.backend == self.name()) {
            Some(p) if p.found.is_ok() => Ok(vec![p.clone()]),
            Some(p) => bail!("--backend {} was asked for, but is not usable here\n  {p}", self.name()),
            None => bail!("--backend {} was asked for, but there is no such backend", self.name()),
        }
    }

    /// The devices of the wanted backends.
    pub fn devices(self) -> Result<Vec<Arc<dyn Device>>> {
        let infos = self.probe()?.into_iter().filter_map(|p| p.found.ok()).flatten();
        infos.map(|info| Ok(mhc_ops::open(&info.id.to_string())?)).collect()
    }
}
