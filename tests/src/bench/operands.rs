//! The operands of a bench on a device, and its launches.

use anyhow::Result;
use mhc_core::{Fill, Problem, RawView, Slot, Stream, Tensor, View, ViewMut};

use super::{Bench, Timed};
use crate::data::{Rng, seed};

/// Operands below this size stay in the cache, as they do between the operators of a model; larger ones are rotated.
const CACHED: u64 = 4 << 20;
/// All rotated operands together: more than the last level cache of any machine we know, shared ones apart.
const ROTATED: u64 = 256 << 20;

/// A bench with its operands on a device.
#[derive(Debug)]
pub struct Ready {
    stream: Stream,
    steps: Vec<Problem>,
    sets: Vec<Set>,
    next: usize,
}

impl Ready {
    /// Makes operands: one set, or, `rotated`, as many as it takes to exceed the caches where the operator is bound by memory.
    pub fn new(stream: &Stream, bench: &Bench, rotated: bool) -> Result<Self> {
        let bytes = bench.bytes().max(1);
        let sets = if rotated && bytes >= CACHED { ROTATED.div_ceil(bytes) } else { 1 };
        let noise = Noise::new();
        let sets = (0..sets).map(|_| Set::new(stream, &bench.steps, &noise)).collect::<Result<_>>()?;
        Ok(Self { stream: stream.clone(), steps: bench.steps.clone(), sets, next: 0 })
    }

    /// Loads or compiles every kernel.
    pub fn prepare(&self) -> Result<()> {
        self.steps.iter().try_for_each(|p| self.stream.prepare(p).map(drop))?;
        Ok(())
    }

    /// Launches every step once, on the next set of operands.
    pub fn run(&mut self) -> mhc_core::Result<()> {
        for (p, views) in self.steps.iter().zip(&self.sets[self.next].steps) {
            views.run(&self.stream, p)?;
        }
        self.next = (self.next + 1) % self.sets.len();
        Ok(())
    }
}

impl Timed for Ready {
    fn launch(&mut self) -> Result<()> {
        Ok(self.run()?)
    }

    fn wait(&self) -> Result<()> {
        Ok(self.stream.sync()?)
    }
}

/// The operands of every step. Steps share those of the same name: what one writes, a later one reads.
#[derive(Debug)]
struct Set {
    tensors: Vec<(&'static str, Tensor)>,
    steps: Vec<Views>,
}

/// The operands of one launch, inputs and outputs in slot order.
#[derive(Debug)]
struct Views {
    ins: Vec<RawView>,
    outs: Vec<RawView>,
}

impl Views {
    fn run(&self, stream: &Stream, p: &Problem) -> mhc_core::Result<()> {
        // SAFETY: the set that holds these keeps every tensor where it is, for itself alone; the stream orders its launches, and no
        // operator has an input and an output of one name, so that no launch writes what it reads.
        let ins: Vec<View<'_>> = self.ins.iter().map(|v| unsafe { View::from_raw(*v) }).collect();
        // SAFETY: as above; the outputs of an operator have different names, and so are different tensors.
        let mut outs: Vec<ViewMut<'_>> = self.outs.iter().map(|v| unsafe { ViewMut::from_raw(*v) }).collect();
        stream.run(p, &ins, &mut outs)
    }
}

impl Set {
    /// Random inputs. What a backward operator reads of its forward's results is left to the steps before it, or else computed here.
    fn new(stream: &Stream, steps: &[Problem], noise: &Noise) -> Result<Self> {
        let mut set = Self { tensors: Vec::new(), steps: Vec::new() };
        for p in steps {
            let forward = p.op.forward().map(|op| Problem { op, ..p.clone() });
            if let Some(forward) = &forward {
                let result = |s: &Slot| forward.slots().any(|f| !f.is_input() && f.name == s.name);
                if p.slots().any(|s| s.is_input() && result(s) && set.find(s.name).is_none()) {
                    set.views(stream, forward, noise)?.run(stream, forward)?;
                } else {
                    // The forward's inputs are drawn as the forward wants them.
                    let read = |s: &&Slot| p.slots().any(|b| b.is_input() && b.name == s.name);
                    for slot in forward.slots().filter(|s| s.is_input()).filter(read) {
                        set.view(stream, forward, slot, noise)?;
                    }
                }
            }
            let views = set.views(stream, p, noise)?;
            set.steps.push(views);
        }
        Ok(set)
    }

