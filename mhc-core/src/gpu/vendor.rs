//! What the drivers of both vendors do in the same way: calls to one device, the images loaded on it, and memory that cannot be freed yet.

use core::{
    ffi::{c_char, c_void},
    fmt,
    mem::take,
    ptr,
};
use std::{
    ffi::CString,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{DType, DevPtr, DeviceInfo, Error, RawStream, Result};

/// What a vendor's library calls its objects by.
pub type Handle = *mut c_void;

/// A stream as a vendor's library takes it.
pub fn stream(s: RawStream) -> Handle {
    s.0 as Handle
}

/// One device, as a vendor's library is called for it.
pub trait Context: Send + Sync + 'static {
    /// The library's functions.
    type Api;
    /// What they return.
    type Code;
    /// While it lives, calls of this thread go to the device.
    type Bound<'a>;
    /// The number of the code for memory that is not there.
    const OUT_OF_MEMORY: i32;

    /// The library.
    fn api(&self) -> &Self::Api;
    /// The device.
    fn info(&self) -> &DeviceInfo;
    /// Makes the device this thread's.
    fn bind(&self) -> Result<Self::Bound<'_>>;
    /// [`Error::Driver`] if the code is not success.
    fn check(&self, call: &'static str, code: Self::Code) -> Result<()>;
    /// Makes a call that gives something back, whose failure nobody can do anything about.
    fn release(&self, f: impl FnOnce(&Self::Api) -> Self::Code);
    /// Whether the stream's work is being captured instead of done.
    fn is_capturing(&self, s: RawStream) -> Result<bool>;
    /// Unloads an image.
    ///
    /// # Safety
    /// `module` was loaded on this device, and neither it nor a function of it is used again.
    unsafe fn unload(&self, module: Handle);

    /// Binds the device, makes a call and checks its code.
    #[inline]
    fn call(&self, name: &'static str, f: impl FnOnce(&Self::Api) -> Self::Code) -> Result<()> {
        let _bound = self.bind()?;
        self.check(name, f(self.api()))
    }

    /// Binds the device and makes a call that gives a handle.
    fn handle(&self, name: &'static str, f: impl FnOnce(&Self::Api, *mut Handle) -> Self::Code) -> Result<Handle> {
        let mut handle = ptr::null_mut();
        self.call(name, |api| f(api, &mut handle))?;
        Ok(handle)
    }

    /// What an allocation of `device`'s memory that failed is called.
    fn allocation_error(&self, device: impl fmt::Display, bytes: usize, e: Error) -> Error {
        match e {
            Error::Driver { code, .. } if code == Self::OUT_OF_MEMORY => {
                Error::OutOfMemory { device: device.to_string(), bytes }
            }
            e => e,
        }
    }
}

/// A loaded image; unloaded when dropped.
pub struct Module<C: Context> {
    context: Arc<C>,
    handle: Handle,
    /// What was loaded, for messages.
    name: String,
}

// SAFETY: the handle is a name that the library takes from any thread.
unsafe impl<C: Context> Send for Module<C> {}
// SAFETY: as `Send`.
unsafe impl<C: Context> Sync for Module<C> {}

impl<C: Context> Drop for Module<C> {
    fn drop(&mut self) {
        // SAFETY: loaded on this device as `new`'s caller promised; who has functions of it has dropped them.
        unsafe { self.context.unload(self.handle) };
    }
}

impl<C: Context> fmt::Debug for Module<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// An entry point of a module.
#[derive(Clone, Copy, Debug)]
pub struct Function(pub Handle);

// SAFETY: the handle is a name that the library takes from any thread.
unsafe impl Send for Function {}
// SAFETY: as `Send`.
unsafe impl Sync for Function {}

impl<C: Context> Module<C> {
    /// What was loaded of a source with its name, or what was tried.
    ///
    /// # Safety
    /// The handle is a module's of this device, which nobody else unloads.
    pub unsafe fn new(
        context: &Arc<C>,
        source: &str,
        dtype: DType,
        loaded: Result<(Handle, String), String>,
    ) -> Result<Self> {
        let (handle, name) = loaded.map_err(|log| error(context, format!("{source} for {dtype}"), log))?;
        Ok(Self { context: context.clone(), handle, name })
    }

    /// An entry point, by the library's function that puts the one of a name in the module into a place.
    pub fn function(
        &self,
        entry: &str,
        call: &'static str,
        find: impl FnOnce(&C::Api, *mut Handle, Handle, *const c_char) -> C::Code,
    ) -> Result<Function> {
        let missing = |log| error(&self.context, entry.into(), log);
        let name = CString::new(entry).map_err(|e| missing(e.to_string()))?;
        let found = self.context.handle(call, |api, place| find(api, place, self.handle, name.as_ptr()));
        found.map(Function).map_err(|e| missing(format!("{e} ({})", self.name)))
    }
}

fn error(context: &Arc<impl Context>, entry: String, log: String) -> Error {
    Error::Compile { entry, arch: context.info().arch.clone(), log }
}

/// Where device memory comes from.
pub trait Source: Send + Sync {
    /// The device.
    type Context: Context;

    /// Allocates in the order of the stream.
    fn alloc(&self, context: &Self::Context, bytes: usize, s: RawStream) -> Result<DevPtr>;
    /// Gives back to the device what is free, so that an allocation that failed can be tried again.
    fn trim(&self, context: &Self::Context, s: RawStream) -> Result<()>;
    /// Frees in the order of the stream.
    ///
    /// # Safety
    /// `p` came from [`alloc`](Source::alloc) and is not used again.
    unsafe fn free(&self, context: &Self::Context, p: DevPtr, s: RawStream);
    /// Gives everything back to the device. Called once, last.
    fn end(&self, context: &Self::Context);
}

/// Device memory in the order of streams, whether or not their work is being captured.
pub struct Memory<S: Source> {
    context: Arc<S::Context>,
    /// Where it comes from.
    pub source: S,
    /// Freed while their stream was captured, which does not allow it; freed for good later.
    late: Mutex<Vec<DevPtr>>,
}

impl<S: Source> Memory<S> {
    /// Memory of a device.
    pub fn new(context: &Arc<S::Context>, source: S) -> Self {
        Self { context: context.clone(), source, late: Mutex::default() }
    }

    /// Allocates; once more after giving back what is free.
    pub fn alloc(&self, bytes: usize, s: RawStream) -> Result<DevPtr> {
        let Self { context, source, .. } = self;
        if context.is_capturing(s)? {
            let name = "the stream is being captured: prepare the operators and allocate before".into();
            return Err(Error::Driver { call: "alloc", code: 0, name });
        }
        self.free_late(s);
        let first = source.alloc(context, bytes, s);
        let Err(Error::OutOfMemory { .. }) = first else { return first };
        source.trim(context, s)?;
        source.alloc(context, bytes, s)
    }

    /// Frees in the order of the stream.
    ///
    /// # Safety
    /// `p` came from [`alloc`](Memory::alloc) and is not used again.
    pub unsafe fn free(&self, p: DevPtr, s: RawStream) {
        if self.context.is_capturing(s).unwrap_or(false) {
            self.late().push(p);
            return;
        }
        self.free_late(s);
        // SAFETY: the caller's promise.
        unsafe { self.source.free(&self.context, p, s) };
    }

    fn late(&self) -> MutexGuard<'_, Vec<DevPtr>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees what could not be freed during a capture.
    fn free_late(&self, s: RawStream) {
        let late = take(&mut *self.late());
        for p in late {
            // SAFETY: from `free`, whose caller promised; what a capture was given is not used before it is replayed.
            unsafe { self.source.free(&self.context, p, s) };
        }
    }
}

impl<S: Source> Drop for Memory<S> {
    fn drop(&mut self) {
        self.free_late(RawStream(0));
        self.source.end(&self.context);
    }
}
