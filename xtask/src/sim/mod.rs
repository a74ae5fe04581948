//! `cargo xtask sim`: AMD's own HIP runtime on a simulated GPU, on a machine that has neither.

mod packages;
mod tree;

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
};

use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use mhc_gfxsim::arch::Arch;

use tree::Tree;

use crate::{home::Home, programs};

/// AMD's own HIP runtime on a simulated GPU, on a machine that has neither
///
/// `setup` unpacks the runtime from the packages of a Debian mirror, the one that this system's own apt is configured with, and builds the
/// simulator: about 90 MB to download, 350 MB under `target/`, no root, nothing is installed. MHC_AMDHIP names a folder in which that was
/// done already. `tests/gfxsim/README.md` says what is simulated and what is not.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Unpack AMD's runtime, unless it is there, and build the simulator
    Setup,
    /// Say what is there and what is missing
    Status,
    /// Test the simulator by one kernel for each feature of the hardware, and by it that mistakes planted in device code are caught
    Test,
    /// Run a program on a simulated GPU
    Run {
        /// The GPU
        gpu: Gpu,
        /// The version of the runtime
        #[arg(long, value_enum, default_value_t = Hip::Seven)]
        hip: Hip,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// A GPU that AMD's runtime can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Gpu {
    /// MI300, waves of 64
    Gfx942,
    /// MI350, waves of 64
    Gfx950,
    /// RX 7900, waves of 32
    Gfx1100,
}

impl Gpu {
    pub const ALL: [Self; 3] = [Self::Gfx942, Self::Gfx950, Self::Gfx1100];

    pub fn arch(self) -> Arch {
        match self {
            Self::Gfx942 => Arch::Gfx942,
            Self::Gfx950 => Arch::Gfx950,
            Self::Gfx1100 => Arch::Gfx1100,
        }
    }

    pub fn name(self) -> &'static str {
        self.arch().name()
    }
}

/// A version of AMD's runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Hip {
    /// HIP 6.4, which does not know gfx950
    #[value(name = "6")]
    Six,
    /// HIP 7.2
    #[default]
    #[value(name = "7")]
    Seven,
}

/// The GPU that a task is to simulate.
#[derive(clap::Args, Clone, Copy)]
pub struct Choice {
    /// Run on AMD's runtime with this GPU simulated: see `cargo xtask sim`
    #[arg(long, value_enum, value_name = "GPU")]
    sim: Option<Gpu>,
    /// With `--sim`: the version of the runtime
    #[arg(long, value_enum, value_name = "VERSION", default_value_t = Hip::Seven, requires = "sim")]
    hip: Hip,
}

/// Says, to this tool and the programs it starts, which GPU is simulated.
pub const SIMULATED: &str = "MHC_SIMULATED";
/// The words, one on each line, before a program's own that let it find AMD's libraries.
const LOADER: &str = "MHC_SIM_LOADER";

impl Choice {
    /// Whether the task is to go on in this process. Where a GPU is to be simulated and this process has not AMD's libraries, the same
    /// command has been run in one that has, to its end.
    pub fn here(self) -> Result<bool> {
        let Some(gpu) = self.sim.filter(|_| simulated().is_none()) else { return Ok(true) };
        let home = Home::find()?;
        let tree = Tree::find(&home)?;
        tree.ready(&home)?;
        let program = std::env::current_exe().context("this program's own path")?;
        let mut command = tree.command(gpu, self.hip, &program);
        finished(command.args(std::env::args_os().skip(1)).status()?)?;
        Ok(false)
    }
}

/// The GPU that is simulated in this process.
pub fn simulated() -> Option<String> {
    std::env::var(SIMULATED).ok()
}

/// The words that start a program that was built here, so that it finds AMD's libraries where this process does.
pub fn words(program: &Path) -> Vec<String> {
    let loader = std::env::var(LOADER).unwrap_or_default();
    loader.lines().map(str::to_string).chain([program.display().to_string()]).collect()
}

fn finished(status: ExitStatus) -> Result<()> {
    if status.success() { Ok(()) } else { bail!("it ended with {status}") }
}

pub fn run(args: &Args) -> Result<()> {
    let home = Home::find()?;
    let tree = Tree::find(&home)?;
    match &args.task {
        Task::Setup => {
            fetch(&home)?;
            tree.build(&home)?;
            status(&tree)
        }
        Task::Status => status(&tree),
        Task::Test => test(&home, &tree),
        Task::Run { gpu, hip, words } => {
            tree.ready(&home)?;
            finished(tree.command(*gpu, *hip, &on_path(&words[0])).args(&words[1..]).status()?)
        }
    }
}

/// A program by its path, or by a name that the shell would find.
fn on_path(word: &str) -> PathBuf {
    let named = !word.contains('/');
    let folders = std::env::var_os("PATH").filter(|_| named).unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(word)).find(|file| file.is_file());
    found.unwrap_or_else(|| word.into())
}

fn status(tree: &Tree) -> Result<()> {
    for (what, there, path) in tree.parts() {
        println!("{} {what:<28} {}", if there { "there  " } else { "missing" }, path.display());
    }
    match tree.missing() {
        None => println!("ready: `cargo xtask test --backend hip --sim gfx942`"),
        Some(how) => println!("{how}"),
    }
    Ok(())
}

/// The simulator's own tests, and what is to be seen on it alone, with AMD's compiler and disassembler.
fn test(home: &Home, tree: &Tree) -> Result<()> {
    tree.ready(home)?;
    for (package, name) in [("mhc-gfxsim", "features"), ("mhc-tests", "simulated")] {
        let program = programs::test_of(home, package, name)?;
        finished(tree.loaded(&program).arg("--quiet").status()?)?;
    }
    Ok(())
}

/// Unpacks AMD's runtime unless it is there; an error says why it cannot be had.
pub fn fetch(home: &Home) -> Result<()> {
    let tree = Tree::find(home)?;
    match tree.missing() {
        None => Ok(()),
        Some(why) if tree.borrowed => bail!(why),
        Some(_) => packages::unpack(&tree),
    }
}
