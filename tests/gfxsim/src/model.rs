//! The functions that AMD's runtime calls in the library that `HSA_MODEL_LIB` names: its interface for functional models, version 0.4.

// A model of a device has nobody to return an error to: it says what is wrong, as a driver does in the kernel's log.
#![allow(clippy::print_stderr)]

use std::{
    env, fs,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use std::ffi::c_void;

use crate::{
    arch::Arch,
    code::Code,
    dispatch::{self, Launch},
    memory::{Fault, Memory},
    queue::{self, Info, Queue},
    traffic::{self, Counters},
};

type WakeFunction = unsafe extern "C" fn(*mut c_void, u32);

/// The simulated device.
pub struct Gpu {
    arch: Arch,
    code: Code,
    threads: usize,
    /// Print every dispatch.
    verbose: bool,
    /// Report a kernel's fault as the failure of its signal, instead of ending the process as AMD's runtime does.
    keeps_going: bool,
    /// What is added to a device address.
    base: AtomicUsize,
    allocations: Mutex<Vec<Range<u64>>>,
    waker: Mutex<Option<(WakeFunction, usize)>>,
}

impl Gpu {
    /// The device that `HSA_MODEL_TOPOLOGY` describes.
    fn from_env() -> Result<Self, String> {
        let folder = env::var("HSA_MODEL_TOPOLOGY").map_err(|_| "HSA_MODEL_TOPOLOGY is not set")?;
        let file = format!("{folder}/nodes/1/properties");
        let text = fs::read_to_string(&file).map_err(|e| format!("{file}: {e}"))?;
        let version = text.lines().find_map(|l| l.strip_prefix("gfx_target_version ")?.parse().ok());
        let arch = Arch::ALL.into_iter().find(|a| Some(a.version()) == version);
        let arch = arch.ok_or_else(|| format!("{file} describes no GPU that can be simulated"))?;
        let cores = || thread::available_parallelism().map_or(1, |n| n.get());
        Ok(Self {
            arch,
            code: Code::new(arch.name())?,
            threads: env::var("GFXSIM_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or_else(cores),
            verbose: env::var_os("GFXSIM_VERBOSE").is_some(),
            keeps_going: env::var_os("GFXSIM_KEEP_GOING").is_some(),
            base: AtomicUsize::new(0),
            allocations: Mutex::default(),
            waker: Mutex::default(),
        })
    }

    /// Where a device address lies in this process.
    pub fn place(&self, address: u64) -> *mut u8 {
        self.base.load(Ordering::Relaxed).wrapping_add(address as usize) as *mut u8
    }

    /// Runs a launch to its end.
    pub fn launch(&self, launch: &Launch) -> Result<(), Fault> {
        let ranges = self.allocations.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let memory = Memory::new(self.base.load(Ordering::Relaxed), ranges);
        let start = Instant::now();
        let counted: Counters = dispatch::run(self.arch, &self.code, &memory, launch, self.threads)?;
        traffic::record(&counted);
        if self.verbose {
            eprintln!("gfxsim: {}", queue::describe(launch, &counted, start.elapsed()));
        }
        Ok(())
    }

    /// Says why a kernel could not go on, and ends the process unless it is to see the failure.
    pub fn failed(&self, fault: &Fault) {
        eprintln!("gfxsim: kernel fault on {}: {}", self.arch.name(), fault.0);
        if !self.keeps_going {
            std::process::abort();
        }
    }

    /// Wakes who waits for an event.
    pub fn wake(&self, event: u32) {
        let waker = *self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((function, data)) = waker {
            // SAFETY: the runtime gave both to be called like this, from any thread.
            unsafe { function(data as *mut c_void, event) };
        }
    }
}

/// What the runtime asks for, in its order.
#[repr(C)]
pub struct Functions {
    major: u32,
    minor: u32,
    create: extern "C" fn() -> *const Gpu,
    destroy: unsafe extern "C" fn(*const Gpu),
    set_aperture: unsafe extern "C" fn(*const Gpu, *mut c_void, u64),
    allocated: unsafe extern "C" fn(*const Gpu, *mut c_void, u64, u32),
    freed: unsafe extern "C" fn(*const Gpu, *mut c_void, u64),
    notify_event: extern "C" fn(*const Gpu, *mut c_void, *mut c_void),
    wait_event: extern "C" fn(*const Gpu, *mut c_void, *mut c_void),
    create_queue: unsafe extern "C" fn(*const Gpu, *const Info) -> *mut Queue,
    set_waker: unsafe extern "C" fn(*const Gpu, Option<WakeFunction>, *mut c_void),
    destroy_queue: unsafe extern "C" fn(*const Gpu, *mut Queue),
}

static FUNCTIONS: Functions = Functions {
    major: 0,
    minor: 4,
    create,
    destroy,
    set_aperture,
    allocated,
    freed,
    notify_event: nothing,
    wait_event: nothing,
    create_queue,
    set_waker,
    destroy_queue,
};

/// The one symbol that the runtime looks for.
// SAFETY: no other library of the process has a symbol of this name, which AMD's interface prescribes.
#[unsafe(no_mangle)]
pub extern "C" fn get_hsakmt_model_functions() -> *const Functions {
    &FUNCTIONS
}

/// Everything that was dispatched since the last call: for tests, which open this library as the runtime does.
///
/// # Safety
/// `counters` is a place for one [`Counters`].
// SAFETY: the name is this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mhc_gfxsim_take_counters(counters: *mut Counters) {
    // SAFETY: the caller's promise.
    unsafe { counters.write(traffic::take()) };
}

extern "C" fn create() -> *const Gpu {
    match Gpu::from_env() {
        Ok(gpu) => Arc::into_raw(Arc::new(gpu)),
        Err(why) => {
            eprintln!("gfxsim: {why}");
            std::ptr::null()
        }
    }
}

// SAFETY: the runtime passes what `create` gave, and does so last.
unsafe extern "C" fn destroy(gpu: *const Gpu) {
    // SAFETY: see above.
    drop(unsafe { Arc::from_raw(gpu) });
}

/// The device behind the runtime's pointer.
///
/// # Safety
/// It came from `create`, and `destroy` has not had it.
unsafe fn device<'a>(gpu: *const Gpu) -> &'a Gpu {
    // SAFETY: the caller's promise.
    unsafe { &*gpu }
}

// SAFETY: the runtime passes what `create` gave.
unsafe extern "C" fn set_aperture(gpu: *const Gpu, base: *mut c_void, _size: u64) {
    // SAFETY: see above.
    unsafe { device(gpu) }.base.store(base as usize, Ordering::Relaxed);
}

// SAFETY: the runtime passes what `create` gave.
unsafe extern "C" fn allocated(gpu: *const Gpu, start: *mut c_void, size: u64, _flags: u32) {
    // SAFETY: see above.
    let gpu = unsafe { device(gpu) };
    let start = start as u64;
    gpu.allocations.lock().unwrap_or_else(PoisonError::into_inner).push(start..start + size);
}

// SAFETY: the runtime passes what `create` gave.
unsafe extern "C" fn freed(gpu: *const Gpu, start: *mut c_void, _size: u64) {
    // SAFETY: see above.
    let gpu = unsafe { device(gpu) };
    gpu.allocations.lock().unwrap_or_else(PoisonError::into_inner).retain(|r| r.start != start as u64);
}

/// Events of the runtime need nothing from a device that polls its queues.
extern "C" fn nothing(_: *const Gpu, _: *mut c_void, _: *mut c_void) {}

// SAFETY: the runtime passes what `create` gave, and a description of a queue that it keeps until `destroy_queue`.
unsafe extern "C" fn create_queue(gpu: *const Gpu, info: *const Info) -> *mut Queue {
    // SAFETY: see above; the count is raised for the queue's own handle.
    let queue = unsafe {
        Arc::increment_strong_count(gpu);
        Queue::serve(Arc::from_raw(gpu), *info)
    };
    Box::into_raw(Box::new(queue))
}

// SAFETY: the runtime passes what `create` gave, and a function that it wants to be called.
unsafe extern "C" fn set_waker(gpu: *const Gpu, function: Option<WakeFunction>, data: *mut c_void) {
    // SAFETY: see above.
    let gpu = unsafe { device(gpu) };
    *gpu.waker.lock().unwrap_or_else(PoisonError::into_inner) = function.map(|f| (f, data as usize));
}

// SAFETY: the runtime passes what `create_queue` gave, once.
unsafe extern "C" fn destroy_queue(_: *const Gpu, queue: *mut Queue) {
    // SAFETY: see above.
    drop(unsafe { Box::from_raw(queue) });
}
