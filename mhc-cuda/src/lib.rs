//! The CUDA backend: NVIDIA's driver, found at run time. No CUDA toolkit is needed to build or to run, and nothing else to run.
//!
//! Layers, bottom up: `api` (the driver's functions), `probe` (what devices there are), `context` (one device, bound to the calling
//! thread for each call), `memory`, [`images`] (which kernel image a device is given), `driver` (what the shared
//! [`GpuDevice`] asks of a driver).
//!
//! | variable | meaning |
//! |---|---|
//! | `MHC_CUDA_LIBRARY` | the driver's library, tried alone |
//! | `MHC_NVRTC` | NVIDIA's run-time compiler, asked for devices that no embedded machine code suits |
//! | `MHC_CUDA_IMAGES` | which images are tried, in which order: a list of `cubin`, `nvrtc`, `ptx` |
//! | `MHC_CACHE_DIR`, `MHC_CACHE=0` | where what NVRTC compiles is kept; not at all |

mod api;
mod context;
mod driver;
pub mod images;
mod memory;
pub mod nvrtc;
mod probe;
mod tile;

use std::{
    collections::{
        BTreeMap,
        btree_map::Entry::{Occupied, Vacant},
    },
    sync::{Arc, Mutex, PoisonError},
};

use mhc_core::{Backend, Device, DeviceId, Error, Probe, Result, gpu::GpuDevice};

use crate::{api::Api, driver::CudaDriver};

/// The backend.
#[derive(Clone, Copy, Debug)]
pub struct Cuda;

/// The devices that were opened. They stay open: a primary context lives as long as the process in every framework, and ending it while
/// the process exits would race with the driver's own end.
static DEVICES: Mutex<BTreeMap<u32, Arc<GpuDevice<CudaDriver>>>> = Mutex::new(BTreeMap::new());

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn probe(&self) -> Probe {
        Probe { backend: "cuda", found: probe::find() }
    }

    fn open(&self, ordinal: u32) -> Result<Arc<dyn Device>> {
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        match devices.entry(ordinal) {
            Occupied(device) => Ok(device.get().clone()),
            Vacant(place) => Ok(place.insert(Arc::new(open(ordinal)?)).clone()),
        }
    }
}

fn open(ordinal: u32) -> Result<GpuDevice<CudaDriver>> {
    let probe = Cuda.probe();
    if let (Ok(devices), Ok(api)) = (&probe.found, Api::get())
        && devices.iter().any(|d| d.id.ordinal == ordinal)
    {
        return GpuDevice::new(CudaDriver::new(api, ordinal)?);
    }
    let asked = DeviceId { backend: "cuda", ordinal }.to_string();
    Err(Error::NoBackend { asked, probes: vec![probe] })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// True on every machine: whatever is there, the backend answers in words, and opening what is not there names it.
    #[test]
    fn answers_without_a_driver_or_a_device() {
        let probe = Cuda.probe();
        assert!(probe.to_string().starts_with("cuda: "), "{probe}");
        let error = Cuda.open(99).unwrap_err().to_string();
        assert!(error.contains("no usable device for `cuda:99`"), "{error}");
        assert_eq!(probe.found.is_ok(), probe.found.is_ok_and(|devices| !devices.is_empty()), "no empty list");
    }
}
