//! Device memory in the order of streams.

use core::{
    ffi::{c_int, c_uint, c_void},
    ptr,
};

use cudarc::driver::sys::{CUdevice_attribute as Attribute, CUmemPool_attribute};
use mhc_core::{
    DevPtr, RawStream, Result,
    gpu::vendor::{self, Context as _, Handle, Source as _, stream},
};

use crate::{context::Context, probe};

/// Where device memory comes from: a pool of this library's own, so that its settings are nobody else's. Freed memory stays in the pool for
/// the next allocation, and goes back to the device when an allocation fails and when the pool ends. Without pools (some virtual GPUs),
/// memory is allocated and freed at once, after waiting for the stream.
pub(crate) struct Source(Option<Handle>);

// SAFETY: the handle is a name that the driver takes from any thread.
unsafe impl Send for Source {}
// SAFETY: as `Send`.
unsafe impl Sync for Source {}

/// `CUmemPoolProps`, whose last fields cudarc names differently from version to version.
#[repr(C)]
pub(crate) struct PoolProperties {
    /// 1: pinned to its device.
    allocation: c_int,
    handles: c_int,
    /// 1: a device.
    location: c_int,
    device: c_int,
    security: *mut c_void,
    most: usize,
    reserved: [u8; 56],
}

const _: () = assert!(size_of::<PoolProperties>() == size_of::<cudarc::driver::sys::CUmemPoolProps>());

impl Source {
    pub fn new(context: &Context) -> Result<Self> {
        if probe::attribute(context.api, context.device, Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
            return Ok(Self(None));
        }
        let properties = PoolProperties {
            allocation: 1,
            handles: 0,
            location: 1,
            device: context.device,
            security: ptr::null_mut(),
            most: 0,
            reserved: [0; 56],
        };
        // SAFETY: a place for a handle, and properties that live to the end of the call.
        let pool = context.handle("cuMemPoolCreate", |api, pool| unsafe { (api.pool_create)(pool, &properties) })?;
        let source = Self(Some(pool));
        let mut keep = u64::MAX;
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as c_int;
        // SAFETY: the attribute is a 64-bit number.
        let set = context.call("cuMemPoolSetAttribute", |api| unsafe {
            (api.pool_set)(pool, attribute, ptr::from_mut(&mut keep).cast())
        });
        if let Err(e) = set {
            source.end(context);
            return Err(e);
        }
        Ok(source)
    }
}

impl vendor::Source for Source {
    type Context = Context;

    fn alloc(&self, context: &Context, bytes: usize, s: RawStream) -> Result<DevPtr> {
        let mut address = 0;
        let done = match self.0 {
            // SAFETY: a place for an address; the pool is this value's and the stream the caller's.
            Some(pool) => context.call("cuMemAllocFromPoolAsync", |api| unsafe {
                (api.pool_alloc)(&mut address, bytes, pool, stream(s))
            }),
            // SAFETY: a place for an address.
            None => context.call("cuMemAlloc", |api| unsafe { (api.alloc)(&mut address, bytes) }),
        };
        done.map_err(|e| context.allocation_error(context.info.id, bytes, e))?;
        Ok(DevPtr(address))
    }

    fn trim(&self, context: &Context, s: RawStream) -> Result<()> {
        let Some(pool) = self.0 else { return Ok(()) };
        // Frees count once their stream has passed them.
        // SAFETY: the stream is the caller's, the pool this value's.
        context.call("cuStreamSynchronize", |api| unsafe { (api.stream_sync)(stream(s)) })?;
        // SAFETY: as above.
        context.call("cuMemPoolTrimTo", |api| unsafe { (api.pool_trim)(pool, 0) })
    }

    unsafe fn free(&self, context: &Context, p: DevPtr, s: RawStream) {
        context.release(|api| {
            // SAFETY: allocated from the pool, or without one; used no longer, or only by work before this in the stream.
            unsafe {
                if self.0.is_some() {
                    return (api.free_async)(p.0, stream(s));
                }
                (api.stream_sync)(stream(s));
                (api.free)(p.0)
            }
        });
    }

    fn end(&self, context: &Context) {
        if let Some(pool) = self.0 {
            // SAFETY: made in `new` and ended once; the driver keeps it until the last allocation is freed.
            context.release(|api| unsafe { (api.pool_destroy)(pool) });
        }
    }
}

/// Pinned host memory.
pub(crate) fn alloc_pinned(context: &Context, bytes: usize) -> Result<*mut u8> {
    /// Pinned for every device of the process.
    const PORTABLE: c_uint = 1;
    // SAFETY: a place for an address.
    let memory = context.handle("cuMemHostAlloc", |api, p| unsafe { (api.alloc_host)(p, bytes, PORTABLE) });
    memory.map(|p| p.cast()).map_err(|e| context.allocation_error("the host", bytes, e))
}
