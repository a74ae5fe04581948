// Sinkhorn's projection of one n·n matrix and its exact gradient, in every form (arXiv 2512.24880, eq. 9).
//
// A matrix belongs to one thread, in registers, up to 4 streams; else to one wave, in shared memory, a line to a lane. `Matrix` hides
// the difference. Lines are divided in place. Logits that lie so far apart that f32 would lose small elements (more than e^60) take the
// same way in f64, whose elements go down to e^-700; its exponentials still have the accuracy of f32.
//
// Gradient: with Y the matrix after a half-step and G the gradient by ln Y, that by the logarithm of the matrix before it is
// G - Y·Σ_line G, or G where the denominator was a constant. Y is walked back by multiplying the lines with their denominators, which
// are all that forward leaves behind: 2·iters·n numbers.
#pragma once
#include "operand.cuh"
#include "reduce.cuh"

struct Form {
    // start: 0 exp, 1 exp shifted, 2 softmax; eps: 0 none, 1 added, 2 threshold, 3 clamp. lead: whether the lines of the first
    // half-step are those of the first index in memory.
    alignas(8) u32 start, lead, mode, iters;
    alignas(8) float eps;
};

static const u32 EXP = 0, EXP_SHIFTED = 1, SOFTMAX = 2, NONE = 0, ADDED = 1, THRESHOLD = 2, CLAMP = 3;
// Elements of shared memory that a wave needs for one matrix.
static const u32 MATRIX = 32 * 33;

DEVICE void exponential_of(float v, float& e) { e = exponential(v); }
DEVICE void exponential_of(float v, double& e) {
    const float x = smaller(larger(v, -700.0f), 700.0f), k = nearest_integer(x * 1.44269504f);
    const float r = fused(k, -1.42860677e-6f, fused(k, -0.693145752f, x));
    const u64 bits = (u64)(1023 + (int)k) << 52;
    e = exponential(r) * bits_to_double(bits);
}

// One thread's matrix.
template <class R, u32 N> struct OwnMatrix {
    R m[N * N];
    static constexpr u32 n = N;
    static const bool SINGLE = N == 1;
    DEVICE_MEMBER u32 first() const { return 0; }
    DEVICE_MEMBER u32 step() const { return 1; }
    DEVICE_MEMBER void sync() const {}
    template <bool FIRST> DEVICE_MEMBER R& at(u32 line, u32 k) { return m[FIRST ? line * N + k : k * N + line]; }
};

// One wave's matrix.
template <class R> struct WaveMatrix {
    R* m;
    u32 n;
    static const bool SINGLE = false;
    DEVICE_MEMBER u32 first() const { return lane_index(); }
    DEVICE_MEMBER u32 step() const { return MHC_WAVE; }
    DEVICE_MEMBER void sync() const { wave_barrier(); }
    template <bool FIRST> DEVICE_MEMBER R& at(u32 line, u32 k) { return m[FIRST ? line * 33 + k : k * 33 + line]; }
};

// Of sums of positive numbers that are far from both ends of the range (far_apart).
DEVICE float inverse_of(float v) { return reciprocal(v); }
DEVICE double inverse_of(double v) { return 1.0 / v; }

// A function of elements [a][b] in memory, as one of element b of line a of the first half-step.
template <class F> struct Led {
    F f;
    u32 lead;
    template <class... V> DEVICE_MEMBER auto operator()(u32 a, u32 b, V... v) const { return f(lead ? a : b, lead ? b : a, v...); }
};
template <class F> DEVICE Led<F> led(const Form& form, F f) { return {f, form.lead}; }

