//! The harness that every operator is proven with, on every device: one problem in, one verdict out.
//!
//! `data` draws operands, `oracle` says what they must give, `run` puts them into guarded memory and runs a device on them,
//! `compare` judges one output, `check` does all of it for one problem; `golden` reads cases that other implementations produced,
//! `devices` lists what is tested here. `xtask` (goldens, doctor, benches) and the test binaries are made of these.

pub mod batch;
pub mod bench;
pub mod cases;
pub mod check;
pub mod compare;
pub mod data;
pub mod devices;
pub mod emu;
pub mod golden;
pub mod machine;
pub mod oracle;
pub mod run;
pub mod sim;

/// The level in `MHC_TEST_LEVEL`: `smoke` if unset, an error if it is none of `smoke`, `full`, `soak`.
pub fn level() -> anyhow::Result<mhc_core::Level> {
    match std::env::var("MHC_TEST_LEVEL").as_deref() {
        Err(_) | Ok("" | "smoke") => Ok(mhc_core::Level::Smoke),
        Ok("full") => Ok(mhc_core::Level::Full),
        Ok("soak") => Ok(mhc_core::Level::Soak),
        Ok(other) => anyhow::bail!("MHC_TEST_LEVEL must be smoke, full or soak, but is `{other}`"),
    }
}
