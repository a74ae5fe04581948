//! Every operator's GPU plan at every size: what it launches is compiled ahead of time, and fits the devices it is made for.

use mhc_core::{
    AnyOp, DType, Level, Problem,
    gpu::{Arg, GpuCaps, Launch, Plan},
    ops::SOURCES,
};

/// The smallest devices of either kind.
fn devices() -> [GpuCaps; 2] {
    let caps = |arch: &str, wave| GpuCaps {
        arch: arch.into(),
        wave,
        units: 1,
        shared_per_block: 48 << 10,
        max_threads: 1024,
        tuned: Vec::new(),
    };
    [caps("sm_80", 32), caps("gfx90a", 64)]
}

fn problems() -> impl Iterator<Item = Problem> {
    let cases = AnyOp::all_cases(Level::Full);
    cases.into_iter().flat_map(|c| DType::ALL.map(|act| Problem { op: c.op.clone(), dims: c.dims, act }))
}

// Every problem here must have a plan: not to have one fails the test that asks.
#[allow(clippy::panic)]
fn plan(p: &Problem, caps: &GpuCaps) -> Plan {
    p.op.plan(&p.dims, p.act, caps).unwrap_or_else(|e| panic!("{p} on {}: {e}", caps.arch))
}

fn launches(plan: &Plan) -> impl Iterator<Item = &Launch> {
    plan.launches.iter().chain(plan.fallback.iter().flat_map(|f| &f.launches))
}

#[test]
fn every_entry_is_compiled_ahead_of_time() {
    for caps in devices() {
        for p in problems() {
            for l in launches(&plan(&p, &caps)) {
                let source = SOURCES.iter().find(|s| s.name == l.source);
                let entries = source.map(|s| (s.entries)()).unwrap_or_default();
                assert!(entries.contains(&l.entry), "{p}: {} has no {}", l.source, l.entry.name(caps.wave));
            }
        }
    }
}

#[test]
fn every_launch_fits_the_smallest_devices() {
    for caps in devices() {
        for p in problems() {
            for l in launches(&plan(&p, &caps)) {
                let name = l.entry.name(caps.wave);
                let threads = l.block[0];
                assert!(
                    threads > 0 && threads % caps.wave == 0 && threads <= caps.max_threads,
                    "{p}: {name}: {threads}"
                );
                assert!(l.grid.iter().all(|&g| g > 0), "{p}: {name}: {:?}", l.grid);
                assert!(
                    l.grid[0].checked_mul(threads).is_some(),
                    "{p}: {name}: {:?}: more threads than 32 bits",
                    l.grid
                );
                assert!(l.grid[1] <= 65535 && l.grid[2] <= 65535, "{p}: {name}: {:?}", l.grid);
                assert!(l.shared <= caps.shared_per_block, "{p}: {name}: {} bytes of shared memory", l.shared);
                assert!(l.cells() <= Launch::MAX_CELLS, "{p}: {name}: {} cells", l.cells());
            }
        }
    }
}

#[test]
fn arguments_are_operands_that_are_there_and_scratch_that_was_asked_for() {
    for caps in devices() {
        for p in problems() {
            let (plan, slots) = (plan(&p, &caps), p.op.desc().slots);
            for l in launches(&plan) {
                for arg in &l.args {
                    match *arg {
                        Arg::Slot(s) | Arg::Stride(s, _) => assert!(s < slots.len(), "{p}: {}", l.entry.kernel),
                        Arg::Workspace(offset) => {
                            assert!(offset <= plan.workspace, "{p}: {}: scratch at {offset}", l.entry.kernel);
                            assert!(offset % 4 == 0, "{p}: {}: scratch at {offset}", l.entry.kernel);
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

/// Every output is some launch's argument, whatever the attributes: an operand that nobody writes would stay as it was.
#[test]
fn every_output_is_given_to_a_launch() {
    for p in problems().filter(|p| p.dims.tokens > 0) {
        let [caps, _] = devices();
        let plan = plan(&p, &caps);
        for (i, slot) in p.op.desc().slots.iter().enumerate() {
            let given = plan.launches.iter().any(|l| l.args.contains(&Arg::Slot(i)));
            assert!(given || !p.op.has(slot.name), "{p}: nobody is given `{}`", slot.name);
        }
    }
}
