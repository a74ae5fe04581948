//! Every backward is the exact adjoint of its forward: for random directions `<J v, u> = <v, Jᵀ u>`, J v by dual numbers through the
//! forward reference, Jᵀ u by the backward reference. No step size, so agreement to rounding; a wrong formula has nowhere to hide.
//!
//! A pair of directions for each input alone, each output alone, and all together, so that a small gradient is not lost beside a
//! large one. Saved outputs carry no gradient: they enter as constants.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use mhc_core::{
    AnyOp, DType, Dims, Dual, Eps, Level, Numerics, Orientation, Problem, Real, Role, SinkhornForm, Slot,
    ops::{Post, PostBwd, Pre, PreBwd, Sinkhorn, SinkhornBwd},
};
use mhc_tests::{
    cases,
    data::{self, Operands, Rng},
    oracle::{evaluate, evaluate_in},
};

/// Disagreement that is allowed, relative to the sizes of the vectors that are multiplied.
const TOLERANCE: f64 = 1e-12;

fn main() -> Result<()> {
    let mut trials = Vec::new();
    for p in cases::problems(mhc_tests::level()?.min(Level::Full), "")? {
        // Nothing is rounded here, so the element type is of no account.
        if p.act != DType::F32 {
            continue;
        }
        let described = p.clone();
        trials.push(Trial::test(format!("{p}/description"), move || finish(description(&described))));
        if let Some(forward) = p.op.forward() {
            for (name, sigma) in [("", 0.0), ("/sigma8", 8.0), ("/entries80", f64::INFINITY)] {
                let (p, forward) = (p.clone(), forward.clone());
                if sigma == 0.0 || p.op.desc().slots.iter().any(data::is_logit) {
                    trials.push(Trial::test(format!("{p}/adjoint{name}"), move || finish(prove(&p, forward, sigma))));
                }
            }
        }
    }
    for (name, forward, backward) in mismatched() {
        let dims = Dims::new(5, 4, 9);
        trials.push(Trial::test(format!("mismatch/{name}"), move || {
            let p = Problem { op: backward, dims, act: DType::F32 };
            if prove(&p, forward, 0.0).is_err() { Ok(()) } else { Err("a wrong gradient was taken for right".into()) }
        }));
    }
    for (name, numerics) in Numerics::PRESETS {
        for (norm_weight, rms_norm) in [(false, None), (true, Some(1e-6))] {
            for d in [Dims::new(5, 4, 13), Dims::new(3, 1, 7), Dims::new(4, 3, 8), Dims::new(0, 2, 3)] {
                let id = format!("composition/{name}/norm_weight={norm_weight}/{d}");
                trials.push(Trial::test(id, move || finish(composition(d, numerics, norm_weight, rms_norm))));
            }
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn finish(r: Result<()>) -> Result<(), libtest_mimic::Failed> {
    r.map_err(|e| format!("{e:#}").into())
}

/// Backward operators beside forwards that they are not the gradient of, by ever less: the proof must see all of them.
fn mismatched() -> Vec<(&'static str, AnyOp, AnyOp)> {
    let (form, orientation) = (Numerics::default().sinkhorn, Orientation::FromTo);
    let other = |iters, eps| SinkhornForm { iters, eps, ..form };
    let sinkhorn = |form| AnyOp::from(Sinkhorn { form, orientation });
    let transposed = Post { orientation: Orientation::ToFrom };
    vec![
        ("transposed", transposed.into(), PostBwd { orientation, d_x: true }.into()),
        (
            "one iteration at the start",
            sinkhorn(other(2, form.eps)),
            SinkhornBwd { form: other(1, form.eps), orientation }.into(),
        ),
        ("one iteration", sinkhorn(form), SinkhornBwd { form: other(19, form.eps), orientation }.into()),
        ("a tiny eps", sinkhorn(form), SinkhornBwd { form: other(20, Eps::Added(1.001e-6)), orientation }.into()),
    ]
}

/// A reference computes what the description says, and a backward operator's slots are named and shaped after its forward's.
fn description(p: &Problem) -> Result<()> {
    let operands = data::operands(p, data::seed(&p.to_string()))?;
    evaluate::<f64>(p, &operands)?;
    let Some(forward) = p.op.forward() else {
        ensure!(!p.op.desc().name.ends_with("_bwd"), "a backward operator must name its forward");
        return Ok(());
    };
    ensure!(p.op.desc().name == format!("{}_bwd", forward.desc().name), "is not named after {}", forward.desc().name);
    let find = |name: &str| forward.desc().slots.iter().find(|s| s.name == name && forward.has(name));
    for slot in p.slots() {
        let twin = match (slot.role, slot.name.strip_prefix("d_")) {
            (Role::In, upstream) => find(slot.name).or_else(|| find(upstream?).filter(|s| s.role == Role::Out)),
            (Role::Out, Some(name)) => find(name).filter(|s| s.is_input()),
            _ => None,
        };
        match twin {
            Some(twin) => ensure!((slot.axes, slot.dtype) == (twin.axes, twin.dtype), "{slot} differs from {twin}"),
            None => ensure!(carried(slot), "`{}` is nothing of {}", slot.name, forward.desc().name),
        }
    }
    Ok(())
}

/// The one input that is no upstream gradient of the forward's outputs: `pre_bwd` adds what `post_bwd` left out. See `composition`.
fn carried(slot: &Slot) -> bool {
    slot.name == "d_x_next"
}

/// Proves one backward operator at one point against its forward, the logits `sigma` times as large, or with entries of ±80 if that is infinite.
fn prove(p: &Problem, forward: AnyOp, sigma: f64) -> Result<()> {
    let forward = Problem { op: forward, ..p.clone() };
    let seed = data::seed(&p.to_string());
    let point = data::operands_with(&forward, seed, |slot, values, rng| data::sharpen(slot, values, rng, sigma))?;
    let results = evaluate::<f64>(&forward, &point)?;
    let mut rng = Rng::new(seed ^ 1);

    let slots = forward.op.desc().slots;
    let inputs: Vec<&Slot> = forward.slots().filter(|s| s.is_input()).collect();
    let outputs: Vec<&Slot> = forward.slots().filter(|s| s.role == Role::Out).collect();
    let pulled = pull_backs(p, &forward, &point, &results, &outputs, &mut rng)?;
    for directions in one_by_one(&inputs) {
        // A gradient that the attributes leave out is proven by `composition`.
        if directions.iter().any(|s| gradient(p, s).is_none()) {
            continue;
        }
        let v: Operands =
            slots.iter().map(|s| if directions.contains(&s) { rng.normals(s.len(&p.dims)) } else { vec![] }).collect();
        let moved = |i: usize| {
            let v: &Vec<f64> = &v[i];
            let speed = |k: usize| v.get(k).copied().unwrap_or(0.0);
            point[i].iter().enumerate().map(|(k, x)| Dual::new(*x, speed(k))).collect()
        };
        let pushed = evaluate_in(&forward, &(0..slots.len()).map(moved).collect::<Vec<_>>())?;
        for (u, d) in &pulled {
            let (mut left, mut right) = (Sum::default(), Sum::default());
            for i in 0..slots.len() {
                left.add(pushed[i].iter().map(|y| y.d), &u[i]);
                right.add(v[i].iter().copied(), &d[i]);
            }
            let sizes = left.sizes() + right.sizes() + 1e-4 * size(&v) * size(u);
            let off = (left.dot - right.dot).abs() / sizes.max(f64::MIN_POSITIVE);
            let names = |o: &Operands| {
                let named = slots.iter().zip(o).filter(|(_, v)| !v.is_empty()).map(|(s, _)| s.name);
                named.collect::<Vec<_>>().join(", ")
            };
            if off.is_nan() || off > TOLERANCE {
                bail!(
                    "moving [{}], looking at [{}]: <Jv, u> = {:e}, but <v, JTu> = {:e}, {off:.1e} relative",
                    names(&v),
                    names(u),
                    left.dot,
                    right.dot
                );
            }
        }
    }
    Ok(())
}

/// For each output alone and for all of them: a random upstream gradient, and what the backward operator makes of it by the forward's
/// slots, empty where it gives no gradient.
fn pull_backs(
    p: &Problem,
    forward: &Problem,
    point: &Operands,
    results: &[Vec<f64>],
    outputs: &[&Slot],
    rng: &mut Rng,
) -> Result<Vec<(Operands, Operands)>> {
    let slots = forward.op.desc().slots;
    let pull = |looked_at: Vec<&Slot>| {
        let u: Operands =
            slots.iter().map(|s| if looked_at.contains(&s) { rng.normals(s.len(&p.dims)) } else { vec![] }).collect();
        let operands = data::per_slot(p, |slot| {
            if !slot.is_input() {
                return Ok(Vec::new());
            }
            if let Some(i) = forward.op.desc().index(slot.name).filter(|_| forward.op.has(slot.name)) {
                return Ok(if slots[i].is_input() { point[i].clone() } else { results[i].clone() });
            }
            let upstream = slot.name.strip_prefix("d_").and_then(|name| forward.op.desc().index(name));
            let given = upstream.map(|i| u[i].clone()).filter(|u| !u.is_empty());
            Ok(given.unwrap_or_else(|| vec![0.0; slot.len(&p.dims)]))
        })?;
        let gradients = evaluate::<f64>(p, &operands)?;
        let of = |s: &Slot| gradient(p, s).map_or(Vec::new(), |i| gradients[i].clone());
        Ok((u, slots.iter().map(|s| if s.is_input() { of(s) } else { vec![] }).collect()))
    };
    one_by_one(outputs).into_iter().map(pull).collect()
}

/// Where a backward operator writes the gradient of an input, if it does.
fn gradient(p: &Problem, input: &Slot) -> Option<usize> {
    let name = format!("d_{}", input.name);
    p.op.desc().index(&name).filter(|&i| p.op.has(&name) && !p.op.desc().slots[i].is_input())
}

/// Each slot alone, then all together.
fn one_by_one<'a>(slots: &[&'a Slot]) -> Vec<Vec<&'a Slot>> {
    let mut groups: Vec<Vec<&Slot>> = slots.iter().map(|s| vec![*s]).collect();
    if slots.len() > 1 {
        groups.push(slots.to_vec());
    }
    groups
}

