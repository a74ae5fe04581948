//! Every wrong operand, one at a time, for every operator: the right kind of error, in words that name the operator, the operand, what
//! was wanted and what came, and not a byte written.

#![allow(clippy::panic)] // helpers of tests

use anyhow::Result;
use mhc_core::{
    AnyOp, Axis, DType, DevPtr, DeviceId, Dims, Eps, Error, Layout, Numerics, Problem, RawView, Slot, Stream, View,
    ViewMut, ops::*,
};
use mhc_tests::{
    cases, data, devices,
    run::{Arena, Placement},
};

/// What a mistake must be called.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Shape,
    DType,
    Layout,
    WrongDevice,
    Attribute,
}

fn kind(e: &Error) -> Option<Kind> {
    match e {
        Error::Shape { .. } => Some(Kind::Shape),
        Error::DType { .. } => Some(Kind::DType),
        Error::Layout { .. } => Some(Kind::Layout),
        Error::WrongDevice { .. } => Some(Kind::WrongDevice),
        Error::Attribute { .. } => Some(Kind::Attribute),
        _ => None,
    }
}

/// A problem with right operands, to be spoilt.
struct Fixture {
    stream: Stream,
    p: Problem,
    arena: Arena,
    slots: Vec<&'static Slot>,
    right: Vec<RawView>,
}

impl Fixture {
    fn new(p: Problem) -> Result<Self> {
        let stream = Stream::new(devices::cpu()?.device)?;
        let operands = data::operands(&p, data::seed(&p.to_string()))?;
        let mut arena = Arena::new(&stream, &p, &operands, Placement::Padded, 0xa5)?;
        let slots: Vec<_> = p.slots().collect();
        let (ins, outs) = arena.views();
        let (mut ins, mut outs) = (ins.iter().map(|v| *v.raw()), outs.iter().map(|v| *v.raw()));
        let right = slots.iter().filter_map(|s| if s.is_input() { ins.next() } else { outs.next() }).collect();
        Ok(Self { stream, p, arena, slots, right })
    }

    /// Runs with these operands, which must fail as `kind`, with all of `words` in the message, and touch nothing.
    fn fails(&self, what: &str, p: &Problem, views: &[(&Slot, RawView)], kind_wanted: Kind, words: &[&str]) {
        let (mut ins, mut outs) = (Vec::new(), Vec::new());
        for (slot, raw) in views {
            // SAFETY: wrong on purpose: the validator must turn them down before anything is read or written.
            unsafe { if slot.is_input() { ins.push(View::from_raw(*raw)) } else { outs.push(ViewMut::from_raw(*raw)) } }
        }
        let op = p.op.desc().name;
        let error = match self.stream.run(p, &ins, &mut outs) {
            Ok(()) => panic!("{op}: {what} was taken"),
            Err(e) => e,
        };
        let message = error.to_string();
        assert_eq!(kind(&error), Some(kind_wanted), "{op}: {what} was called `{message}`");
        for word in words.iter().chain([&op]) {
            assert!(message.contains(word), "{op}: {what}: `{message}` does not say `{word}`");
        }
        self.arena.untouched().unwrap_or_else(|e| panic!("{op}: {what}: {e:#}"));
    }

    /// Operand `i` replaced.
    fn with(&self, i: usize, view: RawView) -> Vec<(&Slot, RawView)> {
        let mut views = self.all();
        views[i].1 = view;
        views
    }

    fn all(&self) -> Vec<(&Slot, RawView)> {
        self.slots.iter().copied().zip(self.right.iter().copied()).collect()
    }
}

/// Every operator once, in bf16, so that streams and coefficients differ in type.
fn fixtures() -> Result<Vec<Fixture>> {
    cases::one_each(DType::Bf16).into_iter().map(Fixture::new).collect()
}

fn layout(shape: &[usize], strides: &[usize]) -> Layout {
    Layout::strided(shape, strides).unwrap_or_else(|| panic!("no layout {shape:?} {strides:?}"))
}

