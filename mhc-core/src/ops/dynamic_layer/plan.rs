//! How a GPU runs `dynamic_layer` and its gradient: the projection and the coefficients, then the layer kernels of `static_layer`.

use super::{DynamicLayer, DynamicLayerBwd};
use crate::{
    DType, Dims, Op,
    gpu::{self, Args, GpuCaps, Launch, Plan, Ref, Scratch},
    ops::{
        coefficients::plan::{self as coefficients, Backward, Params},
        project::plan::{self as project, Besides, Operands},
        static_layer::{
            plan::{self as layer, Outputs},
            tuned as layer_ahead,
        },
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
    Plan::tuned(&DynamicLayerBwd::DESC, d, act, caps, |caps, scratch| {
        let (desc, numerics, mix) = (&DynamicLayerBwd::DESC, &op.numerics, d.mix());
        let operands = Operands::slots(mix, false);
        let [mixes, d_mixes] = [0; 2].map(|_| scratch.rows(d.tokens, mix));
        let d_li = scratch.rows(d.tokens, d.channels);
        let (mut launches, again) = match tuned_layer(op, d, act, caps, d_li, d_mixes, scratch) {
            // Makes H_pre and H_post itself: what the projection's gradient takes besides is made with that of the coefficients.
            Some(launches) => (launches, mixes),
            None => {
                let through = (operands.z, mixes);
                let mut launches = vec![coefficients::forward_launch(desc, numerics, d, caps, &Params::SLOTS, through)];
                let conventions = (numerics.orientation, op.norm_eps);
                let out = Outputs { d_x: Ref::Absent(2), d_li, d_mixes, by_token: true };
                launches.extend(layer::backward_launches(desc, d, act, caps, mixes, &out, conventions, scratch));
                (launches, Ref::Absent(1))
            }
        };
        let (p, shrink) = (scratch.pointer(d.tokens * mix), scratch.pointer(d.tokens));
        let projection = [operands.inv_rms, p, shrink];
        let through = Backward { mixes: again, projection, ..Backward::new(operands.z, d_mixes) };
        launches.extend(coefficients::backward_launches(desc, numerics, d, caps, &Params::SLOTS, &through, scratch));
        let (d_x_next, mixing) = (Ref::streams("d_out"), Some(numerics.orientation));
        let besides = Besides { mixes, d_li_f32: d_li, d_x_next, mixing, ..Besides::NONE };
        launches.extend(project::product_launches(desc, d, act, caps, &operands, (p, shrink), &besides, scratch));
        launches
    })
}

/// The layer's gradient by kernels of the device's own, if it brings them.
fn tuned_layer(
    op: &DynamicLayerBwd,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    d_li: Ref,
    d_mixes: Ref,
    scratch: &mut Scratch,
) -> Option<Vec<Launch>> {
    let desc = &DynamicLayerBwd::DESC;
    let args = Args::new(desc).streams(&["x"]).pointers(&["w"]).at(&[Ref::Absent(0), Ref::Absent(0), Ref::Absent(1)]);
    let args = coefficients::with_numerics(args, &op.numerics).rows(&["z"]).pointers(&["alpha", "bias"]);
    let args = args.streams(&["d_out"]).at(&[Ref::Absent(2), d_li]);
    let conventions = (op.numerics.orientation, op.norm_eps);
    let (layer, parts) =
        layer_ahead::backward_launch("dynamic_bwd_ahead", args, d_mixes, d, act, caps, conventions, scratch)?;
    let rows = layer_ahead::ranges(d.tokens);
    Some(vec![layer, gpu::sum_rows(desc, parts, Ref::pointer("d_w"), rows, d.channels)])
}
