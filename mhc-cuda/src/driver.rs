//! NVIDIA's driver as the shared GPU device wants it.

use core::{
    ffi::{c_int, c_uint, c_void},
    fmt, mem, ptr,
};
use std::sync::Arc;

use cudarc::driver::sys::{
    CUfunction_attribute as Attribute, CUjit_option as Jit, CUlaunchAttribute, CUlaunchAttributeID as LaunchId,
    CUlaunchConfig,
};
use mhc_core::{
    DType, DevPtr, DeviceInfo, RawStream, RawView, Result,
    gpu::{
        Arg, GpuDriver, GpuQueue, Launch, RawEvent, RawGraph, TileStreams,
        vendor::{Context as _, Function, Handle, Memory, Module, stream},
    },
};

use crate::{
    api::{Api, Code},
    context::Context,
    images,
    memory::{self, Source},
};

/// One device.
pub(crate) struct CudaDriver {
    context: Arc<Context>,
    memory: Memory<Source>,
    /// Ten times the major version of the compute capability plus the minor.
    capability: u32,
}

impl CudaDriver {
    pub fn new(api: &'static Api, ordinal: u32) -> Result<Self> {
        let context = Arc::new(Context::new(api, ordinal)?);
        let capability = context.info.arch.strip_prefix("sm_").and_then(|n| n.parse().ok()).unwrap_or(0);
        Ok(Self { memory: Memory::new(&context, Source::new(&context)?), context, capability })
    }

    fn attributes(&self, l: &Launch) -> Attributes {
        let mut attributes = Attributes::new();
        if l.cluster != [1; 3] {
            attributes.push(LaunchId::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, &l.cluster);
        }
        if l.cooperative {
            attributes.push(LaunchId::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, &[1]);
        }
        if l.overlap && self.capability >= 90 {
            attributes.push(LaunchId::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, &[1]);
        }
        attributes
    }

    fn set(&self, f: Handle, attribute: Attribute, value: c_int) -> Result<()> {
        // SAFETY: a function of a loaded module.
        self.context.call("cuFuncSetAttribute", |api| unsafe { (api.function_set)(f, attribute as c_int, value) })
    }
}

impl fmt::Debug for CudaDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.context.info.id, self.context.info.name)
    }
}

impl CudaDriver {
    /// Loads machine code, or compiles assembly. The error has the compiler's words.
    fn load_image(&self, mut image: Vec<u8>) -> Result<Handle, String> {
        // Ends assembly, and does no harm to machine code.
        image.push(0);
        let mut log = vec![0u8; 4096];
        let mut options = [Jit::CU_JIT_ERROR_LOG_BUFFER as c_int, Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES as c_int];
        let mut values: [Handle; 2] = [log.as_mut_ptr().cast(), log.len() as Handle];
        let loaded = self.context.handle("cuModuleLoadDataEx", |api, module| {
            let (count, options, values) = (options.len() as c_uint, options.as_mut_ptr(), values.as_mut_ptr());
            // SAFETY: a whole image, as images are checked when they are unpacked; options and values of the number and types that the
            // driver's header asks for; all alive to the end of the call.
            unsafe { (api.module_load)(module, image.as_ptr().cast(), count, options, values) }
        });
        loaded.map_err(|e| {
            let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
            format!("{e} {}", String::from_utf8_lossy(&log[..end])).trim_end().to_string()
        })
    }
}

// SAFETY: device memory comes from the driver, which aligns it to 512 bytes; functions belong to their module, which stays loaded until
// it is dropped.
unsafe impl GpuDriver for CudaDriver {
    type Module = Module<Context>;
    type Function = Function;

    fn info(&self) -> &DeviceInfo {
        &self.context.info
    }

    fn load(&self, source: &'static str, dtype: DType) -> Result<Self::Module> {
        let loaded = images::load(source, dtype, self.capability, |found| self.load_image(found.image));
        // SAFETY: loaded just now.
        unsafe { Module::new(&self.context, source, dtype, loaded) }
    }

    fn function(&self, module: &Self::Module, entry: &str) -> Result<Function> {
        // SAFETY: a place for a handle, a loaded module and a zero-terminated name.
        let find = |api: &Api, place, module, name| unsafe { (api.module_function)(place, module, name) };
        let function = module.function(entry, "cuModuleGetFunction", find)?;
        let f = function.0;
        let mut fixed = 0;
        // SAFETY: a place for one int and the function just found.
        self.context.call("cuFuncGetAttribute", |api| unsafe {
            (api.function_attribute)(&mut fixed, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as c_int, f)
        })?;
        // A permission only: what a launch takes is what it asks for.
        let most = self.context.info.caps.as_ref().map_or(0, |c| c.shared_per_block as c_int) - fixed;
        self.set(f, Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most.max(0))?;
        if self.capability >= 90 {
            self.set(f, Attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)?;
        }
        Ok(function)
    }

