//! Runs the program that times GPUs.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use mhc_tests::bench::record::Record;

use super::Args;
use crate::{home::Home, sim};

/// What the program measured on the GPUs of one backend. Its own lines, one for each time, go to stderr.
pub fn measure(home: &Home, program: &Path, args: &Args, backend: &str) -> Result<Record> {
    let file = home.scratch("bench")?.join("gpu.json");
    let words = sim::words(program);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command.env("MHC_TEST_BACKEND", backend).env("MHC_BENCH_OUT", &file).env("MHC_BENCH_SUITE", args.suite.name());
    command.env("MHC_TEST_OP", args.op.as_deref().unwrap_or_default());
    command.env("MHC_BENCH_COMMIT", home.commit().unwrap_or_default());
    command.env("MHC_BENCH_SAMPLES", args.samples.to_string());
    command.arg(if args.once { "--test" } else { "--bench" });
    let status = command.stdout(Stdio::from(std::io::stderr())).status();
    let status = status.with_context(|| program.display().to_string())?;
    // Where a bench failed the others were timed all the same, and the record says which and why.
    if !status.success() && !file.is_file() {
        bail!("the bench program failed ({status})");
    }
    Record::load(&file)
}
