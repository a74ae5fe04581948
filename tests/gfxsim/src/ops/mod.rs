//! From an instruction's name to what executes it, one module for each kind of instruction.

mod atomic;
mod compare;
mod convert;
mod flow;
mod integer;
mod lanes;
mod lds;
mod loads;
mod matrix;
mod narrow;
mod number;
mod scalar;

use crate::inst::{Class, Inst, Space};

/// What an encoding adds to a name.
const ENCODINGS: &[&str] = &["_e64_dpp", "_dpp8", "_dpp", "_sdwa", "_e32", "_e64"];

/// Finds what executes the instruction. An error names one that is not modelled.
pub fn resolve(inst: &mut Inst) -> Result<(), String> {
    if let Some(second) = inst.second.as_mut() {
        resolve(second)?;
    }
    let full = inst.name.clone();
    let plain = ENCODINGS.iter().find_map(|e| full.strip_suffix(e)).unwrap_or(&full);
    let name = plain.replace("v_dual_", "v_");
    inst.space = space(&name);
    inst.class = class(&name);
    let found = match inst.class {
        Class::Memory => loads::find(&name).or_else(|| atomic::find(&name)),
        Class::Lds => lds::find(&name).or_else(|| loads::find(&name)).or_else(|| atomic::find(&name)),
        Class::Matrix => matrix::find(&name).map(Found::run),
        Class::Scalar => {
            scalar::find(&name).or_else(|| flow::find(&name)).map(Found::run).or_else(|| loads::find(&name))
        }
        Class::Vector => vector(&name),
    };
    let Some(found) = found else { return Err(format!("`{full}` is not modelled")) };
    inst.run = found.run;
    if let Some(detail) = found.detail {
        inst.detail = detail;
    }
    Ok(())
}

/// What executes an instruction, and what that wants to know beyond operands.
struct Found {
    run: crate::inst::Run,
    detail: Option<crate::inst::Detail>,
}

impl Found {
    fn run(run: crate::inst::Run) -> Self {
        Self { run, detail: None }
    }

    fn with(run: crate::inst::Run, detail: crate::inst::Detail) -> Self {
        Self { run, detail: Some(detail) }
    }
}

fn vector(name: &str) -> Option<Found> {
    let families = [integer::find, number::find, narrow::find, convert::find, lanes::find];
    families.iter().find_map(|find| find(name)).map(Found::run).or_else(|| compare::find(name))
}

fn space(name: &str) -> Space {
    match name.split('_').next() {
        Some("ds") => Space::Lds,
        Some("flat") => Space::Flat,
        Some("scratch") => Space::Scratch,
        _ => Space::Global,
    }
}

fn class(name: &str) -> Class {
    match name.split('_').next() {
        Some("s") => Class::Scalar,
        Some("ds") => Class::Lds,
        Some("v") if name.starts_with("v_mfma") || name.starts_with("v_wmma") => Class::Matrix,
        Some("v") => Class::Vector,
        _ => Class::Memory,
    }
}
