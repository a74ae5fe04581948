//! What must hold of results whatever the numbers: the mathematics of hyper-connections, on the device and in its arithmetic.

use anyhow::Result;
use mhc_core::{
    DType, Dims, Eps, Numerics, Order, Orientation, Problem, SinkhornForm, Stream, bf16, f16,
    ops::{Aggregate, Coefficients, Collapse, Expand, Post, Sinkhorn},
};
use mhc_tests::{
    data::{Operands, Rng},
    devices,
    oracle::evaluate,
    run::{How, decode, run},
};

/// The first output of a problem on the device; `inputs` by slot, as they come.
fn output(p: &Problem, inputs: &[&[f64]]) -> Result<Vec<f64>> {
    let stream = Stream::new(devices::cpu()?.device)?;
    let mut inputs = inputs.iter();
    let slots = p.op.desc().slots.iter();
    let operands: Operands =
        slots.map(|s| if s.is_input() { inputs.next().map_or(vec![], |v| v.to_vec()) } else { vec![] }).collect();
    let outputs = decode(p, &run(&stream, p, &operands, How::PLAIN)?);
    Ok(outputs.into_iter().find(|v| !v.is_empty()).unwrap_or_default())
}

/// Numbers that a type can represent.
fn rounded(dtype: DType, values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|v| dtype.round(v)).collect()
}

/// H_res of standard normal logits, `[T][to][from]`.
fn doubly_stochastic(form: SinkhornForm, d: Dims, rng: &mut Rng) -> Result<Vec<f64>> {
    let logits = rounded(DType::F32, rng.normals(d.tokens * d.streams * d.streams));
    output(&Problem::new(Sinkhorn { form, orientation: Orientation::ToFrom }, d, DType::F32), &[&logits])
}

#[test]
fn rows_and_columns_sum_to_one() -> Result<()> {
    for (name, numerics) in Numerics::PRESETS {
        for n in 1..=32 {
            let d = Dims::new(40, n, 1);
            let h = doubly_stochastic(numerics.sinkhorn, d, &mut Rng::new(n as u64))?;
            for (t, m) in h.chunks(n * n).enumerate() {
                assert!(m.iter().all(|v| *v >= 0.0), "{name} n = {n}, token {t}: a negative weight");
                for i in 0..n {
                    let row: f64 = m[i * n..][..n].iter().sum();
                    let column: f64 = (0..n).map(|k| m[k * n + i]).sum();
                    // The last half-step's sums are exact but for ε; at σ = 1 twenty iterations leave up to 5e-5 in the others'.
                    let (last, other) = match numerics.sinkhorn.order {
                        Order::ColumnsFirst => (row, column),
                        Order::RowsFirst => (column, row),
                    };
                    assert!((last - 1.0).abs() < 1e-5, "{name} n = {n}, token {t}: last line {i} sums to {last}");
                    assert!((other - 1.0).abs() < 5e-5, "{name} n = {n}, token {t}: other line {i} sums to {other}");
                }
            }
        }
    }
    Ok(())
}

/// Power iteration on HᵀH: the largest singular value of a doubly stochastic matrix is 1, so products of them do not grow.
#[test]
fn mixing_does_not_amplify() -> Result<()> {
    for (name, numerics) in Numerics::PRESETS {
        for n in [1, 2, 3, 4, 8, 17, 32] {
            let h = doubly_stochastic(numerics.sinkhorn, Dims::new(8, n, 1), &mut Rng::new(100 + n as u64))?;
            for m in h.chunks(n * n) {
                let mut v = Rng::new(1).normals(n);
                let mut norm = 0.0;
                for _ in 0..500 {
                    let u: Vec<f64> = (0..n).map(|i| (0..n).map(|j| m[i * n + j] * v[j]).sum()).collect();
                    let w: Vec<f64> = (0..n).map(|j| (0..n).map(|i| m[i * n + j] * u[i]).sum()).collect();
                    norm = w.iter().map(|v| v * v).sum::<f64>().sqrt();
                    v = w.iter().map(|v| v / norm).collect();
                }
                assert!(norm.sqrt() < 1.0 + 5e-5, "{name} n = {n}: spectral norm {}", norm.sqrt());
                assert!(norm.sqrt() > 1.0 - 5e-5, "{name} n = {n}: spectral norm {}", norm.sqrt());
            }
        }
    }
    Ok(())
}

