//! The HIP backend: AMD's runtime, found at run time. No ROCm is needed to build, and only the runtime to run.
//!
//! Layers, bottom up: `library` (where AMD's libraries are looked for), `api` (the runtime's functions), `probe` (what devices there are),
//! `context` (one device, bound to the calling thread for each call), `memory`, [`images`] (which kernel image a device is given),
//! `driver` (what the shared [`GpuDevice`] asks of a driver).
//!
//! Where a kernel reads or writes memory that is none, AMD's runtime says so on stderr and ends the process; no error comes back from it.
//!
//! | variable | meaning |
//! |---|---|
//! | `MHC_HIP_LIBRARY` | the runtime's library, tried alone |
//! | `ROCM_PATH`, `HIP_PATH` | installations that come before the loader's own search |
//! | `MHC_HIPRTC` | AMD's run-time compiler, tried alone; it is asked for devices that no embedded image suits |
//! | `MHC_HIP_IMAGES` | which images are tried, in which order: a list of `exact`, `generic`, `hiprtc` |
//! | `MHC_CACHE_DIR`, `MHC_CACHE=0` | where what hiprtc compiles is kept; not at all |

#[cfg(test)]
mod abi;
mod api;
mod blocks;
mod context;
mod driver;
#[cfg(test)]
mod fake;
mod hiprtc;
pub mod images;
mod library;
mod memory;
mod probe;
#[cfg(test)]
mod tests;

use std::{
    collections::{
        BTreeMap,
        btree_map::Entry::{Occupied, Vacant},
    },
    sync::{Arc, Mutex, PoisonError},
};

use mhc_core::{Backend, Device, DeviceId, DeviceInfo, Error, Missing, Probe, Result, gpu::GpuDevice};

use crate::{api::Api, driver::HipDriver};

/// The backend.
#[derive(Clone, Copy, Debug)]
pub struct Hip;

/// The devices that were opened. They stay open: the runtime keeps its devices to the end of the process, and ending anything while the
/// process exits would race with the runtime's own end.
static DEVICES: Mutex<BTreeMap<u32, Arc<GpuDevice<HipDriver>>>> = Mutex::new(BTreeMap::new());

impl Backend for Hip {
    fn name(&self) -> &'static str {
        "hip"
    }

    fn probe(&self) -> Probe {
        Probe { backend: "hip", found: find() }
    }

    fn open(&self, ordinal: u32) -> Result<Arc<dyn Device>> {
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        match devices.entry(ordinal) {
            Occupied(device) => Ok(device.get().clone()),
            Vacant(place) => Ok(place.insert(Arc::new(open(ordinal)?)).clone()),
        }
    }
}

fn find() -> Result<Vec<DeviceInfo>, Missing> {
    probe::find(Api::get()?)
}

fn open(ordinal: u32) -> Result<GpuDevice<HipDriver>> {
    let probe = Hip.probe();
    if let (Ok(devices), Ok(api)) = (&probe.found, Api::get())
        && devices.iter().any(|d| d.id.ordinal == ordinal)
    {
        return GpuDevice::new(HipDriver::new(api, ordinal, images::IMAGES)?);
    }
    let asked = DeviceId { backend: "hip", ordinal }.to_string();
    Err(Error::NoBackend { asked, probes: vec![probe] })
}
