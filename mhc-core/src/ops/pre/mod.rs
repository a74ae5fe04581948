//! `pre`: everything before a sub-layer: projection, coefficients, aggregate (arXiv 2512.24880, eq. 7-9 and the first half of eq. 3).

pub(super) mod plan;
mod reference;
pub(super) mod tuned;

pub use plan::SOURCE;
pub use reference::{Forward, Gradient, Operands, Saved, backward, forward};

use super::{
    post,
    project::{PHI, WEIGHT, flops},
};
use crate::numerics::check_eps;
use crate::{
    AnyOp, Axis::*, Case, Cost, DType, Dims, Inputs, Level, Numerics, Op, OpDesc, Outputs, Real, Result, Slot,
};
use crate::{op::every_operand_once, stream_dims};

/// `z = ρ·(φ ⊙ norm_weight)·x`; `mixes = coefficients(z)`; `layer_input = Σ_i H_pre_i·x_i`, with an RMSNorm behind it where asked for.
///
/// One pass over x. `mixes = [H_pre n | H_post n | H_res n·n]` is what [`Post`](super::Post) wants behind the sub-layer.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Pre {
    /// Every convention.
    pub numerics: Numerics,
    /// Whether the projection's RMSNorm has a weight.
    pub norm_weight: bool,
    /// The ε of an RMSNorm of the aggregate, with weight `w`; it works on the aggregate in f32.
    pub rms_norm: Option<f64>,
    /// Whether to write what backward needs: z, ρ and, with `rms_norm`, the aggregate's inverse root mean square.
    pub save: bool,
}

impl Op for Pre {
    const DESC: OpDesc = OpDesc {
        name: "pre",
        formula: "z = inv_rms (phi * norm_weight) x; mixes = coefficients(z); layer_input[t,c] = sum_i H_pre[t,i] x[t,i,c], or w * RMSNorm of it",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("phi", &[Mix, K]).fill(PHI),
            Slot::coeff("alpha", &[Lit(3)]),
            Slot::coeff("bias", &[Mix]),
            Slot::coeff("norm_weight", &[K]).fill(WEIGHT),
            Slot::coeff("w", &[C]).fill(WEIGHT),
            Slot::stream("layer_input", &[T, C]).out(),
            Slot::coeff("mixes", &[T, Mix]).out(),
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
        check(Self::DESC.name, &self.numerics, self.rms_norm)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let f = forward(d, &self.numerics, self.rms_norm, operands(x, x.get("x")));
        outputs(self.save, self.rms_norm.is_some(), f, "mixes")
    }

    fn cost(&self, d: &Dims, act: DType) -> Cost {
        Cost { flops: flops(d, d.mix()), ..every_operand_once(self, d, act) }
    }

    fn tag(&self) -> String {
        tag(&self.numerics, self.norm_weight, self.rms_norm) + if self.save { "-save" } else { "" }
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = attributes().enumerate().map(|(i, (numerics, norm_weight, rms_norm))| Pre {
            numerics,
            norm_weight,
            rms_norm,
            save: i % 3 != 2,
        });
        let mut dims = stream_dims(level);
        if level >= Level::Full {
            // Of 8 streams, more than one tile of the kernels that share tokens among many blocks.
            dims.push(Dims::new(67, 8, 512));
        }
        Case::spread(ops, &dims)
    }
}

/// The gradient of [`Pre`]. The `pre` part of `d_mixes` is an upstream gradient as the others are; `post_bwd` leaves zeros there.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PreBwd {
    /// As in forward.
    pub numerics: Numerics,
    /// As in forward.
    pub norm_weight: bool,
    /// As in forward.
    pub rms_norm: Option<f64>,
    /// Whether to add `H_res^T·d_x_next` to `d_x`: the part of x's gradient that comes through the mixing of the same sub-layer, which
    /// `post_bwd` then need not write.
    pub carry: bool,
}