/// `mixes` of every token from H_post and H_res in f64.
fn mixes(d: &Dims, post: impl Fn(usize) -> f64, res: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let n = d.streams;
    let token: Vec<f64> =
        (0..n).map(|_| f64::NAN).chain((0..n).map(post)).chain((0..n * n).map(|e| res(e / n, e % n))).collect();
    token.repeat(d.tokens)
}

#[test]
fn identity_mixing_copies() -> Result<()> {
    for dtype in DType::ALL {
        for d in [Dims::new(9, 4, 130), Dims::new(3, 1, 1), Dims::new(2, 32, 17), Dims::new(5, 3, 64)] {
            let mut rng = Rng::new(3);
            let x = rounded(dtype, rng.normals(d.tokens * d.row()));
            let y = rounded(dtype, rng.normals(d.tokens * d.channels));
            let mixes = mixes(&d, |_| 0.0, |i, j| f64::from(i == j));
            let x_next = output(&Problem::new(Post::default(), d, dtype), &[&x, &y, &mixes])?;
            assert_eq!(dtype.encode(&x_next), dtype.encode(&x), "{dtype} {d}");
        }
    }
    Ok(())
}

#[test]
fn one_stream_is_the_plain_residual() -> Result<()> {
    for dtype in DType::ALL {
        let d = Dims::new(7, 1, 130);
        let mut rng = Rng::new(4);
        let (x, y) = (rounded(dtype, rng.normals(7 * 130)), rounded(dtype, rng.normals(7 * 130)));
        let x_next = output(&Problem::new(Post::default(), d, dtype), &[&x, &y, &mixes(&d, |_| 1.0, |_, _| 1.0)])?;
        let sum = x.iter().zip(&y).map(|(x, y)| match dtype {
            DType::F32 => f64::from(*x as f32 + *y as f32),
            DType::Bf16 => bf16::from_f32(*x as f32 + *y as f32).to_f64(),
            DType::F16 => f16::from_f32(*x as f32 + *y as f32).to_f64(),
        });
        assert_eq!(x_next, sum.collect::<Vec<_>>(), "{dtype}");
    }
    // H_res of one stream is 1 whatever its logit.
    for (name, numerics) in Numerics::PRESETS {
        let logits: Vec<f64> = (-80..=80).map(f64::from).collect();
        let sinkhorn = Sinkhorn { form: numerics.sinkhorn, orientation: numerics.orientation };
        let h = output(&Problem::new(sinkhorn, Dims::new(logits.len(), 1, 1), DType::F32), &[&logits])?;
        // mHC.cu leaves a line as it is where its sum is below ε.
        let reaches = |logit: f64| !matches!(numerics.sinkhorn.eps, Eps::Threshold(e) if logit.exp() < 2.0 * e);
        let off = |(l, h): (&f64, &f64)| if reaches(*l) { (h - 1.0).abs() } else { 0.0 };
        let worst = logits.iter().zip(&h).map(off).fold(0.0, f64::max);
        assert!(worst < 1e-5, "{name}: {worst}");
    }
    Ok(())
}

#[test]
fn a_copy_in_every_stream_collapses_to_itself() -> Result<()> {
    for dtype in DType::ALL {
        let d = Dims::new(5, 4, 67);
        let h = rounded(dtype, Rng::new(5).normals(5 * 67));
        let x = output(&Problem::new(Expand, d, dtype), &[&h])?;
        assert_eq!(x.chunks(4 * 67).flat_map(|t| t[2 * 67..3 * 67].to_vec()).collect::<Vec<_>>(), h, "{dtype}");
        assert_eq!(output(&Problem::new(Collapse { mean: true }, d, dtype), &[&x])?, h, "{dtype}");
    }
    Ok(())
}

