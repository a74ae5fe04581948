//! How a GPU runs `post_pre` and its gradient: the kernels of `post`, then those of `pre`.

use super::{PostPre, PostPreBwd};
use crate::{
    DType, Dims, Op,
    gpu::{GpuCaps, Plan, Ref},
    ops::{
        post::plan as post,
        pre::{
            plan::{self as pre, Gradients, Operator},
            tuned::{self, Before},
        },
        project::plan::Besides,
    },
};

pub(super) fn forward(op: &PostPre, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let PostPre { numerics, norm_weight, rms_norm, save } = op;
    let desc = &PostPre::DESC;
    let [x, x_next] = [Ref::streams("x"), Ref::streams("x_next")];
    let operands = [x, Ref::rows("y"), Ref::rows("mixes"), x_next];
    let (norm_weight, rms_norm, mixes) = (*norm_weight, *rms_norm, Ref::rows("mixes_next"));
    let operator = Operator { desc, numerics, norm_weight, rms_norm, x: x_next, mixes };
    Plan::tuned(desc, d, act, caps, |caps, scratch| {
        let before = Before { orientation: numerics.orientation, slots: ["x", "y", "mixes"] };
        if let Some(launches) = tuned::launches(&operator, Some(&before), d, act, caps, *save, scratch) {
            return launches;
        }
        let mut launches = vec![post::forward_launch(desc, numerics.orientation, d, act, caps, operands)];
        launches.extend(pre::forward_launches(&operator, d, act, caps, *save, scratch));
        launches
    })
}

pub(super) fn backward(op: &PostPreBwd, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let PostPreBwd { numerics, norm_weight, rms_norm } = op;
    let desc = &PostPreBwd::DESC;
    let (norm_weight, rms_norm) = (*norm_weight, *rms_norm);
    Plan::tuned(desc, d, act, caps, |caps, scratch| {
        let mixes = scratch.rows(d.tokens, d.mix());
        // The whole gradient of x_next, unrounded: d_mixes would lose the digits.
        let total = Ref::Scratch(scratch.take(d.tokens * d.row(), 4), [d.row(), d.channels], 2);
        let operator = Operator { desc, numerics, norm_weight, rms_norm, x: Ref::streams("x_next"), mixes };
        let besides = Besides { d_x_next: Ref::streams("d_x_next"), mixing: None, d_x: (total, true), ..Besides::NONE };
        let to = Gradients { d_mixes: Ref::rows("d_mixes_next"), besides };
        let mut launches = pre::backward_launches(&operator, d, act, caps, &to, scratch);
        let [x, y, mixes] = [Ref::streams("x"), Ref::rows("y"), Ref::rows("mixes")];
        let operands = [x, y, mixes, total, Ref::streams("d_x"), Ref::rows("d_y"), Ref::rows("d_mixes")];
        launches.push(post::backward_launch(desc, numerics.orientation, d, act, caps, true, operands));
        launches
    })
}
