//! A residual stream of hyper-connections through the sub-layers of a real transformer, forward and backward, in three kinds.
//!
//! The sub-layers' outputs are those of the real model, so they do not depend on what the hyper-connections hand them. The loss is
//! `<G, x_L> + Σ_l <R_l, layer_input_l>` with random G and R_l, which sends a gradient through every operand.

use anyhow::Result;
use mhc_core::ops::{Aggregate, AggregateBwd, Expand, ExpandBwd, Post, PostBwd, Pre, PreBwd, Project, ProjectBwd};
use mhc_ops::{AnyOp, DType, Dims, Numerics};
use mhc_tests::data::Rng;

use super::{activations::Activations, engine::Engine};

/// How streams are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `x + y` on one stream.
    Plain,
    /// H_res is what the projection gives.
    Unconstrained,
    /// H_res is made doubly stochastic by Sinkhorn's iterations.
    Mhc,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Plain, Kind::Unconstrained, Kind::Mhc];

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain residual",
            Self::Unconstrained => "HC, unconstrained",
            Self::Mhc => "mHC",
        }
    }
}

/// Parameters of one sub-layer's hyper-connection: the same for both kinds that have any, so that they differ in Sinkhorn alone.
struct Parameters {
    phi: Vec<f64>,
    alpha: Vec<f64>,
    bias: Vec<f64>,
}

/// Everything that a run needs and that does not depend on the engine.
pub struct Network<'a> {
    pub kind: Kind,
    pub dims: Dims,
    numerics: Numerics,
    activations: &'a Activations,
    parameters: Vec<Parameters>,
    /// R_l.
    to_inputs: Vec<Vec<f64>>,
    /// G, one for all streams.
    to_output: Vec<f64>,
}

/// What a run computed, on the host.
#[derive(Debug)]
pub struct Outcome {
    /// Packed coefficients by sub-layer.
    pub mixes: Vec<Vec<f64>>,
    /// Results of the forward pass: the streams after each sub-layer and what the sub-layer was given.
    pub forward: Vec<Vec<f64>>,
    /// Gradients: of the embedding, of every sub-layer's output, of the parameters.
    pub backward: Vec<Vec<f64>>,
}

/// What forward keeps of one sub-layer.
struct Saved<V> {
    x: V,
    y: V,
    mixes: V,
    /// `phi`, `alpha`, `bias`, `z`, `inv_rms`.
    dynamic: Option<[V; 5]>,
}

impl<'a> Network<'a> {
    /// Parameters and upstream gradients from a seed.
    pub fn new(kind: Kind, streams: usize, numerics: Numerics, activations: &'a Activations, seed: u64) -> Self {
        let n = if kind == Kind::Plain { 1 } else { streams };
        let dims = Dims::new(activations.tokens, n, activations.channels);
        let mut rng = Rng::new(seed);
        let parameters = activations.sub_layers.iter().map(|_| parameters(&dims, &numerics, &mut rng)).collect();
        let mut rng = Rng::new(!seed);
        let len = dims.tokens * dims.channels;
        let to_inputs = activations.sub_layers.iter().map(|_| rng.normals(len)).collect();
        Self { kind, dims, numerics, activations, parameters, to_inputs, to_output: rng.normals(len) }
    }

    /// Forward and backward. `after` is called when a sub-layer is done: its number, and whether it was in the backward pass.
    pub fn run<E: Engine>(&self, engine: &mut E, mut after: impl FnMut(&mut E, usize, bool)) -> Result<Outcome> {
        let (d, act) = (self.dims, engine.act());
        let tokens = [d.tokens, d.channels];
        let mut outcome = Outcome { mixes: Vec::new(), forward: Vec::new(), backward: Vec::new() };

        let h = engine.value(act, &tokens, &self.activations.embedding)?;
        let [mut x] = run(engine, Expand.into(), d, &[&h])?;
        let mut saved = Vec::new();
        for l in 0..self.layers() {
            let y = engine.value(act, &tokens, &self.activations.sub_layers[l])?;
            let (layer_input, mixes, dynamic) = self.pre(engine, l, &x)?;
            let [x_next] = run(engine, self.post().into(), d, &[&x, &y, &mixes])?;
            after(engine, l, false);
            outcome.mixes.push(engine.read(&mixes)?);
            outcome.forward.push(engine.read(&x_next)?);
            if let Some(layer_input) = layer_input {
                outcome.forward.push(engine.read(&layer_input)?);
            }
            saved.push(Saved { x: std::mem::replace(&mut x, x_next), y, mixes, dynamic });
        }

        let g = engine.value(act, &tokens, &self.to_output)?;
        let [mut d_x] = run(engine, Expand.into(), d, &[&g])?;
        for (l, saved) in saved.iter().enumerate().rev() {
            let d_layer_input = engine.value(act, &tokens, &self.to_inputs[l])?;
            d_x = self.backward(engine, saved, &d_layer_input, d_x, &mut outcome.backward)?;
            after(engine, l, true);
        }
        let [d_h] = run(engine, ExpandBwd.into(), d, &[&d_x])?;
        outcome.backward.push(engine.read(&d_h)?);
        Ok(outcome)
    }

