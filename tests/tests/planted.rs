//! The harness itself: a device that computes with the plain f32 reference passes, and the same device with any one of these
//! mistakes planted in it is caught, with words that say what is wrong.

#![allow(clippy::expect_used)] // helpers of tests

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use anyhow::Result;
use mhc_core::{
    Backend, DType, DevPtr, Device, DeviceInfo, Dims, Kernel, Level, Problem, RawStream, RawView, Result as Mhc,
    Stream, Support, Tolerance, bf16, f16,
    ops::{Post, PostBwd},
};
use mhc_cpu::Cpu;
use mhc_tests::{
    cases,
    check::Trial,
    compare::{self, Output},
    oracle,
};

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    /// 16-bit outputs are cut off instead of rounded.
    Truncates,
    /// 16-bit outputs are rounded down, which is towards zero for half of them only.
    RoundsDown,
    /// One element is off by a hundredth.
    OneOff,
    /// Every element is off by a little.
    AllOff,
    /// Coefficients are read in bf16.
    ShortCoefficients,
    /// The last element is not written.
    ForgetsLast,
    /// One element more is written, behind the last.
    WritesBehind,
    /// One element more is written, before the first.
    WritesBefore,
    /// The n·n block of the coefficients' gradient is transposed.
    Transposes,
    /// Adds to what is there.
    Accumulates,
    /// Writes only where there is NaN.
    KeepsNumbers,
    /// Takes inputs for packed.
    IgnoresStrides,
    /// Writes to an input.
    WritesInput,
    /// Writes behind its scratch.
    OverrunsScratch,
    /// Lets a number left in the scratch into the result.
    ReadsScratch,
    /// Every launch gives something else in the last bit.
    Wavers,
    /// Has no kernel.
    Refuses,
}

/// The CPU's memory and the reference's arithmetic.
#[derive(Debug)]
struct Fake {
    memory: Arc<dyn Device>,
    bug: Bug,
    launches: Arc<AtomicU32>,
}

impl Device for Fake {
    fn info(&self) -> &DeviceInfo {
        self.memory.info()
    }
    fn support(&self, _: &Problem) -> Support {
        if self.bug == Bug::Refuses { Support::No("it was planted".into()) } else { Support::Yes }
    }
    fn kernel(&self, p: &Problem) -> Mhc<Arc<dyn Kernel>> {
        Ok(Arc::new(FakeKernel { p: p.clone(), bug: self.bug, launches: self.launches.clone() }))
    }
    fn create_stream(&self) -> Mhc<RawStream> {
        self.memory.create_stream()
    }
    unsafe fn destroy_stream(&self, s: RawStream) {
        // SAFETY: the caller's promise.
        unsafe { self.memory.destroy_stream(s) }
    }
    fn sync(&self, s: RawStream) -> Mhc<()> {
        self.memory.sync(s)
    }
    fn alloc(&self, bytes: usize, s: RawStream) -> Mhc<DevPtr> {
        self.memory.alloc(bytes, s)
    }
    unsafe fn free(&self, p: DevPtr, bytes: usize, s: RawStream) {
        // SAFETY: the caller's promise.
        unsafe { self.memory.free(p, bytes, s) }
    }
    unsafe fn upload(&self, dst: DevPtr, src: &[u8], s: RawStream) -> Mhc<()> {
        // SAFETY: the caller's promise.
        unsafe { self.memory.upload(dst, src, s) }
    }
    unsafe fn download(&self, dst: &mut [u8], src: DevPtr, s: RawStream) -> Mhc<()> {
        // SAFETY: the caller's promise.
        unsafe { self.memory.download(dst, src, s) }
    }
}

#[derive(Debug)]
struct FakeKernel {
    p: Problem,
    bug: Bug,
    launches: Arc<AtomicU32>,
}

/// Scratch that the fake kernels state.
const SCRATCH: usize = 64;

impl Kernel for FakeKernel {
    fn workspace(&self) -> usize {
        SCRATCH
    }

