//! A runtime without a device: a function table whose entries count what they give out and take back, and fail when told to. Each thread
//! has its own.

use core::{
    cell::RefCell,
    ffi::{c_char, c_int, c_uint, c_ulonglong, c_void},
};
use std::collections::{BTreeMap, BTreeSet};

use mhc_core::gpu::vendor::Handle;

use crate::{
    api::{Api, Code},
    memory::PoolProperties,
};

/// What a call fails with.
pub(crate) const INJECTED: Code = Code(999);

/// What the runtime was asked and what it gave out.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Every call, in order.
    pub calls: Vec<&'static str>,
    /// Everything given out and not given back: its number and its kind.
    pub alive: BTreeMap<u64, &'static str>,
    /// The number of the call that fails, and with what.
    pub fail: Option<(usize, Code)>,
    /// Calls that no program should make.
    pub wrong: Vec<String>,
    /// Whether the device has pools.
    pub pools: bool,
    /// The thread's device.
    pub device: c_int,
    captured: BTreeSet<u64>,
    given: u64,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// Looks at this thread's runtime.
pub(crate) fn state<R>(f: impl FnOnce(&mut State) -> R) -> R {
    STATE.with_borrow_mut(f)
}

/// Begins anew.
pub(crate) fn reset(pools: bool, fail: Option<(usize, Code)>) {
    state(|s| *s = State { pools, fail, ..State::default() });
}

/// Calls that are of no certain device.
const ANYWHERE: &[&str] = &[
    "init",
    "runtime_version",
    "device_count",
    "device_name",
    "device_attribute",
    "total_memory",
    "current_device",
    "set_device",
];

/// The one device whose calls are checked to find it bound.
pub(crate) const DEVICE: c_int = 1;

impl State {
    fn call(&mut self, name: &'static str, body: impl FnOnce(&mut Self) -> Code) -> Code {
        self.calls.push(name);
        if let Some((number, code)) = self.fail
            && number == self.calls.len() - 1
        {
            return code;
        }
        if !ANYWHERE.contains(&name) && self.device != DEVICE {
            self.wrong.push(format!("{name} on device {}", self.device));
        }
        body(self)
    }

    fn give(&mut self, place: *mut Handle, kind: &'static str) -> Code {
        self.given += 1;
        let number = self.given << 12;
        self.alive.insert(number, kind);
        // SAFETY: every caller passes a place for a handle.
        unsafe { *place = number as Handle };
        Code::SUCCESS
    }

    /// Memory that the caller will write. It stays: tests are short.
    fn pinned(&mut self, place: *mut Handle, bytes: usize) -> Code {
        let memory = Box::leak(vec![0u8; bytes].into_boxed_slice()).as_mut_ptr();
        self.alive.insert(memory as u64, "pinned");
        put(place, memory.cast())
    }

    fn take(&mut self, handle: Handle, kind: &str) -> Code {
        match self.alive.remove(&(handle as u64)) {
            Some(was) if was == kind => Code::SUCCESS,
            was => {
                self.wrong.push(format!("{handle:?} given back as {kind}, but it is {was:?}"));
                Code(1)
            }
        }
    }

    /// Success if it is alive.
    fn good(&mut self, handle: Handle, kind: &str) -> Code {
        if self.alive.get(&(handle as u64)) == Some(&kind) || (kind == "stream" && handle.is_null()) {
            return Code::SUCCESS;
        }
        self.wrong.push(format!("{handle:?} is no {kind}"));
        Code(400)
    }

    /// Success if the stream is alive and not captured.
    fn idle(&mut self, stream: Handle) -> Code {
        if self.captured.contains(&(stream as u64)) { Code(900) } else { self.good(stream, "stream") }
    }
}

unsafe extern "C" fn error_name(_: Code) -> *const c_char {
    c"hipErrorOfTheFake".as_ptr()
}

unsafe extern "C" fn error_string(_: Code) -> *const c_char {
    c"injected".as_ptr()
}

unsafe extern "C" fn properties(place: *mut c_void, _: c_int) -> Code {
    let name = b"gfx942:sramecc+:xnack-\0";
    // SAFETY: the caller's buffer has 16 KiB.
    unsafe { place.cast::<u8>().add(1160).copy_from(name.as_ptr(), name.len()) };
    Code::SUCCESS
}

/// The functions, each with what it does where it does not fail: an expression of the state that gives a code.
macro_rules! table {
    ($($field:ident ( $($name:ident: $argument:ty),* ) |$state:pat_param| $body:expr;)*) => {
        /// The table. Lives to the end of the process, as a real one does.
        pub(crate) fn api() -> &'static Api {
            $(unsafe extern "C" fn $field($($name: $argument),*) -> Code {
                state(|s| s.call(stringify!($field), |$state| $body))
            })*
            let (properties, path) = ((properties as _, 1160), "fake".into());
            Box::leak(Box::new(Api { $($field,)* error_name, error_string, properties, path }))
        }
    };
}

