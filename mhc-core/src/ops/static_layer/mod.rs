//! `static_layer`: mHC.cu's whole layer with coefficients that do not depend on the token: aggregate, RMSNorm, distribute and mix.

pub(super) mod plan;
mod reference;
pub(super) mod tuned;

pub use plan::SOURCE;
pub use reference::{backward, forward};

use crate::{
    AnyOp, Axis::*, Case, Dims, Eps, Inputs, Level, Numerics, Op, OpDesc, Outputs, Real, Result, SinkhornForm, Slot,
    numerics::check_eps, stream_dims,
};

/// `out_i = Σ_j H_res[i,j]·x_j + H_post[i]·(w ⊙ li·r)` with `li = Σ_i H_pre[i]·x_i`, `r = (mean li² + norm_eps)^(-1/2)` and, from raw logits,
/// `H_pre = σ(h_pre) + pre_eps`, `H_post = post_mult·σ(h_post)`, `H_res = Sinkhorn(h_res)` (arXiv 2512.24880, eq. 3 and 8).
///
/// `x, out [T, n, C]` have the streams' type; `w [C]`, `h_pre, h_post [n]` and `h_res [n, n]`, which lies as the orientation of `numerics`
/// says, are f32. li and its normalisation stay f32 and are never stored. Moves 2·T·n·C stream elements; saves nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticLayer {
    /// Every convention of the coefficients; `rms_eps` is not used here.
    pub numerics: Numerics,
    /// ε of the RMSNorm of the aggregate.
    pub norm_eps: f64,
}

fn check(op: &'static str, numerics: &Numerics, norm_eps: f64) -> Result<()> {
    numerics.check(op)?;
    check_eps(op, "norm_eps", norm_eps)
}

fn tag(numerics: &Numerics, norm_eps: f64) -> String {
    format!("{}-norm{norm_eps:e}", numerics.tag())
}

/// Every convention at sizes where nothing cancels: mHC.cu with ε added, as its PyTorch baseline has it, then the presets. With one
/// stream or one channel RMSNorm undoes what H_pre does, and gradients vanish but for ε's part: there ε is large.
fn cases<O: Op>(level: Level, op: impl Fn(Numerics, f64) -> O) -> Vec<Case> {
    let cu = Numerics::mhc_cu();
    let sinkhorn = SinkhornForm { eps: Eps::Added(1e-5), ..cu.sinkhorn };
    let presets = Numerics::PRESETS.into_iter().map(|(_, numerics)| (numerics, 1e-6));
    let conventions = core::iter::once((Numerics { sinkhorn, ..cu }, 1e-5)).chain(presets);
    let (single, many): (Vec<_>, Vec<_>) = stream_dims(level).into_iter().partition(|d| d.streams.min(d.channels) == 1);
    let mut cases = Case::spread(conventions.map(|(numerics, norm_eps)| op(numerics, norm_eps)), &many);
    cases.extend(Case::cross([op(Numerics::paper(), 0.5)], &single));
    cases
}

impl Op for StaticLayer {
    const DESC: OpDesc = OpDesc {
        name: "static_layer",
        formula: "out_i = sum_j H_res[i,j] x_j + H_post[i] w (li r), li = sum_i H_pre[i] x_i, r = (mean li^2 + norm_eps)^(-1/2)",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("w", &[C]),
            Slot::coeff("h_pre", &[N]),
            Slot::coeff("h_post", &[N]),
            Slot::coeff("h_res", &[N, N]),
            Slot::stream("out", &[T, N, C]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        check(Self::DESC.name, &self.numerics, self.norm_eps)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let logits = [x.get("h_pre"), x.get("h_post"), x.get("h_res")].concat();
        Outputs::one("out", forward(d, &self.numerics, self.norm_eps, x.get("x"), x.get("w"), &logits))
    }

    fn tag(&self) -> String {
        tag(&self.numerics, self.norm_eps)
    }

    fn cases(level: Level) -> Vec<Case> {
        cases(level, |numerics, norm_eps| StaticLayer { numerics, norm_eps })
    }
}

/// The gradient of [`StaticLayer`], which recomputes li and r of every token.
///
/// With g = d_out: `d_H_res[i,j] = Σ_t ⟨g_i, x_j⟩`, `d_H_post[i] = Σ_t ⟨g_i, y⟩`, `d_y = Σ_i H_post[i]·g_i`; RMSNorm's gradient gives d_li and d_w;
/// `d_x_j = Σ_i H_res[i,j]·g_i + H_pre[j]·d_li`, `d_H_pre[i] = Σ_t ⟨d_li, x_i⟩`; then once the gradients of the sigmoids and of Sinkhorn.
/// Moves 3·T·n·C stream elements. The sums over tokens are taken per block of tokens, whose number depends on T alone, and the blocks
/// are added in their order, so the gradients are the same on every run and with any number of threads.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticLayerBwd {
    /// As in forward.
    pub numerics: Numerics,
    /// As in forward.
    pub norm_eps: f64,
}

impl Op for StaticLayerBwd {
    const DESC: OpDesc = OpDesc {
        name: "static_layer_bwd",
        formula: "d_x_j = sum_i H_res[i,j] g_i + H_pre[j] d_li; d_H_res[i,j] = sum_t <g_i, x_j>; d_H_post[i] = sum_t <g_i, w li r>; \
                  d_H_pre[i] = sum_t <d_li, x_i>, with g = d_out and d_li, d_w by RMSNorm's gradient of sum_i H_post[i] g_i",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("w", &[C]),
            Slot::coeff("h_pre", &[N]),
            Slot::coeff("h_post", &[N]),
            Slot::coeff("h_res", &[N, N]),
            Slot::stream("d_out", &[T, N, C]),
            Slot::stream("d_x", &[T, N, C]).out(),
            Slot::coeff("d_w", &[C]).out(),
            Slot::coeff("d_h_pre", &[N]).out(),
            Slot::coeff("d_h_post", &[N]).out(),
            Slot::coeff("d_h_res", &[N, N]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        check(Self::DESC.name, &self.numerics, self.norm_eps)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let logits = [x.get("h_pre"), x.get("h_post"), x.get("h_res")].concat();
        let (d_x, d_w, d_logits) =
            backward(d, &self.numerics, self.norm_eps, x.get("x"), x.get("w"), &logits, x.get("d_out"));
        let n = d.streams;
        Outputs::one("d_x", d_x)
            .and("d_w", d_w)
            .and("d_h_pre", d_logits[..n].to_vec())
            .and("d_h_post", d_logits[n..2 * n].to_vec())
            .and("d_h_res", d_logits[2 * n..].to_vec())
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(StaticLayer { numerics: self.numerics, norm_eps: self.norm_eps }.into())
    }

    fn tag(&self) -> String {
        tag(&self.numerics, self.norm_eps)
    }

    fn cases(level: Level) -> Vec<Case> {
        cases(level, |numerics, norm_eps| StaticLayerBwd { numerics, norm_eps })
    }
}
