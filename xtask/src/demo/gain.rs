//! The gain of the composite mapping: how much a signal on the residual streams, or a gradient, may grow over depth.
//!
//! Forward, at depth l: the largest row sum of |H_l ⋯ H_1|. Backward, at depth l: the largest column sum of |H_L ⋯ H_l|, through which
//! the gradient at the end reaches sub-layer l. Both are 1 for doubly stochastic matrices, whose products are doubly stochastic.

use mhc_ops::Orientation;
use serde::Serialize;

/// n·n, row-major `[to][from]`.
pub type Matrix = Vec<f64>;

/// Over all tokens.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Gain {
    pub mean: f64,
    pub largest: f64,
}

/// H_res of every token from packed coefficients.
pub fn matrices(n: usize, orientation: Orientation, mixes: &[f64]) -> Vec<Matrix> {
    let matrix = |m: &[f64]| (0..n * n).map(|e| m[2 * n + orientation.index(n, e / n, e % n)]).collect();
    mixes.chunks(n * (n + 2)).map(matrix).collect()
}

pub fn product(n: usize, a: &Matrix, b: &Matrix) -> Matrix {
    (0..n * n).map(|e| (0..n).map(|k| a[e / n * n + k] * b[k * n + e % n]).sum()).collect()
}

pub fn row_sums(n: usize, m: &Matrix) -> Vec<f64> {
    (0..n).map(|i| (0..n).map(|j| m[i * n + j].abs()).sum()).collect()
}

pub fn column_sums(n: usize, m: &Matrix) -> Vec<f64> {
    (0..n).map(|j| (0..n).map(|i| m[i * n + j].abs()).sum()).collect()
}

fn largest(v: &[f64]) -> f64 {
    v.iter().fold(0.0, |m, x| x.max(m))
}

/// The forward gain after each sub-layer, the backward gain before each, and the product of all sub-layers of every token.
pub fn composite(n: usize, layers: &[Vec<Matrix>]) -> (Vec<Gain>, Vec<Gain>, Vec<Matrix>) {
    let over_tokens = |sums: fn(usize, &Matrix) -> Vec<f64>, p: &[Matrix]| {
        let all: Vec<f64> = p.iter().map(|m| largest(&sums(n, m))).collect();
        Gain { mean: all.iter().sum::<f64>() / all.len() as f64, largest: largest(&all) }
    };
    let mut forward = Vec::new();
    let mut so_far = identities(n, layers[0].len());
    for layer in layers {
        so_far = so_far.iter().zip(layer).map(|(p, h)| product(n, h, p)).collect();
        forward.push(over_tokens(row_sums, &so_far));
    }
    let mut backward = Vec::new();
    let mut from_here = identities(n, layers[0].len());
    for layer in layers.iter().rev() {
        from_here = from_here.iter().zip(layer).map(|(p, h)| product(n, p, h)).collect();
        backward.push(over_tokens(column_sums, &from_here));
    }
    backward.reverse();
    (forward, backward, so_far)
}

fn identities(n: usize, tokens: usize) -> Vec<Matrix> {
    vec![(0..n * n).map(|e| if e / n == e % n { 1.0 } else { 0.0 }).collect(); tokens]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_taken_in_the_order_of_the_network() {
        let (a, b) = (vec![1.0, 2.0, 0.0, 1.0], vec![1.0, 0.0, -3.0, 1.0]);
        assert_eq!(product(2, &a, &b), [-5.0, 2.0, -3.0, 1.0]);
        let (forward, backward, all) = composite(2, &[vec![b], vec![a]]);
        // H_2 H_1 with H_1 = b: row sums of absolute values 7 and 4, column sums 8 and 3.
        assert_eq!(all, [vec![-5.0, 2.0, -3.0, 1.0]]);
        assert_eq!((forward[0].largest, forward[1].largest), (4.0, 7.0));
        assert_eq!((backward[0].largest, backward[1].largest), (8.0, 3.0));
    }

    #[test]
    fn orientation_is_undone() {
        let mixes = [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(matrices(2, Orientation::ToFrom, &mixes), [vec![1.0, 2.0, 3.0, 4.0]]);
        assert_eq!(matrices(2, Orientation::FromTo, &mixes), [vec![1.0, 3.0, 2.0, 4.0]]);
    }
}
