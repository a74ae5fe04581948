//! What is tested here.

use std::sync::Arc;

use anyhow::{Result, bail};
use mhc_core::{Backend, Device};
use mhc_cpu::{Cpu, CpuDevice, Level};
use mhc_gfxsim::arch::Arch;

/// A device with the name that case ids give it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// `cpu`, `cuda:0`, or with what sets it apart: `cpu-avx2-3threads`.
    pub name: String,
    /// The device.
    pub device: Arc<dyn Device>,
}

impl Subject {
    /// A device under the name of its id.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self { name: device.info().id.to_string(), device }
    }
}

/// The host as users get it.
pub fn cpu() -> Result<Subject> {
    Ok(Subject::new(Cpu.open(0)?))
}

/// The host with some instruction set and number of threads.
pub fn cpu_with(threads: usize, level: Level) -> Result<Subject> {
    let name = format!("cpu-{}-{threads}thread{}", level.name(), if threads == 1 { "" } else { "s" });
    Ok(Subject { name, device: Arc::new(CpuDevice::with(threads, level)?) })
}

/// The host as users get it, and once with every other instruction set it has, with 3, then 2, then 1 threads.
pub fn cpus() -> Result<Vec<Subject>> {
    let mut subjects = vec![cpu()?];
    for (level, threads) in Level::available().into_iter().skip(1).zip([3, 2, 1]) {
        subjects.push(cpu_with(threads, level)?);
    }
    Ok(subjects)
}

/// Every device as users get it, or those of the backend that `MHC_TEST_BACKEND` names. An error, in the words of its probe, if there is
/// none.
pub fn found() -> Result<Vec<Subject>> {
    let Some(asked) = asked() else {
        let open = |info: &mhc_core::DeviceInfo| Ok(Subject::new(mhc_ops::open(&info.id.to_string())?));
        return mhc_ops::devices().iter().map(open).collect();
    };
    Ok(vec![Subject::new(mhc_ops::open(&asked)?)])
}

/// The portable device source on the host, with waves of 32 and of 64 lanes; none unless `MHC_TEST_BACKEND` asks for it by name, as it
/// wants a C++ compiler.
pub fn emulators() -> Result<Vec<Subject>> {
    if asked().as_deref() != Some("emu") {
        return Ok(Vec::new());
    }
    [32, 64].into_iter().map(|wave| Ok(Subject::new(Arc::new(crate::emu::open(wave)?)))).collect()
}

/// Kernels launched directly on a simulated gfx90a, which AMD's runtime cannot be brought up on; none unless `MHC_TEST_BACKEND` asks for
/// it by name, as it wants AMD's compiler and disassembler.
pub fn direct() -> Result<Vec<Subject>> {
    if asked().as_deref() != Some("sim") {
        return Ok(Vec::new());
    }
    let (device, _) = crate::sim::open(Arch::Gfx90a, None)?;
    Ok(vec![Subject { name: "sim-gfx90a".into(), device: Arc::new(device) }])
}

/// Everything that is here: the host in its forms, every GPU that can be opened, and the emulators if they are asked for.
pub fn here() -> Result<Vec<Subject>> {
    let mut subjects = cpus()?;
    for backend in mhc_ops::backends().into_iter().filter(|b| b.name() != "cpu") {
        let found = backend.probe().found.into_iter().flatten();
        subjects.extend(found.filter_map(|info| backend.open(info.id.ordinal).ok()).map(Subject::new));
    }
    subjects.extend(emulators()?);
    subjects.extend(direct()?);
    Ok(subjects)
}

/// Whether the device does in minutes what a GPU does in milliseconds: an emulator, or AMD's runtime on a simulated GPU, which it is told
/// of by a variable of its own.
pub fn is_slow(device: &Arc<dyn Device>) -> bool {
    match device.info().id.backend {
        "emu" | "sim" => true,
        "hip" => std::env::var_os("HSA_MODEL_LIB").is_some(),
        _ => false,
    }
}

/// The backend that `MHC_TEST_BACKEND` names, if it names one.
pub fn asked() -> Option<String> {
    std::env::var("MHC_TEST_BACKEND").ok().filter(|b| !b.is_empty() && b != "all")
}

/// The subjects of the backend that `MHC_TEST_BACKEND` names; all of them if it is unset or `all`. An error, in the words of its probe,
/// if there is none.
pub fn chosen() -> Result<Vec<Subject>> {
    let subjects = here()?;
    let Some(asked) = asked() else { return Ok(subjects) };
    let chosen: Vec<_> = subjects.into_iter().filter(|s| s.device.info().id.backend == asked).collect();
    if chosen.is_empty() {
        mhc_ops::open(&asked)?;
        bail!("MHC_TEST_BACKEND={asked}: no device of it can be tested here");
    }
    Ok(chosen)
}
