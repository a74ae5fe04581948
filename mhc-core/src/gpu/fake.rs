//! A driver without a device: it logs its calls, counts what is alive, and fails when told to.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

use super::{Arg, GpuCaps, GpuDriver, GpuQueue, Launch, RawEvent, RawGraph, TileStreams};
use crate::{DType, DevPtr, DeviceId, DeviceInfo, Error, RawStream, RawView, Result};

/// What the driver has been asked and what it has given out.
#[derive(Debug, Default)]
pub struct State {
    /// Every call, in order.
    pub calls: Vec<String>,
    /// The arguments of every launch.
    pub cells: Vec<Vec<u64>>,
    /// Everything given out and not yet given back, by kind.
    pub alive: HashSet<(&'static str, u64)>,
    /// The number of the call that fails.
    pub fail: Option<usize>,
    /// The thread that records a stream's work, which may not load anything.
    recording: Option<ThreadId>,
    next: u64,
}

/// The driver. Clones share their state, so that a test can look while a device owns one.
#[derive(Clone, Debug)]
pub struct Fake {
    info: DeviceInfo,
    state: Arc<Mutex<State>>,
}

impl Fake {
    pub fn new() -> Self {
        let caps = GpuCaps {
            arch: "sm_90".into(),
            wave: 32,
            units: 132,
            shared_per_block: 232_448,
            max_threads: 1024,
            tuned: Vec::new(),
        };
        let id = DeviceId { backend: "fake", ordinal: 0 };
        let info = DeviceInfo {
            id,
            name: "fake".into(),
            arch: caps.arch.clone(),
            memory: None,
            caps: Some(caps),
            notes: vec![],
        };
        Self { info, state: Arc::default() }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often a call was made.
    pub fn count(&self, call: &str) -> usize {
        self.state().calls.iter().filter(|c| c.split(' ').next() == Some(call)).count()
    }

    fn call(&self, name: &'static str, detail: &str) -> Result<()> {
        let mut state = self.state();
        state.calls.push(format!("{name} {detail}"));
        if state.fail == Some(state.calls.len() - 1) {
            return Err(Error::Driver { call: name, code: 999, name: "injected".into() });
        }
        Ok(())
    }

    fn give(&self, kind: &'static str) -> u64 {
        self.give_bytes(kind, 1)
    }

    fn give_bytes(&self, kind: &'static str, bytes: usize) -> u64 {
        let mut state = self.state();
        let id = state.next + 256;
        state.next = id + bytes.next_multiple_of(256) as u64;
        state.alive.insert((kind, id));
        id
    }

    fn take(&self, kind: &'static str, id: u64) {
        assert!(self.state().alive.remove(&(kind, id)), "{kind} {id} given back twice or never given out");
    }
}

/// An image that counts as alive until it is dropped.
#[derive(Debug)]
pub struct Module {
    driver: Fake,
    id: u64,
}

impl Drop for Module {
    fn drop(&mut self) {
        self.driver.take("module", self.id);
    }
}

// SAFETY: nothing it gives out is ever dereferenced, but for pinned memory, which `Box` aligns as its type asks.
unsafe impl GpuDriver for Fake {
    type Module = Module;
    type Function = u64;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn load(&self, source: &'static str, dtype: DType) -> Result<Module> {
        self.call("load", &format!("{source} {dtype}"))?;
        assert_ne!(self.state().recording, Some(thread::current().id()), "{source} loaded in a capture");
        Ok(Module { driver: self.clone(), id: self.give("module") })
    }
    fn function(&self, module: &Module, entry: &str) -> Result<u64> {
        self.call("function", entry)?;
        Ok(module.id)
    }
    unsafe fn launch(&self, f: u64, launch: &Launch, _: RawStream, cells: &mut [u64]) -> Result<()> {
        assert!(self.state().alive.contains(&("module", f)), "launch from a module that was unloaded");
        self.call("launch", &format!("{:?} {:?}", launch.entry, launch.grid))?;
        self.state().cells.push(cells[..launch.cells()].to_vec());
        Ok(())
    }
    fn resident(&self, _: u64, _: &Launch) -> Result<u32> {
        self.call("resident", "")?;
        Ok(2)
    }
    fn tensor_map(
        &self,
        view: &RawView,
        tokens: u32,
        channels: u32,
        streams: TileStreams,
    ) -> Result<[u64; Arg::MAP_CELLS]> {
        self.call("tensor_map", &format!("{tokens} {channels} {streams:?}"))?;
        Ok([view.ptr.0; Arg::MAP_CELLS])
    }
    fn create_stream(&self) -> Result<RawStream> {
        self.call("create_stream", "")?;
        Ok(RawStream(self.give("stream")))
    }
    unsafe fn destroy_stream(&self, s: RawStream) {
        self.take("stream", s.0);
    }
    fn sync(&self, _: RawStream) -> Result<()> {
        self.call("sync", "")
    }
    fn alloc(&self, bytes: usize, _: RawStream) -> Result<DevPtr> {
        self.call("alloc", &bytes.to_string())?;
        Ok(DevPtr(self.give_bytes("memory", bytes)))
    }
    unsafe fn free(&self, p: DevPtr, _: RawStream) {
        self.take("memory", p.0);
    }
}

// SAFETY: as above.
unsafe impl GpuQueue for Fake {
    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8> {
        self.call("alloc_pinned", &bytes.to_string())?;
        let memory = Box::leak(vec![0xffu8; bytes].into_boxed_slice()).as_mut_ptr();
        self.state().alive.insert(("pinned", memory as u64));
        Ok(memory)
    }
    unsafe fn free_pinned(&self, p: *mut u8) {
        // The bytes themselves stay: tests are short.
        self.take("pinned", p as u64);
    }
    unsafe fn upload(&self, _: DevPtr, _: *const u8, bytes: usize, _: RawStream) -> Result<()> {
        self.call("upload", &bytes.to_string())
    }
    unsafe fn download(&self, _: *mut u8, _: DevPtr, bytes: usize, _: RawStream) -> Result<()> {
        self.call("download", &bytes.to_string())
    }
    unsafe fn copy(&self, _: DevPtr, _: DevPtr, bytes: usize, _: RawStream) -> Result<()> {
        self.call("copy", &bytes.to_string())
    }
    fn create_event(&self) -> Result<RawEvent> {
        self.call("create_event", "")?;
        Ok(RawEvent(self.give("event")))
    }
    unsafe fn destroy_event(&self, e: RawEvent) {
        self.take("event", e.0);
    }
    fn record(&self, _: RawEvent, _: RawStream) -> Result<()> {
        self.call("record", "")
    }
    fn wait(&self, _: RawStream, _: RawEvent) -> Result<()> {
        self.call("wait", "")
    }
    fn elapsed_ms(&self, from: RawEvent, to: RawEvent) -> Result<f32> {
        self.call("elapsed_ms", "")?;
        Ok((to.0 - from.0) as f32)
    }
    fn begin_capture(&self, s: RawStream) -> Result<()> {
        self.call("begin_capture", "")?;
        let mut state = self.state();
        state.alive.insert(("capture", s.0));
        state.recording = Some(thread::current().id());
        Ok(())
    }
    fn end_capture(&self, s: RawStream) -> Result<RawGraph> {
        self.take("capture", s.0);
        self.state().recording = None;
        self.call("end_capture", "")?;
        Ok(RawGraph(self.give("graph")))
    }
    unsafe fn replay(&self, _: RawGraph, _: RawStream) -> Result<()> {
        self.call("replay", "")
    }
    unsafe fn destroy_graph(&self, g: RawGraph) {
        self.take("graph", g.0);
    }
}
