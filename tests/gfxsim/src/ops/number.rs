//! Arithmetic on f32 and f64. What the hardware approximates (powers, logarithms, roots, reciprocals) is computed in f64 and rounded once.

use std::f64::consts::TAU;

use crate::{
    float,
    inst::{Run, VCC},
    vector::{each, mask},
};

pub fn find(name: &str) -> Option<Run> {
    single(name).or_else(|| approximate(name)).or_else(|| division(name)).or_else(|| double(name))
}

fn single(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_add_f32" => |w, i| w.float2(i, |a, b| a + b),
        "v_sub_f32" => |w, i| w.float2(i, |a, b| a - b),
        "v_subrev_f32" => |w, i| w.float2(i, |a, b| b - a),
        "v_mul_f32" => |w, i| w.float2(i, |a, b| a * b),
        "v_mul_legacy_f32" | "v_mul_dx9_zero_f32" => {
            |w, i| w.float2(i, |a, b| if a == 0.0 || b == 0.0 { 0.0 } else { a * b })
        }
        "v_max_f32" | "v_max_num_f32" => |w, i| w.float2(i, float::max),
        "v_min_f32" | "v_min_num_f32" => |w, i| w.float2(i, float::min),
        "v_max3_f32" => |w, i| w.float3(i, |a, b, c| float::max(float::max(a, b), c)),
        "v_min3_f32" => |w, i| w.float3(i, |a, b, c| float::min(float::min(a, b), c)),
        "v_med3_f32" => |w, i| w.float3(i, float::median),
        "v_maxmin_f32" => |w, i| w.float3(i, |a, b, c| float::min(float::max(a, b), c)),
        "v_minmax_f32" => |w, i| w.float3(i, |a, b, c| float::max(float::min(a, b), c)),
        // Factor and sum are in this order in the text, too, wherever the encoding has its literal.
        "v_fma_f32" | "v_fmaak_f32" | "v_fmamk_f32" => |w, i| w.float3(i, f32::mul_add),
        "v_mad_f32" | "v_madak_f32" | "v_madmk_f32" => |w, i| w.float3(i, |a, b, c| a * b + c),
        "v_fmac_f32" => |w, i| {
            let (a, b, c) = (w.float(i, 1), w.float(i, 2), w.source(i, 0));
            w.result_float(i, &each(|l| a[l].mul_add(b[l], f32::from_bits(c[l]))));
        },
        "v_mac_f32" => |w, i| {
            let (a, b, c) = (w.float(i, 1), w.float(i, 2), w.source(i, 0));
            w.result_float(i, &each(|l| a[l] * b[l] + f32::from_bits(c[l])));
        },
        "v_floor_f32" => |w, i| w.float1(i, f32::floor),
        "v_ceil_f32" => |w, i| w.float1(i, f32::ceil),
        "v_trunc_f32" => |w, i| w.float1(i, f32::trunc),
        "v_rndne_f32" => |w, i| w.float1(i, f32::round_ties_even),
        "v_fract_f32" => |w, i| w.float1(i, |a| a - a.floor()),
        "v_ldexp_f32" => |w, i| {
            let (a, power) = (w.float(i, 1), w.source(i, 2));
            w.result_float(i, &each(|l| float::scale(a[l], power[l] as i32)));
        },
        "v_frexp_mant_f32" => |w, i| w.float1(i, |a| mantissa(a).0),
        "v_frexp_exp_i32_f32" => |w, i| {
            let a = w.float(i, 1);
            w.result(i, &each(|l| mantissa(a[l]).1 as u32));
        },
        _ => return None,
    };
    Some(run)
}

/// A number from a half to one, and the power of two that makes the value of it.
fn mantissa(value: f32) -> (f32, i32) {
    if value == 0.0 || !value.is_finite() {
        return (value, 0);
    }
    let (normal, lifted) = if float::is_denormal(value) { (float::scale(value, 64), 64) } else { (value, 0) };
    let fraction = f32::from_bits(normal.to_bits() & 0x807f_ffff | 0x3f00_0000);
    (fraction, float::exponent(normal) - 126 - lifted)
}