    fn resident(&self, f: Function, l: &Launch) -> Result<u32> {
        let mut count = 0;
        let size: u32 = l.cluster.iter().product();
        if size > 1 {
            let mut attributes = self.attributes(l);
            let config = config(l, &mut attributes, RawStream(0));
            // SAFETY: a place for one int, a loaded function and a configuration that lives to the end of the call.
            self.context.call("cuOccupancyMaxActiveClusters", |api| unsafe {
                (api.active_clusters)(&mut count, f.0, &config)
            })?;
        } else {
            let threads = l.block.iter().product::<u32>() as c_int;
            // SAFETY: a place for one int and a loaded function.
            self.context.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", |api| unsafe {
                (api.active_blocks)(&mut count, f.0, threads, l.shared as usize)
            })?;
            count *= self.context.info.caps.as_ref().map_or(1, |c| c.units as c_int);
        }
        Ok((count.max(1) as u32).saturating_mul(size))
    }

    fn tensor_map(
        &self,
        view: &RawView,
        tokens: u32,
        channels: u32,
        streams: TileStreams,
    ) -> Result<[u64; Arg::MAP_CELLS]> {
        crate::tile::encode(&self.context, view, tokens, channels, streams)
    }

    unsafe fn launch(&self, f: Function, l: &Launch, s: RawStream, cells: &mut [u64]) -> Result<()> {
        let mut attributes = self.attributes(l);
        let config = config(l, &mut attributes, s);
        let mut parameter: Handle = cells.as_mut_ptr().cast();
        // SAFETY: the configuration and its attributes live to the end of the call; the entry has one parameter, which the cells hold.
        self.context
            .call("cuLaunchKernelEx", |api| unsafe { (api.launch)(&config, f.0, &mut parameter, ptr::null_mut()) })
    }

    fn create_stream(&self) -> Result<RawStream> {
        /// Does not wait for the default stream, nor it for this.
        const NON_BLOCKING: c_uint = 1;
        // SAFETY: a place for a handle.
        let s = self.context.handle("cuStreamCreate", |api, s| unsafe { (api.stream_create)(s, NON_BLOCKING) })?;
        Ok(RawStream(s as u64))
    }

    unsafe fn destroy_stream(&self, s: RawStream) {
        // SAFETY: the caller's promise; the driver ends the stream once its work is done.
        self.context.release(|api| unsafe { (api.stream_destroy)(stream(s)) });
    }

    fn sync(&self, s: RawStream) -> Result<()> {
        // SAFETY: the stream is the caller's.
        self.context.call("cuStreamSynchronize", |api| unsafe { (api.stream_sync)(stream(s)) })
    }

    fn alloc(&self, bytes: usize, s: RawStream) -> Result<DevPtr> {
        self.memory.alloc(bytes, s)
    }

    unsafe fn free(&self, p: DevPtr, s: RawStream) {
        // SAFETY: the caller's promise.
        unsafe { self.memory.free(p, s) }
    }
}

// SAFETY: pinned memory comes from the driver, in whole pages.
unsafe impl GpuQueue for CudaDriver {
    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8> {
        memory::alloc_pinned(&self.context, bytes)
    }

    unsafe fn free_pinned(&self, p: *mut u8) {
        // SAFETY: the caller's promise.
        self.context.release(|api| unsafe { (api.free_host)(p.cast()) });
    }

    unsafe fn upload(&self, dst: DevPtr, src: *const u8, bytes: usize, s: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        self.context.call("cuMemcpyHtoDAsync", |api| unsafe { (api.upload)(dst.0, src.cast(), bytes, stream(s)) })
    }

    unsafe fn download(&self, dst: *mut u8, src: DevPtr, bytes: usize, s: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        self.context.call("cuMemcpyDtoHAsync", |api| unsafe { (api.download)(dst.cast(), src.0, bytes, stream(s)) })
    }

    unsafe fn copy(&self, dst: DevPtr, src: DevPtr, bytes: usize, s: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        self.context.call("cuMemcpyDtoDAsync", |api| unsafe { (api.copy)(dst.0, src.0, bytes, stream(s)) })
    }