/// Renaming the streams of all operands renames those of the result.
#[test]
fn permuting_streams_permutes_results() -> Result<()> {
    let close = |a: &[f64], b: &[f64], what: &str| {
        let largest = a.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let worst = a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 2e-6 * largest, "{what}: off by {worst:e} of {largest}");
    };
    for n in [2, 3, 4, 7, 16, 32] {
        let d = Dims::new(6, n, 45);
        let mut rng = Rng::new(n as u64);
        let mut order: Vec<usize> = (0..n).collect();
        (1..n).for_each(|i| order.swap(i, rng.below(i + 1)));
        let streams = |x: &[f64], each: usize| -> Vec<f64> {
            x.chunks(n * each).flat_map(|t| order.iter().flat_map(move |&i| t[i * each..][..each].to_vec())).collect()
        };
        let matrix = |h: &[f64]| -> Vec<f64> {
            let one = |m: &[f64]| {
                order
                    .iter()
                    .flat_map(|&i| order.iter().map(move |&j| (i, j)))
                    .map(|(i, j)| m[i * n + j])
                    .collect::<Vec<_>>()
            };
            h.chunks(n * n).flat_map(one).collect()
        };
        let coefficients = |m: &[f64]| -> Vec<f64> {
            let one = |m: &[f64]| [streams(&m[..n], 1), streams(&m[n..2 * n], 1), matrix(&m[2 * n..])].concat();
            m.chunks(d.mix()).flat_map(one).collect()
        };
        let f32s = |rng: &mut Rng, len| rounded(DType::F32, rng.normals(len));
        let (x, y, m) = (f32s(&mut rng, 6 * d.row()), f32s(&mut rng, 6 * 45), f32s(&mut rng, 6 * d.mix()));
        let post = Problem::new(Post::default(), d, DType::F32);
        let there = output(&post, &[&streams(&x, 45), &y, &coefficients(&m)])?;
        close(&streams(&output(&post, &[&x, &y, &m])?, 45), &there, "post");
        let aggregate = Problem::new(Aggregate, d, DType::F32);
        let there = output(&aggregate, &[&streams(&x, 45), &coefficients(&m)])?;
        close(&output(&aggregate, &[&x, &m])?, &there, "aggregate");
        for (name, numerics) in Numerics::PRESETS {
            let (form, orientation) = (numerics.sinkhorn, numerics.orientation);
            let sinkhorn = Problem::new(Sinkhorn { form, orientation }, d, DType::F32);
            let logits = f32s(&mut rng, 6 * n * n);
            let there = output(&sinkhorn, &[&matrix(&logits)])?;
            close(&matrix(&output(&sinkhorn, &[&logits])?), &there, name);
        }
    }
    Ok(())
}

/// A matrix `[to][from]`, and the half-steps that the presets are made of, each as its source writes it.
struct Matrix(usize, Vec<f64>);

impl Matrix {
    fn lines(&mut self, rows: bool, f: impl Fn(&mut Vec<f64>)) -> &mut Self {
        let n = self.0;
        for line in 0..n {
            let at = |k: usize| if rows { line * n + k } else { k * n + line };
            let mut values: Vec<f64> = (0..n).map(|k| self.1[at(k)]).collect();
            f(&mut values);
            (0..n).for_each(|k| self.1[at(k)] = values[k]);
        }
        self
    }

    fn divide(&mut self, rows: bool, by: impl Fn(f64) -> f64) -> &mut Self {
        self.lines(rows, |v| {
            let s = by(v.iter().sum());
            v.iter_mut().for_each(|v| *v /= s);
        })
    }

    fn softmax(&mut self, rows: bool) -> &mut Self {
        self.lines(rows, |v| v.iter_mut().for_each(|v| *v = v.exp())).divide(rows, |s| s)
    }

    fn map(&mut self, f: impl Fn(f64) -> f64) -> &mut Self {
        self.1.iter_mut().for_each(|v| *v = f(*v));
        self
    }
}

