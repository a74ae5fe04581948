//! Everything that is checked of one problem on one device.

use anyhow::{Result, anyhow, bail};
use mhc_core::{DType, Problem, Slot, Stream, Support};

use crate::{
    compare::{self, Output, Report},
    data::{self, Operands},
    oracle::Expected,
    run::{self, How},
};

/// A problem with its operands and what they must give.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The problem.
    pub problem: Problem,
    /// One entry per slot.
    pub operands: Operands,
    /// One entry per slot.
    pub expected: Expected,
}

impl Trial {
    /// Operands drawn from the seed that the problem's id gives.
    pub fn new(problem: Problem) -> Result<Self> {
        let operands = data::operands(&problem, data::seed(&problem.to_string()))?;
        Self::with(problem, operands)
    }

    /// Operands of one's own.
    pub fn with(problem: Problem, operands: Operands) -> Result<Self> {
        let expected = Expected::new(&problem, &operands)?;
        Ok(Self { problem, operands, expected })
    }

    /// Runs the problem thrice: packed, with gaps and with permuted axes; the outputs were full of NaN, of a number, and of NaN; the
    /// scratch was the stream's, then watched. The first is compared with the reference, and the others must equal it bit for bit.
    ///
    /// Where the device has a kernel of its own for packed operands, those are run twice, and the others, which take another kernel,
    /// are compared with the reference and with each other.
    pub fn check(&self, stream: &Stream) -> Result<Vec<Report>> {
        let p = &self.problem;
        if let Support::No(why) = stream.device().support(p) {
            bail!("{p} is not supported on {}: {why}", stream.id());
        }
        let again = |first: &[Vec<u8>], how| {
            same(p, first, &run::run(stream, p, &self.operands, how)?)
                .map_err(|e| e.context(format!("run again with {how:?}")))
        };
        let tuned = is_tuned(p, stream);
        let first = run::run(stream, p, &self.operands, How::PLAIN)?;
        let reports = self.compare(&first, tuned)?;
        if tuned {
            again(&first, How::PACKED)?;
            let portable = run::run(stream, p, &self.operands, How::PADDED)?;
            self.compare(&portable, false).map_err(|e| e.context(format!("{:?}", How::PADDED)))?;
            again(&portable, How::PERMUTED)?;
        } else {
            again(&first, How::PADDED)?;
            again(&first, How::PERMUTED)?;
        }
        Ok(reports)
    }

    /// Judges outputs, one entry per slot, as row-major bytes, by a tuned kernel or not. What the operator reads back as stored, the
    /// references read back as stored by the device.
    fn compare(&self, outputs: &[Vec<u8>], tuned: bool) -> Result<Vec<Report>> {
        let (p, tolerance) = (&self.problem, self.problem.op.tolerance());
        // Gradients keep 21 bits of phi in every type.
        let pairs = tuned && p.act == DType::Bf16 && p.op.forward().is_none();
        let rereads = p.op.rereads();
        let changed;
        let expected = if rereads.is_empty() && !pairs {
            &self.expected
        } else {
            let stored = |(slot, (input, output)): (&Slot, (&Vec<f64>, &Vec<u8>))| {
                if rereads.contains(&slot.name) { slot.dtype(p.act).decode(output) } else { input.clone() }
            };
            let slots = p.op.desc().slots.iter();
            let operands = slots.zip(self.operands.iter().zip(outputs)).map(stored).collect::<Operands>();
            let mut expected = Expected::new(p, &operands)?;
            if pairs {
                expected.allow_pairs(p, &operands)?;
            }
            changed = expected;
            &changed
        };
        let mut reports = Vec::new();
        for (i, slot) in p.op.desc().slots.iter().enumerate() {
            if slot.is_input() || !p.op.has(slot.name) {
                continue;
            }
            let (dtype, shape) = (slot.dtype(p.act), slot.shape(&p.dims));
            let got = dtype.decode(&outputs[i]);
            let Expected { truth, peers, scale } = expected;
            let (truth, peers) = (&truth[i], &peers.iter().map(|peer| peer[i].as_slice()).collect::<Vec<_>>());
            let output = Output { slot: slot.name, shape: &shape, dtype, truth, peers, scale: *scale, got: &got };
            reports.push(compare::output(&output, &tolerance).map_err(|why| anyhow!("{p}: {why}"))?);
        }
        Ok(reports)
    }
}

/// Whether the device runs the problem, if its operands are packed, by a kernel that it has beside the portable ones.
fn is_tuned(p: &Problem, stream: &Stream) -> bool {
    let caps = stream.device().info().caps.as_ref();
    let plan = caps.and_then(|caps| p.op.plan(&p.dims, p.act, caps).ok());
    plan.is_some_and(|plan| plan.launches.iter().any(|l| !l.entry.arch.is_empty()))
}

/// An error that names the first element in which two sets of outputs differ.
pub fn same(p: &Problem, a: &[Vec<u8>], b: &[Vec<u8>]) -> Result<()> {
    for (i, slot) in p.op.desc().slots.iter().enumerate() {
        let dtype = slot.dtype(p.act);
        if let Some(at) = a[i].iter().zip(&b[i]).position(|(x, y)| x != y) {
            let (element, shape) = (at / dtype.size(), slot.shape(&p.dims));
            let (x, y) = (dtype.decode(&a[i])[element], dtype.decode(&b[i])[element]);
            let index = compare::position(element, &shape);
            bail!("{p}: `{}`{index:?} is {x:e} in one run and {y:e} in another", slot.name);
        }
        if a[i].len() != b[i].len() {
            bail!("{p}: `{}` has {} bytes in one run and {} in another", slot.name, a[i].len(), b[i].len());
        }
    }
    Ok(())
}
