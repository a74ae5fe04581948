//! A wave: its registers, where it stands, and its scalar half.

use crate::{
    inst::{Inst, Operand, scalar},
    memory::{Fault, Memory, Window},
    traffic::{Counters, Touched},
};

/// A vector register, or what a source gives to each lane. Waves of 32 use the lower half.
pub type Lanes = [u32; 64];

/// What registers and memory hold before anything is written, so that reading it shows.
pub const JUNK: u32 = 0xdead_beef;
/// The same for bytes.
pub const JUNK_BYTE: u8 = 0xcd;

/// Vector registers and accumulators.
pub const VECTOR_REGISTERS: usize = 512;

/// How far a wave is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    AtBarrier,
    Done,
    Faulted(Fault),
}

/// One wave.
pub struct Wave<'a> {
    pub vectors: Vec<Lanes>,
    pub scalars: [u32; 128],
    pub scc: bool,
    /// Where the instruction lies, and where the next.
    pub pc: u64,
    pub next: u64,
    /// 32 or 64.
    pub width: usize,
    /// The lanes that the instruction writes.
    pub mask: u64,
    /// Which operands are indexed by M0, see [`Detail::Indexed`](crate::inst::Detail::Indexed).
    pub indexed: u8,
    /// The workgroup's memory, while this wave runs.
    pub lds: Vec<u8>,
    /// The lanes' own memory, one lane behind the other.
    pub scratch: Vec<u8>,
    pub memory: &'a Memory,
    /// Where global memory was last accessed.
    pub window: Window,
    /// Family of GPUs whose 16-bit results clear the rest of a register.
    pub clears_upper_half: bool,
    pub state: State,
    pub counters: Counters,
    /// The dispatch's lines, while this wave runs, where they are wanted.
    pub touched: Option<Touched>,
    pub executed: u64,
}

impl<'a> Wave<'a> {
    /// A wave with nothing in its registers, of which `registers` vector registers and `accumulators` are full of junk; those beyond
    /// are not the kernel's to use.
    pub fn new(memory: &'a Memory, width: usize) -> Self {
        Self {
            vectors: vec![[JUNK; 64]; VECTOR_REGISTERS],
            scalars: [JUNK; 128],
            scc: false,
            pc: 0,
            next: 0,
            width,
            mask: 0,
            indexed: 0,
            lds: Vec::new(),
            scratch: Vec::new(),
            memory,
            window: Window::default(),
            clears_upper_half: false,
            state: State::Running,
            counters: Counters::default(),
            touched: None,
            executed: 0,
        }
    }

    /// Stops here, and says why; the first reason stays.
    pub fn fault(&mut self, why: String) {
        if !matches!(self.state, State::Faulted(_)) {
            self.state = State::Faulted(Fault(format!("{why} (pc {:#x})", self.pc)));
        }
    }

    /// The lanes that take part.
    #[inline]
    pub fn exec(&self) -> u64 {
        let low = u64::from(self.scalars[scalar::EXEC as usize]);
        if self.width == 64 { low | u64::from(self.scalars[scalar::EXEC as usize + 1]) << 32 } else { low }
    }

    pub fn set_exec(&mut self, mask: u64) {
        self.scalars[scalar::EXEC as usize] = mask as u32;
        if self.width == 64 {
            self.scalars[scalar::EXEC as usize + 1] = (mask >> 32) as u32;
        }
    }

    /// The lowest lane that takes part, or lane 0.
    pub fn first_lane(&self) -> usize {
        self.exec().trailing_zeros() as usize & 63
    }

    /// A lane of this wave.
    pub fn lane(&self, index: u32) -> usize {
        index as usize & (self.width - 1)
    }

    /// 32 bits of a scalar operand.
    #[inline]
    pub fn scalar(&self, operand: Operand) -> u32 {
        match operand {
            Operand::Scalar(scalar::NULL) | Operand::None => 0,
            Operand::Scalar(r) => self.scalars[r as usize],
            Operand::Int(v) => v as u32,
            Operand::Float(v) => (v as f32).to_bits(),
            Operand::Scc => u32::from(self.scc),
            Operand::Aperture(base) => (base >> 32) as u32,
            Operand::Vector(r) => self.vectors[r as usize][self.first_lane()],
        }
    }

