//! `cargo xtask doctor`: what is there, what is not and why, and whether what is there computes right.

use anyhow::{Result, bail};
use mhc_core::{AnyOp, DType, Level, Problem};
use mhc_ops::{Report, Stream};
use mhc_tests::check::Trial;
use serde_json::{Value, json};
use xshell::cmd;

use crate::{home::Home, machine, report};

/// Report what was found, what was not and why, versions and paths, and test every operator on every usable device
///
/// Paste the output where you report a problem.
#[derive(clap::Args)]
pub struct Args {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// The self-test of one device.
struct SelfTest {
    device: String,
    /// Operator and what went wrong, `None` where nothing did.
    ops: Vec<(&'static str, Option<String>)>,
}

pub fn run(args: &Args) -> Result<()> {
    let home = Home::find()?;
    let found = Report::new();
    let facts = facts(&home)?;
    let mut tests = Vec::new();
    for (info, _) in found.backends.iter().flat_map(|b| &b.devices).filter(|(_, opened)| opened.is_ok()) {
        tests.push(self_test(&info.id.to_string())?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&document(&found, &facts, &tests))?);
    } else {
        print(&found, &facts, &tests);
    }
    let failed = tests.iter().flat_map(|t| &t.ops).filter(|(_, wrong)| wrong.is_some()).count();
    if failed > 0 { bail!("{failed} operators fail their self-test") } else { Ok(()) }
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

/// The first small case of every operator with any work in it, against float64.
fn self_test(name: &str) -> Result<SelfTest> {
    let mut ops: Vec<(&'static str, Option<String>)> = Vec::new();
    let stream = Stream::new(mhc_ops::open(name)?)?;
    let cases = AnyOp::all_cases(Level::Smoke);
    let descs = AnyOp::all_descs();
    let bar = report::progress(descs.len(), "self-test");
    for desc in descs {
        if let Some(case) = cases.iter().find(|c| c.op.desc().name == desc.name && c.dims.tokens > 0) {
            let problem = Problem { op: case.op.clone(), dims: case.dims, act: DType::F32 };
            let wrong = Trial::new(problem).and_then(|t| t.check(&stream)).err();
            ops.push((desc.name, wrong.map(|e| format!("{e:#}"))));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(SelfTest { device: name.into(), ops })
}

fn print(found: &Report, facts: &[(&str, String)], tests: &[SelfTest]) {
    for (name, value) in facts {
        println!("{name:<10} {value}");
    }
    println!("\n{found}\n");
    for test in tests {
        let wrong: Vec<_> = test.ops.iter().filter_map(|(op, e)| Some((op, e.as_ref()?))).collect();
        println!(
            "self-test on {}: {} of {} operators right",
            test.device,
            test.ops.len() - wrong.len(),
            test.ops.len()
        );
        wrong.iter().for_each(|(op, why)| println!("  {op}: {why}"));
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
    let test = |t: &SelfTest| {
        let op =
            |(name, wrong): &(&str, Option<String>)| json!({ "op": name, "right": wrong.is_none(), "wrong": wrong });
        json!({ "device": t.device, "operators": t.ops.iter().map(op).collect::<Vec<_>>() })
    };
    json!({
        "facts": facts,
        "backends": found.backends.iter().map(backend).collect::<Vec<_>>(),
        "best": found.best.as_ref().ok(),
        "self_tests": tests.iter().map(test).collect::<Vec<_>>(),
    })
}