/// Every preset is the formula of its source, written out.
#[test]
fn presets_are_their_formulas() -> Result<()> {
    const ROWS: bool = true;
    const COLUMNS: bool = false;
    let add = |s: f64| s + 1e-6;
    let n = 4;
    let mut rng = Rng::new(11);
    for (name, numerics) in Numerics::PRESETS {
        assert_eq!(Numerics::preset(name), Some(numerics));
        let d = Dims::new(5, n, 1);
        let p = Problem::new(Coefficients { numerics }, d, DType::F32);
        let (z, alpha, bias) = (rng.normals(5 * d.mix()), vec![0.7, 1.3, 2.0], rng.normals(d.mix()));
        let operands = vec![z.clone(), alpha.clone(), bias.clone(), vec![]];
        let mixes = &evaluate::<f64>(&p, &operands)?[3];
        for (z, got) in z.chunks(d.mix()).zip(mixes.chunks(d.mix())) {
            let t: Vec<f64> = (0..d.mix()).map(|k| alpha[(k / n).min(2)] * z[k] + bias[k]).collect();
            let transposed = matches!(name, "deepseek_v4" | "lucidrains");
            let place = |to: usize, from: usize| 2 * n + if transposed { from * n + to } else { to * n + from };
            let mut h = Matrix(n, (0..n * n).map(|e| t[place(e / n, e % n)]).collect());
            match name {
                "paper" => {
                    h.map(f64::exp);
                    for _ in 0..20 {
                        h.divide(COLUMNS, |s| s).divide(ROWS, |s| s);
                    }
                }
                "deepseek_v4" => {
                    h.softmax(COLUMNS).map(add).divide(ROWS, add);
                    for _ in 1..20 {
                        h.divide(COLUMNS, add).divide(ROWS, add);
                    }
                }
                "mhc_cu" => {
                    let kept = |s: f64| if s > 1e-5 { s } else { 1.0 };
                    h.map(f64::exp);
                    for _ in 0..20 {
                        h.divide(ROWS, kept).divide(COLUMNS, kept);
                    }
                }
                "liger" => {
                    h.softmax(ROWS).map(add).divide(COLUMNS, add);
                    for _ in 1..20 {
                        h.divide(ROWS, add).divide(COLUMNS, add);
                    }
                }
                "lucidrains" => {
                    h.lines(ROWS, |v| {
                        let max = v.iter().fold(f64::MIN, |m, v| m.max(*v));
                        v.iter_mut().for_each(|v| *v = (*v - max).exp());
                    });
                    let clamped = |s: f64| s.max(1e-12);
                    for _ in 0..20 {
                        h.divide(ROWS, clamped).divide(COLUMNS, clamped);
                    }
                }
                other => panic!("no formula is written here for the preset {other}"),
            }
            let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
            let pre_eps = if name == "deepseek_v4" { 1e-6 } else { 0.0 };
            for i in 0..n {
                assert!((got[i] - sigmoid(t[i]) - pre_eps).abs() < 1e-14, "{name}: H_pre");
                assert!((got[n + i] - 2.0 * sigmoid(t[n + i])).abs() < 1e-14, "{name}: H_post");
                for j in 0..n {
                    let (got, want) = (got[place(i, j)], h.1[i * n + j]);
                    assert!((got - want).abs() < 1e-12, "{name}: H_res[{i}][{j}] = {got}, not {want}");
                }
            }
        }
    }
    Ok(())
}

/// The half-step that comes last leaves its sums exact to rounding: what the order of each preset promises.
#[test]
fn the_last_half_step_is_exact() -> Result<()> {
    for (name, numerics) in Numerics::PRESETS {
        let form = SinkhornForm { iters: 1, ..numerics.sinkhorn };
        let h = doubly_stochastic(form, Dims::new(30, 4, 1), &mut Rng::new(8))?;
        let sums = |rows: bool| {
            let line =
                |m: &[f64], i: usize| (0..4).map(|k| if rows { m[i * 4 + k] } else { m[k * 4 + i] }).sum::<f64>();
            h.chunks(16).flat_map(|m| (0..4).map(move |i| (line(m, i) - 1.0).abs())).fold(0.0, f64::max)
        };
        let rows_last = form.order == Order::ColumnsFirst;
        // Sums are what they were over themselves plus ε of 1e-6.
        assert!(sums(rows_last) < 2e-5, "{name}: {}", sums(rows_last));
        assert!(sums(!rows_last) > 1e-3, "{name}: one iteration cannot have converged: {}", sums(!rows_last));
    }
    Ok(())
}
