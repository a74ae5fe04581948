//! Arithmetic of the scalar unit.

use crate::inst::Run;

fn truth(value: u32) -> (u32, Option<bool>) {
    (value, Some(value != 0))
}

fn truth64(value: u64) -> (u64, Option<bool>) {
    (value, Some(value != 0))
}

/// The 16-bit number in the instruction.
fn short(value: u32) -> u32 {
    value as u16 as i16 as u32
}

/// Bits `from` and how many, as the bit-field instructions pack them.
fn field(spec: u32, width: u32) -> (u32, u32) {
    (spec & (width - 1), (spec >> 16 & 127).min(width))
}

/// So many ones from bit 0 on.
fn ones(count: u32) -> u64 {
    1u64.checked_shl(count).map_or(u64::MAX, |bit| bit - 1)
}

fn leading(value: u64, width: u32) -> u32 {
    if value == 0 { u32::MAX } else { value.leading_zeros() - (64 - width) }
}

fn trailing(value: u64) -> u32 {
    if value == 0 { u32::MAX } else { value.trailing_zeros() }
}

pub fn find(name: &str) -> Option<Run> {
    moves(name).or_else(|| bits(name)).or_else(|| arithmetic(name)).or_else(|| tests(name))
}

fn moves(name: &str) -> Option<Run> {
    let run: Run = match name {
        "s_mov_b32" => |w, i| w.unary(i, |a| (a, None)),
        "s_movk_i32" => |w, i| w.unary(i, |a| (short(a), None)),
        "s_mov_b64" => |w, i| w.unary64(i, |a| (a, None)),
        "s_cmov_b32" => |w, i| {
            if w.scc {
                w.unary(i, |a| (a, None));
            }
        },
        "s_cmov_b64" => |w, i| {
            if w.scc {
                w.unary64(i, |a| (a, None));
            }
        },
        "s_cselect_b32" => |w, i| {
            let chosen = w.scalar(i.operands[if w.scc { 1 } else { 2 }]);
            w.set_scalar(i.operands[0], chosen);
        },
        "s_cselect_b64" => |w, i| {
            let chosen = w.scalar64(i.operands[if w.scc { 1 } else { 2 }]);
            w.set_scalar64(i.operands[0], chosen);
        },
        "s_pack_ll_b32_b16" => |w, i| w.binary(i, |a, b| (a & 0xffff | b << 16, None)),
        "s_pack_lh_b32_b16" => |w, i| w.binary(i, |a, b| (a & 0xffff | b & 0xffff_0000, None)),
        "s_pack_hl_b32_b16" => |w, i| w.binary(i, |a, b| (a >> 16 | b << 16, None)),
        "s_pack_hh_b32_b16" => |w, i| w.binary(i, |a, b| (a >> 16 | b & 0xffff_0000, None)),
        "s_sext_i32_i16" => |w, i| w.unary(i, |a| (short(a), None)),
        "s_sext_i32_i8" => |w, i| w.unary(i, |a| (a as u8 as i8 as u32, None)),
        _ => return None,
    };
    Some(run)
}

