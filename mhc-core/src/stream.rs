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

#[derive(Default)]
struct Scratch {
    ptr: DevPtr,
    bytes: usize,
    /// Whether a graph was captured, which uses the memory as it was then.
    captured: bool,
    /// Outgrown, but still used by graphs.
    outgrown: Vec<(DevPtr, usize)>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let scratch = self.scratch.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: both came from this device in `Stream`, and this is the last clone.
        unsafe {
            if scratch.bytes > 0 {
                scratch.outgrown.push((scratch.ptr, scratch.bytes));
            }
            for &(ptr, bytes) in &scratch.outgrown {
                self.device.free(ptr, bytes, self.raw);
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
        Self(Arc::new(Inner { device, raw, owned, scratch: Mutex::default() }))
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
    /// problem neither allocates, waits nor compiles. But for the first call on a GPU whose rows do not lie at multiples of 16 bytes: what
    /// such operands want is loaded then.
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
        let old = (core::mem::replace(&mut scratch.ptr, ptr), core::mem::replace(&mut scratch.bytes, bytes));
        match old {
            (_, 0) => {}
            old if scratch.captured => scratch.outgrown.push(old),
            // SAFETY: allocated here before; frees follow the stream's order, so launches that use it are done first.
            (ptr, bytes) => unsafe { self.0.device.free(ptr, bytes, self.0.raw) },
        }
        Ok(())
    }

    /// From now on scratch memory that has been outgrown stays until the last clone is dropped, as a graph may use it.
    pub(crate) fn keep_scratch(&self) {
        self.scratch().captured = true;
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({}, {:#x})", self.id(), self.0.raw.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{GpuDevice, fake::Fake};

    #[test]
    fn scratch_grows_and_stays_where_a_graph_may_use_it() {
        let fake = Fake::new();
        let stream = Stream::new(Arc::new(GpuDevice::new(fake.clone()).unwrap())).unwrap();
        let alive = || fake.state().alive.iter().filter(|(kind, _)| *kind == "memory").count();
        let grow = |bytes| stream.reserve(&mut stream.scratch(), bytes).unwrap();
        for bytes in [0, 10, 5, 10, 20] {
            grow(bytes);
        }
        assert_eq!((fake.count("alloc"), alive()), (2, 1), "10 bytes were given back for 20");
        stream.keep_scratch();
        grow(30);
        grow(40);
        assert_eq!(alive(), 3, "a graph may use those of 20 and 30 bytes");
        drop(stream);
        assert!(fake.state().alive.is_empty());
    }
}
