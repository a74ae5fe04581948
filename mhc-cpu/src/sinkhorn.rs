//! Sinkhorn's projection and its gradient, a matrix per lane.
//!
//! The iterates are never formed. With E the exponentials of the logits, every iterate is `Y = diag(y)·E·diag(x)` (or its transpose),
//! and a half-step only changes one of the two vectors: with `p = 1/y` and `q = E·x`, dividing by the sums `s = y·q` is
//!
//! | ε | | |
//! |---|---|---|
//! | none | Y / s | `p ← q` |
//! | added | Y / (s + ε) | `p ← q + ε·p` |
//! | clamp | Y / max(s, ε) | `p ← max(q, ε·p)` |
//! | threshold | Y / s where s > ε | `p ← q` where `q > ε·p` |
//!
//! So a half-step is n² fused multiply-adds and n divisions, E is only read, and rounding errors do not pile up over the iterations.
//!
//! Range: the maximum of each line along the first half-step is taken out of the logits, then that of each line along the second, so
//! that every line of E has a 1; what was taken out goes into the first `p` of either axis. Where that overflows (a line of e^-160
//! beside ones of e^0), p is infinite and its logarithm is kept in `reserve`, from which every half-step takes ln ε until p is in
//! range again: added and clamped ε revive such lines, and in exact arithmetic 20 iterations make them sum to 1.
//!
//! Gradient: with G the gradient by the logarithm of the matrix, a half-step backwards is `G ← G - Y·(line sums of G)`, without any
//! division; where the denominator was a constant it is the identity. Only the vectors y and x are kept, n per half-step, with a
//! minus sign where the denominator was constant. For n = 1, where `1 - Y` would be all rounding, it is the constant share of the
//! denominator, ε·p over the new p, that is kept.
//!
//! Limits: exact for logits down to -80; start exp on a matrix that is below e^-80 as a whole may stay 0 where ε revives it in exact
//! arithmetic. Results are finite whatever the logits.
//!
//! Tried and rejected: normalising the matrix itself (n² more multiplications, stores of E, and history of n² per half-step or
//! un-normalising, which loses digits).

mod lines;

use lines::{step_back, sums};
use mhc_core::{Eps, Order, Orientation, SinkhornForm, Start};

use crate::{
    lanes::{MAX_LANES, load, store},
    simd::Simd,
};

/// Above this, e^v is kept as v: 1/e^v would have no digits left.
const RESERVE: f32 = 80.0;

/// Below this p is not let: a line that has nothing but vanished neighbours shrinks for ever.
const LEAST: f32 = 1e-36;

/// Groups that are projected side by side. A half-step of a group waits for its own sums and divisions, 37 clocks for n = 4 on a Xeon
/// with AVX-512, where its instructions need 22: of two in turns one takes 25, of four 24.
pub(crate) const TOGETHER: usize = 2;

/// What a line is divided by.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    Plain,
    Added,
    Threshold,
    Clamp,
}

/// The projection in one form, for matrices of one size.
#[derive(Clone, Copy)]
pub(crate) struct Projection {
    n: usize,
    start: Start,
    rule: Rule,
    eps: f32,
    ln_eps: f32,
    half_steps: usize,
    /// Whether memory is `[second][first]`.
    transposed: bool,
}

/// A vector per line of one axis.
#[derive(Clone, Copy)]
struct Axis<S: Simd, const M: usize> {
    /// 1 / scale.
    p: [S::V; M],
    /// ln p where p is infinite.
    reserve: [S::V; M],
    /// What the lines of E are multiplied by.
    scale: [S::V; M],
}

/// A group of matrices between its half-steps.
#[derive(Clone, Copy)]
struct Group<S: Simd, const M: usize> {
    /// E.
    e: *mut f32,
    first: Axis<S, M>,
    second: Axis<S, M>,
    /// Whether a line has to be kept in reserve.
    revive: bool,
}

impl<S: Simd, const M: usize> Group<S, M> {
    /// The group of logits at `e`.
    #[inline(always)]
    fn at(s: S, e: *mut f32) -> Self {
        let zero = [s.zero(); M];
        let (first, second) =
            (Axis { p: zero, reserve: zero, scale: zero }, Axis { p: zero, reserve: zero, scale: zero });
        Self { e, first, second, revive: false }
    }
}

/// Vectors that backward needs of forward.
#[derive(Clone, Copy)]
struct Trace {
    /// n vectors before the first half-step and after each.
    scales: *mut f32,
    /// The softmax, where ε was added to it.
    softmax: *mut f32,
}

