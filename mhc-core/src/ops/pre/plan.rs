//! How a GPU runs `pre` and its gradient; also the second half of `post_pre`.

use super::{Pre, PreBwd, tuned};
use crate::{
    DType, Dims, Numerics, Op, OpDesc,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Ref, Scratch, Source},
    ops::{
        aggregate::plan as aggregate,
        coefficients::plan::{self as coefficients, Backward, Params},
        project::plan::{self as project, Besides, Operands},
    },
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "pre",
    text: include_str!("kernel.cuh"),
    entries: || Entry::both(&["pre_norm", "pre_norm_bwd"], gpu::STREAMS),
};

/// Threads of a block; the kernels are compiled for at most that many.
const THREADS: u32 = 512;

/// Ranges of tokens in backward, each one block: two for each multiprocessor of the largest device.
const RANGES: usize = 296;

/// `pre` wherever its streams and coefficients are.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Operator<'a> {
    pub desc: &'static OpDesc,
    pub numerics: &'a Numerics,
    pub norm_weight: bool,
    /// ε of the RMSNorm of the aggregate.
    pub rms_norm: Option<f64>,
    pub x: Ref,
    pub mixes: Ref,
}

/// `layer_input` and `mixes`, with what backward needs if `save`.
pub(in crate::ops) fn forward_launches(
    op: &Operator<'_>,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    save: bool,
    scratch: &mut Scratch,
) -> Vec<Launch> {
    if let Some(launches) = tuned::launches(op, None, d, act, caps, save, scratch) {
        return launches;
    }
    let (desc, mix) = (op.desc, d.mix());
    let mut operands = Operands { x: op.x, ..Operands::slots(mix, op.norm_weight) };
    if !save {
        operands.z = scratch.rows(d.tokens, mix);
        operands.inv_rms = Ref::Absent(0);
    }
    let mut launches = project::forward_launches(desc, op.numerics.rms_eps, d, act, caps, &operands, scratch);
    let through = (operands.z, op.mixes);
    launches.push(coefficients::forward_launch(desc, op.numerics, d, caps, &Params::SLOTS, through));
    let out = Ref::rows("layer_input");
    launches.push(match op.rms_norm {
        None => aggregate::forward_launch(desc, d, act, caps, [op.x, op.mixes, out]),
        Some(eps) => {
            let inv_rms = Ref::pointer("li_inv_rms").if_there(save);
            let args =
                Args::new(desc).at(&[op.x, Ref::pointer("w"), op.mixes, out, inv_rms]).dims(d).f32(&[eps]).build();
            let threads = gpu::threads(d.channels, act, caps, THREADS);
            Launch::new("pre", Entry::serving("pre_norm", act, d.streams), gpu::blocks(d.tokens), threads, args)
        }
    });
    launches
}

/// Where the gradients of `pre` come from and go.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Gradients {
    /// `[T, n(n+2)]`: upstream.
    pub d_mixes: Ref,
    /// What d_x takes besides, and where it goes; `mixes` and the layer input's gradient are filled in here.
    pub besides: Besides,
}

/// The gradients of everything. `z`, `inv_rms`, `li_inv_rms`, `d_layer_input` and the parameters' gradients are slots of that name.
pub(in crate::ops) fn backward_launches(
    op: &Operator<'_>,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    to: &Gradients,
    scratch: &mut Scratch,
) -> Vec<Launch> {
    let (desc, mix) = (op.desc, d.mix());
    let operands = Operands { x: op.x, ..Operands::slots(mix, op.norm_weight) };
    let mut launches = Vec::new();
    let mut again = op.mixes;
    let all = scratch.rows(d.tokens, mix);
    let g = Ref::rows("d_layer_input");
    let mut besides = Besides { mixes: op.mixes, ..to.besides };
    if op.rms_norm.is_some() {
        let through = (operands.z, op.mixes);
        launches.push(coefficients::forward_launch(desc, op.numerics, d, caps, &Params::SLOTS, through));
        again = Ref::Absent(1);
        besides.d_li_f32 = scratch.rows(d.tokens, d.channels);
        let ranges = d.tokens.min(RANGES);
        let parts = scratch.pointer(ranges * d.channels);
        let args = Args::new(desc).at(&[op.x, Ref::pointer("w"), op.mixes, Ref::pointer("li_inv_rms"), g]);
        let args = args.at(&[to.d_mixes, all, besides.d_li_f32, parts]).dims(d).build();
        let threads = gpu::threads(d.channels, act, caps, THREADS);
        let entry = Entry::serving("pre_norm_bwd", act, d.streams);
        launches.push(Launch::new("pre", entry, gpu::blocks(ranges), threads, args));
        launches.push(gpu::sum_rows(desc, parts, Ref::pointer("d_w"), ranges, d.channels));
    } else {
        besides.d_li = g;
        // The dot products alone, which do not take the coefficients: their own gradient makes them on the way.
        let dots = [op.x, Ref::Absent(1), g, Ref::Absent(2), all, to.d_mixes];
        launches.push(aggregate::backward_launch(desc, d, act, caps, dots));
    }
    let (p, shrink) = (scratch.pointer(d.tokens * mix), scratch.pointer(d.tokens));
    let projection = [operands.inv_rms, p, shrink];
    let through = Backward { mixes: again, projection, ..Backward::new(operands.z, all) };
    launches.extend(coefficients::backward_launches(desc, op.numerics, d, caps, &Params::SLOTS, &through, scratch));
    launches.extend(project::product_launches(desc, d, act, caps, &operands, (p, shrink), &besides, scratch));
    launches
}

pub(super) fn forward(op: &Pre, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let Pre { numerics, norm_weight, rms_norm, save } = op;
    let operator = Operator {
        desc: &Pre::DESC,
        numerics,
        norm_weight: *norm_weight,
        rms_norm: *rms_norm,
        x: Ref::streams("x"),
        mixes: Ref::rows("mixes"),
    };
    Plan::tuned(&Pre::DESC, d, act, caps, |caps, scratch| forward_launches(&operator, d, act, caps, *save, scratch))
}

pub(super) fn backward(op: &PreBwd, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let PreBwd { numerics, norm_weight, rms_norm, carry } = op;
    let (desc, norm_weight, rms_norm) = (&PreBwd::DESC, *norm_weight, *rms_norm);
    let d_x_next = Ref::streams("d_x_next").if_there(*carry);
    let besides = Besides { d_x_next, mixing: Some(numerics.orientation), ..Besides::NONE };
    let to = Gradients { d_mixes: Ref::rows("d_mixes"), besides };
    Plan::tuned(desc, d, act, caps, |caps, scratch| {
        // The coefficients are not saved: they are made again from z.
        let mixes = scratch.rows(d.tokens, d.mix());
        let operator = Operator { desc, numerics, norm_weight, rms_norm, x: Ref::streams("x"), mixes };
        backward_launches(&operator, d, act, caps, &to, scratch)
    })
}
