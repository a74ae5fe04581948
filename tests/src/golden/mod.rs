//! Golden cases: what other implementations computed in float64, against the reference and against devices.

mod file;
mod map;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use mhc_core::{AnyOp, DType, Device, Problem, Stream};

pub use file::{Array, Attrs, Golden};
pub use map::{Mapping, Part};

use crate::{check::Trial, data, oracle};

/// Largest error of the f64 reference, relative to the largest magnitude of the tensor.
pub const RELATIVE: f64 = 1e-9;

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// The file's name without its ending.
    pub case: String,
    /// `reference` or `cpu bf16`.
    pub what: String,
    /// Largest error relative to the largest magnitude of its tensor.
    pub worst: f64,
    /// The verdict.
    pub verdict: Verdict,
}

/// Whether a row is as it must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is.
    Pass,
    /// It is not, or could not be read, and why.
    Fail(String),
    /// The operator is known but not there yet.
    NotSupported(String),
}

/// The `.safetensors` files of a folder, by name. An error if there is none.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let paths = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    let mut paths: Vec<_> = paths.into_iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    paths.sort();
    ensure!(!paths.is_empty(), "no .safetensors file in {}", dir.display());
    Ok(paths)
}

/// Runs every `.safetensors` file of a folder through the reference and every device. An error if there is none.
pub fn run_dir(dir: &Path, devices: &[Arc<dyn Device>]) -> Result<Vec<Row>> {
    Ok(files(dir)?.iter().flat_map(|p| run_file(p, devices)).collect())
}

/// Runs one file through the reference and every device; one row each.
pub fn run_file(path: &Path, devices: &[Arc<dyn Device>]) -> Vec<Row> {
    let case = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let golden = fs::read(path).map_err(Into::into).and_then(|bytes| Golden::parse(&bytes));
    let rows = golden.and_then(|golden| run(&case, &golden, devices));
    rows.unwrap_or_else(|e| vec![row(&case, "file".into(), Err(e))])
}

/// Runs one case through the reference and every device; one row each. An error if the case makes no sense.
pub fn run(case: &str, golden: &Golden, devices: &[Arc<dyn Device>]) -> Result<Vec<Row>> {
    let Some(mapping) = map::map(golden)? else {
        let verdict = Verdict::NotSupported(format!("`{}` is not yet supported", golden.op));
        return Ok(vec![Row { case: case.into(), what: "reference".into(), worst: 0.0, verdict }]);
    };
    let mut rows = vec![row(case, "reference".into(), reference(golden, &mapping))];
    let problem = |op: &AnyOp, act| Problem { op: op.clone(), dims: mapping.dims, act };
    for device in devices {
        for act in DType::ALL {
            if act != DType::F32 && !problem(&mapping.forward, act).has_streams() {
                continue;
            }
            let both = || {
                let stream = Stream::new(device.clone())?;
                let mut worst = 0.0f64;
                for op in [&mapping.forward, &mapping.backward] {
                    let p = problem(op, act);
                    let operands = data::assemble(&p, |slot| mapping.operand(golden, slot))?;
                    let reports = Trial::with(p, operands)?.check(&stream)?;
                    worst = reports.iter().fold(worst, |w, r| w.max(r.rel));
                }
                Ok(worst)
            };
            rows.push(row(case, format!("{} {act}", device.info().id), both()));
        }
    }
    Ok(rows)
}

fn row(case: &str, what: String, worst: Result<f64>) -> Row {
    let (worst, verdict) = match worst {
        Ok(worst) => (worst, Verdict::Pass),
        Err(e) => (f64::NAN, Verdict::Fail(format!("{e:#}"))),
    };
    Row { case: case.into(), what, worst, verdict }
}

/// The f64 reference against every result and gradient of the case: the largest relative error.
fn reference(golden: &Golden, mapping: &Mapping) -> Result<f64> {
    // The element type is of no account: nothing is rounded here.
    let problem = |op: &AnyOp| Problem { op: op.clone(), dims: mapping.dims, act: DType::F32 };
    let given = |slot: &mhc_core::Slot| if slot.is_input() { mapping.operand(golden, slot) } else { Ok(Vec::new()) };

    let forward = problem(&mapping.forward);
    let results = oracle::evaluate::<f64>(&forward, &data::per_slot(&forward, given)?)?;
    let worst = compare(golden, mapping, &forward, "out", "", &results)?;

    let saving = problem(&mapping.backward.forward().context("the backward operator names no forward")?);
    let results = oracle::evaluate::<f64>(&saving, &data::per_slot(&saving, given)?)?;
    let backward = problem(&mapping.backward);
    let operands = data::per_slot(&backward, |slot| {
        let saved = saving.op.desc().index(slot.name).filter(|&i| !saving.op.desc().slots[i].is_input());
        saved.map_or_else(|| given(slot), |i| Ok(results[i].clone()))
    })?;
    let gradients = oracle::evaluate::<f64>(&backward, &operands)?;
    Ok(worst.max(compare(golden, mapping, &backward, "d_in", "d_", &gradients)?))
}

/// Compares the case's tensors of a kind with outputs called `<prefix><name>`. An error at the first miss, or if there is none.
fn compare(golden: &Golden, mapping: &Mapping, p: &Problem, kind: &str, prefix: &str, got: &[Vec<f64>]) -> Result<f64> {
    let mut worst = None;
    for name in golden.names(kind) {
        let part = mapping.part(name);
        let slot = part.as_ref().map_or(name, |p| p.slot);
        let Some(i) = p.op.desc().index(&format!("{prefix}{slot}")) else {
            bail!("`{kind}.{name}` is nothing that {} computes", p.op.desc().name)
        };
        let want = &golden.get(kind, name).with_context(|| format!("`{kind}.{name}`"))?.data;
        let got = part.map_or_else(|| got[i].clone(), |part| part.of(&got[i], &mapping.dims));
        let error = relative(want, &got).map_err(|e| anyhow!("`{kind}.{name}`: {e}"))?;
        ensure!(error <= RELATIVE, "`{kind}.{name}` is off by {error:.2e} relative, allowed {RELATIVE:e}");
        worst = Some(error.max(worst.unwrap_or(0.0)));
    }
    worst.with_context(|| format!("no `{kind}.` tensor to compare"))
}

/// The largest error, relative to each number; below a thousandth of the largest magnitude, relative to that thousandth, for sums
/// that cancel.
fn relative(want: &[f64], got: &[f64]) -> Result<f64> {
    ensure!(want.len() == got.len(), "{} elements, but {} are computed", want.len(), got.len());
    let floor = want.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(1e-3 * v.abs()));
    let error = |(w, g): (&f64, &f64)| (g - w).abs() / w.abs().max(floor);
    let worst = want.iter().zip(got).map(error).fold(0.0, |m: f64, e| if e > m || e.is_nan() { e } else { m });
    ensure!(!worst.is_nan(), "computed as NaN");
    Ok(worst)
}
