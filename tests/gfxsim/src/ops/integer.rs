//! Moves, bits and integers of the vector unit.

use crate::{
    inst::{Detail, Inst, Operand, Run},
    vector::{each, mask},
    wave::Wave,
};

pub fn find(name: &str) -> Option<Run> {
    moves(name).or_else(|| bits(name)).or_else(|| wide(name)).or_else(|| arithmetic(name)).or_else(|| carries(name))
}

fn moves(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_nop" => |_, _| {},
        "v_mov_b32"
        | "v_accvgpr_read_b32"
        | "v_accvgpr_write_b32"
        | "v_accvgpr_mov_b32"
        | "v_accvgpr_read"
        | "v_accvgpr_write" => |w, i| w.int1(i, |a| a),
        "v_mov_b64" => |w, i| {
            let a = w.source64(i, 1);
            w.result64(i, &a);
        },
        "v_swap_b32" => |w, i| {
            let (a, b) = (w.source(i, 0), w.source(i, 1));
            w.write(i, 0, 0, &b);
            w.write(i, 1, 0, &a);
        },
        "v_cndmask_b32" => |w, i| {
            let condition = w.lane_mask(if i.count > 3 { i.operands[3] } else { crate::inst::VCC });
            let (a, b) = (signed(w, i, 1), signed(w, i, 2));
            w.result(i, &each(|l| if condition >> l & 1 == 1 { b[l] } else { a[l] }));
        },
        "v_movrels_b32" => |w, i| {
            let mut moved = i.clone();
            moved.operands[1] = displaced(w, i.operands[1]);
            w.int1(&moved, |a| a);
        },
        "v_movreld_b32" => |w, i| {
            let mut moved = i.clone();
            moved.operands[0] = displaced(w, i.operands[0]);
            w.int1(&moved, |a| a);
        },
        _ => return None,
    };
    Some(run)
}

/// A source with its sign modifiers, which this one instruction on bits has.
fn signed(w: &Wave<'_>, i: &Inst, k: usize) -> crate::wave::Lanes {
    if i.modified { w.float(i, k).map(f32::to_bits) } else { w.source(i, k) }
}

/// The register that lies so many behind as M0 says.
fn displaced(w: &Wave<'_>, operand: Operand) -> Operand {
    match operand {
        Operand::Vector(r) => Operand::Vector(r + w.scalars[crate::inst::scalar::M0 as usize] as u16),
        other => other,
    }
}

/// The permutation of 8 bytes that `v_perm_b32` makes.
fn permuted(a: u32, b: u32, choice: u32) -> u32 {
    let bytes = u64::from(a) << 32 | u64::from(b);
    let byte = |c: u32| match c {
        0..=7 => (bytes >> (8 * c) & 255) as u32,
        8..=11 => 255 * (bytes >> (16 * (c - 8) + 15) & 1) as u32,
        12 => 0,
        _ => 255,
    };
    (0..4).fold(0, |out, k| out | byte(choice >> (8 * k) & 255) << (8 * k))
}

/// Bits of the result for each combination of three operands' bits.
fn by_table(table: u8, a: u32, b: u32, c: u32) -> u32 {
    (0..8).filter(|row| table >> row & 1 == 1).fold(0, |out, row| {
        let pick = |bit: u8, v: u32| if row & bit != 0 { v } else { !v };
        out | pick(4, a) & pick(2, b) & pick(1, c)
    })
}

fn ones(count: u32) -> u32 {
    ((1u64 << count) - 1) as u32
}

fn signed_field(a: u32, from: u32, count: u32) -> u32 {
    if count == 0 { 0 } else { ((a >> from << (32 - count)) as i32 >> (32 - count)) as u32 }
}

fn funnel(a: u32, b: u32, shift: u32) -> u32 {
    ((u64::from(a) << 32 | u64::from(b)) >> shift) as u32
}

