//! From the names and attributes of golden cases to operators and their slots.

use core::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use mhc_core::{
    AnyOp, Axis, Dims, Eps, Numerics, Order, Orientation, SinkhornForm, Slot, Start,
    ops::{
        DynamicLayer, DynamicLayerBwd, Expand, ExpandBwd, Head, HeadBwd, Orthostochastic, OrthostochasticBwd, Post,
        PostBwd, Pre, PreBwd, RmsNorm, RmsNormBwd, Sinkhorn, SinkhornBwd, SinkhornLog, SinkhornLogBwd, StaticLayer,
        StaticLayerBwd,
    },
};

use super::file::{Attrs, Golden};

/// The operators of a case, its sizes, and the tensors that are columns of a slot.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// The operator.
    pub forward: AnyOp,
    /// Its gradient.
    pub backward: AnyOp,
    /// Sizes.
    pub dims: Dims,
    /// Tensors that are part of a slot.
    pub parts: &'static [Part],
}

/// A tensor that is some columns of a slot along its last axis.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The tensor's name.
    pub name: &'static str,
    /// The slot's.
    pub slot: &'static str,
    /// The columns.
    pub columns: fn(&Dims) -> Range<usize>,
}

/// H_post and H_res are columns of `mixes`.
const MIXES: &[Part] = &[
    Part { name: "h_pre", slot: "mixes", columns: |d| 0..d.streams },
    Part { name: "h_post", slot: "mixes", columns: |d| d.streams..2 * d.streams },
    Part { name: "comb", slot: "mixes", columns: |d| 2 * d.streams..d.mix() },
];

impl Part {
    /// These columns of a slot's elements.
    pub fn of(&self, whole: &[f64], d: &Dims) -> Vec<f64> {
        whole.chunks(d.mix()).flat_map(|row| &row[(self.columns)(d)]).copied().collect()
    }

    /// Writes these columns.
    fn put(&self, part: &[f64], whole: &mut [f64], d: &Dims) -> Result<()> {
        let columns = (self.columns)(d);
        let (rows, each) = (whole.len() / d.mix(), columns.len());
        ensure!(part.len() == rows * each, "`{}` has {} elements, not {rows}·{each}", self.name, part.len());
        for (row, values) in whole.chunks_mut(d.mix()).zip(part.chunks(each)) {
            row[columns.clone()].copy_from_slice(values);
        }
        Ok(())
    }
}

impl Mapping {
    /// The part that a tensor of this name is, unless it is a slot of its own.
    pub fn part(&self, name: &str) -> Option<Part> {
        self.parts.iter().find(|p| p.name == name).copied()
    }

    /// An input of the forward or the backward operator as the case has it; upstream gradients that it leaves out are zero.
    pub fn operand(&self, golden: &Golden, slot: &Slot) -> Result<Vec<f64>> {
        let len = slot.len(&self.dims);
        let upstream = slot.name.strip_prefix("d_").filter(|_| self.forward.desc().index(slot.name).is_none());
        let (kind, name) = upstream.map_or(("in", slot.name), |name| ("d_out", name));
        if let Some(array) = golden.get(kind, name) {
            let want = slot.shape(&self.dims);
            ensure!(array.data.len() == len, "`{kind}.{name}` must have shape {want:?}, but has {:?}", array.shape);
            return Ok(array.data.clone());
        }
        let mut whole = vec![0.0; len];
        let mut found = upstream.is_some();
        for part in self.parts.iter().filter(|p| p.slot == name) {
            if let Some(array) = golden.get(kind, part.name) {
                part.put(&array.data, &mut whole, &self.dims)?;
                found = true;
            }
        }
        ensure!(found, "`{kind}.{name}` is missing");
        Ok(whole)
    }
}

/// The operators of a case; `None` if they are known but not there yet. An error if the name or an attribute is unknown.
pub fn map(golden: &Golden) -> Result<Option<Mapping>> {
    let a = &golden.attrs;
    let mut parts: &'static [Part] = &[];
    let (forward, backward): (AnyOp, AnyOp) = match golden.op.as_str() {
        "hyper_connection" => return Ok(None),
        "expand" => (Expand.into(), ExpandBwd.into()),
        "head" => {
            let (rms_eps, pre_eps) = (a.need("rms_eps")?, a.need("pre_eps")?);
            (Head { rms_eps, pre_eps, save: false }.into(), HeadBwd { rms_eps, pre_eps }.into())
        }
        "pre" => {
            parts = MIXES;
            let numerics = Numerics {
                sinkhorn: form(a)?,
                orientation: orientation(a, Orientation::FromTo)?,
                rms_eps: a.need("rms_eps")?,
                pre_eps: a.need("pre_eps")?,
                post_mult: a.need("post_mult")?,
            };
            let norm_weight = golden.get("in", "norm_weight").is_some();
            let pre = Pre { numerics, norm_weight, rms_norm: None, save: false };
            (pre.into(), PreBwd { numerics, norm_weight, rms_norm: None, carry: false }.into())
        }
        "dynamic_layer" => {
            let (numerics, norm_eps) = layer(a)?;
            let dynamic = DynamicLayer { numerics, norm_eps, save: false };
            (dynamic.into(), DynamicLayerBwd { numerics, norm_eps }.into())
        }
        "static_layer" => {
            let (numerics, norm_eps) = layer(a)?;
            (StaticLayer { numerics, norm_eps }.into(), StaticLayerBwd { numerics, norm_eps }.into())
        }
        "post" => {
            parts = MIXES;
            let orientation = orientation(a, Orientation::FromTo)?;
            (Post { orientation }.into(), PostBwd { orientation, d_x: true }.into())
        }
        "rms_norm" => {
            let eps = a.need("eps")?;
            (RmsNorm { eps, save: false }.into(), RmsNormBwd { eps }.into())
        }
        "sinkhorn" => {
            let (form, orientation) = (form(a)?, orientation(a, Orientation::ToFrom)?);
            (Sinkhorn { form, orientation }.into(), SinkhornBwd { form, orientation }.into())
        }
        "sinkhorn_log" => {
            let (iters, tau) = (a.count("iters")?, a.need("tau")?);
            (SinkhornLog { iters, tau }.into(), SinkhornLogBwd { iters, tau }.into())
        }
        "orthostochastic" => {
            let coeffs = serde_json::from_value::<Vec<[f64; 3]>>(a.value("coeffs")?.clone());
            let coeffs = coeffs.context("attribute `coeffs` must be a list of triples")?;
            (Orthostochastic { coeffs: coeffs.clone() }.into(), OrthostochasticBwd { coeffs }.into())
        }
        other => bail!("unknown operator `{other}`"),
    };
    forward.check()?;
    let dims = dims(golden, &forward)?;
    ensure!(parts.is_empty() || dims.mix() > 0, "n = 0");
    Ok(Some(Mapping { forward, backward, dims, parts }))
}