// One half-step. `record(line, d)` gets its denominator, negative where that did not depend on the line.
template <bool FIRST, class R, class M, class F> DEVICE void half_step(M& m, const Form& f, R, F record) {
    const R eps = f.eps;
#pragma unroll
    for (u32 l = m.first(); l < m.n; l += m.step()) {
        R sum = 0;
#pragma unroll 8
        for (u32 k = 0; k < m.n; ++k) sum += m.template at<FIRST>(l, k);
        const bool live = f.mode < THRESHOLD || sum > eps;
        const R d = f.mode == ADDED ? sum + eps : live ? sum : f.mode == CLAMP ? eps : (R)1;
        const R inverse = inverse_of(d);
#pragma unroll 8
        for (u32 k = 0; k < m.n; ++k) m.template at<FIRST>(l, k) *= inverse;
        record(l, live ? d : -d);
    }
    m.sync();
}

// The denominator of a line of the first half-step: `sum` is that of e^(logit - max). `live` says whether it depends on the line.
template <class R> DEVICE R first_denominator(const Form& f, R sum, float max, bool& live) {
    // exp takes the maximum out of the line, and so out of ε.
    R scale = 1;
    if (f.start == EXP) exponential_of(-max, scale);
    const R eps = f.eps * scale;
    const bool soft = f.start == SOFTMAX;
    live = soft || f.mode < THRESHOLD || sum > eps;
    return soft || f.mode == NONE ? sum : f.mode == ADDED ? sum + eps : live ? sum : f.mode == CLAMP ? eps : scale;
}

// The first half-step, from logits; without the ε that is added to a softmax. `in(l, k)` is element k of its line l: everything but `Led`
// takes the lines of the first half-step for the first index, so that there is one copy of the code.
template <class R, class M, class In, class F> DEVICE void start(M& m, const Form& f, R, In in, F record) {
#pragma unroll
    for (u32 l = m.first(); l < m.n; l += m.step()) {
        float max = -3.0e38f;
#pragma unroll 8
        for (u32 k = 0; k < m.n; ++k) max = larger(max, in(l, k));
        R sum = 0;
#pragma unroll 8
        for (u32 k = 0; k < m.n; ++k) {
            R e;
            exponential_of(in(l, k) - max, e);
            m.template at<true>(l, k) = e;
            sum += e;
        }
        bool live;
        const R d = first_denominator(f, sum, max, live);
        const R inverse = inverse_of(d);
#pragma unroll 8
        for (u32 k = 0; k < m.n; ++k) m.template at<true>(l, k) *= inverse;
        record(l, live ? d : -d);
    }
    m.sync();
}

// `record(step, line, d)` as in half_step.
template <class R, class M, class In, class F> DEVICE void sinkhorn(M& m, const Form& f, R r, In in, F record) {
    start(m, f, r, in, [&](u32 l, R d) { record(0, l, d); });
    if (f.start == SOFTMAX && f.mode == ADDED) {
#pragma unroll
        for (u32 l = m.first(); l < m.n; l += m.step()) {
#pragma unroll 8
            for (u32 k = 0; k < m.n; ++k) m.template at<true>(l, k) += (R)f.eps;
        }
        m.sync();
    }
    for (u32 k = 1; k < 2 * f.iters; ++k) {
        const auto one = [&](u32 l, R d) { record(k, l, d); };
        k % 2 == 0 ? half_step<true>(m, f, r, one) : half_step<false>(m, f, r, one);
    }
}

// `added` is the ε in the denominators. A line of one element keeps its share of them: 1 - v would be all rounding.
template <bool FIRST, class R, class M, class D> DEVICE void walk_back(M& y, M& g, R added, D denominator) {
#pragma unroll
    for (u32 l = y.first(); l < y.n; l += y.step()) {
        const R d = denominator(l);
        if constexpr (M::SINGLE) {
            if (d > 0) g.template at<FIRST>(l, 0) *= added * inverse_of(d);
            continue;
        }
        R sum = 0;
#pragma unroll 8
        for (u32 k = 0; k < y.n; ++k) sum += g.template at<FIRST>(l, k);
        if (!(d > 0)) sum = 0;
#pragma unroll 8
        for (u32 k = 0; k < y.n; ++k) {
            R& v = y.template at<FIRST>(l, k);
            g.template at<FIRST>(l, k) -= v * sum;
            v *= d > 0 ? d : -d;
        }
    }
    y.sync();
}

