//! Backends, devices and kernels, as everything above them sees them.

use core::fmt;
use std::sync::Arc;

use crate::{
    DevPtr, DeviceId, Problem, RawView, Result,
    gpu::{GpuCaps, GpuQueue},
};

/// A kind of device: `cpu`, `cuda`, `hip`.
pub trait Backend: Sync {
    /// Its name, as `MHC_DEVICE` wants it.
    fn name(&self) -> &'static str;
    /// What is there and, where nothing is, what was tried and why it failed. Never panics.
    fn probe(&self) -> Probe;
    /// A device. Cheap the second time: devices of one ordinal share their state.
    fn open(&self, ordinal: u32) -> Result<Arc<dyn Device>>;
}

/// What a backend found.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The backend.
    pub backend: &'static str,
    /// Its devices, or what is missing.
    pub found: Result<Vec<DeviceInfo>, Missing>,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Ok(devices) => {
                let list: Vec<_> = devices.iter().map(|d| format!("{} ({})", d.id, d.name)).collect();
                write!(f, "{}: {}", self.backend, list.join(", "))
            }
            Err(missing) => write!(f, "{}: {missing}", self.backend),
        }
    }
}

/// Why a backend has no device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// The crate was built without it.
    NotCompiledIn,
    /// The vendor's library was not found under any of these names.
    Library {
        /// Names and paths, in the order tried.
        tried: Vec<String>,
        /// What would bring it.
        hint: &'static str,
    },
    /// The library lacks a function: it is too old, or not what its name says.
    Symbol {
        /// Library.
        library: String,
        /// Function.
        symbol: String,
    },
    /// The library is there, but no device is.
    NoDevice {
        /// What the driver said.
        said: String,
    },
    /// The driver failed.
    Driver {
        /// What it said.
        said: String,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCompiledIn => f.write_str("not compiled in (enable the feature of this name)"),
            Self::Library { tried, hint } => write!(f, "no driver: none of {} was found; {hint}", tried.join(", ")),
            Self::Symbol { library, symbol } => write!(f, "{library} lacks {symbol}: update the driver"),
            Self::NoDevice { said } => write!(f, "driver found, but no device: {said}"),
            Self::Driver { said } => write!(f, "driver failed: {said}"),
        }
    }
}

/// One device.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// `cpu`, `cuda:0`.
    pub id: DeviceId,
    /// The vendor's name for it.
    pub name: String,
    /// Instruction set: `avx512bf16`, `sm_90`, `gfx942`.
    pub arch: String,
    /// Bytes of memory, where known.
    pub memory: Option<u64>,
    /// What launch plans depend on; `None` for the CPU.
    pub caps: Option<GpuCaps>,
    /// Anything else worth reporting, name and value: driver version, threads.
    pub notes: Vec<(&'static str, String)>,
}

/// Whether a device has a kernel for a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// It has.
    Yes,
    /// It has not, and why.
    No(String),
}

/// A stream (a queue) of a device, as its driver names it. The CPU has one, 0, on which everything is done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RawStream(pub u64);

/// A device: kernels, memory and streams. Use it through [`Stream`](crate::Stream), which checks operands.
pub trait Device: fmt::Debug + Send + Sync {
    /// What it is.
    fn info(&self) -> &DeviceInfo;
    /// Whether there is a kernel for the problem.
    fn support(&self, p: &Problem) -> Support;
    /// The kernel for the problem, compiled or loaded if it was not yet. May allocate, wait and take long; call it before capturing.
    fn kernel(&self, p: &Problem) -> Result<Arc<dyn Kernel>>;
    /// A new stream.
    fn create_stream(&self) -> Result<RawStream>;
    /// Ends a stream.
    ///
    /// # Safety
    /// `s` came from [`create_stream`](Device::create_stream) of this device and is not used again.
    unsafe fn destroy_stream(&self, s: RawStream);
    /// Waits until all work on the stream is done, and reports its failures.
    fn sync(&self, s: RawStream) -> Result<()>;
    /// Memory, aligned to 256 bytes, in the order of the stream; contents are arbitrary. [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn alloc(&self, bytes: usize, s: RawStream) -> Result<DevPtr>;
    /// Gives memory back in the order of the stream.
    ///
    /// # Safety
    /// `p` came from [`alloc`](Device::alloc) of this device with this size, and is not used again.
    unsafe fn free(&self, p: DevPtr, bytes: usize, s: RawStream);
    /// Copies from the host; `src` may be reused on return.
    ///
    /// # Safety
    /// `dst` is memory of this device with room for `src`.
    unsafe fn upload(&self, dst: DevPtr, src: &[u8], s: RawStream) -> Result<()>;
    /// Copies to the host; waits for it.
    ///
    /// # Safety
    /// `src` is memory of this device with at least the bytes of `dst`.
    unsafe fn download(&self, dst: &mut [u8], src: DevPtr, s: RawStream) -> Result<()>;
    /// Asynchronous copies, events and graphs, where the device has them.
    fn queue(&self) -> Option<&dyn GpuQueue> {
        None
    }
}

/// An operator prepared for certain sizes on a device.
pub trait Kernel: fmt::Debug + Send + Sync {
    /// Bytes of scratch that a launch needs.
    fn workspace(&self) -> usize;
    /// Enqueues the work. Does not allocate, wait or compile.
    ///
    /// # Safety
    /// `slots` holds one view per slot of the operator's description, `None` just for absent ones, and they passed
    /// [`validate`](crate::validate::operands) for the problem the kernel was made for; `workspace` is memory of this device
    /// with [`workspace`](Kernel::workspace) bytes that nothing else uses until the stream has passed this launch.
    unsafe fn launch(&self, s: RawStream, slots: &[Option<RawView>], workspace: DevPtr) -> Result<()>;
}
