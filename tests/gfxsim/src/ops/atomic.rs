//! Memory that is read, changed and written in one step.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use super::Found;
use crate::{
    float::{self, from_brain, from_half, to_brain, to_half},
    inst::{AtomicOp, Detail, Inst, Operand, Space},
    memory::lanes_of,
    ops::loads,
    traffic::Kind,
    wave::Wave,
};

pub fn find(name: &str) -> Option<Found> {
    let (space, what) = name.split_once('_')?;
    let what = if space == "ds" { what.replace("_rtn", "") } else { what.strip_prefix("atomic_")?.into() };
    let (what, x2) = what.strip_suffix("_x2").map_or((what.as_str(), false), |w| (w, true));
    let (op, wide) = operation(what)?;
    Some(Found::with(run, Detail::Atomic { op, wide: wide || x2 }))
}

/// The operation, and whether it is on 64 bits.
fn operation(what: &str) -> Option<(AtomicOp, bool)> {
    let wide = ["_u64", "_i64", "_b64", "_f64"].iter().any(|end| what.ends_with(end));
    let op = match what {
        "add" | "add_u32" | "add_u64" => AtomicOp::Add,
        "sub" | "sub_u32" | "sub_u64" => AtomicOp::Sub,
        "umax" | "max_u32" | "max_u64" => AtomicOp::MaxUnsigned,
        "umin" | "min_u32" | "min_u64" => AtomicOp::MinUnsigned,
        "smax" | "max_i32" | "max_i64" => AtomicOp::MaxSigned,
        "smin" | "min_i32" | "min_i64" => AtomicOp::MinSigned,
        "and" | "and_b32" | "and_b64" => AtomicOp::And,
        "or" | "or_b32" | "or_b64" => AtomicOp::Or,
        "xor" | "xor_b32" | "xor_b64" => AtomicOp::Xor,
        "swap" | "swap_b32" | "swap_b64" | "wrxchg_b32" | "wrxchg_b64" | "storexchg_b32" | "storexchg_b64" => {
            AtomicOp::Swap
        }
        "cmpswap" | "cmpswap_b32" | "cmpswap_b64" | "cmpst_b32" | "cmpst_b64" | "cmpstore_b32" | "cmpstore_b64" => {
            AtomicOp::CompareSwap
        }
        "inc" | "inc_u32" | "inc_u64" => AtomicOp::Increment,
        "add_f32" | "add_f64" => AtomicOp::AddFloat,
        "max_f32" => AtomicOp::MaxFloat,
        "min_f32" => AtomicOp::MinFloat,
        "pk_add_f16" => AtomicOp::AddHalves,
        "pk_add_bf16" => AtomicOp::AddBrains,
        _ => return None,
    };
    Some((op, wide))
}

fn run(w: &mut Wave<'_>, i: &Inst) {
    let Detail::Atomic { op, wide } = i.detail else { return };
    let lds = i.space == Space::Lds;
    let returns = if lds { i.name.contains("_rtn") } else { i.returns };
    // What comes back stands before the address, the data behind it.
    let address = usize::from(returns);
    let data = address + 1;
    let shared = (!lds && i.count > data + 1).then_some(data + 1);
    let addresses = loads::addresses(w, i, address, shared);
    let words = if wide { 2 } else { 1 };
    let size = 4 * words as u64;
    loads::count(w, i, Kind::Atomic, &addresses, size);
    let Operand::Vector(d) = i.operands[data] else { return };
    let d = d as usize;
    // The workgroup's memory has what to compare with and what to store in two operands, the other way round on older GPUs; global
    // memory in one, the new value first.
    let (new, expected) = match (op, lds) {
        (AtomicOp::CompareSwap, false) => (d, d + words),
        (AtomicOp::CompareSwap, true) => {
            let Operand::Vector(second) = i.operands[data + 1] else { return };
            if i.name.contains("cmpstore") { (d, second as usize) } else { (second as usize, d) }
        }
        _ => (d, d),
    };
    let exec = w.exec();
    let Some(places) = w.places(i.space, &addresses, exec, size) else { return };
    for l in lanes_of(exec) {
        if !addresses[l].is_multiple_of(size) {
            return w.fault(format!("an atomic of {size} bytes at {:#x}", addresses[l]));
        }
        let value = |r: usize| {
            let low = u64::from(w.vectors[r][l]);
            if wide { low | u64::from(w.vectors[r + 1][l]) << 32 } else { low }
        };
        let (new, expected) = (value(new), value(expected));
        // SAFETY: `places` found room for the value, and it is aligned; everything else that changes it meanwhile is atomic, too, or a
        // race of the kernel's own.
        let old = unsafe {
            if wide {
                let change = |old| Some(changed(op, true, old, new, expected));
                let (Ok(old) | Err(old)) = AtomicU64::from_ptr(places[l].cast()).fetch_update(SeqCst, SeqCst, change);
                old
            } else {
                let change = |old: u32| Some(changed(op, false, old.into(), new, expected) as u32);
                let (Ok(old) | Err(old)) = AtomicU32::from_ptr(places[l].cast()).fetch_update(SeqCst, SeqCst, change);
                old.into()
            }
        };
        if let (true, Operand::Vector(r)) = (returns, i.operands[0]) {
            w.vectors[r as usize][l] = old as u32;
            if wide {
                w.vectors[r as usize + 1][l] = (old >> 32) as u32;
            }
        }
    }
}

