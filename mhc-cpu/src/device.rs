//! The device: host memory, one stream, kernels from [`ops`](crate::ops).

use std::{
    alloc,
    sync::{Arc, OnceLock},
};

use mhc_core::{
    AnyOp, Backend, DevPtr, Device, DeviceId, DeviceInfo, Error, Kernel, Missing, Probe, Problem, RawStream, RawView,
    Result, Support,
};

use crate::{call::Call, ops, simd::Level};

/// The backend: one device, always there.
#[derive(Clone, Copy, Debug)]
pub struct Cpu;

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn probe(&self) -> Probe {
        Probe { backend: "cpu", found: Ok(vec![default_device().0.info.clone()]) }
    }

    fn open(&self, ordinal: u32) -> Result<Arc<dyn Device>> {
        if ordinal == 0 {
            return Ok(Arc::new(default_device().clone()));
        }
        let said = "the host is one device: use `cpu`".into();
        let probes = vec![Probe { backend: "cpu", found: Err(Missing::NoDevice { said }) }];
        Err(Error::NoBackend { asked: format!("cpu:{ordinal}"), probes })
    }
}

fn default_device() -> &'static CpuDevice {
    static DEVICE: OnceLock<CpuDevice> = OnceLock::new();
    DEVICE.get_or_init(|| CpuDevice::build(None, Level::available()[0]))
}

/// The host as a device. Launches run at once, on rayon's threads; results do not depend on how many there are.
#[derive(Clone, Debug)]
pub struct CpuDevice(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    info: DeviceInfo,
    level: Level,
    pool: Option<rayon::ThreadPool>,
}

impl CpuDevice {
    /// A device with threads of its own and a certain instruction set, for tests and for hosts that are shared.
    /// [`Error::Attribute`] if the level is not available here, [`Error::Driver`] if the threads cannot be started.
    pub fn with(threads: usize, level: Level) -> Result<Self> {
        if !Level::available().contains(&level) {
            let got = level.name().into();
            return Err(Error::Attribute { op: "cpu", attr: "level", want: "an instruction set of this machine", got });
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool =
            pool.map_err(|e| Error::Driver { call: "ThreadPoolBuilder::build", code: 0, name: e.to_string() })?;
        Ok(Self::build(Some(pool), level))
    }

    fn build(pool: Option<rayon::ThreadPool>, level: Level) -> Self {
        let threads = pool.as_ref().map_or_else(rayon::current_num_threads, |p| p.current_num_threads());
        let info = DeviceInfo {
            id: DeviceId::CPU,
            name: format!("{} threads, {}", threads, level.name()),
            arch: level.name().into(),
            memory: None,
            caps: None,
            notes: vec![("threads", threads.to_string()), ("instruction set", level.name().into())],
        };
        Self(Arc::new(Inner { info, level, pool }))
    }
}

impl Device for CpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    fn support(&self, _: &Problem) -> Support {
        Support::Yes
    }

    fn kernel(&self, p: &Problem) -> Result<Arc<dyn Kernel>> {
        let workspace = ops::workspace(p);
        Ok(Arc::new(CpuKernel { device: self.clone(), problem: p.clone(), workspace }))
    }

    fn create_stream(&self) -> Result<RawStream> {
        Ok(RawStream(0))
    }

    unsafe fn destroy_stream(&self, _: RawStream) {}

    fn sync(&self, _: RawStream) -> Result<()> {
        Ok(())
    }

    fn alloc(&self, bytes: usize, _: RawStream) -> Result<DevPtr> {
        let out_of_memory = || Error::OutOfMemory { device: "cpu".into(), bytes };
        let layout = layout(bytes).ok_or_else(out_of_memory)?;
        // SAFETY: the layout's size is at least 1.
        let p = unsafe { alloc::alloc(layout) };
        if p.is_null() {
            return Err(out_of_memory());
        }
        if bytes >= LARGE {
            // SAFETY: just allocated, with this size.
            unsafe { ask_for_huge_pages(p, layout.size()) };
        }
        Ok(DevPtr(p as u64))
    }

    unsafe fn free(&self, p: DevPtr, bytes: usize, _: RawStream) {
        if let Some(layout) = layout(bytes) {
            // SAFETY: `alloc` made it with the same layout.
            unsafe { alloc::dealloc(p.0 as *mut u8, layout) };
        }
    }

    unsafe fn upload(&self, dst: DevPtr, src: &[u8], _: RawStream) -> Result<()> {
        // SAFETY: the caller's promise; `src` is host memory that the device memory does not overlap.
        unsafe { core::ptr::copy_nonoverlapping(src.as_ptr(), dst.0 as *mut u8, src.len()) };
        Ok(())
    }

    unsafe fn download(&self, dst: &mut [u8], src: DevPtr, _: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { core::ptr::copy_nonoverlapping(src.0 as *const u8, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }
}

/// Bytes of a huge page, where the system has them.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes from which memory is asked for in huge pages: too many to be wasted on a few rounded up.
const LARGE: usize = 4 * HUGE_PAGE;

fn layout(bytes: usize) -> Option<alloc::Layout> {
    let align = if bytes >= LARGE { HUGE_PAGE } else { 256 };
    alloc::Layout::from_size_align(bytes.max(1), align).ok()
}

/// Kernels take rows of x from places that are pages apart, and with 4 KB pages wait for the translation of their addresses: at T = 2048,
/// n = 4, C = 2048, 2 threads of a busy Xeon, medians in turns, `pre` in bf16 took 4.6 ms and takes 4.2, `pre_bwd` in f32 20.8 and 18.1.
/// An advice, which the system may leave.
///
/// # Safety
/// `bytes` bytes from `p` on are the caller's allocation.
unsafe fn ask_for_huge_pages(p: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        unsafe extern "C" {
            fn madvise(p: *mut core::ffi::c_void, bytes: usize, advice: core::ffi::c_int) -> core::ffi::c_int;
        }
        /// `MADV_HUGEPAGE`.
        const HUGE: core::ffi::c_int = 14;
        // SAFETY: the C library's function, which std links; the range is the caller's, and the advice changes no contents.
        unsafe { madvise(p.cast(), bytes, HUGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (p, bytes);
}

#[derive(Debug)]
struct CpuKernel {
    device: CpuDevice,
    problem: Problem,
    workspace: usize,
}

impl Kernel for CpuKernel {
    fn workspace(&self) -> usize {
        self.workspace
    }

    unsafe fn launch(&self, _: RawStream, slots: &[Option<RawView>], workspace: DevPtr) -> Result<()> {
        let Problem { op, dims, act } = &self.problem;
        let inner = &*self.device.0;
        let threads = inner.pool.as_ref().map_or_else(rayon::current_num_threads, |p| p.current_num_threads());
        let call = Call {
            d: *dims,
            act: *act,
            desc: op.desc(),
            slots,
            scratch: workspace.0 as *mut u8,
            level: inner.level,
            threads,
        };
        // SAFETY: the views were validated for this problem, and the scratch has the size that `ops::workspace` stated.
        let run = |op: &AnyOp| unsafe { ops::launch(op, &call) };
        match &inner.pool {
            Some(pool) if threads > 1 => pool.install(|| run(op)),
            _ => run(op),
        }
        Ok(())
    }
}
