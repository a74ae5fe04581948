//! What moves values from lane to lane.

use crate::{
    inst::{Inst, Operand, Run},
    vector::each,
    wave::Wave,
};

pub fn find(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_readfirstlane_b32" => |w, i| w.set_scalar(i.operands[0], w.source(i, 1)[w.first_lane()]),
        "v_readlane_b32" => |w, i| {
            let lane = w.lane(w.scalar(i.operands[2]));
            w.set_scalar(i.operands[0], w.source(i, 1)[lane]);
        },
        "v_writelane_b32" => |w, i| {
            let (lane, value) = (w.lane(w.scalar(i.operands[2])), w.scalar(i.operands[1]));
            if let Operand::Vector(r) = i.operands[0] {
                w.vectors[r as usize][lane] = value;
            }
        },
        "v_mbcnt_lo_u32_b32" => |w, i| count_below(w, i, 0),
        "v_mbcnt_hi_u32_b32" => |w, i| count_below(w, i, 32),
        "v_permlane16_b32" => |w, i| permute_rows(w, i, 0),
        "v_permlanex16_b32" => |w, i| permute_rows(w, i, 16),
        "v_permlane16_swap_b32" => |w, i| swap_rows(w, i, 16),
        "v_permlane32_swap_b32" => |w, i| swap_rows(w, i, 32),
        _ => return None,
    };
    Some(run)
}

/// How many bits of the first source belong to lower lanes, of those from lane `first` on.
fn count_below(w: &mut Wave<'_>, i: &Inst, first: usize) {
    let (bits, start) = (w.source(i, 1), w.source(i, 2));
    let below = |l: usize| ((1u64 << (l.saturating_sub(first)).min(32)) - 1) as u32;
    w.result(i, &each(|l| (bits[l] & below(l)).count_ones().wrapping_add(start[l])));
}

/// Lanes of a row of 16 in any order, 4 bits for each, from the same row or (`other` = 16) the neighbour.
fn permute_rows(w: &mut Wave<'_>, i: &Inst, other: usize) {
    let values = w.source(i, 1);
    let order = u64::from(w.scalar(i.operands[2])) | u64::from(w.scalar(i.operands[3])) << 32;
    let (exec, fetches_inactive) = (w.exec(), i.op_sel & 1 == 1);
    let from = |l: usize| {
        let source = ((l & !15) ^ other) + (order >> (4 * (l & 15)) & 15) as usize;
        if exec >> source & 1 == 1 || fetches_inactive { values[source] } else { 0 }
    };
    w.result(i, &each(from));
}

/// Odd groups of `group` lanes of the first register for even ones of the second.
fn swap_rows(w: &mut Wave<'_>, i: &Inst, group: usize) {
    let (Operand::Vector(a), Operand::Vector(b)) = (i.operands[0], i.operands[1]) else { return };
    for even in (0..64).filter(|l| l & group == 0) {
        let odd = w.vectors[a as usize][even + group];
        w.vectors[a as usize][even + group] = w.vectors[b as usize][even];
        w.vectors[b as usize][even] = odd;
    }
}