/// T, n and C from the shapes of inputs and outputs. Axes in front of the tokens are tokens too. An error if shapes disagree.
fn dims(golden: &Golden, op: &AnyOp) -> Result<Dims> {
    let mut known: [Option<usize>; 3] = [None; 3];
    let mut set = |i: usize, letter: &str, len: usize, name: &str| match known[i].replace(len) {
        Some(before) if before != len => bail!("`{name}` says {letter} = {len}, another tensor {before}"),
        _ => Ok(()),
    };
    if let Some(n) = golden.attrs.number("n")? {
        set(1, "n", n as usize, "attrs")?;
    }
    for slot in op.desc().slots {
        let kind = if slot.is_input() { "in" } else { "out" };
        let Some(array) = golden.get(kind, slot.name) else { continue };
        let mut shape = array.shape.as_slice();
        for (at, axis) in slot.axes.iter().enumerate().rev() {
            if at == 0 && *axis == Axis::T {
                set(0, "T", shape.iter().product(), slot.name)?;
                break;
            }
            let Some((&len, outer)) = shape.split_last() else {
                bail!("`{kind}.{}` has shape {:?}, too few axes for {slot}", slot.name, array.shape)
            };
            shape = outer;
            match axis {
                Axis::N => set(1, "n", len, slot.name)?,
                Axis::C => set(2, "C", len, slot.name)?,
                _ => {}
            }
        }
    }
    Ok(Dims::new(known[0].context("no tensor tells T")?, known[1].unwrap_or(1), known[2].unwrap_or(1)))
}

/// How the n·n block lies, from whatever attribute speaks of it.
fn orientation(a: &Attrs, unsaid: Orientation) -> Result<Orientation> {
    let text = a.text(&["layout", "h_res", "columns", "rows"]);
    match text {
        "" => Ok(unsaid),
        t if t.contains("[from][to]") || t.contains("from*n+to") => Ok(Orientation::FromTo),
        t if t.contains("[to][from]") || t.contains("to*n+from") => Ok(Orientation::ToFrom),
        other => bail!("cannot tell the orientation of the n·n block from `{other}`"),
    }
}

/// The conventions of mHC.cu's layers and the ε of the RMSNorm inside: one `eps` for everything, where no other is given.
fn layer(a: &Attrs) -> Result<(Numerics, f64)> {
    let eps = a.need("eps")?;
    let or = |name: &str, unsaid: f64| Ok::<_, anyhow::Error>(a.number(name)?.unwrap_or(unsaid));
    let numerics = Numerics {
        sinkhorn: form(a)?,
        orientation: orientation(a, Orientation::ToFrom)?,
        rms_eps: or("rms_eps", eps)?,
        pre_eps: or("pre_eps", 0.0)?,
        post_mult: or("post_mult", 2.0)?,
    };
    Ok((numerics, or("norm_eps", eps)?))
}

/// Sinkhorn's form: from `start`, `order` and `eps_mode`, or from the words of `sinkhorn`; a layer's one ε is also Sinkhorn's.
fn form(a: &Attrs) -> Result<SinkhornForm> {
    let words = a.text(&["sinkhorn"]);
    let say = |name: &str| match a.text(&[name]) {
        "" => words.to_owned(),
        text => text.to_owned(),
    };
    let start = match say("start") {
        t if t.contains("softmax") => Start::Softmax,
        t if t.contains("exp_shifted") || t.contains("exp_max") => Start::ExpShifted,
        t if t.contains("exp") => Start::Exp,
        other => bail!("cannot tell Sinkhorn's start from `{other}`"),
    };
    let order = match say("order") {
        t if t.contains("rows_then_columns") => Order::RowsFirst,
        t if t.contains("columns_then_rows") || t.contains("softmax_eps") => Order::ColumnsFirst,
        other => bail!("cannot tell Sinkhorn's order from `{other}`"),
    };
    let eps = || match a.number("sinkhorn_eps")? {
        Some(eps) => Ok(eps),
        None => a.need("eps"),
    };
    let eps = match say("eps_mode") {
        t if t.contains("add") || t.contains("softmax_eps") => Eps::Added(eps()?),
        t if t.contains("threshold") => Eps::Threshold(eps()?),
        t if t.contains("clamp") => Eps::Clamp(eps()?),
        t if t.contains("none") => Eps::None,
        other => bail!("cannot tell Sinkhorn's ε from `{other}`"),
    };
    Ok(SinkhornForm { start, order, eps, iters: a.count("iters")? })
}
