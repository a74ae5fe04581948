//! Events, graphs and pinned memory: what measuring and replaying need.

use core::{
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
};
use std::sync::Arc;

use super::{GpuQueue, RawEvent, RawGraph};
use crate::{DevPtr, Device, Error, Result, Stream, View, ViewMut};

fn queue<'a>(what: &'static str, device: &'a Arc<dyn Device>) -> Result<&'a dyn GpuQueue> {
    device.queue().ok_or_else(|| {
        let why = "it does its work at once, on the caller's thread".into();
        Error::Unsupported { op: what, device: device.info().id.to_string(), why }
    })
}

/// Enqueues a copy of row-major operands of one shape and type, as the driver does it: the fastest way that a device has to read and write
/// as much. May be captured. [`Error::Unsupported`] on the CPU.
pub fn copy(stream: &Stream, from: &View<'_>, to: &mut ViewMut<'_>) -> Result<()> {
    const OP: &str = "copy";
    let (from, to) = (from.raw(), to.raw());
    for (slot, view) in [("from", from), ("to", to)] {
        if view.device != stream.id() {
            let (want, got) = (stream.id().to_string(), view.device.to_string());
            return Err(Error::WrongDevice { op: OP, slot, want, got });
        }
        if !view.layout.is_contiguous() {
            return Err(Error::Layout { op: OP, slot, why: "must be row-major without gaps".into() });
        }
    }
    if from.dtype != to.dtype {
        return Err(Error::DType { op: OP, slot: "to", want: from.dtype, got: to.dtype });
    }
    if from.layout.shape() != to.layout.shape() {
        let (want, got) = (format!("{:?}", from.layout), format!("{:?}", to.layout));
        return Err(Error::Shape { op: OP, slot: "to", want, got });
    }
    let queue = queue(OP, stream.device())?;
    match from.layout.elements() * from.dtype.size() {
        0 => Ok(()),
        // SAFETY: the views are of this device and of as many bytes, without gaps; the one that is written is borrowed exclusively.
        bytes => unsafe { queue.copy(to.ptr, from.ptr, bytes, stream.raw()) },
    }
}

/// A point in the work of a stream, to measure time or to order streams of one device.
pub struct Event {
    device: Arc<dyn Device>,
    raw: RawEvent,
}

impl Event {
    /// An event of the stream's device. [`Error::Unsupported`] on the CPU.
    pub fn new(stream: &Stream) -> Result<Self> {
        let device = stream.device().clone();
        let raw = queue("event", &device)?.create_event()?;
        Ok(Self { device, raw })
    }

    fn queue(&self, stream: &Stream) -> Result<&dyn GpuQueue> {
        let (want, got) = (stream.id(), self.device.info().id);
        if want != got {
            let (want, got) = (want.to_string(), got.to_string());
            return Err(Error::WrongDevice { op: "event", slot: "event", want, got });
        }
        queue("event", &self.device)
    }

    /// Puts the event behind everything run on the stream so far.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.queue(stream)?.record(self.raw, stream.raw())
    }

    /// Lets what is run on the stream from now on wait until the event has passed.
    pub fn hold(&self, stream: &Stream) -> Result<()> {
        self.queue(stream)?.wait(stream.raw(), self.raw)
    }

    /// Milliseconds from `start` to this event; waits until both have passed.
    pub fn elapsed_ms(&self, start: &Event) -> Result<f32> {
        if !Arc::ptr_eq(&self.device, &start.device) && self.device.info().id != start.device.info().id {
            let (want, got) = (self.device.info().id.to_string(), start.device.info().id.to_string());
            return Err(Error::WrongDevice { op: "event", slot: "start", want, got });
        }
        queue("event", &self.device)?.elapsed_ms(start.raw, self.raw)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Some(queue) = self.device.queue() {
            // SAFETY: made in `new` on this device, and nobody can use it any more.
            unsafe { queue.destroy_event(self.raw) };
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({}, {:#x})", self.device.info().id, self.raw.0)
    }
}

/// Work captured once and replayed many times, which costs the host one call instead of one per launch.
pub struct Graph {
    stream: Stream,
    raw: RawGraph,
}

/// Ends a capture that its closure left early.
struct Capture<'a> {
    queue: &'a dyn GpuQueue,
    stream: &'a Stream,
    open: bool,
}

impl Capture<'_> {
    fn end(&mut self) -> Result<RawGraph> {
        self.open = false;
        self.queue.end_capture(self.stream.raw())
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.open
            && let Ok(raw) = self.end()
        {
            // SAFETY: ended just now and known to nobody else.
            unsafe { self.queue.destroy_graph(raw) };
        }
    }
}

