//! 16 bits, two numbers in a register, and what mixes formats.

use crate::{
    float::{self, from_brain, from_half, to_half},
    inst::{Detail, Inst, Operand, Run},
    vector::{Floats, Shorts, each},
    wave::Wave,
};

pub fn find(name: &str) -> Option<Run> {
    shorts(name).or_else(|| halves(name)).or_else(|| pairs(name)).or_else(|| mixed(name))
}

fn shorts(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_mov_b16" => |w, i| {
            let a = w.short(i, 1);
            w.result_short(i, &a);
        },
        "v_not_b16" => |w, i| {
            let a = w.short(i, 1);
            w.result_short(i, &a.map(|v| !v));
        },
        "v_and_b16" => |w, i| w.short2(i, |a, b| a & b),
        "v_or_b16" => |w, i| w.short2(i, |a, b| a | b),
        "v_xor_b16" => |w, i| w.short2(i, |a, b| a ^ b),
        "v_lshlrev_b16" => |w, i| w.short2(i, |a, b| b << (a & 15)),
        "v_lshrrev_b16" => |w, i| w.short2(i, |a, b| b >> (a & 15)),
        "v_ashrrev_i16" => |w, i| w.short2(i, |a, b| (b as i16 >> (a & 15)) as u16),
        "v_add_u16" | "v_add_nc_u16" => |w, i| w.short2(i, u16::wrapping_add),
        "v_sub_u16" | "v_sub_nc_u16" => |w, i| w.short2(i, u16::wrapping_sub),
        "v_mul_lo_u16" => |w, i| w.short2(i, u16::wrapping_mul),
        "v_mad_u16" => |w, i| {
            let (a, b, c) = (w.short(i, 1), w.short(i, 2), w.short(i, 3));
            w.result_short(i, &each(|l| a[l].wrapping_mul(b[l]).wrapping_add(c[l])));
        },
        "v_max_u16" => |w, i| w.short2(i, u16::max),
        "v_min_u16" => |w, i| w.short2(i, u16::min),
        "v_max_i16" => |w, i| w.short2(i, |a, b| (a as i16).max(b as i16) as u16),
        "v_min_i16" => |w, i| w.short2(i, |a, b| (a as i16).min(b as i16) as u16),
        "v_cndmask_b16" => |w, i| {
            let condition = w.lane_mask(i.operands[3]);
            let (a, b) = (w.short(i, 1), w.short(i, 2));
            w.result_short(i, &each(|l| if condition >> l & 1 == 1 { b[l] } else { a[l] }));
        },
        "v_bitop3_b16" => |w, i| {
            let Detail::Table(table) = i.detail else { return };
            let (a, b, c) = (w.short(i, 1), w.short(i, 2), w.short(i, 3));
            let bit = |row: u8, bit: u8, v: u16| if row & bit != 0 { v } else { !v };
            let rows = |l: usize| {
                let row = |out: u16, row: u8| out | bit(row, 4, a[l]) & bit(row, 2, b[l]) & bit(row, 1, c[l]);
                (0..8).filter(|row| table >> row & 1 == 1).fold(0, row)
            };
            w.result_short(i, &each(rows));
        },
        _ => return None,
    };
    Some(run)
}

fn halves(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_add_f16" => |w, i| w.half2(i, |a, b| a + b),
        "v_sub_f16" => |w, i| w.half2(i, |a, b| a - b),
        "v_mul_f16" => |w, i| w.half2(i, |a, b| a * b),
        "v_max_f16" => |w, i| w.half2(i, float::max),
        "v_min_f16" => |w, i| w.half2(i, float::min),
        "v_rcp_f16" => |w, i| {
            let a = w.half(i, 1);
            w.result_short(i, &a.map(|v| to_half(1.0 / v)));
        },
        "v_fma_f16" => |w, i| {
            let (a, b, c) = (w.half(i, 1), w.half(i, 2), w.half(i, 3));
            w.result_short(i, &each(|l| to_half(a[l].mul_add(b[l], c[l]))));
        },
        "v_fmac_f16" => |w, i| {
            let (a, b, c) = (w.half(i, 1), w.half(i, 2), w.source(i, 0));
            w.result_short(i, &each(|l| to_half(a[l].mul_add(b[l], from_half(c[l] as u16)))));
        },
        _ => return None,
    };
    Some(run)
}

