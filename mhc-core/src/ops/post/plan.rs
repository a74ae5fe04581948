//! How a GPU runs `post` and its gradient.

use super::{Post, PostBwd};
use crate::{
    DType, Dims, Op, Orientation,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Source},
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "post",
    text: include_str!("kernel.cuh"),
    entries: || Entry::all(&["post_fwd", "post_bwd"], gpu::STREAMS),
};

/// Threads of a block; the kernels are compiled for at most that many.
const THREADS: u32 = 256;

pub(super) fn forward(op: &Post, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let args = Args::new(&Post::DESC).streams(&["x"]).rows(&["y", "mixes"]).streams(&["x_next"]).dims(d);
    let args = args.u32(&[usize::from(op.orientation == Orientation::FromTo)]).build();
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    // One vector a thread: most loads in flight, and the most blocks for few tokens.
    let across = d.channels.div_ceil(threads as usize * (16 / act.size()));
    let entry = Entry::serving("post_fwd", act, d.streams);
    let launch =
        Launch::new("post", entry, gpu::blocks(d.tokens), threads, args).across(gpu::blocks(across).min(65535));
    Plan::new(vec![launch], 0)
}

pub(super) fn backward(op: &PostBwd, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let args = Args::new(&PostBwd::DESC).streams(&["x"]).rows(&["y", "mixes"]).streams(&["d_x_next", "d_x"]);
    let args =
        args.rows(&["d_y", "d_mixes"]).dims(d).u32(&[usize::from(op.orientation == Orientation::FromTo)]).build();
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    let entry = Entry::serving("post_bwd", act, d.streams);
    Plan::new(vec![Launch::new("post", entry, gpu::blocks(d.tokens), threads, args)], 0)
}
