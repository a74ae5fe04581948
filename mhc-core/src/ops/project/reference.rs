//! The normalised projection and its gradient, the plain way. Also the inside of `pre`, `head` and the layers.

use crate::Real;

/// `z [T, P]` and `inv_rms [T]` for rows of `k` numbers and the P rows of `phi`; `weight [k]` may be empty.
pub fn forward<R: Real>(k: usize, rms_eps: f64, x: &[R], phi: &[R], weight: &[R]) -> (Vec<R>, Vec<R>) {
    let phi = folded(k, phi, weight);
    let (mut z, mut inv_rms) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(k) {
        let mean = row.iter().map(|&v| v * v).sum::<R>() / R::c(k as f64);
        let rho = R::one() / (mean + R::c(rms_eps)).sqrt();
        z.extend(phi.chunks_exact(k).map(|column| rho * dot(column, row)));
        inv_rms.push(rho);
    }
    (z, inv_rms)
}

/// What [`backward`] finds.
#[derive(Clone, Debug)]
pub struct Gradient<R> {
    /// `d_x [T, k]`.
    pub x: Vec<R>,
    /// `d_phi [P, k]`.
    pub phi: Vec<R>,
    /// `d_weight [k]`; empty without a weight.
    pub weight: Vec<R>,
}

/// The gradient for the upstream `d_z [T, P]`, with what [`forward`] returned.
pub fn backward<R: Real>(k: usize, x: &[R], phi: &[R], weight: &[R], z: &[R], inv_rms: &[R], d_z: &[R]) -> Gradient<R> {
    let p = phi.len() / k;
    let w = folded(k, phi, weight);
    let mut d_x = Vec::with_capacity(x.len());
    let mut d_w = vec![R::zero(); phi.len()];
    for (t, row) in x.chunks_exact(k).enumerate() {
        let (z, d_z, rho) = (&z[t * p..][..p], &d_z[t * p..][..p], inv_rms[t]);
        let shrink = dot(d_z, z) * rho * rho / R::c(k as f64);
        for c in 0..k {
            let through: R = (0..p).map(|j| rho * d_z[j] * w[j * k + c]).sum();
            d_x.push(through - row[c] * shrink);
            for j in 0..p {
                d_w[j * k + c] += rho * d_z[j] * row[c];
            }
        }
    }
    let mut d_weight = vec![R::zero(); weight.len()];
    for (e, (&g, &phi)) in d_w.iter().zip(phi).enumerate() {
        if let Some(sum) = d_weight.get_mut(e % k) {
            *sum += g * phi;
        }
    }
    Gradient { x: d_x, phi: folded(k, &d_w, weight), weight: d_weight }
}

/// `phi ⊙ weight`; `phi` where there is no weight.
fn folded<R: Real>(k: usize, phi: &[R], weight: &[R]) -> Vec<R> {
    phi.iter().enumerate().map(|(e, &v)| weight.get(e % k).map_or(v, |&w| v * w)).collect()
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}
