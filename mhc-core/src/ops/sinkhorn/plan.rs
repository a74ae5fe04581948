//! How a GPU runs `sinkhorn` and its gradient.

use super::{Sinkhorn, SinkhornBwd};
use crate::{
    DType, Dims, Eps, Op, Order, Orientation, SinkhornForm, Start,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Ref, Scratch, Source},
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "sinkhorn",
    text: include_str!("kernel.cuh"),
    entries: || Entry::all_f32(&["sinkhorn_fwd", "sinkhorn_bwd"], gpu::STREAMS),
};

/// Threads of a block where each has a matrix to itself.
const THREADS: u32 = 64;

/// Waves of a block where each has a matrix to itself: the kernels have shared memory for so many.
pub(in crate::ops) const WAVES: u32 = 2;

/// Threads or waves that go from matrix to matrix in backward, each with scratch for one: enough to fill the largest device.
const OWNERS: usize = 32 << 10;

/// Who takes one matrix: a thread, or a wave.
struct Owners {
    /// Owners in a block.
    block: usize,
    /// Threads of a block.
    threads: u32,
}

impl Owners {
    fn new(n: usize, caps: &GpuCaps) -> Self {
        if matches!(n, 1 | 2 | 4) {
            Self { block: THREADS as usize, threads: THREADS }
        } else {
            Self { block: WAVES as usize, threads: WAVES * caps.wave }
        }
    }
}

/// Scratch that they may take together, however many iterations.
const SCRATCH: usize = 256 << 20;

/// Adds the fields of the device's `Form`.
pub(in crate::ops) fn form(args: Args, form: &SinkhornForm, orientation: Orientation) -> Args {
    let start = match form.start {
        Start::Exp => 0,
        Start::ExpShifted => 1,
        Start::Softmax => 2,
    };
    let mode = match form.eps {
        Eps::None => 0,
        Eps::Added(_) => 1,
        Eps::Threshold(_) => 2,
        Eps::Clamp(_) => 3,
    };
    // Lines of the first half-step are those of the first index in memory.
    let lead = (form.order == Order::RowsFirst) == (orientation == Orientation::ToFrom);
    args.u32(&[start, usize::from(lead), mode, form.iters as usize]).f32(&[form.eps.value()])
}

/// A launch that gives every token to a thread or a wave.
pub(in crate::ops) fn forward_launch(
    source: &'static str,
    kernel: &'static str,
    d: &Dims,
    caps: &GpuCaps,
    args: Args,
) -> Launch {
    let owners = Owners::new(d.streams, caps);
    let entry = Entry::serving(kernel, DType::F32, d.streams);
    Launch::new(source, entry, gpu::blocks(d.tokens.div_ceil(owners.block)), owners.threads, args.build())
}

/// Blocks for a gradient whose waves go from matrix to matrix, each with `bytes` of scratch, and all their scratch.
pub(in crate::ops) fn wave_blocks(tokens: usize, bytes: usize, scratch: &mut Scratch) -> (u32, Ref) {
    let waves = WAVES as usize;
    let blocks = tokens.div_ceil(waves).min((SCRATCH / bytes.max(1)).clamp(waves, OWNERS) / waves);
    (gpu::blocks(blocks), Ref::Scratch(scratch.take(blocks * waves * bytes, 1), [0; 2], 0))
}

/// Shared memory that the denominators of a block's threads may take.
const NEAR: usize = 48 << 10;

/// Blocks of a gradient.
pub(in crate::ops) fn backward_blocks(d: &Dims, caps: &GpuCaps, iters: u32) -> usize {
    let owners = Owners::new(d.streams, caps);
    let most = OWNERS.min(SCRATCH / (8 * 2 * iters as usize * d.streams)).max(owners.block) / owners.block;
    d.tokens.div_ceil(owners.block).min(most)
}

/// The same for a gradient, with the denominators of forward's half-steps as the last arguments: scratch for them, and whether floats go
/// to shared memory instead.
pub(in crate::ops) fn backward_launch(
    source: &'static str,
    kernel: &'static str,
    d: &Dims,
    caps: &GpuCaps,
    iters: u32,
    args: Args,
    scratch: &mut Scratch,
) -> Launch {
    let owners = Owners::new(d.streams, caps);
    let numbers = 2 * iters as usize * d.streams;
    let blocks = backward_blocks(d, caps, iters);
    let sums = Ref::Scratch(scratch.take(blocks * owners.block * numbers, 8), [0; 2], 0);
    let entry = Entry::serving(kernel, DType::F32, d.streams);
    let near = 4 * numbers * owners.block;
    let near = if owners.block == THREADS as usize && near <= NEAR { near } else { 0 };
    let args = args.at(&[sums]).u32(&[usize::from(near > 0)]).build();
    Launch { shared: near as u32, ..Launch::new(source, entry, gpu::blocks(blocks), owners.threads, args) }
}

pub(super) fn forward(op: &Sinkhorn, d: &Dims, caps: &GpuCaps) -> Plan {
    let args = form(Args::new(&Sinkhorn::DESC).streams(&["logits", "h_res"]).dims(d), &op.form, op.orientation);
    Plan::new(vec![forward_launch("sinkhorn", "sinkhorn_fwd", d, caps, args)], 0)
}

pub(super) fn backward(op: &SinkhornBwd, d: &Dims, caps: &GpuCaps) -> Plan {
    let mut scratch = Scratch::default();
    let args = Args::new(&SinkhornBwd::DESC).streams(&["logits", "d_h_res", "d_logits"]).dims(d);
    let args = form(args, &op.form, op.orientation);
    let launch = backward_launch("sinkhorn", "sinkhorn_bwd", d, caps, op.form.iters, args, &mut scratch);
    Plan::new(vec![launch], scratch.bytes())
}
