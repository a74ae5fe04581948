//! One device, made the current one of the calling thread for each call.

use core::{ffi::c_int, ptr};

use mhc_core::{DeviceInfo, Error, RawStream, Result};

use crate::{
    api::{Api, Code, Handle},
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

    /// Makes the device this thread's.
    #[inline]
    pub fn bind(&self) -> Result<Bound<'_>> {
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

    /// Binds the device, makes a call and checks its code.
    #[inline]
    pub fn call(&self, name: &'static str, f: impl FnOnce(&Api) -> Code) -> Result<()> {
        let _bound = self.bind()?;
        self.api.check(name, f(self.api))
    }

    /// Makes a call that gives something back, whose failure nobody can do anything about. It names its object, so that it is made even
    /// where the device cannot be bound.
    pub fn release(&self, f: impl FnOnce(&Api) -> Code) {
        let _bound = self.bind();
        f(self.api);
    }

    /// Binds the device and makes a call that gives a handle.
    pub fn handle(&self, name: &'static str, f: impl FnOnce(&Api, *mut Handle) -> Code) -> Result<Handle> {
        let mut handle = ptr::null_mut();
        self.call(name, |api| f(api, &mut handle))?;
        Ok(handle)
    }

    /// Whether the stream's work is being captured instead of done.
    pub fn is_capturing(&self, s: RawStream) -> Result<bool> {
        let mut status = 0;
        // SAFETY: a place for one int; the stream is the caller's.
        self.call("hipStreamIsCapturing", |api| unsafe { (api.stream_capturing)(stream(s), &mut status) })?;
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

/// A stream as the runtime takes it.
pub(crate) fn stream(s: RawStream) -> Handle {
    s.0 as Handle
}