    fn create_event(&self) -> Result<RawEvent> {
        // SAFETY: a place for a handle.
        let e = self.context.handle("cuEventCreate", |api, e| unsafe { (api.event_create)(e, 0) })?;
        Ok(RawEvent(e as u64))
    }

    unsafe fn destroy_event(&self, e: RawEvent) {
        // SAFETY: the caller's promise.
        self.context.release(|api| unsafe { (api.event_destroy)(e.0 as Handle) });
    }

    fn record(&self, e: RawEvent, s: RawStream) -> Result<()> {
        // SAFETY: event and stream are the caller's.
        self.context.call("cuEventRecord", |api| unsafe { (api.event_record)(e.0 as Handle, stream(s)) })
    }

    fn wait(&self, s: RawStream, e: RawEvent) -> Result<()> {
        // SAFETY: event and stream are the caller's.
        self.context.call("cuStreamWaitEvent", |api| unsafe { (api.stream_wait)(stream(s), e.0 as Handle, 0) })
    }

    fn elapsed_ms(&self, from: RawEvent, to: RawEvent) -> Result<f32> {
        let mut milliseconds = 0.0;
        for e in [from, to] {
            // SAFETY: the event is the caller's.
            self.context.call("cuEventSynchronize", |api| unsafe { (api.event_sync)(e.0 as Handle) })?;
        }
        // SAFETY: a place for a number; the events are the caller's.
        self.context.call("cuEventElapsedTime", |api| unsafe {
            (api.event_elapsed)(&mut milliseconds, from.0 as Handle, to.0 as Handle)
        })?;
        Ok(milliseconds)
    }

    fn begin_capture(&self, s: RawStream) -> Result<()> {
        /// Other threads may go on allocating and loading.
        const THREAD_LOCAL: c_int = 1;
        // SAFETY: the stream is the caller's.
        self.context.call("cuStreamBeginCapture", |api| unsafe { (api.capture_begin)(stream(s), THREAD_LOCAL) })
    }

    fn end_capture(&self, s: RawStream) -> Result<RawGraph> {
        // SAFETY: a place for a handle; the stream is the caller's.
        let graph = self.context.handle("cuStreamEndCapture", |api, g| unsafe { (api.capture_end)(stream(s), g) })?;
        // SAFETY: a place for a handle, and the graph just captured.
        let ready = self.context.handle("cuGraphInstantiate", |api, g| unsafe { (api.graph_instantiate)(g, graph, 0) });
        // SAFETY: captured above; what was made of it does not need it.
        self.context.release(|api| unsafe { (api.graph_destroy)(graph) });
        Ok(RawGraph(ready? as u64))
    }

    unsafe fn replay(&self, g: RawGraph, s: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        self.context.call("cuGraphLaunch", |api| unsafe { (api.graph_launch)(g.0 as Handle, stream(s)) })
    }

    unsafe fn destroy_graph(&self, g: RawGraph) {
        // SAFETY: the caller's promise; a graph that is being replayed ends when it is done.
        self.context.release(|api| unsafe { (api.graph_exec_destroy)(g.0 as Handle) });
    }
}

fn config(l: &Launch, attributes: &mut Attributes, s: RawStream) -> CUlaunchConfig {
    CUlaunchConfig {
        gridDimX: l.grid[0],
        gridDimY: l.grid[1],
        gridDimZ: l.grid[2],
        blockDimX: l.block[0],
        blockDimY: l.block[1],
        blockDimZ: l.block[2],
        sharedMemBytes: l.shared,
        hStream: stream(s).cast(),
        attrs: attributes.list.as_mut_ptr(),
        numAttrs: attributes.count as c_uint,
    }
}

/// The attributes of one launch, on the stack.
struct Attributes {
    list: [CUlaunchAttribute; 3],
    count: usize,
}

impl Attributes {
    fn new() -> Self {
        // SAFETY: all zeros is the attribute that is ignored, with a value of plain numbers.
        Self { list: unsafe { mem::zeroed() }, count: 0 }
    }

    /// One more; its value begins with these numbers, as every value's structure that is used here does.
    fn push(&mut self, id: LaunchId, value: &[u32]) {
        let attribute = &mut self.list[self.count];
        attribute.id = id;
        let place = ptr::from_mut(&mut attribute.value).cast::<c_void>().cast::<u32>();
        // SAFETY: a value has 64 bytes, of which these are at most 12, and is aligned to 8.
        unsafe { ptr::copy_nonoverlapping(value.as_ptr(), place, value.len()) };
        self.count += 1;
    }
}

const _: () = assert!(size_of::<CUlaunchAttribute>() == 72 && size_of::<Code>() == 4);
