//! One device's primary context: the one that the CUDA runtime, and so every framework in the process, uses.

use core::{ffi::c_int, ptr};

use mhc_core::{
    DeviceInfo, RawStream, Result,
    gpu::vendor::{self, Handle, stream},
};

use crate::{
    api::{Api, Code},
    probe,
};

/// The context, retained while this lives.
pub(crate) struct Context {
    pub api: &'static Api,
    pub info: DeviceInfo,
    pub device: c_int,
    handle: Handle,
}

// SAFETY: the handle is a name that the driver takes from any thread.
unsafe impl Send for Context {}
// SAFETY: as `Send`.
unsafe impl Sync for Context {}

/// While it lives, calls of this thread go to the context. Then the thread has the one again that it had, because a framework's idea of
/// the current device is the current context.
pub(crate) struct Bound<'a> {
    pushed: Option<&'a Api>,
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if let Some(api) = self.pushed {
            let mut popped = ptr::null_mut();
            // SAFETY: a place for a handle; what is popped was pushed in `bind` by this thread, as every `Bound` ends in the call that it was
            // made for.
            unsafe { (api.context_pop)(&mut popped) };
        }
    }
}

impl Context {
    pub fn new(api: &'static Api, ordinal: u32) -> Result<Self> {
        let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let device = probe::device(api, ordinal)?;
        let info = probe::describe(api, ordinal)?;
        let mut handle = ptr::null_mut();
        // SAFETY: a place for a handle; released when dropped.
        api.check("cuDevicePrimaryCtxRetain", unsafe { (api.context_retain)(&mut handle, device) })?;
        Ok(Self { api, info, device, handle })
    }
}

impl vendor::Context for Context {
    type Api = Api;
    type Code = Code;
    type Bound<'a> = Bound<'a>;
    const OUT_OF_MEMORY: i32 = Code::OUT_OF_MEMORY.0;

    fn api(&self) -> &Api {
        self.api
    }

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    #[inline]
    fn bind(&self) -> Result<Bound<'_>> {
        let mut current = ptr::null_mut();
        // SAFETY: a place for a handle.
        self.api.check("cuCtxGetCurrent", unsafe { (self.api.context_current)(&mut current) })?;
        if current == self.handle {
            return Ok(Bound { pushed: None });
        }
        // SAFETY: the context is retained while `self` lives, which `Bound` borrows.
        self.api.check("cuCtxPushCurrent", unsafe { (self.api.context_push)(self.handle) })?;
        Ok(Bound { pushed: Some(self.api) })
    }

    #[inline]
    fn check(&self, call: &'static str, code: Code) -> Result<()> {
        self.api.check(call, code)
    }

    fn release(&self, f: impl FnOnce(&Api) -> Code) {
        if let Ok(_bound) = self.bind() {
            f(self.api);
        }
    }

    fn is_capturing(&self, s: RawStream) -> Result<bool> {
        let mut status = 0;
        // SAFETY: a place for one int; the stream is the caller's.
        self.call("cuStreamIsCapturing", |api| unsafe { (api.stream_capturing)(stream(s), &mut status) })?;
        Ok(status != 0)
    }

    unsafe fn unload(&self, module: Handle) {
        // SAFETY: the caller's promise.
        self.release(|api| unsafe { (api.module_unload)(module) });
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `new`.
        unsafe { (self.api.context_release)(self.device) };
    }
}
