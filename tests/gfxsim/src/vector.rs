//! A wave's vector half: how operands are read for all lanes, and results written for those that take part.

use crate::{
    float,
    inst::{Dpp, Inst, Operand, Part, Rest, scalar},
    wave::{Lanes, Wave},
};

/// Numbers of all lanes.
pub type Floats = [f32; 64];
/// Halves or brains of all lanes.
pub type Shorts = [u16; 64];

/// A value for each lane.
#[inline(always)]
pub fn each<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; 64] {
    let mut out = [T::default(); 64];
    for l in 0..64 {
        out[l] = f(l);
    }
    out
}

/// A bit for each lane.
#[inline(always)]
pub fn mask(f: impl Fn(usize) -> bool) -> u64 {
    let flags: [u8; 64] = each(|l| u8::from(f(l)));
    let mut out = 0;
    for (k, chunk) in flags.as_chunks::<8>().0.iter().enumerate() {
        // The multiplication gathers the lowest bits of 8 bytes in the highest byte.
        out |= (u64::from_le_bytes(*chunk).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * k);
    }
    out
}

fn floats(bits: &Lanes) -> Floats {
    each(|l| f32::from_bits(bits[l]))
}

/// The field of a register that a sub-word operand is.
fn part_of(value: u32, part: Part, signed: bool) -> u32 {
    let (shift, bits) = part.field();
    let field = value >> shift & bits;
    match (signed, part) {
        (true, Part::Byte(_)) => field as u8 as i8 as u32,
        (true, Part::Word(_)) => field as u16 as i16 as u32,
        _ => field,
    }
}

