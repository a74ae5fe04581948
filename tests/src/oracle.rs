//! What a problem must give: the reference in f64, and in f32 for the error that plain single precision makes.

use anyhow::{Result, bail, ensure};
use mhc_core::{DType, Inputs, Problem, Real};

use crate::data::{Operands, Rng};

/// The outputs of a problem, one entry per slot of the description, empty for inputs and absent slots.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The reference in f64.
    pub truth: Vec<Vec<f64>>,
    /// What may be called as good: the reference in f32, first on the operands as they are, then on operands that are off by the last bit
    /// of an f32. Where terms cancel, one computation alone may be right by luck. Not rounded to the output's type.
    pub peers: Vec<Vec<Vec<f64>>>,
    /// The largest magnitude of the upstream gradients, or of all operands where there are none.
    pub scale: f64,
}

impl Expected {
    /// Runs the references.
    pub fn new(p: &Problem, operands: &[Vec<f64>]) -> Result<Self> {
        let truth = evaluate::<f64>(p, operands)?;
        let mut rng = Rng::new(1);
        let mut peer = |off: f64| -> Result<_> {
            let mut nudge = |v: &f64| v * (1.0 + if rng.below(2) == 0 { off } else { -off });
            let near: Operands = operands.iter().map(|v| v.iter().map(&mut nudge).collect()).collect();
            let outputs = evaluate::<f32>(p, &near)?;
            Ok(outputs.iter().map(|v| v.iter().map(|v| f64::from(*v)).collect()).collect())
        };
        let last_bit = f64::from(f32::EPSILON);
        let peers = [0.0, last_bit, last_bit, last_bit].map(&mut peer).into_iter().collect::<Result<_>>()?;
        let slots = || p.op.desc().slots.iter().zip(operands).filter(|(s, _)| s.is_input());
        let upstream = |backward: bool| {
            let chosen = slots().filter(|(s, _)| !backward || s.name.starts_with("d_"));
            chosen.flat_map(|(_, v)| v).fold(0.0f64, |m, v| m.max(v.abs()))
        };
        let scale = upstream(slots().any(|(s, _)| s.name.starts_with("d_")));
        Ok(Self { truth, peers, scale })
    }

    /// Calls as good, too, what tensor cores may make of bf16 streams in forward: phi as the sum of two bf16, which keeps 16 bits.
    pub fn allow_pairs(&mut self, p: &Problem, operands: &[Vec<f64>]) -> Result<()> {
        let pair = |v: &f64| {
            let large = DType::Bf16.round(*v);
            large + DType::Bf16.round(v - large)
        };
        let slots = p.op.desc().slots.iter().zip(operands);
        let near: Operands = slots
            .map(|(s, values)| if s.name == "phi" { values.iter().map(pair).collect() } else { values.clone() })
            .collect();
        let outputs = evaluate::<f32>(p, &near)?;
        self.peers.push(outputs.iter().map(|v| v.iter().map(|v| f64::from(*v)).collect()).collect());
        Ok(())
    }
}

/// The reference's results as a device has them that reads back what it stores, rounded: the operands with [`Op::rereads`] filled in.
///
/// [`Op::rereads`]: mhc_core::Op::rereads
pub fn with_stored<R: Real>(p: &Problem, mut operands: Operands) -> Result<Operands> {
    let rereads = p.op.rereads();
    // What is computed from one stored layer is right in the next round.
    for _ in 0..if rereads.is_empty() { 0 } else { p.dims.layers } {
        let results = evaluate::<R>(p, &operands)?;
        for ((slot, operand), result) in p.op.desc().slots.iter().zip(&mut operands).zip(results) {
            if rereads.contains(&slot.name) {
                *operand = result.iter().map(|v| slot.dtype(p.act).round(v.value())).collect();
            }
        }
    }
    Ok(operands)
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
