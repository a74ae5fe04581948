//! One device's primary context: the one that the CUDA runtime, and so every framework in the process, uses.

use core::{ffi::c_int, ptr};

use mhc_core::{DeviceInfo, Error, RawStream, Result};

use crate::{
    api::{Api, Code, Handle},
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
            // SAFETY: a place for a handle; what is popped was pushed in `bind` by this thread, to which `Bound` keeps as it is not `Send`.
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

    /// Binds the context to this thread.
    #[inline]
    pub fn bind(&self) -> Result<Bound<'_>> {
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

    /// Binds the context, makes a call and checks its code.
    #[inline]
    pub fn call(&self, name: &'static str, f: impl FnOnce(&Api) -> Code) -> Result<()> {
        let _bound = self.bind()?;
        self.api.check(name, f(self.api))
    }

    /// Binds the context and makes a call whose failure nobody can do anything about.
    pub fn release(&self, f: impl FnOnce(&Api) -> Code) {
        if let Ok(_bound) = self.bind() {
            f(self.api);
        }
    }

    /// Binds the context and makes a call that gives a handle.
    pub fn handle(&self, name: &'static str, f: impl FnOnce(&Api, *mut Handle) -> Code) -> Result<Handle> {
        let mut handle = ptr::null_mut();
        self.call(name, |api| f(api, &mut handle))?;
        Ok(handle)
    }

    /// Whether the stream's work is being captured instead of done.
    pub fn is_capturing(&self, s: RawStream) -> Result<bool> {
        let mut status = 0;
        // SAFETY: a place for one int; the stream is the caller's.
        self.call("cuStreamIsCapturing", |api| unsafe { (api.stream_capturing)(stream(s), &mut status) })?;
        Ok(status != 0)
    }

    /// What an allocation that failed is called.
    pub fn allocation_error(&self, bytes: usize, e: Error) -> Error {
        match e {
            Error::Driver { code, .. } if code == Code::OUT_OF_MEMORY.0 => {
                Error::OutOfMemory { device: self.info.id.to_string(), bytes }
            }
            e => e,
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `new`.
        unsafe { (self.api.context_release)(self.device) };
    }
}

/// A stream as the driver takes it.
pub(crate) fn stream(s: RawStream) -> Handle {
    s.0 as Handle
}
