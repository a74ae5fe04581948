//! Problem sizes, in the paper's letters.

use core::fmt;

/// The largest number of residual streams that the operators take.
pub const MAX_STREAMS: usize = 32;

/// The sizes that every operand's shape is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// T, the number of tokens. May be 0.
    pub tokens: usize,
    /// n, the number of residual streams, 1..=32.
    pub streams: usize,
    /// C, the hidden size, at least 1.
    pub channels: usize,
    /// L, the number of sub-layers; 1 for every operator but `recompute`.
    pub layers: usize,
}

impl Dims {
    /// T tokens, n streams, C channels, one sub-layer.
    pub const fn new(tokens: usize, streams: usize, channels: usize) -> Self {
        Self { tokens, streams, channels, layers: 1 }
    }

    /// The same with L sub-layers.
    pub const fn layers(self, layers: usize) -> Self {
        Self { layers, ..self }
    }

    /// n(n+2), the mixing coefficients of one token.
    pub const fn mix(&self) -> usize {
        self.streams * (self.streams + 2)
    }

    /// K = n·C, the flattened row of one token. Saturates, so that sizes beyond the address space can be looked at and turned down.
    pub const fn row(&self) -> usize {
        self.streams.saturating_mul(self.channels)
    }
}

impl fmt::Display for Dims {
    /// `T17.n4.C130`, with `.L3` where there are several sub-layers: the form used in case ids.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T{}.n{}.C{}", self.tokens, self.streams, self.channels)?;
        if self.layers != 1 { write!(f, ".L{}", self.layers) } else { Ok(()) }
    }
}

/// One axis of a slot. The set is closed, so that shapes can be checked, counted and printed by one piece of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Tokens.
    T,
    /// Streams.
    N,
    /// Channels.
    C,
    /// Sub-layers.
    L,
    /// n(n+2): `[pre n | post n | comb n·n]`.
    Mix,
    /// n·C, a token's row.
    K,
    /// A fixed length.
    Lit(usize),
}

impl Axis {
    /// Its length in a problem of these sizes.
    pub const fn len(self, d: &Dims) -> usize {
        match self {
            Axis::T => d.tokens,
            Axis::N => d.streams,
            Axis::C => d.channels,
            Axis::L => d.layers,
            Axis::Mix => d.mix(),
            Axis::K => d.row(),
            Axis::Lit(n) => n,
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Axis::T => f.write_str("T"),
            Axis::N => f.write_str("n"),
            Axis::C => f.write_str("C"),
            Axis::L => f.write_str("L"),
            Axis::Mix => f.write_str("n(n+2)"),
            Axis::K => f.write_str("n·C"),
            Axis::Lit(n) => write!(f, "{n}"),
        }
    }
}
