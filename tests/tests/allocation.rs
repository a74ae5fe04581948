//! A prepared launch allocates nothing: counted by the allocator itself. Scratch is what the kernel states and no more: that is
//! watched wherever [`Scratch::Watched`](mhc_tests::run::Scratch) is used.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::Result;
use mhc_core::{DType, Stream, validate};
use mhc_cpu::Level;
use mhc_tests::{
    cases, data, devices,
    run::{Arena, Placement, Watched},
};

/// The system's allocator, which counts.
struct Counting;

thread_local! {
    /// Allocations of this thread.
    static HERE: Cell<usize> = const { Cell::new(0) };
}
/// Bytes allocated by any thread.
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HERE.with(|n| n.set(n.get() + 1));
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What rayon's queues may take for one launch on several threads, whatever its size.
const QUEUES: usize = 16 << 10;

/// One test, so that nothing else allocates meanwhile.
#[test]
fn launches_allocate_nothing() -> Result<()> {
    let before = HERE.get();
    drop(std::hint::black_box(vec![1u8; 100]));
    assert!(HERE.get() > before && BYTES.load(Ordering::Relaxed) >= 100, "allocations are not counted");

    let mut wrong = Vec::new();
    let mut check = |right: bool, what: String| {
        if !right {
            wrong.push(what);
        }
    };
    for level in Level::available() {
        let one = Stream::new(devices::cpu_with(1, level)?.device)?;
        let three = Stream::new(devices::cpu_with(3, level)?.device)?;
        for act in [DType::F32, DType::Bf16, DType::F16] {
            for mut p in cases::one_per_tag(act) {
                p.dims.tokens = 67;
                let operands = data::operands(&p, data::seed(&p.to_string()))?;
                let mut scratch = Vec::new();
                for stream in [&one, &three] {
                    let mut arena = Arena::new(stream, &p, &operands, Placement::Padded, 0xff)?;
                    let kernel = stream.prepare(&p)?;
                    let Some(layout) = mhc_core::Layout::contiguous(&[kernel.workspace().div_ceil(2)]) else {
                        anyhow::bail!("{p}: scratch of {} bytes", kernel.workspace())
                    };
                    let workspace = Watched::new(stream, DType::F16, layout, 0, 0xff)?;
                    scratch.push(kernel.workspace());
                    let (ins, mut outs) = arena.views();
                    let views = validate::operands(&p, stream.id(), &ins, &outs)?;
                    // SAFETY: validated for the kernel's problem, with the scratch it states; the CPU is done on return.
                    let launch = || unsafe { kernel.launch(stream.raw(), &views, workspace.view().ptr) };
                    launch()?;
                    let (here, bytes) = (HERE.get(), BYTES.load(Ordering::Relaxed));
                    launch()?;
                    let (count, bytes) = (HERE.get() - here, BYTES.load(Ordering::Relaxed) - bytes);
                    if std::ptr::eq(stream, &one) {
                        check(count == 0 && bytes == 0, format!("{p}@{level:?}: {count} allocations, {bytes} bytes"));
                    } else {
                        check(bytes <= QUEUES, format!("{p}@{level:?}: {bytes} bytes on 3 threads"));
                    }

                    // Through the stream, whose scratch is there by now: its list of operands, and no copies of them.
                    let bytes = BYTES.load(Ordering::Relaxed);
                    stream.run(&p, &ins, &mut outs)?;
                    let bytes = BYTES.load(Ordering::Relaxed) - bytes;
                    check(bytes <= QUEUES, format!("{p}@{level:?}: {bytes} bytes in a run"));
                }
                check(scratch[0] == scratch[1], format!("{p}: scratch depends on the number of threads"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} launches allocate: {wrong:#?}", wrong.len());
    Ok(())
}
