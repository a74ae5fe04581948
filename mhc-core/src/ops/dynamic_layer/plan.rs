//! How a GPU runs `dynamic_layer` and its gradient: the projection and the coefficients, then the layer kernels of `static_layer`.

use super::{DynamicLayer, DynamicLayerBwd, tuned};
use crate::{
    DType, Dims, Op,
    gpu::{GpuCaps, Plan, Ref},
    ops::{
        coefficients::plan::{self as coefficients, Backward, Params},
        project::plan::{self as project, Besides, Operands},
        static_layer::plan::{self as layer, Outputs},
    },
};

pub(super) fn forward(op: &DynamicLayer, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let (desc, mix) = (&DynamicLayer::DESC, d.mix());
    Plan::tuned(desc, d, act, caps, |caps, scratch| {
        if let Some(launch) = tuned::forward(op, d, act, caps) {
            return vec![launch];
        }
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
    Plan::tuned(&DynamicLayerBwd::DESC, d, act, caps, |caps, scratch| {
        let (desc, numerics, mix) = (&DynamicLayerBwd::DESC, &op.numerics, d.mix());
        let operands = Operands::slots(mix, false);
        let (mixes, d_li) = (scratch.rows(d.tokens, mix), scratch.rows(d.tokens, d.channels));
        let (p, shrink) = (scratch.pointer(d.tokens * mix), scratch.pointer(d.tokens));
        let mut launches = match tuned::backward(op, d, act, caps, (d_li, mixes, p, shrink), scratch) {
            Some(launches) => launches.to_vec(),
            None => {
                let d_mixes = scratch.rows(d.tokens, mix);
                let through = (operands.z, mixes);
                let mut launches = vec![coefficients::forward_launch(desc, numerics, d, caps, &Params::SLOTS, through)];
                let conventions = (numerics.orientation, op.norm_eps);
                let out = Outputs { d_x: Ref::Absent(2), d_li, d_mixes, by_token: true };
                launches.extend(layer::backward_launches(desc, d, act, caps, mixes, &out, conventions, scratch));
                let projection = [operands.inv_rms, p, shrink];
                let through = Backward { projection, ..Backward::new(operands.z, d_mixes) };
                let params = &Params::SLOTS;
                launches.extend(coefficients::backward_launches(desc, numerics, d, caps, params, &through, scratch));
                launches
            }
        };
        let (d_x_next, mixing) = (Ref::streams("d_out"), Some(numerics.orientation));
        let besides = Besides { mixes, d_li_f32: d_li, d_x_next, mixing, ..Besides::NONE };
        launches.extend(project::product_launches(desc, d, act, caps, &operands, (p, shrink), &besides, scratch));
        launches
    })
}
