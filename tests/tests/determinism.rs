//! The same numbers, bit for bit, whatever the number of threads, the run, the neighbours in the batch, and the place in it.

use anyhow::{Result, bail};
use mhc_core::{Axis, DType, Problem, Stream};
use mhc_cpu::Level;
use mhc_tests::{
    batch::take,
    cases, check,
    check::Trial,
    data::{self, Operands},
    devices,
    run::{How, run},
};

/// Enough tokens for several blocks of every kernel, and none a multiple of a block.
const TOKENS: usize = 67;

/// Every operator and set of attributes with many tokens.
fn problems() -> Vec<Problem> {
    let mut problems = Vec::new();
    for act in [DType::F32, DType::Bf16] {
        problems.extend(cases::one_per_tag(act));
    }
    problems.retain(|p| p.act == DType::F32 || p.has_streams());
    problems.iter_mut().for_each(|p| p.dims.tokens = TOKENS);
    problems
}

#[test]
fn threads_and_runs_change_nothing() -> Result<()> {
    for level in Level::available() {
        let subjects = (1..=3).map(|threads| devices::cpu_with(threads, level)).collect::<Result<Vec<_>>>()?;
        let streams = subjects.iter().map(|s| Ok(Stream::new(s.device.clone())?)).collect::<Result<Vec<_>>>()?;
        for p in problems() {
            let operands = data::operands(&p, data::seed(&p.to_string()))?;
            let first = run(&streams[0], &p, &operands, How::PLAIN)?;
            for (stream, subject) in streams.iter().zip(&subjects).cycle().skip(1).take(5) {
                let again = run(stream, &p, &operands, How::PLAIN)?;
                check::same(&p, &first, &again).map_err(|e| e.context(subject.name.clone()))?;
            }
        }
    }
    Ok(())
}

/// A token's results are those it has alone, and those it has in any other part of a batch. Holds for whatever an operator writes per
/// token, forward and backward; sums over tokens are not looked at.
#[test]
fn neighbours_change_nothing() -> Result<()> {
    for subject in devices::cpus()? {
        let stream = Stream::new(subject.device)?;
        for p in problems() {
            let operands = data::operands(&p, data::seed(&p.to_string()))?;
            let whole = run(&stream, &p, &operands, How::PLAIN)?;
            for tokens in [0..1, 1..2, 31..32, TOKENS - 1..TOKENS, 5..40, 3..TOKENS] {
                let mut part = p.clone();
                part.dims.tokens = tokens.len();
                let slots = p.op.desc().slots;
                let operands: Operands = slots.iter().zip(&operands).map(|(s, v)| take(s, &p, v, 1, &tokens)).collect();
                let alone = run(&stream, &part, &operands, How::PLAIN)?;
                for (i, slot) in slots.iter().enumerate().filter(|(_, s)| s.axes.contains(&Axis::T)) {
                    let in_batch = take(slot, &p, &whole[i], slot.dtype(p.act).size(), &tokens);
                    if in_batch != alone[i] {
                        bail!("{p}@{}: `{}` of tokens {tokens:?} differs when they are alone", subject.name, slot.name);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Kernels whose sums over tokens have several partial sums are right, too, and so are their strided forms.
#[test]
fn many_tokens_are_right() -> Result<()> {
    for subject in [devices::cpu()?, devices::cpu_with(3, Level::Portable)?] {
        let stream = Stream::new(subject.device)?;
        for p in problems() {
            Trial::new(p)?.check(&stream)?;
        }
    }
    Ok(())
}
