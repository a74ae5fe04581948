//! One device, made the current one of the calling thread for each call.

use core::ffi::c_int;

use mhc_core::{
    DeviceInfo, RawStream, Result,
    gpu::vendor::{self, Handle, stream},
};

use crate::{
    api::{Api, Code},
    probe,
};

/// A device and the runtime that has it. The runtime keeps its state of the device, which frameworks in the process share, to the end of
/// the process.
pub(crate) struct Context {
    pub api: &'static Api,
    pub info: DeviceInfo,
    pub device: c_int,
    /// The architecture with its features: `gfx942:sramecc+:xnack-`.
    pub features: String,
    /// The runtime's version: `7.2.53211`.
    pub version: String,
}

/// While it lives, calls of this thread go to the device. Then the thread has the one again that it had, because a framework's idea of
/// the current device is the runtime's.
pub(crate) struct Bound<'a> {
    before: Option<(&'a Api, c_int)>,
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if let Some((api, device)) = self.before {
            // SAFETY: takes no address.
            unsafe { (api.set_device)(device) };
        }
    }
}

impl Context {
    pub fn new(api: &'static Api, ordinal: u32) -> Result<Self> {
        let device = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let info = probe::describe(api, device)?;
        Ok(Self { features: probe::features(api, device)?, version: probe::version(api)?, api, info, device })
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
        let mut current = 0;
        // SAFETY: a place for one int.
        self.api.check("hipGetDevice", unsafe { (self.api.current_device)(&mut current) })?;
        if current == self.device {
            return Ok(Bound { before: None });
        }
        // SAFETY: takes no address.
        self.api.check("hipSetDevice", unsafe { (self.api.set_device)(self.device) })?;
        Ok(Bound { before: Some((self.api, current)) })
    }

    #[inline]
    fn check(&self, call: &'static str, code: Code) -> Result<()> {
        self.api.check(call, code)
    }

    /// The call names its object, so that it is made even where the device cannot be bound.
    fn release(&self, f: impl FnOnce(&Api) -> Code) {
        let _bound = self.bind();
        f(self.api);
    }

    fn is_capturing(&self, s: RawStream) -> Result<bool> {
        let mut status = 0;
        // SAFETY: a place for one int; the stream is the caller's.
        self.call("hipStreamIsCapturing", |api| unsafe { (api.stream_capturing)(stream(s), &mut status) })?;
        Ok(status != 0)
    }

    unsafe fn unload(&self, module: Handle) {
        // SAFETY: the caller's promise.
        self.release(|api| unsafe { (api.module_unload)(module) });
    }
}