impl Op for PreBwd {
    const DESC: OpDesc = OpDesc {
        name: "pre_bwd",
        formula: "d_a = d_layer_input, or through RMSNorm; d_H_pre_i += <d_a, x_i>; d_z, d_alpha, d_bias = coefficients_bwd; d_x, d_phi, d_norm_weight = project_bwd; d_x_i += H_pre_i d_a (+ sum_k H_res[k,i] d_x_next_k)",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("phi", &[Mix, K]).fill(PHI),
            Slot::coeff("alpha", &[Lit(3)]),
            Slot::coeff("bias", &[Mix]),
            Slot::coeff("norm_weight", &[K]).fill(WEIGHT),
            Slot::coeff("w", &[C]).fill(WEIGHT),
            Slot::coeff("z", &[T, Mix]),
            Slot::coeff("inv_rms", &[T]),
            Slot::coeff("li_inv_rms", &[T]),
            Slot::stream("d_layer_input", &[T, C]),
            Slot::coeff("d_mixes", &[T, Mix]),
            Slot::stream("d_x_next", &[T, N, C]),
            Slot::stream("d_x", &[T, N, C]).out(),
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
            "d_x_next" => self.carry,
            _ => true,
        }
    }

    fn check(&self) -> Result<()> {
        check(Self::DESC.name, &self.numerics, self.rms_norm)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let o = operands(x, x.get("x"));
        let mut g = backward(d, &self.numerics, o, saved(x), x.get("d_layer_input"), x.get("d_mixes"));
        if self.carry {
            let mixes = super::coefficients::forward(d, &self.numerics, x.get("z"), o.alpha, o.bias);
            let y = vec![R::zero(); d.tokens * d.channels];
            let (carried, ..) = post::backward(d, self.numerics.orientation, o.x, &y, &mixes, x.get("d_x_next"));
            g.x.iter_mut().zip(carried).for_each(|(sum, v)| *sum += v);
        }
        gradients(self.norm_weight, self.rms_norm, g)
    }

    fn forward(&self) -> Option<AnyOp> {
        let PreBwd { numerics, norm_weight, rms_norm, .. } = *self;
        Some(Pre { numerics, norm_weight, rms_norm, save: true }.into())
    }

    fn cost(&self, d: &Dims, act: DType) -> Cost {
        Cost { flops: 2 * flops(d, d.mix()), ..every_operand_once(self, d, act) }
    }

    fn tag(&self) -> String {
        tag(&self.numerics, self.norm_weight, self.rms_norm) + if self.carry { "-carry" } else { "" }
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = attributes().enumerate().map(|(i, (numerics, norm_weight, rms_norm))| PreBwd {
            numerics,
            norm_weight,
            rms_norm,
            carry: i % 2 == 0,
        });
        Case::spread(ops, &stream_dims(level))
    }
}

/// The operands that all of this family call the same; x is the streams that are projected.
pub(super) fn operands<'a, R>(inputs: &Inputs<'a, R>, x: &'a [R]) -> Operands<'a, R> {
    let [phi, alpha, bias, norm_weight, w] = ["phi", "alpha", "bias", "norm_weight", "w"].map(|slot| inputs.get(slot));
    Operands { x, phi, alpha, bias, norm_weight, w }
}

/// What forward saved.
pub(super) fn saved<'a, R>(x: &Inputs<'a, R>) -> Saved<'a, R> {
    Saved { z: x.get("z"), inv_rms: x.get("inv_rms"), li_inv_rms: x.get("li_inv_rms") }
}

/// The outputs of forward, the coefficients under the name `mixes`.
pub(super) fn outputs<R>(save: bool, rms_norm: bool, f: Forward<R>, mixes: &'static str) -> Outputs<R> {
    let out = Outputs::one("layer_input", f.layer_input).and(mixes, f.mixes);
    if !save {
        return out;
    }
    let out = out.and("z", f.z).and("inv_rms", f.inv_rms);
    if rms_norm { out.and("li_inv_rms", f.li_inv_rms) } else { out }
}

/// The outputs of backward.
pub(super) fn gradients<R>(norm_weight: bool, rms_norm: Option<f64>, g: Gradient<R>) -> Outputs<R> {
    let mut out = Outputs::one("d_x", g.x).and("d_phi", g.phi).and("d_alpha", g.alpha).and("d_bias", g.bias);
    if norm_weight {
        out = out.and("d_norm_weight", g.norm_weight);
    }
    if rms_norm.is_some() { out.and("d_w", g.w) } else { out }
}

pub(super) fn check(op: &'static str, numerics: &Numerics, rms_norm: Option<f64>) -> Result<()> {
    numerics.check(op)?;
    rms_norm.map_or(Ok(()), |eps| check_eps(op, "rms_norm", eps))
}

pub(super) fn tag(numerics: &Numerics, norm_weight: bool, rms_norm: Option<f64>) -> String {
    let norm = rms_norm.map_or(String::new(), |eps| format!("-norm{eps:e}"));
    format!("{}{}{norm}", numerics.tag(), if norm_weight { "-weight" } else { "" })
}

/// Conventions, norm weight and RMSNorm of the aggregate, the default first and each preset with one combination of the others.
pub(super) fn attributes() -> impl Iterator<Item = (Numerics, bool, Option<f64>)> {
    [
        (Numerics::deepseek_v4(), false, None),
        (Numerics::deepseek_v4(), true, Some(1e-6)),
        (Numerics::paper(), true, None),
        (Numerics::mhc_cu(), false, Some(1e-5)),
        (Numerics::liger(), false, None),
        (Numerics::lucidrains(), true, Some(1e-6)),
    ]
    .into_iter()
}
