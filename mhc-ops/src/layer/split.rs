//! The layer around a sub-layer: `pre`, the sub-layer, `post`, and back.

use mhc_core::{
    DType, Error, Result, Tensor,
    ops::{Aggregate, AggregateBwd, Coefficients, CoefficientsBwd, Collapse, Post, PostBwd, RmsNorm, RmsNormBwd},
};

use super::{Grads, MhcLayer, Params, Projection, Save, views};
use crate::functional::{
    self as f, AggregateBwdIn, AggregateBwdOut, AggregateIn, CoefficientsBwdIn, CoefficientsIn, CollapseIn, PostBwdIn,
    PostBwdOut, PostIn, PreBwdIn, PreIn, RmsNormBwdIn, RmsNormIn,
};

/// A layer between [`pre`](MhcLayer::pre) and [`post`](MhcLayer::post): the sub-layer's turn.
#[derive(Debug)]
pub struct Pending {
    /// The streams that the layer read.
    pub x: Tensor,
    /// Its coefficients, and with [`Save::All`] what backward reads.
    pub coefficients: SavedCoefficients,
    save: Save,
}

/// What forward leaves for backward. Keep it as long as backward may come; dropping it is all there is to inference.
#[derive(Debug)]
pub struct SavedForBackward {
    /// `[T, n, C]`, the streams that the layer read.
    pub x: Tensor,
    /// `[T, C]`, the sub-layer's output.
    pub y: Tensor,
    /// What else backward reads; none with [`Save::Minimal`] until [`recompute`](MhcLayer::recompute).
    pub coefficients: Option<SavedCoefficients>,
}

/// The coefficients of a forward, and what their backward reads.
#[derive(Debug)]
pub struct SavedCoefficients {
    /// `[T, n(n+2)]`, of a static layer `[1, n(n+2)]`.
    pub mixes: Tensor,
    /// `[T, n(n+2)]`, the projection; of dynamic layers that save.
    pub z: Option<Tensor>,
    /// `[T]`, ρ of the projection; of dynamic layers that save.
    pub inv_rms: Option<Tensor>,
    /// `[T, C]`, the aggregate in front of its RMSNorm; of static layers with `w` that save.
    pub aggregate: Option<Tensor>,
    /// `[T]`, the factor of the aggregate's RMSNorm; of layers with `w` that save.
    pub layer_input_inv_rms: Option<Tensor>,
}

/// A layer between [`post_backward`](MhcLayer::post_backward) and [`pre_backward`](MhcLayer::pre_backward): the turn of the sub-layer's backward.
#[derive(Debug)]
pub struct PendingBackward {
    x: Tensor,
    coefficients: SavedCoefficients,
    /// Of a dynamic layer the gradient of x_next, of a static one the terms [T, 2, n·C] of x's gradient, the first of them written.
    carried: Tensor,
    /// Of a dynamic layer [T, n(n+2)], of a static one the terms [T, 2, n(n+2)], the first of them written.
    d_mixes: Tensor,
}

impl MhcLayer {
    /// The sub-layer's input `[T, C]` from the streams `x [T, n, C]`, normalised if the layer has `w`.
    ///
    /// A dynamic layer runs [`pre`](f::pre()). A static one computes its coefficients once, for all tokens, and aggregates.
    pub fn pre(&self, x: Tensor, save: Save) -> Result<(Tensor, Pending)> {
        let (layer_input, coefficients) = self.read(&x, save == Save::All)?;
        Ok((layer_input, Pending { x, coefficients, save }))
    }

    /// The next streams `[T, n, C]` from the sub-layer's output `y [T, C]`.
    pub fn post(&self, pending: Pending, y: Tensor) -> Result<(Tensor, SavedForBackward)> {
        let Pending { x, coefficients, save } = pending;
        let mixes = self.mixes(&coefficients, &x)?;
        let op = Post { orientation: self.numerics.orientation };
        let x_next = f::post(&self.stream, &op, PostIn { x: x.view(), y: y.view(), mixes })?.x_next;
        let coefficients = (save == Save::All).then_some(coefficients);
        Ok((x_next, SavedForBackward { x, y, coefficients }))
    }

    /// Puts what [`Save::Minimal`] left out back into `saved`, and returns the sub-layer's input, bitwise the one that forward gave. For
    /// sub-layers that recompute themselves; [`post_backward`](Self::post_backward) does it where it has not been done.
    pub fn recompute(&self, saved: &mut SavedForBackward) -> Result<Tensor> {
        let (layer_input, coefficients) = self.read(&saved.x, true)?;
        saved.coefficients = Some(coefficients);
        Ok(layer_input)
    }

