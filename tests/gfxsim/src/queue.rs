//! A queue of packets, as AMD's runtime fills it: a thread takes one after the other and signals what is done.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    dispatch::Launch,
    memory::Fault,
    model::Gpu,
    traffic::{Counters, LINE},
};

/// What the runtime tells about a queue.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Info {
    ring: u64,
    written: u64,
    read: u64,
    doorbell: usize,
    size: u32,
    kind: u32,
}

/// Bytes of a packet.
const PACKET: u64 = 64;

/// What a packet's first byte says.
mod kind {
    pub const VENDOR: u16 = 0;
    pub const INVALID: u16 = 1;
    pub const DISPATCH: u16 = 2;
    pub const BARRIER_AND: u16 = 3;
    pub const BARRIER_OR: u16 = 5;
    pub const LAST: u16 = 6;
}

/// Where a packet's fields lie.
mod at {
    pub const VENDOR_FORMAT: u64 = 2;
    pub const GROUP: u64 = 4;
    pub const DEPENDENCIES: u64 = 8;
    pub const GRID: u64 = 12;
    pub const SCRATCH: u64 = 24;
    pub const LDS: u64 = 28;
    pub const DESCRIPTOR: u64 = 32;
    pub const ARGUMENTS: u64 = 40;
    pub const SIGNAL: u64 = 56;
}

/// Where a signal's fields lie.
mod signal {
    pub const VALUE: u64 = 8;
    pub const MAILBOX: u64 = 16;
    pub const EVENT: u64 = 24;
    pub const START: u64 = 32;
    pub const END: u64 = 40;
}

/// AMD's own packet that waits for a value.
mod wait {
    pub const FORMAT: u8 = 2;
    pub const SIGNAL: u64 = 8;
    pub const VALUE: u64 = 16;
    pub const MASK: u64 = 24;
    pub const CONDITION: u64 = 32;
}