impl Graph {
    /// Captures what `f` runs on the stream. Nothing is done yet. Every problem must have been
    /// [prepared](Stream::prepare) on this stream, and `f` must neither allocate nor wait: the driver's error says which call was not
    /// allowed. [`Error::Unsupported`] on the CPU.
    pub fn capture(stream: &Stream, f: impl FnOnce() -> Result<()>) -> Result<Self> {
        let queue = queue("graph", stream.device())?;
        stream.keep_scratch();
        queue.begin_capture(stream.raw())?;
        let mut capture = Capture { queue, stream, open: true };
        f()?;
        Ok(Self { stream: stream.clone(), raw: capture.end()? })
    }

    /// Enqueues the captured work on a stream of the same device.
    ///
    /// # Safety
    /// Every operand that was captured is still alive, at its place, and not used by other work at the same time; nor is the scratch
    /// memory of the stream it was captured on, so `stream` is that one or is ordered against it.
    pub unsafe fn replay(&mut self, stream: &Stream) -> Result<()> {
        let (want, got) = (self.stream.id(), stream.id());
        if want != got {
            let (want, got) = (want.to_string(), got.to_string());
            return Err(Error::WrongDevice { op: "graph", slot: "stream", want, got });
        }
        // SAFETY: addresses by the caller's promise; the exclusive borrow keeps other threads away.
        unsafe { queue("graph", self.stream.device())?.replay(self.raw, stream.raw()) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(queue) = self.stream.device().queue() {
            // SAFETY: made in `capture` on this device, and nobody can use it any more.
            unsafe { queue.destroy_graph(self.raw) };
        }
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({}, {:#x})", self.stream.id(), self.raw.0)
    }
}

/// Host memory that a device copies from and to at full speed: as a slice for [`Tensor::write`](crate::Tensor::write), or without
/// waiting through [`upload`](Pinned::upload) and [`download`](Pinned::download).
pub struct Pinned {
    device: Arc<dyn Device>,
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory that this value owns; the driver's calls may come from any thread.
unsafe impl Send for Pinned {}
// SAFETY: as `Send`; shared references only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Zeroed memory. [`Error::Unsupported`] on the CPU.
    pub fn new(stream: &Stream, len: usize) -> Result<Self> {
        let device = stream.device().clone();
        let ptr = match len {
            0 => NonNull::dangling(),
            _ => NonNull::new(queue("pinned memory", &device)?.alloc_pinned(len)?)
                .ok_or_else(|| Error::OutOfMemory { device: "the host".into(), bytes: len })?,
        };
        // SAFETY: `len` bytes that are ours, or none.
        unsafe { ptr.write_bytes(0, len) };
        Ok(Self { device, ptr, len })
    }

    fn check(&self, stream: &Stream) -> Result<&dyn GpuQueue> {
        let (want, got) = (self.device.info().id, stream.id());
        if want != got {
            let (want, got) = (want.to_string(), got.to_string());
            return Err(Error::WrongDevice { op: "pinned memory", slot: "stream", want, got });
        }
        queue("pinned memory", &self.device)
    }

    /// Enqueues a copy of everything to the device.
    ///
    /// # Safety
    /// `dst` has room, and until the stream has passed the copy this memory is neither written nor dropped.
    pub unsafe fn upload(&self, dst: DevPtr, stream: &Stream) -> Result<()> {
        // SAFETY: `len` bytes are ours; the rest is the caller's promise.
        unsafe { self.check(stream)?.upload(dst, self.ptr.as_ptr(), self.len, stream.raw()) }
    }

    /// Enqueues a copy from the device that overwrites everything.
    ///
    /// # Safety
    /// `src` has as many bytes, and until the stream has passed the copy this memory is not touched, nor dropped.
    pub unsafe fn download(&mut self, src: DevPtr, stream: &Stream) -> Result<()> {
        // SAFETY: `len` bytes are ours; the rest is the caller's promise.
        unsafe { self.check(stream)?.download(self.ptr.as_ptr(), src, self.len, stream.raw()) }
    }
}

impl Deref for Pinned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: initialised in `new`, ours until dropped.
        unsafe { slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `deref`, and the borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.len > 0
            && let Some(queue) = self.device.queue()
        {
            // SAFETY: made in `new` on this device; whoever enqueued a copy promised to keep it until that was done.
            unsafe { queue.free_pinned(self.ptr.as_ptr()) };
        }
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} bytes for {})", self.len, self.device.info().id)
    }
}