fn approximate(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_exp_f32" => |w, i| {
            w.float1(i, |a| {
                let power = f64::from(a).exp2() as f32;
                if float::is_denormal(power) { 0.0 } else { power }
            });
        },
        "v_log_f32" => |w, i| w.float1(i, |a| f64::from(a).log2() as f32),
        "v_rcp_f32" | "v_rcp_iflag_f32" => |w, i| w.float1(i, float::reciprocal),
        "v_rsq_f32" => |w, i| w.float1(i, |a| (1.0 / f64::from(a).sqrt()) as f32),
        "v_sqrt_f32" => |w, i| w.float1(i, f32::sqrt),
        "v_sin_f32" => |w, i| w.float1(i, |a| (f64::from(a) * TAU).sin() as f32),
        "v_cos_f32" => |w, i| w.float1(i, |a| (f64::from(a) * TAU).cos() as f32),
        _ => return None,
    };
    Some(run)
}

fn division(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_div_scale_f32" => |w, i| {
            let (value, denominator, numerator) = (w.float(i, 2), w.float(i, 3), w.float(i, 4));
            let scaled = |l: usize| float::division_scale(value[l], denominator[l], numerator[l]);
            let flags = mask(|l| scaled(l).1) & w.mask;
            w.result(i, &each(|l| scaled(l).0.to_bits()));
            w.set_lane_mask(i.operands[1], flags);
        },
        "v_div_fmas_f32" => |w, i| {
            let flags = w.lane_mask(VCC);
            let (a, b, c) = (w.float(i, 1), w.float(i, 2), w.float(i, 3));
            let value = |l: usize| {
                let sum = a[l].mul_add(b[l], c[l]);
                let back = if float::exponent(c[l]) > 127 { 64 } else { -64 };
                if flags >> l & 1 == 1 { float::scale(sum, back) } else { sum }
            };
            w.result_float(i, &each(value));
        },
        "v_div_fixup_f32" => |w, i| w.float3(i, float::division_fix),
        _ => return None,
    };
    Some(run)
}

fn double(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_add_f64" => |w, i| w.double2(i, |a, b| a + b),
        "v_mul_f64" => |w, i| w.double2(i, |a, b| a * b),
        "v_max_f64" | "v_max_num_f64" => |w, i| w.double2(i, f64::max),
        "v_min_f64" | "v_min_num_f64" => |w, i| w.double2(i, f64::min),
        "v_fma_f64" => |w, i| {
            let (a, b, c) = (w.double(i, 1), w.double(i, 2), w.double(i, 3));
            w.result64(i, &each(|l| a[l].mul_add(b[l], c[l]).to_bits()));
        },
        "v_fmac_f64" => |w, i| {
            let (a, b, c) = (w.double(i, 1), w.double(i, 2), w.double(i, 0));
            w.result64(i, &each(|l| a[l].mul_add(b[l], c[l]).to_bits()));
        },
        "v_floor_f64" => |w, i| double1(w, i, f64::floor),
        "v_ceil_f64" => |w, i| double1(w, i, f64::ceil),
        "v_trunc_f64" => |w, i| double1(w, i, f64::trunc),
        "v_rndne_f64" => |w, i| double1(w, i, f64::round_ties_even),
        "v_fract_f64" => |w, i| double1(w, i, |a| a - a.floor()),
        // The seed of a Newton iteration: AMD's is good to 2^-14 or better, this one to an f32's precision.
        "v_rcp_f64" => |w, i| double1(w, i, |a| coarse(1.0 / a)),
        "v_rsq_f64" => |w, i| double1(w, i, |a| coarse(1.0 / a.sqrt())),
        "v_sqrt_f64" => |w, i| double1(w, i, |a| coarse(a.sqrt())),
        "v_ldexp_f64" => |w, i| {
            let (a, power) = (w.double(i, 1), w.source(i, 2));
            w.result64(i, &each(|l| scaled(a[l], power[l] as i32).to_bits()));
        },
        "v_div_scale_f64" => |w, i| {
            let (value, denominator, numerator) = (w.double(i, 2), w.double(i, 3), w.double(i, 4));
            let all = |l: usize| scale_for_division(value[l], denominator[l], numerator[l]);
            let flags = mask(|l| all(l).1) & w.mask;
            w.result64(i, &each(|l| all(l).0.to_bits()));
            w.set_lane_mask(i.operands[1], flags);
        },
        "v_div_fmas_f64" => |w, i| {
            let flags = w.lane_mask(VCC);
            let (a, b, c) = (w.double(i, 1), w.double(i, 2), w.double(i, 3));
            let value = |l: usize| {
                let sum = a[l].mul_add(b[l], c[l]);
                let back = if exponent(c[l]) > 1023 { 128 } else { -128 };
                if flags >> l & 1 == 1 { scaled(sum, back) } else { sum }
            };
            w.result64(i, &each(|l| value(l).to_bits()));
        },
        "v_div_fixup_f64" => |w, i| {
            let (q, d, n) = (w.double(i, 1), w.double(i, 2), w.double(i, 3));
            w.result64(i, &each(|l| fix_division(q[l], d[l], n[l]).to_bits()));
        },
        _ => return None,
    };
    Some(run)
}

