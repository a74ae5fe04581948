//! Loads and stores.

use super::Found;
use crate::{
    inst::{Access, Detail, Inst, Operand, Space, scalar},
    memory::lanes_of,
    traffic::Kind,
    wave::Wave,
};

pub fn find(name: &str) -> Option<Found> {
    if let Some(size) = name.strip_prefix("s_load_") {
        let words = match size {
            "dword" | "b32" => 1,
            "dwordx2" | "b64" => 2,
            "b96" => 3,
            "dwordx4" | "b128" => 4,
            "dwordx8" | "b256" => 8,
            "dwordx16" | "b512" => 16,
            _ => return None,
        };
        return Some(Found::with(load_scalars, Detail::Words(words)));
    }
    // Write-backs and invalidations of caches that are not modelled.
    if name.starts_with("buffer_") && (name.contains("inv") || name.contains("wb")) {
        return Some(Found::run(|_, _| {}));
    }
    let (_, what) = name.split_once('_')?;
    if let Some(size) = what.strip_prefix("load_lds_") {
        return Some(Found::with(load_to_lds, Detail::Access(access(size)?)));
    }
    if let Some(size) = what.strip_prefix("load_").or_else(|| what.strip_prefix("read_")) {
        return Some(Found::with(load, Detail::Access(access(size)?)));
    }
    let size = what.strip_prefix("store_").or_else(|| what.strip_prefix("write_"))?;
    Some(Found::with(store, Detail::Access(access(size)?)))
}

/// What the end of a name says.
fn access(size: &str) -> Option<Access> {
    let words = |registers| Access { bytes: 4, registers, signed: false, half: false, high: false };
    let narrow = |bytes, signed, half, high| Access { bytes, registers: 1, signed, half, high };
    Some(match size {
        "dword" | "b32" => words(1),
        "dwordx2" | "b64" => words(2),
        "dwordx3" | "b96" => words(3),
        "dwordx4" | "b128" => words(4),
        "ubyte" | "u8" | "byte" | "b8" => narrow(1, false, false, false),
        "sbyte" | "i8" => narrow(1, true, false, false),
        "ushort" | "u16" | "short" | "b16" => narrow(2, false, false, false),
        "sshort" | "i16" => narrow(2, true, false, false),
        "short_d16" | "d16_b16" | "u16_d16" => narrow(2, false, true, false),
        "short_d16_hi" | "d16_hi_b16" | "u16_d16_hi" | "b16_d16_hi" => narrow(2, false, true, true),
        "ubyte_d16" | "d16_u8" | "u8_d16" => narrow(1, false, true, false),
        "ubyte_d16_hi" | "d16_hi_u8" | "u8_d16_hi" | "byte_d16_hi" | "d16_hi_b8" => narrow(1, false, true, true),
        "sbyte_d16" | "d16_i8" => narrow(1, true, true, false),
        "sbyte_d16_hi" | "d16_hi_i8" => narrow(1, true, true, true),
        _ => return None,
    })
}

/// The lanes' addresses: operand `vector` holds their part, operand `shared`, where there is one, what is the same for all.
pub fn addresses(w: &Wave<'_>, i: &Inst, vector: usize, shared: Option<usize>) -> [u64; 64] {
    let offset = i.offset as u64;
    let shared = shared.map_or(Operand::None, |k| i.operands[k]);
    match i.space {
        Space::Lds => w.source(i, vector).map(|a| u64::from(a.wrapping_add(offset as u32))),
        Space::Scratch => {
            let base = w.scalar(shared).wrapping_add(offset as u32);
            let each = if i.operands[vector] == Operand::None { [0; 64] } else { w.source(i, vector) };
            each.map(|a| u64::from(a.wrapping_add(base)))
        }
        _ if matches!(shared, Operand::None | Operand::Scalar(scalar::NULL)) => {
            w.source64(i, vector).map(|a| a.wrapping_add(offset))
        }
        _ => {
            let base = w.scalar64(shared).wrapping_add(offset);
            w.source(i, vector).map(|a| base.wrapping_add(a.into()))
        }
    }
}

/// Counts what a wave asks global memory for.
pub fn count(w: &mut Wave<'_>, i: &Inst, kind: Kind, addresses: &[u64; 64], size: u64) {
    if matches!(i.space, Space::Global | Space::Flat) {
        let mask = w.exec();
        w.counters.access(kind, addresses, mask, size);
        touch(w, kind, addresses, mask, size);
    }
}

fn touch(w: &mut Wave<'_>, kind: Kind, addresses: &[u64; 64], mask: u64, size: u64) {
    if let Some(touched) = &mut w.touched {
        touched.access(kind, addresses, mask, size);
    }
}

