//! The Newton-Schulz projection and its gradient, the plain way.

use super::EPS;
use crate::Real;

/// `H = X∘X` with X the Newton-Schulz iterates of one n·n matrix.
pub fn forward<R: Real>(coeffs: &[[f64; 3]], n: usize, logits: &[R]) -> Vec<R> {
    let x = coeffs
        .iter()
        .fold(scaled(logits), |x, k| add(R::c(k[0]), &x, R::one(), &product(n, &polynomial(k, n, &x), &x)));
    x.iter().map(|&x| x * x).collect()
}

/// The gradient of the logits for the gradient `d_h` of [`forward`]'s result.
pub fn backward<R: Real>(coeffs: &[[f64; 3]], n: usize, logits: &[R], d_h: &[R]) -> Vec<R> {
    let mut xs = vec![scaled(logits)];
    for k in coeffs {
        let x = &xs[xs.len() - 1];
        let next = add(R::c(k[0]), x, R::one(), &product(n, &polynomial(k, n, x), x));
        xs.push(next);
    }
    let last = &xs[coeffs.len()];
    let mut g: Vec<R> = last.iter().zip(d_h).map(|(&x, &d)| R::c(2.0) * x * d).collect();
    for (k, x) in coeffs.iter().zip(&xs).rev() {
        let [a, b, c] = k.map(R::c);
        let gram = product(n, x, &transposed(n, x));
        let d_b = product(n, &g, &transposed(n, x));
        let sides = add(R::one(), &product(n, &d_b, &gram), R::one(), &product(n, &gram, &d_b));
        let d_gram = add(b, &d_b, c, &sides);
        let symmetric = add(R::one(), &d_gram, R::one(), &transposed(n, &d_gram));
        let through_b = product(n, &polynomial(k, n, x), &g);
        let direct = add(a, &g, R::one(), &through_b);
        g = add(R::one(), &direct, R::one(), &product(n, &symmetric, x));
    }
    let norm = norm(logits);
    if norm.value() == 0.0 {
        return g.iter().map(|&g| g / R::c(EPS)).collect();
    }
    let q = norm + R::c(EPS);
    let along = g.iter().zip(logits).map(|(&g, &l)| g * l).sum::<R>() / (q * q * norm);
    add(R::one() / q, &g, -along, logits)
}

fn norm<R: Real>(logits: &[R]) -> R {
    logits.iter().map(|&l| l * l).sum::<R>().sqrt()
}

fn scaled<R: Real>(logits: &[R]) -> Vec<R> {
    let q = norm(logits) + R::c(EPS);
    logits.iter().map(|&l| l / q).collect()
}

/// `B = b·A + c·A²` with `A = X·X^T`.
fn polynomial<R: Real>(k: &[f64; 3], n: usize, x: &[R]) -> Vec<R> {
    let gram = product(n, x, &transposed(n, x));
    add(R::c(k[1]), &gram, R::c(k[2]), &product(n, &gram, &gram))
}

fn product<R: Real>(n: usize, a: &[R], b: &[R]) -> Vec<R> {
    (0..n * n).map(|e| (0..n).map(|k| a[e / n * n + k] * b[k * n + e % n]).sum()).collect()
}

fn transposed<R: Real>(n: usize, a: &[R]) -> Vec<R> {
    (0..n * n).map(|e| a[e % n * n + e / n]).collect()
}

/// `p·a + q·b`.
fn add<R: Real>(p: R, a: &[R], q: R, b: &[R]) -> Vec<R> {
    a.iter().zip(b).map(|(&a, &b)| p * a + q * b).collect()
}
