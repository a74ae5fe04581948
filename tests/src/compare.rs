//! Whether one output of a device is what the reference says.
//!
//! Three gates. Every element: its error may be `baseline` times the largest error of a plain f32 computation, plus a floor of a few
//! f32 spacings of the largest magnitude, plus half a spacing of the output's own type where that is 16 bits wide: coefficients and sums
//! are f32 everywhere and are rounded once. All elements: their error energy. 16-bit outputs: the mean error in spacings must be zero
//! within what rounding to nearest makes of that many elements, which truncation fails.

use core::fmt;
use std::collections::BTreeMap;

use mhc_core::{DType, Tolerance};

/// How far an output is from the truth, at its worst element.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The output.
    pub slot: &'static str,
    /// Largest absolute error.
    pub abs: f64,
    /// The same relative to the truth's largest magnitude.
    pub rel: f64,
    /// The same in spacings of the output's type at that element.
    pub ulp: f64,
    /// The largest part of what was allowed that any element used up; above 1 is a miss.
    pub used: f64,
    /// Where that was.
    pub index: Vec<usize>,
    /// The truth there.
    pub want: f64,
    /// What came.
    pub got: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slot, abs, rel, ulp, used, index, want, got } = self;
        write!(
            f,
            "`{slot}`{index:?} wanted {want:e}, got {got:e}; largest error {abs:.3e} absolute, {rel:.3e} relative, \
             {ulp:.2} spacings, {:.0} % of what is allowed",
            used * 100.0
        )
    }
}

/// An output that is judged.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Its name.
    pub slot: &'static str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its element type.
    pub dtype: DType,
    /// The reference in f64.
    pub truth: &'a [f64],
    /// What is as good: [`Expected::peers`](crate::oracle::Expected::peers).
    pub peers: &'a [&'a [f64]],
    /// [`Expected::scale`](crate::oracle::Expected::scale).
    pub scale: f64,
    /// What the device wrote.
    pub got: &'a [f64],
}

/// The distance between neighbouring numbers of a type around `v`.
pub fn spacing(dtype: DType, v: f64) -> f64 {
    let (fraction_bits, min_exponent) = match dtype {
        DType::F32 => (23, -126),
        DType::F16 => (10, -14),
        DType::Bf16 => (7, -126),
    };
    // The exponent field of an f64 is its binade, and 0 for what is too small for any of these types.
    let binade = ((v.abs().to_bits() >> 52) as i32 - 1023).max(min_exponent);
    f64::powi(2.0, binade - fraction_bits)
}

/// The report, or what is wrong in words.
pub fn output(o: &Output<'_>, tolerance: &Tolerance) -> Result<Report, String> {
    let Output { slot, dtype, .. } = *o;
    if o.got.len() != o.truth.len() {
        return Err(format!("`{slot}` has {} elements, not {}", o.got.len(), o.truth.len()));
    }
    if let Some(i) = o.truth.iter().position(|v| !v.is_finite()) {
        return Err(format!("`{slot}`: the reference itself gives {} at {:?}", o.truth[i], position(i, o.shape)));
    }
    let largest = o.truth.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let off = |peer: &[f64]| o.truth.iter().zip(peer).fold(0.0, |m: f64, (t, p)| m.max((p - t).abs()));
    let baseline = o.peers.iter().fold(0.0, |m: f64, peer| m.max(off(peer)));
    // What cancels to nothing, such as the gradient of H_res where n = 1, has no magnitude of its own to be measured by.
    let nothing = largest <= NOTHING * o.scale;
    let magnitude = if nothing { o.scale } else { largest };
    let allowed = tolerance.baseline * baseline + tolerance.floor_ulps * DType::F32.epsilon() * magnitude;
    let rounding = |v| if dtype == DType::F32 { 0.0 } else { 0.5 * spacing(dtype, v) };

    let empty = Report { slot, abs: 0.0, rel: 0.0, ulp: 0.0, used: 0.0, index: vec![], want: 0.0, got: 0.0 };
    let mut report = empty;
    for (i, (&want, &got)) in o.truth.iter().zip(o.got).enumerate() {
        let overflown = dtype.round(want).is_infinite() && dtype.round(want) == got;
        let error = if overflown || want == got { 0.0 } else { (got - want).abs() };
        if error.is_nan() {
            return Err(format!("`{slot}`{:?} is {got}, not {want:e}", position(i, o.shape)));
        }
        report.abs = report.abs.max(error);
        report.ulp = report.ulp.max(error / spacing(dtype, want));
        let used = if error == 0.0 { 0.0 } else { error / (allowed + rounding(want)) };
        if i == 0 || used > report.used {
            (report.used, report.index, report.want, report.got) = (used, position(i, o.shape), want, got);
        }
    }
    report.rel = if largest > 0.0 { report.abs / largest } else { report.abs };
    if report.used > 1.0 {
        return Err(report.to_string());
    }
    if nothing {
        return Ok(report);
    }
    energy(o, tolerance).map_err(|why| format!("{why}; {report}"))?;
    bias(o, baseline).map_err(|why| format!("{why}; {report}"))?;
    Ok(report)
}

