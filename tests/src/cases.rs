//! Which problems are run.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use mhc_core::{AnyOp, DType, Level, Problem};

/// The cases of all operators, or of one and its backward if `op` is not empty, in every element type; in f32 alone where the operator
/// has no streams. An error if two different problems have the same id, as one of them could not be replayed.
pub fn problems(level: Level, op: &str) -> Result<Vec<Problem>> {
    let mut seen: BTreeMap<String, Problem> = BTreeMap::new();
    let mut problems = Vec::new();
    for case in AnyOp::all_cases(level) {
        let name = case.op.desc().name;
        if !op.is_empty() && name != op && name.strip_suffix("_bwd") != Some(op) {
            continue;
        }
        for act in DType::ALL {
            let problem = Problem { op: case.op.clone(), dims: case.dims, act };
            if act != DType::F32 && !problem.has_streams() {
                continue;
            }
            match seen.insert(problem.to_string(), problem.clone()) {
                None => problems.push(problem),
                Some(same) if same == problem => {}
                Some(other) => bail!("{problem} names two problems: {problem:?} and {other:?}"),
            }
        }
    }
    Ok(problems)
}

/// One problem per operator: its first, which has the most to go wrong, in this element type.
pub fn one_each(act: DType) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    for case in AnyOp::all_cases(Level::Smoke) {
        if problems.iter().all(|p| p.op.desc().name != case.op.desc().name) {
            problems.push(Problem { op: case.op, dims: case.dims, act });
        }
    }
    problems
}

/// One problem per operator and set of attributes, in this element type.
pub fn one_per_tag(act: DType) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    for case in AnyOp::all_cases(Level::Smoke) {
        if problems.iter().all(|p| p.op != case.op) {
            problems.push(Problem { op: case.op, dims: case.dims, act });
        }
    }
    problems
}
