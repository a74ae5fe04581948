//! What each kernel of `kernels.hip` must write, said once more without a GPU.

/// Work items of a group.
pub const GROUP: usize = 256;
/// Work items in all.
const ITEMS: usize = 2 * GROUP;
/// The number that kernels get, unless they count with it.
const N: u32 = 37;

/// What must come of a kernel.
pub enum Expected {
    /// These words.
    Words(Vec<u32>),
    /// These f32, within so much of each.
    Near(Vec<f32>, f64),
    /// A fault whose words contain this.
    Fault(&'static str),
    /// Junk, of registers or memory that nobody wrote.
    Junk,
}

/// A kernel and its launch.
pub struct Feature {
    pub name: &'static str,
    pub input: Vec<u32>,
    pub n: u32,
    pub groups: u32,
    pub output: usize,
    pub expected: Expected,
}

/// A wave of the architecture, as kernels see it.
struct Waves {
    x: Vec<u32>,
    wave: usize,
}

impl Waves {
    /// What a lane has where it takes lane `from(lane)`'s word.
    fn exchange(&self, from: impl Fn(usize) -> usize) -> Vec<u32> {
        (0..ITEMS).map(|i| self.x[i - i % self.wave + from(i % self.wave)]).collect()
    }

    /// Word by word of the input.
    fn each(&self, f: impl Fn(u32) -> u32) -> Vec<u32> {
        self.x[..ITEMS].iter().map(|x| f(*x)).collect()
    }

    /// From the words of an item's group and its place in it.
    fn grouped(&self, f: impl Fn(&[u32], usize) -> u32) -> Vec<u32> {
        self.x[..ITEMS].chunks(GROUP).flat_map(|g| (0..GROUP).map(|t| f(g, t)).collect::<Vec<_>>()).collect()
    }
}

/// The same numbers in every run.
fn random(seed: u64, count: usize) -> Vec<u32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 ^ (state >> 5) as u32
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn row(lane: usize, f: impl Fn(usize) -> usize) -> usize {
    (lane & !15) + f(lane & 15)
}

fn brain(value: f32) -> u32 {
    let bits = value.to_bits();
    (bits + 0x7fff + (bits >> 16 & 1)) >> 16
}

/// The nearest f16 of a value that is not negative.
fn half(value: f64) -> u32 {
    if value >= 65520.0 {
        return 0x7c00;
    }
    let exponent = value.abs().log2().floor().max(-14.0);
    let units = (value.abs() / 2f64.powf(exponent - 10.0)).round_ties_even();
    (units + 1024.0 * (exponent + 14.0)) as u32
}

fn half_value(bits: u32) -> f64 {
    if bits == 0x7c00 {
        return f64::INFINITY;
    }
    2f64.powi(((bits >> 10).max(1)) as i32 - 25) * f64::from((bits & 1023) + if bits >> 10 > 0 { 1024 } else { 0 })
}

/// All features of an architecture.
pub fn all(arch: &str) -> Vec<Feature> {
    let wave = if arch == "gfx1100" { 32 } else { 64 };
    let w = Waves { x: random(1, ITEMS + 4), wave };
    let mut list = Vec::new();
    let mut add = |name, expected: Vec<u32>| {
        list.push(Feature {
            name,
            input: w.x.clone(),
            n: N,
            groups: 2,
            output: expected.len(),
            expected: Expected::Words(expected),
        });
    };
    lanes(&w, arch, &mut add);
    group_memory(&w, arch, &mut add);
    control(&w, &mut add);
    loads(&w, &mut add);
    atomics(&w, &mut add);
    integers(&w, &mut add);
    list.extend(numbers(&w));
    list.extend(matrices(arch));
    list.extend(mistakes(&w, arch));
    for feature in &mut list {
        match feature.name {
            "last_one" => feature.n = ITEMS as u32,
            "copied_by_vectors" => feature.groups = 1,
            _ => {}
        }
    }
    list
}

type Add<'a> = dyn FnMut(&'static str, Vec<u32>) + 'a;

