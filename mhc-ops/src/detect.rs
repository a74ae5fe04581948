//! Which devices there are, and which one to use.

use core::fmt;
use std::{env, sync::Arc};

use mhc_core::{Backend, Device, DeviceInfo, Error, Probe, Result};

/// The environment variable that chooses the device: `cpu`, `cuda`, `cuda:1`, `hip:0`.
pub const DEVICE_VARIABLE: &str = "MHC_DEVICE";

/// Every backend, the ones to be preferred first. One that is not compiled in is there too, and says so when probed.
pub fn backends() -> [&'static dyn Backend; 3] {
    [
        #[cfg(feature = "cuda")]
        &mhc_cuda::Cuda,
        #[cfg(not(feature = "cuda"))]
        &left_out::LeftOut("cuda"),
        #[cfg(feature = "hip")]
        &mhc_hip::Hip,
        #[cfg(not(feature = "hip"))]
        &left_out::LeftOut("hip"),
        &mhc_cpu::Cpu,
    ]
}

/// Every device that was found, the ones to be preferred first. [`Report`] tells why others were not.
pub fn devices() -> Vec<DeviceInfo> {
    backends().iter().filter_map(|b| b.probe().found.ok()).flatten().collect()
}

/// The device that `MHC_DEVICE` names, or else the first that can be opened: CUDA, HIP, the CPU.
///
/// A device that was asked for by name is never replaced by another one: [`Error::NoBackend`] if it is not there,
/// [`Error::Attribute`] if the name is none.
pub fn best() -> Result<Arc<dyn Device>> {
    choose(env::var(DEVICE_VARIABLE).ok().as_deref())
}

/// [`best`], with the value of the variable given.
fn choose(variable: Option<&str>) -> Result<Arc<dyn Device>> {
    if let Some(name) = variable.filter(|v| !v.trim().is_empty()) {
        return open_from("MHC_DEVICE", name);
    }
    let mut probes = Vec::new();
    for backend in backends() {
        let probe = backend.probe();
        for device in probe.found.iter().flatten() {
            if let Ok(device) = backend.open(device.id.ordinal) {
                return Ok(device);
            }
        }
        probes.push(probe);
    }
    Err(Error::NoBackend { asked: "any device".into(), probes })
}

/// The device of this name: `cpu`, `cuda:0`, `hip:1`; without a number, the backend's first.
///
/// [`Error::Attribute`] if it is no name of a device, [`Error::NoBackend`] if there is no such device.
pub fn open(name: &str) -> Result<Arc<dyn Device>> {
    open_from("open", name)
}

fn open_from(op: &'static str, name: &str) -> Result<Arc<dyn Device>> {
    let wrong = || Error::Attribute {
        op,
        attr: "device",
        want: "`cpu`, `cuda`, `cuda:N`, `hip` or `hip:N`",
        got: format!("`{name}`"),
    };
    let (backend, ordinal) = parse(name).ok_or_else(wrong)?;
    let backend = backends().into_iter().find(|b| b.name() == backend).ok_or_else(wrong)?;
    backend.open(ordinal)
}

/// `hip:1` as its two parts.
fn parse(name: &str) -> Option<(&str, u32)> {
    let name = name.trim();
    let Some((backend, ordinal)) = name.split_once(':') else { return Some((name, 0)) };
    // `parse` alone would take `+1`.
    let digits = !ordinal.is_empty() && ordinal.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| ordinal.parse().ok()).flatten().map(|ordinal| (backend, ordinal))
}

/// What was probed, and for every backend why it is or is not usable. Prints as a few lines for people; its fields are for programs.
///
/// ```
/// println!("{}", mhc_ops::Report::new());
/// ```
#[derive(Clone, Debug)]
pub struct Report {
    /// One per backend, the ones to be preferred first.
    pub backends: Vec<BackendReport>,
    /// The value of `MHC_DEVICE`, if it is set.
    pub variable: Option<String>,
    /// The device that [`best`] gives, or why it gives none.
    pub best: Result<String, String>,
}

/// One backend in a [`Report`].
#[derive(Clone, Debug)]
pub struct BackendReport {
    /// What it found, or what is missing.
    pub probe: Probe,
    /// For every device found, whether it can be opened, and if not why.
    pub devices: Vec<(DeviceInfo, Result<(), String>)>,
}

