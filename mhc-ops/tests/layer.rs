//! The layer: its gradients against the exact derivative of the float64 composition, what it saves, prepares and refuses.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use mhc_core::{Dual, Inputs, Kernel, Outputs, Real, Role};
use mhc_ops::{
    AnyOp, DType, DevPtr, Device, DeviceInfo, Dims, HostParams, HostProjection, Init, MhcLayer, Numerics, Problem,
    RawStream, Result, Save, Stream, Support, Tensor,
    ops::{Aggregate, Coefficients, Post, Pre, RmsNorm},
};

const TOKENS: usize = 5;

fn cpu() -> Stream {
    Stream::new(mhc_ops::open("cpu").unwrap()).unwrap()
}

/// Normal-looking numbers of standard deviation `std`, others for every seed, all of them f32.
fn random(seed: u64, len: usize, std: f64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut uniform = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) as f64 / (1u64 << 31) as f64 - 0.5
    };
    // The variance of a uniform number in -1/2..1/2 is 1/12.
    (0..len).map(|_| ((0..4).map(|_| uniform()).sum::<f64>() * std * 3f64.sqrt()) as f32 as f64).collect()
}

fn host(n: usize, c: usize, dynamic: bool, weighted: bool, numerics: Numerics) -> HostParams {
    let (mix, row) = (n * (n + 2), n * c);
    let f32s = |seed, len, std| random(seed, len, std).into_iter().map(|v| v as f32).collect::<Vec<_>>();
    let around_one = |seed, len| f32s(seed, len, 0.2).into_iter().map(|v| 1.0 + v).collect::<Vec<_>>();
    let projection = dynamic.then(|| HostProjection {
        phi: f32s(1, mix * row, 1.0 / (row as f64).sqrt()),
        alpha: [0.9, 1.1, 1.3],
        norm_weight: weighted.then(|| around_one(2, row)),
    });
    HostParams {
        streams: n,
        channels: c,
        orientation: numerics.orientation,
        projection,
        bias: f32s(3, mix, 0.7),
        w: weighted.then(|| around_one(4, c)),
    }
}

/// Every tensor that the output depends on: x first, then the parameters under the names of [`mhc_ops::Params::tensors`].
fn operands(p: &HostParams) -> Vec<(&'static str, Vec<f64>)> {
    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let mut list = vec![("x", random(5, TOKENS * p.streams * p.channels, 1.0))];
    if let Some(projection) = &p.projection {
        list.push(("phi", wide(&projection.phi)));
        list.push(("alpha", wide(&projection.alpha)));
        list.extend(projection.norm_weight.as_ref().map(|v| ("norm_weight", wide(v))));
    }
    list.push(("bias", wide(&p.bias)));
    list.extend(p.w.as_ref().map(|v| ("w", wide(v))));
    list
}

fn reference<R: Real>(op: impl Into<AnyOp>, d: &Dims, operands: &[(&str, Vec<R>)]) -> Outputs<R> {
    let op = op.into();
    let find = |name| operands.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone()).unwrap_or_default();
    let slots = op.desc().slots;
    let tensors: Vec<_> =
        slots.iter().map(|s| if s.role == Role::In && op.has(s.name) { find(s.name) } else { Vec::new() }).collect();
    op.reference(d, &Inputs::new(op.desc(), &tensors))
}

/// The sub-layer of these tests, and its derivative.
fn sub_layer<R: Real>(v: R) -> R {
    v * v * R::c(0.3) + v
}

