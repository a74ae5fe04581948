//! `post_pre`: `post` of one sub-layer and `pre` of the next in one operator (arXiv 2512.24880, eq. 3 and 7-9).

mod plan;

use super::{post, pre, project::PHI, project::WEIGHT, project::flops};
use crate::{
    AnyOp, Axis::*, Case, Cost, DType, Dims, Inputs, Level, Numerics, Op, OpDesc, Outputs, Real, Result, Slot,
};
use crate::{op::every_operand_once, stream_dims};

/// `x_next_i = Σ_j H_res[i,j]·x_j + H_post[i]·y`, then `layer_input, mixes_next = pre(x_next)`.
///
/// x is read and x_next written once; what is projected and aggregated is x_next as it was stored, so that the result is that of `post`
/// followed by `pre`. phi, alpha, bias, norm_weight and w are those of the next sub-layer.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PostPre {
    /// Every convention, of both halves.
    pub numerics: Numerics,
    /// Whether the projection's RMSNorm has a weight.
    pub norm_weight: bool,
    /// The ε of an RMSNorm of the aggregate, with weight `w`.
    pub rms_norm: Option<f64>,
    /// Whether to write what backward needs.
    pub save: bool,
}

impl Op for PostPre {
    const DESC: OpDesc = OpDesc {
        name: "post_pre",
        formula: "x_next = post(x, y, mixes); layer_input, mixes_next = pre(x_next)",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::stream("y", &[T, C]),
            Slot::coeff("mixes", &[T, Mix]),
            Slot::coeff("phi", &[Mix, K]).fill(PHI),
            Slot::coeff("alpha", &[Lit(3)]),
            Slot::coeff("bias", &[Mix]),
            Slot::coeff("norm_weight", &[K]).fill(WEIGHT),
            Slot::coeff("w", &[C]).fill(WEIGHT),
            Slot::stream("x_next", &[T, N, C]).out(),
            Slot::stream("layer_input", &[T, C]).out(),
            Slot::coeff("mixes_next", &[T, Mix]).out(),
            Slot::coeff("z", &[T, Mix]).saved(),
            Slot::coeff("inv_rms", &[T]).saved(),
            Slot::coeff("li_inv_rms", &[T]).saved(),
        ],
    };

    fn has(&self, slot: &str) -> bool {
        match slot {
            "norm_weight" => self.norm_weight,
            "w" => self.rms_norm.is_some(),
            "z" | "inv_rms" => self.save,
            "li_inv_rms" => self.save && self.rms_norm.is_some(),
            _ => true,
        }
    }

    fn check(&self) -> Result<()> {
        pre::check(Self::DESC.name, &self.numerics, self.rms_norm)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let x_next = post::forward(d, self.numerics.orientation, x.get("x"), x.get("y"), x.get("mixes"));
        let [phi, alpha, bias, norm_weight, w] = ["phi", "alpha", "bias", "norm_weight", "w"].map(|slot| x.get(slot));
        let operands = pre::Operands { x: x.stored("x_next", &x_next), phi, alpha, bias, norm_weight, w };
        let f = pre::forward(d, &self.numerics, self.rms_norm, operands);
        pre::outputs(self.save, self.rms_norm.is_some(), f, "mixes_next").and("x_next", x_next)
    }

    fn rereads(&self) -> &'static [&'static str] {
        &["x_next"]
    }

    fn cost(&self, d: &Dims, act: DType) -> Cost {
        Cost { flops: flops(d, d.mix()), ..every_operand_once(self, d, act) }
    }

    fn tag(&self) -> String {
        pre::tag(&self.numerics, self.norm_weight, self.rms_norm) + if self.save { "-save" } else { "" }
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = pre::attributes().enumerate().map(|(i, (numerics, norm_weight, rms_norm))| PostPre {
            numerics,
            norm_weight,
            rms_norm,
            save: i % 3 != 2,
        });
        Case::spread(ops, &stream_dims(level))
    }
}

