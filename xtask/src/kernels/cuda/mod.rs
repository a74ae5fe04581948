//! NVIDIA's images: NVRTC, whose version decides which drivers load what it writes.

pub mod resources;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, anyhow, ensure};
use mhc_core::{DType, gpu::Source};
use mhc_cuda::{
    images::{self, WAVE},
    nvrtc::{Format, Nvrtc, Unit},
};
use xshell::Shell;

use self::resources::{Bounds, Resources};
use super::{
    vendor::{self, Compiled, Job, Taken, Vendor},
    wheel::Wheel,
};

/// 12.9 is the last that writes machine code which drivers from 525 on load.
const WHEEL: Wheel = Wheel {
    package: "nvidia-cuda-nvrtc-cu12",
    version: "12.9.86",
    megabytes: 90,
    file: ("manylinux_2_12_x86_64", "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4"),
    folder: "nvrtc",
    wanted: "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
    variable: "MHC_NVRTC",
};

/// NVRTC.
pub struct Cuda(Nvrtc);

fn format(target: &str) -> Format {
    if target.starts_with("compute") { Format::Ptx } else { Format::Cubin }
}

impl Vendor for Cuda {
    type Taken = Resources;
    const FOLDER: &'static str = "mhc-cuda/kernels/gen";

    fn compiler() -> String {
        format!("NVRTC {}", WHEEL.version)
    }

    fn jobs() -> Vec<Job> {
        vendor::jobs(images::sources(), images::targets, job)
    }

    fn open(sh: &Shell, root: &Path) -> Result<Self> {
        let nvrtc = Nvrtc::load(&WHEEL.get(sh, root)?).map_err(|e| anyhow!("{e}"))?;
        let (major, minor) = nvrtc.version();
        let pinned = WHEEL.version;
        ensure!(pinned.starts_with(&format!("{major}.{minor}.")), "{nvrtc:?}, but {pinned} is pinned");
        Ok(Self(nvrtc))
    }

    fn compile(&self, jobs: &[&Job]) -> Result<Vec<Compiled<Resources>>> {
        jobs.iter().map(|job| self.image(job)).collect()
    }
}

fn job(source: &'static Source, dtype: DType, target: String) -> Job {
    Job {
        source,
        dtype,
        wave: WAVE,
        options: images::options(&target),
        headers: images::headers(source),
        extension: if format(&target) == Format::Ptx { "ptx" } else { "cubin" },
        family: target.clone(),
        target,
    }
}

impl Cuda {
    fn image(&self, job: &Job) -> Result<Compiled<Resources>> {
        let unit = Unit { name: &format!("{}.cu", job.source.name), text: &job.text(), headers: &job.headers };
        let compiled = self.0.compile(unit, &job.options, format(&job.target)).map_err(|log| anyhow!("{log}"))?;
        let bounds = resources::bounds(&compiled.assembly);
        let mut entries = resources::parse(&compiled.log)?;
        for (name, entry) in &mut entries {
            let Bounds { threads, blocks, .. } = bounds.get(name).copied().unwrap_or_default();
            (entry.threads, entry.blocks) = (threads, blocks);
        }
        let parameters: BTreeMap<_, _> = bounds.into_iter().map(|(name, b)| (name, b.parameter)).collect();
        Ok(Compiled { image: compiled.image, entries, parameters })
    }
}

impl Taken for Resources {
    fn excess(&self, entry: &str) -> Option<String> {
        self.excess(entry)
    }

    fn summary(&self) -> [u32; 3] {
        [self.registers, self.spill_stores, self.shared]
    }
}
