//! What is timed: every operator at the shapes of models, on operands that are random and, where bandwidth counts, larger than any
//! cache. The program `benches/ops.rs` times it with criterion; `xtask` makes tables of the times.

use anyhow::{Result, bail};
use mhc_core::{
    AnyOp, Axis, DType, Dims, Fill, Level, Numerics, Problem, Slot, Stream, Tensor, View, ViewMut,
    ops::{Expand, Post, PostBwd, Pre, PreBwd},
};

use crate::data::Rng;

/// A training step's tokens, a smaller one, and one token of a decoder.
const SHAPES: [Dims; 3] = [Dims::new(2048, 4, 2048), Dims::new(512, 4, 1280), Dims::new(1, 4, 4096)];
/// Sub-layers of operators that take several.
const LAYERS: usize = 4;
/// Operands below this size stay in the cache, as they do between the operators of a model; larger ones are rotated.
const CACHED: u64 = 4 << 20;
/// All rotated operands together: more than the last level cache of any machine we know, shared ones apart.
const ROTATED: u64 = 256 << 20;

/// Something with a time: launches that follow each other.
#[derive(Clone, Debug)]
pub struct Bench {
    /// `post.fwd/bf16/T2048.n4.C2048`; without attributes, since a suite has one problem of a name, and criterion cuts off long ones.
    pub id: String,
    /// What is launched, in order.
    pub steps: Vec<Problem>,
}

impl Bench {
    /// Bytes that must move: every operand of every launch once.
    pub fn bytes(&self) -> u64 {
        self.steps.iter().map(|p| p.op.cost(&p.dims, p.act).bytes).sum()
    }
}

/// Every operator, with the attributes of its first case, and whole sub-layers; or just those of one operator and its gradient.
pub fn suite(op: Option<&str>) -> Vec<Bench> {
    let mut benches: Vec<Bench> = Vec::new();
    let mut seen = Vec::new();
    for case in AnyOp::all_cases(Level::Smoke) {
        let name = case.op.desc().name;
        if seen.contains(&name) || op.is_some_and(|op| name != op && name.strip_suffix("_bwd") != Some(op)) {
            continue;
        }
        seen.push(name);
        for (act, shape) in DType::ALL[..2].iter().flat_map(|act| SHAPES.map(|shape| (*act, shape))) {
            let problem = Problem { dims: sizes(&case.op, shape), op: case.op.clone(), act };
            let direction = match name.strip_suffix("_bwd") {
                Some(name) => format!("{name}.bwd"),
                None => format!("{name}.fwd"),
            };
            let id = format!("{direction}/{act}/{}", problem.dims);
            let bench = Bench { id, steps: vec![problem.clone()] };
            if (act == DType::F32 || problem.has_streams()) && benches.iter().all(|b| b.id != bench.id) {
                benches.push(bench);
            }
        }
    }
    if op.is_none_or(|op| op == SUB_LAYER) {
        let types_and_shapes = DType::ALL[..2].iter().flat_map(|act| SHAPES.map(|shape| (*act, shape)));
        benches.extend(types_and_shapes.flat_map(|(act, shape)| sub_layer(act, shape)));
    }
    benches
}

/// The name under which `pre` and `post` of one sub-layer are timed together.
pub const SUB_LAYER: &str = "sub_layer";

/// `pre` and `post` of one sub-layer as inference runs them, and as training does, forward and backward.
fn sub_layer(act: DType, dims: Dims) -> [Bench; 2] {
    let numerics = Numerics::default();
    let orientation = numerics.orientation;
    let pre = |save| Pre { numerics, norm_weight: false, rms_norm: None, save };
    let pre_bwd = PreBwd { numerics, norm_weight: false, rms_norm: None, carry: true };
    let post_bwd = PostBwd { orientation, d_x: false };
    let step = |op: AnyOp| Problem { op, dims, act };
    let forward = vec![step(pre(false).into()), step(Post { orientation }.into())];
    let mut both = vec![step(pre(true).into()), step(Post { orientation }.into())];
    both.extend([step(post_bwd.into()), step(pre_bwd.into())]);
    [
        Bench { id: format!("{SUB_LAYER}.fwd/{act}/{dims}"), steps: forward },
        Bench { id: format!("{SUB_LAYER}.fwd_bwd/{act}/{dims}"), steps: both },
    ]
}

/// The sizes that matter to an operator; 1 for those it does not have.
fn sizes(op: &AnyOp, shape: Dims) -> Dims {
    let uses = |axes: &[Axis]| op.desc().slots.iter().any(|s| s.axes.iter().any(|a| axes.contains(a)));
    Dims {
        tokens: shape.tokens,
        streams: if uses(&[Axis::N, Axis::Mix, Axis::K]) { shape.streams } else { 1 },
        channels: if uses(&[Axis::C, Axis::K]) { shape.channels } else { 1 },
        layers: if uses(&[Axis::L]) { LAYERS } else { 1 },
    }
}

/// What can be timed: launched many times, then waited for.
pub trait Timed {
    /// Launches once.
    fn launch(&mut self) -> Result<()>;
    /// Waits for everything launched.
    fn wait(&self) -> Result<()>;
}

/// A bench with its operands on a device.
#[derive(Debug)]
pub struct Ready {
    stream: Stream,
    /// Each holds the operands of every step.
    sets: Vec<Vec<Operands>>,
    steps: Vec<Problem>,
    next: usize,
}

/// The operands of one launch, inputs and outputs in slot order.
#[derive(Debug)]
struct Operands {
    ins: Vec<Tensor>,
    outs: Vec<Tensor>,
}