/// The gradient of [`PostPre`]: `pre_bwd` at x_next, `d_x_next` added to what it gives, and `post_bwd` of the sum. The `pre` part of
/// `d_mixes` is written as zero.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PostPreBwd {
    /// As in forward.
    pub numerics: Numerics,
    /// As in forward.
    pub norm_weight: bool,
    /// As in forward.
    pub rms_norm: Option<f64>,
}

impl Op for PostPreBwd {
    const DESC: OpDesc = OpDesc {
        name: "post_pre_bwd",
        formula: "g, d_phi, d_alpha, d_bias, d_norm_weight, d_w = pre_bwd(x_next); d_x, d_y, d_mixes = post_bwd(x, y, mixes, d_x_next + g)",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::stream("y", &[T, C]),
            Slot::coeff("mixes", &[T, Mix]),
            Slot::stream("x_next", &[T, N, C]),
            Slot::coeff("phi", &[Mix, K]).fill(PHI),
            Slot::coeff("alpha", &[Lit(3)]),
            Slot::coeff("bias", &[Mix]),
            Slot::coeff("norm_weight", &[K]).fill(WEIGHT),
            Slot::coeff("w", &[C]).fill(WEIGHT),
            Slot::coeff("z", &[T, Mix]),
            Slot::coeff("inv_rms", &[T]),
            Slot::coeff("li_inv_rms", &[T]),
            Slot::stream("d_x_next", &[T, N, C]),
            Slot::stream("d_layer_input", &[T, C]),
            Slot::coeff("d_mixes_next", &[T, Mix]),
            Slot::stream("d_x", &[T, N, C]).out(),
            Slot::stream("d_y", &[T, C]).out(),
            Slot::coeff("d_mixes", &[T, Mix]).out(),
            Slot::coeff("d_phi", &[Mix, K]).out(),
            Slot::coeff("d_alpha", &[Lit(3)]).out(),
            Slot::coeff("d_bias", &[Mix]).out(),
            Slot::coeff("d_norm_weight", &[K]).out(),
            Slot::coeff("d_w", &[C]).out(),
        ],
    };

    fn has(&self, slot: &str) -> bool {
        match slot {
            "norm_weight" | "d_norm_weight" => self.norm_weight,
            "w" | "li_inv_rms" | "d_w" => self.rms_norm.is_some(),
            _ => true,
        }
    }

    fn check(&self) -> Result<()> {
        pre::check(Self::DESC.name, &self.numerics, self.rms_norm)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let operands = pre::operands(x, x.get("x_next"));
        let mut g =
            pre::backward(d, &self.numerics, operands, pre::saved(x), x.get("d_layer_input"), x.get("d_mixes_next"));
        g.x.iter_mut().zip(x.get("d_x_next")).for_each(|(sum, &v)| *sum += v);
        let [x_, y, mixes] = ["x", "y", "mixes"].map(|slot| x.get(slot));
        let (d_x, d_y, d_mixes) = post::backward(d, self.numerics.orientation, x_, y, mixes, &g.x);
        g.x = d_x;
        pre::gradients(self.norm_weight, self.rms_norm, g).and("d_y", d_y).and("d_mixes", d_mixes)
    }

    fn forward(&self) -> Option<AnyOp> {
        let PostPreBwd { numerics, norm_weight, rms_norm } = *self;
        Some(PostPre { numerics, norm_weight, rms_norm, save: true }.into())
    }

    fn cost(&self, d: &Dims, act: DType) -> Cost {
        Cost { flops: 2 * flops(d, d.mix()), ..every_operand_once(self, d, act) }
    }

    fn tag(&self) -> String {
        pre::tag(&self.numerics, self.norm_weight, self.rms_norm)
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = pre::attributes();
        let ops = ops.map(|(numerics, norm_weight, rms_norm)| PostPreBwd { numerics, norm_weight, rms_norm });
        Case::spread(ops, &stream_dims(level))
    }
}
