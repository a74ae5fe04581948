//! `dynamic_layer` in one launch, and the layer's part of its gradient, on devices that bring kernels for that.

use super::{DynamicLayer, DynamicLayerBwd};
use crate::{
    DType, Dims, Op, Orientation,
    gpu::{self, Args, GpuCaps, Launch, Ref, Scratch},
    ops::{coefficients::plan as coefficients, static_layer::tuned as layer},
};

/// Tokens of a tile, and channels that a row is a multiple of and has at most.
const TILE: usize = 20;
const STEP: usize = 16;
const CHANNELS: usize = 1536;

/// Threads of a block; bytes of shared memory: two tokens of each of 4 groups, of [`CHANNELS`], and the sums of half the warps.
const THREADS: u32 = 512;
const SHARED: u32 = (4 * 2 * 4 * 4 * CHANNELS + 4 * 8 * TILE * 25) as u32;

/// Warps of backward that go back through Sinkhorn beside the others.
const WARPS: usize = 2;

/// Threads and columns of a block of the launch that adds what blocks of backward have added of their tokens.
const FINISH: u32 = 512;
const COLUMNS: usize = 32;

/// More shared memory than the kernel of forward has besides.
const FIXED: u32 = 13 << 10;

pub(super) fn forward(op: &DynamicLayer, d: &Dims, act: DType, caps: &GpuCaps) -> Option<Launch> {
    let (source, entry) = caps.tuned("dynamic_fwd_mma", act, d.streams)?;
    if !d.channels.is_multiple_of(STEP)
        || d.channels > CHANNELS
        || d.tokens == 0
        || caps.shared_per_block < SHARED + FIXED
    {
        return None;
    }
    let numerics = &op.numerics;
    let saved = [Ref::rows("z").if_there(op.save), Ref::pointer("inv_rms").if_there(op.save)];
    let args =
        Args::new(&DynamicLayer::DESC).streams(&["x"]).pointers(&["w"]).rows(&["phi"]).pointers(&["alpha", "bias"]);
    let args = args.streams(&["out"]).at(&saved).u64(&[d.tokens]);
    let args = args.u32(&[d.channels, usize::from(numerics.orientation == Orientation::FromTo)]);
    let args = coefficients::with_numerics(args, numerics).f32(&[numerics.rms_eps, op.norm_eps]).build();
    let launch = Launch::new(source, entry, gpu::blocks(d.tokens.div_ceil(TILE)), THREADS, args);
    Some(Launch { shared: SHARED, resident: true, ..launch })
}

/// The gradients of the layer and of its coefficients: `d_li`, what a projection's gradient takes, and d_w, d_alpha and d_bias.
pub(super) fn backward(
    op: &DynamicLayerBwd,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    (d_li, mixes, p, shrink): (Ref, Ref, Ref, Ref),
    scratch: &mut Scratch,
) -> Option<[Launch; 2]> {
    let (desc, numerics, mix) = (&DynamicLayerBwd::DESC, &op.numerics, d.mix());
    let (source, entry) = caps.tuned("dynamic_bwd_finish", DType::F32, d.streams)?;
    let sums = scratch.pointer(WARPS * layer::ranges(d.tokens) * 2 * mix);
    let args = Args::new(desc).streams(&["x"]).pointers(&["w"]).at(&[Ref::Absent(0), Ref::Absent(0), Ref::Absent(1)]);
    let args = coefficients::with_numerics(args, numerics).rows(&["z"]).pointers(&["alpha", "bias", "inv_rms"]);
    let args = args.streams(&["d_out"]).at(&[Ref::Absent(2), d_li, mixes, p, shrink, sums, Ref::Absent(0)]);
    // Each of the warps keeps the denominators of all half-steps, in f32 of two matrices, in f64 of one.
    let kept = 8 * 2 * numerics.sinkhorn.iters as usize * d.streams;
    let more = (WARPS as u32 * caps.wave, u32::try_from(WARPS * kept).ok()?);
    let conventions = (numerics.orientation, op.norm_eps);
    let (launch, d_w) = layer::backward_launch("dynamic_bwd_ahead", args, more, d, act, caps, conventions, scratch)?;

    let args = Args::new(desc).at(&[d_w, sums]).pointers(&["d_w", "d_alpha", "d_bias"]);
    let args = args.u32(&[layer::ranges(d.tokens), d.channels]).build();
    let blocks = gpu::blocks(d.channels.div_ceil(COLUMNS) + 2);
    Some([launch, Launch::new(source, entry, blocks, FINISH, args)])
}
