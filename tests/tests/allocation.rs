//! A prepared launch allocates nothing, and a layer's forward and backward have their operands and the stated scratch in memory and
//! nothing else: counted by the allocator itself. That kernels stay inside the scratch they state is watched wherever
//! [`Scratch::Watched`](mhc_tests::run::Scratch) is used.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};
use mhc_core::{DType, Numerics, Problem, Stream, Tensor, validate};
use mhc_cpu::Level;
use mhc_ops::{Init, MhcLayer, Save};
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
/// Of these, bytes that have not been freed.
static LIVE: AtomicUsize = AtomicUsize::new(0);
/// The most that [`LIVE`] was.
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HERE.with(|n| n.set(n.get() + 1));
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
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
fn memory() -> Result<()> {
    launches_allocate_nothing()?;
    for level in Level::available() {
        for threads in [1, 3] {
            for act in [DType::F32, DType::Bf16] {
                let stream = Stream::new(devices::cpu_with(threads, level)?.device)?;
                peak_is_operands_and_scratch(&stream, act)?;
            }
        }
    }
    Ok(())
}

/// What a layer may have in memory besides tensors and scratch: shapes, lists of operands, rayon's queues. Less than the smallest tensor
/// that has a row of channels for every token.
const BESIDES: usize = 64 << 10;

/// The most bytes that were alive while `f` ran, those alive before left out.
fn peak<R>(f: impl FnOnce() -> Result<R>) -> Result<(usize, R)> {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = f()?;
    Ok((PEAK.load(Ordering::Relaxed) - before, result))
}

/// A dynamic layer through the public interface, forward and backward.
fn peak_is_operands_and_scratch(stream: &Stream, act: DType) -> Result<()> {
    let (tokens, n, channels) = (300, 4, 256);
    let layer = MhcLayer::new(stream, Numerics::default(), &Init::Liger { seed: 1 }.params(n, channels)?)?;
    let problems = layer.problems(tokens, act);

    // The scratch is one piece, of the size that the neediest operator states.
    let before = LIVE.load(Ordering::Relaxed);
    layer.prepare(tokens, act)?;
    let held = LIVE.load(Ordering::Relaxed) - before;
    let mut stated = 0;
    for p in &problems {
        stated = stated.max(stream.device().kernel(p)?.workspace());
    }
    ensure!((stated..stated + BESIDES).contains(&held), "{act}: {held} bytes of scratch, stated are {stated}");

    // Every operand of the four operators once: x and the gradient of x_next, which are the caller's, and all that they return.
    let streams = tokens * n * channels * act.size();
    let mut operands = 2 * streams;
    for name in ["pre", "post", "post_bwd", "pre_bwd"] {
        let outputs = |p: &Problem| -> usize {
            let slots = p.slots().filter(|slot| !slot.is_input());
            slots.map(|slot| slot.len(&p.dims) * slot.dtype(p.act).size()).sum()
        };
        let here = problems.iter().filter(|p| p.op.desc().name == name);
        operands += here.map(outputs).max().with_context(|| format!("the layer does not run {name}"))?;
    }
    let step = |extra: usize| -> Result<()> {
        let x = Tensor::zeros(stream, act, &[tokens, n, channels])?;
        let d_x_next = Tensor::zeros(stream, act, &[tokens, n, channels])?;
        let (layer_input, pending) = layer.pre(x, Save::All)?;
        let (x_next, saved) = layer.post(pending, layer_input)?;
        let (d_y, pending) = layer.post_backward(saved, d_x_next)?;
        let extra = std::hint::black_box(vec![1u8; extra]);
        let results = layer.pre_backward(pending, &d_y)?;
        drop((x_next, extra, results));
        Ok(())
    };
    let (bytes, ()) = peak(|| step(0))?;
    ensure!(bytes <= operands + BESIDES, "{act}: {bytes} bytes at the peak, the operands are {operands}");
    // What is freed on the way is the sub-layer's input alone: one more operand of any size would be seen.
    let slack = operands + BESIDES - bytes;
    ensure!(slack < streams / n + 2 * BESIDES, "{act}: {slack} bytes more than the peak are allowed");
    let (more, ()) = peak(|| step(streams))?;
    ensure!(more > operands + BESIDES, "{act}: a copy of the streams goes unnoticed");
    Ok(())
}

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
