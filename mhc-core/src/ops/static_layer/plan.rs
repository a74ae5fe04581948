//! How a GPU runs `static_layer` and its gradient; also the layer kernels of `dynamic_layer`.

use super::{StaticLayer, StaticLayerBwd, tuned};
use crate::{
    DType, Dims, Op, OpDesc, Orientation,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Ref, Scratch, Source},
    ops::coefficients::plan::{self as coefficients, Backward, Params},
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "static_layer",
    text: include_str!("kernel.cuh"),
    entries: || {
        let mut entries = Entry::both(&["layer_fwd", "layer_bwd"], gpu::STREAMS);
        entries.extend(Entry::all_f32(&["static_pack", "static_unpack"], &[0]));
        entries
    },
};

/// Threads of a block; the kernels are compiled for at most that many.
const THREADS: u32 = 512;

/// Ranges of tokens in backward, each one block: two for each multiprocessor of the largest device.
const RANGES: usize = 296;

fn orientation(o: Orientation) -> usize {
    usize::from(o == Orientation::FromTo)
}

/// `out` from `x`, `w` and `mixes`.
pub(in crate::ops) fn forward_launch(
    desc: &'static OpDesc,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    mixes: Ref,
    (o, norm_eps): (Orientation, f64),
) -> Launch {
    let args = Args::new(desc).at(&[Ref::streams("x"), Ref::pointer("w"), mixes, Ref::streams("out")]).dims(d);
    let args = args.u32(&[orientation(o)]).f32(&[norm_eps]).build();
    // Few streams: as many threads as can keep their token, so that a multiprocessor has several tokens on the way at once.
    let kept = if d.streams <= 4 { d.channels.div_ceil(2) } else { d.channels };
    let threads = gpu::threads(kept, act, caps, THREADS);
    Launch::new("static_layer", Entry::serving("layer_fwd", act, d.streams), gpu::blocks(d.tokens), threads, args)
}

/// What the layer's backward writes.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Outputs {
    /// `[T, n, C]` or absent.
    pub d_x: Ref,
    /// `[T, C]` or absent.
    pub d_li: Ref,
    /// `[T, n(n+2)]`, or, unless `by_token`, one row for each of [`ranges`].
    pub d_mixes: Ref,
    pub by_token: bool,
}

/// Rows of the sums over tokens that backward leaves.
pub(in crate::ops) fn ranges(tokens: usize) -> usize {
    tokens.min(RANGES)
}

/// The layer's gradient, and d_w, a slot of that name.
pub(in crate::ops) fn backward_launches(
    desc: &'static OpDesc,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    mixes: Ref,
    out: &Outputs,
    (o, norm_eps): (Orientation, f64),
    scratch: &mut Scratch,
) -> [Launch; 2] {
    let ranges = ranges(d.tokens);
    let parts = scratch.pointer(ranges * d.channels);
    let args = Args::new(desc).at(&[Ref::streams("x"), Ref::pointer("w"), mixes, Ref::streams("d_out")]);
    let args = args.at(&[out.d_x, out.d_li, out.d_mixes, parts]).dims(d);
    let args = args.u32(&[orientation(o), usize::from(out.by_token)]).f32(&[norm_eps]).build();
    let threads = gpu::threads(d.channels, act, caps, THREADS);
    let entry = Entry::serving("layer_bwd", act, d.streams);
    let layer = Launch::new("static_layer", entry, gpu::blocks(ranges), threads, args);
    [layer, gpu::sum_rows(desc, parts, Ref::pointer("d_w"), ranges, d.channels)]
}

/// One token's coefficients in scratch.
struct Static {
    z: Ref,
    params: Params,
    /// A stride of 0: every token has the same.
    mixes: Ref,
}

