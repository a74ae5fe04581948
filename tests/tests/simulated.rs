//! What only a simulated GPU shows: mistakes in device code, planted in its sources and compiled by AMD's own compiler, must fail the
//! conformance check; and stream kernels must move the bytes that their operators state, and no more.
//!
//! Where AMD's compiler and disassembler are not in the loader's path, every case is reported as ignored, by name:
//! `cargo xtask sim test` runs them.

#![allow(clippy::print_stderr, clippy::print_stdout)] // a test program talks to its user

use std::sync::{Arc, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial as Case};
use mhc_core::{AnyOp, Axis, DType, Dims, Level, Problem, Slot, Stream};
use mhc_gfxsim::{
    arch::Arch,
    traffic::{Counters, LINE},
};
use mhc_tests::{
    bench::amd,
    check::Trial,
    data,
    run::{How, run},
    sim::{self, Plant},
};

/// A mistake, and where it must be caught.
struct Mistake {
    name: &'static str,
    plant: Plant,
    /// The operator whose check must fail, and the streams' type.
    op: &'static str,
    act: DType,
    /// GPUs on which it is one.
    on: &'static [Arch],
    /// Words of the failure; empty where it depends on what else went wrong first.
    says: &'static str,
}

const ALL: &[Arch] = &Arch::ALL;
const WAVES_OF_64: &[Arch] = &[Arch::Gfx90a, Arch::Gfx942, Arch::Gfx950];
const RDNA: &[Arch] = &[Arch::Gfx1100];

/// gfx950 has an instruction for it.
const CONVERTS_BY_INTEGERS: &[Arch] = &[Arch::Gfx90a, Arch::Gfx942, Arch::Gfx1100];

const MISTAKES: &[Mistake] = &[
    Mistake {
        name: "a_wave_is_taken_to_be_32_lanes",
        plant: Plant {
            file: "reduce.cuh",
            text: "for (u32 m = MHC_WAVE / 2; m > 0; m /= 2) v += shuffle_xor(v, m);",
            instead: "for (u32 m = 16; m > 0; m /= 2) v += shuffle_xor(v, m);",
        },
        op: "rms_norm",
        act: DType::F32,
        on: WAVES_OF_64,
        says: "of what is allowed",
    },
    Mistake {
        name: "a_barrier_is_missing",
        plant: Plant {
            file: "reduce.cuh",
            text: "    if (lane_index() == 0) scratch[wave_index()] = v;\n    barrier();\n",
            instead: "    if (lane_index() == 0) scratch[wave_index()] = v;\n",
        },
        op: "rms_norm",
        act: DType::F32,
        on: ALL,
        says: "",
    },
    Mistake {
        name: "half_of_a_reduction_is_missing",
        plant: Plant {
            file: "reduce.cuh",
            text: "for (u32 m = M; m < MHC_WAVE; m *= 2) sum += shuffle_xor(sum, m);",
            instead: "for (u32 m = M; m < MHC_WAVE / 2; m *= 2) sum += shuffle_xor(sum, m);",
        },
        op: "aggregate_bwd",
        act: DType::F32,
        on: ALL,
        says: "of what is allowed",
    },
    Mistake {
        name: "all_waves_but_the_first_forget_their_part",
        plant: Plant {
            file: "reduce.cuh",
            text: "    if (lane_index() == 0) scratch[wave_index()] = v;",
            instead: "    if (thread_index() == 0) scratch[wave_index()] = v;",
        },
        op: "rms_norm",
        act: DType::Bf16,
        on: ALL,
        says: "",
    },
    Mistake {
        name: "a_read_goes_out_of_bounds",
        plant: Plant {
            file: "post",
            text: "load<WIDE>(a.y.at(t) + c, y, a.channels - c);",
            instead: "load<WIDE>(a.y.at(t + a.tokens) + c, y, a.channels - c);",
        },
        op: "post",
        act: DType::F32,
        on: ALL,
        says: "in no allocation",
    },
    Mistake {
        name: "a_write_goes_out_of_bounds",
        plant: Plant {
            file: "post",
            text: "if (i + g < n) store<WIDE>(x_next.at(i + g) + c, acc[g], a.channels - c);",
            instead: "store<WIDE>(x_next.at(i + g + 1) + c, acc[g], a.channels - c);",
        },
        op: "post",
        act: DType::Bf16,
        on: ALL,
        says: "",
    },
    Mistake {
        name: "bf16_is_cut_off_instead_of_rounded",
        plant: Plant {
            file: "prelude.cuh",
            text: "return f != f ? (u16)(u >> 16 | 0x40) : (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);",
            instead: "return (u16)(u >> 16);",
        },
        op: "post",
        act: DType::Bf16,
        on: CONVERTS_BY_INTEGERS,
        says: "spacings",
    },
    Mistake {
        name: "groups_are_added_before_they_are_there",
        plant: Plant {
            file: "sum",
            text: "    group[g][column] = sum;\n    barrier();\n",
            instead: "    group[g][column] = sum;\n",
        },
        op: "rms_norm_bwd",
        act: DType::F32,
        on: ALL,
        says: "",
    },
    Mistake {
        name: "a_group_of_rows_is_not_added",
        plant: Plant {
            file: "sum",
            text: "for (u32 r = g; r < a.rows; r += GROUPS) sum += a.parts[r * a.step + k];",
            instead: "for (u32 r = g; r + 1 < a.rows; r += GROUPS) sum += a.parts[r * a.step + k];",
        },
        op: "rms_norm_bwd",
        act: DType::F32,
        on: ALL,
        says: "of what is allowed",
    },
    Mistake {
        name: "the_smaller_half_of_phi_is_left_out",
        plant: Plant {
            file: "project_bwd_wmma",
            text: "small.w[k / 2] |= (u32)float_to_half(v) << 16 * (k % 2);",
            instead: "",
        },
        op: "project_bwd",
        act: DType::Bf16,
        on: RDNA,
        says: "`d_x`",
    },
    Mistake {
        name: "the_last_part_of_p_is_left_out",
        plant: Plant {
            file: "project_bwd_wmma",
            text: "for (u32 part = 3; part-- > 0;) {",
            instead: "for (u32 part = 2; part-- > 0;) {",
        },
        op: "project_bwd",
        act: DType::Bf16,
        on: RDNA,
        says: "`d_phi`",
    },
    Mistake {
        name: "the_next_tokens_are_not_waited_for",
        plant: Plant {
            file: "project_bwd_wmma",
            text: "live && mine, d, f);\n        }\n        barrier();\n",
            instead: "live && mine, d, f);\n        }\n",
        },
        op: "project_bwd",
        act: DType::Bf16,
        on: RDNA,
        says: "",
    },
];

