//! How a GPU runs `aggregate` and its gradient.

use super::{Aggregate, AggregateBwd};
use crate::{
    DType, Dims, Op, OpDesc,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Ref, Source},
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "aggregate",
    text: include_str!("kernel.cuh"),
    entries: || Entry::both(&["aggregate_fwd", "aggregate_bwd"], gpu::STREAMS),
};

/// Threads of a block; the kernels are compiled for at most that many.
const THREADS: u32 = 256;

/// `out` from `x` and `mixes`, whose rows begin with H_pre.
pub(in crate::ops) fn forward_launch(
    desc: &'static OpDesc,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    operands: [Ref; 3],
) -> Launch {
    let args = Args::new(desc).at(&operands).dims(d).build();
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    let across = d.channels.div_ceil(threads as usize * (16 / act.size()));
    let entry = Entry::serving("aggregate_fwd", act, d.streams);
    let launch = Launch::new("aggregate", entry, gpu::blocks(d.tokens), threads, args);
    launch.across(gpu::blocks(across).min(65535))
}

/// `d_x`, if it is wanted, and `d_mixes` plus `more`: operands `x`, `mixes`, `d_layer_input`, `d_x`, `d_mixes`, `more`.
pub(in crate::ops) fn backward_launch(
    desc: &'static OpDesc,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    operands: [Ref; 6],
) -> Launch {
    let args = Args::new(desc).at(&operands).dims(d).build();
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    let entry = Entry::serving("aggregate_bwd", act, d.streams);
    Launch::new("aggregate", entry, gpu::blocks(d.tokens), threads, args)
}

pub(super) fn forward(d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let operands = [Ref::streams("x"), Ref::rows("mixes"), Ref::rows("layer_input")];
    Plan::in_vectors(&Aggregate::DESC, d, act, vec![forward_launch(&Aggregate::DESC, d, act, caps, operands)], 0)
}

pub(super) fn backward(d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let [x, mixes, g] = [Ref::streams("x"), Ref::rows("mixes"), Ref::rows("d_layer_input")];
    let operands = [x, mixes, g, Ref::streams("d_x"), Ref::rows("d_mixes"), Ref::Absent(1)];
    Plan::in_vectors(&AggregateBwd::DESC, d, act, vec![backward_launch(&AggregateBwd::DESC, d, act, caps, operands)], 0)
}
