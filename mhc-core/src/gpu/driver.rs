//! What a vendor's driver must do for [`GpuDevice`](super::GpuDevice). Everything else is shared.

use core::fmt;

use super::{Arg, Launch, TileStreams};
use crate::{DType, DevPtr, DeviceInfo, Error, RawStream, RawView, Result};

/// A point in the work of a stream, as the driver names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RawEvent(pub u64);

/// Captured work that can be replayed, as the driver names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RawGraph(pub u64);

/// One device of a vendor's driver.
///
/// Every call may come from any thread, and binds the device to that thread by itself. Every failure is an
/// [`Error`](crate::Error) with the driver's function, code and name; nothing panics.
///
/// # Safety
/// Memory from [`alloc`](GpuDriver::alloc) is aligned to 256 bytes and is the caller's alone until it is freed; a loaded function stays
/// good while its module lives.
pub unsafe trait GpuDriver: GpuQueue + 'static {
    /// A loaded image; unloaded when dropped.
    type Module: fmt::Debug + Send + Sync;
    /// An entry point of a module.
    type Function: Copy + fmt::Debug + Send + Sync;

    /// What the device is. `caps` is there.
    fn info(&self) -> &DeviceInfo;

    /// Loads the image with a [`Source`](super::Source)'s entries of one element type that suits the device best.
    /// [`Error::Compile`](crate::Error::Compile) with everything that was tried where there is none.
    fn load(&self, source: &'static str, dtype: DType) -> Result<Self::Module>;
    /// An entry point, ready for launches with as much dynamic shared memory as the device can give.
    fn function(&self, module: &Self::Module, entry: &str) -> Result<Self::Function>;
    /// Enqueues a launch. Copies `cells`, which are the bytes of the entry point's one parameter, a struct.
    ///
    /// # Safety
    /// The parameter is no larger than `cells`, `f` is from a module that is loaded, and every address among the cells is good for what
    /// the kernel does with it.
    unsafe fn launch(&self, f: Self::Function, launch: &Launch, s: RawStream, cells: &mut [u64]) -> Result<()>;

    /// How many blocks of a launch whose blocks may all be resident run at the same time: whole clusters, at least one.
    fn resident(&self, f: Self::Function, launch: &Launch) -> Result<u32> {
        let _ = f;
        Ok(launch.grid[0])
    }
    /// What tensor copies must know of an operand to find tiles of it, see [`Arg::Tile`](super::Arg::Tile); only drivers whose plans
    /// have such tiles need to.
    fn tensor_map(
        &self,
        view: &RawView,
        tokens: u32,
        channels: u32,
        streams: TileStreams,
    ) -> Result<[u64; Arg::MAP_CELLS]> {
        let _ = (view, tokens, channels, streams);
        let why = "it has no tensor copies".into();
        Err(Error::Unsupported { op: "tensor map", device: self.info().id.to_string(), why })
    }

    /// A new stream that does not wait for the default stream.
    fn create_stream(&self) -> Result<RawStream>;
    /// Ends a stream.
    ///
    /// # Safety
    /// `s` came from [`create_stream`](GpuDriver::create_stream) and is not used again.
    unsafe fn destroy_stream(&self, s: RawStream);
    /// Waits for a stream and reports the failures of its work.
    fn sync(&self, s: RawStream) -> Result<()>;

    /// Device memory in the order of the stream. [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn alloc(&self, bytes: usize, s: RawStream) -> Result<DevPtr>;
    /// Gives memory back in the order of the stream.
    ///
    /// # Safety
    /// `p` came from [`alloc`](GpuDriver::alloc) and is not used again.
    unsafe fn free(&self, p: DevPtr, s: RawStream);
}

/// What a stream can do besides operators: asynchronous copies, events, capture. [`Event`](super::Event), [`Graph`](super::Graph) and
/// [`Pinned`](super::Pinned) are the safe way to it.
///
/// # Safety
/// Memory from [`alloc_pinned`](GpuQueue::alloc_pinned) is aligned to 256 bytes and is the caller's alone until it is freed; the work of
/// one stream is done in order.
pub unsafe trait GpuQueue: fmt::Debug + Send + Sync {
    /// Host memory that the device reads and writes at full speed and without holding up the host.
    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8>;
    /// Gives pinned memory back.
    ///
    /// # Safety
    /// `p` came from [`alloc_pinned`](GpuQueue::alloc_pinned), and no copy from or to it is still to be done.
    unsafe fn free_pinned(&self, p: *mut u8);
    /// Enqueues a copy from the host.
    ///
    /// # Safety
    /// `src` and `dst` hold `bytes` bytes until the stream has passed the copy, and nothing writes `src` meanwhile.
    unsafe fn upload(&self, dst: DevPtr, src: *const u8, bytes: usize, s: RawStream) -> Result<()>;
    /// Enqueues a copy to the host.
    ///
    /// # Safety
    /// `src` and `dst` hold `bytes` bytes until the stream has passed the copy, and nothing touches `dst` meanwhile.
    unsafe fn download(&self, dst: *mut u8, src: DevPtr, bytes: usize, s: RawStream) -> Result<()>;

    /// Enqueues a copy within the device.
    ///
    /// # Safety
    /// `src` and `dst` hold `bytes` bytes each, which do not overlap, until the stream has passed the copy.
    unsafe fn copy(&self, dst: DevPtr, src: DevPtr, bytes: usize, s: RawStream) -> Result<()>;

    /// A new event that can be timed.
    fn create_event(&self) -> Result<RawEvent>;
    /// Ends an event.
    ///
    /// # Safety
    /// `e` came from [`create_event`](GpuQueue::create_event) and is not used again.
    unsafe fn destroy_event(&self, e: RawEvent);
    /// Puts the event behind the work of the stream.
    fn record(&self, e: RawEvent, s: RawStream) -> Result<()>;
    /// Lets the stream wait for the event.
    fn wait(&self, s: RawStream, e: RawEvent) -> Result<()>;
    /// Milliseconds from one event to the other; waits for both.
    fn elapsed_ms(&self, from: RawEvent, to: RawEvent) -> Result<f32>;

    /// Begins to record the stream's work instead of doing it. Only this thread's calls are watched for what a capture does not allow.
    fn begin_capture(&self, s: RawStream) -> Result<()>;
    /// Ends the capture, whether it went well or not, and makes its work ready to replay.
    fn end_capture(&self, s: RawStream) -> Result<RawGraph>;
    /// Enqueues the work of a capture.
    ///
    /// # Safety
    /// Every address that the captured work uses is still good, and no other thread is replaying the same graph.
    unsafe fn replay(&self, g: RawGraph, s: RawStream) -> Result<()>;
    /// Ends a graph.
    ///
    /// # Safety
    /// `g` came from [`end_capture`](GpuQueue::end_capture) and is not used again.
    unsafe fn destroy_graph(&self, g: RawGraph);
}