// On entry `y` is the projection and `g` its gradient times itself; on return `g` is the gradient of the logits.
template <class R, class M, class In, class D> DEVICE void sinkhorn_back(M& y, M& g, const Form& f, R r, In in, D denominator) {
    R added = f.mode == ADDED ? f.eps : 0.0f;
    for (u32 k = 2 * f.iters - 1; k > 0; --k) {
        const auto d = [&](u32 l) { return denominator(k, l); };
        k % 2 == 0 ? walk_back<true>(y, g, added, d) : walk_back<false>(y, g, added, d);
    }
    // The first half-step again, for elements that ε has swamped.
    start(y, f, r, in, [](u32, R) {});
    if (f.start == SOFTMAX && f.mode == ADDED) {
#pragma unroll
        for (u32 l = y.first(); l < y.n; l += y.step()) {
#pragma unroll 8
            for (u32 k = 0; k < y.n; ++k) {
                const R s = y.template at<true>(l, k);
                g.template at<true>(l, k) *= s / (s + (R)f.eps);
            }
        }
        y.sync();
    }
    if (M::SINGLE && f.start != EXP_SHIFTED) {
        // As in first_denominator.
        R scale = 0;
        if (f.start == EXP) exponential_of(-in(0, 0), scale);
        added *= scale;
    }
    walk_back<true>(y, g, added, [&](u32 l) { return denominator(0, l); });
}

// Whether the logits want f64; the same in every lane where a wave shares the matrix.
template <bool WAVE, class In> DEVICE bool far_apart(u32 n, In in) {
    float max = -3.0e38f, min = 3.0e38f;
#pragma unroll
    for (u32 e = WAVE ? lane_index() : 0; e < n * n; e += WAVE ? MHC_WAVE : 1) {
        const float v = in(e / n, e % n);
        max = larger(max, v);
        min = smaller(min, v);
    }
    if (WAVE) {
#pragma unroll 8
        for (u32 k = MHC_WAVE / 2; k > 0; k /= 2) {
            max = larger(max, shuffle_xor(max, k));
            min = smaller(min, shuffle_xor(min, k));
        }
    }
    return !(max - min < 60.0f && max < 80.0f && min > -80.0f);
}

template <u32 N> struct Owner {
    // Whether a thread has a matrix to itself.
    static const bool THREAD = N != 0 && N <= 4;
};

template <class R, class M, class In, class Out> DEVICE void run_forward(M& m, const Form& f, R r, In in, Out out) {
    sinkhorn(m, f, r, in, [](u32, u32, R) {});
#pragma unroll
    for (u32 l = m.first(); l < m.n; l += m.step()) {
#pragma unroll 8
        for (u32 k = 0; k < m.n; ++k) out(l, k, (float)m.template at<true>(l, k));
    }
    m.sync();
}

// One thread's logits, so that they are read once.
template <u32 N> struct Logits {
    float v[N * N];
    template <class In> DEVICE_MEMBER Logits(In in) {
#pragma unroll
        for (u32 e = 0; e < N * N; ++e) v[e] = in(e / N, e % N);
    }
    DEVICE_MEMBER float operator()(u32 a, u32 b) const { return v[a * N + b]; }
};

// Reads the logits `in(a, b)` and writes the projection `out(a, b, v)`. Called by one thread up to 4 streams, else by a whole wave with
// MATRIX doubles of shared memory to itself.
template <u32 N, class I, class O> DEVICE void project_matrix(const Form& f, u32 n, double* shared, I memory_in, O memory_out) {
    const auto in = led(f, memory_in);
    const auto out = led(f, memory_out);
    if constexpr (Owner<N>::THREAD) {
        const Logits<N> logits(in);
        if (far_apart<false>(N, logits)) {
            OwnMatrix<double, N> m;
            run_forward(m, f, 0.0, logits, out);
        } else {
            OwnMatrix<float, N> m;
            run_forward(m, f, 0.0f, logits, out);
        }
    } else if (far_apart<true>(n, in)) {
        WaveMatrix<double> m = {shared, n};
        run_forward(m, f, 0.0, in, out);
    } else {
        WaveMatrix<float> m = {(float*)shared, n};
        run_forward(m, f, 0.0f, in, out);
    }
}

