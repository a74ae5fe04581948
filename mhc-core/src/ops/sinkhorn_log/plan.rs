//! How a GPU runs `sinkhorn_log` and its gradient.

use super::{SinkhornLog, SinkhornLogBwd};
use crate::{
    DType, Dims, Op,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Scratch, Source},
    ops::sinkhorn::plan::{WAVES, wave_blocks},
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "sinkhorn_log",
    text: include_str!("kernel.cuh"),
    entries: || Entry::all_f32(&["sinkhorn_log_fwd", "sinkhorn_log_bwd"], &[0]),
};

fn launch(kernel: &'static str, blocks: u32, caps: &GpuCaps, args: Args) -> Launch {
    Launch::new("sinkhorn_log", Entry::new(kernel, DType::F32, 0), blocks, WAVES * caps.wave, args.build())
}

pub(super) fn forward(op: &SinkhornLog, d: &Dims, caps: &GpuCaps) -> Plan {
    let args = Args::new(&SinkhornLog::DESC).streams(&["logits", "h_res"]).u64(&[d.tokens]);
    let args = args.u32(&[d.streams, op.iters as usize]).f32(&[op.tau]);
    let blocks = gpu::blocks(d.tokens.div_ceil(WAVES as usize));
    Plan::new(vec![launch("sinkhorn_log_fwd", blocks, caps, args)], 0)
}

pub(super) fn backward(op: &SinkhornLogBwd, d: &Dims, caps: &GpuCaps) -> Plan {
    let mut scratch = Scratch::default();
    let (blocks, saved) = wave_blocks(d.tokens, 8 * d.streams * op.iters as usize, &mut scratch);
    let args = Args::new(&SinkhornLogBwd::DESC).streams(&["logits", "d_h_res", "d_logits"]).u64(&[d.tokens]);
    let args = args.u32(&[d.streams, op.iters as usize]).f32(&[op.tau]).at(&[saved]);
    Plan::new(vec![launch("sinkhorn_log_bwd", blocks, caps, args)], scratch.bytes())
}
