//! The log-domain projection and its gradient, the plain way.

use crate::Real;

/// `u` and `v` before each iteration and after the last.
type Potentials<R> = Vec<(Vec<R>, Vec<R>)>;

/// `P = n·exp(Z + u + v)` with `Z = logits / tau` for one n·n matrix.
pub fn forward<R: Real>(iters: u32, tau: f64, n: usize, logits: &[R]) -> Vec<R> {
    let z = scaled(tau, logits);
    let potentials = potentials(iters, n, &z);
    plan(n, &z, potentials.last())
}

/// The gradient of the logits for the gradient `d_h` of [`forward`]'s result.
pub fn backward<R: Real>(iters: u32, tau: f64, n: usize, logits: &[R], d_h: &[R]) -> Vec<R> {
    let z = scaled(tau, logits);
    let potentials = potentials(iters, n, &z);
    let p = plan(n, &z, potentials.last());
    let mut d_z: Vec<R> = d_h.iter().zip(&p).map(|(&d, &p)| d * p).collect();
    let mut d_u: Vec<R> = (0..n).map(|i| (0..n).map(|j| d_z[i * n + j]).sum()).collect();
    let mut d_v: Vec<R> = (0..n).map(|j| (0..n).map(|i| d_z[i * n + j]).sum()).collect();
    for pair in potentials.windows(2).rev() {
        let (v_before, u_after) = (&pair[0].1, &pair[1].0);
        for j in 0..n {
            let w = softmax((0..n).map(|i| z[i * n + j] + u_after[i]));
            for i in 0..n {
                d_z[i * n + j] = d_z[i * n + j] - w[i] * d_v[j];
                d_u[i] = d_u[i] - w[i] * d_v[j];
            }
        }
        d_v = vec![R::zero(); n];
        for i in 0..n {
            let w = softmax((0..n).map(|j| z[i * n + j] + v_before[j]));
            for j in 0..n {
                d_z[i * n + j] = d_z[i * n + j] - w[j] * d_u[i];
                d_v[j] = d_v[j] - w[j] * d_u[i];
            }
        }
        d_u = vec![R::zero(); n];
    }
    d_z.iter().map(|&d| d / R::c(tau)).collect()
}

fn scaled<R: Real>(tau: f64, logits: &[R]) -> Vec<R> {
    logits.iter().map(|&l| l / R::c(tau)).collect()
}

/// `u_i = -ln n - lse_j(Z_ij + v_j)`, then `v_j = -ln n - lse_i(Z_ij + u_i)`, from zeros.
fn potentials<R: Real>(iters: u32, n: usize, z: &[R]) -> Potentials<R> {
    let marginal = R::c(-(n as f64).ln());
    let mut all = vec![(vec![R::zero(); n], vec![R::zero(); n])];
    for k in 0..iters as usize {
        let v = &all[k].1;
        let u: Vec<R> = (0..n).map(|i| marginal - lse((0..n).map(|j| z[i * n + j] + v[j]))).collect();
        let v = (0..n).map(|j| marginal - lse((0..n).map(|i| z[i * n + j] + u[i]))).collect();
        all.push((u, v));
    }
    all
}

fn plan<R: Real>(n: usize, z: &[R], potentials: Option<&(Vec<R>, Vec<R>)>) -> Vec<R> {
    let at = |e: usize| potentials.map_or(z[e], |(u, v)| z[e] + u[e / n] + v[e % n]);
    (0..n * n).map(|e| R::c(n as f64) * at(e).exp()).collect()
}

fn lse<R: Real>(v: impl Iterator<Item = R> + Clone) -> R {
    let max = R::c(v.clone().map(R::value).fold(f64::NEG_INFINITY, f64::max));
    max + v.map(|v| (v - max).exp()).sum::<R>().ln()
}

fn softmax<R: Real>(v: impl Iterator<Item = R> + Clone) -> Vec<R> {
    let lse = lse(v.clone());
    v.map(|v| (v - lse).exp()).collect()
}
