//! `cargo xtask golden`: cases that other implementations computed in float64.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Result, bail};
use mhc_core::Device;
use mhc_tests::{
    golden::{self, Row, Verdict},
    machine,
};
use serde_json::json;

use crate::{
    devices::Which,
    home::Home,
    report,
    sim::Choice,
    test::{Conformance, Run, named},
};

/// Run golden cases through the float64 reference and every device
///
/// The reference must agree within 1e-9 relative with every result and every gradient, and each device within its operator's tolerance
/// after rounding. Fails on any miss, and if there is no case.
#[derive(clap::Args)]
pub struct Args {
    /// A folder with one `.safetensors` file a case
    dir: PathBuf,
    /// Devices to run on besides the reference; one asked for by name that is not there is an error
    #[arg(long, value_enum, default_value_t = Which::All)]
    backend: Which,
    /// Print every row, not only one per case
    #[arg(long)]
    all: bool,
    /// Print every row as JSON
    #[arg(long)]
    json: bool,
    /// Keep what passed and failed in this file (JSON), beside what `cargo xtask test --save` keeps of the backend's first device
    #[arg(long, value_name = "FILE", requires = "backend")]
    save: Option<PathBuf>,
    #[command(flatten)]
    sim: Choice,
}

pub fn run(args: &Args) -> Result<()> {
    if !args.sim.here()? {
        return Ok(());
    }
    let home = Home::find()?;
    let devices = args.backend.devices()?;
    let files = golden::files(&args.dir)?;
    let start = Instant::now();
    let bar = report::progress(files.len(), "golden cases");
    let mut cases = Vec::new();
    for file in &files {
        cases.push(golden::run_file(file, &devices));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let rows: Vec<&Row> = cases.iter().flatten().collect();
    if args.json {
        let json: Vec<_> = rows.iter().map(|r| json(r)).collect();
        println!("{}", serde_json::to_string_pretty(&json)?);
    } else if args.all {
        let table = rows.iter().map(|r| vec![r.case.clone(), r.what.clone(), worst(r), verdict(r)]).collect();
        println!("{}", report::table(&["case", "run by", "largest error", "verdict"], 2, table));
    } else {
        println!(
            "{}",
            report::table(&["case", "reference", "devices", "verdict"], 1, cases.iter().map(|c| summary(c)).collect())
        );
    }
    let count = |f: fn(&Verdict) -> bool| rows.iter().filter(|r| f(&r.verdict)).count();
    let (passed, failed) = (count(|v| *v == Verdict::Pass), count(|v| matches!(v, Verdict::Fail(_))));
    let skipped = count(|v| matches!(v, Verdict::NotSupported(_)));
    let names: Vec<_> = devices.iter().map(|d| d.info().id.to_string()).collect();
    eprintln!("{} cases on the reference and {}", cases.len(), names.join(", "));
    eprintln!("golden: {passed} passed, {failed} failed, {skipped} skipped");
    if let Some(file) = &args.save {
        let mut run = Run::now("golden", "all", &home);
        (run.passed, run.failed, run.ignored) = (passed, failed, skipped);
        run.failures = rows.iter().filter(|r| matches!(r.verdict, Verdict::Fail(_))).map(|r| name(r)).collect();
        run.clean = failed == 0;
        run.took(start.elapsed());
        save(file, &devices, run)?;
    }
    if failed > 0 {
        bail!("{failed} rows of golden cases fail");
    }
    if passed == 0 {
        bail!("no golden case in {} could be run", args.dir.display());
    }
    Ok(())
}

fn save(file: &Path, devices: &[Arc<dyn Device>], run: Run) -> Result<()> {
    let [device] = devices else { bail!("--save is for one device: name its backend with --backend") };
    let info = device.info();
    let mut record = Conformance::of(Some(file), &named(info), &machine::driver(info).unwrap_or_default())?;
    record.add(run);
    record.save(file)
}

fn name(row: &Row) -> String {
    format!("{}, {}", row.case, row.what)
}

fn worst(row: &Row) -> String {
    if row.verdict == Verdict::Pass { format!("{:.1e}", row.worst) } else { String::new() }
}

fn verdict(row: &Row) -> String {
    match &row.verdict {
        Verdict::Pass => "pass".into(),
        Verdict::Fail(why) => format!("FAIL {why}"),
        Verdict::NotSupported(why) => format!("skipped: {why}"),
    }
}

/// One line for a case: the reference's error, the worst of the devices' in each element type, the first verdict that is not a pass.
fn summary(rows: &[Row]) -> Vec<String> {
    let (reference, devices): (Vec<_>, Vec<_>) = rows.iter().partition(|r| r.what == "reference" || r.what == "file");
    let errors: Vec<_> = devices.iter().map(|r| format!("{} {}", r.what, worst(r))).collect();
    let bad = rows.iter().find(|r| r.verdict != Verdict::Pass);
    vec![
        rows.first().map_or(String::new(), |r| r.case.clone()),
        reference.first().map_or(String::new(), |r| worst(r)),
        errors.join(", "),
        bad.map_or("pass".into(), verdict),
    ]
}

fn json(row: &Row) -> serde_json::Value {
    let (state, why) = match &row.verdict {
        Verdict::Pass => ("pass", None),
        Verdict::Fail(why) => ("fail", Some(why)),
        Verdict::NotSupported(why) => ("skipped", Some(why)),
    };
    json!({ "case": row.case, "run_by": row.what, "largest_error": row.worst, "verdict": state, "why": why })
}
