//! Parameters as the public implementations initialise them.

use mhc_core::{Dims, Orientation, Result};

use crate::{HostParams, HostProjection};

/// How new parameters are drawn. The same seed gives the same numbers on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// mHC.cu, dynamic: phi 0.02·N(0, 1), α 0.01, biases 0. Coefficients start near H_pre 1/2, H_post 1, H_res 1/n.
    MhcCu {
        /// Of the random numbers.
        seed: u64,
    },
    /// mHC.cu, static: h_pre and h_post 0, h_res 0.01·N(0, 1).
    MhcCuStatic {
        /// Of the random numbers.
        seed: u64,
    },
    /// Liger-Kernel: phi 0.02·N(0, 1), α 1, biases 0.
    Liger {
        /// Of the random numbers.
        seed: u64,
    },
    /// lucidrains' start, which does not depend on the token: phi 0, α 0.01; b_pre 1 for one stream and 0 for the others,
    /// b_post 1, b_res the identity.
    Lucidrains {
        /// Number of the sub-layer; it reads mostly from stream `layer % n`.
        layer: usize,
    },
    /// tokenbender's static start: all weight of h_pre on one stream and of h_res on the diagonal (logits 0 there, −8 elsewhere),
    /// h_post 0. The residual starts as the identity.
    Tokenbender {
        /// Number of the sub-layer; it reads from stream `layer % n`.
        layer: usize,
    },
}

impl Init {
    /// Parameters for n streams of C channels, without norm weights. [`Error::Attribute`](mhc_core::Error::Attribute) unless n is in 1..=32
    /// and C at least 1.
    pub fn params(self, streams: usize, channels: usize) -> Result<HostParams> {
        let d = Dims::new(0, streams, channels);
        let mut params = HostParams {
            streams,
            channels,
            orientation: Orientation::ToFrom,
            projection: None,
            bias: vec![0.0; d.mix()],
            w: None,
        };
        match self {
            Self::MhcCu { seed } => params.projection = Some(normal_projection(&d, seed, 0.01)),
            Self::Liger { seed } => params.projection = Some(normal_projection(&d, seed, 1.0)),
            Self::MhcCuStatic { seed } => {
                let mut normal = Normal::new(seed);
                params.bias[2 * streams..].fill_with(|| 0.01 * normal.draw());
            }
            Self::Lucidrains { layer } => {
                let projection =
                    HostProjection { phi: vec![0.0; d.mix() * d.row()], alpha: [0.01; 3], norm_weight: None };
                params.projection = Some(projection);
                params.bias = one_stream(streams, layer, 1.0, 0.0, 1.0);
            }
            Self::Tokenbender { layer } => params.bias = one_stream(streams, layer, 0.0, -8.0, 0.0),
        }
        params.check()?;
        Ok(params)
    }
}

/// `[pre | post | res]` with `on` for one stream of pre and on the diagonal of res, `off` elsewhere in these, and `post` for all of post.
fn one_stream(n: usize, layer: usize, on: f32, off: f32, post: f32) -> Vec<f32> {
    let choose = |yes: bool| if yes { on } else { off };
    let pre = (0..n).map(|i| choose(i == layer % n.max(1)));
    let res = (0..n * n).map(|k| choose(k / n == k % n));
    pre.chain(core::iter::repeat_n(post, n)).chain(res).collect()
}

fn normal_projection(d: &Dims, seed: u64, alpha: f32) -> HostProjection {
    let mut normal = Normal::new(seed);
    let phi = (0..d.mix() * d.row()).map(|_| 0.02 * normal.draw()).collect();
    HostProjection { phi, alpha: [alpha; 3], norm_weight: None }
}

/// Standard normal numbers: SplitMix64 and Box–Muller, in f64.
struct Normal {
    state: u64,
    spare: Option<f64>,
}

impl Normal {
    fn new(seed: u64) -> Self {
        Self { state: seed, spare: None }
    }

    /// Uniform in (0, 1].
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn draw(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare as f32;
        }
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let (sin, cos) = (core::f64::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some(radius * sin);
        (radius * cos) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_are_normal() {
        let mut normal = Normal::new(7);
        let n = 100_000;
        let draws: Vec<f64> = (0..n).map(|_| normal.draw() as f64).collect();
        let moment = |k: i32| draws.iter().map(|v| v.powi(k)).sum::<f64>() / n as f64;
        // Four standard errors: 0.013, 0.018, 0.05, 0.13.
        assert!(moment(1).abs() < 0.013 && (moment(2) - 1.0).abs() < 0.018, "{} {}", moment(1), moment(2));
        assert!(moment(3).abs() < 0.05 && (moment(4) - 3.0).abs() < 0.13, "{} {}", moment(3), moment(4));
    }

    #[test]
    fn seeds_decide_everything() {
        let make = |seed| Init::MhcCu { seed }.params(4, 8).unwrap();
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }

    #[test]
    fn peers_start_where_they_say() {
        let p = Init::MhcCu { seed: 0 }.params(4, 64).unwrap();
        let projection = p.projection.unwrap();
        assert_eq!((projection.alpha, projection.phi.len()), ([0.01; 3], 24 * 256));
        assert!(p.bias.iter().all(|b| *b == 0.0));
        assert_eq!(Init::Liger { seed: 0 }.params(4, 64).unwrap().projection.unwrap().alpha, [1.0; 3]);
        let p = Init::MhcCuStatic { seed: 0 }.params(4, 64).unwrap();
        assert!(
            p.projection.is_none()
                && p.bias[..8].iter().all(|b| *b == 0.0)
                && p.bias[8..].iter().all(|b| b.abs() < 0.06)
        );
        let p = Init::Lucidrains { layer: 5 }.params(3, 8).unwrap();
        assert_eq!(p.bias, [0., 0., 1., 1., 1., 1., 1., 0., 0., 0., 1., 0., 0., 0., 1.]);
        let p = Init::Tokenbender { layer: 1 }.params(2, 8).unwrap();
        assert_eq!(p.bias, [-8., 0., 0., 0., 0., -8., -8., 0.]);
    }

    #[test]
    fn bad_sizes_are_errors() {
        for (n, c) in [(0, 8), (33, 8), (4, 0)] {
            for init in [Init::MhcCu { seed: 0 }, Init::Lucidrains { layer: 1 }, Init::MhcCuStatic { seed: 0 }] {
                init.params(n, c).unwrap_err();
            }
        }
    }
}
