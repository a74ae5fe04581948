//! How long an operator takes the first time in a process: the program starts itself again for each, and the child measures.

use std::{io::Write, process::Command, time::Instant};

use anyhow::{Context, Result, bail};
use mhc_core::{
    DType, Dims, Problem, Stream,
    ops::{Post, Pre},
};

use super::{Bench, Ready, record::FirstCall};

/// Tells a child which device and which problem are its own.
const VARIABLE: &str = "MHC_BENCH_FIRST";
/// Processes for each problem.
const PROCESSES: usize = 3;

fn problems() -> [Problem; 2] {
    let dims = Dims::new(64, 4, 4096);
    [Problem::new(Post::default(), dims, DType::Bf16), Problem::new(Pre::default(), dims, DType::Bf16)]
}

/// Measures each problem in processes of its own. The program's `main` must begin with [`child`].
pub fn calls(device: &str) -> Result<Vec<FirstCall>> {
    let program = std::env::current_exe().context("this program's own path")?;
    let mut calls = Vec::new();
    for (i, _) in (0..problems().len()).flat_map(|i| (0..PROCESSES).map(move |k| (i, k))) {
        let out = Command::new(&program).env(VARIABLE, format!("{device} {i}")).output()?;
        if !out.status.success() {
            bail!("first call on {device}: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        calls.push(serde_json::from_slice(&out.stdout).context("what the first call's process said")?);
    }
    Ok(calls)
}

/// Whether this process is such a child; then it has done its work.
pub fn child() -> Result<bool> {
    let Ok(task) = std::env::var(VARIABLE) else { return Ok(false) };
    let (device, i) = task.split_once(' ').context("a device and a number")?;
    let [post, pre] = problems();
    let problem = if i == "0" { post } else { pre };
    serde_json::to_writer(std::io::stdout(), &measure(device, &problem)?)?;
    std::io::stdout().flush()?;
    Ok(true)
}

/// Nothing of the device may have been touched in this process.
fn measure(device: &str, problem: &Problem) -> Result<FirstCall> {
    let start = Instant::now();
    let stream = Stream::new(mhc_ops::open(device)?)?;
    let open_ms = milliseconds(start);
    let start = Instant::now();
    let bench =
        Bench::new(format!("{}.fwd/{}/{}", problem.op.desc().name, problem.act, problem.dims), vec![problem.clone()]);
    let mut work = Ready::new(&stream, &bench, false)?;
    stream.sync()?;
    let memory_ms = milliseconds(start);
    let mut call = || -> Result<f64> {
        let start = Instant::now();
        work.prepare()?;
        work.run()?;
        stream.sync()?;
        Ok(milliseconds(start))
    };
    let (first_ms, second_ms) = (call()?, call()?);
    Ok(FirstCall { id: bench.id, open_ms, memory_ms, first_ms, second_ms })
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