impl Wave<'_> {
    /// The register that operand `k` is, `plus` registers on.
    #[inline(always)]
    fn register(&self, r: u16, k: usize, plus: u16) -> usize {
        let bit = if k == 0 { 8 } else { 1 << (k - 1) };
        let index = if self.indexed & bit != 0 { self.scalars[scalar::M0 as usize] as u16 & 0xff } else { 0 };
        (r + plus + index) as usize
    }

    /// Operand `k` as it is, `plus` registers on.
    fn raw(&self, i: &Inst, k: usize, plus: u16) -> Lanes {
        let word = |value: u64| [(value >> (32 * plus)) as u32; 64];
        match i.operands[k] {
            Operand::Vector(r) => self.vectors[self.register(r, k, plus)],
            Operand::Scalar(scalar::NULL) | Operand::None => [0; 64],
            Operand::Scalar(r) => [self.scalars[(r + plus) as usize]; 64],
            Operand::Int(v) => word(v as u64),
            Operand::Float(v) if plus == 0 => [(v as f32).to_bits(); 64],
            Operand::Float(_) => [0; 64],
            Operand::Scc => [u32::from(self.scc); 64],
            Operand::Aperture(base) => word(base),
        }
    }

    /// The lane that `lane` takes the first source from, if there is one.
    fn dpp_lane(&self, dpp: Dpp, lane: usize) -> Option<usize> {
        let (row, in_row) = (lane & !15, lane & 15);
        let from = |offset: usize| Some(row + offset);
        match dpp {
            Dpp::None => Some(lane),
            Dpp::Quad(from) => Some((lane & !3) + from[lane & 3] as usize),
            Dpp::Eight(from) => Some((lane & !7) + from[lane & 7] as usize),
            Dpp::RowShiftLeft(n) => (in_row + n as usize <= 15).then_some(lane + n as usize),
            Dpp::RowShiftRight(n) => lane.checked_sub(n as usize).filter(|l| *l >= row),
            Dpp::RowRotate(n) => from((in_row + 16 - n as usize) & 15),
            Dpp::RowMirror => from(15 - in_row),
            Dpp::HalfRowMirror => Some((lane & !7) + 7 - (lane & 7)),
            Dpp::RowShare(n) => from(n as usize),
            Dpp::RowXor(n) => from(in_row ^ n as usize),
            Dpp::Broadcast15 => row.checked_sub(1),
            Dpp::Broadcast31 => (lane >= 32).then_some(31),
            Dpp::WaveShiftLeft => Some(lane + 1).filter(|l| *l < self.width),
            Dpp::WaveShiftRight => lane.checked_sub(1),
            Dpp::WaveRotateLeft => Some((lane + 1) % self.width),
            Dpp::WaveRotateRight => Some((lane + self.width - 1) % self.width),
        }
    }

    fn exchanged(&self, i: &Inst, values: &Lanes) -> Lanes {
        let exec = self.exec();
        each(|l| self.dpp_lane(i.dpp, l).filter(|s| exec >> s & 1 == 1).map_or(0, |s| values[s]))
    }

    /// The lanes that an instruction writes: of those with DPP not all whose source does not take part.
    pub fn written_lanes(&self, i: &Inst) -> u64 {
        let exec = self.exec();
        if i.dpp == Dpp::None {
            return exec;
        }
        let eight = matches!(i.dpp, Dpp::Eight(_));
        let written = |l: usize| {
            let chosen = eight || (i.row_mask >> (l >> 4) & 1 == 1 && i.bank_mask >> (l >> 2 & 3) & 1 == 1);
            let valid = || self.dpp_lane(i.dpp, l).is_some_and(|s| exec >> s & 1 == 1);
            exec >> l & 1 == 1 && chosen && (i.bound_control || valid())
        };
        mask(written)
    }

    /// 32 bits of source `k`.
    #[inline(always)]
    pub fn source(&self, i: &Inst, k: usize) -> Lanes {
        match i.operands[k] {
            Operand::Vector(r) if i.plain && self.indexed == 0 => self.vectors[r as usize],
            _ => self.source_by_rules(i, k),
        }
    }

    #[inline(never)]
    fn source_by_rules(&self, i: &Inst, k: usize) -> Lanes {
        let mut values = self.raw(i, k, 0);
        if i.dpp != Dpp::None && k == i.first_source {
            values = self.exchanged(i, &values);
        }
        if let Some(sdwa) = i.sdwa
            && let Some(part) = sdwa.sources.get(k.wrapping_sub(i.first_source))
        {
            values = each(|l| part_of(values[l], *part, i.modifiers[k].sign_extended));
        }
        values
    }

    fn with_signs(&self, i: &Inst, k: usize, mut values: Floats) -> Floats {
        if i.modifiers[k].absolute {
            values = each(|l| values[l].abs());
        }
        if i.modifiers[k].negative {
            values = each(|l| -values[l]);
        }
        values
    }

    /// Source `k` as f32.
    #[inline(always)]
    pub fn float(&self, i: &Inst, k: usize) -> Floats {
        let values = floats(&self.source(i, k));
        if i.modified { self.with_signs(i, k, values) } else { values }
    }

    /// 64 bits of source `k`.
    pub fn source64(&self, i: &Inst, k: usize) -> [u64; 64] {
        let (mut low, mut high) = (self.raw(i, k, 0), self.raw(i, k, 1));
        if i.dpp != Dpp::None && k == i.first_source {
            (low, high) = (self.exchanged(i, &low), self.exchanged(i, &high));
        }
        each(|l| u64::from(low[l]) | u64::from(high[l]) << 32)
    }

    /// Source `k` as f64. A literal of 32 bits is the upper half.
    pub fn double(&self, i: &Inst, k: usize) -> [f64; 64] {
        let m = i.modifiers[k];
        let values = match i.operands[k] {
            Operand::Float(v) => [v; 64],
            Operand::Int(v) if (-16..=64).contains(&v) => [f64::from_bits(v as u64); 64],
            Operand::Int(v) => [f64::from_bits((v as u64) << 32); 64],
            _ => {
                let bits = self.source64(i, k);
                each(|l| f64::from_bits(bits[l]))
            }
        };
        let values = each(|l| if m.absolute { values[l].abs() } else { values[l] });
        each(|l| if m.negative { -values[l] } else { values[l] })
    }

    /// 16 bits of source `k`; numbers in the instruction are halves.
    pub fn short(&self, i: &Inst, k: usize) -> Shorts {
        if let Operand::Float(v) = i.operands[k] {
            return [float::to_half(v as f32); 64];
        }
        let values = self.source(i, k);
        let high = i.modifiers[k].high || (k > 0 && i.sdwa.is_none() && i.selects_high(k));
        each(|l| (if high { values[l] >> 16 } else { values[l] }) as u16)
    }

    /// Source `k`, an f16.
    pub fn half(&self, i: &Inst, k: usize) -> Floats {
        let values = self.short(i, k);
        self.with_signs(i, k, each(|l| float::from_half(values[l])))
    }

    /// Writes operand `k`, `plus` registers on.
    pub fn write(&mut self, i: &Inst, k: usize, plus: u16, values: &Lanes) {
        let r = match i.operands[k] {
            Operand::Vector(r) => self.register(r, k, plus),
            operand => return self.set_scalar(operand, values[self.first_lane()]),
        };
        let lanes = self.mask;
        match i.sdwa {
            Some(sdwa) if sdwa.destination != Part::All => {
                let placed = self.placed(sdwa.destination, sdwa.rest, &self.vectors[r], values);
                merge(&mut self.vectors[r], &placed, lanes);
            }
            _ => merge(&mut self.vectors[r], values, lanes),
        }
    }

    fn placed(&self, part: Part, rest: Rest, old: &Lanes, values: &Lanes) -> Lanes {
        let (shift, bits) = part.field();
        each(|l| {
            let field = (values[l] & bits) << shift;
            match rest {
                Rest::Zero => field,
                Rest::Sign => {
                    part_of(values[l], if bits == 0xff { Part::Byte(0) } else { Part::Word(0) }, true) << shift
                }
                Rest::Kept => old[l] & !(bits << shift) | field,
            }
        })
    }

    /// Writes the first operand.
    #[inline(always)]
    pub fn result(&mut self, i: &Inst, values: &Lanes) {
        match i.operands[0] {
            Operand::Vector(r) if i.plain && self.indexed == 0 => {
                merge(&mut self.vectors[r as usize], values, self.mask)
            }
            _ => self.write(i, 0, 0, values),
        }
    }

    /// Writes the first operand, a pair of registers.
    pub fn result64(&mut self, i: &Inst, values: &[u64; 64]) {
        self.write(i, 0, 0, &each(|l| values[l] as u32));
        self.write(i, 0, 1, &each(|l| (values[l] >> 32) as u32));
    }

    /// Writes 16 bits of the first operand.
    pub fn result_short(&mut self, i: &Inst, values: &Shorts) {
        let Operand::Vector(r) = i.operands[0] else { return self.fault(format!("`{}` writes no vector", i.text)) };
        let old = self.vectors[r as usize];
        let high = i.modifiers[0].high || i.op_sel >> 3 & 1 == 1;
        let clears = self.clears_upper_half;
        let value = |l: usize| match (high, clears) {
            (true, _) => old[l] & 0xffff | u32::from(values[l]) << 16,
            (false, true) => values[l].into(),
            (false, false) => old[l] & 0xffff_0000 | u32::from(values[l]),
        };
        self.result(i, &each(value));
    }

    /// Writes the first operand, an f32.
    #[inline(always)]
    pub fn result_float(&mut self, i: &Inst, values: &Floats) {
        if i.factor != 1.0 || i.clamp {
            return self.result_float_by_rules(i, values);
        }
        self.result(i, &each(|l| values[l].to_bits()));
    }

    #[inline(never)]
    fn result_float_by_rules(&mut self, i: &Inst, values: &Floats) {
        let scaled: Floats = each(|l| values[l] * i.factor);
        // A NaN is clamped to zero.
        let clamped = |v: f32| match i.clamp {
            true if v > 0.0 => v.min(1.0),
            true => 0.0,
            false => v,
        };
        self.result(i, &each(|l| clamped(scaled[l]).to_bits()));
    }

    #[inline(always)]
    pub fn int1(&mut self, i: &Inst, f: impl Fn(u32) -> u32) {
        let a = self.source(i, 1);
        self.result(i, &each(|l| f(a[l])));
    }

    #[inline(always)]
    pub fn int2(&mut self, i: &Inst, f: impl Fn(u32, u32) -> u32) {
        let (a, b) = (self.source(i, 1), self.source(i, 2));
        self.result(i, &each(|l| f(a[l], b[l])));
    }

    #[inline(always)]
    pub fn int3(&mut self, i: &Inst, f: impl Fn(u32, u32, u32) -> u32) {
        let (a, b, c) = (self.source(i, 1), self.source(i, 2), self.source(i, 3));
        self.result(i, &each(|l| f(a[l], b[l], c[l])));
    }

    #[inline(always)]
    pub fn float1(&mut self, i: &Inst, f: impl Fn(f32) -> f32) {
        let a = self.float(i, 1);
        self.result_float(i, &each(|l| f(a[l])));
    }

    #[inline(always)]
    pub fn float2(&mut self, i: &Inst, f: impl Fn(f32, f32) -> f32) {
        let (a, b) = (self.float(i, 1), self.float(i, 2));
        self.result_float(i, &each(|l| f(a[l], b[l])));
    }

    #[inline(always)]
    pub fn float3(&mut self, i: &Inst, f: impl Fn(f32, f32, f32) -> f32) {
        let (a, b, c) = (self.float(i, 1), self.float(i, 2), self.float(i, 3));
        self.result_float(i, &each(|l| f(a[l], b[l], c[l])));
    }

    #[inline(always)]
    pub fn double2(&mut self, i: &Inst, f: impl Fn(f64, f64) -> f64) {
        let (a, b) = (self.double(i, 1), self.double(i, 2));
        self.result64(i, &each(|l| f(a[l], b[l]).to_bits()));
    }

    #[inline(always)]
    pub fn half2(&mut self, i: &Inst, f: impl Fn(f32, f32) -> f32) {
        let (a, b) = (self.half(i, 1), self.half(i, 2));
        self.result_short(i, &each(|l| float::to_half(f(a[l], b[l]))));
    }

    #[inline(always)]
    pub fn short2(&mut self, i: &Inst, f: impl Fn(u16, u16) -> u16) {
        let (a, b) = (self.short(i, 1), self.short(i, 2));
        self.result_short(i, &each(|l| f(a[l], b[l])));
    }
}