/// Component `high` of source `k`, a pair of halves or of shorts.
fn short_of(w: &Wave<'_>, i: &Inst, k: usize, high: bool) -> Shorts {
    let (upper, negative) = component(i, k, high);
    let values = match i.operands[k] {
        Operand::Float(v) => [u32::from(to_half(v as f32)); 64],
        _ => w.source(i, k),
    };
    each(|l| (if upper { values[l] >> 16 } else { values[l] }) as u16 ^ u16::from(negative) << 15)
}

/// Component `high` of source `k`, a pair of f32.
fn float_of(w: &Wave<'_>, i: &Inst, k: usize, high: bool) -> Floats {
    let (upper, negative) = component(i, k, high);
    let values = w.source64(i, k);
    each(|l| {
        let value = f32::from_bits((if upper { values[l] >> 32 } else { values[l] }) as u32);
        if negative { -value } else { value }
    })
}

/// Whether the component is taken from the upper half, and whether its sign is turned.
fn component(i: &Inst, k: usize, high: bool) -> (bool, bool) {
    let negative = if high { i.negative_high } else { i.negative_low } >> (k - 1) & 1 == 1;
    (if high { i.selects_high_for_high(k) } else { i.selects_high(k) }, negative)
}

#[inline(always)]
fn short_pair(w: &mut Wave<'_>, i: &Inst, f: impl Fn(u16, u16, u16) -> u16) {
    let half = |high| {
        let (a, b) = (short_of(w, i, 1, high), short_of(w, i, 2, high));
        let c = if i.count > 3 { short_of(w, i, 3, high) } else { [0; 64] };
        each(|l| f(a[l], b[l], c[l]))
    };
    let (low, high) = (half(false), half(true));
    w.result(i, &each(|l| u32::from(low[l]) | u32::from(high[l]) << 16));
}

#[inline(always)]
fn float_pair(w: &mut Wave<'_>, i: &Inst, f: impl Fn(f32, f32, f32) -> f32) {
    let half = |high| {
        let (a, b) = (float_of(w, i, 1, high), float_of(w, i, 2, high));
        let c = if i.count > 3 { float_of(w, i, 3, high) } else { [0.0; 64] };
        each(|l| f(a[l], b[l], c[l]).to_bits())
    };
    let (low, high) = (half(false), half(true));
    w.write(i, 0, 0, &low);
    w.write(i, 0, 1, &high);
}

