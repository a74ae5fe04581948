//! Two ways to run operators: on a device, with a clock, and in float64. The network of `network.rs` is written once for both.

use std::time::Instant;

use anyhow::{Result, bail};
use mhc_ops::{AnyOp, DType, Dims, Problem, Stream, Tensor, View, ViewMut};
use mhc_tests::oracle;

/// Runs operators on values of its own kind.
pub trait Engine {
    /// An operand.
    type Value;
    /// An operand from the host, rounded to `dtype` unless the engine knows no types.
    fn value(&self, dtype: DType, shape: &[usize], data: &[f64]) -> Result<Self::Value>;
    /// The outputs of an operator, saved ones included, in the order of its description.
    fn run(&mut self, op: AnyOp, dims: Dims, ins: &[&Self::Value]) -> Result<Vec<Self::Value>>;
    /// The operand on the host.
    fn read(&self, value: &Self::Value) -> Result<Vec<f64>>;
    /// The element type of streams.
    fn act(&self) -> DType;
}

/// Seconds spent and bytes moved in operators.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    pub seconds: f64,
    pub bytes: u64,
}

/// A device.
pub struct OnDevice {
    stream: Stream,
    act: DType,
    /// Since it was last taken.
    pub clock: Clock,
}

impl OnDevice {
    pub fn new(stream: Stream, act: DType) -> Self {
        Self { stream, act, clock: Clock::default() }
    }
}

impl Engine for OnDevice {
    type Value = Tensor;

    fn value(&self, dtype: DType, shape: &[usize], data: &[f64]) -> Result<Tensor> {
        Ok(Tensor::from_f64(&self.stream, dtype, shape, data)?)
    }

    fn run(&mut self, op: AnyOp, dims: Dims, ins: &[&Tensor]) -> Result<Vec<Tensor>> {
        let problem = Problem { op, dims, act: self.act };
        let outs = problem.slots().filter(|s| !s.is_input());
        let empty = |s: &mhc_core::Slot| Tensor::empty(&self.stream, s.dtype(self.act), &s.shape(&dims));
        let mut outs: Vec<Tensor> = outs.map(empty).collect::<Result<_, _>>()?;
        let views: Vec<View<'_>> = ins.iter().map(|t| t.view()).collect();
        let mut out_views: Vec<ViewMut<'_>> = outs.iter_mut().map(Tensor::view_mut).collect();
        self.stream.prepare(&problem)?;
        self.stream.sync()?;
        let start = Instant::now();
        self.stream.run(&problem, &views, &mut out_views)?;
        self.stream.sync()?;
        self.clock.seconds += start.elapsed().as_secs_f64();
        self.clock.bytes += problem.op.cost(&dims, self.act).bytes;
        Ok(outs)
    }

    fn read(&self, value: &Tensor) -> Result<Vec<f64>> {
        Ok(value.to_f64()?)
    }

    fn act(&self) -> DType {
        self.act
    }
}

/// The references in float64, which round nothing but what comes from the host.
pub struct InF64 {
    pub act: DType,
}

impl Engine for InF64 {
    type Value = Vec<f64>;

    fn value(&self, dtype: DType, _: &[usize], data: &[f64]) -> Result<Vec<f64>> {
        Ok(data.iter().map(|v| dtype.round(*v)).collect())
    }

    fn run(&mut self, op: AnyOp, dims: Dims, ins: &[&Vec<f64>]) -> Result<Vec<Vec<f64>>> {
        let problem = Problem { op, dims, act: self.act };
        let mut ins = ins.iter();
        let mut operands = Vec::new();
        for slot in problem.op.desc().slots {
            let read = slot.is_input() && problem.op.has(slot.name);
            match if read { ins.next() } else { None } {
                Some(values) => operands.push(values.to_vec()),
                None if read => bail!("{problem} lacks `{}`", slot.name),
                None => operands.push(Vec::new()),
            }
        }
        let results = oracle::evaluate::<f64>(&problem, &operands)?;
        let written = problem.op.desc().slots.iter().zip(results);
        Ok(written.filter(|(s, _)| !s.is_input() && problem.op.has(s.name)).map(|(_, r)| r).collect())
    }

    fn read(&self, value: &Vec<f64>) -> Result<Vec<f64>> {
        Ok(value.clone())
    }

    fn act(&self) -> DType {
        self.act
    }
}