/// Kernels that stream their operands: what they move must be what the operator states.
const STREAMS: &[&str] =
    &["post", "post_bwd", "aggregate", "expand", "expand_bwd", "collapse", "collapse_bwd", "rms_norm", "static_layer"];
/// Of an operator's stated bytes, this part may be moved besides: launches' arguments, and coefficients that several waves read.
const BESIDE: f64 = 0.02;

fn main() {
    let arguments = Arguments::from_args();
    let missing = sim::available().err();
    if let Some(why) = &missing {
        eprintln!("all cases are ignored: {why}; see `cargo xtask sim`");
    }
    let mut cases = Vec::new();
    let mut case = |name: String, run: Box<dyn FnOnce() -> Result<()> + Send>| {
        let run = move || run().map_err(|e| format!("{e:#}").into());
        cases.push(Case::test(name, run).with_ignored_flag(missing.is_some()));
    };
    for mistake in MISTAKES {
        for arch in mistake.on {
            let name = format!("planted/{}@{}", mistake.name, arch.name());
            case(name, Box::new(move || is_caught(mistake, *arch)));
        }
    }
    for arch in Arch::ALL {
        let mut sound: Vec<_> = MISTAKES.iter().map(|m| (m.op, m.act)).collect();
        sound.sort_by_key(|(op, act)| (*op, act.name()));
        sound.dedup();
        for (op, act) in sound {
            let name = format!("planted/nothing/{op}/{act}@{}", arch.name());
            case(name, Box::new(move || check(arch, None, &problem(op, small(op), act)?)));
        }
    }
    for op in STREAMS {
        for act in [DType::F32, DType::Bf16] {
            let name = format!("traffic/{op}/{act}@gfx942");
            case(name, Box::new(move || moves_what_it_states(op, act)));
        }
    }
    case("predicted/static_layer/T1024.n4.C1920@gfx942".into(), Box::new(predicted));
    libtest_mimic::run(&arguments, cases).exit();
}

