//! Operands: drawn from a seed that the problem's id gives, so that every case can be replayed alone.

use anyhow::Result;
use mhc_core::{Fill, Problem, Slot};

use crate::oracle;

/// The operands of a problem: one entry per slot of the description, row-major, every value representable in the slot's type;
/// empty where the slot is absent or written.
pub type Operands = Vec<Vec<f64>>;

/// SplitMix64: a generator whose whole state is its seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (core::f64::consts::TAU * self.uniform()).cos()
    }

    /// An integer in 0..n; 0 if n is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    /// `len` standard normal numbers.
    pub fn normals(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.normal()).collect()
    }

    fn draw(&mut self, fill: Fill) -> f64 {
        match fill {
            Fill::Normal { std } => std * self.normal(),
            Fill::Uniform { lo, hi } => lo + (hi - lo) * self.uniform(),
        }
    }
}

/// A seed from any text: its FNV-1a hash, moved by the number in `MHC_TEST_SEED`.
pub fn seed(text: &str) -> u64 {
    let offset = std::env::var("MHC_TEST_SEED").ok().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ fnv(text)
}

fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Operands drawn as the description says. What a backward operator reads of its forward, results and saved tensors included, is
/// taken from the forward reference on the rounded inputs; upstream gradients are random (constant ones hide mistakes).
pub fn operands(p: &Problem, seed: u64) -> Result<Operands> {
    operands_with(p, seed, |_, _, _| {})
}

/// [`operands`] whose drawn slots pass through `change` before they are rounded.
pub fn operands_with(p: &Problem, seed: u64, change: impl Fn(&Slot, &mut [f64], &mut Rng)) -> Result<Operands> {
    let draw = |slot: &Slot| {
        let mut rng = Rng::new(seed ^ fnv(slot.name));
        let mut values: Vec<f64> = (0..slot.len(&p.dims)).map(|_| rng.draw(slot.fill)).collect();
        change(slot, &mut values, &mut rng);
        values
    };
    assemble(p, |slot| Ok(draw(slot)))
}

/// The operands of a problem from `given`, which knows inputs: a forward operator's, and upstream gradients. What a backward operator
/// reads of its forward's results is computed from the forward's inputs. Everything is rounded to its slot's type.
pub fn assemble(p: &Problem, given: impl Fn(&Slot) -> Result<Vec<f64>>) -> Result<Operands> {
    let rounded = |slot: &Slot| Ok(given(slot)?.iter().map(|v| slot.dtype(p.act).round(*v)).collect());
    let forward = p.op.forward().map(|op| Problem { op, ..p.clone() });
    let known = match &forward {
        Some(f) => complete(f, per_slot(f, |slot| if slot.is_input() { rounded(slot) } else { Ok(Vec::new()) })?)?,
        None => Vec::new(),
    };
    let from_forward = |slot: &Slot| {
        let f = forward.as_ref()?;
        let i = f.op.desc().index(slot.name).filter(|_| f.op.has(slot.name))?;
        Some(known[i].clone())
    };
    per_slot(p, |slot| match slot.is_input() {
        true => from_forward(slot).map_or_else(|| rounded(slot), Ok),
        false => Ok(Vec::new()),
    })
}

/// The operands with the reference's results beside them, rounded to their slots' types.
fn complete(p: &Problem, operands: Operands) -> Result<Operands> {
    let mut operands = oracle::with_stored::<f64>(p, operands)?;
    let results = oracle::evaluate::<f64>(p, &operands)?;
    for ((slot, operand), result) in p.op.desc().slots.iter().zip(&mut operands).zip(results) {
        if !slot.is_input() {
            *operand = result.iter().map(|v| slot.dtype(p.act).round(*v)).collect();
        }
    }
    Ok(operands)
}

/// One entry per slot: `f` of those that are there, nothing for the others.
pub fn per_slot<R>(p: &Problem, mut f: impl FnMut(&'static Slot) -> Result<Vec<R>>) -> Result<Vec<Vec<R>>> {
    p.op.desc().slots.iter().map(|s| if p.op.has(s.name) { f(s) } else { Ok(Vec::new()) }).collect()
}

/// Whether a slot holds logits: numbers that only ever enter exponentials.
pub fn is_logit(slot: &Slot) -> bool {
    slot.is_input() && matches!(slot.name, "logits" | "bias" | "h_pre" | "h_post" | "h_res")
}

/// Makes logits extreme: `sigma` times as large as they were drawn, or, if that is infinite, one in four ±80; 0 leaves them alone.
pub fn sharpen(slot: &Slot, values: &mut [f64], rng: &mut Rng, sigma: f64) {
    if !is_logit(slot) || sigma == 0.0 {
        return;
    }
    for v in values {
        if sigma.is_finite() {
            *v *= sigma;
        } else if rng.below(4) == 0 {
            *v = if rng.below(2) == 0 { 80.0 } else { -80.0 };
        }
    }
}
