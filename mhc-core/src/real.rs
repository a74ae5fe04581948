//! The arithmetic of the references: `f64` for truth, `f32` for the error that plain single precision makes, [`Dual`] for exact derivatives.

use core::{
    fmt::Debug,
    iter::Sum,
    ops::{Add, AddAssign, Div, Mul, Neg, Sub},
};

/// A number that a reference can compute with.
pub trait Real:
    Copy
    + Debug
    + PartialEq
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Sum
{
    /// A constant.
    fn c(v: f64) -> Self;
    /// Its value, without any derivative; for comparisons and for shifts that cancel.
    fn value(self) -> f64;
    /// e to the power of it.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;

    /// 0.
    fn zero() -> Self {
        Self::c(0.0)
    }
    /// 1.
    fn one() -> Self {
        Self::c(1.0)
    }
    /// 1 / (1 + e^-v), without overflow on either side.
    fn sigmoid(self) -> Self {
        if self.value() >= 0.0 {
            Self::one() / (Self::one() + (-self).exp())
        } else {
            let e = self.exp();
            e / (Self::one() + e)
        }
    }
}

macro_rules! real {
    ($t:ty) => {
        impl Real for $t {
            fn c(v: f64) -> Self {
                v as $t
            }
            fn value(self) -> f64 {
                self as f64
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
        }
    };
}
real!(f64);
real!(f32);

/// A value and its derivative along one direction: forward-mode differentiation, with no step size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dual {
    /// Value.
    pub v: f64,
    /// Derivative.
    pub d: f64,
}

impl Dual {
    /// A value that moves with speed `d`.
    pub const fn new(v: f64, d: f64) -> Self {
        Self { v, d }
    }
}

impl Add for Dual {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self::new(self.v + o.v, self.d + o.d)
    }
}
impl Sub for Dual {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        Self::new(self.v - o.v, self.d - o.d)
    }
}
impl Mul for Dual {
    type Output = Self;
    fn mul(self, o: Self) -> Self {
        Self::new(self.v * o.v, self.d * o.v + self.v * o.d)
    }
}
impl Div for Dual {
    type Output = Self;
    fn div(self, o: Self) -> Self {
        let q = self.v / o.v;
        Self::new(q, (self.d - q * o.d) / o.v)
    }
}
impl Neg for Dual {
    type Output = Self;
    fn neg(self) -> Self {
        Self::new(-self.v, -self.d)
    }
}
impl AddAssign for Dual {
    fn add_assign(&mut self, o: Self) {
        *self = *self + o;
    }
}
impl Sum for Dual {
    fn sum<I: Iterator<Item = Self>>(it: I) -> Self {
        it.fold(Self::zero(), |a, b| a + b)
    }
}
impl Real for Dual {
    fn c(v: f64) -> Self {
        Self::new(v, 0.0)
    }
    fn value(self) -> f64 {
        self.v
    }
    fn exp(self) -> Self {
        let e = self.v.exp();
        Self::new(e, self.d * e)
    }
    fn ln(self) -> Self {
        Self::new(self.v.ln(), self.d / self.v)
    }
    fn sqrt(self) -> Self {
        let s = self.v.sqrt();
        Self::new(s, self.d / (2.0 * s))
    }
}