    /// Sub-layers.
    pub fn layers(&self) -> usize {
        self.parameters.len()
    }

    fn post(&self) -> Post {
        Post { orientation: self.numerics.orientation }
    }

    /// The input of sub-layer l and its coefficients; with them what backward needs, where they were computed from x.
    #[allow(clippy::type_complexity)]
    fn pre<E: Engine>(
        &self,
        engine: &mut E,
        l: usize,
        x: &E::Value,
    ) -> Result<(Option<E::Value>, E::Value, Option<[E::Value; 5]>)> {
        let (d, mix, k) = (self.dims, self.dims.mix(), self.dims.row());
        if self.kind == Kind::Plain {
            // One stream that is read, kept and added to.
            return Ok((None, engine.value(DType::F32, &[d.tokens, mix], &vec![1.0; d.tokens * mix])?, None));
        }
        let p = &self.parameters[l];
        let phi = engine.value(DType::F32, &[mix, k], &p.phi)?;
        let alpha = engine.value(DType::F32, &[3], &p.alpha)?;
        let bias = engine.value(DType::F32, &[mix], &p.bias)?;
        if self.kind == Kind::Mhc {
            let op = Pre { numerics: self.numerics, norm_weight: false, rms_norm: None, save: true };
            let [layer_input, mixes, z, inv_rms] = run(engine, op.into(), d, &[x, &phi, &alpha, &bias])?;
            return Ok((Some(layer_input), mixes, Some([phi, alpha, bias, z, inv_rms])));
        }
        let project = Project { rms_eps: self.numerics.rms_eps, norm_weight: false };
        let [z, inv_rms] = run(engine, project.into(), d, &[x, &phi])?;
        let raw = unconstrained(&d, &self.numerics, p, &engine.read(&z)?);
        let mixes = engine.value(DType::F32, &[d.tokens, mix], &raw)?;
        let [layer_input] = run(engine, Aggregate.into(), d, &[x, &mixes])?;
        Ok((Some(layer_input), mixes, Some([phi, alpha, bias, z, inv_rms])))
    }

    /// The gradient of the streams before a sub-layer; the others are read into `gradients`.
    fn backward<E: Engine>(
        &self,
        engine: &mut E,
        saved: &Saved<E::Value>,
        d_layer_input: &E::Value,
        d_x_next: E::Value,
        gradients: &mut Vec<Vec<f64>>,
    ) -> Result<E::Value> {
        let (d, orientation) = (self.dims, self.numerics.orientation);
        let Saved { x, y, mixes, dynamic } = saved;
        let post_bwd = |d_x| AnyOp::from(PostBwd { orientation, d_x });
        let Some([phi, alpha, bias, z, inv_rms]) = dynamic else {
            let [d_x, d_y, _] = run(engine, post_bwd(true), d, &[x, y, mixes, &d_x_next])?;
            gradients.push(engine.read(&d_y)?);
            // The one stream is the sub-layer's input as it is.
            return self.sum(engine, &[&d_x, d_layer_input]);
        };
        if self.kind == Kind::Mhc {
            let [d_y, d_mixes] = run(engine, post_bwd(false), d, &[x, y, mixes, &d_x_next])?;
            let op = PreBwd { numerics: self.numerics, norm_weight: false, rms_norm: None, carry: true };
            let ins = [x, phi, alpha, bias, z, inv_rms, d_layer_input, &d_mixes, &d_x_next];
            let [d_x, d_phi, d_alpha, d_bias] = run(engine, op.into(), d, &ins)?;
            for gradient in [&d_y, &d_phi, &d_alpha, &d_bias] {
                gradients.push(engine.read(gradient)?);
            }
            return Ok(d_x);
        }
        let [d_x_mixed, d_y, d_mixes] = run(engine, post_bwd(true), d, &[x, y, mixes, &d_x_next])?;
        let [d_x_read, d_pre] = run(engine, AggregateBwd.into(), d, &[x, mixes, d_layer_input])?;
        let mut d_raw = engine.read(&d_mixes)?;
        d_raw.iter_mut().zip(engine.read(&d_pre)?).for_each(|(a, b)| *a += b);
        let alpha = engine.read(alpha)?;
        let d_z = unconstrained_bwd(&d, &self.numerics, &alpha, &engine.read(mixes)?, &d_raw);
        let d_z = engine.value(DType::F32, &[d.tokens, d.mix()], &d_z)?;
        let project_bwd = ProjectBwd { rms_eps: self.numerics.rms_eps, norm_weight: false };
        let [d_x_projected, d_phi] = run(engine, project_bwd.into(), d, &[x, phi, z, inv_rms, &d_z])?;
        for gradient in [&d_y, &d_phi] {
            gradients.push(engine.read(gradient)?);
        }
        self.sum(engine, &[&d_x_mixed, &d_x_read, &d_x_projected])
    }

