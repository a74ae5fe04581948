//! What an operator looks like from outside: its slots. Checks, tests, byte counts, docs and bindings derive from this.

use core::fmt;

use crate::{Axis, DType, Dims};

/// An operator's outside.
#[derive(Debug)]
pub struct OpDesc {
    /// `post`, `post_bwd`: the name in messages, case ids and kernel entries.
    pub name: &'static str,
    /// The mathematics on one line, in the paper's letters.
    pub formula: &'static str,
    /// Operands in the order in which they are passed.
    pub slots: &'static [Slot],
}

impl OpDesc {
    /// The position of the slot called `name`.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|s| s.name == name)
    }
}

/// One operand.
#[derive(Debug, PartialEq)]
pub struct Slot {
    /// Its name; the gradient of operand `x` is always called `d_x`.
    pub name: &'static str,
    /// Its shape; the last axis is contiguous, other strides are free.
    pub axes: &'static [Axis],
    /// Its element type.
    pub dtype: DTypeRule,
    /// Whether it is read or written.
    pub role: Role,
    /// How tests draw its values.
    pub fill: Fill,
}

impl Slot {
    /// An input of the streams' element type.
    pub const fn stream(name: &'static str, axes: &'static [Axis]) -> Self {
        Self { name, axes, dtype: DTypeRule::Stream, role: Role::In, fill: Fill::Normal { std: 1.0 } }
    }

    /// An f32 input: coefficients, parameters and their gradients.
    pub const fn coeff(name: &'static str, axes: &'static [Axis]) -> Self {
        Self { dtype: DTypeRule::F32, ..Self::stream(name, axes) }
    }

    /// The same slot, written instead of read.
    pub const fn out(self) -> Self {
        Self { role: Role::Out, ..self }
    }

    /// The same slot as something forward writes for backward; it carries no gradient.
    pub const fn saved(self) -> Self {
        Self { role: Role::Saved, ..self }
    }

    /// The same slot with another distribution in tests.
    pub const fn fill(self, fill: Fill) -> Self {
        Self { fill, ..self }
    }

    /// Its shape in a problem of these sizes.
    pub fn shape(&self, d: &Dims) -> Vec<usize> {
        self.axes.iter().map(|a| a.len(d)).collect()
    }

    /// Elements in a problem of these sizes.
    pub fn len(&self, d: &Dims) -> usize {
        self.axes.iter().map(|a| a.len(d)).product()
    }

    /// Its element type where streams are `act`.
    pub const fn dtype(&self, act: DType) -> DType {
        match self.dtype {
            DTypeRule::Stream => act,
            DTypeRule::F32 => DType::F32,
        }
    }

    /// Whether the operator reads it.
    pub fn is_input(&self) -> bool {
        self.role == Role::In
    }
}

impl fmt::Display for Slot {
    /// `x [T, n, C]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes: Vec<_> = self.axes.iter().map(|a| a.to_string()).collect();
        write!(f, "{} [{}]", self.name, axes.join(", "))
    }
}

/// What the operator does with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Read.
    In,
    /// Written.
    Out,
    /// Written for the backward operator; no gradient flows into it.
    Saved,
}

/// The element type of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DTypeRule {
    /// The streams' type.
    Stream,
    /// Always f32.
    F32,
}

/// How tests draw an input. Inputs of a backward operator that its forward computes are taken from there instead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform.
    Uniform {
        /// Least value.
        lo: f64,
        /// Largest value.
        hi: f64,
    },
}
