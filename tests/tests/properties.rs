//! Drawn problems: any operator, sizes, attributes, strides, and numbers that are hard: logits of σ up to 8 or with entries of ±80,
//! constant rows, streams of zeros, operands that repeat one row. Every device must agree with the reference as it must on the fixed
//! cases. What fails is shrunk to the smallest sizes that still fail.
//!
//! `MHC_TEST_SEED` gives other draws, `MHC_TEST_LEVEL` more of them, `MHC_TEST_OP` those of one operator.

use anyhow::{Result, anyhow};
use mhc_core::{
    AnyOp, DType, Dims, Eps, Layout, Level, Numerics, Order, Orientation, Problem, SinkhornForm, Slot, Start, Stream,
    ops::{DynamicLayer, DynamicLayerBwd, Sinkhorn, SinkhornBwd, StaticLayer, StaticLayerBwd},
};
use mhc_tests::{
    cases, check,
    check::Trial,
    data::{self, Rng},
    devices,
    run::{How, Placement, Scratch, run},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// How the drawn numbers are made hard.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Hardness {
    /// Logits this many times as large; infinite for entries of ±80, 0 for none.
    sigma: f64,
    /// What becomes of the streams.
    rows: Rows,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rows {
    Random,
    /// Every channel of a row is the same.
    Constant,
    /// Every other token is zero.
    Zero,
    /// All tokens are the first.
    Repeated,
}

impl Hardness {
    fn apply(&self, p: &Problem, slot: &Slot, values: &mut [f64], rng: &mut Rng) {
        data::sharpen(slot, values, rng, self.sigma);
        let token = values.len() / p.dims.tokens.max(1);
        if slot.axes.first() != Some(&mhc_core::Axis::T) || token == 0 || slot.name.starts_with("d_") {
            return;
        }
        match self.rows {
            Rows::Random => {}
            Rows::Constant => values.chunks_mut(token).for_each(|t| t.fill(t[0])),
            Rows::Zero => values.chunks_mut(token).step_by(2).for_each(|t| t.fill(0.0)),
            Rows::Repeated => (token..values.len()).for_each(|i| values[i] = values[i - token]),
        }
    }
}

/// A form of Sinkhorn that nobody uses is right, too.
fn forms() -> impl Strategy<Value = SinkhornForm> {
    let start = prop_oneof![Just(Start::Exp), Just(Start::ExpShifted), Just(Start::Softmax)];
    let order = prop_oneof![Just(Order::ColumnsFirst), Just(Order::RowsFirst)];
    let size = prop_oneof![Just(1e-12), Just(1e-8), Just(1e-5), Just(1e-2)];
    let eps =
        (0usize..4, size).prop_map(|(mode, e)| [Eps::None, Eps::Added(e), Eps::Threshold(e), Eps::Clamp(e)][mode]);
    let iters = prop_oneof![Just(1u32), Just(2), Just(3), Just(20), 1u32..40];
    (start, order, eps, iters).prop_map(|(start, order, eps, iters)| SinkhornForm { start, order, eps, iters })
}

fn orientations() -> impl Strategy<Value = Orientation> {
    prop_oneof![Just(Orientation::FromTo), Just(Orientation::ToFrom)]
}

/// A layer in any conventions, which need not be anybody's, at sizes that devices have kernels of their own for.
fn layers() -> impl Strategy<Value = (AnyOp, Dims)> {
    let epsilon = || prop_oneof![Just(0.0), Just(1e-6), Just(1e-2)];
    let numerics = (forms(), orientations(), epsilon(), prop_oneof![Just(1.0), Just(2.0)]);
    let numerics = numerics.prop_map(|(sinkhorn, orientation, pre_eps, post_mult)| Numerics {
        sinkhorn,
        orientation,
        pre_eps,
        post_mult,
        ..Numerics::mhc_cu()
    });
    let op = (numerics, 0usize..5).prop_map(|(numerics, which)| {
        let norm_eps = 1e-5;
        match which {
            0 => StaticLayer { numerics, norm_eps }.into(),
            1 => StaticLayerBwd { numerics, norm_eps }.into(),
            2 => DynamicLayerBwd { numerics, norm_eps }.into(),
            which => AnyOp::from(DynamicLayer { numerics, norm_eps, save: which == 3 }),
        }
    });
    // A few tokens, and of few channels so many that a block takes several after another.
    let few = prop_oneof![4 => (1usize..45, 1usize..12), 1 => (1usize..12, 60usize..=96)];
    let sizes = prop_oneof![5 => few, 1 => (250usize..290, 1usize..3), 2 => (1050usize..1700, 1usize..3)];
    (op, sizes).prop_map(|(op, (tokens, sixteens))| (op, Dims::new(tokens, 4, 16 * sixteens)))
}

/// Any operator with attributes of its cases, or Sinkhorn in any form.
fn operators() -> BoxedStrategy<AnyOp> {
    let asked = std::env::var("MHC_TEST_OP").unwrap_or_default();
    let named = |name: &str| asked.is_empty() || name == asked || name.strip_suffix("_bwd") == Some(&asked);
    let listed: Vec<AnyOp> = cases::one_per_tag(DType::F32).into_iter().map(|p| p.op).collect();
    let listed: Vec<AnyOp> = listed.into_iter().filter(|op| named(op.desc().name)).collect();
    let listed = proptest::sample::select(listed);
    if !named("sinkhorn") {
        return listed.boxed();
    }
    let sinkhorn = (forms(), orientations(), any::<bool>()).prop_map(|(form, orientation, backward)| match backward {
        true => SinkhornBwd { form, orientation }.into(),
        false => Sinkhorn { form, orientation }.into(),
    });
    prop_oneof![4 => listed, 1 => sinkhorn].boxed()
}

/// Sizes of every kind, small enough that a case takes milliseconds.
fn sizes() -> impl Strategy<Value = Dims> {
    let n = prop_oneof![4 => 1usize..=8, 1 => 9usize..=32];
    let channels = prop_oneof![Just(1usize), 1usize..40, 1usize..200, Just(128)];
    let tokens = prop_oneof![Just(0usize), Just(1), 1usize..20, 1usize..70];
    (tokens, n, channels, 1usize..=3).prop_map(|(tokens, n, channels, layers)| {
        let channels = if n > 8 { channels.min(24) } else { channels };
        Dims::new(tokens, n, channels).layers(layers)
    })
}

fn hardness() -> impl Strategy<Value = Hardness> {
    let sigma = prop_oneof![3 => Just(0.0), 1 => Just(4.0), 1 => Just(8.0), 1 => Just(f64::INFINITY)];
    let rows = prop_oneof![5 => Just(Rows::Random), 1 => Just(Rows::Constant), 1 => Just(Rows::Zero), 1 => Just(Rows::Repeated)];
    (sigma, rows).prop_map(|(sigma, rows)| Hardness { sigma, rows })
}

/// A runner whose draws depend on `MHC_TEST_SEED` and the name alone: so many cases, and more at higher levels.
fn runner(name: &str, level: Level, cases: u32) -> TestRunner {
    let cases = match level {
        Level::Smoke => cases,
        Level::Full => 10 * cases,
        Level::Soak => 100 * cases,
    };
    let mut rng = Rng::new(data::seed(name));
    let seed: Vec<u8> = (0..4).flat_map(|_| rng.bits().to_le_bytes()).collect();
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

/// An error unless a problem with drawn operands has the reference's results.
fn agrees(stream: &Stream, p: &Problem, hardness: Hardness, seed: u64) -> Result<()> {
    let operands = data::operands_with(p, seed, |slot, values, rng| hardness.apply(p, slot, values, rng))?;
    Trial::with(p.clone(), operands)?.check(stream).map(|_| ())
}

fn drawn(device: &devices::Subject) -> Result<()> {
    let stream = Stream::new(device.device.clone())?;
    let act = proptest::sample::select(DType::ALL.to_vec());
    let all = (operators(), sizes(), act, hardness(), any::<u64>());
    let outcome = runner(&device.name, mhc_tests::level()?, 300).run(&all, |(op, dims, act, hardness, seed)| {
        let dims =
            if op.desc().slots.iter().any(|s| s.axes.contains(&mhc_core::Axis::L)) { dims } else { dims.layers(1) };
        let p = Problem { op, dims, act };
        agrees(&stream, &p, hardness, seed).map_err(|e| TestCaseError::fail(format!("{e:#}")))
    });
    outcome.map_err(|e| anyhow!("{}: {e}", device.name))
}

#[test]
fn layers_agree_with_the_reference_in_any_conventions() -> Result<()> {
    for subject in devices::chosen()? {
        let stream = Stream::new(subject.device)?;
        let mut runner = runner(&format!("layers@{}", subject.name), mhc_tests::level()?, 60);
        let outcome = runner.run(&(layers(), hardness(), any::<u64>()), |((op, dims), hardness, seed)| {
            let p = Problem { op, dims, act: DType::F32 };
            agrees(&stream, &p, hardness, seed).map_err(|e| TestCaseError::fail(format!("{e:#}")))
        });
        outcome.map_err(|e| anyhow!("{}: {e}", subject.name))?;
    }
    Ok(())
}

#[test]
fn devices_agree_with_the_reference() -> Result<()> {
    devices::chosen()?.iter().try_for_each(drawn)
}

/// Inputs may repeat along an axis through a stride of 0; the result is that of the copies written out.
#[test]
fn repeating_strides_are_served() -> Result<()> {
    for subject in devices::chosen()? {
        let stream = Stream::new(subject.device)?;
        for mut p in cases::one_per_tag(DType::Bf16) {
            p.dims.tokens = p.dims.tokens.min(5);
            let seed = data::seed(&p.to_string());
            let repeated = Hardness { sigma: 0.0, rows: Rows::Repeated };
            let operands = data::operands_with(&p, seed, |slot, values, rng| repeated.apply(&p, slot, values, rng))?;
            let packed = run(&stream, &p, &operands, How::PLAIN)?;
            for scratch in [Scratch::Stream, Scratch::Watched] {
                let how = How { placement: Placement::Repeated, scratch, ..How::PLAIN };
                let strided = run(&stream, &p, &operands, how)?;
                check::same(&p, &packed, &strided).map_err(|e| e.context(subject.name.clone()))?;
            }
        }
    }
    // The layout that is meant: no step from token to token.
    assert_eq!(Layout::strided(&[5, 4, 8], &[0, 8, 1]).map(|l| l.extent()), Some(32));
    Ok(())
}