/// Writes a result.
fn put<T>(place: *mut T, value: T) -> Code {
    // SAFETY: every caller passes a place for such a value.
    unsafe { *place = value };
    Code::SUCCESS
}

table! {
    init(_f: c_uint) |_| Code::SUCCESS;
    runtime_version(v: *mut c_int) |_| put(v, 70_253_211);
    device_count(n: *mut c_int) |_| put(n, 2);
    device_name(name: *mut c_char, _l: c_int, _d: c_int) |_| put(name, 0);
    device_attribute(v: *mut c_int, which: c_int, _d: c_int) |s| put(v, if which == 88 { c_int::from(s.pools) } else { 304 });
    total_memory(bytes: *mut usize, _d: c_int) |_| put(bytes, 1 << 30);
    current_device(d: *mut c_int) |s| put(d, s.device);
    set_device(d: c_int) |s| { s.device = d; Code::SUCCESS };
    module_load(m: *mut Handle, _i: *const c_void) |s| s.give(m, "module");
    module_unload(m: Handle) |s| s.take(m, "module");
    module_function(f: *mut Handle, m: Handle, _n: *const c_char) |s| { put(f, m); s.good(m, "module") };
    active_blocks(n: *mut c_int, f: Handle, _t: c_int, _b: usize) |s| { put(n, 2); s.good(f, "module") };
    launch(
        f: Handle, _gx: c_uint, _gy: c_uint, _gz: c_uint, _bx: c_uint, _by: c_uint, _bz: c_uint, _b: c_uint, stream: Handle,
        _p: *mut Handle, _e: *mut Handle
    ) |s| { s.good(stream, "stream"); s.good(f, "module") };
    stream_create(stream: *mut Handle, _f: c_uint) |s| s.give(stream, "stream");
    stream_destroy(stream: Handle) |s| s.take(stream, "stream");
    stream_sync(stream: Handle) |s| s.idle(stream);
    stream_wait(stream: Handle, e: Handle, _f: c_uint) |s| { s.good(stream, "stream"); s.good(e, "event") };
    stream_capturing(stream: Handle, status: *mut c_int) |s| {
        put(status, c_int::from(s.captured.contains(&(stream as u64))));
        s.good(stream, "stream")
    };
    capture_begin(stream: Handle, _m: c_int) |s| { s.captured.insert(stream as u64); s.good(stream, "stream") };
    capture_end(stream: Handle, g: *mut Handle) |s| { s.captured.remove(&(stream as u64)); s.give(g, "graph") };
    graph_instantiate(exec: *mut Handle, g: Handle, _f: c_ulonglong) |s| { s.good(g, "graph"); s.give(exec, "exec") };
    graph_destroy(g: Handle) |s| s.take(g, "graph");
    graph_launch(exec: Handle, stream: Handle) |s| { s.good(stream, "stream"); s.good(exec, "exec") };
    graph_exec_destroy(exec: Handle) |s| s.take(exec, "exec");
    event_create(e: *mut Handle, _f: c_uint) |s| s.give(e, "event");
    event_destroy(e: Handle) |s| s.take(e, "event");
    event_record(e: Handle, stream: Handle) |s| { s.good(stream, "stream"); s.good(e, "event") };
    event_sync(e: Handle) |s| s.good(e, "event");
    event_elapsed(ms: *mut f32, a: Handle, b: Handle) |s| { put(ms, 0.5); s.good(a, "event"); s.good(b, "event") };
    alloc(p: *mut Handle, _b: usize) |s| s.give(p, "memory");
    free(p: Handle) |s| s.take(p, "memory");
    pool_create(pool: *mut Handle, _p: *const PoolProperties) |s| s.give(pool, "pool");
    pool_destroy(pool: Handle) |s| s.take(pool, "pool");
    pool_set(pool: Handle, _a: c_int, _v: *mut c_void) |s| s.good(pool, "pool");
    pool_trim(pool: Handle, _b: usize) |s| s.good(pool, "pool");
    pool_alloc(p: *mut Handle, _b: usize, pool: Handle, stream: Handle) |s| {
        s.good(pool, "pool");
        s.good(stream, "stream");
        s.give(p, "pooled")
    };
    free_async(p: Handle, stream: Handle) |s| { s.good(stream, "stream"); s.take(p, "pooled") };
    alloc_host(p: *mut Handle, bytes: usize, _f: c_uint) |s| s.pinned(p, bytes);
    free_host(p: Handle) |s| s.take(p, "pinned");
    upload(_d: Handle, _s: *const c_void, _b: usize, stream: Handle) |s| s.idle(stream);
    download(_d: *mut c_void, _s: Handle, _b: usize, stream: Handle) |s| s.idle(stream);
    copy(_d: Handle, _s: Handle, _b: usize, stream: Handle) |s| s.good(stream, "stream");
}
