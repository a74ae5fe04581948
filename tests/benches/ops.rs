//! Times every operator on the CPU. `cargo xtask bench` builds it, runs it and makes tables of its results.
//!
//! `MHC_TEST_BACKEND`, `MHC_BENCH_SUITE` (`ops`, `bars`), `MHC_TEST_OP` and `MHC_BENCH_SECONDS` choose what is timed and for how long;
//! criterion's own flags work too.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use criterion::Criterion;
use mhc_core::Stream;
use mhc_tests::{
    bench::{self, Copy, Ready, Timed},
    devices,
};

fn main() -> Result<()> {
    let seconds = match std::env::var("MHC_BENCH_SECONDS") {
        Ok(text) => text.parse::<f64>().ok().filter(|s| *s > 0.0).context("MHC_BENCH_SECONDS must be above 0")?,
        Err(_) => 1.0,
    };
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let suite = bench::on_cpu(set("MHC_BENCH_SUITE").as_deref(), set("MHC_TEST_OP").as_deref())?;
    // Criterion's `--test`: everything once, to see that it runs.
    let timing = std::env::args().all(|arg| arg != "--test");
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs_f64(0.3 * seconds))
        .measurement_time(Duration::from_secs_f64(seconds))
        .configure_from_args();
    // GPUs are timed by another program, without the host in between.
    for subject in devices::found()?.into_iter().filter(|s| s.device.queue().is_none()) {
        let stream = Stream::new(subject.device)?;
        time(&mut criterion, &format!("{}@{}", bench::COPY, subject.name), || Copy::new(&stream))?;
        for bench in &suite {
            time(&mut criterion, &format!("{}@{}", bench.id, subject.name), || Ready::new(&stream, bench, timing))?;
        }
    }
    criterion.final_summary();
    Ok(())
}

/// Times what `make` makes. Criterion calls its closure again and again, and not at all where the name is filtered out.
fn time<T: Timed>(criterion: &mut Criterion, id: &str, make: impl Fn() -> Result<T>) -> Result<()> {
    let mut timed = None;
    let mut failed = None;
    criterion.bench_function(id, |bencher| {
        bencher.iter_custom(|launches| {
            let start = Instant::now();
            let mut run = || {
                let timed = match &mut timed {
                    Some(timed) => timed,
                    none => none.insert(make()?),
                };
                let start = Instant::now();
                (0..launches).try_for_each(|_| timed.launch())?;
                timed.wait()?;
                anyhow::Ok(start.elapsed())
            };
            run().unwrap_or_else(|e| {
                failed.get_or_insert(e);
                start.elapsed()
            })
        });
    });
    failed.map_or(Ok(()), |e| Err(e.context(id.to_string())))
}
