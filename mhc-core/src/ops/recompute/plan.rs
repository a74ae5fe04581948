//! How a GPU runs `recompute` and its gradient.

use super::{Recompute, RecomputeBwd};
use crate::{
    DType, Dims, Op, Orientation,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Ref, Scratch, Source},
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "recompute",
    text: include_str!("kernel.cuh"),
    entries: || Entry::both(&["recompute_fwd", "recompute_bwd"], gpu::STREAMS),
};

/// Threads of a block; the kernels are compiled for at most that many.
const THREADS: u32 = 256;

/// Blocks of backward, each with scratch for one token: enough to fill the largest device.
const BLOCKS: usize = 1024;

/// `[L, T, C]` and `[L, T, n, C]`.
fn layers(slot: &'static str) -> Ref {
    Ref::Slot(slot, 2)
}
fn layer_streams(slot: &'static str) -> Ref {
    Ref::Slot(slot, 3)
}

fn sizes(args: Args, d: &Dims, orientation: Orientation) -> Args {
    args.dims(d).u32(&[d.layers, usize::from(orientation == Orientation::FromTo)])
}

pub(super) fn forward(op: &Recompute, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let args = Args::new(&Recompute::DESC).at(&[Ref::streams("x"), layers("mixes"), layers("y")]);
    let args = args.at(&[layers("layer_inputs"), layer_streams("residuals")]);
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    let across = d.channels.div_ceil(threads as usize * (16 / act.size()));
    let entry = Entry::serving("recompute_fwd", act, d.streams);
    let args = sizes(args, d, op.orientation).build();
    let launch = Launch::new("recompute", entry, gpu::blocks(d.tokens), threads, args);
    Plan::in_vectors(&Recompute::DESC, d, act, vec![launch.across(gpu::blocks(across).min(65535))], 0)
}

pub(super) fn backward(op: &RecomputeBwd, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let mut scratch = Scratch::default();
    let blocks = d.tokens.min(BLOCKS);
    let carried = scratch.pointer(blocks * 2 * d.row());
    let args = Args::new(&RecomputeBwd::DESC).at(&[Ref::streams("x"), layers("mixes"), layers("y")]);
    let args = args.at(&[layer_streams("residuals"), layers("d_layer_inputs"), layer_streams("d_residuals")]);
    let args = args.at(&[Ref::streams("d_x"), layers("d_mixes"), layers("d_y"), carried]);
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    let entry = Entry::serving("recompute_bwd", act, d.streams);
    let args = sizes(args, d, op.orientation).build();
    Plan::in_vectors(
        &RecomputeBwd::DESC,
        d,
        act,
        vec![Launch::new("recompute", entry, gpu::blocks(blocks), threads, args)],
        scratch.bytes(),
    )
}