/// Records the vectors `v` of the step before half-step `k`.
#[inline(always)]
unsafe fn keep<S: Simd, const M: usize>(s: S, n: usize, trace: Option<Trace>, k: usize, v: &[S::V; M]) {
    let Some(trace) = trace else { return };
    for l in 0..n {
        // SAFETY: the trace has n vectors for every step.
        unsafe { store(s, trace.scales, k * n + l, v[l]) };
    }
}

/// e^v, or infinity from where it is kept as v.
#[inline(always)]
fn exp_in_range<S: Simd>(s: S, v: S::V) -> S::V {
    s.select_gt(v, s.splat(RESERVE), s.splat(f32::INFINITY), s.exp(v))
}

impl Projection {
    pub fn new(form: &SinkhornForm, orientation: Orientation, n: usize) -> Self {
        let eps = form.eps.value() as f32;
        let rule = match form.eps {
            _ if eps == 0.0 => Rule::Plain,
            Eps::None => Rule::Plain,
            Eps::Added(_) => Rule::Added,
            Eps::Threshold(_) => Rule::Threshold,
            Eps::Clamp(_) => Rule::Clamp,
        };
        let transposed = (orientation == Orientation::ToFrom) != (form.order == Order::RowsFirst);
        Self { n, start: form.start, rule, eps, ln_eps: eps.ln(), half_steps: 2 * form.iters as usize, transposed }
    }

    /// f32s of a group of matrices.
    pub fn group_len(&self) -> usize {
        self.n * self.n * MAX_LANES
    }

    /// f32s of scratch that [`backward`](Self::backward) needs besides its operands.
    pub fn trace_len(&self) -> usize {
        let softmax = if self.softened() { self.group_len() } else { 0 };
        softmax + (self.half_steps + 1) * self.n * MAX_LANES
    }

    /// Vectors from one row of memory to the next in a group, and from one column to the next.
    #[inline(always)]
    pub fn strides(&self) -> (usize, usize) {
        if self.transposed { (1, self.n) } else { (self.n, 1) }
    }

    /// Whether ε is added to a softmax at the start.
    fn softened(&self) -> bool {
        self.start == Start::Softmax && self.rule == Rule::Added
    }

    /// Replaces up to [`TOGETHER`] groups of logits by their projections. A group's do not depend on the others.
    ///
    /// # Safety
    /// `e` holds n² vectors of `S` for each of `groups`, [`group_len`](Self::group_len) apart.
    #[inline(always)]
    pub unsafe fn forward<S: Simd>(&self, s: S, e: *mut f32, groups: usize) {
        s.outlined(
            #[inline(always)]
            // SAFETY: the caller's promise, and the sizes are what they are.
            || unsafe {
                if self.n == 4 && groups == TOGETHER {
                    return self.project::<S, 4, 4, TOGETHER>(s, e);
                }
                for i in 0..groups {
                    let e = e.add(i * self.group_len());
                    match self.n {
                        1 => self.project::<S, 1, 1, 1>(s, e),
                        2 => self.project::<S, 2, 2, 1>(s, e),
                        4 => self.project::<S, 4, 4, 1>(s, e),
                        _ => self.project::<S, 0, 32, 1>(s, e),
                    }
                }
            },
        );
    }

    /// Replaces the gradients `g` of a group of projections by those of the logits `e`, which are lost.
    ///
    /// # Safety
    /// `e` and `g` hold n² vectors of `S`, `scratch` has [`trace_len`](Self::trace_len) elements.
    #[inline(always)]
    pub unsafe fn backward<S: Simd>(&self, s: S, e: *mut f32, g: *mut f32, scratch: &mut [f32]) {
        debug_assert!(scratch.len() >= self.trace_len());
        let scales = scratch.as_mut_ptr();
        s.outlined(
            #[inline(always)]
            // SAFETY: the caller's promise; the softmax follows the vectors of `half_steps + 1` steps.
            || unsafe {
                let trace = Trace { scales, softmax: scales.add((self.half_steps + 1) * self.n * MAX_LANES) };
                match self.n {
                    1 => self.gradient::<S, 1, 1>(s, e, g, trace),
                    2 => self.gradient::<S, 2, 2>(s, e, g, trace),
                    4 => self.gradient::<S, 4, 4>(s, e, g, trace),
                    _ => self.gradient::<S, 0, 32>(s, e, g, trace),
                }
            },
        );
    }

