//! `dynamic_layer` in one launch, and the layer's part of its gradient, on devices that bring kernels for that.

use super::{DynamicLayer, DynamicLayerBwd};
use crate::{
    DType, Dims, Op, Orientation,
    gpu::{self, Args, GpuCaps, Launch, Ref, Scratch},
    ops::{coefficients::plan as coefficients, static_layer::tuned as layer},
};

/// Tokens of a tile, blocks of a cluster; channels of a row of a tile, and the most that a token has.
const TILE: usize = 16;
const RANKS: usize = 8;
const ROW: usize = 32;
const CHANNELS: usize = 1536;

/// Threads of a block of forward.
const THREADS: u32 = 512;

/// Warps of backward that go back through Sinkhorn beside the others.
const WARPS: usize = 2;

/// Threads and columns of a block of the launch that adds what blocks of backward have added of their tokens.
const FINISH: u32 = 512;
const COLUMNS: usize = 32;

pub(super) fn forward(op: &DynamicLayer, d: &Dims, act: DType, caps: &GpuCaps) -> Option<Launch> {
    let (source, entry) = caps.tuned("dynamic_fwd_cluster", act, d.streams)?;
    // Tensor copies want rows of whole 16 bytes, and there are at most so many channels that phi fits into registers.
    if !d.channels.is_multiple_of(4) || d.channels > CHANNELS || d.tokens == 0 {
        return None;
    }
    // Slots of tiles, and boxes of messages: of those, more than three tiles' are seldom on their way.
    let shapes = (3..=8).rev().flat_map(|slots| [(slots, 4), (slots, 3)]);
    let fits = |&(slots, boxes): &(usize, usize)| {
        boxes <= slots && shared(d.channels, slots, boxes) <= caps.shared_per_block as usize
    };
    let (slots, boxes) = shapes.into_iter().find(fits)?;
    let numerics = &op.numerics;
    let saved = [Ref::rows("z").if_there(op.save), Ref::pointer("inv_rms").if_there(op.save)];
    let args = Args::new(&DynamicLayer::DESC).tile("x", TILE, ROW).tile("phi", d.mix(), ROW);
    let args = args.pointers(&["w", "alpha", "bias"]).streams(&["out"]).at(&saved).u64(&[d.tokens]);
    let args = args.u32(&[d.channels, slots, boxes, usize::from(numerics.orientation == Orientation::FromTo)]);
    let args = coefficients::with_numerics(args, numerics).f32(&[numerics.rms_eps, op.norm_eps]).build();
    let launch = Launch::new(source, entry, gpu::blocks(d.tokens.div_ceil(TILE) * RANKS), THREADS, args);
    let shared = shared(d.channels, slots, boxes) as u32;
    Some(Launch { cluster: [RANKS as u32, 1, 1], shared, resident: true, ..launch })
}

/// Bytes of shared memory of a block of forward; the kernel's `Place`.
fn shared(channels: usize, slots: usize, boxes: usize) -> usize {
    let rows = channels.div_ceil(ROW * RANKS);
    let (slot, partial) = (rows * 4 * TILE * ROW * 4 + 2 * 8, 8 * TILE * 25 * 4);
    let messages = RANKS * 2 * 25 * 4 + TILE * (24 + RANKS) * 4 + 4 * 8;
    slots * slot + partial + boxes * messages + 2 * (4 * 33 * 8 + 2 * 24 * 4) + rows * ROW * 4 + 3 * 8
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
