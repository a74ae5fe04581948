//! What devices there are.

use core::ffi::c_int;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use mhc_core::{DeviceId, DeviceInfo, Missing, Result, gpu::GpuCaps};

use crate::{
    api::{Api, decimal},
    images,
};

/// Every device, or why there is none.
pub(crate) fn find() -> Result<Vec<DeviceInfo>, Missing> {
    let api = Api::get()?;
    let mut count = 0;
    // SAFETY: a place for one int.
    let code = unsafe { (api.device_count)(&mut count) };
    api.check("cuDeviceGetCount", code).map_err(|e| Missing::Driver { said: e.to_string() })?;
    if count == 0 {
        return Err(Missing::NoDevice { said: "cuDeviceGetCount gave 0 (is CUDA_VISIBLE_DEVICES empty?)".into() });
    }
    (0..count).map(|ordinal| describe(api, ordinal).map_err(|e| Missing::Driver { said: e.to_string() })).collect()
}

/// The driver's number for a device.
pub(crate) fn device(api: &Api, ordinal: c_int) -> Result<c_int> {
    let mut device = 0;
    // SAFETY: a place for one int.
    api.check("cuDeviceGet", unsafe { (api.device_get)(&mut device, ordinal) })?;
    Ok(device)
}

/// A number that describes a device.
pub(crate) fn attribute(api: &Api, device: c_int, attribute: Attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: a place for one int.
    let code = unsafe { (api.device_attribute)(&mut value, attribute as c_int, device) };
    api.check("cuDeviceGetAttribute", code)?;
    Ok(value.max(0) as u32)
}

/// Everything worth knowing about a device.
pub(crate) fn describe(api: &Api, ordinal: c_int) -> Result<DeviceInfo> {
    let device = device(api, ordinal)?;
    let number = |a| attribute(api, device, a);
    let major = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let arch = format!("sm_{major}{minor}");
    let caps = GpuCaps {
        arch: arch.clone(),
        wave: number(Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE)?,
        units: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_per_block: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        max_threads: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        tuned: images::tuned(10 * major + minor),
    };
    let mut memory = 0;
    // SAFETY: a place for one size.
    api.check("cuDeviceTotalMem", unsafe { (api.device_memory)(&mut memory, device) })?;
    let l2 = number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
    Ok(DeviceInfo {
        id: DeviceId { backend: "cuda", ordinal: ordinal as u32 },
        name: name(api, device)?,
        arch,
        memory: Some(memory as u64),
        caps: Some(caps),
        notes: vec![("CUDA version of the driver", decimal(api.version()?)), ("L2 cache bytes", l2.to_string())],
    })
}

fn name(api: &Api, device: c_int) -> Result<String> {
    let mut bytes = [0u8; 256];
    // SAFETY: room for as many bytes as is said.
    let code = unsafe { (api.device_name)(bytes.as_mut_ptr().cast(), bytes.len() as c_int, device) };
    api.check("cuDeviceGetName", code)?;
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}
