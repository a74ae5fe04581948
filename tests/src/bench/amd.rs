//! Work whose times somebody published on AMD's GPUs: static layers at sizes of the fork of mHC.cu for them.

use mhc_core::{DType, Dims, Numerics, Problem, ops::StaticLayer};

use super::Bench;

/// Tokens and channels; the largest is that of the best-known figure, 0.694 ms on an MI308X.
const TOKENS: [usize; 5] = [128, 256, 320, 512, 1024];
const CHANNELS: [usize; 3] = [1280, 1920, 2560];

/// mHC.cu's layer, in its conventions.
pub fn layer(dims: Dims, act: DType) -> Problem {
    Problem::new(StaticLayer { numerics: Numerics::mhc_cu(), norm_eps: 1e-5 }, dims, act)
}

/// Every row.
pub fn suite() -> Vec<Bench> {
    let sizes = CHANNELS.into_iter().flat_map(|c| TOKENS.map(|t| Dims::new(t, 4, c)));
    let bench = |(d, act): (Dims, DType)| Bench::new(format!("static_layer.fwd/{act}/{d}"), vec![layer(d, act)]);
    sizes.flat_map(|d| [(d, DType::F32), (d, DType::Bf16)]).map(bench).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_published_sizes_are_there() {
        let suite = super::suite();
        for id in ["static_layer.fwd/bf16/T1024.n4.C1920", "static_layer.fwd/f32/T128.n4.C1280"] {
            assert!(suite.iter().any(|b| b.id == id), "{id}");
        }
    }
}
