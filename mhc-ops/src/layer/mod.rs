//! A hyper-connection layer: its parameters, and the operators put together.

mod fused;
mod split;
mod views;

use mhc_core::{
    DType, Dims, Numerics, Problem, Result, Stream, Tensor,
    ops::{
        Aggregate, AggregateBwd, Coefficients, CoefficientsBwd, Collapse, DynamicLayer, DynamicLayerBwd, Post, PostBwd,
        Pre, PreBwd, Project, RmsNorm, RmsNormBwd, StaticLayer, StaticLayerBwd,
    },
};

pub use fused::SavedByForward;
pub use split::{Pending, PendingBackward, SavedCoefficients, SavedForBackward};

use crate::{HostParams, HostProjection};

/// The parameters of one hyper-connection on a device, and the ways to run it. It holds nothing else: what backward needs is handed out
/// and handed back.
///
/// Around a sub-layer F, whatever it is:
///
/// ```
/// use mhc_ops::{DType, Init, MhcLayer, Numerics, Save, Stream, Tensor};
///
/// let stream = Stream::new(mhc_ops::open("cpu")?)?;
/// let layer = MhcLayer::new(&stream, Numerics::default(), &Init::Liger { seed: 1 }.params(4, 64)?)?;
/// let x = Tensor::zeros(&stream, DType::Bf16, &[17, 4, 64])?;
///
/// let (layer_input, pending) = layer.pre(x, Save::All)?; //          [17, 64]
/// let y = layer_input; //                                            y = F(layer_input)
/// let (x_next, saved) = layer.post(pending, y)?; //                  [17, 4, 64]
///
/// let d_x_next = x_next; //                                          from the layers behind
/// let (d_y, pending) = layer.post_backward(saved, d_x_next)?; //     [17, 64]
/// let d_layer_input = d_y; //                                        F's backward
/// let (d_x, grads) = layer.pre_backward(pending, &d_layer_input)?; // [17, 4, 64] and the parameters' gradients
/// # assert_eq!((d_x.shape(), grads.bias.shape()), (&[17, 4, 64][..], &[24][..]));
/// # Ok::<(), mhc_ops::Error>(())
/// ```
///
/// Or, in mHC.cu's form, with an RMSNorm of the aggregate in F's place: [`forward`](Self::forward) and [`backward`](Self::backward).
#[derive(Debug)]
pub struct MhcLayer {
    stream: Stream,
    streams: usize,
    channels: usize,
    numerics: Numerics,
    norm_eps: f64,
    /// The parameters, for an optimiser to change.
    pub params: Params,
    /// For a static layer, the z `[1, n(n+2)]` and α `[3]` that stand for a token: zeros.
    constant: Option<(Tensor, Tensor)>,
}

/// The parameters of a layer, f32, or their gradients.
#[derive(Debug)]
pub struct Params {
    /// What makes the coefficients depend on the token; a static layer has none.
    pub projection: Option<Projection>,
    /// `[n(n+2)]`: biases `[b_pre | b_post | b_res]`, or a static layer's raw `[h_pre | h_post | h_res]`.
    pub bias: Tensor,
    /// `[C]`, the weight of the RMSNorm of the sub-layer's input, if there is one.
    pub w: Option<Tensor>,
}

/// The part of [`Params`] that only dynamic layers have.
#[derive(Debug)]
pub struct Projection {
    /// `[n(n+2), n·C]`.
    pub phi: Tensor,
    /// `[3]`, α of H_pre, H_post and H_res.
    pub alpha: Tensor,
    /// `[n·C]`, the weight of the projection's own RMSNorm, if there is one.
    pub norm_weight: Option<Tensor>,
}

/// The gradients of a layer's parameters, each in the place of what it is the gradient of.
pub type Grads = Params;

/// What forward keeps for backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Save {
    /// Everything backward reads: besides x and y about 2·n(n+2) numbers per token.
    #[default]
    All,
    /// x and y only. Backward runs the projection again, to the same bits; it reads x once more.
    Minimal,
}

impl Params {
    /// Every tensor with its name: `phi`, `alpha`, `norm_weight`, `bias`, `w`, as far as they are there.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let p = self.projection.as_ref();
        let all = [
            ("phi", p.map(|p| &p.phi)),
            ("alpha", p.map(|p| &p.alpha)),
            ("norm_weight", p.and_then(|p| p.norm_weight.as_ref())),
            ("bias", Some(&self.bias)),
            ("w", self.w.as_ref()),
        ];
        all.into_iter().filter_map(|(name, tensor)| tensor.map(|t| (name, t)))
    }
}

impl MhcLayer {
    /// Copies the parameters to the stream's device, the n·n block turned to the orientation of `numerics`.
    ///
    /// The ε of the RMSNorm of the sub-layer's input is `numerics.rms_eps`, as in mHC.cu; see [`with_norm_eps`](Self::with_norm_eps).
    /// [`Error::Attribute`](mhc_core::Error::Attribute) and [`Error::Shape`](mhc_core::Error::Shape) where numbers or sizes are out of range.
    pub fn new(stream: &Stream, numerics: Numerics, params: &HostParams) -> Result<Self> {
        numerics.check("layer")?;
        params.check()?;
        let HostParams { streams, channels, projection, bias, w, .. } = params.clone().oriented(numerics.orientation);
        let d = Dims::new(1, streams, channels);
        let upload = |shape: &[usize], data: &[f32]| Tensor::from_slice(stream, shape, data);
        let projection = match &projection {
            None => None,
            Some(HostProjection { phi, alpha, norm_weight }) => Some(Projection {
                phi: upload(&[d.mix(), d.row()], phi)?,
                alpha: upload(&[3], alpha)?,
                norm_weight: norm_weight.as_ref().map(|v| upload(&[d.row()], v)).transpose()?,
            }),
        };
        let constant = match projection {
            Some(_) => None,
            None => Some((Tensor::zeros(stream, DType::F32, &[1, d.mix()])?, Tensor::zeros(stream, DType::F32, &[3])?)),
        };
        let bias = upload(&[d.mix()], &bias)?;
        let w = w.as_ref().map(|v| upload(&[channels], v)).transpose()?;
        let params = Params { projection, bias, w };
        Ok(Self { stream: stream.clone(), streams, channels, numerics, norm_eps: numerics.rms_eps, params, constant })
    }

