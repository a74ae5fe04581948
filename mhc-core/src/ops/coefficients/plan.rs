//! How a GPU runs `coefficients` and its gradient.

use super::{Coefficients, CoefficientsBwd};
use crate::{
    DType, Dims, Numerics, Op, OpDesc,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Ref, Scratch, Source},
    ops::sinkhorn::plan as sinkhorn,
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "coefficients",
    text: include_str!("kernel.cuh"),
    entries: || {
        let mut entries = Entry::all_f32(&["coefficients_fwd", "coefficients_bwd"], gpu::STREAMS);
        entries.extend(Entry::all_f32(&["coefficients_bwd_sums", "coefficients_bwd_total"], &[0]));
        entries
    },
};

/// Adds the conventions that the kernels take.
pub(in crate::ops) fn with_numerics(args: Args, numerics: &Numerics) -> Args {
    sinkhorn::form(args, &numerics.sinkhorn, numerics.orientation).f32(&[numerics.pre_eps, numerics.post_mult])
}

/// Where alpha and bias are, and their gradients.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Params {
    pub alpha: Ref,
    pub bias: Ref,
    pub d_alpha: Ref,
    pub d_bias: Ref,
}

impl Params {
    /// The slots of the names that every operator uses.
    pub(in crate::ops) const SLOTS: Self = Self {
        alpha: Ref::pointer("alpha"),
        bias: Ref::pointer("bias"),
        d_alpha: Ref::pointer("d_alpha"),
        d_bias: Ref::pointer("d_bias"),
    };
}

/// `mixes` from `z`.
pub(in crate::ops) fn forward_launch(
    desc: &'static OpDesc,
    numerics: &Numerics,
    d: &Dims,
    caps: &GpuCaps,
    params: &Params,
    (z, mixes): (Ref, Ref),
) -> Launch {
    let args = Args::new(desc).at(&[z, params.alpha, params.bias, mixes]).dims(d);
    sinkhorn::forward_launch("coefficients", "coefficients_fwd", d, caps, with_numerics(args, numerics))
}

/// Operands of the gradient; all but the first two may be absent.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Backward {
    /// `[T, n(n+2)]`
    pub z: Ref,
    /// `[T, n(n+2)]`
    pub d_mixes: Ref,
    /// `[T, n(n+2)]`
    pub d_z: Ref,
    /// `[T, n(n+2)]`: the coefficients again.
    pub mixes: Ref,
    /// For the gradient of a projection: `inv_rms [T]`, and its `p [T, n(n+2)]` and `shrink [T]`.
    pub projection: [Ref; 3],
}

impl Backward {
    /// Without what may be absent.
    pub(in crate::ops) fn new(z: Ref, d_mixes: Ref) -> Self {
        let (d_z, mixes) = (Ref::Absent(1), Ref::Absent(1));
        Self { z, d_mixes, d_z, mixes, projection: [Ref::Absent(0); 3] }
    }
}

/// `d_z` and what else is wanted from `z` and `d_mixes`, and the gradients of alpha and bias. The first launch takes the tokens.
pub(in crate::ops) fn backward_launches(
    desc: &'static OpDesc,
    numerics: &Numerics,
    d: &Dims,
    caps: &GpuCaps,
    params: &Params,
    o: &Backward,
    scratch: &mut Scratch,
) -> Vec<Launch> {
    let mix = d.mix();
    // What a block adds of its tokens, or d_t.
    let few = matches!(d.streams, 1 | 2 | 4);
    let d_t = if few { Ref::Absent(1) } else { scratch.rows(d.tokens, mix) };
    let blocks = sinkhorn::backward_blocks(d, caps, numerics.sinkhorn.iters);
    let parts = if few { scratch.pointer(blocks * 2 * mix) } else { Ref::Absent(0) };
    let args = Args::new(desc).at(&[o.z, params.alpha, params.bias, o.d_mixes, o.d_z, d_t, o.mixes]);
    let args = with_numerics(args.at(&o.projection).at(&[parts]).dims(d), numerics);
    let iters = numerics.sinkhorn.iters;
    let tokens = sinkhorn::backward_launch("coefficients", "coefficients_bwd", d, caps, iters, args, scratch);
    let totals = (params.d_alpha, params.d_bias);
    if few {
        return vec![tokens, total_launch(desc, d, (mix, 3), parts, blocks, totals)];
    }
    let [sums, total] = sum_launches(desc, d, (mix, 3), (o.z, d_t), totals, scratch);
    vec![tokens, sums, total]
}

/// The gradients of alpha and bias from `d_t` and `z`, for `columns` coefficients in `groups` groups of n, the last of which is the rest.
pub(in crate::ops) fn sum_launches(
    desc: &'static OpDesc,
    d: &Dims,
    (columns, groups): (usize, usize),
    (z, d_t): (Ref, Ref),
    (d_alpha, d_bias): (Ref, Ref),
    scratch: &mut Scratch,
) -> [Launch; 2] {
    let ranges = gpu::ranges(d.tokens);
    let parts = scratch.pointer(ranges * 2 * columns);
    let args = Args::new(desc).at(&[z, d_t, parts]).u64(&[d.tokens]).u32(&[columns]).build();
    let entry = Entry::new("coefficients_bwd_sums", DType::F32, 0);
    let sums = Launch::new("coefficients", entry, gpu::blocks(columns.div_ceil(32)), 256, args);

    [sums.across(gpu::blocks(ranges)), total_launch(desc, d, (columns, groups), parts, ranges, (d_alpha, d_bias))]
}

/// Adds `rows` rows of sums of d_t and of d_t·z.
fn total_launch(
    desc: &'static OpDesc,
    d: &Dims,
    (columns, groups): (usize, usize),
    parts: Ref,
    rows: usize,
    (d_alpha, d_bias): (Ref, Ref),
) -> Launch {
    let args = Args::new(desc).at(&[parts, d_alpha, d_bias]);
    let args = args.u32(&[rows, columns, d.streams, groups]).build();
    Launch::new("coefficients", Entry::new("coefficients_bwd_total", DType::F32, 0), 1, 256, args)
}

pub(super) fn forward(op: &Coefficients, d: &Dims, caps: &GpuCaps) -> Plan {
    let operands = (Ref::rows("z"), Ref::rows("mixes"));
    Plan::new(vec![forward_launch(&Coefficients::DESC, &op.numerics, d, caps, &Params::SLOTS, operands)], 0)
}

pub(super) fn backward(op: &CoefficientsBwd, d: &Dims, caps: &GpuCaps) -> Plan {
    let mut scratch = Scratch::default();
    let operands = Backward { d_z: Ref::rows("d_z"), ..Backward::new(Ref::rows("z"), Ref::rows("d_mixes")) };
    let desc = &CoefficientsBwd::DESC;
    let launches = backward_launches(desc, &op.numerics, d, caps, &Params::SLOTS, &operands, &mut scratch);
    Plan::new(launches, scratch.bytes())
}
