//! An instruction as it is executed: what `text` reads from the disassembler and `ops` knows how to run.

use crate::wave::Wave;

/// What executes an instruction.
pub type Run = fn(&mut Wave<'_>, &Inst);

/// Operands that an instruction can have.
pub const OPERANDS: usize = 6;

/// Scalar registers with a name.
pub mod scalar {
    /// Flat scratch base, the address of nothing here: scratch has its own space.
    pub const FLAT_SCRATCH: u16 = 102;
    /// Carry and condition of vector instructions.
    pub const VCC: u16 = 106;
    /// The first of the trap handler's registers.
    pub const TRAP: u16 = 108;
    /// Base and index of addressing.
    pub const M0: u16 = 124;
    /// Reads as zero, and is not written.
    pub const NULL: u16 = 125;
    /// Lanes that take part.
    pub const EXEC: u16 = 126;
}

/// Accumulation registers come behind the 256 vector registers.
pub const ACCUMULATORS: u16 = 256;

/// Where an operand comes from or goes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    /// Not there, or `off`.
    None,
    /// A vector register, or the first of several.
    Vector(u16),
    /// A scalar register, or the first of several.
    Scalar(u16),
    /// An integer in the instruction.
    Int(i64),
    /// A number in the instruction.
    Float(f64),
    /// The scalar condition.
    Scc,
    /// The start of an address space.
    Aperture(u64),
}

/// The condition of vector instructions.
pub const VCC: Operand = Operand::Scalar(scalar::VCC);

/// What is done to an operand on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Modifiers {
    /// `-v0`
    pub negative: bool,
    /// `|v0|`
    pub absolute: bool,
    /// `v0.h`
    pub high: bool,
    /// `sext(v0)`
    pub sign_extended: bool,
}

/// How lanes of the first source are exchanged on the way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dpp {
    None,
    Quad([u8; 4]),
    Eight([u8; 8]),
    RowShiftLeft(u8),
    RowShiftRight(u8),
    RowRotate(u8),
    RowMirror,
    HalfRowMirror,
    RowShare(u8),
    RowXor(u8),
    /// The last lane of a row, to all of the next.
    Broadcast15,
    /// Lane 31, to all lanes of the wave's other half.
    Broadcast31,
    WaveShiftLeft,
    WaveShiftRight,
    WaveRotateLeft,
    WaveRotateRight,
}

/// Which part of a register an operand of a sub-word instruction is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part {
    Byte(u8),
    Word(u8),
    All,
}

impl Part {
    /// How far it lies from bit 0, and its bits.
    pub fn field(self) -> (u32, u32) {
        match self {
            Self::Byte(n) => (8 * u32::from(n), 0xff),
            Self::Word(n) => (16 * u32::from(n), 0xffff),
            Self::All => (0, !0),
        }
    }
}

/// What becomes of the rest of a destination of which a part is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rest {
    Zero,
    Sign,
    Kept,
}

/// Sub-word addressing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sdwa {
    pub destination: Part,
    pub rest: Rest,
    pub sources: [Part; 2],
}

impl Sdwa {
    /// Whole registers.
    pub const ALL: Self = Self { destination: Part::All, rest: Rest::Zero, sources: [Part::All; 2] };
}

/// A comparison of numbers, some of them true where one is NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Predicate {
    Never,
    Less,
    Equal,
    LessEqual,
    Greater,
    LessGreater,
    GreaterEqual,
    Ordered,
    Unordered,
    NotGreaterEqual,
    NotLessGreater,
    NotGreater,
    NotLessEqual,
    NotEqual,
    NotLess,
    Always,
}

/// What a load or a store moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    /// 1, 2 or 4, of each register.
    pub bytes: u8,
    /// Registers.
    pub registers: u8,
    /// Narrow integers keep their sign.
    pub signed: bool,
    /// Half a register, whose other half is kept.
    pub half: bool,
    /// That half is the upper one.
    pub high: bool,
}

impl Access {
    /// Bytes of a lane.
    pub fn size(&self) -> u64 {
        u64::from(self.bytes) * u64::from(self.registers)
    }
}