/// x_next, put together from the references of the operators.
fn composition<R: Real>(p: &HostParams, numerics: Numerics, operands: &[(&'static str, Vec<R>)]) -> Vec<R> {
    let d = Dims::new(TOKENS, p.streams, p.channels);
    let get = |name: &str| operands.iter().find(|(n, _)| *n == name).unwrap().1.clone();
    let weighted = p.w.is_some();
    let eps = numerics.rms_eps;
    let (layer_input, mixes) = if p.projection.is_some() {
        let op = Pre { numerics, norm_weight: weighted, rms_norm: weighted.then_some(eps), save: false };
        let out = reference(op, &d, operands);
        (out.get("layer_input").unwrap().to_vec(), out.get("mixes").unwrap().to_vec())
    } else {
        let (z, alpha) = (vec![R::zero(); d.mix()], vec![R::zero(); 3]);
        let one = Dims::new(1, p.streams, 1);
        let row = reference(Coefficients { numerics }, &one, &[("z", z), ("alpha", alpha), ("bias", get("bias"))]);
        let mixes = row.get("mixes").unwrap().repeat(TOKENS);
        let out = reference(Aggregate, &d, &[("x", get("x")), ("mixes", mixes.clone())]);
        let mut layer_input = out.get("layer_input").unwrap().to_vec();
        if weighted {
            let out = reference(RmsNorm { eps, save: false }, &d, &[("x", layer_input), ("w", get("w"))]);
            layer_input = out.get("y").unwrap().to_vec();
        }
        (layer_input, mixes)
    };
    let y = layer_input.into_iter().map(sub_layer).collect();
    let op = Post { orientation: numerics.orientation };
    reference(op, &d, &[("x", get("x")), ("y", y), ("mixes", mixes)]).get("x_next").unwrap().to_vec()
}

/// x_next, and the gradients of everything in [`operands`], by the layer.
fn run(layer: &MhcLayer, dtype: DType, x: &[f64], g: &[f64], save: Save) -> (Vec<f64>, Vec<(&'static str, Vec<f64>)>) {
    let s = cpu();
    let (n, c) = (layer.streams(), layer.channels());
    let upload = |data: &[f64], shape: &[usize]| Tensor::from_f64(&s, dtype, shape, data).unwrap();
    let (layer_input, pending) = layer.pre(upload(x, &[TOKENS, n, c]), save).unwrap();
    let input = layer_input.to_f64().unwrap();
    let y: Vec<f64> = input.iter().map(|v| sub_layer(*v)).collect();
    let (x_next, saved) = layer.post(pending, upload(&y, &[TOKENS, c])).unwrap();
    let (d_y, pending) = layer.post_backward(saved, upload(g, &[TOKENS, n, c])).unwrap();
    let d_input: Vec<f64> = d_y.to_f64().unwrap().iter().zip(&input).map(|(d, v)| d * (1.0 + 0.6 * v)).collect();
    let (d_x, grads) = layer.pre_backward(pending, &upload(&d_input, &[TOKENS, c])).unwrap();
    let mut list = vec![("x", d_x.to_f64().unwrap())];
    list.extend(grads.tensors().map(|(name, t)| (name, t.to_f64().unwrap())));
    (x_next.to_f64().unwrap(), list)
}

#[test]
fn gradients_are_the_derivative_of_the_float64_composition() {
    let (n, c) = (3, 10);
    for (preset, numerics) in Numerics::PRESETS {
        for (dynamic, weighted) in [(true, false), (true, true), (false, false), (false, true)] {
            let what = format!("{preset}, dynamic {dynamic}, weighted {weighted}");
            let p = host(n, c, dynamic, weighted, numerics);
            let values = operands(&p);
            let g = random(6, TOKENS * n * c, 1.0);
            let layer = MhcLayer::new(&cpu(), numerics, &p).unwrap();
            let (x_next, grads) = run(&layer, DType::F32, &values[0].1, &g, Save::All);
            let truth = composition(&p, numerics, &values);
            let scale = truth.iter().fold(0f64, |m, v| m.max(v.abs()));
            for (got, want) in x_next.iter().zip(&truth) {
                assert!((got - want).abs() <= 2e-6 * scale, "{what}: x_next {got} is not {want}");
            }
            assert_eq!(grads.iter().map(|g| g.0).collect::<Vec<_>>(), values.iter().map(|v| v.0).collect::<Vec<_>>());
            for (i, (name, grad)) in grads.iter().enumerate() {
                let v = random(10 + i as u64, grad.len(), 1.0);
                let dual = |(k, (name, data)): (usize, &(&'static str, Vec<f64>))| {
                    let along = |(j, x): (usize, &f64)| Dual::new(*x, if k == i { v[j] } else { 0.0 });
                    (*name, data.iter().enumerate().map(along).collect())
                };
                let moved = composition(&p, numerics, &values.iter().enumerate().map(dual).collect::<Vec<_>>());
                let want: f64 = moved.iter().zip(&g).map(|(o, g)| o.d * g).sum();
                let got: f64 = grad.iter().zip(&v).map(|(a, b)| a * b).sum();
                let size: f64 = grad.iter().zip(&v).map(|(a, b)| (a * b).abs()).sum();
                assert!((got - want).abs() <= 4e-6 * size, "{what}: along {name} {got} is not {want} (of {size})");
            }
        }
    }
}

#[test]
fn saving_little_gives_the_same_bits() {
    for dtype in DType::ALL {
        for (dynamic, weighted) in [(true, false), (true, true), (false, false), (false, true)] {
            let p = host(4, 24, dynamic, weighted, Numerics::default());
            let layer = MhcLayer::new(&cpu(), Numerics::default(), &p).unwrap();
            let (x, g) = (random(5, TOKENS * 96, 1.0), random(6, TOKENS * 96, 1.0));
            let [all, minimal] = [Save::All, Save::Minimal].map(|save| run(&layer, dtype, &x, &g, save));
            assert_eq!(all, minimal, "{dtype}, dynamic {dynamic}, weighted {weighted}");
        }
    }
}

/// mHC.cu's form by one operator and by `pre` and `post` around nothing.
#[test]
fn the_fused_form_is_the_split_form_without_a_sub_layer() {
    let s = cpu();
    for dynamic in [true, false] {
        let mut p = host(4, 24, dynamic, true, Numerics::mhc_cu());
        if let Some(projection) = &mut p.projection {
            projection.norm_weight = None;
        }
        let layer = MhcLayer::new(&s, Numerics::mhc_cu(), &p).unwrap();
        let upload =
            |seed| Tensor::from_f64(&s, DType::F32, &[TOKENS, 4, 24], &random(seed, TOKENS * 96, 1.0)).unwrap();
        let (layer_input, pending) = layer.pre(upload(5), Save::All).unwrap();
        let (x_next, saved) = layer.post(pending, layer_input).unwrap();
        let (d_y, pending) = layer.post_backward(saved, upload(6)).unwrap();
        let (d_x, grads) = layer.pre_backward(pending, &d_y).unwrap();
        for save in [Save::All, Save::Minimal] {
            let (out, saved) = layer.forward(upload(5), save).unwrap();
            assert_eq!(saved.projection.is_some(), dynamic && save == Save::All);
            let (fused_d_x, fused_grads) = layer.backward(saved, &upload(6)).unwrap();
            close("out", &out, &x_next);
            close("d_x", &fused_d_x, &d_x);
            assert_eq!(fused_grads.tensors().count(), grads.tensors().count());
            for ((name, a), (_, b)) in fused_grads.tensors().zip(grads.tensors()) {
                close(name, a, b);
            }
        }
    }
}

/// Equal to 1e-5 of the largest element.
fn close(what: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    let (a, b) = (a.to_f64().unwrap(), b.to_f64().unwrap());
    let scale = b.iter().fold(0f64, |m, v| m.max(v.abs()));
    let worst = a.iter().zip(&b).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= 1e-5 * scale, "{what}: differs by {worst} of {scale}");
}

/// The CPU, with a list of the problems for which kernels were asked.
#[derive(Debug)]
struct Recorder {
    inner: Arc<dyn Device>,
    asked: Arc<Mutex<Vec<Problem>>>,
}

impl Device for Recorder {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn support(&self, p: &Problem) -> Support {
        self.inner.support(p)
    }
    fn kernel(&self, p: &Problem) -> Result<Arc<dyn Kernel>> {
        self.asked.lock().unwrap().push(p.clone());
        self.inner.kernel(p)
    }
    fn create_stream(&self) -> Result<RawStream> {
        self.inner.create_stream()
    }
    unsafe fn destroy_stream(&self, s: RawStream) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.destroy_stream(s) }
    }
    fn sync(&self, s: RawStream) -> Result<()> {
        self.inner.sync(s)
    }
    fn alloc(&self, bytes: usize, s: RawStream) -> Result<DevPtr> {
        self.inner.alloc(bytes, s)
    }
    unsafe fn free(&self, p: DevPtr, bytes: usize, s: RawStream) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.free(p, bytes, s) }
    }
    unsafe fn upload(&self, dst: DevPtr, src: &[u8], s: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.upload(dst, src, s) }
    }
    unsafe fn download(&self, dst: &mut [u8], src: DevPtr, s: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.download(dst, src, s) }
    }
}

