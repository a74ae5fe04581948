//! How a GPU runs `rms_norm` and its gradient.

use super::{RmsNorm, RmsNormBwd};
use crate::{
    DType, Dims, Op,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Ref, Scratch, Source},
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "rms_norm",
    text: include_str!("kernel.cuh"),
    entries: || {
        let mut entries = Entry::both(&["rms_norm_fwd", "rms_norm_bwd"], &[0]);
        entries.extend(Entry::all(&["rms_norm_bwd_w"], &[0]));
        entries
    },
};

/// Threads of a block; the kernels are compiled for at most that many.
const THREADS: u32 = 256;

pub(super) fn forward(op: &RmsNorm, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let args = Args::new(&RmsNorm::DESC).rows(&["x"]).pointers(&["w"]).rows(&["y"]);
    let args = args.pointers(&["inv_rms"]).dims(d).f32(&[op.eps]).build();
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    let entry = Entry::new("rms_norm_fwd", act, 0);
    Plan::in_vectors(
        &RmsNorm::DESC,
        d,
        act,
        vec![Launch::new("rms_norm", entry, gpu::blocks(d.tokens), threads, args)],
        0,
    )
}

pub(super) fn backward(d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let desc = &RmsNormBwd::DESC;
    let args = Args::new(desc).rows(&["x"]).pointers(&["w", "inv_rms"]).rows(&["d_y", "d_x"]).dims(d).build();
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    let d_x = Launch::new("rms_norm", Entry::new("rms_norm_bwd", act, 0), gpu::blocks(d.tokens), threads, args);

    let (mut scratch, ranges) = (Scratch::default(), gpu::ranges(d.tokens));
    let parts = scratch.pointer(ranges * d.channels);
    let args = Args::new(desc).rows(&["x"]).pointers(&["inv_rms"]).rows(&["d_y"]).at(&[parts]).dims(d).build();
    let blocks = gpu::blocks(d.channels.div_ceil(THREADS as usize));
    let d_w = Launch::new("rms_norm", Entry::new("rms_norm_bwd_w", act, 0), blocks, THREADS, args);
    let d_w = d_w.across(gpu::blocks(ranges));
    let sum = gpu::sum_rows(desc, parts, Ref::pointer("d_w"), ranges, d.channels);
    Plan::in_vectors(&RmsNormBwd::DESC, d, act, vec![d_x, d_w, sum], scratch.bytes())
}