fn pairs(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_pk_add_f32" => |w, i| float_pair(w, i, |a, b, _| a + b),
        "v_pk_mul_f32" => |w, i| float_pair(w, i, |a, b, _| a * b),
        "v_pk_fma_f32" => |w, i| float_pair(w, i, f32::mul_add),
        "v_pk_mov_b32" => |w, i| {
            let (a, b) = (w.source64(i, 1), w.source64(i, 2));
            let word = |v: u64, high: bool| if high { v >> 32 } else { v & 0xffff_ffff };
            let (first, second) = (i.selects_high(1), i.selects_high(2));
            w.result64(i, &each(|l| word(a[l], first) | word(b[l], second) << 32));
        },
        "v_pk_add_f16" => |w, i| short_pair(w, i, |a, b, _| to_half(from_half(a) + from_half(b))),
        "v_pk_mul_f16" => |w, i| short_pair(w, i, |a, b, _| to_half(from_half(a) * from_half(b))),
        "v_pk_fma_f16" => |w, i| short_pair(w, i, |a, b, c| to_half(from_half(a).mul_add(from_half(b), from_half(c)))),
        "v_pk_max_f16" => |w, i| short_pair(w, i, |a, b, _| to_half(float::max(from_half(a), from_half(b)))),
        "v_pk_min_f16" => |w, i| short_pair(w, i, |a, b, _| to_half(float::min(from_half(a), from_half(b)))),
        "v_pk_add_u16" => |w, i| short_pair(w, i, |a, b, _| a.wrapping_add(b)),
        "v_pk_sub_i16" | "v_pk_sub_u16" => |w, i| short_pair(w, i, |a, b, _| a.wrapping_sub(b)),
        "v_pk_mul_lo_u16" => |w, i| short_pair(w, i, |a, b, _| a.wrapping_mul(b)),
        "v_pk_lshlrev_b16" => |w, i| short_pair(w, i, |a, b, _| b << (a & 15)),
        "v_pk_lshrrev_b16" => |w, i| short_pair(w, i, |a, b, _| b >> (a & 15)),
        "v_pk_ashrrev_i16" => |w, i| short_pair(w, i, |a, b, _| (b as i16 >> (a & 15)) as u16),
        "v_pk_max_i16" => |w, i| short_pair(w, i, |a, b, _| (a as i16).max(b as i16) as u16),
        "v_pk_min_i16" => |w, i| short_pair(w, i, |a, b, _| (a as i16).min(b as i16) as u16),
        "v_pk_max_u16" => |w, i| short_pair(w, i, |a, b, _| a.max(b)),
        "v_pk_min_u16" => |w, i| short_pair(w, i, |a, b, _| a.min(b)),
        _ => return None,
    };
    Some(run)
}

/// Source `k`, an f32 or, where `op_sel_hi` says so, the half that `op_sel` names.
fn mixed_source(w: &Wave<'_>, i: &Inst, k: usize) -> Floats {
    if i.op_sel_hi.is_none_or(|halves| halves >> (k - 1) & 1 == 0) {
        return w.float(i, k);
    }
    let (values, upper, m) = (w.source(i, k), i.selects_high(k), i.modifiers[k]);
    each(|l| {
        let value = from_half((if upper { values[l] >> 16 } else { values[l] }) as u16);
        let value = if m.absolute { value.abs() } else { value };
        if m.negative { -value } else { value }
    })
}

fn mixed_sum(w: &Wave<'_>, i: &Inst) -> Floats {
    let (a, b, c) = (mixed_source(w, i, 1), mixed_source(w, i, 2), mixed_source(w, i, 3));
    each(|l| a[l].mul_add(b[l], c[l]))
}

/// Half of the destination, whose other half is kept.
fn mixed_half(w: &mut Wave<'_>, i: &Inst, upper: bool) {
    let (sum, old) = (mixed_sum(w, i), w.source(i, 0));
    let place = |l: usize| {
        let half = u32::from(to_half(sum[l]));
        if upper { old[l] & 0xffff | half << 16 } else { old[l] & 0xffff_0000 | half }
    };
    w.result(i, &each(place));
}

/// Two products and a sum, rounded once.
fn dot(w: &mut Wave<'_>, i: &Inst, read: impl Fn(u16) -> f32) {
    let (a, b, c) = (w.source(i, 1), w.source(i, 2), w.float(i, 3));
    let product = |a: u32, b: u32| f64::from(read(a as u16)) * f64::from(read(b as u16));
    w.result_float(i, &each(|l| (product(a[l], b[l]) + product(a[l] >> 16, b[l] >> 16) + f64::from(c[l])) as f32));
}

fn mixed(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_fma_mix_f32" | "v_mad_mix_f32" => |w, i| {
            let sum = mixed_sum(w, i);
            w.result_float(i, &sum);
        },
        "v_fma_mixlo_f16" | "v_mad_mixlo_f16" => |w, i| mixed_half(w, i, false),
        "v_fma_mixhi_f16" | "v_mad_mixhi_f16" => |w, i| mixed_half(w, i, true),
        "v_dot2_f32_f16" => |w, i| dot(w, i, from_half),
        "v_dot2_f32_bf16" => |w, i| dot(w, i, from_brain),
        _ => return None,
    };
    Some(run)
}