// One matrix of up to 4 streams for a whole wave, an element a lane, and copies of all in the lanes past them: little code and few
// registers, for kernels that want one matrix before they can begin.
template <u32 N> struct LaneMatrix {
    static const u32 COUNT = N * N;
    DEVICE_MEMBER static u32 element() { return lane_index() % COUNT; }
    template <bool FIRST> DEVICE_MEMBER static float sum(float v) {
#pragma unroll
        for (u32 m = FIRST ? 1 : N; m < (FIRST ? N : COUNT); m *= 2) v += shuffle_xor(v, m);
        return v;
    }
    template <bool FIRST> DEVICE_MEMBER static u32 line() { return FIRST ? element() / N : element() % N; }
};

// The denominator of a line for its sum; negative where it did not depend on the line.
struct Denominator {
    float add, least, other;
    DEVICE_MEMBER Denominator(const Form& f, float eps, float one) {
        add = f.mode == ADDED ? eps : 0.0f;
        least = f.mode < THRESHOLD ? -1.0f : eps;
        other = f.mode == CLAMP ? eps : one;
    }
    DEVICE_MEMBER float of(float sum) const { return sum > least ? sum + add : -other; }
};

template <u32 N> DEVICE float lanes_start(const Form& f, float logit, float& d) {
    using M = LaneMatrix<N>;
    float max = logit;
#pragma unroll
    for (u32 m = 1; m < N; m *= 2) max = larger(max, shuffle_xor(max, m));
    const float v = exponential(logit - max), sum = M::template sum<true>(v), scale = f.start == EXP ? exponential(-max) : 1.0f;
    // exp takes the maximum out of the line, and so out of ε, which is not part of a softmax.
    d = f.start == SOFTMAX ? sum : Denominator(f, f.eps * scale, scale).of(sum);
    return v * reciprocal(d < 0.0f ? -d : d);
}

// The projection of this lane's logit; `record(step, line, d)` gets the denominators.
template <u32 N, class F> DEVICE float lanes_forward(const Form& f, float logit, F record) {
    using M = LaneMatrix<N>;
    const Denominator denominator(f, f.eps, 1.0f);
    float d, v = lanes_start<N>(f, logit, d);
    record(0, M::template line<true>(), d);
    if (f.start == SOFTMAX && f.mode == ADDED) v += f.eps;
    const auto half = [&](u32 k, u32 line, float sum) {
        const float d = denominator.of(sum);
        v *= reciprocal(d < 0.0f ? -d : d);
        record(k, line, d);
    };
#pragma unroll 1
    for (u32 k = 1; k < 2 * f.iters; k += 2) {
        half(k, M::template line<false>(), M::template sum<false>(v));
        if (k + 1 < 2 * f.iters) half(k + 1, M::template line<true>(), M::template sum<true>(v));
    }
    return v;
}

// The gradient of this lane's logit, for its projection v and the gradient by that.
template <u32 N, class D> DEVICE float lanes_back(const Form& f, float logit, float v, float up, D denominator) {
    using M = LaneMatrix<N>;
    float g = up * v;
    const auto back = [&](float d, float sum) {
        g = fused(-v, d > 0.0f ? sum : 0.0f, g);
        v *= d > 0.0f ? d : -d;
    };
#pragma unroll 1
    for (u32 k = 2 * f.iters - 1; k > 0; k -= 2) {
        back(denominator(k, M::template line<false>()), M::template sum<false>(g));
        if (k > 1) back(denominator(k - 1, M::template line<true>()), M::template sum<true>(g));
        else break;
    }
    // The first half-step again, for elements that ε has swamped.
    float d;
    v = lanes_start<N>(f, logit, d);
    if (f.start == SOFTMAX && f.mode == ADDED) g *= v / (v + f.eps);
    back(d, M::template sum<true>(g));
    return g;
}