/// An output whose largest magnitude is less than this part of the upstream gradients' is zero but for rounding.
const NOTHING: f64 = 1e-12;

/// The error energy relative to the output's: its root may be `baseline` times a peer's,
/// rounded to the output's type; plus a floor.
fn energy(o: &Output<'_>, tolerance: &Tolerance) -> Result<(), String> {
    let square = |v: &f64| v * v;
    let truth: f64 = o.truth.iter().map(square).sum();
    let error = |v: &mut dyn Iterator<Item = f64>| v.filter(|e| e.is_finite()).map(|e| e * e).sum::<f64>() / truth;
    if truth == 0.0 {
        return Ok(());
    }
    let got = error(&mut o.got.iter().zip(o.truth).map(|(g, t)| g - t));
    let peer = |peer: &[f64]| error(&mut peer.iter().zip(o.truth).map(|(p, t)| o.dtype.round(*p) - t));
    let baseline = o.peers.iter().fold(0.0, |m: f64, p| m.max(peer(p)));
    let allowed = tolerance.baseline.powi(2) * baseline + tolerance.nmse;
    if got <= allowed {
        Ok(())
    } else {
        Err(format!("`{}`: error energy {got:.2e} of the output's, allowed {allowed:.2e}", o.slot))
    }
}

/// Elements below which a mean says nothing.
const ENOUGH: usize = 64;

/// Rounding to nearest errs to both sides alike, up and down, towards zero and away: both mean errors in spacings must vanish.
/// `noise` is the largest error before rounding.
fn bias(o: &Output<'_>, noise: f64) -> Result<(), String> {
    if o.dtype == DType::F32 {
        return Ok(());
    }
    // Numbers so small that f32 is no better than their spacing say nothing of rounding.
    let told = |w: f64| w != 0.0 && noise < 0.1 * spacing(o.dtype, w);
    // Numbers that repeat, as in constant rows, are rounded alike: each counts once.
    let pairs = o.truth.iter().zip(o.got).filter(|(w, g)| told(**w) && g.is_finite());
    let distinct: BTreeMap<u64, (f64, f64)> = pairs.map(|(w, g)| (w.to_bits(), (*w, *g))).collect();
    let count = distinct.len();
    let (mut up, mut away) = (0.0, 0.0);
    for (want, got) in distinct.values() {
        let error = (got - want) / spacing(o.dtype, *want);
        (up, away) = (up + error, away + error * want.signum());
    }
    if count < ENOUGH {
        return Ok(());
    }
    // Six standard deviations of the mean of errors that are uniform over one spacing.
    let allowed = 6.0 / (12.0 * count as f64).sqrt();
    for (mean, towards) in [(up, "upwards"), (away, "away from zero")] {
        let mean = mean / count as f64;
        if mean.abs() > allowed {
            let slot = o.slot;
            return Err(format!(
                "`{slot}` is not rounded to nearest: {mean:+.3} spacings {towards} on average of {count}"
            ));
        }
    }
    Ok(())
}

/// The index of element `i` of a row-major tensor along each axis.
pub fn position(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&len| {
            let at = i % len.max(1);
            i /= len.max(1);
            at
        })
        .collect();
    index.reverse();
    index
}