/// A queue that is served until it is dropped.
pub struct Queue {
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Queue {
    /// Serves the queue that `info` describes.
    ///
    /// # Safety
    /// The queue's memory and everything that its packets name stay good until the queue is dropped.
    pub unsafe fn serve(gpu: Arc<Gpu>, info: Info) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let server = Server { gpu, info, stop: stop.clone() };
        Self { stop, server: Some(thread::spawn(move || server.run())) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

struct Server {
    gpu: Arc<Gpu>,
    info: Info,
    stop: Arc<AtomicBool>,
}

/// Nanoseconds of a clock that only goes on.
fn now() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1
}

impl Server {
    /// A field of what the runtime wrote.
    fn read<T: Copy>(&self, address: u64) -> T {
        // SAFETY: who made the queue promised that it and what its packets name are good; fields are integers, good in any bits.
        unsafe { self.gpu.place(address).cast::<T>().read_unaligned() }
    }

    /// What the runtime and this thread both change.
    fn shared<T>(&self, address: u64) -> &T {
        // SAFETY: as in `read`; these fields are aligned, and both sides access them as atomics alone.
        unsafe { &*self.gpu.place(address).cast::<T>() }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Until it holds, or the queue is closed.
    fn wait_until(&self, holds: impl Fn() -> bool) {
        while !holds() && !self.stopped() {
            thread::sleep(Duration::from_micros(5));
        }
    }

    fn run(&self) {
        let packets = u64::from(self.info.size) / PACKET;
        let (mut taken, mut idle) = (0u64, 0u32);
        while !self.stopped() {
            let packet = self.info.ring + taken % packets * PACKET;
            let header: &AtomicU16 = self.shared(packet);
            let kind = header.load(Ordering::Acquire) & 0xff;
            if kind == kind::INVALID || kind > kind::LAST {
                // Ready at once while work keeps coming, and no burden when there is none.
                idle += 1;
                if idle > 2000 {
                    thread::sleep(Duration::from_micros(20))
                } else {
                    std::hint::spin_loop()
                }
                continue;
            }
            idle = 0;
            let start = now();
            let failed = self.serve(kind, packet);
            self.complete(self.read(packet + at::SIGNAL), start, failed);
            header.store(kind::INVALID, Ordering::Release);
            taken += 1;
            self.shared::<AtomicU64>(self.info.read).store(taken, Ordering::SeqCst);
        }
    }

    /// Does what a packet asks for; whether that failed.
    fn serve(&self, kind: u16, packet: u64) -> bool {
        match kind {
            kind::DISPATCH => {
                let outcome = self.launch(packet).and_then(|launch| self.gpu.launch(&launch));
                return outcome.map_err(|fault| self.gpu.failed(&fault)).is_err();
            }
            kind::BARRIER_AND | kind::BARRIER_OR => self.barrier(packet, kind == kind::BARRIER_AND),
            kind::VENDOR if self.read::<u8>(packet + at::VENDOR_FORMAT) == wait::FORMAT => self.wait(packet),
            _ => {}
        }
        false
    }

    fn launch(&self, packet: u64) -> Result<Launch, Fault> {
        let group = self.read::<[u16; 3]>(packet + at::GROUP).map(u32::from);
        let grid = self.read::<[u32; 3]>(packet + at::GRID);
        if group.contains(&0) || grid.contains(&0) {
            return Err(Fault(format!("a grid of {grid:?} work items in workgroups of {group:?}")));
        }
        Ok(Launch {
            group,
            grid,
            scratch: self.read(packet + at::SCRATCH),
            lds: self.read(packet + at::LDS),
            descriptor: self.read(packet + at::DESCRIPTOR),
            arguments: self.read(packet + at::ARGUMENTS),
            packet,
            tracked: false,
        })
    }

    /// Waits for up to five signals to come to zero, or for one of them.
    fn barrier(&self, packet: u64, all: bool) {
        let signals = self.read::<[u64; 5]>(packet + at::DEPENDENCIES);
        let done = |s: &u64| self.shared::<AtomicI64>(s + signal::VALUE).load(Ordering::Acquire) == 0;
        let mut wanted = signals.iter().filter(|s| **s != 0).peekable();
        if wanted.peek().is_none() {
            return;
        }
        let wanted: Vec<_> = wanted.collect();
        self.wait_until(|| if all { wanted.iter().all(|s| done(s)) } else { wanted.iter().any(|s| done(s)) });
    }

    fn wait(&self, packet: u64) {
        let on: u64 = self.read(packet + wait::SIGNAL);
        if on == 0 {
            return;
        }
        let (value, mask): (i64, i64) = (self.read(packet + wait::VALUE), self.read(packet + wait::MASK));
        let condition: u32 = self.read(packet + wait::CONDITION);
        self.wait_until(|| {
            let now = self.shared::<AtomicI64>(on + signal::VALUE).load(Ordering::Acquire) & mask;
            match condition {
                0 => now == value,
                1 => now != value,
                2 => now < value,
                _ => now >= value,
            }
        });
    }

    /// Counts the signal down, with the times between which the work was done, and wakes who waits for it.
    fn complete(&self, on: u64, start: u64, failed: bool) {
        if on == 0 {
            return;
        }
        self.shared::<AtomicU64>(on + signal::START).store(start, Ordering::Relaxed);
        self.shared::<AtomicU64>(on + signal::END).store(now(), Ordering::Relaxed);
        // Read before the count: who sees that may give the signal back.
        let (mailbox, event): (u64, u32) = (self.read(on + signal::MAILBOX), self.read(on + signal::EVENT));
        let value: &AtomicI64 = self.shared(on + signal::VALUE);
        if failed {
            value.store(-1, Ordering::SeqCst);
        } else {
            value.fetch_sub(1, Ordering::SeqCst);
        }
        if mailbox != 0 {
            self.shared::<AtomicU64>(mailbox).store(event.into(), Ordering::SeqCst);
            self.gpu.wake(event);
        }
    }
}

/// What is printed of a dispatch on demand.
pub fn describe(launch: &Launch, counted: &Counters, took: Duration) -> String {
    let c = counted;
    let used = |bytes: u64, lines: u64| 100 * bytes / (LINE * lines).max(1);
    format!(
        "grid {:?} of {:?}, {} B of LDS, {} B of scratch: reads {} B in {} lines ({} % used), writes {} B in {} lines ({} % used), \
         atomics {} B; {} waves; instructions: {} scalar, {} vector, {} matrix, {} memory, {} LDS; {:.1} M/s",
        launch.grid,
        launch.group,
        launch.lds,
        launch.scratch,
        c.read_bytes,
        c.read_lines,
        used(c.read_bytes, c.read_lines),
        c.written_bytes,
        c.written_lines,
        used(c.written_bytes, c.written_lines),
        c.atomic_bytes,
        c.waves,
        c.scalar,
        c.vector,
        c.matrix,
        c.memory,
        c.lds,
        c.instructions() as f64 / took.as_secs_f64() / 1e6,
    )
}