    unsafe fn launch(&self, _: RawStream, slots: &[Option<RawView>], workspace: DevPtr) -> Mhc<()> {
        let scratch = workspace.0 as *mut u8;
        // SAFETY: validated views and scratch of the size stated, in host memory; the planted writes stay within the guard bands.
        unsafe {
            let left = scratch.read();
            if self.bug == Bug::OverrunsScratch {
                scratch.add(SCRATCH).write(!scratch.add(SCRATCH).read());
            }
            let desc = self.p.op.desc();
            let read = |(slot, view): (&mhc_core::Slot, &Option<RawView>)| match view {
                Some(view) if slot.is_input() => self.read(view),
                _ => Vec::new(),
            };
            let operands: Vec<_> = desc.slots.iter().zip(slots).map(read).collect();
            let stored = oracle::with_stored::<f32>(&self.p, operands);
            let results = stored.and_then(|operands| oracle::evaluate::<f32>(&self.p, &operands));
            let results = results.expect("a reference that agrees with its description");
            let launch = self.launches.fetch_add(1, Ordering::Relaxed);
            for (i, (slot, view)) in desc.slots.iter().zip(slots).enumerate() {
                let Some(view) = view else { continue };
                if slot.is_input() {
                    if self.bug == Bug::WritesInput {
                        store(view, 0, -1.0);
                    }
                    continue;
                }
                let mut values = results[i].clone();
                let middle = values.len() / 2;
                match self.bug {
                    Bug::OneOff => values[middle] *= 1.01,
                    Bug::AllOff => values.iter_mut().for_each(|v| *v *= 1.0 + 2e-5),
                    Bug::ReadsScratch => values[middle] += f32::from(left == 0xff),
                    Bug::Wavers => values[middle] = f32::from_bits(values[middle].to_bits() + launch % 2),
                    Bug::Transposes if slot.name == "d_mixes" => transpose(&mut values, &self.p.dims),
                    _ => {}
                }
                self.write(view, &values);
            }
        }
        Ok(())
    }
}

impl FakeKernel {
    unsafe fn read(&self, view: &RawView) -> Vec<f64> {
        let at = |i: usize| if self.bug == Bug::IgnoresStrides { i } else { place(view, i) };
        // SAFETY: the caller's validated view; a packed one is no longer than a strided one.
        let values = (0..view.layout.elements()).map(|i| unsafe { load(view, at(i)) });
        let short = self.bug == Bug::ShortCoefficients && view.dtype == DType::F32;
        values.map(|v| if short { DType::Bf16.round(v) } else { v }).collect()
    }

