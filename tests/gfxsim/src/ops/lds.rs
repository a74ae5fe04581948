//! What only the workgroup's memory and its crossbar can do.

use super::Found;
use crate::{
    inst::{Detail, Inst, Operand, Run, Space},
    memory::lanes_of,
    vector::each,
    wave::Wave,
};

pub fn find(name: &str) -> Option<Found> {
    let what = name.strip_prefix("ds_")?;
    let run: Run = match what {
        "nop" => |_, _| {},
        "bpermute_b32" => pull,
        "permute_b32" => push,
        "swizzle_b32" => swizzle,
        _ => return two(what),
    };
    Some(Found::run(run))
}

/// The lane that a byte address of the crossbar means.
fn addressed(w: &Wave<'_>, i: &Inst, address: u32) -> usize {
    w.lane(address.wrapping_add(i.offset as u32) >> 2)
}

fn pull(w: &mut Wave<'_>, i: &Inst) {
    let (addresses, values, exec) = (w.source(i, 1), w.source(i, 2), w.exec());
    let from = |l: usize| {
        let source = addressed(w, i, addresses[l]);
        if exec >> source & 1 == 1 { values[source] } else { 0 }
    };
    let pulled = each(from);
    w.result(i, &pulled);
}

fn push(w: &mut Wave<'_>, i: &Inst) {
    let (addresses, values) = (w.source(i, 1), w.source(i, 2));
    let mut pushed = [0; 64];
    for l in lanes_of(w.exec()) {
        pushed[addressed(w, i, addresses[l])] = values[l];
    }
    w.result(i, &pushed);
}

/// A fixed exchange: any of four neighbours, or and, or and xor of the lane's index among 32.
fn swizzle(w: &mut Wave<'_>, i: &Inst) {
    let pattern = (i.bits & 0xffff) as usize;
    let (values, exec) = (w.source(i, 1), w.exec());
    let from = |l: usize| {
        let source = if pattern & 0x8000 != 0 {
            (l & !3) + (pattern >> (2 * (l & 3)) & 3)
        } else {
            (l & 32) + ((l & 31 & pattern | pattern >> 5 & 31) ^ (pattern >> 10 & 31))
        };
        if exec >> source & 1 == 1 { values[source] } else { 0 }
    };
    w.result(i, &each(from));
}

/// Two reads or two writes in one instruction.
fn two(what: &str) -> Option<Found> {
    let (run, rest): (Run, &str) = if let Some(rest) = what.strip_prefix("read2").or(what.strip_prefix("load_2addr")) {
        (|w, i| two_accesses(w, i, false), rest)
    } else {
        (|w, i| two_accesses(w, i, true), what.strip_prefix("write2").or(what.strip_prefix("store_2addr"))?)
    };
    let (apart, rest) = match rest.strip_prefix("st64").or(rest.strip_prefix("_stride64")) {
        Some(rest) => (64, rest),
        None => (1, rest),
    };
    let words = match rest {
        "_b32" => 1,
        "_b64" => 2,
        _ => return None,
    };
    Some(Found::with(run, Detail::Two { words, unit: apart * 4 * words as u64 }))
}

fn two_accesses(w: &mut Wave<'_>, i: &Inst, write: bool) {
    let Detail::Two { words, unit } = i.detail else { return };
    let (base, exec) = (w.source(i, usize::from(!write)), w.exec());
    for (which, offset) in i.offsets.into_iter().enumerate() {
        let operand = i.operands[if write { 1 + which } else { 0 }];
        let Operand::Vector(register) = operand else { return };
        let register = register as usize + if write { 0 } else { which * words };
        let addresses = each(|l| u64::from(base[l]) + offset as u64 * unit);
        let Some(places) = w.places(Space::Lds, &addresses, exec, 4 * words as u64) else { return };
        for l in lanes_of(exec) {
            for k in 0..words {
                // SAFETY: `places` found room for all words.
                unsafe {
                    let place = places[l].cast::<u32>().add(k);
                    if write {
                        place.write_unaligned(w.vectors[register + k][l]);
                    } else {
                        w.vectors[register + k][l] = place.read_unaligned();
                    }
                }
            }
        }
    }
}