/// Overwrites the lanes of the mask.
#[inline(always)]
fn merge(register: &mut Lanes, values: &Lanes, mask: u64) {
    if mask == !0 {
        *register = *values;
        return;
    }
    let (low, high) = (mask as u32, (mask >> 32) as u32);
    for l in 0..32 {
        register[l] = if low >> l & 1 == 1 { values[l] } else { register[l] };
        register[l + 32] = if high >> l & 1 == 1 { values[l + 32] } else { register[l + 32] };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{memory::Memory, text};

    #[test]
    fn masks_have_a_bit_for_each_lane() {
        assert_eq!(mask(|l| l % 3 == 0), (0..64).filter(|l| l % 3 == 0).fold(0, |m, l| m | 1 << l));
        let mut register = [7; 64];
        merge(&mut register, &[9; 64], 1 << 40 | 1);
        assert_eq!((register[0], register[1], register[40], register[63]), (9, 7, 9, 7));
    }

    #[test]
    fn rows_are_exchanged_within_their_bounds() {
        let memory = Memory::new(0, Vec::new());
        let mut wave = Wave::new(&memory, 64);
        wave.set_exec(!0);
        wave.vectors[0] = each(|l| l as u32);
        let moved = |wave: &mut Wave<'_>, how: &str| {
            let i = text::parse(&format!("v_mov_b32_dpp v1, v0 {how} row_mask:0xf bank_mask:0xf")).unwrap();
            (wave.source(&i, 1), wave.written_lanes(&i))
        };
        let (values, written) = moved(&mut wave, "row_shr:1");
        assert_eq!((values[1], values[17], written), (0, 16, !0x0001_0001_0001_0001));
        let (values, written) = moved(&mut wave, "row_bcast:31");
        assert_eq!((values[32], values[63], written), (31, 31, !0 << 32));
        let (_, written) = moved(&mut wave, "row_shl:3 bound_ctrl:1");
        assert_eq!(written, !0);
        wave.set_exec(0b10);
        assert_eq!(moved(&mut wave, "quad_perm:[1,0,3,2]").1, 0, "lane 0, the source, takes no part");
    }

    #[test]
    fn parts_of_registers_are_read_and_written() {
        let memory = Memory::new(0, Vec::new());
        let mut wave = Wave::new(&memory, 64);
        wave.mask = !0;
        (wave.vectors[0], wave.vectors[1]) = ([0x8081_8283; 64], [0x1122_3344; 64]);
        let i = text::parse("v_mov_b32_sdwa v1, sext(v0) dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE src0_sel:BYTE_1");
        let i = i.unwrap();
        let values = wave.source(&i, 1);
        assert_eq!(values[0], 0xffff_ff82);
        wave.write(&i, 0, 0, &values);
        assert_eq!(wave.vectors[1][63], 0xff82_3344);
    }
}
