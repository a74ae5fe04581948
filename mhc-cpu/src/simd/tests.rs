//! Every level rounds and widens as the `half` crate does, on every pattern of the upper 16 bits.

use mhc_core::{bf16, f16};

use super::{Lane, Level, Simd, SimdFn};

struct Round<'a, E> {
    from: &'a [f32],
    to: &'a mut [E],
}

impl<E: Lane> SimdFn for Round<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        for c in (0..self.from.len()).step_by(S::LANES) {
            // SAFETY: both have the same length, a multiple of every level's lanes.
            unsafe { E::store(s, self.to.as_mut_ptr().add(c), s.load_f32(self.from.as_ptr().add(c))) };
        }
    }
}

struct Widen<'a, E> {
    from: &'a [E],
    to: &'a mut [f32],
}

impl<E: Lane> SimdFn for Widen<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        for c in (0..self.from.len()).step_by(S::LANES) {
            // SAFETY: both have the same length, a multiple of every level's lanes.
            unsafe { s.store_f32(self.to.as_mut_ptr().add(c), E::load(s, self.from.as_ptr().add(c))) };
        }
    }
}

/// Scales by a number that needs rounding, vector by vector or pair by pair.
struct Scale<'a, E> {
    from: &'a [E],
    to: &'a mut [E],
    pairs: bool,
}

impl<E: Lane> SimdFn for Scale<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let by = s.splat(1.003);
        for c in (0..self.from.len()).step_by(2 * S::LANES) {
            // SAFETY: both have the same length, a multiple of twice every level's lanes.
            unsafe {
                let (from, to) = (self.from.as_ptr().add(c), self.to.as_mut_ptr().add(c));
                if self.pairs {
                    let [a, b] = E::load_pair(s, from);
                    E::store_pair(s, to, [s.mul(by, a), s.mul(by, b)], false);
                } else {
                    E::store(s, to, s.mul(by, E::load(s, from)));
                    E::store(s, to.add(S::LANES), s.mul(by, E::load(s, from.add(S::LANES))));
                }
            }
        }
    }
}

#[test]
fn pairs_are_two_vectors() {
    let from: Vec<bf16> = (0..=0xffff).map(bf16::from_bits).collect();
    for level in Level::available() {
        let [one, two] = [false, true].map(|pairs| {
            let mut to = vec![bf16::ZERO; from.len()];
            // SAFETY: the level is available.
            unsafe { level.run(Scale { from: &from, to: &mut to, pairs }) };
            to.into_iter().map(bf16::to_bits).collect::<Vec<_>>()
        });
        assert_eq!(one, two, "{}", level.name());
    }
}

/// All upper halves, each with lower halves at, just below and just above a tie of bf16, and one at a tie of f16.
fn patterns() -> Vec<f32> {
    let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1000, 0xf000];
    (0..=0xffff_u32).flat_map(|upper| lower.map(|low| f32::from_bits(upper << 16 | low))).collect()
}

fn check<E: Lane>(bits: impl Fn(E) -> u16) {
    let from = patterns();
    let (mut rounded, mut widened) = (vec![E::default(); from.len()], vec![0.0; from.len()]);
    for level in Level::available() {
        // SAFETY: the level is available.
        unsafe {
            level.run(Round { from: &from, to: &mut rounded });
            level.run(Widen { from: &rounded, to: &mut widened });
        }
        for ((&v, &got), &back) in from.iter().zip(&rounded).zip(&widened) {
            let what = format!("{} {} of {v:e} = {:#010x}", level.name(), E::DTYPE, v.to_bits());
            if v.is_nan() {
                assert!(got.to_f32().is_nan() && back.is_nan(), "{what}");
            } else {
                assert_eq!(bits(got), bits(E::from_f32(v)), "{what}");
                assert_eq!(back.to_bits(), got.to_f32().to_bits(), "{what}, back");
            }
        }
    }
}

#[test]
fn bf16_rounds_to_nearest_even() {
    check(bf16::to_bits);
}

#[test]
fn f16_rounds_to_nearest_even() {
    check(f16::to_bits);
}
