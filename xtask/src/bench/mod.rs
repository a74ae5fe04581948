//! `cargo xtask bench`: how fast every operator is, beside the fastest that the machine can copy.

mod criterion;
mod record;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use mhc_tests::bench;

pub use record::{Record, markdown};

use crate::{devices::Which, home::Home, programs, report, test};

/// Time every operator, in µs, GB/s and percent of the bandwidth with which the device copies
///
/// Times are medians of criterion's. Bytes count every operand once. Operands are random, and larger in sum than the caches where the
/// operator is bound by memory.
#[derive(clap::Args)]
pub struct Args {
    /// Devices to time; one asked for by name that is not there is an error
    #[arg(long, value_enum, default_value_t = Which::All)]
    backend: Which,
    /// One operator and its gradient, such as `post`, or whole sub-layers: `sub_layer`
    #[arg(long)]
    op: Option<String>,
    /// Time spent on each measurement
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Write the record as JSON here, and as a table beside it (`.md`)
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Compare with the record in this file
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Rows of other implementations, one JSON object a line, to stand beside ours in the record
    #[arg(long, value_name = "FILE")]
    peers: Option<PathBuf>,
    /// Print the record as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Run everything once, to see that it runs; times are not taken
    #[arg(long, conflicts_with_all = ["save", "against", "json"])]
    once: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if !(args.seconds > 0.0 && args.seconds.is_finite()) {
        bail!("--seconds must be above 0");
    }
    if let Some(op) = args.op.as_deref().filter(|op| *op != bench::SUB_LAYER) {
        test::check_op(op)?;
    }
    let old = args.against.as_ref().map(Record::load).transpose()?;
    let probes = args.backend.probe()?;
    for probe in &probes {
        let timed = if probe.found.is_ok() { "timing" } else { "not timing" };
        eprintln!("{timed} {probe}");
    }
    let home = Home::find()?;
    let program = programs::bench(&home)?;
    let folder = home.scratch("criterion")?;
    let mut run = criterion::Run::new(&program, &folder);
    run.variable("MHC_TEST_BACKEND", args.backend.name());
    run.variable("MHC_TEST_OP", args.op.as_deref().unwrap_or_default());
    run.variable("MHC_BENCH_SECONDS", &args.seconds.to_string());
    let names = run.names()?;
    if names.is_empty() {
        bail!("nothing to time");
    }
    if args.once {
        run.once(names.len())?;
        println!("{} benches ran once", names.len());
        return Ok(());
    }
    let times = run.times(&names)?;
    let mut record = Record::new(&home, &probes, &times, &bench::suite(args.op.as_deref()))?;
    if let Some(peers) = &args.peers {
        record.add_peers(peers)?;
    }
    if let Some(file) = &args.save {
        record.save(file)?;
        let table = file.with_extension("md");
        fs::write(&table, markdown(&record)).with_context(|| table.display().to_string())?;
        eprintln!("wrote {} and {}", file.display(), table.display());
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&record)?);
    } else {
        println!("{}", report::table(&record.header(old.as_ref()), 2, record.rows(old.as_ref())));
        println!("{}", record.copies());
    }
    Ok(())
}
