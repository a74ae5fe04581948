//! What GPUs do besides operators: graphs, events, pinned memory, foreign streams, running out of memory; and what holds of all of their
//! kernels: the same bits in every batch and on every stream, and everything that is timed runs. Without a GPU it says so.

use std::{process::Command, sync::Arc, thread};

use libtest_mimic::{Arguments, Failed, Trial};
use mhc_core::{
    AnyOp, DType, DevPtr, Device, Dims, Error, Problem, RawView, Stream, Tensor, View,
    gpu::{self, Event, Graph, Pinned},
    ops::{Post, Pre},
};
use mhc_tests::{
    batch, cases, check, data, devices,
    run::{Arena, How, Placement, run},
};

type Outcome = Result<(), Failed>;

type Check = fn(&Arc<dyn Device>) -> Outcome;

const TRIALS: &[(&str, Check)] = &[
    ("graph", graph),
    ("graph_unprepared", graph_unprepared),
    ("graph_allocates", graph_allocates),
    ("graph_loads", graph_loads),
    ("event", event),
    ("pinned", pinned),
    ("copy", copy),
    ("foreign_stream", foreign_stream),
    ("out_of_memory", out_of_memory),
    ("threads", threads),
    ("memory_is_reused", memory_is_reused),
    ("fault", fault),
];

/// Names a device on which this program is to do wrong, see [`fault`].
const FAULT: &str = "MHC_TEST_FAULT";

fn main() -> anyhow::Result<()> {
    if let Ok(name) = std::env::var(FAULT) {
        return do_wrong(&name);
    }
    let arguments = Arguments::from_args();
    let subjects = devices::chosen()?;
    let mut trials = Vec::new();
    for subject in subjects.iter().filter(|s| s.device.queue().is_some()) {
        for (name, run) in TRIALS {
            // ASan keeps freed memory from being used again for as long as it can.
            if *name == "memory_is_reused" && subject.device.info().id.backend == "emu" {
                continue;
            }
            let device = subject.device.clone();
            trials.push(Trial::test(format!("gpu/{name}@{}", subject.name), move || run(&device)));
        }
        for desc in AnyOp::all_descs() {
            if !desc.name.ends_with("_bwd") {
                let device = subject.device.clone();
                let name = format!("gpu/batches/{}@{}", desc.name, subject.name);
                trials.push(Trial::test(name, move || batches(&device, desc.name)));
            }
            let device = subject.device.clone();
            let name = format!("gpu/streams/{}@{}", desc.name, subject.name);
            trials.push(Trial::test(name, move || streams(&device, desc.name)));
        }
    }
    if trials.is_empty() {
        let probes = mhc_ops::backends().into_iter().map(|b| b.probe().to_string()).collect::<Vec<_>>().join("; ");
        trials.push(Trial::test(format!("gpu: none here ({probes})"), || Ok(())).with_ignored_flag(true));
    }
    libtest_mimic::run(&arguments, trials).exit()
}

/// Operands of `post` with known contents.
struct Operands {
    problem: Problem,
    x: Tensor,
    y: Tensor,
    mixes: Tensor,
    x_next: Tensor,
}

impl Operands {
    fn new(stream: &Stream, seed: f64) -> Result<Self, Error> {
        let d = Dims::new(33, 4, 200);
        let draw = |shape: &[usize], dtype| {
            let data: Vec<f64> = (0..shape.iter().product::<usize>()).map(|i| (i as f64 * 0.37 + seed).sin()).collect();
            Tensor::from_f64(stream, dtype, shape, &data)
        };
        Ok(Self {
            problem: Problem::new(Post::default(), d, DType::Bf16),
            x: draw(&[d.tokens, d.streams, d.channels], DType::Bf16)?,
            y: draw(&[d.tokens, d.channels], DType::Bf16)?,
            mixes: draw(&[d.tokens, d.mix()], DType::F32)?,
            x_next: Tensor::zeros(stream, DType::Bf16, &[d.tokens, d.streams, d.channels])?,
        })
    }

    fn run(&mut self, stream: &Stream) -> Result<(), Error> {
        let ins = [self.x.view(), self.y.view(), self.mixes.view()];
        stream.run(&self.problem, &ins, &mut [self.x_next.view_mut()])
    }
}

/// What `post` gives for a seed, run directly.
fn expected(stream: &Stream, seed: f64) -> Result<Vec<u8>, Error> {
    let mut o = Operands::new(stream, seed)?;
    o.run(stream)?;
    o.x_next.read()
}

