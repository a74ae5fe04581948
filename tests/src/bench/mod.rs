//! What is timed: every operator at the shapes of models, on operands that are random and, where bandwidth counts, larger than any
//! cache. The program `benches/ops.rs` times it on the CPU with criterion, `benches/gpu.rs` on GPUs by replays of graphs; `xtask` makes
//! tables of the times.

pub mod amd;
pub mod bars;
pub mod first;
pub mod gpu;
mod operands;
pub mod record;

use anyhow::{Result, bail};
use mhc_core::{
    AnyOp, Axis, DType, Dims, Level, Numerics, Problem, Stream, Tensor,
    ops::{Post, PostBwd, Pre, PreBwd},
};

pub use operands::{Noise, Ready};
use record::Limit;

/// A training step's tokens, a smaller one, and one token of a decoder.
const SHAPES: [Dims; 3] = [Dims::new(2048, 4, 2048), Dims::new(512, 4, 1280), Dims::new(1, 4, 4096)];
/// Sub-layers of operators that take several.
const LAYERS: usize = 4;

/// Something with a time: launches that follow each other.
#[derive(Clone, Debug)]
pub struct Bench {
    /// `post.fwd/bf16/T2048.n4.C2048`; without attributes, since a suite has one problem of a name, and criterion cuts off long ones.
    pub id: String,
    /// What is launched, in order. Steps share operands of one name.
    pub steps: Vec<Problem>,
    /// The most it may take, where that was agreed on.
    pub limit: Option<Limit>,
}

impl Bench {
    /// Launches without a limit.
    pub fn new(id: impl Into<String>, steps: Vec<Problem>) -> Self {
        Self { id: id.into(), steps, limit: None }
    }

    /// Bytes that must move: every operand of every launch once.
    pub fn bytes(&self) -> u64 {
        self.steps.iter().map(|p| p.op.cost(&p.dims, p.act).bytes).sum()
    }

    /// The same with few tokens and channels, to see that it runs.
    #[must_use]
    pub fn shrunk(&self) -> Self {
        let small = |d: &Dims| Dims { tokens: d.tokens.min(3), channels: d.channels.min(72), ..*d };
        let steps = self.steps.iter().map(|p| Problem { dims: small(&p.dims), ..p.clone() }).collect();
        Self { steps, ..self.clone() }
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
            let bench = Bench::new(id, vec![problem.clone()]);
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

/// What a processor is timed on: the suite of this name, which without one is all of [`suite`].
pub fn on_cpu(name: Option<&str>, op: Option<&str>) -> Result<Vec<Bench>> {
    match name {
        None | Some("ops") => Ok(suite(op)),
        Some("bars") => Ok(bars::on_cpu()),
        Some(other) => bail!("a processor has the suites ops and bars, but not `{other}`"),
    }
}

/// The name under which `pre` and `post` of one sub-layer are timed together.
pub const SUB_LAYER: &str = "sub_layer";

/// `pre` and `post` of one sub-layer as inference runs them, and as training does, forward and backward.
pub fn sub_layer(act: DType, dims: Dims) -> [Bench; 2] {
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
        Bench::new(format!("{SUB_LAYER}.fwd/{act}/{dims}"), forward),
        Bench::new(format!("{SUB_LAYER}.fwd_bwd/{act}/{dims}"), both),
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

/// The host's copy, with as many threads as the CPU backend has, in the memory of tensors: what helps operands helps it too.
#[derive(Debug)]
pub struct Copy {
    from: Tensor,
    to: Tensor,
    threads: usize,
}

/// What the copy is called.
pub const COPY: &str = "copy";
/// Bytes that one copy reads and writes.
pub const COPY_BYTES: u64 = 2 * COPIED as u64;
const COPIED: usize = 128 << 20;

impl Copy {
    /// Makes the memory.
    pub fn new(stream: &Stream) -> Result<Self> {
        let threads = stream.device().info().notes.iter().find(|(name, _)| *name == "threads");
        let Some(threads) = threads.and_then(|(_, n)| n.parse().ok()) else { bail!("the CPU tells no threads") };
        let tensor = |byte| Tensor::from_bytes(stream, DType::F32, &[COPIED / 4], &vec![byte; COPIED]);
        Ok(Self { from: tensor(1)?, to: tensor(2)?, threads })
    }
}

impl Timed for Copy {
    fn launch(&mut self) -> Result<()> {
        let (from, to) = (self.from.view().raw().ptr.0, self.to.view_mut().raw().ptr.0);
        // SAFETY: tensors of the host, of COPIED bytes each, borrowed until the copy is done, `to` mutably.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(from as *const u8, COPIED),
                std::slice::from_raw_parts_mut(to as *mut u8, COPIED),
            )
        };
        let part = COPIED.div_ceil(self.threads);
        std::thread::scope(|scope| {
            for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
                scope.spawn(move || to.copy_from_slice(from));
            }
        });
        std::hint::black_box(to);
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}
