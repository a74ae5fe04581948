//! `cargo xtask test`: every operator proven right on every device that is there.

use anyhow::{Result, bail};
use clap::ValueEnum;
use mhc_core::AnyOp;
use xshell::cmd;

use crate::{devices::Which, home::Home, programs};

/// Prove every operator right on every device that is there
///
/// Runs the unit tests, the adjoint proofs, the properties and the conformance harness. With `--op` only the harness and the proofs
/// of that operator.
#[derive(clap::Args)]
pub struct Args {
    /// Devices to test; one asked for by name that is not there is an error
    #[arg(long, value_enum, default_value_t = Which::All)]
    backend: Which,
    /// One operator and its gradient, such as `post`
    #[arg(long)]
    op: Option<String>,
    /// How much is run
    #[arg(long, value_enum, default_value_t = Level::Smoke)]
    level: Level,
}

/// [`mhc_core::Level`] on the command line.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Small shapes, every attribute once: seconds
    Smoke,
    /// Odd and model shapes: minutes
    Full,
    /// Everything, with more seeds: as long as it takes
    Soak,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Full => "full",
            Self::Soak => "soak",
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    for probe in args.backend.probe()? {
        match probe.found {
            Ok(_) => println!("testing {probe}"),
            Err(_) => println!("not testing {probe}"),
        }
    }
    let home = Home::find()?;
    let shell = home.shell()?;
    shell.set_var("MHC_TEST_BACKEND", args.backend.name());
    shell.set_var("MHC_TEST_LEVEL", args.level.name());
    if let Some(op) = &args.op {
        check_op(op)?;
        shell.set_var("MHC_TEST_OP", op);
    }
    match &home {
        Home::Checkout(_) => {
            let packages: &[&str] = match args.op {
                Some(_) => &["--package", "mhc-tests"],
                None => &["--workspace"],
            };
            cmd!(shell, "cargo test --release {packages...}").run()?;
        }
        Home::Bundle(root) => {
            for program in programs::bundled_tests(root)? {
                cmd!(shell, "{program}").run()?;
            }
        }
    }
    Ok(())
}

/// An error with the names there are, if there is no operator called `name`.
pub fn check_op(name: &str) -> Result<()> {
    let names: Vec<_> = AnyOp::all_descs().iter().map(|d| d.name).collect();
    if names.contains(&name) {
        return Ok(());
    }
    bail!("there is no operator `{name}`; there are {}", names.join(", "))
}