fn lanes(w: &Waves, arch: &str, add: &mut Add<'_>) {
    add("dpp_quad", w.exchange(|l| l ^ 1));
    add("dpp_rotate", w.exchange(|l| row(l, |r| (r + 8) % 16)));
    add("dpp_mirror", w.exchange(|l| row(l, |r| 15 - r)));
    add("dpp_half_mirror", w.exchange(|l| (l & !7) + 7 - l % 8));
    let with = |old: u32, moved: Vec<u32>, is: &dyn Fn(usize) -> bool| {
        moved.iter().enumerate().map(|(i, v)| if is(i % w.wave) { *v } else { old }).collect::<Vec<_>>()
    };
    add("dpp_shift_right", with(5, w.exchange(|l| row(l, |r| r.saturating_sub(1))), &|l| l % 16 > 0));
    if w.wave == 64 {
        let before = w.exchange(|l| (l & !15).saturating_sub(1));
        add("dpp_broadcast15", with(7, before, &|l| l >> 4 & 1 == 1));
        add("dpp_broadcast31", with(7, w.exchange(|_| 31), &|l| l >= 32));
    } else {
        add("dpp_xor", w.exchange(|l| l ^ 3));
        add("permute_rows", w.exchange(|l| (l & !15 ^ 16) + l % 16));
    }
    if arch == "gfx950" {
        let swapped = |group: usize, factor: u32| {
            // The first register keeps its even groups and gets the second's even groups as its odd ones.
            (0..ITEMS)
                .map(|i| {
                    let (even, odd) = (i & !group, i | group);
                    let second = |k: usize| w.x[k].wrapping_mul(factor);
                    if i & group == 0 { (w.x[even], w.x[odd]) } else { (second(even), second(odd)) }
                })
                .collect::<Vec<_>>()
        };
        let (a, b) = (swapped(16, 3), swapped(32, 5));
        let mixed = |((a0, a1), (b0, b1)): (&(u32, u32), &(u32, u32))| {
            a0 ^ a1.wrapping_mul(7) ^ b0.wrapping_mul(11) ^ b1.wrapping_mul(13)
        };
        add("swap_rows", a.iter().zip(&b).map(mixed).collect());
    }
    add("pull", w.exchange(|l| l ^ 5));
    add("push", w.exchange(|l| l ^ 9));
    add("swizzle", w.exchange(|l| l ^ 16));
    let (thirteenth, first) = (w.exchange(|_| 13), w.exchange(|_| 0));
    add("read_lanes", thirteenth.iter().zip(&first).map(|(a, b)| a.wrapping_add(*b)).collect());
    let ballot = |words: &[u32]| {
        let odd = words.iter().enumerate().fold(0u64, |b, (l, x)| b | u64::from(x & 1) << l);
        vec![odd as u32 ^ (odd >> 32) as u32 ^ odd.count_ones(); w.wave]
    };
    add("ballot", w.x[..ITEMS].chunks(w.wave).flat_map(ballot).collect());
}

fn group_memory(w: &Waves, arch: &str, add: &mut Add<'_>) {
    add("lds_reversed", w.grouped(|g, t| g[255 - t]));
    let vector = |v: u32| {
        let at = |k: u32| v.wrapping_add(k);
        at(0) ^ at(1).wrapping_mul(3) ^ at(2).wrapping_mul(5) ^ at(3).wrapping_mul(7)
    };
    add("lds_vectors", w.grouped(|g, t| vector(g[t ^ 77])));
    add("lds_pairs", w.grouped(|g, t| g[t ^ 1].wrapping_add(g[t ^ 1].wrapping_mul(15))));
    let sum =
        |g: &[u32], t: usize| g.iter().filter(|x| **x as usize & 7 == t & 7).fold(0u32, |sum, x| sum.wrapping_add(*x));
    add("lds_sums", w.grouped(sum));
    let floats = |g: &[u32], t: usize| {
        let values = g.iter().skip(t & 7).step_by(8).map(|x| (x & 15) as f32);
        values.sum::<f32>().to_bits()
    };
    add("lds_float_sums", w.grouped(floats));
    add("flat", w.grouped(|g, t| if g[t] & 1 == 1 { g[t ^ 1].wrapping_mul(3) } else { g[t] }));
    if matches!(arch, "gfx942" | "gfx950") {
        add("load_to_lds", w.grouped(|g, t| g[t ^ 3]));
    }
    if arch == "gfx950" {
        let at = |i: usize| (i & !3) + (i & 3 ^ 3);
        let ends = |i: usize| w.x[at(i)] ^ w.x[at(i) + 3].wrapping_mul(3);
        add("load_vectors_to_lds", (0..ITEMS).map(ends).collect());
    }
}

