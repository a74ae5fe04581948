//! The parts of documents that are made from the descriptions and the records: written by `tidy --bless`, compared by `tidy`.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result, bail};
use mhc_core::{AnyOp, Case, DType, DTypeRule, Level, Numerics, OpDesc, Role, Slot, gpu::GpuCaps};
use mhc_tests::bench::record::Record;

use super::File;
use crate::{
    bench,
    doctor::{self, Accuracy},
    report::markdown_table,
    sim::Gpu,
    test::Conformance,
};

/// Where generated parts may be.
const DOCUMENTS: &[&str] = &["README.md", "docs/conformance.md", "docs/numerics.md"];
/// Measurements that are committed.
const RECORDS: &str = "tests/records/";
/// The program that the README shows.
const EXAMPLE: &str = "mhc-ops/examples/quickstart.rs";

/// A file that is made or has parts that are: its path, what is in it, and what must be.
type Made = (String, String, String);

/// Every document with its generated parts as they must be, and every picture.
fn documents(root: &Path, files: &[File]) -> Result<Vec<Made>> {
    let parts = parts(root, files)?;
    let document = |path: &&str| {
        let old = fs::read_to_string(root.join(path)).context(path.to_string())?;
        let new = fill(&old, &parts).context(path.to_string())?;
        Ok((path.to_string(), old, new))
    };
    let mut made = DOCUMENTS.iter().map(document).collect::<Result<Vec<_>>>()?;
    for (picture, record) in pictures(files) {
        let old = fs::read_to_string(root.join(&picture)).unwrap_or_default();
        made.push((picture, old, bench::roofline(&Record::load(root.join(record))?)));
    }
    Ok(made)
}

/// The picture of every record of the agreed work on a GPU, and that record. On a processor what is small comes from its cache, and what
/// bounds the rest is not memory alone.
fn pictures(files: &[File]) -> Vec<(String, &str)> {
    let start = format!("{RECORDS}bars-");
    let gpu = |path: &str| {
        path.strip_prefix(&start)?.strip_suffix(".json").filter(|device| *device != "cpu").map(str::to_string)
    };
    files.iter().filter_map(|f| Some((format!("docs/roofline-{}.svg", gpu(&f.path)?), f.path.as_str()))).collect()
}

/// Documents that are out of date.
pub fn stale(root: &Path, files: &[File]) -> Result<Vec<String>> {
    let documents = documents(root, files)?;
    let stale = documents.into_iter().filter(|(_, old, new)| old != new);
    Ok(stale.map(|(path, _, _)| format!("{path}: run `cargo xtask tidy --bless`")).collect())
}

/// Writes documents that are out of date, and gives their paths.
pub fn bless(root: &Path, files: &[File]) -> Result<Vec<String>> {
    let mut written = Vec::new();
    for (path, old, new) in documents(root, files)? {
        if old != new {
            fs::write(root.join(&path), new).context(path.clone())?;
            written.push(path);
        }
    }
    Ok(written)
}

/// The text with what stands between `<!-- generated: NAME -->` and `<!-- end -->` replaced.
fn fill(text: &str, parts: &BTreeMap<&str, String>) -> Result<String> {
    let (open, close, end) = ("<!-- generated: ", " -->\n", "<!-- end -->");
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(open) {
        let (name, after) = after.split_once(close).context("a generated part has no name")?;
        let Some(part) = parts.get(name) else { bail!("nothing is called `{name}`") };
        let (_, after) = after.split_once(end).with_context(|| format!("part `{name}` has no end"))?;
        let _ = write!(out, "{before}{open}{name}{close}\n{}\n\n{end}", part.trim());
        rest = after;
    }
    Ok(out + rest)
}

fn parts(root: &Path, files: &[File]) -> Result<BTreeMap<&'static str, String>> {
    let cases = AnyOp::all_cases(Level::Smoke);
    let mut parts = BTreeMap::from([("operators", operators(&cases)), ("presets", presets())]);
    let example = files.iter().find(|f| f.path == EXAMPLE).with_context(|| format!("{EXAMPLE} is missing"))?;
    parts.insert("example", format!("```rust\n{}```", shown(&example.text)));
    let mut speed = String::new();
    let mut conformance = String::new();
    let mut records = Vec::new();
    let mut proofs = Vec::new();
    let pictures = pictures(files);
    let mut paths: Vec<_> =
        files.iter().filter(|f| f.path.starts_with(RECORDS) && f.is(&["json"])).map(|f| &f.path).collect();
    paths.sort();
    for path in paths {
        let file = root.join(path);
        match path.trim_start_matches(RECORDS).split('-').next() {
            Some("accuracy") => records.push(Accuracy::load(&file)?),
            Some("conformance") => {
                let record = Conformance::load(&file)?;
                let _ = writeln!(conformance, "{}", record.markdown());
                proofs.push(record);
            }
            Some("bench" | "bars") => {
                let picture = pictures.iter().find(|(_, of)| of == path).map(|(picture, _)| picture.as_str());
                let shown = bench::highlights(&Record::load(&file)?, picture);
                let _ = writeln!(speed, "{shown}\nEverything that was timed: [{path}]({path}).\n");
            }
            _ => (),
        }
    }
    parts.insert("speed", speed);
    parts.insert("conformance", conformance);
    parts.insert("support", support(files, &records, &proofs, &cases));
    parts.insert("accuracy", records.iter().map(Accuracy::markdown).collect());
    Ok(parts)
}

