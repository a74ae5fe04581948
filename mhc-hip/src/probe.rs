//! What devices the runtime has.

use core::ffi::{CStr, c_int};

use mhc_core::{DeviceId, DeviceInfo, Error, Missing, Result, gpu::GpuCaps};

use crate::{
    api::{Api, Code, attribute as number},
    images,
};

/// Larger than the property structure of any version; the runtime writes what it knows.
const PROPERTIES_BYTES: usize = 16 << 10;

/// Every device, or why there is none.
pub(crate) fn find(hip: &Api) -> Result<Vec<DeviceInfo>, Missing> {
    // SAFETY: takes flags, which must be 0.
    hip.check("hipInit", unsafe { (hip.init)(0) }).map_err(missing)?;
    let mut count = 0;
    // SAFETY: `count` is a place for one int.
    hip.check("hipGetDeviceCount", unsafe { (hip.device_count)(&mut count) }).map_err(missing)?;
    if count == 0 {
        return Err(Missing::NoDevice { said: "hipGetDeviceCount gave 0 (is HIP_VISIBLE_DEVICES empty?)".into() });
    }
    (0..count).map(|ordinal| describe(hip, ordinal).map_err(missing)).collect()
}

/// No device is not the same as a driver that fails.
fn missing(e: Error) -> Missing {
    let said = e.to_string();
    match e {
        Error::Driver { code, .. } if [Code::NO_DEVICE.0, Code::INVALID_DEVICE.0].contains(&code) => {
            Missing::NoDevice { said }
        }
        _ => Missing::Driver { said },
    }
}

/// Everything worth knowing about a device.
pub(crate) fn describe(hip: &Api, ordinal: c_int) -> Result<DeviceInfo> {
    let full = features(hip, ordinal)?;
    let arch = arch(&full);
    let value = |a| attribute(hip, ordinal, a);
    let caps = GpuCaps {
        arch: arch.into(),
        wave: images::wave(arch),
        units: value(number::MULTIPROCESSOR_COUNT)?,
        shared_per_block: value(number::MAX_SHARED_MEMORY_PER_BLOCK)?,
        max_threads: value(number::MAX_THREADS_PER_BLOCK)?,
        tuned: images::tuned(arch),
    };
    let mut memory = 0;
    // SAFETY: `memory` is a place for one size, and the ordinal is in range.
    hip.check("hipDeviceTotalMem", unsafe { (hip.total_memory)(&mut memory, ordinal) })?;
    let version = version(hip)?;
    Ok(DeviceInfo {
        id: DeviceId { backend: "hip", ordinal: ordinal as u32 },
        // Boards that nobody has named yet are called by what they are.
        name: Some(name(hip, ordinal)?).filter(|n| !n.is_empty()).unwrap_or_else(|| format!("AMD {arch}")),
        arch: arch.into(),
        memory: Some(memory as u64),
        caps: Some(caps),
        notes: vec![("features", full), ("HIP runtime", version), ("library", hip.path.clone())],
    })
}

fn name(hip: &Api, ordinal: c_int) -> Result<String> {
    let mut name = [0u8; 256];
    // SAFETY: the buffer has the length that is passed.
    let code = unsafe { (hip.device_name)(name.as_mut_ptr().cast(), name.len() as c_int, ordinal) };
    hip.check("hipDeviceGetName", code)?;
    Ok(text(&name))
}

/// The architecture without its features.
pub(crate) fn arch(features: &str) -> &str {
    features.split(':').next().unwrap_or(features)
}

/// `gfx942:sramecc+:xnack-`. There is no attribute for it: it is read out of the property structure, at the place that all versions share.
pub(crate) fn features(hip: &Api, ordinal: c_int) -> Result<String> {
    let (properties, at) = hip.properties;
    // The structure holds 64-bit members.
    let mut buffer = vec![0u64; PROPERTIES_BYTES / 8];
    // SAFETY: the buffer is aligned for the structure and several times larger.
    hip.check("hipGetDeviceProperties", unsafe { properties(buffer.as_mut_ptr().cast(), ordinal) })?;
    let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).skip(at).take(256).collect();
    let features = text(&bytes);
    if features.starts_with("gfx") {
        return Ok(features);
    }
    let name = format!("an architecture {features:?} instead of gfx…");
    Err(Error::Driver { call: "hipGetDeviceProperties", code: 0, name })
}

/// A number that describes a device.
pub(crate) fn attribute(hip: &Api, ordinal: c_int, attribute: c_int) -> Result<u32> {
    let mut value = 0;
    // SAFETY: `value` is a place for one int.
    hip.check("hipDeviceGetAttribute", unsafe { (hip.device_attribute)(&mut value, attribute, ordinal) })?;
    Ok(value.max(0) as u32)
}

/// `7.2.53211`.
pub(crate) fn version(hip: &Api) -> Result<String> {
    let mut v = 0;
    // SAFETY: `v` is a place for one int.
    hip.check("hipRuntimeGetVersion", unsafe { (hip.runtime_version)(&mut v) })?;
    Ok(format!("{}.{}.{}", v / 10_000_000, v / 100_000 % 100, v % 100_000))
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned())
}