/// Bytes that an MI300X's memory moves in a microsecond.
const MI300X: f64 = 5.3e6;
/// What the published 694 µs of an MI308X's static layer must come to.
const MOST: f64 = 30.0;

/// The time that an MI300X's memory takes for what the best-known published shape's kernel moves, in f32.
fn predicted() -> Result<()> {
    let problem = amd::layer(Dims::new(1024, 4, 1920), DType::F32);
    let (moved, _) = moved(&problem)?;
    let us = (moved.read_bytes + moved.written_bytes) as f64 / MI300X;
    println!("{problem}: {us:.1} µs at 5.3 TB/s");
    ensure!(us <= MOST, "{us} µs of memory time, more than {MOST}");
    Ok(())
}

/// Some tokens, and more channels than one wave takes, no multiple of anything but where tuned kernels want whole vectors of them.
fn small(op: &str) -> Dims {
    Dims::new(17, 4, if op == "project_bwd" { 136 } else { 1100 })
}

/// The operator's first case, at other sizes.
fn problem(op: &str, dims: Dims, act: DType) -> Result<Problem> {
    let case = AnyOp::all_cases(Level::Smoke).into_iter().find(|c| c.op.desc().name == op);
    Ok(Problem { op: case.with_context(|| format!("there is no operator {op}"))?.op, dims, act })
}

fn check(arch: Arch, plant: Option<Plant>, problem: &Problem) -> Result<()> {
    let (device, _) = sim::open(arch, plant)?;
    Trial::new(problem.clone())?.check(&Stream::new(Arc::new(device))?)?;
    Ok(())
}

fn is_caught(mistake: &Mistake, arch: Arch) -> Result<()> {
    let problem = problem(mistake.op, small(mistake.op), mistake.act)?;
    let Err(caught) = check(arch, Some(mistake.plant), &problem) else { bail!("it went unnoticed in {problem}") };
    let caught = format!("{caught:#}");
    // A text that is no longer there, or does not compile, is no mistake that was caught.
    ensure!(!caught.contains("plant") && !caught.contains("error:"), "{caught}");
    ensure!(caught.contains(mistake.says), "`{caught}` does not say `{}`", mistake.says);
    Ok(())
}

/// What the problem's launches move together on a simulated MI300, and their names.
fn moved(problem: &Problem) -> Result<(Counters, String)> {
    let (device, log) = sim::open(Arch::Gfx942, None)?;
    let operands = data::operands(problem, 1)?;
    run(&Stream::new(Arc::new(device))?, problem, &operands, How::PLAIN)?;
    let mut moved = Counters::default();
    let launches = log.lock().unwrap_or_else(PoisonError::into_inner);
    launches.iter().for_each(|(_, counters)| moved.add(counters));
    Ok((moved, launches.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")))
}

/// Bytes of operands that are the same for all tokens.
fn shared(problem: &Problem) -> usize {
    let wanted = |s: &&Slot| s.is_input() && problem.op.has(s.name) && !s.axes.contains(&Axis::T);
    let bytes = |s: &Slot| s.shape(&problem.dims).iter().product::<usize>() * s.dtype(problem.act).size();
    problem.op.desc().slots.iter().filter(wanted).map(bytes).sum()
}

fn moves_what_it_states(op: &str, act: DType) -> Result<()> {
    let problem = problem(op, Dims::new(64, 4, 2048), act)?;
    let (moved, names) = moved(&problem)?;
    let stated = problem.op.cost(&problem.dims, act).bytes as f64;
    let within = |what: &str, moves: f64, most: f64| {
        ensure!(
            ((1.0 - BESIDE) * stated..=(1.0 + BESIDE) * most).contains(&moves),
            "{problem} moves {moves} {what} where {stated} are stated ({names})"
        );
        Ok(())
    };
    // Different lines tell whether anything is moved that nobody needs, or not at all.
    within("bytes of lines", (LINE * moved.different_lines) as f64, stated)?;
    // Bytes that kernels ask for tell whether anything is read twice; what is the same for all tokens every token reads, from a cache.
    let most = stated + (shared(&problem) * (problem.dims.tokens - 1)) as f64;
    within("bytes", (moved.read_bytes + moved.written_bytes) as f64, most)?;
    ensure!(moved.atomic_bytes == 0, "atomics of {} bytes", moved.atomic_bytes);
    Ok(())
}