/// A program without its documentation, its indentation, and the lines between `// hidden` and `// shown`.
fn shown(text: &str) -> String {
    let mut hidden = false;
    let mut out = String::new();
    for line in text.lines().skip_while(|l| l.starts_with("//!") || l.is_empty()) {
        match line.trim() {
            "// hidden" => hidden = true,
            "// shown" => hidden = false,
            _ if !hidden => out += &format!("{}\n", line.strip_prefix("    ").unwrap_or(line)),
            _ => (),
        }
    }
    out
}

/// Forward operators with their gradients.
fn pairs() -> impl Iterator<Item = (&'static OpDesc, Option<&'static OpDesc>)> {
    let descs = AnyOp::all_descs();
    let forward = descs.clone().into_iter().filter(|d| !d.name.ends_with("_bwd"));
    forward.map(move |d| (d, descs.iter().copied().find(|b| b.name.strip_suffix("_bwd") == Some(d.name))))
}

fn operators(cases: &[Case]) -> String {
    let mut rows = Vec::new();
    for desc in pairs().flat_map(|(forward, backward)| [Some(forward), backward]).flatten() {
        let optional = |s: &Slot| cases.iter().any(|c| c.op.desc().name == desc.name && !c.op.has(s.name));
        let list = |role: &[Role]| {
            let operand = |s: &Slot| {
                let mark = if s.dtype == DTypeRule::F32 { "*" } else { "" };
                let text = format!("{mark}{s}{mark}");
                if optional(s) { format!("({text})") } else { text }
            };
            desc.slots.iter().filter(|s| role.contains(&s.role)).map(operand).collect::<Vec<_>>().join(", ")
        };
        let formula = format!("`{}`", desc.formula);
        rows.push(vec![
            format!("`{}`", desc.name),
            formula,
            list(&[Role::In]),
            list(&[Role::Out]),
            list(&[Role::Saved]),
        ]);
    }
    let mut text = String::from(
        "Operands in *italics* are f32, the others have the streams' type; those in parentheses depend on attributes.\n\n",
    );
    markdown_table(&mut text, &["operator", "computes", "reads", "writes", "saves"], 5, &rows);
    text
}

/// A machine of each vendor, for which operators are planned.
fn gpus() -> [(&'static str, GpuCaps); 2] {
    let caps = |arch: &str, wave, units| GpuCaps {
        arch: arch.into(),
        wave,
        units,
        shared_per_block: 64 << 10,
        max_threads: 1024,
        tuned: Vec::new(),
    };
    [("cuda", caps("sm_90", 32, 132)), ("hip", caps("gfx942", 64, 304))]
}

/// How far an operator is on a GPU, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Tested,
    Simulated,
    Compiled,
    Source,
    Missing,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Tested => "tested on hardware",
            Self::Simulated => "tested on simulated devices",
            Self::Compiled => "compiled",
            Self::Source => "source",
            Self::Missing => "missing",
        }
    }
}

/// `tested` needs a record of a self-test on such a device, `simulated` one of conformance on every GPU that is simulated, `compiled` an
/// image of every source that the plan launches.
fn state(
    files: &[File],
    records: &[Accuracy],
    proofs: &[Conformance],
    case: &Case,
    backend: &str,
    caps: &GpuCaps,
) -> State {
    let op = case.op.desc().name;
    let mut devices = records.iter().flat_map(|r| &r.devices).filter(|d| d.device.starts_with(backend));
    let right = |rows: &[doctor::Row]| {
        let mut rows = rows.iter().filter(|r| r.op == op).peekable();
        rows.peek().is_some() && rows.all(|r| r.wrong.is_none())
    };
    if devices.any(|d| right(&d.rows)) {
        return State::Tested;
    }
    if backend == "hip" && Gpu::ALL.iter().all(|gpu| proofs.iter().any(|p| p.proves(op, gpu.name()))) {
        return State::Simulated;
    }
    let Ok(plan) = case.op.plan(&case.dims, DType::Bf16, caps) else { return State::Missing };
    let image = |source: &str| {
        let start = format!("mhc-{backend}/kernels/gen/{source}.");
        files.iter().any(|f| f.path.starts_with(&start))
    };
    if plan.launches.iter().all(|l| image(l.source)) { State::Compiled } else { State::Source }
}

