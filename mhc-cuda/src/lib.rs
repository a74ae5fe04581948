//! The CUDA backend: NVIDIA's driver, found at run time. No CUDA toolkit is needed to build or to run.
//!
//! It finds and describes devices. Kernels are not yet implemented, so [`Backend::open`] says so.

pub mod images;
pub mod nvrtc;

use core::ffi::c_int;
use std::sync::Arc;

use cudarc::driver::{
    DriverError, result,
    sys::{self, CUdevice, CUdevice_attribute as Attribute, CUresult},
};
use mhc_core::{Backend, Device, DeviceId, DeviceInfo, Error, Missing, Probe, Result, gpu::GpuCaps};

/// The backend.
#[derive(Clone, Copy, Debug)]
pub struct Cuda;

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn probe(&self) -> Probe {
        Probe { backend: "cuda", found: find() }
    }

    fn open(&self, ordinal: u32) -> Result<Arc<dyn Device>> {
        let probe = self.probe();
        let asked = DeviceId { backend: "cuda", ordinal }.to_string();
        if probe.found.as_ref().is_ok_and(|devices| devices.iter().any(|d| d.id.ordinal == ordinal)) {
            let why = "only detection is implemented for CUDA so far; use `cpu`".into();
            return Err(Error::Unsupported { op: "open", device: asked, why });
        }
        Err(Error::NoBackend { asked, probes: vec![probe] })
    }
}

/// Every function that is called below. cudarc panics where one is missing, so they are looked up first.
const FUNCTIONS: [&str; 8] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuGetErrorName",
];

fn find() -> Result<Vec<DeviceInfo>, Missing> {
    // SAFETY: opening the driver's library runs its initialisers, which is what a program that asks for CUDA wants.
    if !unsafe { sys::is_culib_present() } {
        let tried = ["libcuda.so", "libcuda.so.1", "nvcuda.dll"].map(String::from).to_vec();
        return Err(Missing::Library { tried, hint: "install the NVIDIA driver (no CUDA toolkit is needed)" });
    }
    for symbol in FUNCTIONS {
        // SAFETY: the library is present, as just seen; the address is compared with nothing and never called.
        let found = unsafe { sys::culib().get::<unsafe extern "C" fn()>(symbol.as_bytes()) };
        if found.is_err() {
            return Err(Missing::Symbol { library: "libcuda".into(), symbol: symbol.into() });
        }
    }
    result::init().map_err(missing)?;
    let count = result::device::get_count().map_err(missing)?;
    if count == 0 {
        return Err(Missing::NoDevice { said: "cuDeviceGetCount returned 0".into() });
    }
    (0..count).map(|ordinal| describe(ordinal).map_err(missing)).collect()
}

fn missing(e: DriverError) -> Missing {
    let said = e.error_name().map_or_else(|_| format!("{:?}", e.0), |name| name.to_string_lossy().into_owned());
    match e.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => Missing::NoDevice { said },
        _ => Missing::Driver { said },
    }
}

fn describe(ordinal: c_int) -> Result<DeviceInfo, DriverError> {
    let device = result::device::get(ordinal)?;
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let arch = format!("sm_{major}{minor}");
    let caps = GpuCaps {
        arch: arch.clone(),
        wave: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE)?,
        units: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_per_block: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        max_threads: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
    };
    // SAFETY: `device` came from cuDeviceGet.
    let memory = unsafe { result::device::total_mem(device)? };
    Ok(DeviceInfo {
        id: DeviceId { backend: "cuda", ordinal: ordinal as u32 },
        name: result::device::get_name(device)?,
        arch,
        memory: Some(memory as u64),
        caps: Some(caps),
        notes: vec![("CUDA version of the driver", driver_version()?)],
    })
}

fn attribute(device: CUdevice, attribute: Attribute) -> Result<u32, DriverError> {
    // SAFETY: `device` came from cuDeviceGet.
    Ok(unsafe { result::device::get_attribute(device, attribute)? }.max(0) as u32)
}

/// `12.9`: the newest CUDA that the driver knows.
fn driver_version() -> Result<String, DriverError> {
    let mut version = 0;
    // SAFETY: `version` is a place for one int.
    unsafe { sys::cuDriverGetVersion(&mut version).result()? };
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
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
