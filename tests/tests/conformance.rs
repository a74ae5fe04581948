//! Every operator, case, element type and device: one trial each, named `post.fwd/bf16/fromto/T17.n4.C130@cpu`.
//!
//! `MHC_TEST_LEVEL=smoke|full|soak`, `MHC_TEST_BACKEND=cpu|cuda|hip|all`, `MHC_TEST_OP=post` (its backward too) and
//! `MHC_TEST_SEED=1` choose what is run; the usual name filter works as well.

use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail};
use libtest_mimic::{Arguments, Failed};
use mhc_core::{Level, Stream, Support};
use mhc_tests::{cases, check::Trial, devices};

fn main() -> Result<()> {
    let trials = trials(mhc_tests::level()?)?;
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// A trial for every problem on every device. An error if what was asked for by name gives none.
fn trials(level: Level) -> Result<Vec<libtest_mimic::Trial>> {
    let (subjects, by_name) = (devices::chosen()?, devices::asked().is_some());
    let op = std::env::var("MHC_TEST_OP").unwrap_or_default();
    let mut trials = Vec::new();
    for problem in cases::problems(level, &op)? {
        // References are run once for all devices, by the first that needs them, and dropped with the last.
        let shared = Arc::new(OnceLock::<Result<Trial, String>>::new());
        for subject in &subjects {
            // What a GPU cannot do yet is listed as ignored, unless the GPU was asked for by name.
            let missing =
                matches!(subject.device.support(&problem), Support::No(why) if why.contains("not yet implemented"));
            let (shared, problem, device) = (shared.clone(), problem.clone(), subject.device.clone());
            let trial = libtest_mimic::Trial::test(format!("{problem}@{}", subject.name), move || {
                let trial = shared.get_or_init(|| Trial::new(problem).map_err(|e| format!("{e:#}")));
                let trial = trial.as_ref().map_err(Failed::from)?;
                let check = Stream::new(device).map_err(Into::into).and_then(|stream| trial.check(&stream));
                check.map(|_| ()).map_err(|e| format!("{e:#}").into())
            });
            trials.push(trial.with_ignored_flag(missing && !by_name));
        }
    }
    if trials.is_empty() {
        let backend = std::env::var("MHC_TEST_BACKEND").unwrap_or_default();
        bail!("no case to run for MHC_TEST_OP={op}, MHC_TEST_BACKEND={backend}");
    }
    Ok(trials)
}