/// Of the CPU every operator is tested: the compiler demands a kernel, and every run of the tests compares it.
fn support(files: &[File], records: &[Accuracy], proofs: &[Conformance], cases: &[Case]) -> String {
    let worst = |pair: &[Option<&OpDesc>], backend: &str, caps: &GpuCaps| {
        let states = pair.iter().flatten().filter_map(|desc| {
            let case = cases.iter().find(|c| c.op.desc().name == desc.name && c.dims.tokens > 0)?;
            Some(state(files, records, proofs, case, backend, caps))
        });
        states.max().unwrap_or(State::Missing)
    };
    let row = |(forward, backward): (&'static OpDesc, Option<&'static OpDesc>)| {
        let both = if backward.is_some() { "forward, backward" } else { "forward" };
        let gpus = gpus().map(|(backend, caps)| worst(&[Some(forward), backward], backend, &caps).name().to_string());
        [format!("`{}`", forward.name), both.into(), State::Tested.name().into()].into_iter().chain(gpus).collect()
    };
    let mut text = String::new();
    markdown_table(&mut text, &["operator", "", "CPU", "NVIDIA", "AMD"], 5, &pairs().map(row).collect::<Vec<_>>());
    let [_, (hip, caps)] = gpus();
    if pairs().all(|(forward, backward)| worst(&[Some(forward), backward], hip, &caps) == State::Simulated) {
        text += &format!("\nAMD: {SIMULATED}.\n");
    }
    text
}

/// What may be said of a backend whose every operator passed on simulated GPUs and none on real ones.
const SIMULATED: &str =
    "verified on AMD's HIP runtime with simulated gfx942, gfx950 and gfx1100 devices; not yet timed on AMD hardware";

fn presets() -> String {
    let row = |(name, v): &(&str, Numerics)| {
        let s = v.sinkhorn;
        let eps =
            if s.eps.value() == 0.0 { s.eps.name().into() } else { format!("{} {:e}", s.eps.name(), s.eps.value()) };
        let orientation = match v.orientation {
            mhc_core::Orientation::ToFrom => "`[to][from]`",
            mhc_core::Orientation::FromTo => "`[from][to]`",
        };
        let order = match s.order {
            mhc_core::Order::ColumnsFirst => "columns, then rows",
            mhc_core::Order::RowsFirst => "rows, then columns",
        };
        let start = match s.start {
            mhc_core::Start::Exp => "exp",
            mhc_core::Start::ExpShifted => "exp of logits less their maximum",
            mhc_core::Start::Softmax => "softmax",
        };
        [
            format!("`{name}`"),
            start.into(),
            order.into(),
            eps,
            s.iters.to_string(),
            orientation.into(),
            format!("{:e}", v.rms_eps),
            format!("{:e}", v.pre_eps),
            v.post_mult.to_string(),
        ]
        .to_vec()
    };
    let header =
        ["preset", "start", "order", "ε of a sum", "iterations", "n·n block", "rms_eps", "pre_eps", "post_mult"];
    let mut text = String::new();
    markdown_table(&mut text, &header, 4, &Numerics::PRESETS.iter().map(row).collect::<Vec<_>>());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_replaced_and_the_rest_is_kept() {
        let parts = BTreeMap::from([("a", "new".to_string())]);
        let text = "x\n<!-- generated: a -->\nold\n<!-- end -->\ny\n";
        let filled = fill(text, &parts).unwrap();
        assert_eq!(filled, "x\n<!-- generated: a -->\n\nnew\n\n<!-- end -->\ny\n");
        assert_eq!(fill(&filled, &parts).unwrap(), filled);
        assert!(fill("<!-- generated: b -->\n<!-- end -->", &parts).is_err());
        assert!(fill("<!-- generated: a -->\n", &parts).is_err());
    }

    #[test]
    fn examples_hide_what_is_marked() {
        assert_eq!(shown("//! doc\n\nuse x;\n// hidden\na();\n// shown\nb();\n"), "use x;\nb();\n");
    }
}
