//! How a GPU runs `dynamic_layer` and its gradient: the projection and the coefficients, then the layer kernels of `static_layer`.

use super::{DynamicLayer, DynamicLayerBwd};
use crate::{
    DType, Dims, Op,
    gpu::{GpuCaps, Plan, Ref},
    ops::{
        coefficients::plan::{self as coefficients, Params},
        project::plan::{self as project, Besides, Operands},
        static_layer::plan::{self as layer, Outputs},
    },
};

pub(super) fn forward(op: &DynamicLayer, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let (desc, mix) = (&DynamicLayer::DESC, d.mix());
    Plan::tuned(desc, d, act, caps, |caps, scratch| {
        let mut operands = Operands::slots(mix, false);
        if !op.save {
            operands.z = scratch.rows(d.tokens, mix);
            operands.inv_rms = Ref::Absent(0);
        }
        let mixes = scratch.rows(d.tokens, mix);
        let mut launches = project::forward_launches(desc, op.numerics.rms_eps, d, act, caps, &operands, scratch);
        let through = (operands.z, mixes);
        launches.push(coefficients::forward_launch(desc, &op.numerics, d, caps, &Params::SLOTS, through));
        let conventions = (op.numerics.orientation, op.norm_eps);
        launches.push(layer::forward_launch(desc, d, act, caps, mixes, conventions));
        launches
    })
}

pub(super) fn backward(op: &DynamicLayerBwd, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let (desc, mix) = (&DynamicLayerBwd::DESC, d.mix());
    Plan::tuned(desc, d, act, caps, |caps, scratch| {
        let operands = Operands::slots(mix, false);
        let [mixes, d_mixes, d_z] = [0; 3].map(|_| scratch.rows(d.tokens, mix));
        let d_li = scratch.rows(d.tokens, d.channels);
        let through = (operands.z, mixes);
        let mut launches = vec![coefficients::forward_launch(desc, &op.numerics, d, caps, &Params::SLOTS, through)];
        let conventions = (op.numerics.orientation, op.norm_eps);
        let out = Outputs { d_x: Ref::Absent(2), d_li, d_mixes, by_token: true };
        launches.extend(layer::backward_launches(desc, d, act, caps, mixes, &out, conventions, scratch));
        let through = (operands.z, d_mixes, d_z, Ref::Absent(1));
        let params = &Params::SLOTS;
        launches.extend(coefficients::backward_launches(desc, &op.numerics, d, caps, params, through, scratch));
        let (d_x_next, mixing) = (Ref::streams("d_out"), Some(op.numerics.orientation));
        let besides = Besides { mixes, d_li_f32: d_li, d_x_next, mixing, ..Besides::NONE };
        launches.extend(project::backward_launches(desc, d, act, caps, &operands, d_z, &besides, scratch));
        launches
    })
}