    unsafe fn write(&self, view: &RawView, values: &[f32]) {
        for (i, &v) in values.iter().enumerate() {
            let last = i + 1 == values.len();
            let at = place(view, i);
            // SAFETY: the caller's validated view; what is planted goes one element beyond, into the guard band.
            unsafe {
                let old = load(view, at);
                match self.bug {
                    Bug::ForgetsLast if last => continue,
                    Bug::Truncates => store_bits(view, at, cut(view.dtype, v, false)),
                    Bug::RoundsDown => store_bits(view, at, cut(view.dtype, v, true)),
                    Bug::Accumulates => store(view, at, v + old as f32),
                    Bug::KeepsNumbers if !old.is_nan() => continue,
                    _ => store(view, at, v),
                }
                match self.bug {
                    Bug::WritesBehind if last => store(view, at + 1, 1.0),
                    Bug::WritesBefore if i == 0 => {
                        let ptr = DevPtr(view.ptr.0 - view.dtype.size() as u64);
                        store(&RawView { ptr, ..*view }, 0, 1.0);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The position of element `i`, row-major, in a view.
fn place(view: &RawView, mut i: usize) -> usize {
    view.layout.shape().iter().zip(view.layout.strides()).rev().fold(0, |at, (len, stride)| {
        let step = i % len;
        i /= len;
        at + step * stride
    })
}

unsafe fn load(view: &RawView, at: usize) -> f64 {
    // SAFETY: the caller's promise.
    unsafe {
        match view.dtype {
            DType::F32 => (view.ptr.0 as *const f32).add(at).read().into(),
            DType::Bf16 => (view.ptr.0 as *const bf16).add(at).read().into(),
            DType::F16 => (view.ptr.0 as *const f16).add(at).read().into(),
        }
    }
}

unsafe fn store(view: &RawView, at: usize, v: f32) {
    let bits = match view.dtype {
        DType::F32 => v.to_bits(),
        DType::Bf16 => bf16::from_f32(v).to_bits().into(),
        DType::F16 => f16::from_f32(v).to_bits().into(),
    };
    // SAFETY: the caller's promise.
    unsafe { store_bits(view, at, bits) };
}

unsafe fn store_bits(view: &RawView, at: usize, bits: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        match view.dtype {
            DType::F32 => (view.ptr.0 as *mut u32).add(at).write(bits),
            _ => (view.ptr.0 as *mut u16).add(at).write(bits as u16),
        }
    }
}

/// `v` cut off towards zero, or downwards, instead of rounded.
fn cut(dtype: DType, v: f32, down: bool) -> u32 {
    let (bits, back): (u16, f32) = match dtype {
        DType::F32 => return v.to_bits(),
        DType::Bf16 => (bf16::from_f32(v).to_bits(), bf16::from_f32(v).into()),
        DType::F16 => (f16::from_f32(v).to_bits(), f16::from_f32(v).into()),
    };
    let too_far = if down { back > v } else { back.abs() > v.abs() };
    let away = down && v < 0.0;
    u32::from(if !too_far {
        bits
    } else if away {
        bits + 1
    } else {
        bits - 1
    })
}

fn transpose(mixes: &mut [f32], d: &Dims) {
    let n = d.streams;
    for row in mixes.chunks_mut(d.mix()) {
        for i in 0..n {
            for j in 0..i {
                row.swap(2 * n + i * n + j, 2 * n + j * n + i);
            }
        }
    }
}

fn check(bug: Bug, p: &Problem) -> Result<(), String> {
    let check = || -> Result<()> {
        let stream = Stream::new(Arc::new(Fake { memory: Cpu.open(0)?, bug, launches: Arc::default() }))?;
        Trial::new(p.clone())?.check(&stream)?;
        Ok(())
    };
    check().map_err(|e| format!("{e:#}"))
}

/// The plainest implementation passes every case: the gates are not too narrow.
#[test]
fn the_reference_passes() -> Result<()> {
    for p in cases::problems(Level::Smoke, "")? {
        assert_eq!(check(Bug::None, &p), Ok(()));
    }
    Ok(())
}

#[test]
fn every_mistake_is_caught() {
    let dims = Dims::new(17, 4, 130);
    let forward = |act| Problem::new(Post::default(), dims, act);
    let backward = |act| Problem::new(PostBwd { d_x: true, ..PostBwd::default() }, dims, act);
    let f32 = DType::F32;
    for (bug, problems, says) in [
        (Bug::Truncates, vec![forward(DType::Bf16), backward(DType::F16)], "spacings"),
        (Bug::RoundsDown, vec![forward(DType::Bf16), backward(DType::F16)], "spacings"),
        (Bug::OneOff, vec![forward(f32), backward(DType::Bf16)], "of what is allowed"),
        (Bug::AllOff, vec![forward(f32), backward(f32)], "of what is allowed"),
        (Bug::ShortCoefficients, vec![forward(f32), forward(DType::Bf16), backward(DType::Bf16)], "of what is allowed"),
        (Bug::ForgetsLast, vec![forward(f32), forward(DType::Bf16), backward(DType::F16)], "is NaN"),
        (Bug::WritesBehind, vec![forward(f32), forward(DType::Bf16)], "written where nothing may be"),
        (Bug::WritesBefore, vec![forward(f32), forward(DType::F16)], "written where nothing may be"),
        (Bug::Transposes, vec![backward(f32)], "`d_mixes`"),
        (Bug::Accumulates, vec![forward(f32)], "is NaN"),
        (Bug::KeepsNumbers, vec![forward(f32), backward(DType::Bf16)], "in another"),
        (Bug::IgnoresStrides, vec![forward(f32), backward(DType::Bf16)], "in another"),
        (Bug::WritesInput, vec![forward(f32), backward(DType::Bf16)], "around `x`"),
        (Bug::OverrunsScratch, vec![forward(f32)], "bytes of scratch"),
        (Bug::ReadsScratch, vec![forward(f32)], "in another"),
        (Bug::Wavers, vec![forward(f32)], "in another"),
        (Bug::Refuses, vec![forward(f32)], "it was planted"),
    ] {
        for p in problems {
            let caught = check(bug, &p).expect_err(&format!("{bug:?} went unnoticed in {p}"));
            assert!(caught.contains(says), "{bug:?} in {p}: `{caught}` does not say `{says}`");
        }
    }
}

/// Cutting off 16-bit outputs shows in the mean of the errors, even under a tolerance that lets every element pass.
#[test]
fn truncation_shows_in_the_mean() -> Result<()> {
    let trial = Trial::new(Problem::new(Post::default(), Dims::new(17, 4, 130), DType::Bf16))?;
    let truth = trial.expected.truth.iter().find(|v| !v.is_empty()).map_or(&[][..], Vec::as_slice);
    let cut_off: Vec<f64> =
        truth.iter().map(|v| bf16::from_bits(cut(DType::Bf16, *v as f32, false) as u16).to_f64()).collect();
    let (shape, dtype) = (&[17, 4, 130], DType::Bf16);
    let output = Output { slot: "x_next", shape, dtype, truth, peers: &[truth], scale: 1.0, got: &cut_off };
    let wide = Tolerance { floor_ulps: 1e6, nmse: 1.0, ..Tolerance::default() };
    let Err(why) = compare::output(&output, &wide) else { panic!("truncation went unnoticed") };
    assert!(why.contains("not rounded to nearest") && why.contains("away from zero"), "{why}");
    Ok(())
}