    /// 64 bits of a scalar operand.
    #[inline]
    pub fn scalar64(&self, operand: Operand) -> u64 {
        match operand {
            Operand::Scalar(scalar::NULL) | Operand::None | Operand::Vector(_) => 0,
            Operand::Scalar(r) => u64::from(self.scalars[r as usize]) | u64::from(self.scalars[r as usize + 1]) << 32,
            Operand::Int(v) => v as u64,
            Operand::Float(v) => v.to_bits(),
            Operand::Scc => u64::from(self.scc),
            Operand::Aperture(base) => base,
        }
    }

    #[inline]
    pub fn set_scalar(&mut self, operand: Operand, value: u32) {
        match operand {
            Operand::Scalar(scalar::NULL) => {}
            Operand::Scalar(r) => self.scalars[r as usize] = value,
            _ => self.fault(format!("{operand:?} is not a scalar register")),
        }
    }

    #[inline]
    pub fn set_scalar64(&mut self, operand: Operand, value: u64) {
        match operand {
            Operand::Scalar(scalar::NULL) => {}
            Operand::Scalar(r) => {
                self.scalars[r as usize] = value as u32;
                self.scalars[r as usize + 1] = (value >> 32) as u32;
            }
            _ => self.fault(format!("{operand:?} is not a pair of scalar registers")),
        }
    }

    /// One bit for each lane: as many registers as the wave is wide.
    #[inline]
    pub fn lane_mask(&self, operand: Operand) -> u64 {
        if self.width == 64 { self.scalar64(operand) } else { self.scalar(operand).into() }
    }

    #[inline]
    pub fn set_lane_mask(&mut self, operand: Operand, mask: u64) {
        if self.width == 64 { self.set_scalar64(operand, mask) } else { self.set_scalar(operand, mask as u32) }
    }

    /// The result of one 32-bit operand, and what becomes of the condition.
    #[inline(always)]
    pub fn unary(&mut self, i: &Inst, f: impl Fn(u32) -> (u32, Option<bool>)) {
        let (value, condition) = f(self.scalar(i.operands[1]));
        self.set_scalar(i.operands[0], value);
        self.scc = condition.unwrap_or(self.scc);
    }

    #[inline(always)]
    pub fn unary64(&mut self, i: &Inst, f: impl Fn(u64) -> (u64, Option<bool>)) {
        let (value, condition) = f(self.scalar64(i.operands[1]));
        self.set_scalar64(i.operands[0], value);
        self.scc = condition.unwrap_or(self.scc);
    }

    #[inline(always)]
    pub fn binary(&mut self, i: &Inst, f: impl Fn(u32, u32) -> (u32, Option<bool>)) {
        let (value, condition) = f(self.scalar(i.operands[1]), self.scalar(i.operands[2]));
        self.set_scalar(i.operands[0], value);
        self.scc = condition.unwrap_or(self.scc);
    }

    #[inline(always)]
    pub fn binary64(&mut self, i: &Inst, f: impl Fn(u64, u64) -> (u64, Option<bool>)) {
        let (value, condition) = f(self.scalar64(i.operands[1]), self.scalar64(i.operands[2]));
        self.set_scalar64(i.operands[0], value);
        self.scc = condition.unwrap_or(self.scc);
    }

    /// Sets the condition.
    #[inline(always)]
    pub fn test(&mut self, i: &Inst, f: impl Fn(u32, u32) -> bool) {
        self.scc = f(self.scalar(i.operands[0]), self.scalar(i.operands[1]));
    }

    /// Goes on elsewhere: so many words from the next instruction.
    pub fn jump(&mut self, words: Operand) {
        let words = self.scalar(words) as u16 as i16;
        self.next = self.next.wrapping_add_signed(4 * i64::from(words));
    }

    pub fn jump_if(&mut self, i: &Inst, condition: bool) {
        if condition {
            self.jump(i.operands[0]);
        }
    }
}