fn bits(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_not_b32" => |w, i| w.int1(i, |a| !a),
        "v_bfrev_b32" => |w, i| w.int1(i, u32::reverse_bits),
        "v_ffbh_u32" | "v_clz_i32_u32" => |w, i| w.int1(i, |a| if a == 0 { !0 } else { a.leading_zeros() }),
        "v_ffbl_b32" | "v_ctz_i32_b32" => |w, i| w.int1(i, |a| if a == 0 { !0 } else { a.trailing_zeros() }),
        "v_and_b32" => |w, i| w.int2(i, |a, b| a & b),
        "v_or_b32" => |w, i| w.int2(i, |a, b| a | b),
        "v_xor_b32" => |w, i| w.int2(i, |a, b| a ^ b),
        "v_xnor_b32" => |w, i| w.int2(i, |a, b| !(a ^ b)),
        "v_and_or_b32" => |w, i| w.int3(i, |a, b, c| a & b | c),
        "v_or3_b32" => |w, i| w.int3(i, |a, b, c| a | b | c),
        "v_xor3_b32" => |w, i| w.int3(i, |a, b, c| a ^ b ^ c),
        "v_lshlrev_b32" => |w, i| w.int2(i, |a, b| b << (a & 31)),
        "v_lshrrev_b32" => |w, i| w.int2(i, |a, b| b >> (a & 31)),
        "v_ashrrev_i32" => |w, i| w.int2(i, |a, b| (b as i32 >> (a & 31)) as u32),
        "v_lshl_or_b32" => |w, i| w.int3(i, |a, b, c| a << (b & 31) | c),
        "v_bfe_u32" => |w, i| w.int3(i, |a, b, c| a >> (b & 31) & ones(c & 31)),
        "v_bfe_i32" => |w, i| w.int3(i, |a, b, c| signed_field(a, b & 31, c & 31)),
        "v_bfi_b32" => |w, i| w.int3(i, |a, b, c| a & b | !a & c),
        "v_bfm_b32" => |w, i| w.int2(i, |a, b| ones(a & 31) << (b & 31)),
        "v_bcnt_u32_b32" => |w, i| w.int2(i, |a, b| a.count_ones().wrapping_add(b)),
        "v_perm_b32" => |w, i| w.int3(i, permuted),
        "v_alignbit_b32" => |w, i| w.int3(i, |a, b, c| funnel(a, b, c & 31)),
        "v_alignbyte_b32" => |w, i| w.int3(i, |a, b, c| funnel(a, b, 8 * (c & 3))),
        "v_bitop3_b32" => |w, i| {
            let Detail::Table(table) = i.detail else { return };
            w.int3(i, |a, b, c| by_table(table, a, b, c));
        },
        _ => return None,
    };
    Some(run)
}

fn wide(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_lshlrev_b64" => |w, i| shift(w, i, |v, count| v << count),
        "v_lshrrev_b64" => |w, i| shift(w, i, |v, count| v >> count),
        "v_ashrrev_i64" => |w, i| shift(w, i, |v, count| (v as i64 >> count) as u64),
        "v_lshl_add_u64" => |w, i| {
            let (a, b, c) = (w.source64(i, 1), w.source(i, 2), w.source64(i, 3));
            w.result64(i, &each(|l| (a[l] << (b[l] & 7)).wrapping_add(c[l])));
        },
        "v_mad_u64_u32" | "v_mad_co_u64_u32" => |w, i| {
            let (a, b, c) = (w.source(i, 2), w.source(i, 3), w.source64(i, 4));
            let sum = |l: usize| (u64::from(a[l]) * u64::from(b[l])).overflowing_add(c[l]);
            w.result64(i, &each(|l| sum(l).0));
            let carry = mask(|l| sum(l).1) & w.mask;
            w.set_lane_mask(i.operands[1], carry);
        },
        "v_mad_i64_i32" | "v_mad_co_i64_i32" => |w, i| {
            let (a, b, c) = (w.source(i, 2), w.source(i, 3), w.source64(i, 4));
            let sum = |l: usize| (i64::from(a[l] as i32) * i64::from(b[l] as i32)).overflowing_add(c[l] as i64);
            w.result64(i, &each(|l| sum(l).0 as u64));
            let overflow = mask(|l| sum(l).1) & w.mask;
            w.set_lane_mask(i.operands[1], overflow);
        },
        _ => return None,
    };
    Some(run)
}

#[inline(always)]
fn shift(w: &mut Wave<'_>, i: &Inst, f: impl Fn(u64, u32) -> u64) {
    let (count, value) = (w.source(i, 1), w.source64(i, 2));
    w.result64(i, &each(|l| f(value[l], count[l] & 63)));
}

/// The lower 24 bits with their sign.
fn signed24(v: u32) -> i32 {
    (v << 8) as i32 >> 8
}

fn middle<T: Ord>(a: T, b: T, c: T) -> T {
    let mut three = [a, b, c];
    three.sort();
    let [_, middle, _] = three;
    middle
}

const U24: u32 = 0xff_ffff;

