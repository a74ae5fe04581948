//! Products of small matrices by a whole wave, whichever lanes take part. A sum is exact and rounded once where the operands are 16 bits
//! wide, and rounded after each product where they are f32: the hardware's order within an instruction is not documented.

use crate::{
    float::{from_brain, from_half},
    inst::{Inst, Operand, Run},
    wave::Wave,
};

/// What a matrix is made of.
#[derive(Clone, Copy, PartialEq)]
enum Element {
    Brain,
    Half,
    Single,
    Double,
}

pub fn find(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_mfma_f32_16x16x16_bf16" | "v_mfma_f32_16x16x16bf16_1k" => |w, i| multiply(w, i, 16, 16, Element::Brain),
        "v_mfma_f32_32x32x8_bf16" | "v_mfma_f32_32x32x8bf16_1k" => |w, i| multiply(w, i, 32, 8, Element::Brain),
        "v_mfma_f32_16x16x32_bf16" => |w, i| multiply(w, i, 16, 32, Element::Brain),
        "v_mfma_f32_32x32x16_bf16" => |w, i| multiply(w, i, 32, 16, Element::Brain),
        "v_mfma_f32_16x16x16_f16" | "v_mfma_f32_16x16x16f16" => |w, i| multiply(w, i, 16, 16, Element::Half),
        "v_mfma_f32_32x32x8_f16" | "v_mfma_f32_32x32x8f16" => |w, i| multiply(w, i, 32, 8, Element::Half),
        "v_mfma_f32_16x16x32_f16" => |w, i| multiply(w, i, 16, 32, Element::Half),
        "v_mfma_f32_32x32x16_f16" => |w, i| multiply(w, i, 32, 16, Element::Half),
        "v_mfma_f32_16x16x4_f32" | "v_mfma_f32_16x16x4f32" => |w, i| multiply(w, i, 16, 4, Element::Single),
        "v_mfma_f32_32x32x2_f32" | "v_mfma_f32_32x32x2f32" => |w, i| multiply(w, i, 32, 2, Element::Single),
        "v_mfma_f64_16x16x4_f64" | "v_mfma_f64_16x16x4f64" => |w, i| multiply(w, i, 16, 4, Element::Double),
        "v_wmma_f32_16x16x16_bf16" => |w, i| multiply_shared(w, i, Element::Brain),
        "v_wmma_f32_16x16x16_f16" => |w, i| multiply_shared(w, i, Element::Half),
        _ => return None,
    };
    Some(run)
}

/// Element `e` of what a lane holds from register `first` on.
fn element(w: &Wave<'_>, first: usize, lane: usize, e: usize, kind: Element) -> f64 {
    let word = |r: usize| w.vectors[first + r][lane];
    let short = || (word(e / 2) >> (16 * (e % 2))) as u16;
    match kind {
        Element::Brain => from_brain(short()).into(),
        Element::Half => from_half(short()).into(),
        Element::Single => f32::from_bits(word(e)).into(),
        Element::Double => f64::from_bits(u64::from(word(2 * e)) | u64::from(word(2 * e + 1)) << 32),
    }
}

/// The register that an operand begins with.
fn first(operand: Operand) -> Option<usize> {
    match operand {
        Operand::Vector(r) => Some(r as usize),
        _ => None,
    }
}

/// The number that every element of an operand in the instruction is.
fn constant(operand: Operand) -> f64 {
    match operand {
        Operand::Int(bits) => f32::from_bits(bits as u32).into(),
        Operand::Float(v) => v,
        _ => 0.0,
    }
}

/// `D = A B + C` with D of `m` × `m` and `k` products each.
fn multiply(w: &mut Wave<'_>, i: &Inst, m: usize, k: usize, kind: Element) {
    let (Some(a), Some(b), Some(d)) = (first(i.operands[1]), first(i.operands[2]), first(i.operands[0])) else {
        return w.fault(format!("`{}` has operands that are no registers", i.text));
    };
    // A lane holds one row of A and one column of B, of which neighbours in steps of m lanes have the next elements.
    let each = k * m / 64;
    let (mut rows, mut columns) = ([0f64; 512], [0f64; 512]);
    for lane in 0..64 {
        for e in 0..each {
            let at = lane / m * each + e;
            rows[lane % m * k + at] = element(w, a, lane, e, kind);
            columns[at * m + lane % m] = element(w, b, lane, e, kind);
        }
    }
    let mut sums = [[0f64; 64]; 16];
    let accumulator = if kind == Element::Double { Element::Double } else { Element::Single };
    for r in 0..m * m / 64 {
        for lane in 0..64 {
            sums[r][lane] = match first(i.operands[3]) {
                Some(c) => element(w, c, lane, r, accumulator),
                None => constant(i.operands[3]),
            };
            let (row, column) = place(r, lane, m, kind);
            for at in 0..k {
                let (x, y) = (rows[row * k + at], columns[at * m + column]);
                sums[r][lane] = match kind {
                    Element::Double => x.mul_add(y, sums[r][lane]),
                    Element::Single => f64::from((x * y + sums[r][lane]) as f32),
                    _ => sums[r][lane] + x * y,
                };
            }
        }
    }
    for (r, sum) in sums[..m * m / 64].iter().enumerate() {
        for lane in 0..64 {
            if kind == Element::Double {
                w.vectors[d + 2 * r][lane] = sum[lane].to_bits() as u32;
                w.vectors[d + 2 * r + 1][lane] = (sum[lane].to_bits() >> 32) as u32;
            } else {
                w.vectors[d + r][lane] = (sum[lane] as f32).to_bits();
            }
        }
    }
}

/// The row and the column of D that a lane holds in its `r`-th element.
fn place(r: usize, lane: usize, m: usize, kind: Element) -> (usize, usize) {
    let row = match (kind, m) {
        (Element::Double, _) => 4 * r + lane / 16,
        (_, 16) => 4 * (lane / 16) + r,
        _ => r % 4 + 4 * (lane / 32) + 8 * (r / 4),
    };
    (row, lane % m)
}

/// `D = A B + C` with 16 × 16 and 16 products each in a wave of 32, whose two halves hold the same rows of A and columns of B.
fn multiply_shared(w: &mut Wave<'_>, i: &Inst, kind: Element) {
    let (Some(a), Some(b), Some(d)) = (first(i.operands[1]), first(i.operands[2]), first(i.operands[0])) else {
        return w.fault(format!("`{}` has operands that are no registers", i.text));
    };
    let (mut rows, mut columns) = ([[0f64; 16]; 16], [[0f64; 16]; 16]);
    for lane in 0..16 {
        for at in 0..16 {
            rows[lane][at] = element(w, a, lane, at, kind);
            columns[lane][at] = element(w, b, lane, at, kind);
        }
    }
    let mut sums = [[0f32; 32]; 8];
    for r in 0..8 {
        for lane in 0..32 {
            let start = match first(i.operands[3]) {
                Some(c) => element(w, c, lane, r, Element::Single),
                None => constant(i.operands[3]),
            };
            let (row, column) = (&rows[2 * r + lane / 16], &columns[lane % 16]);
            sums[r][lane] = row.iter().zip(column).fold(start, |sum, (x, y)| sum + x * y) as f32;
        }
    }
    for (r, sum) in sums.iter().enumerate() {
        for lane in 0..32 {
            w.vectors[d + r][lane] = sum[lane].to_bits();
        }
    }
}