#[test]
fn wrong_shapes() -> Result<()> {
    for f in fixtures()? {
        for (i, (slot, view)) in f.slots.iter().zip(&f.right).enumerate() {
            let (shape, strides) = (view.layout.shape(), view.layout.strides());
            let mut wrong = Vec::new();
            for axis in 0..shape.len() {
                for len in [shape[axis] - 1, shape[axis] + 1] {
                    let mut shape = shape.to_vec();
                    shape[axis] = len;
                    wrong.push(layout(&shape, strides));
                }
            }
            if shape.len() > 1 {
                wrong.push(layout(&shape[1..], &strides[1..]));
            }
            if shape.len() < 4 {
                wrong.push(layout(&[&[1], shape].concat(), &[&[strides[0]], strides].concat()));
            }
            let quoted = format!("`{}`", slot.name);
            for layout in wrong {
                let (want, got) = (format!("{shape:?}"), format!("{:?}", layout.shape()));
                let views = f.with(i, RawView { layout, ..*view });
                f.fails("a wrong shape", &f.p, &views, Kind::Shape, &[&quoted, &want, &got]);
            }
        }
    }
    Ok(())
}

#[test]
fn wrong_types_and_devices() -> Result<()> {
    for f in fixtures()? {
        for (i, (slot, view)) in f.slots.iter().zip(&f.right).enumerate() {
            let quoted = format!("`{}`", slot.name);
            for dtype in DType::ALL.into_iter().filter(|d| *d != view.dtype) {
                let words = [quoted.as_str(), view.dtype.name(), dtype.name()];
                f.fails("a wrong type", &f.p, &f.with(i, RawView { dtype, ..*view }), Kind::DType, &words);
            }
            let device = DeviceId { backend: "cuda", ordinal: 7 };
            let words = [quoted.as_str(), "cuda:7", "cpu"];
            f.fails("another device", &f.p, &f.with(i, RawView { device, ..*view }), Kind::WrongDevice, &words);
        }
    }
    Ok(())
}

#[test]
fn wrong_layouts() -> Result<()> {
    for f in fixtures()? {
        for (i, (slot, view)) in f.slots.iter().zip(&f.right).enumerate() {
            let (shape, strides) = (view.layout.shape(), view.layout.strides());
            let quoted = format!("`{}`", slot.name);
            let last = shape.len() - 1;
            if shape[last] > 1 {
                let mut strides = strides.to_vec();
                strides[last] = 2;
                let views = f.with(i, RawView { layout: layout(shape, &strides), ..*view });
                f.fails("a last axis with gaps", &f.p, &views, Kind::Layout, &[&quoted, "contiguous last axis", "2]"]);
            }
            let views = f.with(i, RawView { ptr: DevPtr::NULL, ..*view });
            f.fails("a null pointer", &f.p, &views, Kind::Layout, &[&quoted, "null"]);
            let views = f.with(i, RawView { ptr: view.ptr.offset(1), ..*view });
            f.fails("a misaligned pointer", &f.p, &views, Kind::Layout, &[&quoted, "aligned"]);
            if slot.is_input() {
                continue;
            }
            for axis in (0..last).filter(|&a| shape[a] > 1) {
                let mut strides = strides.to_vec();
                strides[axis] = 0;
                let views = f.with(i, RawView { layout: layout(shape, &strides), ..*view });
                f.fails("an output that repeats", &f.p, &views, Kind::Layout, &[&quoted, "must not overlap"]);
            }
        }
    }
    Ok(())
}