#[test]
fn prepare_prepares_just_what_is_run() {
    for (dynamic, weighted) in [(true, false), (true, true), (false, false), (false, true)] {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let recorder = Recorder { inner: mhc_ops::open("cpu").unwrap(), asked: asked.clone() };
        let s = Stream::new(Arc::new(recorder)).unwrap();
        let mut p = host(4, 24, dynamic, weighted, Numerics::default());
        if let Some(projection) = &mut p.projection {
            projection.norm_weight = None;
        }
        let layer = MhcLayer::new(&s, Numerics::default(), &p).unwrap();
        layer.prepare(TOKENS, DType::Bf16).unwrap();
        let prepared = core::mem::take(&mut *asked.lock().unwrap());
        let x = || Tensor::zeros(&s, DType::Bf16, &[TOKENS, 4, 24]).unwrap();
        for save in [Save::All, Save::Minimal] {
            let (y, pending) = layer.pre(x(), save).unwrap();
            let (_, saved) = layer.post(pending, y).unwrap();
            let (d_y, pending) = layer.post_backward(saved, x()).unwrap();
            layer.pre_backward(pending, &d_y).unwrap();
            if weighted {
                let (out, saved) = layer.forward(x(), save).unwrap();
                layer.backward(saved, &out).unwrap();
            }
        }
        let run = asked.lock().unwrap();
        for problem in run.iter() {
            assert!(prepared.contains(problem), "{problem} ({:?}) was run unprepared", problem.op);
        }
        for problem in &prepared {
            assert!(run.contains(problem), "{problem} ({:?}) was prepared for nothing", problem.op);
        }
    }
}

