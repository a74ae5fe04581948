//! Number formats that Rust has no type for, and the corner cases of the hardware's f32 instructions.

/// An f16's value.
pub fn from_half(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let (exponent, fraction) = (u32::from(bits >> 10 & 31), u32::from(bits & 1023));
    match exponent {
        0 => {
            let value = fraction as f32 / 16_777_216.0;
            if sign != 0 { -value } else { value }
        }
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

/// The nearest f16, ties to even.
pub fn to_half(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16 & 0x8000) as u16;
    let magnitude = value.to_bits() & 0x7fff_ffff;
    let bits = match magnitude {
        0x7f80_0001.. => 0x7e00,
        // From 65536 on; what rounds up to it is caught below.
        0x4780_0000.. => 0x7c00,
        // Subnormal: multiples of 2^-24.
        0..0x3880_0000 => (f32::from_bits(magnitude) * 16_777_216.0).round_ties_even() as u16,
        _ => {
            let rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
            ((rounded.min(0x4780_0000) - 0x3800_0000) >> 13) as u16
        }
    };
    sign | bits
}

/// The next f16 towards zero.
pub fn to_half_towards_zero(value: f32) -> u16 {
    let nearest = to_half(value);
    if from_half(nearest).abs() > value.abs() { nearest - 1 } else { nearest }
}

/// A bf16's value.
pub fn from_brain(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bf16, ties to even.
pub fn to_brain(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Larger of two as IEEE 754-2008's maxNum: a NaN gives way, and +0 is above -0.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    let pick_b = a < b || a.is_nan() || (a == b && a.is_sign_negative());
    if pick_b { b } else { a }
}

/// Smaller of two, see [`max`].
#[inline(always)]
pub fn min(a: f32, b: f32) -> f32 {
    let pick_b = b < a || a.is_nan() || (a == b && b.is_sign_negative());
    if pick_b { b } else { a }
}

/// The middle of three; the smallest if one is NaN.
pub fn median(a: f32, b: f32, c: f32) -> f32 {
    if a.is_nan() || b.is_nan() || c.is_nan() {
        return min(min(a, b), c);
    }
    max(min(a, b), min(max(a, b), c))
}

/// The biased exponent.
pub fn exponent(value: f32) -> i32 {
    (value.to_bits() >> 23 & 255) as i32
}

/// Whether it lies between zero and the smallest normal number.
pub fn is_denormal(value: f32) -> bool {
    exponent(value) == 0 && value != 0.0
}

/// `value` times two to the `power`, rounded once.
pub fn scale(value: f32, power: i32) -> f32 {
    (f64::from(value) * 2f64.powi(power.clamp(-1000, 1000))) as f32
}

/// The bit of `v_cmp_class` that the value belongs to.
pub fn class(value: f32) -> u32 {
    let negative = value.is_sign_negative();
    let pick = |below: u32, above: u32| 1 << if negative { below } else { above };
    match () {
        () if value.is_nan() => 1 << u32::from(value.to_bits() & 0x40_0000 != 0),
        () if value.is_infinite() => pick(2, 9),
        () if value == 0.0 => pick(5, 6),
        () if is_denormal(value) => pick(4, 7),
        () => pick(3, 8),
    }
}

/// `v_div_scale_f32`: the operand `value` of `numerator / denominator`, scaled so that the steps in between neither overflow nor lose
/// bits, and whether the quotient must be scaled back.
pub fn division_scale(value: f32, denominator: f32, numerator: f32) -> (f32, bool) {
    if numerator == 0.0 || denominator == 0.0 {
        return (f32::NAN, false);
    }
    let is = |other: f32| value.to_bits() == other.to_bits();
    let tiny_reciprocal = is_denormal((1.0 / f64::from(denominator)) as f32);
    let tiny_quotient = is_denormal((f64::from(numerator) / f64::from(denominator)) as f32);
    let up_if = |condition: bool| if condition { scale(value, 64) } else { value };
    if exponent(numerator) - exponent(denominator) >= 96 {
        (up_if(is(denominator)), true)
    } else if is_denormal(denominator) {
        (scale(value, 64), false)
    } else if tiny_reciprocal && tiny_quotient {
        (up_if(is(denominator)), true)
    } else if tiny_reciprocal {
        (scale(value, -64), false)
    } else if tiny_quotient {
        (up_if(is(numerator)), true)
    } else {
        (up_if(exponent(numerator) <= 23), false)
    }
}

/// `v_div_fixup_f32`: the quotient, or what IEEE 754 says where there is none.
pub fn division_fix(quotient: f32, denominator: f32, numerator: f32) -> f32 {
    let negative = denominator.is_sign_negative() != numerator.is_sign_negative();
    let signed = |magnitude: f32| if negative { -magnitude } else { magnitude };
    if numerator.is_nan() {
        numerator
    } else if denominator.is_nan() {
        denominator
    } else if (denominator == 0.0 && numerator == 0.0) || (denominator.is_infinite() && numerator.is_infinite()) {
        f32::NAN
    } else if denominator == 0.0 || numerator.is_infinite() {
        signed(f32::INFINITY)
    } else if denominator.is_infinite() || numerator == 0.0 || exponent(numerator) - exponent(denominator) < -150 {
        signed(0.0)
    } else {
        signed(quotient.abs())
    }
}

/// `v_rcp_f32`: denormal operands count as zero, and denormal results become zero.
#[inline(always)]
pub fn reciprocal(value: f32) -> f32 {
    let result = 1.0 / value;
    if is_denormal(value) {
        f32::INFINITY.copysign(value)
    } else if is_denormal(result) {
        0f32.copysign(value)
    } else {
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_way_through_f32() {
        for bits in 0..=u16::MAX {
            let value = from_half(bits);
            if !value.is_nan() {
                assert_eq!(to_half(value), bits, "{value}");
            }
        }
    }

    #[test]
    fn halves_are_rounded_to_the_nearest_ties_to_even() {
        for (value, bits) in [
            (1.0 + 1.0 / 2048.0, 0x3c00),
            (1.0 + 3.0 / 2048.0, 0x3c02),
            (65519.0, 0x7bff),
            (65520.0, 0x7c00),
            (f32::INFINITY, 0x7c00),
            (2f32.powi(-25), 0),
            (2f32.powi(-25) * 1.5, 1),
            (2f32.powi(-14), 0x0400),
        ] {
            assert_eq!(to_half(value), bits, "{value}");
            assert_eq!(to_half(-value), bits | 0x8000, "-{value}");
        }
        assert_eq!(to_half_towards_zero(1.0 + 3.0 / 2048.0), 0x3c01);
        assert_eq!(to_half_towards_zero(-65520.0), 0xfbff);
    }

    #[test]
    fn brains_are_rounded_to_the_nearest_ties_to_even() {
        assert_eq!(to_brain(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(to_brain(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(to_brain(f32::MAX), 0x7f80);
        assert_eq!(to_brain(f32::from_bits(0x7f80_0001)), 0x7fc0);
    }

    #[test]
    fn extremes_of_two_and_the_middle_of_three() {
        assert_eq!(
            (max(f32::NAN, 1.0), max(1.0, f32::NAN), min(f32::NAN, 1.0), min(1.0, f32::NAN)),
            (1.0, 1.0, 1.0, 1.0)
        );
        assert!(max(-0.0, 0.0).is_sign_positive() && max(0.0, -0.0).is_sign_positive());
        assert!(min(-0.0, 0.0).is_sign_negative() && min(0.0, -0.0).is_sign_negative());
        assert_eq!((median(3.0, 1.0, 2.0), median(2.0, 2.0, 9.0), median(f32::NAN, 1.0, 2.0)), (2.0, 2.0, 1.0));
    }

    #[test]
    fn classes_are_told_apart() {
        let values = [
            f32::from_bits(0x7f80_0001),
            f32::NAN,
            f32::NEG_INFINITY,
            -1.0,
            -1e-40,
            -0.0,
            0.0,
            1e-40,
            1.0,
            f32::INFINITY,
        ];
        for (bit, value) in values.into_iter().enumerate() {
            assert_eq!(class(value), 1 << bit, "{value}");
        }
    }
}
