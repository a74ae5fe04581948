//! Times operators on every GPU that is there, by replays of graphs. `cargo xtask bench` builds it, runs it and makes tables of its
//! results; carried to a machine by itself it needs nothing but the driver.
//!
//! `MHC_TEST_BACKEND` chooses the device, `MHC_BENCH_SUITE` what is timed: `ops` (every operator, or the one that `MHC_TEST_OP` names) or
//! `bars` (the work whose speed was agreed on) or `amd` (work whose times were published for AMD's GPUs); `MHC_BENCH_FILTER` takes those whose name contains it. `MHC_BENCH_OUT` names the file for
//! the results as JSON, `MHC_BENCH_COMMIT` what they are of, `MHC_BENCH_SAMPLES` the number of replays. `--list` names everything, `--test` runs it once at small sizes.

// A program that talks to its user.
#![allow(clippy::print_stdout)]

use anyhow::{Context, Result, bail};
use mhc_core::Stream;
use mhc_tests::{
    bench::{
        self, Bench, amd, bars, first,
        gpu::{self, News, Scale},
        record::{Failed, FirstCall, Measured, Record},
    },
    devices,
};

fn main() -> Result<()> {
    if first::child()? {
        return Ok(());
    }
    let flag = |name| std::env::args().any(|arg| arg == name);
    let benches = benches()?;
    if flag("--list") {
        benches.iter().for_each(|b| println!("{}", b.id));
        return Ok(());
    }
    let subjects: Vec<_> = devices::chosen()?.into_iter().filter(|s| s.device.queue().is_some()).collect();
    if subjects.is_empty() {
        println!("no GPU here");
    }
    let mut record = Record::new(set("MHC_BENCH_COMMIT"));
    for subject in subjects {
        println!("{} ({})", subject.name, subject.device.info().name);
        let stream = Stream::new(subject.device)?;
        if flag("--test") {
            let benches: Vec<_> = benches.iter().map(Bench::shrunk).collect();
            gpu::measure(&mut record, &stream, &benches, Scale::TINY, |_, _| ())?;
            continue;
        }
        gpu::measure(&mut record, &stream, &benches, scale()?, tell)?;
        // The emulator is not found by name.
        if mhc_ops::open(&subject.name).is_ok() {
            first_calls(&mut record, &subject.name);
        }
    }
    if let Some(file) = set("MHC_BENCH_OUT") {
        record.save(file.as_ref())?;
    }
    if let Some(failed) = record.failed.first() {
        bail!("{} benches failed; {}: {}", record.failed.len(), failed.id, failed.why);
    }
    println!("{} benches", record.rows.len());
    Ok(())
}

fn set(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|v| !v.is_empty())
}

/// What is to be timed. An error where that is nothing.
fn benches() -> Result<Vec<Bench>> {
    let mut benches = match set("MHC_BENCH_SUITE").as_deref() {
        None | Some("ops") => bench::suite(set("MHC_TEST_OP").as_deref()),
        Some("bars") => bars::on_gpu(),
        Some("amd") => amd::suite(),
        Some(other) => bail!("MHC_BENCH_SUITE must be ops, bars or amd, but is `{other}`"),
    };
    if let Some(part) = set("MHC_BENCH_FILTER") {
        benches.retain(|b| b.id.contains(&part));
    }
    if benches.is_empty() {
        bail!("nothing to time");
    }
    Ok(benches)
}

fn scale() -> Result<Scale> {
    let Some(text) = set("MHC_BENCH_SAMPLES") else { return Ok(Scale::FULL) };
    let samples = text.parse().ok().filter(|n| *n > 0).context("MHC_BENCH_SAMPLES must be above 0")?;
    Ok(Scale { samples, ..Scale::FULL })
}

/// One line for each result, as soon as it is there.
fn tell(device: &Measured, news: News<'_>) {
    match news {
        News::Device(d) => {
            let empty = d.gpu.as_ref().map_or(0.0, |g| g.empty_graph_us);
            println!("copy {:.1} GB/s, empty graph {empty:.2} µs", d.copy_gb_s);
            println!("{:46} {:>9} {:>9} {:>8} {:>7}", "", "cold µs", "hot µs", "GB/s", "x floor");
        }
        News::Row(r) => {
            let verdict = r.limit_us(device.copy_gb_s, None).map_or(String::new(), |limit| {
                format!("  {} {limit:.1} µs", if r.us <= limit { "within" } else { "MISSES" })
            });
            let (hot, floor) = (r.hot_us.unwrap_or(0.0), r.times_floor(device.copy_gb_s));
            println!("{:46} {:9.2} {hot:9.2} {:8.1} {floor:7.2}{verdict}", r.id, r.us, r.gb_s());
        }
        News::Failed(f) => println!("{:46} FAILED: {}", f.id, f.why),
    }
}

/// Adds the first calls of processes on the device that was measured last.
fn first_calls(record: &mut Record, device: &str) {
    let calls = match first::calls(device) {
        Ok(calls) => calls,
        Err(e) => {
            let failed = Failed { id: "first call".into(), device: device.into(), why: format!("{e:#}") };
            println!("{} FAILED: {}", failed.id, failed.why);
            record.failed.push(failed);
            return;
        }
    };
    for FirstCall { id, open_ms, first_ms, second_ms, .. } in &calls {
        println!("first call of {id}: {first_ms:.3} ms, then {second_ms:.3} ms; opening took {open_ms:.0} ms");
    }
    if let Some(gpu) = record.devices.last_mut().and_then(|d| d.gpu.as_mut()) {
        gpu.first_calls = calls;
    }
}
