//! Events, graphs and pinned memory of the emulator. Everything is done when a call returns, so that an event is the host's clock, and a
//! graph the list of what to do again.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use mhc_core::{
    DevPtr, RawStream, Result,
    gpu::{GpuQueue, RawEvent, RawGraph},
};

use super::{EmuDriver, failed};

/// A launch or a copy as it is sent to the emulator.
#[derive(Clone, Debug)]
pub struct Work {
    /// Which.
    pub command: u8,
    /// Its arguments.
    pub words: Vec<u64>,
}

/// What there is besides memory.
#[derive(Default)]
pub struct Queue {
    next: AtomicU64,
    events: Mutex<HashMap<u64, Option<Instant>>>,
    captures: Mutex<HashMap<RawStream, Vec<Work>>>,
    graphs: Mutex<HashMap<u64, Vec<Work>>>,
    pinned: Mutex<HashMap<usize, Box<[Line]>>>,
}

/// What pinned memory is aligned to.
#[derive(Clone)]
#[repr(align(256))]
struct Line(#[allow(dead_code)] [u8; 256]);

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    /// A number that was not given out before.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// An error if the stream is being captured.
    pub fn allowed(&self, call: &'static str, s: RawStream) -> Result<()> {
        match lock(&self.captures).contains_key(&s) {
            true => Err(failed(call, "not allowed while the stream is captured")),
            false => Ok(()),
        }
    }

    /// Keeps the work for later if the stream is being captured, and says whether it did.
    pub fn keep(&self, s: RawStream, work: &Work) -> bool {
        lock(&self.captures).get_mut(&s).map(|kept| kept.push(work.clone())).is_some()
    }
}

// SAFETY: pinned memory is a box of lines of 256 bytes, aligned to as much and known by its address alone until it is freed; copies are
// done when the call returns.
unsafe impl GpuQueue for EmuDriver {
    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8> {
        let mut memory = vec![Line([0xff; 256]); bytes.div_ceil(256)].into_boxed_slice();
        let p = memory.as_mut_ptr().cast::<u8>();
        lock(&self.queue.pinned).insert(p as usize, memory);
        Ok(p)
    }
    unsafe fn free_pinned(&self, p: *mut u8) {
        lock(&self.queue.pinned).remove(&(p as usize));
    }

    unsafe fn upload(&self, dst: DevPtr, src: *const u8, bytes: usize, s: RawStream) -> Result<()> {
        self.queue.allowed("upload", s)?;
        // SAFETY: the caller's promise.
        let data = unsafe { std::slice::from_raw_parts(src, bytes) };
        self.talk("upload", |s| s.send(b'u', &[dst.0, bytes as u64], data))
    }
    unsafe fn download(&self, dst: *mut u8, src: DevPtr, bytes: usize, s: RawStream) -> Result<()> {
        self.queue.allowed("download", s)?;
        // SAFETY: the caller's promise.
        let data = unsafe { std::slice::from_raw_parts_mut(dst, bytes) };
        self.talk("download", |s| {
            s.send(b'd', &[src.0, bytes as u64], &[])?;
            std::io::Read::read_exact(&mut s.from, data)
        })
    }

    unsafe fn copy(&self, dst: DevPtr, src: DevPtr, bytes: usize, s: RawStream) -> Result<()> {
        self.enqueue(s, Work { command: b'c', words: vec![dst.0, src.0, bytes as u64] })
    }

    fn create_event(&self) -> Result<RawEvent> {
        let id = self.queue.number();
        lock(&self.queue.events).insert(id, None);
        Ok(RawEvent(id))
    }
    unsafe fn destroy_event(&self, e: RawEvent) {
        lock(&self.queue.events).remove(&e.0);
    }
    fn record(&self, e: RawEvent, s: RawStream) -> Result<()> {
        self.queue.allowed("record", s)?;
        lock(&self.queue.events).insert(e.0, Some(Instant::now()));
        Ok(())
    }
    fn wait(&self, _: RawStream, _: RawEvent) -> Result<()> {
        Ok(())
    }
    fn elapsed_ms(&self, from: RawEvent, to: RawEvent) -> Result<f32> {
        let events = lock(&self.queue.events);
        let at = |e: RawEvent| events.get(&e.0).copied().flatten().ok_or_else(|| failed("elapsed", "not recorded"));
        Ok((at(to)? - at(from)?).as_secs_f32() * 1e3)
    }

    fn begin_capture(&self, s: RawStream) -> Result<()> {
        self.queue.allowed("begin_capture", s)?;
        lock(&self.queue.captures).insert(s, Vec::new());
        Ok(())
    }
    fn end_capture(&self, s: RawStream) -> Result<RawGraph> {
        let kept = lock(&self.queue.captures).remove(&s);
        let kept = kept.ok_or_else(|| failed("end_capture", "nothing is captured"))?;
        let id = self.queue.number();
        lock(&self.queue.graphs).insert(id, kept);
        Ok(RawGraph(id))
    }
    unsafe fn replay(&self, g: RawGraph, s: RawStream) -> Result<()> {
        self.queue.allowed("replay", s)?;
        let works = lock(&self.queue.graphs).get(&g.0).cloned();
        works.ok_or_else(|| failed("replay", "no such graph"))?.iter().try_for_each(|work| self.work(work))
    }
    unsafe fn destroy_graph(&self, g: RawGraph) {
        lock(&self.queue.graphs).remove(&g.0);
    }
}