    /// The sum of gradients of the streams, on the host.
    fn sum<E: Engine>(&self, engine: &E, terms: &[&E::Value]) -> Result<E::Value> {
        let mut sum = vec![0.0; self.dims.tokens * self.dims.row()];
        for term in terms {
            sum.iter_mut().zip(engine.read(term)?).for_each(|(s, v)| *s += v);
        }
        engine.value(engine.act(), &[self.dims.tokens, self.dims.streams, self.dims.channels], &sum)
    }
}

/// Runs an operator that has just `N` outputs.
fn run<E: Engine, const N: usize>(engine: &mut E, op: AnyOp, d: Dims, ins: &[&E::Value]) -> Result<[E::Value; N]> {
    let outs = engine.run(op, d, ins)?;
    outs.try_into().map_err(|outs: Vec<_>| anyhow::anyhow!("{} outputs where {N} were wanted", outs.len()))
}

/// The strength of the part of H_res that depends on the token: enough that an unconstrained product leaves 1 visibly behind.
const ALPHA: f64 = 0.5;

/// Logits of order `ALPHA`, around coefficients with which every stream is a plain residual: H_pre = 1/n, H_post = 1, H_res = 1.
fn parameters(d: &Dims, numerics: &Numerics, rng: &mut Rng) -> Parameters {
    let (n, std) = (d.streams, (d.row() as f64).powf(-0.5));
    let mut bias = vec![0.0; d.mix()];
    bias[..n].fill(-((n as f64 - 1.0).max(1e-3)).ln());
    (0..n).for_each(|i| bias[2 * n + numerics.orientation.index(n, i, i)] = 1.0);
    Parameters { phi: rng.normals(d.mix() * d.row()).iter().map(|v| v * std).collect(), alpha: vec![ALPHA; 3], bias }
}

/// `coefficients` without Sinkhorn: H_res is the logits themselves.
fn unconstrained(d: &Dims, numerics: &Numerics, p: &Parameters, z: &[f64]) -> Vec<f64> {
    let (n, mix) = (d.streams, d.mix());
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    let one = |(i, z): (usize, &f64)| {
        let j = i % mix;
        let logit = p.alpha[(j / n).min(2)] * z + p.bias[j];
        match j / n {
            0 => sigmoid(logit) + numerics.pre_eps,
            1 => numerics.post_mult * sigmoid(logit),
            _ => logit,
        }
    };
    z.iter().enumerate().map(one).collect()
}

/// The gradient of z.
fn unconstrained_bwd(d: &Dims, numerics: &Numerics, alpha: &[f64], mixes: &[f64], d_mixes: &[f64]) -> Vec<f64> {
    let (n, mix) = (d.streams, d.mix());
    let one = |(i, (m, d_m)): (usize, (&f64, &f64))| {
        let slope = match i % mix / n {
            0 => (m - numerics.pre_eps) * (1.0 - (m - numerics.pre_eps)),
            1 => m * (1.0 - m / numerics.post_mult),
            _ => 1.0,
        };
        alpha[(i % mix / n).min(2)] * slope * d_m
    };
    mixes.iter().zip(d_mixes).enumerate().map(one).collect()
}