    /// The same layer with another ε in the RMSNorm of the sub-layer's input.
    pub fn with_norm_eps(self, norm_eps: f64) -> Result<Self> {
        mhc_core::numerics::check_eps("layer", "norm_eps", norm_eps)?;
        Ok(Self { norm_eps, ..self })
    }

    /// A copy of the parameters in host memory, in the orientation of the layer's numerics. Waits for the stream.
    pub fn host(&self) -> Result<HostParams> {
        let projection = match &self.params.projection {
            None => None,
            Some(p) => {
                let alpha = p.alpha.to_vec::<f32>()?;
                Some(HostProjection {
                    phi: p.phi.to_vec()?,
                    alpha: [alpha[0], alpha[1], alpha[2]],
                    norm_weight: p.norm_weight.as_ref().map(Tensor::to_vec).transpose()?,
                })
            }
        };
        Ok(HostParams {
            streams: self.streams,
            channels: self.channels,
            orientation: self.numerics.orientation,
            projection,
            bias: self.params.bias.to_vec()?,
            w: self.params.w.as_ref().map(Tensor::to_vec).transpose()?,
        })
    }

    /// n.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// C.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Its conventions.
    pub fn numerics(&self) -> &Numerics {
        &self.numerics
    }

    /// Loads or compiles every kernel, and makes room for all scratch memory, for `tokens` tokens with streams of type `act`: after that
    /// the layer's functions allocate nothing but the tensors they return, and compile nothing.
    pub fn prepare(&self, tokens: usize, act: DType) -> Result<()> {
        self.problems(tokens, act).iter().try_for_each(|p| self.stream.prepare(p).map(drop))
    }

    /// Every operator that the layer runs, forward and backward, saving all or little.
    pub fn problems(&self, tokens: usize, act: DType) -> Vec<Problem> {
        let d = Dims::new(tokens, self.streams, self.channels);
        let orientation = self.numerics.orientation;
        let mut list = vec![Problem::new(Post { orientation }, d, act)];
        let dynamic = self.params.projection.is_some();
        list.push(Problem::new(PostBwd { orientation, d_x: !dynamic }, d, act));
        if dynamic {
            list.extend([false, true].map(|save| Problem::new(self.pre_op(save), d, act)));
            list.push(Problem::new(self.pre_bwd_op(), d, act));
        } else {
            list.extend(self.static_problems(d, act));
        }
        if self.params.w.is_some() {
            list.extend(self.fused_problems(d, act));
        }
        list
    }

    fn static_problems(&self, d: Dims, act: DType) -> Vec<Problem> {
        let numerics = self.numerics;
        let one = Dims { tokens: 1, channels: 1, ..d };
        let add = Collapse { mean: false };
        let mut list = vec![
            Problem::new(Coefficients { numerics }, one, DType::F32),
            Problem::new(Aggregate, d, act),
            Problem::new(AggregateBwd, d, act),
            Problem::new(CoefficientsBwd { numerics }, Dims { channels: 1, ..d }, DType::F32),
            Problem::new(add.clone(), Dims::new(d.tokens, 2, d.row()), act),
            Problem::new(add, Dims::new(d.tokens, 2, d.mix()), DType::F32),
        ];
        if self.params.w.is_some() {
            let eps = self.norm_eps;
            let rows = Dims { streams: 1, ..d };
            list.extend([false, true].map(|save| Problem::new(RmsNorm { eps, save }, rows, act)));
            list.push(Problem::new(RmsNormBwd { eps }, rows, act));
        }
        list
    }

    fn fused_problems(&self, d: Dims, act: DType) -> Vec<Problem> {
        let (numerics, norm_eps) = (self.numerics, self.norm_eps);
        if self.params.projection.is_none() {
            let (forward, backward) = (StaticLayer { numerics, norm_eps }, StaticLayerBwd { numerics, norm_eps });
            return vec![Problem::new(forward, d, act), Problem::new(backward, d, act)];
        }
        let forward = [false, true].map(|save| Problem::new(DynamicLayer { numerics, norm_eps, save }, d, act));
        let mut list = Vec::from(forward);
        list.push(Problem::new(Project { rms_eps: numerics.rms_eps, norm_weight: false }, d, act));
        list.push(Problem::new(DynamicLayerBwd { numerics, norm_eps }, d, act));
        list
    }

    fn pre_op(&self, save: bool) -> Pre {
        Pre { numerics: self.numerics, norm_weight: self.has_norm_weight(), rms_norm: self.rms_norm(), save }
    }

    fn pre_bwd_op(&self) -> PreBwd {
        PreBwd { numerics: self.numerics, norm_weight: self.has_norm_weight(), rms_norm: self.rms_norm(), carry: true }
    }

    fn has_norm_weight(&self) -> bool {
        self.params.projection.as_ref().is_some_and(|p| p.norm_weight.is_some())
    }

    fn rms_norm(&self) -> Option<f64> {
        self.params.w.as_ref().map(|_| self.norm_eps)
    }
}
