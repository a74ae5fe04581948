//! AMD's runtime as the shared GPU device wants it.

use core::{ffi::c_int, fmt, ptr};
use std::sync::Arc;

use mhc_core::{
    DType, DevPtr, DeviceInfo, Error, RawStream, Result,
    gpu::{
        GpuDriver, GpuQueue, Launch, RawEvent, RawGraph,
        images::Image,
        vendor::{Context as _, Function, Handle, Memory, Module, stream},
    },
};

use crate::{
    api::{Api, constant},
    context::Context,
    images,
    memory::{self, Source},
};

/// One device.
pub(crate) struct HipDriver {
    context: Arc<Context>,
    memory: Memory<Source>,
    images: &'static [Image],
}

impl HipDriver {
    /// A device with the kernels embedded in `images`.
    pub fn new(api: &'static Api, ordinal: u32, images: &'static [Image]) -> Result<Self> {
        let mut context = Context::new(api, ordinal)?;
        let source = Source::new(&context);
        context.info.notes.push(("memory from", source.kind().into()));
        let context = Arc::new(context);
        Ok(Self { memory: Memory::new(&context, source), context, images })
    }

    fn unsupported(&self, what: &str) -> Error {
        let (op, device) = ("launch", self.context.info.id.to_string());
        Error::Unsupported { op, device, why: format!("{what} are not among its launches") }
    }
}

impl fmt::Debug for HipDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.context.info.id, self.context.info.name)
    }
}

// SAFETY: device memory comes from hipMalloc or a pool, which align it to pages and to 256 bytes; functions belong to their module, which
// stays loaded until it is dropped.
unsafe impl GpuDriver for HipDriver {
    type Module = Module<Context>;
    type Function = Function;

    fn info(&self) -> &DeviceInfo {
        &self.context.info
    }

    fn load(&self, source: &'static str, dtype: DType) -> Result<Self::Module> {
        let Context { info, features, version, .. } = &*self.context;
        let gpu = images::Gpu { arch: &info.arch, features, runtime: version };
        let load = |image: &[u8]| {
            // SAFETY: a place for a handle; a whole code object, which was checked, alive to the end of the call.
            let loaded = self
                .context
                .handle("hipModuleLoadData", |api, module| unsafe { (api.module_load)(module, image.as_ptr().cast()) });
            loaded.map_err(|e| e.to_string())
        };
        // SAFETY: loaded by `load`.
        unsafe { Module::new(&self.context, source, dtype, images::load(self.images, source, dtype, gpu, load)) }
    }

    fn function(&self, module: &Self::Module, entry: &str) -> Result<Function> {
        // SAFETY: a place for a handle, a loaded module and a zero-terminated name.
        let find = |api: &Api, place, module, name| unsafe { (api.module_function)(place, module, name) };
        module.function(entry, "hipModuleGetFunction", find)
    }

    fn resident(&self, f: Function, l: &Launch) -> Result<u32> {
        let (mut count, threads) = (0, l.block.iter().product::<u32>() as c_int);
        // SAFETY: a place for one int and a loaded function.
        self.context.call("hipModuleOccupancyMaxActiveBlocksPerMultiprocessor", |api| unsafe {
            (api.active_blocks)(&mut count, f.0, threads, l.shared as usize)
        })?;
        let units = self.context.info.caps.as_ref().map_or(1, |c| c.units);
        Ok((count.max(1) as u32).saturating_mul(units))
    }

    unsafe fn launch(&self, f: Function, l: &Launch, s: RawStream, cells: &mut [u64]) -> Result<()> {
        if l.cluster != [1; 3] {
            return Err(self.unsupported("clusters of blocks"));
        }
        if l.cooperative {
            return Err(self.unsupported("blocks that wait for each other"));
        }
        let ([gx, gy, gz], [bx, by, bz]) = (l.grid, l.block);
        let mut parameter: Handle = cells.as_mut_ptr().cast();
        // SAFETY: the entry has one parameter, which the cells hold; it is copied during the call.
        self.context.call("hipModuleLaunchKernel", |api| unsafe {
            (api.launch)(f.0, gx, gy, gz, bx, by, bz, l.shared, stream(s), &mut parameter, ptr::null_mut())
        })
    }

    fn create_stream(&self) -> Result<RawStream> {
        // SAFETY: a place for a handle.
        let s = self
            .context
            .handle("hipStreamCreateWithFlags", |api, s| unsafe { (api.stream_create)(s, constant::NON_BLOCKING) })?;
        self.memory.source.begin(RawStream(s as u64));
        Ok(RawStream(s as u64))
    }

    unsafe fn destroy_stream(&self, s: RawStream) {
        self.memory.source.end_stream(&self.context, s);
        // SAFETY: the caller's promise; the runtime ends the stream once its work is done.
        self.context.release(|api| unsafe { (api.stream_destroy)(stream(s)) });
    }