/// A replay gives the bits of a run, and new ones once the inputs have changed.
fn graph(device: &Arc<dyn Device>) -> Outcome {
    let stream = Stream::new(device.clone())?;
    let (first, second) = (expected(&stream, 0.1)?, expected(&stream, 0.7)?);
    assert_ne!(first, second);
    let mut o = Operands::new(&stream, 0.1)?;
    stream.prepare(&o.problem)?;
    let mut graph = Graph::capture(&stream, || o.run(&stream))?;
    assert!(o.x_next.read()?.iter().all(|b| *b == 0), "a capture does nothing yet");
    // SAFETY: the operands are alive and only this stream uses them.
    unsafe { graph.replay(&stream)? };
    assert_eq!(o.x_next.read()?, first);
    let other = Operands::new(&stream, 0.7)?;
    o.x.write(&other.x.read()?)?;
    o.y.write(&other.y.read()?)?;
    o.mixes.write(&other.mixes.read()?)?;
    // SAFETY: as above.
    unsafe { graph.replay(&stream)? };
    assert_eq!(o.x_next.read()?, second);
    Ok(())
}

/// A capture that fails leaves the stream as it was.
fn graph_unprepared(device: &Arc<dyn Device>) -> Outcome {
    let stream = Stream::new(device.clone())?;
    let stop = || Err(Error::Checkpoint("stop".into()));
    assert!(matches!(Graph::capture(&stream, stop), Err(Error::Checkpoint(_))));
    expected(&stream, 0.1)?;
    Ok(())
}

/// Allocating during a capture is refused in words; freeing waits until it is over.
fn graph_allocates(device: &Arc<dyn Device>) -> Outcome {
    let stream = Stream::new(device.clone())?;
    let before = Tensor::empty(&stream, DType::F32, &[1000])?;
    let error = Graph::capture(&stream, || {
        drop(before);
        Tensor::empty(&stream, DType::F32, &[1000]).map(drop)
    });
    let message = error.map_or_else(|e| e.to_string(), |_| "no error".into());
    assert!(message.contains("captured"), "{message}");
    expected(&stream, 0.1)?;
    Ok(())
}

/// What operands at odd places want is loaded by the first call that has some, be it in a capture; it is the first if only this is run.
fn graph_loads(device: &Arc<dyn Device>) -> Outcome {
    let stream = Stream::new(device.clone())?;
    let p = Problem::new(Pre::default(), Dims::new(33, 4, 256), DType::Bf16);
    let operands = data::operands(&p, data::seed(&p.to_string()))?;
    stream.prepare(&p)?;
    let padded = How { placement: Placement::Padded, ..How::PLAIN };
    let mut arena = Arena::new(&stream, &p, &operands, padded.placement, padded.fill)?;
    let (ins, mut outs) = arena.views();
    let mut graph = Graph::capture(&stream, || stream.run(&p, &ins, &mut outs))?;
    // SAFETY: the operands are alive and only this stream uses them.
    unsafe { graph.replay(&stream)? };
    stream.sync()?;
    assert_eq!(arena.outputs()?, run(&stream, &p, &operands, padded)?);
    Ok(())
}

fn event(device: &Arc<dyn Device>) -> Outcome {
    let (a, b) = (Stream::new(device.clone())?, Stream::new(device.clone())?);
    let (start, end) = (Event::new(&a)?, Event::new(&a)?);
    assert!(end.elapsed_ms(&start).is_err(), "events that were never recorded");
    start.record(&a)?;
    let mut o = Operands::new(&a, 0.1)?;
    o.run(&a)?;
    end.record(&a)?;
    end.hold(&b)?;
    b.sync()?;
    let milliseconds = end.elapsed_ms(&start)?;
    // The clock that AMD's runtime has for a simulated GPU stands still.
    let stands = device.info().id.backend == "hip" && devices::is_slow(device);
    assert!((milliseconds > 0.0 || stands) && milliseconds < 10_000.0, "{milliseconds}");
    Ok(())
}

