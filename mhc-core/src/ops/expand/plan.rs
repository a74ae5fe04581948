//! How a GPU runs `expand` and `collapse`, which are each other's gradients.

use crate::{
    DType, Dims, OpDesc,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Source},
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "expand",
    text: include_str!("kernel.cuh"),
    entries: || Entry::both(&["expand_fwd", "collapse_fwd"], gpu::STREAMS),
};

/// Threads of a block; the kernels are compiled for at most that many.
const THREADS: u32 = 256;

/// `kernel` with its operands, scaled by `w`.
pub(in crate::ops) fn plan(
    kernel: &'static str,
    desc: &'static OpDesc,
    args: Args,
    w: f64,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
) -> Plan {
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    let across = d.channels.div_ceil(threads as usize * (16 / act.size()));
    let entry = Entry::serving(kernel, act, d.streams);
    let args = args.dims(d).f32(&[w]).build();
    let launch = Launch::new("expand", entry, gpu::blocks(d.tokens), threads, args);
    Plan::in_vectors(desc, d, act, vec![launch.across(gpu::blocks(across).min(65535))], 0)
}
