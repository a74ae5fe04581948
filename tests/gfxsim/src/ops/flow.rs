//! Where a wave goes on, and what concerns it as a whole.

use crate::{
    inst::{Detail, Inst, Run, VCC, scalar},
    wave::{State, Wave},
};

/// What changes nothing in a model that does one thing after the other and has no clock.
const NOTHING: &[&str] = &[
    "s_nop",
    "s_waitcnt",
    "s_wait_",
    "s_sleep",
    "s_clause",
    "s_delay_alu",
    "s_code_end",
    "s_setprio",
    "s_icache_inv",
    "s_dcache_wb",
    "s_dcache_inv",
    "s_set_inst_prefetch_distance",
    "s_inst_prefetch",
    "s_sendmsg",
    "s_setreg_",
    "s_sethalt",
    "s_round_mode",
    "s_denorm_mode",
    "s_ttracedata",
];

pub fn find(name: &str) -> Option<Run> {
    let run: Run = match name {
        "s_barrier" => |w, _| w.state = State::AtBarrier,
        "s_endpgm" => |w, _| w.state = State::Done,
        "s_trap" => |w, i| w.fault(format!("the kernel gave up: {}", i.text)),
        "s_getreg_b32" => |w, i| w.set_scalar(i.operands[0], 0),
        // No clock is modelled; the count of instructions goes forward as one would.
        "s_memtime" | "s_memrealtime" => |w, i| w.set_scalar64(i.operands[0], 4 * w.executed),
        "s_branch" => |w, i| w.jump(i.operands[0]),
        "s_cbranch_scc0" => |w, i| w.jump_if(i, !w.scc),
        "s_cbranch_scc1" => |w, i| w.jump_if(i, w.scc),
        "s_cbranch_execz" => |w, i| w.jump_if(i, w.exec() == 0),
        "s_cbranch_execnz" => |w, i| w.jump_if(i, w.exec() != 0),
        "s_cbranch_vccz" => |w, i| w.jump_if(i, w.lane_mask(VCC) == 0),
        "s_cbranch_vccnz" => |w, i| w.jump_if(i, w.lane_mask(VCC) != 0),
        "s_getpc_b64" => |w, i| w.set_scalar64(i.operands[0], w.next),
        "s_setpc_b64" => |w, i| w.next = w.scalar64(i.operands[0]),
        "s_swappc_b64" => |w, i| {
            let target = w.scalar64(i.operands[1]);
            w.set_scalar64(i.operands[0], w.next);
            w.next = target;
        },
        "s_call_b64" => |w, i| {
            w.set_scalar64(i.operands[0], w.next);
            w.jump(i.operands[1]);
        },
        "s_set_gpr_idx_on" => |w, i| {
            w.scalars[scalar::M0 as usize] = w.scalar(i.operands[0]);
            if let Detail::Indexed(operands) = i.detail {
                w.indexed = operands;
            }
        },
        "s_set_gpr_idx_off" => |w, _| w.indexed = 0,
        "s_set_gpr_idx_idx" => |w, i| w.scalars[scalar::M0 as usize] = w.scalar(i.operands[0]),
        "s_and_saveexec_b64" | "s_and_saveexec_b32" => |w, i| save_exec(w, i, |s, e| s & e),
        "s_or_saveexec_b64" | "s_or_saveexec_b32" => |w, i| save_exec(w, i, |s, e| s | e),
        "s_xor_saveexec_b64" | "s_xor_saveexec_b32" => |w, i| save_exec(w, i, |s, e| s ^ e),
        "s_andn2_saveexec_b64" | "s_and_not1_saveexec_b64" | "s_and_not1_saveexec_b32" => {
            |w, i| save_exec(w, i, |s, e| s & !e)
        }
        "s_andn1_saveexec_b64" | "s_and_not0_saveexec_b64" | "s_and_not0_saveexec_b32" => {
            |w, i| save_exec(w, i, |s, e| !s & e)
        }
        "s_orn2_saveexec_b64" | "s_or_not1_saveexec_b64" | "s_or_not1_saveexec_b32" => {
            |w, i| save_exec(w, i, |s, e| s | !e)
        }
        "s_andn2_wrexec_b64" | "s_and_not1_wrexec_b64" | "s_and_not1_wrexec_b32" => |w, i| {
            let left = w.lane_mask(i.operands[1]) & !w.exec();
            w.set_exec(left);
            w.set_lane_mask(i.operands[0], left);
            w.scc = left != 0;
        },
        _ if NOTHING.iter().any(|start| name.starts_with(start)) => |_, _| {},
        _ => return None,
    };
    Some(run)
}

/// Keeps the lanes that take part, and chooses anew.
fn save_exec(w: &mut Wave<'_>, i: &Inst, f: impl Fn(u64, u64) -> u64) {
    let exec = w.exec();
    let chosen = f(w.lane_mask(i.operands[1]), exec);
    w.set_lane_mask(i.operands[0], exec);
    w.set_exec(chosen);
    w.scc = w.exec() != 0;
}