fn pinned(device: &Arc<dyn Device>) -> Outcome {
    let stream = Stream::new(device.clone())?;
    let bytes: Vec<u8> = (0..4096).map(|i| (i % 251) as u8).collect();
    let (mut from, mut to) = (Pinned::new(&stream, bytes.len())?, Pinned::new(&stream, bytes.len())?);
    from.copy_from_slice(&bytes);
    let memory = Tensor::empty(&stream, DType::F32, &[bytes.len() / 4])?;
    // SAFETY: the tensor is as large, and everything lives until the stream is waited for.
    unsafe {
        from.upload(memory.view().raw().ptr, &stream)?;
        to.download(memory.view().raw().ptr, &stream)?;
    }
    stream.sync()?;
    assert_eq!(&*to, &*bytes);
    Ok(())
}

/// A copy has the bytes, at once and replayed.
fn copy(device: &Arc<dyn Device>) -> Outcome {
    let stream = Stream::new(device.clone())?;
    let tensor = |bytes: &[u8]| Tensor::from_bytes(&stream, DType::F16, &[bytes.len() / 2], bytes);
    let bytes: Vec<u8> = (0..5002).map(|i| (i % 251) as u8).collect();
    let (mut from, mut to) = (tensor(&bytes)?, tensor(&vec![0xff; bytes.len()])?);
    gpu::copy(&stream, &from.view(), &mut to.view_mut())?;
    assert_eq!(to.read()?, bytes);
    let mut graph = Graph::capture(&stream, || gpu::copy(&stream, &from.view(), &mut to.view_mut()))?;
    let others: Vec<u8> = bytes.iter().map(|b| b ^ 1).collect();
    from.write(&others)?;
    assert_eq!(to.read()?, bytes, "a capture does nothing yet");
    // SAFETY: the operands are alive and only this stream uses them.
    unsafe { graph.replay(&stream)? };
    assert_eq!(to.read()?, others);
    Ok(())
}

/// The default stream of the context, as a framework that uses no other has it.
fn foreign_stream(device: &Arc<dyn Device>) -> Outcome {
    // SAFETY: the default stream is there as long as the context.
    let stream = unsafe { Stream::foreign(device.clone(), mhc_core::RawStream(0)) };
    let own = Stream::new(device.clone())?;
    assert_eq!(expected(&stream, 0.3)?, expected(&own, 0.3)?);
    Ok(())
}

fn out_of_memory(device: &Arc<dyn Device>) -> Outcome {
    let stream = Stream::new(device.clone())?;
    let error = Tensor::empty(&stream, DType::F32, &[1 << 46]).err();
    assert!(matches!(error, Some(Error::OutOfMemory { bytes, .. }) if bytes == 1 << 48), "{error:?}");
    expected(&stream, 0.1)?;
    Ok(())
}

/// Four threads, a stream each: everybody gets the bits of a run alone.
fn threads(device: &Arc<dyn Device>) -> Outcome {
    let alone = expected(&Stream::new(device.clone())?, 0.5)?;
    thread::scope(|scope| {
        let run = || -> Result<bool, Error> {
            let stream = Stream::new(device.clone())?;
            let same = (0..20).map(|_| Ok(expected(&stream, 0.5)? == alone)).collect::<Result<Vec<_>, Error>>()?;
            Ok(same.into_iter().all(|s| s))
        };
        let all: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        for one in all {
            assert!(one.join().map_err(|_| "a thread panicked")??, "another result than alone");
        }
        Ok(())
    })
}

/// Allocating and freeing in the order of the stream does not wait and does not grow.
fn memory_is_reused(device: &Arc<dyn Device>) -> Outcome {
    let stream = Stream::new(device.clone())?;
    let mut addresses = std::collections::HashSet::new();
    for _ in 0..1000 {
        addresses.insert(Tensor::empty(&stream, DType::F32, &[1 << 24])?.view().raw().ptr);
    }
    assert!(addresses.len() < 100, "{} different addresses in 1000 allocations", addresses.len());
    Ok(())
}

/// A kernel that reads where nothing is: the driver's error says so, or, as AMD's runtime has it, its message before it ends the process;
/// nobody takes the result for one. In a process of its own, as no device is of use after that.
fn fault(device: &Arc<dyn Device>) -> Outcome {
    let name = device.info().id.to_string();
    let mut parts = command_line()?.into_iter();
    let mut program = Command::new(parts.next().ok_or("no program")?);
    let out = program.args(parts).env(FAULT, &name).env_remove("GFXSIM_KEEP_GOING").output()?;
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).to_lowercase();
    assert!(!out.status.success() && !said.contains("panicked"), "{}: {said}", out.status);
    let words = ["illegal", "fault", "stopped"];
    assert!(words.iter().any(|w| said.contains(w)), "{}: {said}", out.status);
    expected(&Stream::new(device.clone())?, 0.1)?;
    Ok(())
}

