//! The layers on devices that bring kernels for few streams: the coefficients of `static_layer` are made where they are used, rows come
//! ahead of their turn, and what backward adds over tokens takes one more launch.

use super::{StaticLayer, StaticLayerBwd};
use crate::{
    DType, Dims, Numerics, Op, Orientation,
    gpu::{self, Args, GpuCaps, Launch, Ref, Scratch},
    ops::coefficients::plan as coefficients,
};

/// Threads of a block at most, in forward and backward: what the kernels are compiled for.
const FORWARD: u32 = 320;
const BACKWARD: u32 = 512;

/// Ranges of tokens in backward, each one block: two for each multiprocessor of an H100. A constant, as the order of sums over tokens
/// follows from it.
const RANGES: usize = 264;

/// Tokens of which a block of backward fetches the rows ahead.
const STAGES: usize = 2;

/// More shared memory than the kernels of backward have besides.
const FIXED: u32 = 12 << 10;

/// Threads and columns of a block of the last launch of backward, and the most memory that Sinkhorn's denominators may take there.
const FINISH: (u32, usize) = (544, 32);
const DENOMINATORS: usize = 32 << 10;

/// Threads of a block of which each has `keep` vectors of a row, if `most` are enough.
fn threads(d: &Dims, act: DType, caps: &GpuCaps, keep: usize, most: u32) -> Option<u32> {
    let vectors = d.channels.div_ceil(16 / act.size());
    let threads = vectors.div_ceil(keep).next_multiple_of(caps.wave as usize);
    u32::try_from(threads).ok().filter(|&t| t <= most && d.tokens > 0)
}

/// The fields of the device's `Raw`.
fn raw(args: Args, numerics: &Numerics) -> Args {
    coefficients::with_numerics(args.pointers(&["h_pre", "h_post"]).rows(&["h_res"]), numerics)
}

/// Rows of the sums over tokens that backward leaves.
pub(in crate::ops) fn ranges(tokens: usize) -> usize {
    tokens.min(RANGES)
}

fn from_to(orientation: Orientation) -> usize {
    usize::from(orientation == Orientation::FromTo)
}

pub(super) fn forward(op: &StaticLayer, d: &Dims, act: DType, caps: &GpuCaps) -> Option<Launch> {
    let (source, entry) = caps.tuned("static_fwd_ahead", act, d.streams)?;
    // Two vectors of f32, one of 16 bits: what leaves registers for the next token.
    let threads = threads(d, act, caps, act.size() / 2, FORWARD)?;
    let args =
        raw(Args::new(&StaticLayer::DESC).streams(&["x"]).pointers(&["w"]), &op.numerics).streams(&["out"]).dims(d);
    let args = args.u32(&[from_to(op.numerics.orientation)]).f32(&[op.norm_eps]).build();
    Some(Launch { resident: true, ..Launch::new(source, entry, gpu::blocks(d.tokens), threads, args) })
}

/// The gradient of either layer but for what the coefficients are made of: `args` are the kernel's up to `d_mixes`, `more` threads and
/// bytes of shared memory that it takes besides. Also the parts of d_w, one for each of [`ranges`].
pub(in crate::ops) fn backward_launch(
    kernel: &str,
    args: Args,
    more: (u32, u32),
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    (orientation, norm_eps): (Orientation, f64),
    scratch: &mut Scratch,
) -> Option<(Launch, Ref)> {
    let (source, entry) = caps.tuned(kernel, act, d.streams)?;
    let threads = threads(d, act, caps, 1, BACKWARD)?;
    let d_w = scratch.pointer(ranges(d.tokens) * d.channels);
    let args = args.at(&[d_w]).dims(d).u32(&[from_to(orientation)]).f32(&[norm_eps]).build();
    let shared = (STAGES * 2 * d.streams * 16) as u32 * threads + more.1;
    let launch = Launch::new(source, entry, gpu::blocks(ranges(d.tokens)), threads + more.0, args);
    Some((Launch { shared, ..launch }, d_w)).filter(|_| shared + FIXED <= caps.shared_per_block)
}

pub(super) fn backward(
    op: &StaticLayerBwd,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    scratch: &mut Scratch,
) -> Option<[Launch; 2]> {
    let (desc, numerics) = (&StaticLayerBwd::DESC, &op.numerics);
    let (source, entry) = caps.tuned("static_bwd_finish", DType::F32, d.streams)?;
    let denominators = 8 * 2 * numerics.sinkhorn.iters as usize * d.streams;
    let args = raw(Args::new(desc).streams(&["x"]).pointers(&["w"]), numerics);
    let d_mixes = scratch.pointer(ranges(d.tokens) * d.mix());
    let args = args.at(&[Ref::Absent(1)]).at(&[Ref::Absent(0); 3]).streams(&["d_out", "d_x"]);
    let args = args.at(&[Ref::Absent(1); 2]).at(&[Ref::Absent(0); 3]).at(&[d_mixes]);
    let conventions = (numerics.orientation, op.norm_eps);
    let layer = backward_launch("static_bwd_ahead", args, (0, 0), d, act, caps, conventions, scratch);
    let (layer, d_w) = layer.filter(|_| denominators <= DENOMINATORS)?;

    let args = raw(Args::new(desc).at(&[d_w, d_mixes]), numerics);
    let args = args.pointers(&["d_w", "d_h_pre", "d_h_post"]).rows(&["d_h_res"]);
    let args = args.u32(&[ranges(d.tokens), d.channels]).build();
    let blocks = gpu::blocks(d.channels.div_ceil(FINISH.1) + 1);
    let finish = Launch { shared: denominators as u32, ..Launch::new(source, entry, blocks, FINISH.0, args) };
    Some([layer, finish])
}