    fn sync(&self, s: RawStream) -> Result<()> {
        // SAFETY: the stream is the caller's.
        self.context.call("hipStreamSynchronize", |api| unsafe { (api.stream_sync)(stream(s)) })
    }

    fn alloc(&self, bytes: usize, s: RawStream) -> Result<DevPtr> {
        self.memory.alloc(bytes, s)
    }

    unsafe fn free(&self, p: DevPtr, s: RawStream) {
        // SAFETY: the caller's promise.
        unsafe { self.memory.free(p, s) }
    }
}

// SAFETY: pinned memory comes from the runtime, in whole pages.
unsafe impl GpuQueue for HipDriver {
    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8> {
        memory::alloc_pinned(&self.context, bytes)
    }

    unsafe fn free_pinned(&self, p: *mut u8) {
        // SAFETY: the caller's promise.
        self.context.release(|api| unsafe { (api.free_host)(p.cast()) });
    }

    unsafe fn upload(&self, dst: DevPtr, src: *const u8, bytes: usize, s: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        self.context
            .call("hipMemcpyHtoDAsync", |api| unsafe { (api.upload)(dst.0 as Handle, src.cast(), bytes, stream(s)) })
    }

    unsafe fn download(&self, dst: *mut u8, src: DevPtr, bytes: usize, s: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        self.context
            .call("hipMemcpyDtoHAsync", |api| unsafe { (api.download)(dst.cast(), src.0 as Handle, bytes, stream(s)) })
    }

    unsafe fn copy(&self, dst: DevPtr, src: DevPtr, bytes: usize, s: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        self.context
            .call("hipMemcpyDtoDAsync", |api| unsafe { (api.copy)(dst.0 as Handle, src.0 as Handle, bytes, stream(s)) })
    }

    fn create_event(&self) -> Result<RawEvent> {
        // SAFETY: a place for a handle.
        let e = self.context.handle("hipEventCreateWithFlags", |api, e| unsafe { (api.event_create)(e, 0) })?;
        Ok(RawEvent(e as u64))
    }

    unsafe fn destroy_event(&self, e: RawEvent) {
        // SAFETY: the caller's promise.
        self.context.release(|api| unsafe { (api.event_destroy)(e.0 as Handle) });
    }

    fn record(&self, e: RawEvent, s: RawStream) -> Result<()> {
        // SAFETY: event and stream are the caller's.
        self.context.call("hipEventRecord", |api| unsafe { (api.event_record)(e.0 as Handle, stream(s)) })
    }

    fn wait(&self, s: RawStream, e: RawEvent) -> Result<()> {
        // SAFETY: event and stream are the caller's.
        self.context.call("hipStreamWaitEvent", |api| unsafe { (api.stream_wait)(stream(s), e.0 as Handle, 0) })
    }

    fn elapsed_ms(&self, from: RawEvent, to: RawEvent) -> Result<f32> {
        let mut milliseconds = 0.0;
        for e in [from, to] {
            // SAFETY: the event is the caller's.
            self.context.call("hipEventSynchronize", |api| unsafe { (api.event_sync)(e.0 as Handle) })?;
        }
        // SAFETY: a place for a number; the events are the caller's.
        self.context.call("hipEventElapsedTime", |api| unsafe {
            (api.event_elapsed)(&mut milliseconds, from.0 as Handle, to.0 as Handle)
        })?;
        Ok(milliseconds)
    }

    fn begin_capture(&self, s: RawStream) -> Result<()> {
        // SAFETY: the stream is the caller's.
        self.context
            .call("hipStreamBeginCapture", |api| unsafe { (api.capture_begin)(stream(s), constant::THREAD_LOCAL) })
    }

    fn end_capture(&self, s: RawStream) -> Result<RawGraph> {
        // SAFETY: a place for a handle; the stream is the caller's.
        let graph = self.context.handle("hipStreamEndCapture", |api, g| unsafe { (api.capture_end)(stream(s), g) })?;
        // SAFETY: a place for a handle, and the graph just captured.
        let ready = self
            .context
            .handle("hipGraphInstantiateWithFlags", |api, g| unsafe { (api.graph_instantiate)(g, graph, 0) });
        // SAFETY: captured above; what was made of it does not need it.
        self.context.release(|api| unsafe { (api.graph_destroy)(graph) });
        Ok(RawGraph(ready? as u64))
    }

    unsafe fn replay(&self, g: RawGraph, s: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        self.context.call("hipGraphLaunch", |api| unsafe { (api.graph_launch)(g.0 as Handle, stream(s)) })
    }

    unsafe fn destroy_graph(&self, g: RawGraph) {
        // SAFETY: the caller's promise; a graph that is being replayed ends when it is done.
        self.context.release(|api| unsafe { (api.graph_exec_destroy)(g.0 as Handle) });
    }
}
