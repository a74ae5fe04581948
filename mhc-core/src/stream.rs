//! Streams: where operators are run and memory comes from.

use core::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{DevPtr, Device, DeviceId, Kernel, Problem, RawStream, Result, View, ViewMut, validate};

/// A queue of a device. Work on one stream is done in order; streams are independent of each other.
///
/// Cheap to clone; clones are the same stream. Holds the scratch memory of the operators run on it, which grows to the largest
/// need and is given back when the last clone is dropped.
#[derive(Clone)]
pub struct Stream(Arc<Inner>);

struct Inner {
    device: Arc<dyn Device>,
    raw: RawStream,
    owned: bool,
    scratch: Mutex<Scratch>,
}

struct Scratch {
    ptr: DevPtr,
    bytes: usize,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let scratch = self.scratch.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: both came from this device in `Stream`, and this is the last clone.
        unsafe {
            if scratch.bytes > 0 {
                self.device.free(scratch.ptr, scratch.bytes, self.raw);
            }
            if self.owned {
                self.device.destroy_stream(self.raw);
            }
        }
    }
}

impl Stream {
    /// A new stream of the device.
    pub fn new(device: Arc<dyn Device>) -> Result<Self> {
        let raw = device.create_stream()?;
        Ok(Self::from_parts(device, raw, true))
    }

    /// A stream made by somebody else, such as a framework's; it is never destroyed from here.
    ///
    /// # Safety
    /// `raw` is a stream of the device's context and outlives every clone of the result.
    pub unsafe fn foreign(device: Arc<dyn Device>, raw: RawStream) -> Self {
        Self::from_parts(device, raw, false)
    }

    fn from_parts(device: Arc<dyn Device>, raw: RawStream, owned: bool) -> Self {
        Self(Arc::new(Inner { device, raw, owned, scratch: Mutex::new(Scratch { ptr: DevPtr::NULL, bytes: 0 }) }))
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.0.device
    }

    /// The device's name.
    pub fn id(&self) -> DeviceId {
        self.0.device.info().id
    }

    /// The driver's name for the stream.
    pub fn raw(&self) -> RawStream {
        self.0.raw
    }

    /// Waits until everything run so far is done.
    pub fn sync(&self) -> Result<()> {
        self.0.device.sync(self.0.raw)
    }

    /// Loads or compiles what the problem needs and makes room for its scratch memory, so that [`run`](Stream::run) with the same
    /// problem neither allocates, waits nor compiles.
    pub fn prepare(&self, p: &Problem) -> Result<Arc<dyn Kernel>> {
        validate::problem(p)?;
        let kernel = self.0.device.kernel(p)?;
        self.reserve(&mut self.scratch(), kernel.workspace())?;
        Ok(kernel)
    }

    /// Checks the operands and runs the operator. `ins` and `outs` hold the operator's inputs, and its outputs and saved tensors, in
    /// the order of its description, without absent slots. On an error nothing has been written.
    pub fn run(&self, p: &Problem, ins: &[View<'_>], outs: &mut [ViewMut<'_>]) -> Result<()> {
        let slots = validate::operands(p, self.id(), ins, outs)?;
        let kernel = self.0.device.kernel(p)?;
        // Held during the launch: two threads on one stream must not interleave a growing scratch with its use.
        let mut scratch = self.scratch();
        self.reserve(&mut scratch, kernel.workspace())?;
        // SAFETY: `operands` has just checked the views for this problem; the scratch has the size asked for and belongs to this
        // stream, on which launches follow each other.
        unsafe { kernel.launch(self.0.raw, &slots, scratch.ptr) }
    }

    fn scratch(&self) -> std::sync::MutexGuard<'_, Scratch> {
        self.0.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(&self, scratch: &mut Scratch, bytes: usize) -> Result<()> {
        if bytes <= scratch.bytes {
            return Ok(());
        }
        let ptr = self.0.device.alloc(bytes, self.0.raw)?;
        if scratch.bytes > 0 {
            // SAFETY: allocated here before; frees follow the stream's order, so launches that use it are done first.
            unsafe { self.0.device.free(scratch.ptr, scratch.bytes, self.0.raw) };
        }
        *scratch = Scratch { ptr, bytes };
        Ok(())
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({}, {:#x})", self.id(), self.0.raw.0)
    }
}