/// Operand `k`, if there is one.
fn optional(i: &Inst, k: usize) -> Option<usize> {
    (i.count > k).then_some(k)
}

fn load(w: &mut Wave<'_>, i: &Inst) {
    let (Detail::Access(access), Operand::Vector(d)) = (i.detail, i.operands[0]) else { return };
    let from = addresses(w, i, 1, optional(i, 2));
    count(w, i, Kind::Read, &from, access.size());
    let exec = w.exec();
    let Some(places) = w.places(i.space, &from, exec, access.size()) else { return };
    let d = d as usize;
    let high = access.high || i.modifiers[0].high;
    for l in lanes_of(exec) {
        let place = places[l];
        if access.bytes == 4 {
            for r in 0..access.registers as usize {
                // SAFETY: `places` found room for all registers of the access; device memory need not be aligned.
                w.vectors[d + r][l] = unsafe { place.cast::<u32>().add(r).read_unaligned() };
            }
            continue;
        }
        // SAFETY: `places` found room for the one or two bytes of the access.
        let value = unsafe {
            match (access.bytes, access.signed) {
                (1, false) => u32::from(place.read()),
                (1, true) => place.cast::<i8>().read() as u32,
                (_, false) => u32::from(place.cast::<u16>().read_unaligned()),
                (_, true) => place.cast::<i16>().read_unaligned() as u32,
            }
        };
        let old = w.vectors[d][l];
        w.vectors[d][l] = match (access.half, high) {
            (false, _) => value,
            (true, false) => old & 0xffff_0000 | value & 0xffff,
            (true, true) => old & 0xffff | value << 16,
        };
    }
}

fn store(w: &mut Wave<'_>, i: &Inst) {
    let (Detail::Access(access), Operand::Vector(d)) = (i.detail, i.operands[1]) else { return };
    let to = addresses(w, i, 0, optional(i, 2));
    count(w, i, Kind::Write, &to, access.size());
    let exec = w.exec();
    let Some(places) = w.places(i.space, &to, exec, access.size()) else { return };
    let d = d as usize;
    let high = access.high || i.modifiers[1].high;
    for l in lanes_of(exec) {
        let place = places[l];
        let value = if high { w.vectors[d][l] >> 16 } else { w.vectors[d][l] };
        // SAFETY: `places` found room for all bytes of the access; device memory need not be aligned.
        unsafe {
            match access.bytes {
                1 => place.write(value as u8),
                2 => place.cast::<u16>().write_unaligned(value as u16),
                _ => {
                    for r in 0..access.registers as usize {
                        place.cast::<u32>().add(r).write_unaligned(w.vectors[d + r][l]);
                    }
                }
            }
        }
    }
}

/// From global memory to the workgroup's, without a register: lane after lane from M0 on.
fn load_to_lds(w: &mut Wave<'_>, i: &Inst) {
    let Detail::Access(access) = i.detail else { return };
    let size = access.size();
    let from = addresses(w, i, 0, optional(i, 1));
    count(w, i, Kind::Read, &from, size);
    let exec = w.exec();
    let base = u64::from(w.scalars[scalar::M0 as usize]).wrapping_add_signed(i.offset);
    let to = std::array::from_fn(|l| base.wrapping_add(size * l as u64) & 0xffff_ffff);
    let Some(sources) = w.places(Space::Global, &from, exec, size) else { return };
    let Some(targets) = w.places(Space::Lds, &to, exec, size) else { return };
    for l in lanes_of(exec) {
        // SAFETY: `places` found room for `size` bytes on both sides, which are different memories.
        unsafe { sources[l].copy_to_nonoverlapping(targets[l], size as usize) };
    }
}

fn load_scalars(w: &mut Wave<'_>, i: &Inst) {
    let (Detail::Words(words), Operand::Scalar(d)) = (i.detail, i.operands[0]) else { return };
    let offset = match i.operands[2] {
        Operand::Int(v) => v,
        other => w.scalar(other).into(),
    };
    let address = w.scalar64(i.operands[1]).wrapping_add_signed(offset + i.offset) & !3;
    let Some(place) = w.global(address, 4 * u64::from(words)) else { return };
    w.counters.scalar_bytes += 4 * u64::from(words);
    touch(w, Kind::Read, &[address; 64], 1, 4 * u64::from(words));
    for r in 0..words as usize {
        // SAFETY: `global` found room for all words.
        w.scalars[d as usize + r] = unsafe { place.cast::<u32>().add(r).read_unaligned() };
    }
}
