//! One launch of a kernel: its workgroups, spread over threads, each run to its end.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    arch::Arch,
    code::{Code, Pages},
    descriptor::Descriptor,
    group::Group,
    memory::{Fault, Memory},
    traffic::{Counters, Touched},
};

/// What is launched.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Work items of a workgroup, each way.
    pub group: [u32; 3],
    /// Work items in all, each way.
    pub grid: [u32; 3],
    /// Bytes of the workgroup's memory.
    pub lds: u32,
    /// Bytes of a lane's own memory.
    pub scratch: u32,
    /// Where the kernel's descriptor lies.
    pub descriptor: u64,
    /// Where its arguments lie.
    pub arguments: u64,
    /// Where the packet lies that asked for it.
    pub packet: u64,
    /// Count different lines of memory, too.
    pub tracked: bool,
}

impl Launch {
    /// Workgroups each way.
    fn groups(&self) -> [u32; 3] {
        std::array::from_fn(|k| self.grid[k].div_ceil(self.group[k]))
    }
}

/// Runs all workgroups on as many threads, and gives what they did together. Workgroups are independent: one that waits for another
/// may wait forever.
pub fn run(arch: Arch, code: &Code, memory: &Memory, launch: &Launch, threads: usize) -> Result<Counters, Fault> {
    if (0..3).any(|k| !launch.grid[k].is_multiple_of(launch.group[k])) {
        return Err(Fault(format!("grid {:?} is not whole workgroups of {:?}", launch.grid, launch.group)));
    }
    let descriptor = Descriptor::read(memory, launch)?;
    let groups = launch.groups();
    let total = groups.iter().map(|g| u64::from(*g)).product::<u64>();
    let next = AtomicU64::new(0);
    let done: Mutex<Result<Counters, Fault>> = Mutex::new(Ok(Counters { dispatches: 1, ..Counters::default() }));
    let touched = Mutex::new(Touched::default());
    let work = || {
        let mut pages = Pages::new(code, memory);
        let mut group = Group::new(arch, memory, launch, &descriptor);
        let mut counters = Counters::default();
        let outcome = loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= total {
                break Ok(());
            }
            let id = [
                (index % u64::from(groups[0])) as u32,
                (index / u64::from(groups[0]) % u64::from(groups[1])) as u32,
                (index / u64::from(groups[0]) / u64::from(groups[1])) as u32,
            ];
            if let Err(fault) = group.run(id, index, &mut pages, &mut counters) {
                // The others need not go on.
                next.store(total, Ordering::Relaxed);
                break Err(Fault(format!("workgroup {id:?}: {}", fault.0)));
            }
        };
        if let Some(mine) = group.touched() {
            touched.lock().unwrap_or_else(PoisonError::into_inner).add(mine);
        }
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        match (outcome, done.as_mut()) {
            (Ok(()), Ok(all)) => all.add(&counters),
            (Err(fault), Ok(_)) => *done = Err(fault),
            (_, Err(_)) => {}
        }
    };
    let threads = threads.min(total as usize);
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| {
            scope.spawn(work);
        });
        work();
    });
    let mut counters = done.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    counters.different_lines = touched.into_inner().unwrap_or_else(PoisonError::into_inner).count();
    Ok(counters)
}
