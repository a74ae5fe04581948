//! The layer in mHC.cu's form: an RMSNorm of the aggregate stands where a sub-layer would, and everything is one operator.

use mhc_core::{
    Error, Result, Tensor,
    ops::{DynamicLayer, DynamicLayerBwd, Project, StaticLayer, StaticLayerBwd},
};

use super::{Grads, MhcLayer, Params, Projection, Save, views};
use crate::functional::{
    self as f, DynamicLayerBwdIn, DynamicLayerIn, ProjectIn, StaticLayerBwdIn, StaticLayerBwdOut, StaticLayerIn,
};

/// What [`forward`](MhcLayer::forward) leaves for [`backward`](MhcLayer::backward).
#[derive(Debug)]
pub struct SavedByForward {
    /// `[T, n, C]`, the streams that the layer read.
    pub x: Tensor,
    /// `[T, n(n+2)]` and `[T]`, projection and ρ, of dynamic layers with [`Save::All`].
    pub projection: Option<(Tensor, Tensor)>,
}

impl MhcLayer {
    /// mHC.cu's layer: `out = H_res·x + H_post ⊗ RMSNorm(H_preᵀ·x)`, `[T, n, C]` to `[T, n, C]`, in one pass over x.
    ///
    /// A static layer saves x alone; so does a dynamic one with [`Save::Minimal`], whose backward then projects x again.
    /// [`Error::Attribute`] if the layer has no `w`, or has a `norm_weight`.
    pub fn forward(&self, x: Tensor, save: Save) -> Result<(Tensor, SavedByForward)> {
        let w = self.fused_weight()?.view();
        let (numerics, norm_eps) = (self.numerics, self.norm_eps);
        let Some(projection) = &self.params.projection else {
            let [h_pre, h_post, h_res] = views::parts(&self.params.bias, self.streams)?;
            let operands = StaticLayerIn { x: x.view(), w, h_pre, h_post, h_res };
            let out = f::static_layer(&self.stream, &StaticLayer { numerics, norm_eps }, operands)?.out;
            return Ok((out, SavedByForward { x, projection: None }));
        };
        let (phi, alpha, bias) = (projection.phi.view(), projection.alpha.view(), self.params.bias.view());
        let op = DynamicLayer { numerics, norm_eps, save: save == Save::All };
        let out = f::dynamic_layer(&self.stream, &op, DynamicLayerIn { x: x.view(), w, phi, alpha, bias })?;
        Ok((out.out, SavedByForward { x, projection: out.z.zip(out.inv_rms) }))
    }

    /// The gradients of the streams and of the parameters, from that of [`forward`](Self::forward)'s output.
    pub fn backward(&self, saved: SavedByForward, d_out: &Tensor) -> Result<(Tensor, Grads)> {
        match &self.params.projection {
            Some(projection) => self.dynamic_layer_backward(projection, saved, d_out),
            None => self.static_layer_backward(saved, d_out),
        }
    }

    fn static_layer_backward(&self, saved: SavedByForward, d_out: &Tensor) -> Result<(Tensor, Grads)> {
        let w = self.fused_weight()?;
        let op = StaticLayerBwd { numerics: self.numerics, norm_eps: self.norm_eps };
        let [h_pre, h_post, h_res] = views::parts(&self.params.bias, self.streams)?;
        let operands = StaticLayerBwdIn { x: saved.x.view(), w: w.view(), h_pre, h_post, h_res, d_out: d_out.view() };
        let mut d_x = Tensor::empty(&self.stream, saved.x.dtype(), saved.x.shape())?;
        let mut d_w = Tensor::empty(&self.stream, w.dtype(), w.shape())?;
        let mut bias = Tensor::empty(&self.stream, self.params.bias.dtype(), self.params.bias.shape())?;
        let [d_h_pre, d_h_post, d_h_res] = views::parts_mut(&mut bias, self.streams)?;
        let outputs = StaticLayerBwdOut { d_x: d_x.view_mut(), d_w: d_w.view_mut(), d_h_pre, d_h_post, d_h_res };
        f::static_layer_bwd_into(&self.stream, &op, operands, outputs)?;
        Ok((d_x, Params { projection: None, bias, w: Some(d_w) }))
    }

    fn dynamic_layer_backward(
        &self,
        projection: &Projection,
        saved: SavedByForward,
        d_out: &Tensor,
    ) -> Result<(Tensor, Grads)> {
        let SavedByForward { x, projection: known } = saved;
        let (z, inv_rms) = match known {
            Some(known) => known,
            None => {
                let op = Project { rms_eps: self.numerics.rms_eps, norm_weight: false };
                let operands = ProjectIn { x: x.view(), phi: projection.phi.view(), norm_weight: None };
                let out = f::project(&self.stream, &op, operands)?;
                (out.z, out.inv_rms)
            }
        };
        let operands = DynamicLayerBwdIn {
            x: x.view(),
            w: self.fused_weight()?.view(),
            phi: projection.phi.view(),
            alpha: projection.alpha.view(),
            bias: self.params.bias.view(),
            z: z.view(),
            inv_rms: inv_rms.view(),
            d_out: d_out.view(),
        };
        let op = DynamicLayerBwd { numerics: self.numerics, norm_eps: self.norm_eps };
        let out = f::dynamic_layer_bwd(&self.stream, &op, operands)?;
        let projection = Projection { phi: out.d_phi, alpha: out.d_alpha, norm_weight: None };
        Ok((out.d_x, Params { projection: Some(projection), bias: out.d_bias, w: Some(out.d_w) }))
    }

    fn fused_weight(&self) -> Result<&Tensor> {
        let wrong = |attr, want, got: &str| Error::Attribute { op: "layer", attr, want, got: got.into() };
        if self.has_norm_weight() {
            return Err(wrong("norm_weight", "absent in mHC.cu's form", "there"));
        }
        let want = "there in mHC.cu's form, which ends its sub-layer with an RMSNorm";
        self.params.w.as_ref().ok_or_else(|| wrong("w", want, "absent"))
    }
}
