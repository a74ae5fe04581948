//! Comparisons, which give a bit for each lane.

use super::Found;
use crate::{
    float,
    inst::{Detail, Inst, Predicate, Run},
    vector::mask,
    wave::Wave,
};

pub fn find(name: &str) -> Option<Found> {
    let what = name.strip_prefix("v_cmpx_").or_else(|| name.strip_prefix("v_cmp_"))?;
    if what == "class_f32" {
        return Some(Found::run(class));
    }
    let (predicate, kind) = what.rsplit_once('_')?;
    let run: Run = match kind {
        "f32" => |w, i| compare(w, i, |w, k| w.float(i, k)),
        "f64" => |w, i| compare(w, i, |w, k| w.double(i, k)),
        "f16" => |w, i| compare(w, i, |w, k| w.half(i, k)),
        "u32" => |w, i| compare(w, i, |w, k| w.source(i, k)),
        "i32" => |w, i| compare(w, i, |w, k| w.source(i, k).map(|v| v as i32)),
        "u64" => |w, i| compare(w, i, |w, k| w.source64(i, k)),
        "i64" => |w, i| compare(w, i, |w, k| w.source64(i, k).map(|v| v as i64)),
        "u16" => |w, i| compare(w, i, |w, k| w.short(i, k)),
        "i16" => |w, i| compare(w, i, |w, k| w.short(i, k).map(|v| v as i16)),
        _ => return None,
    };
    Some(Found::with(run, Detail::Predicate(read(predicate)?)))
}

fn read(name: &str) -> Option<Predicate> {
    Some(match name {
        "f" => Predicate::Never,
        "lt" => Predicate::Less,
        "eq" => Predicate::Equal,
        "le" => Predicate::LessEqual,
        "gt" => Predicate::Greater,
        "lg" => Predicate::LessGreater,
        "ge" => Predicate::GreaterEqual,
        "o" => Predicate::Ordered,
        "u" => Predicate::Unordered,
        "nge" => Predicate::NotGreaterEqual,
        "nlg" => Predicate::NotLessGreater,
        "ngt" => Predicate::NotGreater,
        "nle" => Predicate::NotLessEqual,
        "neq" | "ne" => Predicate::NotEqual,
        "nlt" => Predicate::NotLess,
        "tru" | "t" => Predicate::Always,
        _ => return None,
    })
}

/// The first of the two that are compared: a destination may stand before them.
fn first(i: &Inst) -> usize {
    if i.count == 3 { 1 } else { 0 }
}

#[inline(always)]
fn compare<T: PartialOrd + Copy>(w: &mut Wave<'_>, i: &Inst, read: impl Fn(&Wave<'_>, usize) -> [T; 64]) {
    let (a, b) = (read(w, first(i)), read(w, first(i) + 1));
    let Detail::Predicate(predicate) = i.detail else { return };
    let ordered = |l: usize| a[l].partial_cmp(&b[l]).is_some();
    let lanes = match predicate {
        Predicate::Never => 0,
        Predicate::Less => mask(|l| a[l] < b[l]),
        Predicate::Equal => mask(|l| a[l] == b[l]),
        Predicate::LessEqual => mask(|l| a[l] <= b[l]),
        Predicate::Greater => mask(|l| a[l] > b[l]),
        Predicate::LessGreater => mask(|l| ordered(l) && a[l] != b[l]),
        Predicate::GreaterEqual => mask(|l| a[l] >= b[l]),
        Predicate::Ordered => mask(ordered),
        Predicate::Unordered => !mask(ordered),
        Predicate::NotGreaterEqual => !mask(|l| a[l] >= b[l]),
        Predicate::NotLessGreater => !mask(|l| ordered(l) && a[l] != b[l]),
        Predicate::NotGreater => !mask(|l| a[l] > b[l]),
        Predicate::NotLessEqual => !mask(|l| a[l] <= b[l]),
        Predicate::NotEqual => !mask(|l| a[l] == b[l]),
        Predicate::NotLess => !mask(|l| a[l] < b[l]),
        Predicate::Always => !0,
    };
    write(w, i, lanes);
}

fn class(w: &mut Wave<'_>, i: &Inst) {
    let (values, classes) = (w.float(i, first(i)), w.source(i, first(i) + 1));
    write(w, i, mask(|l| float::class(values[l]) & classes[l] != 0));
}

/// Lanes that take no part give 0; `v_cmpx` chooses the lanes that go on.
fn write(w: &mut Wave<'_>, i: &Inst, lanes: u64) {
    let lanes = lanes & w.mask;
    if !i.name.starts_with("v_cmpx") {
        return w.set_lane_mask(i.operands[0], lanes);
    }
    if i.count == 3 {
        w.set_lane_mask(i.operands[0], lanes);
    }
    w.set_exec(lanes);
}