fn double1(w: &mut crate::wave::Wave<'_>, i: &crate::inst::Inst, f: impl Fn(f64) -> f64) {
    let a = w.double(i, 1);
    w.result64(i, &each(|l| f(a[l]).to_bits()));
}

/// The value with an f32's precision and an f64's range.
fn coarse(value: f64) -> f64 {
    f64::from_bits(value.to_bits() & !0 << 29)
}

fn exponent(value: f64) -> i32 {
    (value.to_bits() >> 52 & 2047) as i32
}

fn scaled(value: f64, power: i32) -> f64 {
    // In two steps, each within the range of powers; what is denormal in between would be rounded twice, which no division here does.
    let half = power.clamp(-2000, 2000) / 2;
    value * 2f64.powi(half) * 2f64.powi(power.clamp(-2000, 2000) - half)
}

/// [`float::division_scale`] for f64.
fn scale_for_division(value: f64, denominator: f64, numerator: f64) -> (f64, bool) {
    let denormal = |v: f64| exponent(v) == 0 && v != 0.0;
    let is = |other: f64| value.to_bits() == other.to_bits();
    let up_if = |condition: bool| if condition { scaled(value, 128) } else { value };
    if numerator == 0.0 || denominator == 0.0 {
        (f64::NAN, false)
    } else if exponent(numerator) - exponent(denominator) >= 768 {
        (up_if(is(denominator)), true)
    } else if denormal(denominator) {
        (scaled(value, 128), false)
    } else if denormal(1.0 / denominator) && denormal(numerator / denominator) {
        (up_if(is(denominator)), true)
    } else if denormal(1.0 / denominator) {
        (scaled(value, -128), false)
    } else if denormal(numerator / denominator) {
        (up_if(is(numerator)), true)
    } else {
        (up_if(exponent(numerator) <= 53), false)
    }
}

/// [`float::division_fix`] for f64.
fn fix_division(quotient: f64, denominator: f64, numerator: f64) -> f64 {
    // What is no ordinary quotient is what dividing gives anyway.
    let ordinary = quotient.is_finite() && denominator.is_finite() && numerator.is_finite() && denominator != 0.0;
    let exact = numerator / denominator;
    if ordinary && numerator != 0.0 { quotient.copysign(exact) } else { exact }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mantissas_and_exponents_make_the_value() {
        for value in [1.0f32, -3.5, 1e-40, f32::MAX, f32::MIN_POSITIVE] {
            let (fraction, power) = mantissa(value);
            assert!((0.5..1.0).contains(&fraction.abs()));
            assert_eq!(f64::from(fraction) * 2f64.powi(power), f64::from(value));
        }
        assert_eq!(mantissa(0.0), (0.0, 0));
    }
}
