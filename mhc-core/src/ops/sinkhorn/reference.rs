//! Sinkhorn's projection of one matrix and its exact gradient, every form of it.
//!
//! Everything is kept as logarithms: there a half-step is a subtraction per line, no logit can overflow, and no line can vanish.
//! The gradient, too, is simplest there. With Y the matrix after a half-step and G the gradient by ln Y, the gradient by the
//! logarithm of the matrix before it is `G - Y·Σ_line G`, whether ε is added or not; where the denominator was a constant it is G.

use crate::{Eps, Order, Orientation, Real, SinkhornForm, Start};

/// What backward needs to know of one half-step.
struct Step<R> {
    /// Along rows, or along columns.
    rows: bool,
    /// The matrix after it.
    y: Vec<R>,
    /// For each line, whether its denominator depended on it.
    live: Vec<bool>,
}

/// `H_res` for the logits of one n·n matrix, both laid out as `orientation` says.
pub fn forward<R: Real>(form: &SinkhornForm, orientation: Orientation, n: usize, logits: &[R]) -> Vec<R> {
    run(form, orientation, n, logits).0
}

/// The gradient of the logits for the gradient `d_h` of [`forward`]'s result.
pub fn backward<R: Real>(form: &SinkhornForm, orientation: Orientation, n: usize, logits: &[R], d_h: &[R]) -> Vec<R> {
    let (h, steps) = run(form, orientation, n, logits);
    let mut g: Vec<R> = d_h.iter().zip(&h).map(|(&d, &h)| d * h).collect();
    for (k, step) in steps.iter().enumerate().rev() {
        if k == 0 && form.start == Start::Softmax && form.eps.added() > 0.0 {
            // From ln(S + ε) to ln S.
            let eps = R::c(form.eps.added());
            g.iter_mut().zip(&step.y).for_each(|(g, &s)| *g = *g * s / (s + eps));
        }
        for l in (0..n).filter(|&l| step.live[l]) {
            let line = Line { orientation, n, rows: step.rows, l };
            let sum: R = line.indices().map(|e| g[e]).sum();
            line.indices().for_each(|e| g[e] = g[e] - step.y[e] * sum);
        }
    }
    g
}

/// The projection and its half-steps; a softmax at the start is one of them.
fn run<R: Real>(form: &SinkhornForm, orientation: Orientation, n: usize, logits: &[R]) -> (Vec<R>, Vec<Step<R>>) {
    let mut log = logits.to_vec();
    let mut steps = Vec::with_capacity(2 * form.iters as usize);
    for k in 0..2 * form.iters as usize {
        let rows = (form.order == Order::RowsFirst) == (k % 2 == 0);
        let lines = (0..n).map(|l| Line { orientation, n, rows, l });
        if k == 0 && form.start == Start::ExpShifted {
            for line in lines.clone() {
                let max = R::c(line.max(&log));
                line.shift(&mut log, max);
            }
        }
        let softmax = k == 0 && form.start == Start::Softmax;
        let eps = if softmax { Eps::None } else { form.eps };
        let live = lines.map(|line| line.divide(&mut log, eps)).collect();
        steps.push(Step { rows, y: log.iter().map(|l| l.exp()).collect(), live });
        if softmax && form.eps.added() > 0.0 {
            log.iter_mut().for_each(|l| *l = (l.exp() + R::c(form.eps.added())).ln());
        }
    }
    (log.iter().map(|l| l.exp()).collect(), steps)
}

/// A row or a column of `H_res[to][from]`.
#[derive(Clone, Copy)]
struct Line {
    orientation: Orientation,
    n: usize,
    rows: bool,
    l: usize,
}

impl Line {
    /// Where its elements are.
    fn indices(self) -> impl Iterator<Item = usize> {
        let Line { orientation, n, rows, l } = self;
        (0..n).map(move |k| if rows { orientation.index(n, l, k) } else { orientation.index(n, k, l) })
    }

    fn max<R: Real>(self, log: &[R]) -> f64 {
        self.indices().map(|e| log[e].value()).fold(f64::NEG_INFINITY, f64::max)
    }

    fn shift<R: Real>(self, log: &mut [R], by: R) {
        self.indices().for_each(|e| log[e] = log[e] - by);
    }

    /// One half-step of the line; whether its denominator depends on the line. ε goes into the sum like one more element.
    fn divide<R: Real>(self, log: &mut [R], eps: Eps) -> bool {
        let ln_eps = eps.value().ln();
        let added = eps.added().ln();
        let max = self.max(log).max(added);
        let sum: R = self.indices().map(|e| (log[e] - R::c(max)).exp()).sum();
        let ln_sum = (sum + R::c((added - max).exp())).ln();
        match eps {
            Eps::Threshold(_) if max + ln_sum.value() <= ln_eps => return false,
            Eps::Clamp(_) if max + ln_sum.value() <= ln_eps => {
                self.shift(log, R::c(ln_eps));
                return false;
            }
            // In two steps, for the digits of a large maximum.
            _ => {
                self.shift(log, R::c(max));
                self.shift(log, ln_sum);
            }
        }
        true
    }
}