/// What is done to memory in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AtomicOp {
    Add,
    Sub,
    MaxUnsigned,
    MinUnsigned,
    MaxSigned,
    MinSigned,
    And,
    Or,
    Xor,
    Swap,
    CompareSwap,
    Increment,
    AddFloat,
    AddHalves,
    AddBrains,
    MaxFloat,
    MinFloat,
}

/// What an instruction's family wants to know beyond its operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Detail {
    None,
    Predicate(Predicate),
    Access(Access),
    /// Two accesses of so many words each, whose offsets count in units of so many bytes.
    Two {
        words: usize,
        unit: u64,
    },
    Atomic {
        op: AtomicOp,
        wide: bool,
    },
    /// Words.
    Words(u8),
    /// A truth table of three operands.
    Table(u8),
    /// Which operands are indexed: sources from bit 0, the destination in bit 3.
    Indexed(u8),
}

/// Where a memory instruction's addresses lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Global,
    /// Anywhere; the upper half of an address tells.
    Flat,
    /// The workgroup's.
    Lds,
    /// A lane's own.
    Scratch,
}

/// What an instruction is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Scalar,
    Vector,
    Matrix,
    Memory,
    Lds,
}

/// A decoded instruction.
#[derive(Clone, Debug)]
pub struct Inst {
    /// How it is run.
    pub run: Run,
    pub class: Class,
    pub space: Space,
    pub operands: [Operand; OPERANDS],
    /// How many registers an operand has; 0 where it is none.
    pub registers: [u8; OPERANDS],
    pub modifiers: [Modifiers; OPERANDS],
    /// How many operands there are.
    pub count: usize,
    /// The first operand that is read: the one that DPP and SDWA are about.
    pub first_source: usize,
    /// Nothing is done to sources on the way, beyond `negative` and `absolute`.
    pub plain: bool,
    /// Some operand has modifiers.
    pub modified: bool,
    pub offset: i64,
    /// Offsets of instructions with two accesses.
    pub offsets: [i64; 2],
    pub clamp: bool,
    /// The result is multiplied by this.
    pub factor: f32,
    pub dpp: Dpp,
    pub row_mask: u8,
    pub bank_mask: u8,
    pub bound_control: bool,
    pub sdwa: Option<Sdwa>,
    pub op_sel: u8,
    pub op_sel_hi: Option<u8>,
    pub negative_low: u8,
    pub negative_high: u8,
    /// An atomic gives back what was there.
    pub returns: bool,
    pub detail: Detail,
    /// The other half of an instruction of two, which reads what was there before both.
    pub second: Option<Box<Inst>>,
    /// Bytes.
    pub size: u64,
    /// The first 8 bytes.
    pub bits: u64,
    pub name: String,
    pub text: String,
}

impl Inst {
    /// An instruction without operands that does nothing.
    pub fn new(name: &str, text: &str) -> Self {
        Self {
            run: |_, _| {},
            class: Class::Scalar,
            space: Space::Global,
            operands: [Operand::None; OPERANDS],
            registers: [0; OPERANDS],
            modifiers: [Modifiers::default(); OPERANDS],
            count: 0,
            first_source: 1,
            plain: true,
            modified: false,
            offset: 0,
            offsets: [0; 2],
            clamp: false,
            factor: 1.0,
            dpp: Dpp::None,
            row_mask: 15,
            bank_mask: 15,
            bound_control: false,
            sdwa: None,
            op_sel: 0,
            op_sel_hi: None,
            negative_low: 0,
            negative_high: 0,
            returns: false,
            detail: Detail::None,
            second: None,
            size: 0,
            bits: 0,
            name: name.into(),
            text: text.into(),
        }
    }

    /// Bit `k - 1` of `op_sel`: source `k` is, or the low result comes from, the upper half.
    pub fn selects_high(&self, k: usize) -> bool {
        self.op_sel >> (k - 1) & 1 == 1
    }

    /// The same for the high result, which takes the upper half where nothing is said.
    pub fn selects_high_for_high(&self, k: usize) -> bool {
        self.op_sel_hi.unwrap_or(0xff) >> (k - 1) & 1 == 1
    }
}
