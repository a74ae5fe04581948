//! How a GPU runs `head` and its gradient.

use super::{Head, HeadBwd};
use crate::{
    DType, Dims, Op,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Ref, Source},
    ops::{
        aggregate::plan as aggregate,
        coefficients::plan as coefficients,
        project::plan::{self as project, Besides, Operands},
    },
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "head",
    text: include_str!("kernel.cuh"),
    entries: || Entry::all_f32(&["head_gates", "head_gates_bwd"], &[0]),
};

fn gates(args: Args, d: &Dims, pre_eps: f64) -> Launch {
    let blocks = gpu::blocks((d.tokens * d.streams).div_ceil(256));
    Launch::new("head", Entry::new("head_gates", DType::F32, 0), blocks, 256, args.dims(d).f32(&[pre_eps]).build())
}

pub(super) fn forward(op: &Head, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let desc = &Head::DESC;
    Plan::tuned(desc, d, act, caps, |caps, scratch| {
        let mut operands = Operands::slots(d.streams, false);
        if !op.save {
            operands.z = scratch.rows(d.tokens, d.streams);
            operands.inv_rms = Ref::Absent(0);
        }
        let h = scratch.rows(d.tokens, d.streams);
        let mut launches = project::forward_launches(desc, op.rms_eps, d, act, caps, &operands, scratch);
        let args = Args::new(desc).at(&[operands.z, Ref::pointer("scale"), Ref::pointer("bias"), h]);
        launches.push(gates(args, d, op.pre_eps));
        launches.push(aggregate::forward_launch(desc, d, act, caps, [Ref::streams("x"), h, Ref::rows("out")]));
        launches
    })
}

pub(super) fn backward(op: &HeadBwd, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let desc = &HeadBwd::DESC;
    Plan::tuned(desc, d, act, caps, |caps, scratch| {
        let operands = Operands::slots(d.streams, false);
        let (scale, bias) = (Ref::pointer("scale"), Ref::pointer("bias"));
        let [h, d_t, d_z] = [0; 3].map(|_| scratch.rows(d.tokens, d.streams));
        let d_h = scratch.rows(d.tokens, d.mix());
        let args = Args::new(desc).at(&[operands.z, scale, bias, h]);
        let mut launches = vec![gates(args, d, op.pre_eps)];

        let (x, g) = (operands.x, Ref::rows("d_out"));
        let dots = [x, h, g, Ref::Absent(2), d_h, Ref::Absent(1)];
        launches.push(aggregate::backward_launch(desc, d, act, caps, dots));
        let args = Args::new(desc).at(&[operands.z, scale, bias, d_h, d_t, d_z]).dims(d).build();
        let blocks = gpu::blocks((d.tokens * d.streams).div_ceil(256));
        launches.push(Launch::new("head", Entry::new("head_gates_bwd", DType::F32, 0), blocks, 256, args));
        let totals = (Ref::pointer("d_scale"), Ref::pointer("d_bias"));
        let sums = coefficients::sum_launches(desc, d, (d.streams, 1), (operands.z, d_t), totals, scratch);
        launches.extend(sums);
        let besides = Besides { mixes: h, d_li: g, ..Besides::NONE };
        launches.extend(project::backward_launches(desc, d, act, caps, &operands, d_z, &besides, scratch));
        launches
    })
}