fn bits(name: &str) -> Option<Run> {
    let run: Run = match name {
        "s_not_b32" => |w, i| w.unary(i, |a| truth(!a)),
        "s_not_b64" => |w, i| w.unary64(i, |a| truth64(!a)),
        "s_brev_b32" => |w, i| w.unary(i, |a| (a.reverse_bits(), None)),
        "s_brev_b64" => |w, i| w.unary64(i, |a| (a.reverse_bits(), None)),
        "s_bcnt1_i32_b32" => |w, i| w.unary(i, |a| truth(a.count_ones())),
        "s_bcnt1_i32_b64" => |w, i| {
            let count = w.scalar64(i.operands[1]).count_ones();
            w.set_scalar(i.operands[0], count);
            w.scc = count != 0;
        },
        "s_ff1_i32_b32" | "s_ctz_i32_b32" => |w, i| w.unary(i, |a| (trailing(a.into()), None)),
        "s_ff1_i32_b64" | "s_ctz_i32_b64" => |w, i| w.set_scalar(i.operands[0], trailing(w.scalar64(i.operands[1]))),
        "s_flbit_i32_b32" | "s_clz_i32_u32" => |w, i| w.unary(i, |a| (leading(a.into(), 32), None)),
        "s_flbit_i32_b64" | "s_clz_i32_u64" => {
            |w, i| w.set_scalar(i.operands[0], leading(w.scalar64(i.operands[1]), 64))
        }
        "s_and_b32" => |w, i| w.binary(i, |a, b| truth(a & b)),
        "s_or_b32" => |w, i| w.binary(i, |a, b| truth(a | b)),
        "s_xor_b32" => |w, i| w.binary(i, |a, b| truth(a ^ b)),
        "s_andn2_b32" | "s_and_not1_b32" => |w, i| w.binary(i, |a, b| truth(a & !b)),
        "s_orn2_b32" | "s_or_not1_b32" => |w, i| w.binary(i, |a, b| truth(a | !b)),
        "s_nand_b32" => |w, i| w.binary(i, |a, b| truth(!(a & b))),
        "s_nor_b32" => |w, i| w.binary(i, |a, b| truth(!(a | b))),
        "s_xnor_b32" => |w, i| w.binary(i, |a, b| truth(!(a ^ b))),
        "s_and_b64" => |w, i| w.binary64(i, |a, b| truth64(a & b)),
        "s_or_b64" => |w, i| w.binary64(i, |a, b| truth64(a | b)),
        "s_xor_b64" => |w, i| w.binary64(i, |a, b| truth64(a ^ b)),
        "s_andn2_b64" | "s_and_not1_b64" => |w, i| w.binary64(i, |a, b| truth64(a & !b)),
        "s_orn2_b64" | "s_or_not1_b64" => |w, i| w.binary64(i, |a, b| truth64(a | !b)),
        "s_nand_b64" => |w, i| w.binary64(i, |a, b| truth64(!(a & b))),
        "s_nor_b64" => |w, i| w.binary64(i, |a, b| truth64(!(a | b))),
        "s_xnor_b64" => |w, i| w.binary64(i, |a, b| truth64(!(a ^ b))),
        "s_lshl_b32" => |w, i| w.binary(i, |a, b| truth(a << (b & 31))),
        "s_lshr_b32" => |w, i| w.binary(i, |a, b| truth(a >> (b & 31))),
        "s_ashr_i32" => |w, i| w.binary(i, |a, b| truth((a as i32 >> (b & 31)) as u32)),
        "s_lshl_b64" => |w, i| {
            let count = w.scalar(i.operands[2]) & 63;
            w.unary64(i, |a| truth64(a << count));
        },
        "s_lshr_b64" => |w, i| {
            let count = w.scalar(i.operands[2]) & 63;
            w.unary64(i, |a| truth64(a >> count));
        },
        "s_ashr_i64" => |w, i| {
            let count = w.scalar(i.operands[2]) & 63;
            w.unary64(i, |a| truth64((a as i64 >> count) as u64));
        },
        "s_bfe_u32" => |w, i| {
            w.binary(i, |a, b| {
                let (from, count) = field(b, 32);
                truth(a >> from & ones(count) as u32)
            });
        },
        "s_bfe_i32" => |w, i| {
            w.binary(i, |a, b| {
                let (from, count) = field(b, 32);
                let unused = 32 - count;
                truth(if count == 0 { 0 } else { ((a >> from << unused) as i32 >> unused) as u32 })
            });
        },
        "s_bfe_u64" => |w, i| {
            let (from, count) = field(w.scalar(i.operands[2]), 64);
            w.unary64(i, |a| truth64(a >> from & ones(count)));
        },
        "s_bfe_i64" => |w, i| {
            let (from, count) = field(w.scalar(i.operands[2]), 64);
            let unused = 64 - count;
            w.unary64(i, |a| truth64(if count == 0 { 0 } else { ((a >> from << unused) as i64 >> unused) as u64 }));
        },
        "s_bfm_b32" => |w, i| w.binary(i, |a, b| ((ones(a & 31) as u32) << (b & 31), None)),
        "s_bfm_b64" => |w, i| {
            let (count, from) = (w.scalar(i.operands[1]) & 63, w.scalar(i.operands[2]) & 63);
            w.set_scalar64(i.operands[0], ones(count) << from);
        },
        "s_bitset0_b32" => |w, i| {
            let (old, bit) = (w.scalar(i.operands[0]), w.scalar(i.operands[1]) & 31);
            w.set_scalar(i.operands[0], old & !(1 << bit));
        },
        "s_bitset1_b32" => |w, i| {
            let (old, bit) = (w.scalar(i.operands[0]), w.scalar(i.operands[1]) & 31);
            w.set_scalar(i.operands[0], old | 1 << bit);
        },
        "s_bitset1_b64" => |w, i| {
            let (old, bit) = (w.scalar64(i.operands[0]), w.scalar(i.operands[1]) & 63);
            w.set_scalar64(i.operands[0], old | 1 << bit);
        },
        _ => return None,
    };
    Some(run)
}

