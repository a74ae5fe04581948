//! Rules about operators.

use std::collections::BTreeSet;

use mhc_core::{AnyOp, Level, Role};

use super::File;

const CORE: &str = "mhc-core/src/ops/";

/// What an operator's folder may hold. A missing reference or CPU kernel is an error of the compiler's.
const NAMES: [&str; 5] = ["mod.rs", "reference.rs", "plan.rs", "tuned.rs", "kernel.cuh"];

pub fn folders(files: &[File]) -> Vec<String> {
    let mut places = Vec::new();
    for file in files {
        let Some((op, name)) = file.path.strip_prefix(CORE).and_then(|p| p.split_once('/')) else { continue };
        if !NAMES.contains(&name) {
            places.push(format!("{}: a folder of an operator has only {}", file.path, NAMES.join(", ")));
        }
        if name == "mod.rs" && AnyOp::all_descs().iter().all(|d| d.name != op) {
            places.push(format!("{op}: not in the list of {CORE}mod.rs"));
        }
    }
    places
}

pub fn cases(_: &[File]) -> Vec<String> {
    let cases = AnyOp::all_cases(Level::Smoke);
    let descs = AnyOp::all_descs();
    let mut places = Vec::new();
    for desc in &descs {
        if !cases.iter().any(|c| c.op.desc().name == desc.name) {
            places.push(format!("{}: no cases", desc.name));
        }
        let backward = format!("{}_bwd", desc.name);
        if !desc.name.ends_with("_bwd") && !descs.iter().any(|d| d.name == backward) {
            places.push(format!("{}: no {backward}", desc.name));
        }
    }
    places
}

/// Inputs are the forward's operands or gradients of its results; results are gradients of its inputs.
pub fn names(_: &[File]) -> Vec<String> {
    let mut places = BTreeSet::new();
    for case in AnyOp::all_cases(Level::Smoke) {
        let (desc, Some(forward)) = (case.op.desc(), case.op.forward()) else { continue };
        let forward = forward.desc();
        let role = |name: &str| forward.slots.iter().find(|s| s.name == name).map(|s| s.role);
        for slot in desc.slots {
            let of = slot.name.strip_prefix("d_").and_then(role);
            let fits = match slot.role {
                // `pre_bwd` may carry the gradient of the next operator's result to x.
                Role::In => role(slot.name).is_some() || of == Some(Role::Out) || slot.name == "d_x_next",
                Role::Out | Role::Saved => of == Some(Role::In),
            };
            if !fits {
                places.insert(format!("{}: `{}` is named after no operand of {}", desc.name, slot.name, forward.name));
            }
        }
    }
    places.into_iter().collect()
}