impl Report {
    /// Probes every backend and opens every device. Takes about 0.1 s where there is a GPU.
    pub fn new() -> Self {
        let variable = env::var(DEVICE_VARIABLE).ok();
        let best = choose(variable.as_deref()).map(|d| d.info().id.to_string()).map_err(|e| e.to_string());
        Self { backends: backends().map(BackendReport::new).into(), variable, best }
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

impl BackendReport {
    fn new(backend: &dyn Backend) -> Self {
        let probe = backend.probe();
        let open = |info: &DeviceInfo| {
            let opened = backend.open(info.id.ordinal).map(drop).map_err(|e| e.to_string());
            (info.clone(), opened)
        };
        let devices = probe.found.iter().flatten().map(open).collect();
        Self { probe, devices }
    }

    /// Whether any of its devices can be used.
    pub fn usable(&self) -> bool {
        self.devices.iter().any(|(_, opened)| opened.is_ok())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for backend in &self.backends {
            write!(f, "{backend}")?;
        }
        let variable = self.variable.as_ref().map_or("not set".into(), |v| format!("`{v}`"));
        match &self.best {
            Ok(best) => write!(f, "best: {best} (MHC_DEVICE is {variable})"),
            Err(why) => write!(f, "best: none (MHC_DEVICE is {variable}): {why}"),
        }
    }
}

impl fmt::Display for BackendReport {
    /// One line per device, or one that says what is missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.probe.found.is_err() {
            return writeln!(f, "{}", self.probe);
        }
        for (info, opened) in &self.devices {
            write!(f, "{}: {}, {}", info.id, info.name, info.arch)?;
            if let Some(bytes) = info.memory {
                write!(f, ", {:.1} GiB", bytes as f64 / (1u64 << 30) as f64)?;
            }
            for (name, value) in &info.notes {
                write!(f, ", {name} {value}")?;
            }
            match opened {
                Ok(()) => writeln!(f, ": usable")?,
                Err(why) => writeln!(f, ": not usable: {why}")?,
            }
        }
        Ok(())
    }
}

#[cfg(any(not(feature = "cuda"), not(feature = "hip")))]
mod left_out {
    use std::sync::Arc;

    use mhc_core::{Backend, Device, Error, Missing, Probe, Result};

    /// A backend that this build does not have.
    pub(super) struct LeftOut(pub &'static str);

    impl Backend for LeftOut {
        fn name(&self) -> &'static str {
            self.0
        }

        fn probe(&self) -> Probe {
            Probe { backend: self.0, found: Err(Missing::NotCompiledIn) }
        }

        fn open(&self, ordinal: u32) -> Result<Arc<dyn Device>> {
            Err(Error::NoBackend { asked: format!("{}:{ordinal}", self.0), probes: vec![self.probe()] })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        assert_eq!(parse("cpu"), Some(("cpu", 0)));
        assert_eq!(parse(" cuda:3 "), Some(("cuda", 3)));
        assert_eq!(parse("hip"), Some(("hip", 0)));
        for wrong in ["cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda:0:0", "hip:4294967296"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_wrong_name_says_where_it_came_from_and_what_is_valid() {
        for wrong in ["gpu", "cuda:x", "rocm:0", "CPU"] {
            let error = choose(Some(wrong)).unwrap_err().to_string();
            assert!(error.starts_with("MHC_DEVICE: "), "{error}");
            assert!(error.contains("`cuda:N`") && error.contains(&format!("`{wrong}`")), "{error}");
            assert!(open(wrong).unwrap_err().to_string().starts_with("open: "));
        }
    }

    #[test]
    fn a_device_that_is_named_is_never_replaced() {
        assert_eq!(choose(Some("cpu")).unwrap().info().id, mhc_core::DeviceId::CPU);
        for name in ["cuda:97", "hip:97", "cpu:1"] {
            let error = choose(Some(name)).unwrap_err();
            assert!(matches!(&error, Error::NoBackend { asked, .. } if asked == name), "{error}");
        }
    }

    #[test]
    fn without_a_name_some_device_is_found() {
        for unset in [None, Some(""), Some("  ")] {
            choose(unset).unwrap();
        }
        assert!(devices().iter().any(|d| d.id == mhc_core::DeviceId::CPU));
    }

    #[test]
    fn the_report_names_every_backend() {
        let report = Report::new();
        let text = report.to_string();
        for name in ["cuda", "hip", "cpu", "best: "] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{text}");
        }
        assert!(report.backends.iter().any(|b| b.probe.backend == "cpu" && b.usable()));
    }
}