fn carrying(a: u32, b: u32, carry: bool) -> (u32, Option<bool>) {
    let sum = u64::from(a) + u64::from(b) + u64::from(carry);
    (sum as u32, Some(sum >> 32 != 0))
}

fn borrowing(a: u32, b: u32, borrow: bool) -> (u32, Option<bool>) {
    let difference = u64::from(a).wrapping_sub(u64::from(b)).wrapping_sub(borrow.into());
    (difference as u32, Some(difference >> 32 != 0))
}

fn overflowing((value, overflow): (i32, bool)) -> (u32, Option<bool>) {
    (value as u32, Some(overflow))
}

fn shifted_sum(a: u32, b: u32, shift: u32) -> (u32, Option<bool>) {
    let sum = (u64::from(a) << shift) + u64::from(b);
    (sum as u32, Some(sum >> 32 != 0))
}

/// The first where the condition, which says so, holds.
fn pick(a: u32, b: u32, first: bool) -> (u32, Option<bool>) {
    (if first { a } else { b }, Some(first))
}

fn arithmetic(name: &str) -> Option<Run> {
    let run: Run = match name {
        "s_add_u32" => |w, i| w.binary(i, |a, b| carrying(a, b, false)),
        "s_sub_u32" => |w, i| w.binary(i, |a, b| borrowing(a, b, false)),
        "s_addc_u32" => |w, i| {
            let carry = w.scc;
            w.binary(i, |a, b| carrying(a, b, carry));
        },
        "s_subb_u32" => |w, i| {
            let borrow = w.scc;
            w.binary(i, |a, b| borrowing(a, b, borrow));
        },
        "s_add_i32" => |w, i| w.binary(i, |a, b| overflowing((a as i32).overflowing_add(b as i32))),
        "s_sub_i32" => |w, i| w.binary(i, |a, b| overflowing((a as i32).overflowing_sub(b as i32))),
        "s_abs_i32" => |w, i| w.unary(i, |a| truth((a as i32).unsigned_abs())),
        "s_add_u64" | "s_add_nc_u64" => |w, i| w.binary64(i, |a, b| (a.wrapping_add(b), None)),
        "s_sub_u64" | "s_sub_nc_u64" => |w, i| w.binary64(i, |a, b| (a.wrapping_sub(b), None)),
        "s_addk_i32" | "s_addk_co_i32" => |w, i| {
            let (a, b) = (w.scalar(i.operands[0]) as i32, short(w.scalar(i.operands[1])) as i32);
            let (sum, overflow) = a.overflowing_add(b);
            w.set_scalar(i.operands[0], sum as u32);
            w.scc = overflow;
        },
        "s_mulk_i32" => |w, i| {
            let product = w.scalar(i.operands[0]).wrapping_mul(short(w.scalar(i.operands[1])));
            w.set_scalar(i.operands[0], product);
        },
        "s_mul_i32" => |w, i| w.binary(i, |a, b| (a.wrapping_mul(b), None)),
        "s_mul_hi_u32" => |w, i| w.binary(i, |a, b| (((u64::from(a) * u64::from(b)) >> 32) as u32, None)),
        "s_mul_hi_i32" => |w, i| w.binary(i, |a, b| (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32, None)),
        "s_mul_u64" => |w, i| w.binary64(i, |a, b| (a.wrapping_mul(b), None)),
        "s_min_i32" => |w, i| w.binary(i, |a, b| pick(a, b, (a as i32) < b as i32)),
        "s_max_i32" => |w, i| w.binary(i, |a, b| pick(a, b, a as i32 > b as i32)),
        "s_min_u32" => |w, i| w.binary(i, |a, b| pick(a, b, a < b)),
        "s_max_u32" => |w, i| w.binary(i, |a, b| pick(a, b, a > b)),
        "s_lshl1_add_u32" => |w, i| w.binary(i, |a, b| shifted_sum(a, b, 1)),
        "s_lshl2_add_u32" => |w, i| w.binary(i, |a, b| shifted_sum(a, b, 2)),
        "s_lshl3_add_u32" => |w, i| w.binary(i, |a, b| shifted_sum(a, b, 3)),
        "s_lshl4_add_u32" => |w, i| w.binary(i, |a, b| shifted_sum(a, b, 4)),
        _ => return None,
    };
    Some(run)
}