/// A scalar product and the sizes of its factors.
#[derive(Default)]
struct Sum {
    dot: f64,
    a: f64,
    b: f64,
}

impl Sum {
    fn add(&mut self, a: impl Iterator<Item = f64>, b: &[f64]) {
        for (a, b) in a.zip(b) {
            self.dot += a * b;
            self.a += a * a;
            self.b += b * b;
        }
    }

    fn sizes(&self) -> f64 {
        (self.a * self.b).sqrt()
    }
}

fn size(o: &Operands) -> f64 {
    o.iter().flatten().map(|v| v * v).sum::<f64>().sqrt()
}

/// `pre`, a sub-layer, `post`, differentiated the way a training step does it: `post_bwd` leaves out its part of `d_x`, `pre_bwd` adds
/// it from the gradient that it carries. The total is the adjoint of the whole, for every input.
fn composition(d: Dims, numerics: Numerics, norm_weight: bool, rms_norm: Option<f64>) -> Result<()> {
    let problem = |op: AnyOp| Problem { op, dims: d, act: DType::F32 };
    let orientation = numerics.orientation;
    let pre = problem(Pre { numerics, norm_weight, rms_norm, save: true }.into());
    let post = problem(Post { orientation }.into());
    let point = data::operands(&pre, data::seed(&pre.to_string()))?;
    let slots = pre.op.desc().slots;
    // The sub-layer: bent, and the same in every arithmetic.
    fn sub_layer<R: Real>(v: R) -> R {
        R::c(0.3) * v + (v + R::c(0.5)).sigmoid()
    }
    fn chain<R: Real>(pre: &Problem, post: &Problem, inputs: &[Vec<R>]) -> Result<(Named<R>, Vec<R>)> {
        let saved = named(pre, false, evaluate_in(pre, inputs)?);
        let x = inputs[0].clone();
        let y: Vec<R> = saved["layer_input"].iter().map(|v| sub_layer(*v)).collect();
        let mixes = saved["mixes"].clone();
        let mut out = named(post, false, evaluate_in(post, &[x, y, mixes, vec![]])?);
        Ok((saved, out.remove("x_next").context("x_next")?))
    }

    let mut rng = Rng::new(data::seed("composition"));
    let (saved, x_next) = chain::<f64>(&pre, &post, &point)?;
    let u = rng.normals(x_next.len());
    let mut known: Named<f64> = named(&pre, true, point.clone());
    known.extend(saved);
    known.insert("y", known["layer_input"].iter().map(|v| sub_layer(*v)).collect());
    known.insert("d_x_next", u.clone());
    let backward = |op: AnyOp, known: &Named<f64>| -> Result<Named<f64>> {
        let p = problem(op);
        let operands = data::per_slot(&p, |s| match s.is_input() {
            true => known.get(s.name).cloned().with_context(|| format!("nothing gives `{}`", s.name)),
            false => Ok(vec![]),
        })?;
        Ok(named(&p, false, evaluate::<f64>(&p, &operands)?))
    };
    let of_post = backward(PostBwd { orientation, d_x: false }.into(), &known)?;
    let slope = |v: &f64| sub_layer(Dual::new(*v, 1.0)).d;
    let d_layer_input = of_post["d_y"].iter().zip(&known["layer_input"]).map(|(g, v)| g * slope(v)).collect();
    known.insert("d_layer_input", d_layer_input);
    known.insert("d_mixes", of_post["d_mixes"].clone());
    let gradients = backward(PreBwd { numerics, norm_weight, rms_norm, carry: true }.into(), &known)?;

    for (i, slot) in slots.iter().enumerate().filter(|(_, s)| s.is_input() && pre.op.has(s.name)) {
        let v = rng.normals(point[i].len());
        let dual = |j: usize| {
            let speed = |k: usize| if i == j { v[k] } else { 0.0 };
            point[j].iter().enumerate().map(|(k, x)| Dual::new(*x, speed(k))).collect()
        };
        let (_, pushed) = chain(&pre, &post, &(0..slots.len()).map(dual).collect::<Vec<Vec<Dual>>>())?;
        let gradient = &gradients[format!("d_{}", slot.name).as_str()];
        let (mut left, mut right) = (Sum::default(), Sum::default());
        left.add(pushed.iter().map(|y| y.d), &u);
        right.add(v.iter().copied(), gradient);
        let off = (left.dot - right.dot).abs() / (left.sizes() + right.sizes()).max(f64::MIN_POSITIVE);
        ensure!(off <= TOLERANCE, "`d_{}` is off by {off:.1e}: {:e} and {:e}", slot.name, left.dot, right.dot);
    }
    Ok(())
}

/// Operands by name.
type Named<R> = BTreeMap<&'static str, Vec<R>>;

/// The inputs, or else the outputs, that are there, by name.
fn named<R>(p: &Problem, inputs: bool, values: Vec<Vec<R>>) -> Named<R> {
    let slots = p.op.desc().slots.iter().zip(values);
    slots.filter(|(s, _)| s.is_input() == inputs && p.op.has(s.name)).map(|(s, v)| (s.name, v)).collect()
}