#[test]
fn overlapping_outputs() -> Result<()> {
    for f in fixtures()? {
        for (i, out) in f.slots.iter().enumerate().filter(|(_, s)| !s.is_input()) {
            for j in (0..f.slots.len()).filter(|&j| j != i) {
                let (a, b) = (f.right[i], f.right[j]);
                // The same first element; the output's first on the other's last; the output's last on the other's first.
                let end = |v: &RawView| (v.layout.extent() - 1) * v.dtype.size();
                let aligned = |at: u64| at - at % a.dtype.size() as u64;
                for ptr in [b.ptr.0, b.ptr.0 + end(&b) as u64, b.ptr.0 - end(&a) as u64].map(aligned) {
                    // Memory around `other` may be a third operand's: which of them is named first is no matter.
                    let (quoted, views) = (format!("`{}`", out.name), f.with(i, RawView { ptr: DevPtr(ptr), ..a }));
                    let words = [quoted.as_str(), "overlaps operand"];
                    f.fails("an output on another operand", &f.p, &views, Kind::Layout, &words);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn missing_and_extra_operands() -> Result<()> {
    for f in fixtures()? {
        for role in [true, false] {
            let of_role: Vec<usize> = (0..f.slots.len()).filter(|&i| f.slots[i].is_input() == role).collect();
            let &last = of_role.last().unwrap_or_else(|| panic!("{}: no operand", f.p));
            let mut views = f.all();
            views.remove(last);
            let words = [format!("`{}`", f.slots[last].name), format!("{:?}", f.right[last].layout.shape())];
            f.fails("a missing operand", &f.p, &views, Kind::Shape, &[&words[0], &words[1], "no operand"]);
            let mut views = f.all();
            views.push(views[last]);
            f.fails("an extra operand", &f.p, &views, Kind::Shape, &["(extra)", "no more operands"]);
        }
        f.fails("no operands", &f.p, &[], Kind::Shape, &["no operand"]);
    }
    Ok(())
}

#[test]
fn wrong_sizes() -> Result<()> {
    for f in fixtures()? {
        let d = f.p.dims;
        for (dims, attr, want, got) in [
            (Dims { streams: 0, ..d }, "`n`", "1..=32", "is 0"),
            (Dims { streams: 33, ..d }, "`n`", "1..=32", "is 33"),
            (Dims { channels: 0, ..d }, "`C`", "at least 1", "is 0"),
            (Dims { layers: 0, ..d }, "`L`", "at least 1", "is 0"),
        ] {
            let p = Problem { dims, ..f.p.clone() };
            f.fails("a size out of range", &p, &f.all(), Kind::Attribute, &[attr, want, got]);
            assert!(f.stream.prepare(&p).is_err(), "{}: prepared", p.op.desc().name);
        }
        let huge = usize::MAX / 2;
        for (dims, axes) in [
            (Dims { tokens: huge, ..d }, [Axis::T, Axis::T]),
            (Dims { channels: huge, ..d }, [Axis::C, Axis::K]),
            (Dims { layers: huge, ..d }, [Axis::L, Axis::L]),
        ] {
            let p = Problem { dims, ..f.p.clone() };
            if p.slots().any(|s| s.axes.iter().any(|a| axes.contains(a))) {
                f.fails("a size beyond the address space", &p, &f.all(), Kind::Shape, &["address space"]);
            }
        }
    }
    Ok(())
}

/// Operators with an attribute out of range, the attribute's name, and what came.
fn wrong_attributes() -> Vec<(AnyOp, &'static str, &'static str)> {
    fn wrong<O: Into<AnyOp>, B: Into<AnyOp>>(
        list: &mut Vec<(AnyOp, &'static str, &'static str)>,
        ops: (O, B),
        attr: &'static str,
        got: &'static str,
    ) {
        list.push((ops.0.into(), attr, got));
        list.push((ops.1.into(), attr, got));
    }
    let mut list = Vec::new();
    for (eps, got) in [(f64::NAN, "NaN"), (-1e-6, "-0.000001"), (f64::INFINITY, "inf")] {
        wrong(&mut list, (RmsNorm { eps, save: true }, RmsNormBwd { eps }), "eps", got);
        let project = (Project { rms_eps: eps, norm_weight: false }, ProjectBwd { rms_eps: eps, norm_weight: false });
        wrong(&mut list, project, "rms_eps", got);
        let head = (Head { rms_eps: eps, pre_eps: 0.0, save: true }, HeadBwd { rms_eps: eps, pre_eps: 0.0 });
        wrong(&mut list, head, "rms_eps", got);
        let head = (Head { rms_eps: 0.0, pre_eps: eps, save: true }, HeadBwd { rms_eps: 0.0, pre_eps: eps });
        wrong(&mut list, head, "pre_eps", got);
    }
    for (tau, got) in [(f64::NAN, "NaN"), (0.0, "0"), (-1.0, "-1"), (f64::INFINITY, "inf")] {
        wrong(&mut list, (SinkhornLog { iters: 3, tau }, SinkhornLogBwd { iters: 3, tau }), "tau", got);
    }
    wrong(&mut list, (SinkhornLog { iters: 0, tau: 1.0 }, SinkhornLogBwd { iters: 0, tau: 1.0 }), "iters", "0");
    for (coeffs, got) in [(vec![], ""), (vec![[1.0, f64::NAN, 0.0]], "NaN")] {
        let ops = (Orthostochastic { coeffs: coeffs.clone() }, OrthostochasticBwd { coeffs });
        wrong(&mut list, ops, "coeffs", got);
    }
    for (numerics, attr, got) in wrong_numerics() {
        let (form, orientation) = (numerics.sinkhorn, numerics.orientation);
        if attr.starts_with("sinkhorn") {
            wrong(&mut list, (Sinkhorn { form, orientation }, SinkhornBwd { form, orientation }), attr, got);
        }
        let ops = (DynamicLayer { numerics, norm_eps: 0.0, save: true }, DynamicLayerBwd { numerics, norm_eps: 0.0 });
        wrong(&mut list, ops, attr, got);
        let (norm_weight, rms_norm) = (false, None);
        let pre = Pre { numerics, norm_weight, rms_norm, save: true };
        wrong(&mut list, (pre, PreBwd { numerics, norm_weight, rms_norm, carry: false }), attr, got);
        let post_pre = PostPre { numerics, norm_weight, rms_norm, save: true };
        wrong(&mut list, (post_pre, PostPreBwd { numerics, norm_weight, rms_norm }), attr, got);
        wrong(&mut list, (Coefficients { numerics }, CoefficientsBwd { numerics }), attr, got);
        let layer = (StaticLayer { numerics, norm_eps: 0.0 }, StaticLayerBwd { numerics, norm_eps: 0.0 });
        wrong(&mut list, layer, attr, got);
    }
    let numerics = Numerics::default();
    let ops = (DynamicLayer { numerics, norm_eps: -1.0, save: true }, DynamicLayerBwd { numerics, norm_eps: -1.0 });
    wrong(&mut list, ops, "norm_eps", "-1");
    for eps in [-1.0, f64::NAN] {
        let (norm_weight, rms_norm, got) = (false, Some(eps), if eps.is_nan() { "NaN" } else { "-1" });
        let pre = Pre { numerics, norm_weight, rms_norm, save: true };
        wrong(&mut list, (pre, PreBwd { numerics, norm_weight, rms_norm, carry: false }), "rms_norm", got);
        let post_pre = PostPre { numerics, norm_weight, rms_norm, save: true };
        wrong(&mut list, (post_pre, PostPreBwd { numerics, norm_weight, rms_norm }), "rms_norm", got);
    }
    let layer = (StaticLayer { numerics, norm_eps: -1.0 }, StaticLayerBwd { numerics, norm_eps: -1.0 });
    wrong(&mut list, layer, "norm_eps", "-1");
    list
}

fn wrong_numerics() -> Vec<(Numerics, &'static str, &'static str)> {
    let with = |change: fn(&mut Numerics)| {
        let mut numerics = Numerics::default();
        change(&mut numerics);
        numerics
    };
    vec![
        (with(|n| n.sinkhorn.iters = 0), "sinkhorn.iters", "0"),
        (with(|n| n.sinkhorn.iters = 1001), "sinkhorn.iters", "1001"),
        (with(|n| n.sinkhorn.eps = Eps::Added(f64::NAN)), "sinkhorn.eps", "NaN"),
        (with(|n| n.sinkhorn.eps = Eps::Threshold(-1.0)), "sinkhorn.eps", "-1"),
        (with(|n| n.sinkhorn.eps = Eps::Clamp(f64::INFINITY)), "sinkhorn.eps", "inf"),
        (with(|n| n.rms_eps = f64::NAN), "rms_eps", "NaN"),
        (with(|n| n.pre_eps = -1.0), "pre_eps", "-1"),
        (with(|n| n.post_mult = 0.0), "post_mult", "0"),
        (with(|n| n.post_mult = f64::NAN), "post_mult", "NaN"),
    ]
}

/// Operators that have no number among their attributes.
const NO_NUMBERS: [&str; 10] = [
    "aggregate",
    "aggregate_bwd",
    "collapse",
    "collapse_bwd",
    "expand",
    "expand_bwd",
    "post",
    "post_bwd",
    "recompute",
    "recompute_bwd",
];

#[test]
fn wrong_attribute_values() -> Result<()> {
    let list = wrong_attributes();
    let fixtures = fixtures()?;
    for (op, attr, got) in &list {
        let name = op.desc().name;
        let f = fixtures.iter().find(|f| f.p.op.desc().name == name).unwrap_or_else(|| panic!("no case of {name}"));
        let p = Problem { op: op.clone(), ..f.p.clone() };
        let quoted = format!("`{attr}`");
        f.fails("a wrong attribute", &p, &f.all(), Kind::Attribute, &[&quoted, got]);
        assert!(f.stream.prepare(&p).is_err(), "{name}: prepared with {attr} = {got}");
    }
    for desc in AnyOp::all_descs() {
        let listed = list.iter().any(|(op, ..)| op.desc().name == desc.name);
        assert!(listed != NO_NUMBERS.contains(&desc.name), "{}: say here which attributes can be wrong", desc.name);
    }
    Ok(())
}