fn tests(name: &str) -> Option<Run> {
    let run: Run = match name {
        "s_cmp_eq_u32" | "s_cmp_eq_i32" => |w, i| w.test(i, |a, b| a == b),
        "s_cmp_lg_u32" | "s_cmp_lg_i32" => |w, i| w.test(i, |a, b| a != b),
        "s_cmp_lt_u32" => |w, i| w.test(i, |a, b| a < b),
        "s_cmp_le_u32" => |w, i| w.test(i, |a, b| a <= b),
        "s_cmp_gt_u32" => |w, i| w.test(i, |a, b| a > b),
        "s_cmp_ge_u32" => |w, i| w.test(i, |a, b| a >= b),
        "s_cmp_lt_i32" => |w, i| w.test(i, |a, b| (a as i32) < b as i32),
        "s_cmp_le_i32" => |w, i| w.test(i, |a, b| a as i32 <= b as i32),
        "s_cmp_gt_i32" => |w, i| w.test(i, |a, b| a as i32 > b as i32),
        "s_cmp_ge_i32" => |w, i| w.test(i, |a, b| a as i32 >= b as i32),
        "s_cmpk_eq_u32" => |w, i| w.test(i, |a, b| a == b & 0xffff),
        "s_cmpk_lg_u32" => |w, i| w.test(i, |a, b| a != b & 0xffff),
        "s_cmpk_lt_u32" => |w, i| w.test(i, |a, b| a < b & 0xffff),
        "s_cmpk_le_u32" => |w, i| w.test(i, |a, b| a <= b & 0xffff),
        "s_cmpk_gt_u32" => |w, i| w.test(i, |a, b| a > b & 0xffff),
        "s_cmpk_ge_u32" => |w, i| w.test(i, |a, b| a >= b & 0xffff),
        "s_cmpk_eq_i32" => |w, i| w.test(i, |a, b| a == short(b)),
        "s_cmpk_lg_i32" => |w, i| w.test(i, |a, b| a != short(b)),
        "s_cmpk_lt_i32" => |w, i| w.test(i, |a, b| (a as i32) < short(b) as i32),
        "s_cmpk_le_i32" => |w, i| w.test(i, |a, b| a as i32 <= short(b) as i32),
        "s_cmpk_gt_i32" => |w, i| w.test(i, |a, b| a as i32 > short(b) as i32),
        "s_cmpk_ge_i32" => |w, i| w.test(i, |a, b| a as i32 >= short(b) as i32),
        "s_cmp_eq_u64" => |w, i| w.scc = w.scalar64(i.operands[0]) == w.scalar64(i.operands[1]),
        "s_cmp_lg_u64" => |w, i| w.scc = w.scalar64(i.operands[0]) != w.scalar64(i.operands[1]),
        "s_bitcmp0_b32" => |w, i| w.test(i, |a, b| a >> (b & 31) & 1 == 0),
        "s_bitcmp1_b32" => |w, i| w.test(i, |a, b| a >> (b & 31) & 1 == 1),
        "s_bitcmp0_b64" => |w, i| w.scc = w.scalar64(i.operands[0]) >> (w.scalar(i.operands[1]) & 63) & 1 == 0,
        "s_bitcmp1_b64" => |w, i| w.scc = w.scalar64(i.operands[0]) >> (w.scalar(i.operands[1]) & 63) & 1 == 1,
        _ => return None,
    };
    Some(run)
}