    /// [`forward`](Self::forward) of `G` groups for n = `N`, or for any n if `N` is 0; `M` bounds n.
    #[inline(always)]
    unsafe fn project<S: Simd, const N: usize, const M: usize, const G: usize>(&self, s: S, e: *mut f32) {
        let n = if N > 0 { N } else { self.n };
        // SAFETY: the caller's promise.
        unsafe {
            let mut groups = [Group::<S, M>::at(s, e); G];
            for i in 1..G {
                groups[i].e = e.add(i * self.group_len());
            }
            self.scale::<S, N, M, G>(s, &mut groups, None);
            for Group { e, first, second, .. } in &groups {
                for f in 0..n {
                    for g in 0..n {
                        let y = s.mul(s.mul(load(s, *e, f * n + g), first.scale[f]), second.scale[g]);
                        store(s, *e, f * n + g, y);
                    }
                }
            }
        }
    }

    /// Replaces the logits by E and finds the vectors of the last iterate. A trace is one group's.
    #[inline(always)]
    unsafe fn scale<S: Simd, const N: usize, const M: usize, const G: usize>(
        &self,
        s: S,
        groups: &mut [Group<S, M>; G],
        trace: Option<Trace>,
    ) {
        let n = if N > 0 { N } else { self.n };
        // SAFETY: the caller's promise; lines and steps stay within n².
        unsafe {
            for i in 0..G {
                self.exponentials::<S, N, M>(s, &mut groups[i]);
                keep(s, n, trace, 0, &groups[i].second.scale);
            }
            let softmax = self.start == Start::Softmax;
            for k in (0..self.half_steps).step_by(2) {
                let rule = if softmax && k == 0 { Rule::Plain } else { self.rule };
                for i in 0..G {
                    let Group { e, first, second, revive } = &mut groups[i];
                    let mark = self.half_step::<S, N, M>(s, *e, (n, 1), rule, second, first, *revive);
                    if self.softened() && k == 0 {
                        self.soften(s, n, *e, first, second, trace);
                        *revive = false;
                        keep(s, n, trace, 1, if N == 1 { &mark } else { &first.scale });
                    } else {
                        keep(s, n, trace, k + 1, &mark);
                    }
                    let mark = self.half_step::<S, N, M>(s, *e, (1, n), self.rule, first, second, *revive);
                    keep(s, n, trace, k + 2, &mark);
                }
            }
        }
    }

    /// Takes the maxima out of the logits, and finds out whether any line has to be kept in reserve.
    #[inline(always)]
    unsafe fn exponentials<S: Simd, const N: usize, const M: usize>(&self, s: S, group: &mut Group<S, M>) {
        let n = if N > 0 { N } else { self.n };
        let Group { e, first, second, revive } = group;
        let e = *e;
        // The first p of an axis is asked for where ε comes in before a sum has taken its place.
        let (first_p, second_p) =
            (self.start != Start::Softmax && self.rule != Rule::Plain, self.rule != Rule::Plain && !self.softened());
        let mut far = s.zero();
        // SAFETY: the caller's promise.
        unsafe {
            for f in 0..n {
                let mut max = load(s, e, f * n);
                for g in 1..n {
                    max = s.max(max, load(s, e, f * n + g));
                }
                for g in 0..n {
                    store(s, e, f * n + g, s.sub(load(s, e, f * n + g), max));
                }
                if self.start == Start::Exp {
                    first.reserve[f] = s.sub(s.zero(), max);
                }
                if first_p {
                    first.p[f] = exp_in_range(s, first.reserve[f]);
                }
                far = s.max(far, first.reserve[f]);
            }
            for g in 0..n {
                let mut max = load(s, e, g);
                for f in 1..n {
                    max = s.max(max, load(s, e, f * n + g));
                }
                for f in 0..n {
                    store(s, e, f * n + g, s.exp(s.sub(load(s, e, f * n + g), max)));
                }
                second.reserve[g] = s.sub(s.zero(), max);
                if second_p {
                    second.p[g] = exp_in_range(s, second.reserve[g]);
                }
                second.scale[g] = s.exp(max);
                far = s.max(far, second.reserve[g]);
            }
        }
        let any = s.sum(s.select_gt(far, s.splat(RESERVE), s.splat(1.0), s.zero())) > 0.0;
        *revive = any && matches!(self.rule, Rule::Added | Rule::Clamp);
    }

    /// From the scaled E to `softmax + ε`, with nothing in the vectors.
    #[inline(always)]
    unsafe fn soften<S: Simd, const M: usize>(
        &self,
        s: S,
        n: usize,
        e: *mut f32,
        first: &mut Axis<S, M>,
        second: &mut Axis<S, M>,
        trace: Option<Trace>,
    ) {
        for f in 0..n {
            for g in 0..n {
                // SAFETY: the caller's promise.
                unsafe {
                    let y = s.mul(s.mul(load(s, e, f * n + g), first.scale[f]), second.scale[g]);
                    if let Some(trace) = trace {
                        store(s, trace.softmax, f * n + g, y);
                    }
                    store(s, e, f * n + g, s.add(y, s.splat(self.eps)));
                }
            }
        }
        let one = [s.splat(1.0); M];
        (first.p, first.scale, second.p, second.scale) = (one, one, one, one);
    }

