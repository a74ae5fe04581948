//! `cargo xtask doctor`: what is there, what is not and why, and whether what is there computes right.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use mhc_core::{AnyOp, DType, DeviceInfo, Level, Problem};
use mhc_ops::{Report, Stream};
use mhc_tests::{check::Trial, machine};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use xshell::cmd;

use crate::{
    home::Home,
    report::{self, markdown_table},
};

/// Report what was found, what was not and why, versions and paths, and test every operator on every usable device
///
/// Paste the output where you report a problem.
#[derive(clap::Args)]
pub struct Args {
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Write the differences from float64 that the self-test found here, as JSON
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// The self-test of one device.
#[derive(Debug, Serialize, Deserialize)]
pub struct SelfTest {
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// What it is.
    pub name: String,
    /// Operators in every element type.
    pub rows: Vec<Row>,
}

/// One operator in one element type.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// The operator.
    pub op: String,
    /// The streams' type.
    pub dtype: String,
    /// Largest difference from the f64 reference on the same operands, relative to the output's largest magnitude.
    pub difference: Option<f64>,
    /// What went wrong.
    pub wrong: Option<String>,
}

/// A record of self-tests, as `doctor --save` writes it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Accuracy {
    /// The processor.
    pub machine: String,
    /// Year, month, day.
    pub date: String,
    /// The commit tested, where it is known.
    pub commit: Option<String>,
    /// Devices.
    pub devices: Vec<SelfTest>,
}

impl Accuracy {
    pub fn load(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        serde_json::from_str(&text).with_context(|| format!("{} is no record of `doctor --save`", file.display()))
    }

    /// A table per device.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for device in &self.devices {
            let _ = writeln!(text, "**{} ({}), {}, {}.**\n", device.device, device.name, self.machine, self.date);
            let mut ops: Vec<&str> = device.rows.iter().map(|r| r.op.as_str()).collect();
            ops.dedup();
            let cell = |op: &str, dtype: &DType| {
                let row = device.rows.iter().find(|r| r.op == op && r.dtype == dtype.name());
                row.and_then(|r| r.difference).map_or(String::new(), |d| format!("{d:.1e}"))
            };
            let row = |op: &&str| {
                let cells = DType::ALL.iter().map(|dtype| cell(op, dtype));
                std::iter::once(format!("`{op}`")).chain(cells).collect()
            };
            let rows: Vec<_> = ops.iter().map(row).collect();
            markdown_table(&mut text, &["operator", "f32 streams", "bf16 streams", "f16 streams"], 1, &rows);
            text.push('\n');
        }
        text
    }
}

pub fn run(args: &Args) -> Result<()> {
    let home = Home::find()?;
    let found = Report::new();
    let facts = facts(&home)?;
    let mut tests = Vec::new();
    for (info, _) in found.backends.iter().flat_map(|b| &b.devices).filter(|(_, opened)| opened.is_ok()) {
        tests.push(self_test(info)?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&document(&found, &facts, &tests))?);
    } else {
        print(&found, &facts, &tests);
    }
    let failed = tests.iter().flat_map(|t| &t.rows).filter(|r| r.wrong.is_some()).count();
    if let Some(file) = &args.save {
        let record =
            Accuracy { machine: machine::name(), date: machine::today(), commit: home.commit(), devices: tests };
        fs::write(file, serde_json::to_string_pretty(&record)? + "\n").with_context(|| file.display().to_string())?;
    }
    if failed > 0 { bail!("{failed} self-tests fail") } else { Ok(()) }
}

/// Versions and places.
fn facts(home: &Home) -> Result<Vec<(&'static str, String)>> {
    let shell = home.shell()?;
    let first_line = |out: Result<String, xshell::Error>| out.ok().and_then(|t| t.lines().next().map(str::to_string));
    let said = |out| first_line(out).unwrap_or_else(|| "not found".into());
    let variables =
        ["MHC_DEVICE", "MHC_HIP_LIBRARY", "ROCM_PATH", "HIP_PATH", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"];
    let set = variables.iter().filter_map(|v| Some(format!("{v}={}", std::env::var(v).ok()?)));
    let mut facts = vec![
        ("mhc-ops", env!("CARGO_PKG_VERSION").to_string()),
        ("commit", said(cmd!(shell, "git describe --always --dirty").quiet().ignore_stderr().read())),
        ("rustc", said(cmd!(shell, "rustc --version").quiet().ignore_stderr().read())),
        ("system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
        ("machine", machine::name()),
        ("root", home.root().display().to_string()),
    ];
    facts.push(("variables", set.collect::<Vec<_>>().join(" ")));
    Ok(facts)
}

/// The first small case of every operator with any work in it, in every element type, against float64.
fn self_test(info: &DeviceInfo) -> Result<SelfTest> {
    let device = info.id.to_string();
    let stream = Stream::new(mhc_ops::open(&device)?)?;
    let cases = AnyOp::all_cases(Level::Smoke);
    let descs = AnyOp::all_descs();
    let bar = report::progress(descs.len(), "self-test");
    let mut rows = Vec::new();
    for desc in descs {
        let case = cases.iter().find(|c| c.op.desc().name == desc.name && c.dims.tokens > 0);
        for act in DType::ALL {
            let Some(case) = case else { continue };
            let problem = Problem { op: case.op.clone(), dims: case.dims, act };
            if act != DType::F32 && !problem.has_streams() {
                continue;
            }
            let checked = Trial::new(problem).and_then(|t| t.check(&stream));
            let (difference, wrong) = match checked {
                Ok(reports) => (Some(reports.iter().fold(0.0, |m: f64, r| m.max(r.rel))), None),
                Err(e) => (None, Some(format!("{e:#}"))),
            };
            rows.push(Row { op: desc.name.into(), dtype: act.name().into(), difference, wrong });
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(SelfTest { device, name: info.name.clone(), rows })
}

fn print(found: &Report, facts: &[(&str, String)], tests: &[SelfTest]) {
    for (name, value) in facts {
        println!("{name:<10} {value}");
    }
    println!("\n{found}\n");
    for test in tests {
        let wrong: Vec<_> = test.rows.iter().filter_map(|r| Some((r, r.wrong.as_ref()?))).collect();
        let (right, all) = (test.rows.len() - wrong.len(), test.rows.len());
        println!("self-test on {}: {right} of {all} right (every operator in every element type)", test.device);
        wrong.iter().for_each(|(row, why)| println!("  {} {}: {why}", row.op, row.dtype));
    }
}

fn document(found: &Report, facts: &[(&'static str, String)], tests: &[SelfTest]) -> Value {
    let facts: serde_json::Map<_, _> = facts.iter().map(|(k, v)| ((*k).into(), Value::from(v.clone()))).collect();
    let backend = |b: &mhc_ops::BackendReport| {
        let device = |(info, opened): &(mhc_ops::DeviceInfo, Result<(), String>)| {
            json!({
                "id": info.id.to_string(), "name": info.name, "arch": info.arch, "memory": info.memory,
                "notes": info.notes.iter().map(|(k, v)| (*k, v.clone())).collect::<std::collections::BTreeMap<_, _>>(),
                "usable": opened.is_ok(), "why_not": opened.as_ref().err(),
            })
        };
        let missing = b.probe.found.as_ref().err().map(ToString::to_string);
        json!({ "backend": b.probe.backend, "missing": missing, "devices": b.devices.iter().map(device).collect::<Vec<_>>() })
    };
    json!({
        "facts": facts,
        "backends": found.backends.iter().map(backend).collect::<Vec<_>>(),
        "best": found.best.as_ref().ok(),
        "self_tests": tests,
    })
}
