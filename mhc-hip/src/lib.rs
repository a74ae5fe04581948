//! The HIP backend: AMD's runtime, found at run time. No ROCm is needed to build, and only the runtime to run.
//!
//! It finds and describes devices. Kernels are not yet implemented, so [`Backend::open`] says so.

mod api;
mod library;
mod probe;

use std::sync::{Arc, OnceLock};

use mhc_core::{Backend, Device, DeviceId, DeviceInfo, Error, Missing, Probe, Result};

use crate::{api::Api, library::Search};

/// The backend.
#[derive(Clone, Copy, Debug)]
pub struct Hip;

impl Backend for Hip {
    fn name(&self) -> &'static str {
        "hip"
    }

    fn probe(&self) -> Probe {
        Probe { backend: "hip", found: find() }
    }

    fn open(&self, ordinal: u32) -> Result<Arc<dyn Device>> {
        let probe = self.probe();
        let asked = DeviceId { backend: "hip", ordinal }.to_string();
        if probe.found.as_ref().is_ok_and(|devices| devices.iter().any(|d| d.id.ordinal == ordinal)) {
            let why = "only detection is implemented for HIP so far; use `cpu`".into();
            return Err(Error::Unsupported { op: "open", device: asked, why });
        }
        Err(Error::NoBackend { asked, probes: vec![probe] })
    }
}

/// The runtime of this process: loaded once, never unloaded (ROCm's libraries do not survive being loaded twice).
fn runtime() -> Result<&'static Api, Missing> {
    static RUNTIME: OnceLock<Result<Api, Missing>> = OnceLock::new();
    RUNTIME.get_or_init(|| Api::load(&Search::from_env())).as_ref().map_err(Clone::clone)
}

fn find() -> Result<Vec<DeviceInfo>, Missing> {
    probe::devices(runtime()?)
}