// As project_matrix, for a whole wave whose lanes all want the one matrix; `shared` has n rows of 33 doubles, for logits far apart.
template <u32 N, class I, class O> DEVICE void project_one(const Form& f, double* shared, I memory_in, O memory_out) {
    const auto in = led(f, memory_in);
    const auto out = led(f, memory_out);
    if (far_apart<true>(N, in)) {
        WaveMatrix<double> m = {shared, N};
        run_forward(m, f, 0.0, in, out);
        return;
    }
    const u32 e = LaneMatrix<N>::element();
    const float v = lanes_forward<N>(f, in(e / N, e % N), [](u32, u32, float) {});
    if (lane_index() < N * N) out(e / N, e % N, v);
}

template <class R, class M, class In, class Up, class Out>
DEVICE void run_backward(M& y, M& g, const Form& f, R r, R* sums, u64 step, In in, Up up, Out out) {
    const u32 n = y.n;
    sinkhorn(y, f, r, in, [&](u32 k, u32 l, R d) { sums[(k * n + l) * step] = d; });
#pragma unroll
    for (u32 l = y.first(); l < n; l += y.step()) {
#pragma unroll 8
        for (u32 k = 0; k < y.n; ++k) {
            R& v = y.template at<true>(l, k);
            g.template at<true>(l, k) = up(l, k, (float)v) * v;
        }
    }
    y.sync();
    sinkhorn_back(y, g, f, r, in, [&](u32 k, u32 l) { return sums[(k * n + l) * step]; });
#pragma unroll
    for (u32 l = y.first(); l < n; l += y.step()) {
#pragma unroll 8
        for (u32 k = 0; k < y.n; ++k) out(l, k, (float)g.template at<true>(l, k));
    }
    y.sync();
}

// Where the denominators of forward's half-steps are kept, 2·iters·n of them: `far` for doubles, at distances of `step`; `near`, if
// there is one, for the floats of a thread, at distances of a block's threads.
struct Sums {
    double* far;
    u64 step;
    float* near;
};

// The gradient of project_matrix: `up(a, b, v)` is that of the projection's element v, `out(a, b, v)` gets that of the logits. `shared`
// holds 2·MATRIX doubles.
template <u32 N, class I, class U, class O>
DEVICE void project_matrix_back(const Form& f, u32 n, double* shared, const Sums& sums, I memory_in, U memory_up, O memory_out) {
    const auto in = led(f, memory_in);
    const auto up = led(f, memory_up);
    const auto out = led(f, memory_out);
    if constexpr (Owner<N>::THREAD) {
        const Logits<N> logits(in);
        if (far_apart<false>(N, logits)) {
            OwnMatrix<double, N> y, g;
            run_backward(y, g, f, 0.0, sums.far, sums.step, logits, up, out);
        } else {
            OwnMatrix<float, N> y, g;
            float* kept = sums.near ? sums.near : (float*)sums.far;
            run_backward(y, g, f, 0.0f, kept, sums.near ? threads() : 2 * sums.step, logits, up, out);
        }
    } else if (far_apart<true>(n, in)) {
        WaveMatrix<double> y = {shared, n}, g = {shared + MATRIX, n};
        run_backward(y, g, f, 0.0, sums.far, sums.step, in, up, out);
    } else {
        WaveMatrix<float> y = {(float*)shared, n}, g = {(float*)(shared + MATRIX), n};
        run_backward(y, g, f, 0.0f, (float*)sums.far, 2 * sums.step, in, up, out);
    }
}