impl Operands {
    fn run(&mut self, stream: &Stream, p: &Problem) -> Result<()> {
        let ins: Vec<View<'_>> = self.ins.iter().map(Tensor::view).collect();
        let mut outs: Vec<ViewMut<'_>> = self.outs.iter_mut().map(Tensor::view_mut).collect();
        Ok(stream.run(p, &ins, &mut outs)?)
    }
}

impl Ready {
    /// Makes operands: one set, or, `rotated`, as many as it takes to exceed the caches where the operator is bound by memory.
    pub fn new(stream: &Stream, bench: &Bench, rotated: bool) -> Result<Self> {
        let bytes = bench.bytes().max(1);
        let sets = if rotated && bytes >= CACHED { ROTATED.div_ceil(bytes) } else { 1 };
        let noise = Noise::new();
        let set = |_| bench.steps.iter().map(|p| operands(stream, p, &noise)).collect::<Result<Vec<_>>>();
        let sets = (0..sets).map(set).collect::<Result<Vec<_>>>()?;
        for p in &bench.steps {
            stream.prepare(p)?;
        }
        Ok(Self { stream: stream.clone(), sets, steps: bench.steps.clone(), next: 0 })
    }
}

impl Timed for Ready {
    /// Launches every step once, on the next set of operands.
    fn launch(&mut self) -> Result<()> {
        for (p, o) in self.steps.iter().zip(&mut self.sets[self.next]) {
            o.run(&self.stream, p)?;
        }
        self.next = (self.next + 1) % self.sets.len();
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(self.stream.sync()?)
    }
}

/// Random numbers, drawn once and repeated: drawing takes longer than any operator.
struct Noise(Vec<f64>);

impl Noise {
    fn new() -> Self {
        // A length that no row divides, so that rows differ.
        Self(Rng::new(1).normals(100_003))
    }

    /// `len` elements as bytes.
    fn fill(&self, len: usize, dtype: DType, fill: Fill) -> Vec<u8> {
        let map = |v: &f64| match fill {
            Fill::Normal { std } => std * v,
            Fill::Uniform { lo, hi } => lo + (hi - lo) * v.rem_euclid(1.0),
        };
        let once = dtype.encode(&self.0.iter().take(len).map(map).collect::<Vec<_>>());
        let mut bytes = once.repeat(len.div_ceil(self.0.len()));
        bytes.truncate(len * dtype.size());
        bytes
    }
}

/// Random inputs; what a backward operator reads of its forward's results is computed by the device.
fn operands(stream: &Stream, p: &Problem, noise: &Noise) -> Result<Operands> {
    let draw = |slot: &Slot| -> Result<Tensor> {
        let dtype = slot.dtype(p.act);
        let bytes = noise.fill(slot.len(&p.dims), dtype, slot.fill);
        Ok(Tensor::from_bytes(stream, dtype, &slot.shape(&p.dims), &bytes)?)
    };
    let mut known: Vec<(&str, Tensor)> = Vec::new();
    if let Some(op) = p.op.forward() {
        let forward = Problem { op, ..p.clone() };
        let mut o = operands(stream, &forward, noise)?;
        o.run(stream, &forward)?;
        known.extend(forward.slots().filter(|s| s.is_input()).map(|s| s.name).zip(o.ins));
        known.extend(forward.slots().filter(|s| !s.is_input()).map(|s| s.name).zip(o.outs));
    }
    let (mut ins, mut outs) = (Vec::new(), Vec::new());
    for slot in p.slots() {
        if !slot.is_input() {
            outs.push(Tensor::zeros(stream, slot.dtype(p.act), &slot.shape(&p.dims))?);
        } else if let Some(i) = known.iter().position(|(name, _)| *name == slot.name) {
            ins.push(known.swap_remove(i).1);
        } else {
            ins.push(draw(slot)?);
        }
    }
    Ok(Operands { ins, outs })
}

/// The device's copy: host memory with as many threads as the CPU backend has, or one stream expanded to one on a GPU.
#[derive(Debug)]
pub enum Copy {
    /// Host memory.
    Host {
        /// From.
        from: Vec<u8>,
        /// To.
        to: Vec<u8>,
        /// Threads.
        threads: usize,
    },
    /// Device memory.
    Device(Ready),
}

/// What the copy is called.
pub const COPY: &str = "copy";
/// Bytes that one copy reads and writes.
pub const COPY_BYTES: u64 = 2 * COPIED as u64;
const COPIED: usize = 128 << 20;

impl Copy {
    /// Makes the memory.
    pub fn new(stream: &Stream) -> Result<Self> {
        if stream.id().backend == "cpu" {
            let threads = stream.device().info().notes.iter().find(|(name, _)| *name == "threads");
            let Some(threads) = threads.and_then(|(_, n)| n.parse().ok()) else { bail!("the CPU tells no threads") };
            return Ok(Self::Host { from: vec![1; COPIED], to: vec![2; COPIED], threads });
        }
        let problem = Problem::new(Expand, Dims::new(COPIED / 4 / 4096, 1, 4096), DType::F32);
        Ok(Self::Device(Ready::new(stream, &Bench { id: COPY.into(), steps: vec![problem] }, false)?))
    }
}

impl Timed for Copy {
    fn launch(&mut self) -> Result<()> {
        match self {
            Self::Device(ready) => ready.launch(),
            Self::Host { from, to, threads } => {
                let part = from.len().div_ceil(*threads);
                std::thread::scope(|scope| {
                    for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
                        scope.spawn(move || to.copy_from_slice(from));
                    }
                });
                std::hint::black_box(to);
                Ok(())
            }
        }
    }

    fn wait(&self) -> Result<()> {
        match self {
            Self::Device(ready) => ready.wait(),
            Self::Host { .. } => Ok(()),
        }
    }
}
