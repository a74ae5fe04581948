//! One workgroup: its waves share memory and meet at barriers, and run in any order in between.

use crate::{
    arch::Arch,
    code::Pages,
    descriptor::Descriptor,
    dispatch::Launch,
    inst::{Dpp, Inst, Operand},
    memory::{Fault, Memory},
    traffic::{Counters, Touched},
    wave::{JUNK_BYTE, State, Wave},
};

/// More instructions than any wave here needs: a loop without an end.
const TOO_MANY: u64 = 2_000_000_000;

/// A workgroup's waves and memory, used for one after the other.
pub struct Group<'a> {
    launch: &'a Launch,
    descriptor: &'a Descriptor,
    waves: Vec<Wave<'a>>,
    lds: Vec<u8>,
    touched: Option<Touched>,
}

/// Chooses the order of waves, the same in every run.
struct Dice(u64);

impl Dice {
    /// A number below `n`.
    fn roll(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

impl<'a> Group<'a> {
    pub fn new(arch: Arch, memory: &'a Memory, launch: &'a Launch, descriptor: &'a Descriptor) -> Self {
        let items: usize = launch.group.iter().map(|n| *n as usize).product();
        let wave = |_| {
            let mut wave = Wave::new(memory, descriptor.width);
            wave.scratch = vec![JUNK_BYTE; launch.scratch as usize * 64];
            wave.clears_upper_half = arch.clears_upper_half();
            wave
        };
        let waves = (0..items.div_ceil(descriptor.width)).map(wave).collect();
        Self {
            launch,
            descriptor,
            waves,
            lds: vec![0; launch.lds as usize],
            touched: launch.tracked.then(Touched::default),
        }
    }

    /// Runs workgroup `id`, the `index`-th of the launch.
    pub fn run(
        &mut self,
        id: [u32; 3],
        index: u64,
        pages: &mut Pages<'_>,
        counters: &mut Counters,
    ) -> Result<(), Fault> {
        self.lds.fill(JUNK_BYTE);
        for (k, wave) in self.waves.iter_mut().enumerate() {
            wave.scratch.fill(JUNK_BYTE);
            (wave.indexed, wave.executed, wave.scc) = (0, 0, false);
            wave.state = State::Running;
            wave.counters = Counters { waves: 1, ..Counters::default() };
            self.descriptor.start(wave, self.launch, id, k * self.descriptor.width);
        }
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(index + 1) | 1);
        let mut order: Vec<usize> = (0..self.waves.len()).collect();
        while self.waves.iter().any(|w| w.state == State::Running) {
            for k in (1..order.len()).rev() {
                order.swap(k, dice.roll(k + 1));
            }
            for k in &order {
                let wave = &mut self.waves[*k];
                // Whichever wave runs has the workgroup's memory.
                std::mem::swap(&mut self.lds, &mut wave.lds);
                std::mem::swap(&mut self.touched, &mut wave.touched);
                step(wave, pages);
                std::mem::swap(&mut self.lds, &mut wave.lds);
                std::mem::swap(&mut self.touched, &mut wave.touched);
                if let State::Faulted(fault) = &wave.state {
                    return Err(fault.clone());
                }
            }
            // All have come to the barrier, or to their ends, which a barrier does not wait for.
            for wave in self.waves.iter_mut().filter(|w| w.state == State::AtBarrier) {
                wave.state = State::Running;
            }
        }
        self.waves.iter().for_each(|w| counters.add(&w.counters));
        Ok(())
    }
}

impl Group<'_> {
    /// The lines that were touched, where they are wanted.
    pub fn touched(&self) -> Option<&Touched> {
        self.touched.as_ref()
    }
}

/// Runs a wave until it waits, ends or cannot go on.
fn step(wave: &mut Wave<'_>, pages: &mut Pages<'_>) {
    while wave.state == State::Running {
        let inst = match pages.get(wave.pc) {
            Ok(inst) => inst,
            Err(fault) => {
                wave.state = State::Faulted(fault);
                return;
            }
        };
        wave.next = wave.pc + inst.size;
        wave.executed += 1;
        wave.counters.count(inst.class);
        wave.mask = if inst.dpp == Dpp::None { wave.exec() } else { wave.written_lanes(inst) };
        match &inst.second {
            None => (inst.run)(wave, inst),
            Some(second) => both(wave, inst, second),
        }
        if wave.executed > TOO_MANY {
            wave.fault(format!("{TOO_MANY} instructions and no end"));
        }
        wave.pc = wave.next;
    }
}

/// Two instructions in one: the second reads what was there before the first.
fn both(wave: &mut Wave<'_>, first: &Inst, second: &Inst) {
    let Operand::Vector(r) = first.operands[0] else {
        return wave.fault(format!("`{}` begins with what writes no vector", first.text));
    };
    let before = wave.vectors[r as usize];
    (first.run)(wave, first);
    let after = std::mem::replace(&mut wave.vectors[r as usize], before);
    (second.run)(wave, second);
    wave.vectors[r as usize] = after;
}