fn atomics(w: &Waves, add: &mut Add<'_>) {
    let slots = |f: &dyn Fn(u32, u32) -> u32| {
        let mut slots = vec![0; 32];
        w.x[..ITEMS].iter().for_each(|x| slots[*x as usize & 31] = f(slots[*x as usize & 31], *x));
        slots
    };
    add("count", slots(&|old, _| old + 1));
    add("largest", slots(&|old, x| old.max(x)));
    add("ticket", std::iter::once(ITEMS as u32).chain([1; ITEMS]).collect());
    add("compare_swap", slots(&|old, _| old + 3));
    add("last_one", w.x[..ITEMS].iter().copied().chain([ITEMS as u32, 77]).collect());
}

fn integers(w: &Waves, add: &mut Add<'_>) {
    add("divide_integers", w.each(|x| (x / (N + 2)).wrapping_add(x % ((x >> 20) + 1))));
    let wide = |x: u32| {
        let a = (u64::from(x) * u64::from(x)).wrapping_add(12345);
        let a = (a ^ a >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (a >> 32) as u32 ^ (a >> 7) as u32
    };
    add("wide", w.each(wide));
    let halves = |x: u32| {
        let h = half_value(half(f64::from((x & 1023) as f32 * 0.37)));
        half(h * h + 1.0)
    };
    add("halves", w.each(halves));
    add("brains", w.each(|x| brain(f32::from_bits(x & 0x3fff_ffff | 0x2000_0000))));
    let bytes = |x: u32| {
        let eight = u64::from(x) << 32 | u64::from(x + 7);
        let permuted = [5, 2, 6, 1].iter().rev().fold(0, |out, k| out << 8 | (eight >> (8 * k) & 255) as u32);
        let aligned = ((u64::from(x) << 32 | u64::from(x.wrapping_add(3))) >> 8) as u32;
        (x as i32 as f32).clamp(-100.0, 1e6).to_bits() ^ permuted ^ aligned
    };
    add("bytes_and_middle", w.each(bytes));
}

fn control(w: &Waves, add: &mut Add<'_>) {
    let collatz = |x: u32| {
        let (mut v, mut steps) = (x & 0xffff, 0);
        while v > 1 && steps < 200 {
            v = if v & 1 == 1 { 3 * v + 1 } else { v >> 1 };
            steps += 1;
        }
        steps
    };
    add("collatz", w.each(collatz));
    let choose = |x: u32| match x & 7 {
        0 => x.wrapping_mul(3),
        1 => x ^ 0x55,
        2 => x >> 3,
        5 => x.wrapping_add(N),
        6 => !x,
        _ => 9,
    };
    add("choose", w.each(choose));
    let own_memory = |x: u32| {
        let mut own: [u32; 16] = std::array::from_fn(|k| x.wrapping_mul(k as u32 + 1));
        for k in 0..4 {
            let at = (x >> (4 * k) & 15) as usize;
            own[at] ^= own[15 - at].wrapping_add(k);
        }
        (0..N as usize).fold(0u32, |sum, k| sum.wrapping_mul(31).wrapping_add(own[k & 15]))
    };
    add("own_memory", w.each(own_memory));
    add("clock", w.each(|x| x));
}

fn loads(w: &Waves, add: &mut Add<'_>) {
    let narrow = |x: u32| (x >> 8 & 255).wrapping_add((x >> 16) * 7).wrapping_add((x as i32 >> 24) as u32);
    add("narrow_loads", w.each(narrow));
    add("narrow_stores", w.each(|x| x >> 3 & 0xffff | (x >> 9 & 255) << 16 | 0x5a00_0000));
    let four = |i: usize| w.x[i].wrapping_add(w.x[(i & !3) + (i + 1) % 4]);
    add("vector_loads", (0..ITEMS).map(four).collect());
    add("streamed", w.each(|x| x.wrapping_add(1)));
}

fn numbers(w: &Waves) -> Vec<Feature> {
    let quotient = |x: u32| (x as i32 as f32) / (((x >> 3) as i32) as f32 + 0.5);
    let extremes = |x: u32| {
        let scale = (x >> 8 & 3) * 60;
        let a = f32::from_bits(x & 0x807f_ffff | (27 + scale) << 23);
        let b = f32::from_bits(x.wrapping_mul(2_654_435_761) & 0x807f_ffff | (227 - scale) << 23);
        (a / b).to_bits()
    };
    let doubles = |x: u32| {
        let bits = ((f64::from(x) + 0.25) / (f64::from(x >> 5) + 1.5)).to_bits();
        bits as u32 ^ (bits >> 32) as u32
    };
    let approximations = |x: u32| {
        let v = f64::from(x & 255) * 0.01;
        (v.exp2() + (v + 1.0).log2() + 1.0 / (v + 1.0).sqrt() + 1.0 / (v + 2.0)) as f32
    };
    let near =
        |f: &dyn Fn(u32) -> f32, tolerance| Expected::Near(w.x[..ITEMS].iter().map(|x| f(*x)).collect(), tolerance);
    let list = [
        ("divide", Expected::Words(w.each(|x| quotient(x).to_bits()))),
        ("divide_extremes", Expected::Words(w.each(extremes))),
        ("divide_doubles", Expected::Words(w.each(doubles))),
        ("square_root", Expected::Words(w.each(|x| (x as f32).sqrt().to_bits()))),
        // Each of the four is within a unit in the last place of f32.
        ("approximations", near(&approximations, 1e-6)),
        ("copied_by_vectors", Expected::Words(w.x[..ITEMS].iter().chain(&w.x[..ITEMS]).copied().collect())),
    ];
    let feature = |(name, expected)| {
        let mut input = w.x.clone();
        let mut output = ITEMS;
        if name == "copied_by_vectors" {
            input = [&w.x[..ITEMS], &w.x[..ITEMS]].concat();
            output = 2 * ITEMS;
        }
        Feature { name, input, n: N, groups: 2, output, expected }
    };
    list.into_iter().map(feature).collect()
}

fn matrices(arch: &str) -> Vec<Feature> {
    let names: &[(&'static str, usize, usize)] = match arch {
        "gfx1100" => &[("wmma_16x16x16", 16, 16)],
        _ => &[
            ("mfma_16x16x16", 16, 16),
            ("mfma_32x32x8", 32, 8),
            ("mfma_singles", 16, 16),
            ("mfma_doubles", 16, 16),
            ("mfma_16x16x32", 16, 32),
        ],
    };
    let brains: Vec<u32> = random(2, 4096).iter().map(|x| x & 0x80ff | 0x3f00 | x >> 9 & 0x7f).collect();
    let value = |k: usize| f64::from(f32::from_bits(brains[k] << 16));
    let packed: Vec<u32> = brains.chunks(2).map(|two| two[0] | two[1] << 16).collect();
    let feature = |(name, m, k): &(&'static str, usize, usize)| {
        let (m, k) = (*m, *k);
        let element =
            |at: usize| (0..k).map(|q| value(at / m * k + q) * value(m * k + q * m + at % m)).sum::<f64>() as f32;
        let expected = (0..m * m).map(element).collect();
        // Sums of f32 are rounded after each product.
        Feature {
            name,
            input: packed.clone(),
            n: N,
            groups: 1,
            output: m * m,
            expected: Expected::Near(expected, 2e-5),
        }
    };
    names.iter().filter(|(name, ..)| arch == "gfx950" || *name != "mfma_16x16x32").map(feature).collect()
}

fn mistakes(w: &Waves, arch: &str) -> Vec<Feature> {
    let mut list = vec![
        ("reads_behind", Expected::Fault("in no allocation")),
        ("writes_behind", Expected::Fault("in no allocation")),
        ("reads_lds_too_far", Expected::Fault("bytes of LDS at")),
        ("forgets_barrier", Expected::Junk),
    ];
    if matches!(arch, "gfx942" | "gfx950") {
        list.push(("eight_bits", Expected::Fault("`v_cvt_pk_fp8_f32` is not modelled")));
    }
    let feature = |(name, expected)| Feature { name, input: w.x.clone(), n: N, groups: 2, output: ITEMS, expected };
    list.into_iter().map(feature).collect()
}
