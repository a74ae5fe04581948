//! A token's results do not depend on the batch that it is in.

use core::ops::Range;

use anyhow::{Result, bail};
use mhc_core::{Axis, Problem, Slot, Stream, Tensor, View, ViewMut};

use crate::bench::Noise;

/// A range of tokens of an operand whose elements are `size` entries each; all of it if it has no tokens.
pub fn take<V: Copy>(slot: &Slot, p: &Problem, values: &[V], size: usize, tokens: &Range<usize>) -> Vec<V> {
    let Some(axis) = slot.axes.iter().position(|a| *a == Axis::T).filter(|_| !values.is_empty()) else {
        return values.to_vec();
    };
    let inner = slot.shape(&p.dims)[axis + 1..].iter().product::<usize>() * size;
    let outer = values.chunks(inner * p.dims.tokens);
    outer.flat_map(|v| &v[tokens.start * inner..tokens.end * inner]).copied().collect()
}

/// Runs a forward operator on random operands, then on each range of its tokens alone: an error unless whatever it writes for a token has
/// the same bits. No reference is computed, so that batches may be as large as in training.
pub fn invariant(stream: &Stream, p: &Problem, parts: &[Range<usize>]) -> Result<()> {
    let noise = Noise::new();
    let draw = |s: &Slot| noise.fill(s, s.len(&p.dims), s.dtype(p.act));
    let ins: Vec<Vec<u8>> = p.slots().filter(|s| s.is_input()).map(draw).collect();
    let whole = run(stream, p, &ins)?;
    for tokens in parts {
        let mut part = p.clone();
        part.dims.tokens = tokens.len();
        let size = |s: &Slot| s.dtype(p.act).size();
        let inputs = p.slots().filter(|s| s.is_input()).zip(&ins);
        let alone = run(stream, &part, &inputs.map(|(s, v)| take(s, p, v, size(s), tokens)).collect::<Vec<_>>())?;
        for (slot, (whole, alone)) in p.slots().filter(|s| !s.is_input()).zip(whole.iter().zip(&alone)) {
            let here = take(slot, p, whole, size(slot), tokens);
            if let Some(at) = here.iter().zip(alone).position(|(a, b)| a != b) {
                let token = tokens.start + at / (alone.len() / tokens.len());
                bail!("{p}: `{}` of token {token} has other bits in a batch of {tokens:?}", slot.name);
            }
        }
    }
    Ok(())
}

/// The outputs as bytes. They were full of NaN before.
fn run(stream: &Stream, p: &Problem, ins: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let tensor = |s: &Slot, bytes: &[u8]| Tensor::from_bytes(stream, s.dtype(p.act), &s.shape(&p.dims), bytes);
    let slots = || p.slots();
    let ins = slots().filter(|s| s.is_input()).zip(ins).map(|(s, v)| tensor(s, v)).collect::<Result<Vec<_>, _>>()?;
    let nan = |s: &Slot| vec![0xff; s.len(&p.dims) * s.dtype(p.act).size()];
    let outs = slots().filter(|s| !s.is_input()).map(|s| tensor(s, &nan(s)));
    let mut outs = outs.collect::<Result<Vec<_>, _>>()?;
    let views: Vec<View<'_>> = ins.iter().map(Tensor::view).collect();
    stream.run(p, &views, &mut outs.iter_mut().map(Tensor::view_mut).collect::<Vec<ViewMut<'_>>>())?;
    Ok(outs.iter().map(Tensor::read).collect::<Result<_, _>>()?)
}
