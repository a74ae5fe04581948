//! Device memory in the order of streams.

use core::{
    ffi::{c_int, c_void},
    ptr,
};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mhc_core::{
    DevPtr, Error, RawStream, Result,
    gpu::vendor::{self, Context as _, Handle, stream},
};

use crate::{
    api::{Code, attribute, constant},
    blocks::{self, Blocks},
    context::Context,
    probe,
};

/// Where device memory comes from.
pub(crate) enum Source {
    /// A pool of this library's own, so that its settings are nobody else's. Freed memory stays in it, and goes back to the device when
    /// an allocation fails and when the pool ends.
    Pool(Handle),
    /// Where the runtime has no pools, or has them in name only: blocks from hipMalloc, kept as the pool would.
    Blocks(Mutex<Blocks>),
}

// SAFETY: the handle is a name that the runtime takes from any thread.
unsafe impl Send for Source {}
// SAFETY: as `Send`.
unsafe impl Sync for Source {}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `hipMemPoolProps`. Its last 64 bytes are reserved, which newer versions say more of.
#[repr(C)]
pub(crate) struct PoolProperties {
    pub allocation: c_int,
    handles: c_int,
    pub location: c_int,
    pub device: c_int,
    security: *mut c_void,
    reserved: [u8; 64],
}

impl Source {
    pub fn new(context: &Context) -> Self {
        match pool(context) {
            Ok(Some(pool)) => Source::Pool(pool),
            // A runtime whose pools do not work is one without.
            Ok(None) | Err(_) => Source::Blocks(Mutex::default()),
        }
    }

    /// Where memory comes from, for reports.
    pub fn kind(&self) -> &'static str {
        match self {
            Source::Pool(_) => "hipMallocFromPoolAsync",
            Source::Blocks(_) => "hipMalloc",
        }
    }

    /// A stream of this library begins.
    pub fn begin(&self, s: RawStream) {
        if let Source::Blocks(blocks) = self {
            lock(blocks).begin(s);
        }
    }

    /// A stream of this library is about to end.
    pub fn end_stream(&self, context: &Context, s: RawStream) {
        if let Source::Blocks(blocks) = self {
            // SAFETY: the stream is the caller's.
            context.release(|api| unsafe { (api.stream_sync)(stream(s)) });
            lock(blocks).end(s);
        }
    }
}

impl vendor::Source for Source {
    type Context = Context;

    fn alloc(&self, context: &Context, bytes: usize, s: RawStream) -> Result<DevPtr> {
        let failed = |e| context.allocation_error(context.info.id, bytes, e);
        match self {
            Source::Pool(pool) => {
                // SAFETY: a place for an address; the pool is this value's and the stream the caller's.
                let p = context
                    .handle("hipMallocFromPoolAsync", |api, p| unsafe { (api.pool_alloc)(p, bytes, *pool, stream(s)) });
                Ok(DevPtr(p.map_err(failed)? as u64))
            }
            Source::Blocks(blocks) => {
                let none = || Error::OutOfMemory { device: context.info.id.to_string(), bytes };
                let size = blocks::size(bytes).ok_or_else(none)?;
                if let Some(p) = lock(blocks).take(size, s) {
                    return Ok(p);
                }
                // SAFETY: a place for an address.
                let p = context.handle("hipMalloc", |api, p| unsafe { (api.alloc)(p, size) }).map_err(failed)?;
                lock(blocks).add(DevPtr(p as u64), size);
                Ok(DevPtr(p as u64))
            }
        }
    }

    fn trim(&self, context: &Context, s: RawStream) -> Result<()> {
        match self {
            Source::Pool(pool) => {
                // Frees count once their stream has passed them.
                // SAFETY: the stream is the caller's, the pool this value's.
                context.call("hipStreamSynchronize", |api| unsafe { (api.stream_sync)(stream(s)) })?;
                // SAFETY: as above.
                context.call("hipMemPoolTrimTo", |api| unsafe { (api.pool_trim)(*pool, 0) })
            }
            Source::Blocks(blocks) => {
                let free = lock(blocks).drain();
                // SAFETY: allocated from the device and used by nobody; hipFree waits for the work that is left on them.
                free.into_iter().for_each(|p| context.release(|api| unsafe { (api.free)(p.0 as Handle) }));
                Ok(())
            }
        }
    }

    unsafe fn free(&self, context: &Context, p: DevPtr, s: RawStream) {
        match self {
            // SAFETY: allocated from the pool; used no longer, or only by work before this in the stream.
            Source::Pool(_) => context.release(|api| unsafe { (api.free_async)(p.0 as Handle, stream(s)) }),
            Source::Blocks(blocks) => {
                let keeps = lock(blocks).keeps(s);
                if !keeps {
                    // SAFETY: the stream is the caller's.
                    context.release(|api| unsafe { (api.stream_sync)(stream(s)) });
                }
                lock(blocks).give(p, keeps.then_some(s));
            }
        }
    }

    fn end(&self, context: &Context) {
        match self {
            // SAFETY: made in `new` and ended once; the runtime keeps it until the last allocation is freed.
            Source::Pool(pool) => context.release(|api| unsafe { (api.pool_destroy)(*pool) }),
            Source::Blocks(_) => {
                let _ = self.trim(context, RawStream(0));
            }
        }
    }
}

/// A pool that was seen to work, or `None` where the device says that it has none.
fn pool(context: &Context) -> Result<Option<Handle>> {
    if probe::attribute(context.api, context.device, attribute::MEMORY_POOLS_SUPPORTED)? == 0 {
        return Ok(None);
    }
    let properties = PoolProperties {
        allocation: constant::PINNED,
        handles: 0,
        location: constant::ON_DEVICE,
        device: context.device,
        security: ptr::null_mut(),
        reserved: [0; 64],
    };
    // SAFETY: a place for a handle, and properties that live to the end of the call.
    let pool = context.handle("hipMemPoolCreate", |api, pool| unsafe { (api.pool_create)(pool, &properties) })?;
    match try_out(context, pool) {
        Ok(()) => Ok(Some(pool)),
        Err(e) => {
            // SAFETY: made above, and nobody has it.
            context.release(|api| unsafe { (api.pool_destroy)(pool) });
            Err(e)
        }
    }
}

/// Lets the pool keep what is freed, and allocates from it once: some runtimes have pools that never give anything.
fn try_out(context: &Context, pool: Handle) -> Result<()> {
    let mut keep = u64::MAX;
    let attribute = constant::RELEASE_THRESHOLD;
    // SAFETY: the attribute is a 64-bit number.
    context.call("hipMemPoolSetAttribute", |api| unsafe {
        (api.pool_set)(pool, attribute, ptr::from_mut(&mut keep).cast())
    })?;
    // SAFETY: a place for an address, on the default stream.
    let p = context
        .handle("hipMallocFromPoolAsync", |api, p| unsafe { (api.pool_alloc)(p, 256, pool, ptr::null_mut()) })?;
    let mut freed = Code::SUCCESS;
    // Whatever fails, so that nothing is left behind.
    context.release(|api| {
        // SAFETY: allocated above and not used.
        freed = unsafe { (api.free_async)(p, ptr::null_mut()) };
        freed
    });
    context.api.check("hipFreeAsync", freed)
}

/// Pinned host memory.
pub(crate) fn alloc_pinned(context: &Context, bytes: usize) -> Result<*mut u8> {
    // SAFETY: a place for an address.
    let memory = context.handle("hipHostMalloc", |api, p| unsafe { (api.alloc_host)(p, bytes, constant::PORTABLE) });
    memory.map(|p| p.cast()).map_err(|e| context.allocation_error("the host", bytes, e))
}
