//! Instructions that have been read, so that each is read once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::{
    comgr::Disassembler,
    inst::Inst,
    memory::{Fault, Memory},
    ops, text,
};

/// Instructions of all programs of a GPU.
pub struct Code {
    disassembler: Mutex<Disassembler>,
    /// By address, with the bytes: what was loaded there later has others.
    known: RwLock<HashMap<u64, (Bytes, Arc<Inst>)>>,
}

/// Longest instruction, in bytes, with room to see its end.
const LONGEST: u64 = 24;

type Bytes = [u8; LONGEST as usize];

impl Code {
    pub fn new(arch: &str) -> Result<Self, String> {
        Ok(Self { disassembler: Mutex::new(Disassembler::new(arch)?), known: RwLock::default() })
    }

    fn get(&self, memory: &Memory, pc: u64) -> Result<Arc<Inst>, Fault> {
        let fault = |why: &str| Fault(format!("cannot execute at {pc:#x}: {why}"));
        let window = memory.window(pc, 4).ok_or_else(|| fault("no program is loaded there"))?;
        let size = window.left(pc).min(LONGEST);
        let place = window.get(pc, size).ok_or_else(|| fault("no program is loaded there"))?;
        let mut bytes: Bytes = [0; LONGEST as usize];
        // SAFETY: the window holds `size` bytes there, which are no more than the buffer has.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(place, size as usize) };
        let same = |before: &Bytes, inst: &Inst| before[..inst.size as usize] == bytes[..inst.size as usize];
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, inst)) = known.get(&pc).filter(|(before, inst)| same(before, inst)) {
            return Ok(inst.clone());
        }
        drop(known);
        let mut disassembler = self.disassembler.lock().unwrap_or_else(PoisonError::into_inner);
        let (words, size) = disassembler.first(&bytes[..size as usize], pc).map_err(|e| fault(&e))?;
        drop(disassembler);
        let mut inst = text::parse(&words).map_err(|e| fault(&format!("cannot read {e}")))?;
        ops::resolve(&mut inst).map_err(|e| fault(&format!("{e}, in `{}`", words.trim())))?;
        (inst.size, inst.bits) = (size, u64::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default()));
        let inst = Arc::new(inst);
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(pc, (bytes, inst.clone()));
        Ok(inst)
    }
}

const PAGE: u64 = 4096;

/// The instructions that one thread has met in one dispatch, found without looking anything up.
pub struct Pages<'a> {
    code: &'a Code,
    memory: &'a Memory,
    pages: HashMap<u64, usize>,
    instructions: Vec<Box<[Option<Arc<Inst>>]>>,
    /// The page of the last instruction, and where it is kept.
    current: (u64, usize),
}

impl<'a> Pages<'a> {
    pub fn new(code: &'a Code, memory: &'a Memory) -> Self {
        Self { code, memory, pages: HashMap::new(), instructions: Vec::new(), current: (u64::MAX, 0) }
    }

    /// The instruction at `pc`.
    #[inline]
    pub fn get(&mut self, pc: u64) -> Result<&Inst, Fault> {
        if pc / PAGE != self.current.0 {
            self.turn_to(pc / PAGE);
        }
        let slot = (pc % PAGE / 4) as usize;
        let page = &mut self.instructions[self.current.1];
        match &mut page[slot] {
            Some(inst) => Ok(inst),
            empty => Ok(empty.insert(self.code.get(self.memory, pc)?)),
        }
    }

    #[cold]
    fn turn_to(&mut self, page: u64) {
        let next = self.instructions.len();
        let kept = *self.pages.entry(page).or_insert(next);
        if kept == next {
            self.instructions.push(vec![None; (PAGE / 4) as usize].into());
        }
        self.current = (page, kept);
    }
}
