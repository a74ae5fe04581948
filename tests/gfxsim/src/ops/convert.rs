//! Conversions between formats.

use crate::{
    float,
    inst::{Inst, Run},
    vector::each,
    wave::Wave,
};

pub fn find(name: &str) -> Option<Run> {
    let run: Run = match name {
        "v_cvt_f32_i32" => |w, i| from_bits(w, i, |a| a as i32 as f32),
        "v_cvt_f32_u32" => |w, i| from_bits(w, i, |a| a as f32),
        "v_cvt_f32_ubyte0" => |w, i| from_bits(w, i, |a| (a & 255) as f32),
        "v_cvt_f32_ubyte1" => |w, i| from_bits(w, i, |a| (a >> 8 & 255) as f32),
        "v_cvt_f32_ubyte2" => |w, i| from_bits(w, i, |a| (a >> 16 & 255) as f32),
        "v_cvt_f32_ubyte3" => |w, i| from_bits(w, i, |a| (a >> 24) as f32),
        // Rust's casts saturate and make zero of NaN, as these do.
        "v_cvt_i32_f32" => |w, i| to_bits(w, i, |a| a as i32 as u32),
        "v_cvt_u32_f32" => |w, i| to_bits(w, i, |a| a as u32),
        "v_cvt_flr_i32_f32" | "v_cvt_floor_i32_f32" => |w, i| to_bits(w, i, |a| a.floor() as i32 as u32),
        "v_cvt_rpi_i32_f32" | "v_cvt_nearest_i32_f32" => |w, i| to_bits(w, i, |a| (a + 0.5).floor() as i32 as u32),
        "v_cvt_f16_f32" => |w, i| {
            let a = w.float(i, 1);
            w.result_short(i, &a.map(float::to_half));
        },
        "v_cvt_f32_f16" => |w, i| {
            let a = w.half(i, 1);
            w.result_float(i, &a);
        },
        "v_cvt_f32_bf16" => |w, i| {
            let a = w.short(i, 1);
            w.result_float(i, &a.map(float::from_brain));
        },
        "v_cvt_f16_u16" => |w, i| {
            let a = w.short(i, 1);
            w.result_short(i, &a.map(|v| float::to_half(v.into())));
        },
        "v_cvt_f16_i16" => |w, i| {
            let a = w.short(i, 1);
            w.result_short(i, &a.map(|v| float::to_half((v as i16).into())));
        },
        "v_cvt_u16_f16" => |w, i| {
            let a = w.half(i, 1);
            w.result_short(i, &a.map(|v| v as u16));
        },
        "v_cvt_i16_f16" => |w, i| {
            let a = w.half(i, 1);
            w.result_short(i, &a.map(|v| v as i16 as u16));
        },
        "v_cvt_f64_f32" => |w, i| {
            let a = w.float(i, 1);
            w.result64(i, &a.map(|v| f64::from(v).to_bits()));
        },
        "v_cvt_f64_i32" => |w, i| {
            let a = w.source(i, 1);
            w.result64(i, &a.map(|v| f64::from(v as i32).to_bits()));
        },
        "v_cvt_f64_u32" => |w, i| {
            let a = w.source(i, 1);
            w.result64(i, &a.map(|v| f64::from(v).to_bits()));
        },
        "v_cvt_f32_f64" => |w, i| {
            let a = w.double(i, 1);
            w.result_float(i, &a.map(|v| v as f32));
        },
        "v_cvt_i32_f64" => |w, i| {
            let a = w.double(i, 1);
            w.result(i, &a.map(|v| v as i32 as u32));
        },
        "v_cvt_u32_f64" => |w, i| {
            let a = w.double(i, 1);
            w.result(i, &a.map(|v| v as u32));
        },
        "v_cvt_pk_bf16_f32" => |w, i| pair(w, i, float::to_brain),
        "v_cvt_pk_f16_f32" => |w, i| pair(w, i, float::to_half),
        "v_cvt_pkrtz_f16_f32" | "v_cvt_pk_rtz_f16_f32" => |w, i| pair(w, i, float::to_half_towards_zero),
        "v_pack_b32_f16" => |w, i| {
            let (a, b) = (w.short(i, 1), w.short(i, 2));
            w.result(i, &each(|l| u32::from(a[l]) | u32::from(b[l]) << 16));
        },
        _ => return None,
    };
    Some(run)
}

#[inline(always)]
fn from_bits(w: &mut Wave<'_>, i: &Inst, f: impl Fn(u32) -> f32) {
    let a = w.source(i, 1);
    w.result_float(i, &each(|l| f(a[l])));
}

#[inline(always)]
fn to_bits(w: &mut Wave<'_>, i: &Inst, f: impl Fn(f32) -> u32) {
    let a = w.float(i, 1);
    w.result(i, &each(|l| f(a[l])));
}

#[inline(always)]
fn pair(w: &mut Wave<'_>, i: &Inst, f: impl Fn(f32) -> u16) {
    let (a, b) = (w.float(i, 1), w.float(i, 2));
    w.result(i, &each(|l| u32::from(f(a[l])) | u32::from(f(b[l])) << 16));
}