/// How this program was started, without its arguments: by itself, or by a loader that was given it.
fn command_line() -> Result<Vec<String>, Failed> {
    let own = std::env::args().next().ok_or("a program without a name")?;
    let whole = std::fs::read_to_string("/proc/self/cmdline")?;
    let mut parts: Vec<String> = whole.split_terminator('\0').map(str::to_string).collect();
    let at = parts.iter().position(|part| *part == own).ok_or("this program's name is not in its command line")?;
    parts.truncate(at + 1);
    Ok(parts)
}

/// What the process of [`fault`] does; its error is the driver's.
fn do_wrong(name: &str) -> anyhow::Result<()> {
    let found = devices::here()?.into_iter().find(|s| s.device.info().id.to_string() == name);
    let stream = Stream::new(found.ok_or_else(|| anyhow::anyhow!("no {name}"))?.device)?;
    let o = Operands::new(&stream, 0.1)?;
    let nowhere = |v: View<'_>| Some(RawView { ptr: DevPtr(1 << 16), ..*v.raw() });
    let slots = [o.x.view(), o.y.view(), o.mixes.view(), o.x_next.view()].map(nowhere);
    let kernel = stream.prepare(&o.problem)?;
    // SAFETY: there is none. It is what is tested, in a process that has nothing to lose.
    unsafe { kernel.launch(stream.raw(), &slots, DevPtr::NULL)? };
    Ok(stream.sync()?)
}

/// A token has the same bits alone, among 17 and among 4096, at whatever place: every forward operator with every set of attributes, at
/// sizes for which devices have kernels of their own and at odd ones.
fn batches(device: &Arc<dyn Device>, op: &str) -> Outcome {
    let stream = Stream::new(device.clone())?;
    let (tokens, sizes): (usize, &[_]) = match devices::is_slow(device) {
        // More tokens than any kernel takes at a time.
        true => (131, &[(4, 72), (3, 33)]),
        false => (4096, &[(4, 2560), (4, 1300), (2, 2560), (8, 640), (8, 1024), (17, 128), (3, 130)]),
    };
    let parts = [0..1, tokens / 2 + 1..tokens / 2 + 2, tokens - 1..tokens, 0..17, tokens / 3..tokens / 3 + 17];
    for act in DType::ALL {
        for (problem, &(streams, channels)) in
            cases::one_per_tag(act).iter().flat_map(|p| sizes.iter().map(move |s| (p, s)))
        {
            if problem.op.desc().name != op || (act != DType::F32 && !problem.has_streams()) {
                continue;
            }
            let dims = Dims { tokens, streams, channels, ..problem.dims };
            batch::invariant(&stream, &Problem { dims, ..problem.clone() }, &parts).map_err(|e| format!("{e:#}"))?;
        }
    }
    Ok(())
}

/// Four streams at the same time, three times each: the bits of a run alone. Forward and backward, sums over many tokens included.
fn streams(device: &Arc<dyn Device>, op: &str) -> Outcome {
    let alone = Stream::new(device.clone())?;
    let (tokens, rounds) = if devices::is_slow(device) { (19, 1) } else { (1025, 3) };
    for act in [DType::Bf16, DType::F32] {
        let problems = cases::one_each(act).into_iter().filter(|p| p.op.desc().name == op);
        for mut p in problems.filter(|p| act == DType::F32 || p.has_streams()) {
            p.dims = Dims { tokens, channels: 128, ..p.dims };
            let operands = data::operands(&p, data::seed(&p.to_string()))?;
            let first = run(&alone, &p, &operands, How::PLAIN)?;
            let again = || -> anyhow::Result<()> {
                let stream = Stream::new(device.clone())?;
                (0..rounds).try_for_each(|_| check::same(&p, &first, &run(&stream, &p, &operands, How::PLAIN)?))
            };
            thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(again)).collect();
                let end = |one: thread::ScopedJoinHandle<'_, anyhow::Result<()>>| {
                    one.join().map_err(|_| "a thread panicked".to_string())?.map_err(|e| format!("{e:#}"))
                };
                all.into_iter().try_for_each(end)
            })?;
        }
    }
    Ok(())
}