    /// One half-step over the lines of `axis`, `line` vectors apart, their elements `step` apart. Returns its scales, negative where the
    /// denominator was a constant; for `N` = 1 the constant share of the denominator.
    #[inline(always)]
    unsafe fn half_step<S: Simd, const N: usize, const M: usize>(
        &self,
        s: S,
        e: *const f32,
        (line, step): (usize, usize),
        rule: Rule,
        other: &Axis<S, M>,
        axis: &mut Axis<S, M>,
        revive: bool,
    ) -> [S::V; M] {
        let n = if N > 0 { N } else { self.n };
        let mut old = [s.zero(); M];
        if rule != Rule::Plain {
            for l in 0..n {
                old[l] = s.mul(s.splat(self.eps), axis.p[l]);
            }
            if revive {
                for l in 0..n {
                    axis.reserve[l] = s.add(axis.reserve[l], s.splat(self.ln_eps));
                    let back = exp_in_range(s, axis.reserve[l]);
                    old[l] = s.select_gt(axis.p[l], s.splat(f32::MAX), back, old[l]);
                }
            }
        }
        let mut q = if rule == Rule::Added { old } else { [s.zero(); M] };
        // SAFETY: the caller's promise.
        unsafe { sums::<S, N, M>(s, n, e, (line, step), &other.scale, &mut q) };
        let mut mark = [s.zero(); M];
        let one = s.splat(1.0);
        for l in 0..n {
            let mut p = match rule {
                Rule::Plain | Rule::Added => q[l],
                Rule::Clamp => s.max(q[l], old[l]),
                Rule::Threshold => s.select_gt(q[l], old[l], q[l], axis.p[l]),
            };
            if revive {
                p = s.max(p, s.splat(LEAST));
            }
            let scale = s.recip(p);
            axis.p[l] = p;
            axis.scale[l] = scale;
            mark[l] = match rule {
                Rule::Plain if N == 1 => s.zero(),
                Rule::Added if N == 1 => s.mul(old[l], scale),
                Rule::Clamp | Rule::Threshold if N == 1 => s.select_gt(q[l], old[l], s.zero(), one),
                Rule::Plain | Rule::Added => scale,
                Rule::Clamp | Rule::Threshold => s.select_gt(q[l], old[l], scale, s.sub(s.zero(), scale)),
            };
        }
        mark
    }

    /// [`backward`](Self::backward) for n = `N`, or for any n if `N` is 0; `M` bounds n.
    #[inline(always)]
    unsafe fn gradient<S: Simd, const N: usize, const M: usize>(&self, s: S, e: *mut f32, g: *mut f32, trace: Trace) {
        let n = if N > 0 { N } else { self.n };
        // SAFETY: the caller's promise.
        unsafe {
            let mut groups = [Group::<S, M>::at(s, e)];
            self.scale::<S, N, M, 1>(s, &mut groups, Some(trace));
            let [group] = groups;
            for f in 0..n {
                for k in 0..n {
                    let h = s.mul(s.mul(load(s, e, f * n + k), group.first.scale[f]), group.second.scale[k]);
                    store(s, g, f * n + k, s.mul(load(s, g, f * n + k), h));
                }
            }
            let softened = self.softened();
            if N == 1 {
                // An element divided by its own sum keeps the share of the denominator that was constant: exactly 0 without ε.
                for k in 1..=self.half_steps {
                    store(s, g, 0, s.mul(load(s, g, 0), load(s, trace.scales, k)));
                }
                return;
            }
            for k in (usize::from(softened)..self.half_steps).rev() {
                let lines = if k % 2 == 0 { (n, 1) } else { (1, n) };
                let mut other = [s.zero(); M];
                let mut own = [s.zero(); M];
                for l in 0..n {
                    let v = load(s, trace.scales, k * n + l);
                    other[l] = s.max(v, s.sub(s.zero(), v));
                    own[l] = s.sub(s.zero(), s.max(load(s, trace.scales, (k + 1) * n + l), s.zero()));
                }
                step_back::<S, N, M>(s, n, e, g, lines, &own, &other);
            }
            if softened {
                for i in 0..n * n {
                    let ratio = s.div(load(s, trace.softmax, i), load(s, e, i));
                    store(s, g, i, s.mul(load(s, g, i), ratio));
                }
                let (own, other) = ([s.splat(-1.0); M], [s.splat(1.0); M]);
                step_back::<S, N, M>(s, n, trace.softmax, g, (n, 1), &own, &other);
            }
        }
    }
}
