//! How a GPU runs `post` and its gradient.

use super::{Post, PostBwd};
use crate::{
    DType, Dims, Op, OpDesc, Orientation,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Ref, Source},
};

/// The device source, whose gradient is compiled apart: a first call unpacks an image, and who serves a model has no use for most of this
/// one.
pub const SOURCE: Source =
    Source { name: "post", text: include_str!("kernel.cuh"), entries: || Entry::both(&["post_fwd"], gpu::STREAMS) };
/// The gradient's kernels.
pub const BACKWARD: Source =
    Source { name: "post_bwd", entries: || Entry::both(&["post_bwd", "post_bwd_f32"], gpu::STREAMS), ..SOURCE };

/// Threads of a block; the kernels are compiled for at most that many.
const THREADS: u32 = 256;

/// Operands `x`, `y`, `mixes`, `x_next`.
pub(in crate::ops) fn forward_launch(
    desc: &'static OpDesc,
    orientation: Orientation,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    operands: [Ref; 4],
) -> Launch {
    let args = Args::new(desc).at(&operands).dims(d);
    let args = args.u32(&[usize::from(orientation == Orientation::FromTo)]).build();
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    // One vector a thread: most loads in flight, and the most blocks for few tokens.
    let across = d.channels.div_ceil(threads as usize * (16 / act.size()));
    let entry = Entry::serving("post_fwd", act, d.streams);
    Launch::new(SOURCE.name, entry, gpu::blocks(d.tokens), threads, args).across(gpu::blocks(across).min(65535))
}

/// Operands `x`, `y`, `mixes`, `d_x_next`, `d_x`, `d_y`, `d_mixes`; `wide`: `d_x_next` is f32.
pub(in crate::ops) fn backward_launch(
    desc: &'static OpDesc,
    orientation: Orientation,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    wide: bool,
    operands: [Ref; 7],
) -> Launch {
    let args = Args::new(desc).at(&operands).dims(d);
    let args = args.u32(&[usize::from(orientation == Orientation::FromTo)]).build();
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    let entry = Entry::serving(if wide { "post_bwd_f32" } else { "post_bwd" }, act, d.streams);
    Launch::new(BACKWARD.name, entry, gpu::blocks(d.tokens), threads, args)
}

pub(super) fn forward(op: &Post, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let operands = [Ref::streams("x"), Ref::rows("y"), Ref::rows("mixes"), Ref::streams("x_next")];
    Plan::in_vectors(&Post::DESC, d, act, vec![forward_launch(&Post::DESC, op.orientation, d, act, caps, operands)], 0)
}

pub(super) fn backward(op: &PostBwd, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let [x, y, mixes, g] = [Ref::streams("x"), Ref::rows("y"), Ref::rows("mixes"), Ref::streams("d_x_next")];
    let operands = [x, y, mixes, g, Ref::streams("d_x"), Ref::rows("d_y"), Ref::rows("d_mixes")];
    Plan::in_vectors(
        &PostBwd::DESC,
        d,
        act,
        vec![backward_launch(&PostBwd::DESC, op.orientation, d, act, caps, false, operands)],
        0,
    )
}