    /// The gradient of the sub-layer's output, `d_y [T, C]`, from that of the next streams, `d_x_next [T, n, C]`.
    pub fn post_backward(&self, mut saved: SavedForBackward, d_x_next: Tensor) -> Result<(Tensor, PendingBackward)> {
        if saved.coefficients.is_none() {
            self.recompute(&mut saved)?;
        }
        let SavedForBackward { x, y, coefficients } = saved;
        let coefficients = coefficients.ok_or_else(|| missing("mixes"))?;
        let mixes = self.mixes(&coefficients, &x)?;
        let operands = PostBwdIn { x: x.view(), y: y.view(), mixes, d_x_next: d_x_next.view() };
        let orientation = self.numerics.orientation;
        if self.params.projection.is_some() {
            let PostBwdOut { d_y, d_mixes, .. } =
                f::post_bwd(&self.stream, &PostBwd { orientation, d_x: false }, operands)?;
            return Ok((d_y, PendingBackward { x, coefficients, carried: d_x_next, d_mixes }));
        }
        let (mut carried, mut d_mixes) = self.terms(&x)?;
        let mut d_y = Tensor::empty(&self.stream, y.dtype(), y.shape())?;
        let [d_x, _] = views::terms_mut(&mut carried, x.shape())?;
        let [d_m, _] = views::terms_mut(&mut d_mixes, &[x.shape()[0], self.params.bias.shape()[0]])?;
        let outputs = PostBwdOut { d_x: Some(d_x), d_y: d_y.view_mut(), d_mixes: d_m };
        f::post_bwd_into(&self.stream, &PostBwd { orientation, d_x: true }, operands, outputs)?;
        Ok((d_y, PendingBackward { x, coefficients, carried, d_mixes }))
    }

    /// The gradients of the streams, `d_x [T, n, C]`, and of the parameters, from that of the sub-layer's input, `d_layer_input [T, C]`.
    pub fn pre_backward(&self, pending: PendingBackward, d_layer_input: &Tensor) -> Result<(Tensor, Grads)> {
        match &self.params.projection {
            Some(projection) => self.dynamic_backward(projection, pending, d_layer_input),
            None => self.static_backward(pending, d_layer_input),
        }
    }

    /// The sub-layer's input and the coefficients, with everything backward reads if `save`.
    fn read(&self, x: &Tensor, save: bool) -> Result<(Tensor, SavedCoefficients)> {
        let Some(Projection { phi, alpha, norm_weight }) = &self.params.projection else {
            return self.read_static(x, save);
        };
        let operands = PreIn {
            x: x.view(),
            phi: phi.view(),
            alpha: alpha.view(),
            bias: self.params.bias.view(),
            norm_weight: norm_weight.as_ref().map(Tensor::view),
            w: self.params.w.as_ref().map(Tensor::view),
        };
        let out = f::pre(&self.stream, &self.pre_op(save), operands)?;
        let coefficients = SavedCoefficients {
            mixes: out.mixes,
            z: out.z,
            inv_rms: out.inv_rms,
            aggregate: None,
            layer_input_inv_rms: out.li_inv_rms,
        };
        Ok((out.layer_input, coefficients))
    }

    fn read_static(&self, x: &Tensor, save: bool) -> Result<(Tensor, SavedCoefficients)> {
        let (z, alpha) = self.constant.as_ref().ok_or_else(|| missing("z"))?;
        let operands = CoefficientsIn { z: z.view(), alpha: alpha.view(), bias: self.params.bias.view() };
        let mixes = f::coefficients(&self.stream, &Coefficients { numerics: self.numerics }, operands)?.mixes;
        let mut coefficients =
            SavedCoefficients { mixes, z: None, inv_rms: None, aggregate: None, layer_input_inv_rms: None };
        let operands = AggregateIn { x: x.view(), mixes: self.mixes(&coefficients, x)? };
        let aggregate = f::aggregate(&self.stream, &Aggregate, operands)?.layer_input;
        let Some(w) = &self.params.w else { return Ok((aggregate, coefficients)) };
        let operands = RmsNormIn { x: aggregate.view(), w: w.view() };
        let out = f::rms_norm(&self.stream, &RmsNorm { eps: self.norm_eps, save }, operands)?;
        coefficients.aggregate = save.then_some(aggregate);
        coefficients.layer_input_inv_rms = out.inv_rms;
        Ok((out.y, coefficients))
    }