/// What an operation leaves of `old`, on 64 bits or on the lower 32 of its operands and its result.
fn changed(op: AtomicOp, wide: bool, old: u64, new: u64, expected: u64) -> u64 {
    let signed = |v: u64| if wide { v as i64 } else { i64::from(v as i32) };
    let [a, b] = [old, new].map(|v| f32::from_bits(v as u32));
    let halves = |f: fn(u16, u16) -> u16| {
        u64::from(f(old as u16, new as u16)) | u64::from(f((old >> 16) as u16, (new >> 16) as u16)) << 16
    };
    match op {
        AtomicOp::Add => old.wrapping_add(new),
        AtomicOp::Sub => old.wrapping_sub(new),
        AtomicOp::MaxUnsigned => old.max(new),
        AtomicOp::MinUnsigned => old.min(new),
        AtomicOp::MaxSigned => signed(old).max(signed(new)) as u64,
        AtomicOp::MinSigned => signed(old).min(signed(new)) as u64,
        AtomicOp::And => old & new,
        AtomicOp::Or => old | new,
        AtomicOp::Xor => old ^ new,
        AtomicOp::Swap => new,
        AtomicOp::CompareSwap if old == expected => new,
        AtomicOp::CompareSwap => old,
        AtomicOp::Increment if old >= new => 0,
        AtomicOp::Increment => old + 1,
        AtomicOp::AddFloat if wide => (f64::from_bits(old) + f64::from_bits(new)).to_bits(),
        AtomicOp::AddFloat => (a + b).to_bits().into(),
        AtomicOp::MaxFloat => float::max(a, b).to_bits().into(),
        AtomicOp::MinFloat => float::min(a, b).to_bits().into(),
        AtomicOp::AddHalves => halves(|a, b| to_half(from_half(a) + from_half(b))),
        AtomicOp::AddBrains => halves(|a, b| to_brain(from_brain(a) + from_brain(b))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_decides_about_signs_and_floats() {
        let least = |wide| changed(AtomicOp::MinSigned, wide, 0xffff_ffff, 1, 0);
        assert_eq!((least(false) as u32, least(true)), (u32::MAX, 1));
        let most = |wide| changed(AtomicOp::MaxSigned, wide, 0xffff_ffff, 1, 0);
        assert_eq!((most(false) as u32, most(true)), (1, 0xffff_ffff));
        let [narrow, wide] = [u64::from(1.5f32.to_bits()), 1.5f64.to_bits()];
        assert_eq!(changed(AtomicOp::AddFloat, false, narrow, narrow, 0), 3f32.to_bits().into());
        assert_eq!(changed(AtomicOp::AddFloat, true, wide, wide, 0), 3f64.to_bits());
    }

    #[test]
    fn some_look_at_what_was_there() {
        let swap = |expected| changed(AtomicOp::CompareSwap, false, 5, 7, expected);
        assert_eq!((swap(5), swap(6)), (7, 5));
        let next = |old| changed(AtomicOp::Increment, false, old, 3, 0);
        assert_eq!((next(2), next(3), next(9)), (3, 0, 0));
    }
}