/// Lays out `[z n(n+2) | alpha 3 | bias n(n+2)]`, as the kernel packs them, and computes the coefficients.
fn coefficients(
    desc: &'static OpDesc,
    numerics: &crate::Numerics,
    d: &Dims,
    caps: &GpuCaps,
    scratch: &mut Scratch,
) -> (Static, [Launch; 2]) {
    let mix = d.mix();
    let packed = scratch.take(2 * mix + 3, 4);
    let part = |at: usize| Ref::Scratch(packed + 4 * at, [mix, 0], 0);
    let z = Ref::Scratch(packed, [mix, 0], 1);
    let junk = scratch.take(mix + 3, 4);
    let params = Params {
        alpha: part(mix),
        bias: part(mix + 3),
        d_alpha: Ref::Scratch(junk, [0; 2], 0),
        d_bias: Ref::Scratch(junk + 12, [0; 2], 0),
    };
    let mixes = Ref::Scratch(scratch.take(mix, 4), [0; 2], 1);
    let args = Args::new(desc).pointers(&["h_pre", "h_post"]).rows(&["h_res"]).at(&[part(0)]).u32(&[d.streams]);
    let pack = Launch::new("static_layer", Entry::new("static_pack", DType::F32, 0), 1, 256, args.build());
    let one = Dims { tokens: 1, ..*d };
    let activate = coefficients::forward_launch(desc, numerics, &one, caps, &params, (z, mixes));
    (Static { z, params, mixes }, [pack, activate])
}

pub(super) fn forward(op: &StaticLayer, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    if d.tokens == 0 {
        return Plan::default();
    }
    let desc = &StaticLayer::DESC;
    Plan::tuned(desc, d, act, caps, |caps, scratch| {
        if let Some(layer) = tuned::forward(op, d, act, caps) {
            return vec![layer];
        }
        let (shared, [pack, activate]) = coefficients(desc, &op.numerics, d, caps, scratch);
        let conventions = (op.numerics.orientation, op.norm_eps);
        vec![pack, activate, forward_launch(desc, d, act, caps, shared.mixes, conventions)]
    })
}

pub(super) fn backward(op: &StaticLayerBwd, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    Plan::tuned(&StaticLayerBwd::DESC, d, act, caps, |caps, scratch| match tuned::backward(op, d, act, caps, scratch) {
        Some(launches) => launches.into(),
        None => portable_backward(op, d, act, caps, scratch),
    })
}

fn portable_backward(op: &StaticLayerBwd, d: &Dims, act: DType, caps: &GpuCaps, scratch: &mut Scratch) -> Vec<Launch> {
    let desc = &StaticLayerBwd::DESC;
    let (shared, [pack, activate]) = coefficients(desc, &op.numerics, d, caps, scratch);
    let (mix, rows) = (d.mix(), ranges(d.tokens));
    let parts = scratch.rows(rows, mix);
    let out = Outputs { d_x: Ref::streams("d_x"), d_li: Ref::Absent(1), d_mixes: parts, by_token: false };
    let conventions = (op.numerics.orientation, op.norm_eps);
    let [layer, d_w] = backward_launches(desc, d, act, caps, shared.mixes, &out, conventions, scratch);

    let [total, d_z] = [0; 2].map(|_| scratch.rows(1, mix));
    let pointer = |r| if let Ref::Scratch(offset, strides, _) = r { Ref::Scratch(offset, strides, 0) } else { r };
    let sum = gpu::sum_rows(desc, pointer(parts), pointer(total), rows, mix);
    let one = Dims { tokens: 1, ..*d };
    let operands = Backward { d_z, ..Backward::new(shared.z, total) };
    let back = coefficients::backward_launches(desc, &op.numerics, &one, caps, &shared.params, &operands, scratch);
    let args = Args::new(desc).at(&[pointer(d_z)]).pointers(&["d_h_pre", "d_h_post"]).rows(&["d_h_res"]);
    let args = args.u32(&[d.streams]).build();
    let unpack = Launch::new("static_layer", Entry::new("static_unpack", DType::F32, 0), 1, 256, args);
    // The gradients of the packed alpha and bias are not wanted.
    let tokens = back.into_iter().take(1);
    [pack, activate, layer, d_w, sum].into_iter().chain(tokens).chain([unpack]).collect()
}