    /// The coefficients of every token.
    fn mixes<'a>(&self, coefficients: &'a SavedCoefficients, x: &Tensor) -> Result<mhc_core::View<'a>> {
        match self.params.projection {
            Some(_) => Ok(coefficients.mixes.view()),
            None => views::every_token(&coefficients.mixes, x.shape().first().copied().unwrap_or(0)),
        }
    }

    fn dynamic_backward(
        &self,
        projection: &Projection,
        pending: PendingBackward,
        d_layer_input: &Tensor,
    ) -> Result<(Tensor, Grads)> {
        let PendingBackward { x, coefficients, carried, d_mixes } = pending;
        let operands = PreBwdIn {
            x: x.view(),
            phi: projection.phi.view(),
            alpha: projection.alpha.view(),
            bias: self.params.bias.view(),
            norm_weight: projection.norm_weight.as_ref().map(Tensor::view),
            w: self.params.w.as_ref().map(Tensor::view),
            z: coefficients.z.as_ref().ok_or_else(|| missing("z"))?.view(),
            inv_rms: coefficients.inv_rms.as_ref().ok_or_else(|| missing("inv_rms"))?.view(),
            li_inv_rms: coefficients.layer_input_inv_rms.as_ref().map(Tensor::view),
            d_layer_input: d_layer_input.view(),
            d_mixes: d_mixes.view(),
            d_x_next: Some(carried.view()),
        };
        let out = f::pre_bwd(&self.stream, &self.pre_bwd_op(), operands)?;
        let projection = Projection { phi: out.d_phi, alpha: out.d_alpha, norm_weight: out.d_norm_weight };
        Ok((out.d_x, Params { projection: Some(projection), bias: out.d_bias, w: out.d_w }))
    }

    fn static_backward(&self, pending: PendingBackward, d_layer_input: &Tensor) -> Result<(Tensor, Grads)> {
        let PendingBackward { x, coefficients, mut carried, mut d_mixes } = pending;
        let (stream, tokens, act) = (&self.stream, x.shape()[0], x.dtype());
        let norm = match (&self.params.w, &coefficients.aggregate, &coefficients.layer_input_inv_rms) {
            (Some(w), Some(aggregate), Some(inv_rms)) => {
                let (x, w, inv_rms) = (aggregate.view(), w.view(), inv_rms.view());
                let operands = RmsNormBwdIn { x, w, inv_rms, d_y: d_layer_input.view() };
                Some(f::rms_norm_bwd(stream, &RmsNormBwd { eps: self.norm_eps }, operands)?)
            }
            (None, ..) => None,
            _ => return Err(missing("aggregate")),
        };
        let d_aggregate = norm.as_ref().map_or(d_layer_input.view(), |n| n.d_x.view());
        let mixes = self.mixes(&coefficients, &x)?;
        let mix = self.params.bias.shape()[0];
        let [_, d_x] = views::terms_mut(&mut carried, x.shape())?;
        let [_, d_m] = views::terms_mut(&mut d_mixes, &[tokens, mix])?;
        let operands = AggregateBwdIn { x: x.view(), mixes, d_layer_input: d_aggregate };
        f::aggregate_bwd_into(stream, &AggregateBwd, operands, AggregateBwdOut { d_x, d_mixes: d_m })?;

        let add = Collapse { mean: false };
        let mut d_x = Tensor::empty(stream, act, x.shape())?;
        let sum = f::CollapseOut { h: d_x.view_mut_as(&[tokens, self.streams * self.channels])? };
        f::collapse_into(stream, &add, CollapseIn { x: carried.view() }, sum)?;
        let d_mixes = f::collapse(stream, &add, CollapseIn { x: d_mixes.view() })?.h;

        let (z, alpha) = self.constant.as_ref().ok_or_else(|| missing("z"))?;
        let operands = CoefficientsBwdIn {
            z: views::every_token(z, tokens)?,
            alpha: alpha.view(),
            bias: self.params.bias.view(),
            d_mixes: d_mixes.view(),
        };
        let bias = f::coefficients_bwd(stream, &CoefficientsBwd { numerics: self.numerics }, operands)?.d_bias;
        Ok((d_x, Params { projection: None, bias, w: norm.map(|n| n.d_w) }))
    }

    /// Memory for the two terms of the gradients of x and of the coefficients.
    fn terms(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (tokens, mix) = (x.shape()[0], self.params.bias.shape()[0]);
        let carried = Tensor::empty(&self.stream, x.dtype(), &[tokens, 2, self.streams * self.channels])?;
        Ok((carried, Tensor::empty(&self.stream, DType::F32, &[tokens, 2, mix])?))
    }
}

/// The error of saved tensors that are not those of this layer.
fn missing(slot: &'static str) -> Error {
    let want = "what this layer's forward saved".into();
    Error::Shape { op: "layer", slot, want, got: "nothing".into() }
}
