//! What devices the runtime has.

use core::ffi::{CStr, c_int};

use mhc_core::{DeviceId, DeviceInfo, Missing, gpu::GpuCaps};

use crate::api::{Api, Code, attribute};

/// Larger than the property structure of any version; the runtime writes what it knows.
const PROPERTIES_BYTES: usize = 16 << 10;

pub(crate) fn devices(hip: &Api) -> Result<Vec<DeviceInfo>, Missing> {
    // SAFETY: takes flags, which must be 0.
    match unsafe { (hip.init)(0) } {
        Code::SUCCESS | Code::INVALID_DEVICE => {}
        code => return Err(missing(hip, "hipInit", code)),
    }
    let mut count = 0;
    // SAFETY: `count` is a place for one int.
    check(hip, "hipGetDeviceCount", unsafe { (hip.device_count)(&mut count) })?;
    if count == 0 {
        return Err(Missing::NoDevice { said: "hipGetDeviceCount returned 0".into() });
    }
    (0..count).map(|ordinal| describe(hip, ordinal)).collect()
}

fn describe(hip: &Api, ordinal: c_int) -> Result<DeviceInfo, Missing> {
    let full = arch(hip, ordinal)?;
    let arch = full.split(':').next().unwrap_or(&full).to_owned();
    let caps = GpuCaps {
        arch: arch.clone(),
        wave: value(hip, attribute::WARP_SIZE, ordinal)?,
        units: value(hip, attribute::MULTIPROCESSOR_COUNT, ordinal)?,
        shared_per_block: value(hip, attribute::MAX_SHARED_MEMORY_PER_BLOCK, ordinal)?,
        max_threads: value(hip, attribute::MAX_THREADS_PER_BLOCK, ordinal)?,
        tuned: Vec::new(),
    };
    let mut memory = 0;
    // SAFETY: `memory` is a place for one size, and the ordinal is in range.
    check(hip, "hipDeviceTotalMem", unsafe { (hip.total_memory)(&mut memory, ordinal) })?;
    Ok(DeviceInfo {
        id: DeviceId { backend: "hip", ordinal: ordinal as u32 },
        name: name(hip, ordinal)?,
        arch,
        memory: Some(memory as u64),
        caps: Some(caps),
        notes: vec![("features", full), ("HIP runtime", version(hip)?), ("library", hip.path.clone())],
    })
}

fn name(hip: &Api, ordinal: c_int) -> Result<String, Missing> {
    let mut name = [0u8; 256];
    // SAFETY: the buffer has the length that is passed.
    let code = unsafe { (hip.device_name)(name.as_mut_ptr().cast(), name.len() as c_int, ordinal) };
    check(hip, "hipDeviceGetName", code)?;
    Ok(text(&name))
}

/// `gfx942:sramecc+:xnack-`. There is no attribute for it: it is read out of the property structure, at the place that all versions share.
fn arch(hip: &Api, ordinal: c_int) -> Result<String, Missing> {
    let (properties, at) = hip.properties;
    // The structure holds 64-bit members.
    let mut buffer = vec![0u64; PROPERTIES_BYTES / 8];
    // SAFETY: the buffer is aligned for the structure and several times larger.
    check(hip, "hipGetDeviceProperties", unsafe { properties(buffer.as_mut_ptr().cast(), ordinal) })?;
    let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).skip(at).take(256).collect();
    let arch = text(&bytes);
    if arch.starts_with("gfx") {
        return Ok(arch);
    }
    Err(Missing::Driver { said: format!("hipGetDeviceProperties named an architecture {arch:?}, not gfx…") })
}

fn value(hip: &Api, attribute: c_int, ordinal: c_int) -> Result<u32, Missing> {
    let mut value = 0;
    // SAFETY: `value` is a place for one int.
    check(hip, "hipDeviceGetAttribute", unsafe { (hip.device_attribute)(&mut value, attribute, ordinal) })?;
    Ok(value.max(0) as u32)
}

/// `7.2.53211`.
fn version(hip: &Api) -> Result<String, Missing> {
    let mut v = 0;
    // SAFETY: `v` is a place for one int.
    check(hip, "hipRuntimeGetVersion", unsafe { (hip.runtime_version)(&mut v) })?;
    Ok(format!("{}.{}.{}", v / 10_000_000, v / 100_000 % 100, v % 100_000))
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned())
}

fn check(hip: &Api, call: &str, code: Code) -> Result<(), Missing> {
    if code == Code::SUCCESS { Ok(()) } else { Err(missing(hip, call, code)) }
}

fn missing(hip: &Api, call: &str, code: Code) -> Missing {
    let said = format!("{call} said {}", hip.name(code));
    match code {
        Code::NO_DEVICE | Code::INVALID_DEVICE => Missing::NoDevice { said },
        _ => Missing::Driver { said },
    }
}