    fn find(&self, name: &str) -> Option<RawView> {
        self.tensors.iter().find(|(n, _)| *n == name).map(|(_, t)| *t.view().raw())
    }

    fn views(&mut self, stream: &Stream, p: &Problem, noise: &Noise) -> Result<Views> {
        let mut views = Views { ins: Vec::new(), outs: Vec::new() };
        for slot in p.slots() {
            let view = self.view(stream, p, slot, noise)?;
            if slot.is_input() { views.ins.push(view) } else { views.outs.push(view) }
        }
        Ok(views)
    }

    /// The operand of that name, made unless it is there: random if it is read, arbitrary if it is written.
    fn view(&mut self, stream: &Stream, p: &Problem, slot: &Slot, noise: &Noise) -> Result<RawView> {
        if let Some(view) = self.find(slot.name) {
            return Ok(view);
        }
        let (dtype, shape) = (slot.dtype(p.act), slot.shape(&p.dims));
        let mut tensor = Tensor::empty(stream, dtype, &shape)?;
        if slot.is_input() {
            tensor.write(&noise.fill(slot, slot.len(&p.dims), dtype))?;
        }
        let view = *tensor.view().raw();
        self.tensors.push((slot.name, tensor));
        Ok(view)
    }
}

/// Random numbers, drawn once and repeated: drawing takes longer than any operator.
#[derive(Debug)]
pub struct Noise(Vec<f64>);

impl Noise {
    /// Draws them.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        // A length that no row divides, so that rows differ.
        Self(Rng::new(1).normals(100_003))
    }

    /// `len` elements of a slot as bytes. Slots begin at different places: a projection of the noise on itself would be far from random.
    pub fn fill(&self, slot: &Slot, len: usize, dtype: mhc_core::DType) -> Vec<u8> {
        // As the peers' programs draw them: logits of a few units, for models whose alphas are trained. The tests' own phi is for short rows.
        let fill = match slot.name {
            "phi" => Fill::Normal { std: 0.02 },
            "alpha" => Fill::Uniform { lo: 1.0, hi: 1.0 },
            _ => slot.fill,
        };
        let map = |v: &f64| match fill {
            Fill::Normal { std } => std * v,
            Fill::Uniform { lo, hi } => lo + (hi - lo) * v.rem_euclid(1.0),
        };
        let (first, all) = (seed(slot.name) as usize % self.0.len(), self.0.iter().cycle());
        let once = dtype.encode(&all.skip(first).take(len.min(self.0.len())).map(map).collect::<Vec<_>>());
        let mut bytes = once.repeat(len.div_ceil(self.0.len()));
        bytes.truncate(len * dtype.size());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use mhc_core::{DType, Dims};

    use super::*;
    use crate::bench;

    /// The steps of a training step read what the steps before them wrote, and nothing is drawn in its place.
    #[test]
    fn steps_share_what_one_writes_and_another_reads() -> Result<()> {
        let stream = Stream::new(mhc_ops::open("cpu")?)?;
        let [_, both] = bench::sub_layer(DType::Bf16, Dims::new(3, 4, 40));
        let mut ready = Ready::new(&stream, &both, false)?;
        ready.run()?;
        let set = &ready.sets[0];
        let at = |step: usize, name: &str| {
            let slots: Vec<_> = ready.steps[step].slots().collect();
            let views = &set.steps[step];
            let (ins, outs): (Vec<&Slot>, Vec<&Slot>) = slots.into_iter().partition(|s| s.is_input());
            let of =
                |slots: &[&Slot], views: &[RawView]| slots.iter().position(|s| s.name == name).map(|i| views[i].ptr);
            of(&ins, &views.ins).or_else(|| of(&outs, &views.outs))
        };
        for (writer, reader, name) in [(0, 1, "mixes"), (0, 3, "z"), (0, 3, "inv_rms"), (2, 3, "d_mixes"), (2, 3, "x")]
        {
            assert!(at(writer, name).is_some(), "{name}");
            assert_eq!(at(writer, name), at(reader, name), "{name}");
        }
        let names: Vec<_> = set.tensors.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.iter().filter(|n| **n == "mixes").count(), 1);
        Ok(())
    }
}