fn arithmetic(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_add_u32" | "v_add_nc_u32" => |w, i| w.int2(i, u32::wrapping_add),
        "v_sub_u32" | "v_sub_nc_u32" => |w, i| w.int2(i, u32::wrapping_sub),
        "v_subrev_u32" | "v_subrev_nc_u32" => |w, i| w.int2(i, |a, b| b.wrapping_sub(a)),
        "v_add3_u32" => |w, i| w.int3(i, |a, b, c| a.wrapping_add(b).wrapping_add(c)),
        "v_lshl_add_u32" => |w, i| w.int3(i, |a, b, c| (a << (b & 31)).wrapping_add(c)),
        "v_add_lshl_u32" => |w, i| w.int3(i, |a, b, c| a.wrapping_add(b) << (c & 31)),
        "v_xad_u32" => |w, i| w.int3(i, |a, b, c| (a ^ b).wrapping_add(c)),
        "v_sad_u32" => |w, i| w.int3(i, |a, b, c| a.abs_diff(b).wrapping_add(c)),
        "v_mul_lo_u32" => |w, i| w.int2(i, u32::wrapping_mul),
        "v_mul_hi_u32" => |w, i| w.int2(i, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        "v_mul_hi_i32" => |w, i| w.int2(i, |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32),
        "v_mul_u32_u24" => |w, i| w.int2(i, |a, b| (a & U24).wrapping_mul(b & U24)),
        "v_mul_hi_u32_u24" => |w, i| w.int2(i, |a, b| ((u64::from(a & U24) * u64::from(b & U24)) >> 32) as u32),
        "v_mul_i32_i24" => |w, i| w.int2(i, |a, b| signed24(a).wrapping_mul(signed24(b)) as u32),
        "v_mad_u32_u24" => |w, i| w.int3(i, |a, b, c| (a & U24).wrapping_mul(b & U24).wrapping_add(c)),
        "v_mad_i32_i24" => |w, i| w.int3(i, |a, b, c| (signed24(a).wrapping_mul(signed24(b)) as u32).wrapping_add(c)),
        "v_min_u32" => |w, i| w.int2(i, u32::min),
        "v_max_u32" => |w, i| w.int2(i, u32::max),
        "v_min_i32" => |w, i| w.int2(i, |a, b| (a as i32).min(b as i32) as u32),
        "v_max_i32" => |w, i| w.int2(i, |a, b| (a as i32).max(b as i32) as u32),
        "v_min3_u32" => |w, i| w.int3(i, |a, b, c| a.min(b).min(c)),
        "v_max3_u32" => |w, i| w.int3(i, |a, b, c| a.max(b).max(c)),
        "v_min3_i32" => |w, i| w.int3(i, |a, b, c| (a as i32).min(b as i32).min(c as i32) as u32),
        "v_max3_i32" => |w, i| w.int3(i, |a, b, c| (a as i32).max(b as i32).max(c as i32) as u32),
        "v_med3_u32" => |w, i| w.int3(i, middle),
        "v_med3_i32" => |w, i| w.int3(i, |a, b, c| middle(a as i32, b as i32, c as i32) as u32),
        _ => return None,
    };
    Some(run)
}

fn carries(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_add_co_u32" | "v_addc_co_u32" | "v_add_co_ci_u32" => |w, i| carry(w, i, added),
        "v_sub_co_u32" | "v_subb_co_u32" | "v_sub_co_ci_u32" => |w, i| carry(w, i, taken),
        "v_subrev_co_u32" | "v_subbrev_co_u32" | "v_subrev_co_ci_u32" => |w, i| carry(w, i, |a, b, c| taken(b, a, c)),
        _ => return None,
    };
    Some(run)
}

fn added(a: u32, b: u32, carry: u64) -> u64 {
    u64::from(a) + u64::from(b) + carry
}

fn taken(a: u32, b: u32, borrow: u64) -> u64 {
    u64::from(a).wrapping_sub(u64::from(b)).wrapping_sub(borrow)
}

/// Result, carry out, two operands and maybe a carry in; what goes beyond 32 bits is carried.
#[inline(always)]
fn carry(w: &mut Wave<'_>, i: &Inst, f: impl Fn(u32, u32, u64) -> u64) {
    let (a, b) = (w.source(i, 2), w.source(i, 3));
    let carry = if i.count > 4 { w.lane_mask(i.operands[4]) } else { 0 };
    let sum: [u64; 64] = each(|l| f(a[l], b[l], carry >> l & 1));
    let out = mask(|l| sum[l] >> 32 != 0) & w.mask;
    w.result(i, &each(|l| sum[l] as u32));
    w.set_lane_mask(i.operands[1], out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_bits_and_tables() {
        assert_eq!(permuted(0x8877_6655, 0x4433_2211, 0x0106_0205), 0x2277_3366);
        assert_eq!(permuted(0x8000_0000, 0, 0x0d0c_0b08), 0xff00_ff00);
        assert_eq!(by_table(0b1000_0000, 0xf0, 0xcc, 0xaa), 0x80);
        assert_eq!(by_table(0b1110_1000, 0b11, 0b01, 0b10), 0b11, "the majority");
        assert_eq!((signed_field(0xf0, 4, 4), signed_field(0x70, 4, 4), signed_field(1, 0, 0)), (!0, 7, 0));
        assert_eq!((signed24(0xff_ffff), middle(3, 1, 2)), (-1, 2));
    }
}
