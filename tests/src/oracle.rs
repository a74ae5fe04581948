//! What a problem must give: the reference in f64, and in f32 for the error that plain single precision makes.

use anyhow::{Result, bail, ensure};
use mhc_core::{Inputs, Problem, Real};

/// The outputs of a problem, one entry per slot of the description, empty for inputs and absent slots.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The reference in f64.
    pub truth: Vec<Vec<f64>>,
    /// The reference in f32 on the same operands, not rounded to the output's type.
    pub plain: Vec<Vec<f64>>,
}

impl Expected {
    /// Runs both references.
    pub fn new(p: &Problem, operands: &[Vec<f64>]) -> Result<Self> {
        let plain = evaluate::<f32>(p, operands)?;
        let widen = |v: &Vec<f32>| v.iter().map(|v| f64::from(*v)).collect();
        Ok(Self { truth: evaluate::<f64>(p, operands)?, plain: plain.iter().map(widen).collect() })
    }
}

/// The reference in the arithmetic `R`: one entry per slot, empty for inputs and absent slots. An error if it does not give just the
/// outputs of the description, each with its length.
pub fn evaluate<R: Real>(p: &Problem, operands: &[Vec<f64>]) -> Result<Vec<Vec<R>>> {
    evaluate_in(p, &operands.iter().map(|v| v.iter().map(|v| R::c(*v)).collect()).collect::<Vec<_>>())
}

/// [`evaluate`] for operands that are already of the type `R`, such as dual numbers.
pub fn evaluate_in<R: Real>(p: &Problem, operands: &[Vec<R>]) -> Result<Vec<Vec<R>>> {
    let desc = p.op.desc();
    ensure!(operands.len() == desc.slots.len(), "{p}: {} operands for {} slots", operands.len(), desc.slots.len());
    let outputs = p.op.reference(&p.dims, &Inputs::new(desc, operands)).0;
    let mut results: Vec<Option<Vec<R>>> = desc.slots.iter().map(|_| None).collect();
    for (name, values) in outputs {
        let written = desc.index(name).filter(|&i| !desc.slots[i].is_input() && p.op.has(name));
        let Some(i) = written else { bail!("{p}: the reference computes `{name}`, which is no output") };
        let want = desc.slots[i].len(&p.dims);
        ensure!(values.len() == want, "{p}: the reference computes {} elements of `{name}`, not {want}", values.len());
        ensure!(results[i].replace(values).is_none(), "{p}: the reference computes `{name}` twice");
    }
    for (slot, result) in desc.slots.iter().zip(&results) {
        let wanted = !slot.is_input() && p.op.has(slot.name);
        ensure!(wanted == result.is_some(), "{p}: the reference does not compute `{}`", slot.name);
    }
    Ok(results.into_iter().map(Option::unwrap_or_default).collect())
}