#[test]
fn no_tokens_give_empty_streams_and_zero_gradients() {
    let s = cpu();
    for dynamic in [true, false] {
        let layer = MhcLayer::new(&s, Numerics::default(), &host(2, 6, dynamic, true, Numerics::default())).unwrap();
        let none = |shape: &[usize]| Tensor::zeros(&s, DType::F32, shape).unwrap();
        let (y, pending) = layer.pre(none(&[0, 2, 6]), Save::Minimal).unwrap();
        let (x_next, saved) = layer.post(pending, y).unwrap();
        assert_eq!(x_next.shape(), [0, 2, 6]);
        let (d_y, pending) = layer.post_backward(saved, x_next).unwrap();
        let (d_x, grads) = layer.pre_backward(pending, &d_y).unwrap();
        assert_eq!(d_x.shape(), [0, 2, 6]);
        for (name, grad) in grads.tensors() {
            assert!(grad.to_f64().unwrap().iter().all(|v| *v == 0.0), "{name}");
        }
    }
}

#[test]
fn parameters_return_as_they_came() {
    for numerics in [Numerics::mhc_cu(), Numerics::deepseek_v4()] {
        let p = host(3, 5, true, true, Numerics::mhc_cu());
        let back = MhcLayer::new(&cpu(), numerics, &p).unwrap().host().unwrap();
        assert_eq!(back.orientation, numerics.orientation);
        assert_eq!(back.oriented(p.orientation), p);
    }
}

#[test]
fn misuse_is_named() {
    let s = cpu();
    let numerics = Numerics::default();
    let plain = MhcLayer::new(&s, numerics, &Init::Liger { seed: 1 }.params(4, 8).unwrap()).unwrap();
    let x = |shape: &[usize]| Tensor::zeros(&s, DType::F32, shape).unwrap();
    let says = |error: mhc_ops::Error, words: &[&str]| {
        let text = error.to_string();
        assert!(words.iter().all(|w| text.contains(w)), "{text} lacks one of {words:?}");
    };
    says(plain.forward(x(&[5, 4, 8]), Save::All).unwrap_err(), &["layer: attribute `w`", "mHC.cu", "absent"]);
    says(plain.pre(x(&[5, 3, 8]), Save::All).unwrap_err(), &["pre: operand `phi`", "[15, 24]", "[24, 32]"]);
    says(plain.pre(x(&[5, 32]), Save::All).unwrap_err(), &["pre: operand `x`", "[T, n, C]", "[5, 32]"]);
    let normed = MhcLayer::new(&s, numerics, &host(2, 6, true, true, numerics)).unwrap();
    says(normed.forward(x(&[5, 2, 6]), Save::All).unwrap_err(), &["`norm_weight`", "absent in mHC.cu's form"]);
    says(normed.with_norm_eps(f64::NAN).unwrap_err(), &["norm_eps", "NaN"]);
    let fixed = MhcLayer::new(&s, numerics, &Init::Tokenbender { layer: 0 }.params(4, 8).unwrap()).unwrap();
    says(fixed.pre(x(&[32]), Save::All).unwrap_err(), &["aggregate: operand `x`", "[T, n, C]", "[32]"]);
    says(fixed.pre(x(&[5, 3, 8]), Save::All).unwrap_err(), &["aggregate: operand `mixes`", "[5, 15]", "[5, 24]"]);
    let (_, pending) = plain.pre(x(&[5, 4, 8]), Save::All).unwrap();
    says(plain.post(pending, x(&[5, 9])).unwrap_err(), &["post: operand `y`", "[5, 8]", "[5, 9]"]);
    let bad = HostParams { bias: vec![0.0; 3], ..Init::Liger { seed: 1 }.params(4, 8).unwrap() };
    says(MhcLayer::new(&s, numerics, &bad).unwrap_err(), &["layer: operand `bias`", "24 elements", "3 elements"]);
}
