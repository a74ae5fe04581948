//! The folder that AMD's runtime is unpacked in, and what is made beside it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use mhc_gfxsim::topology;
use xshell::cmd;

use super::{Gpu, Hip, LOADER, SIMULATED};
use crate::home::Home;

/// Where in the unpacked packages the loader and the libraries are.
const PROGRAM_LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// AMD's runtime and the simulator.
pub struct Tree {
    /// The packages' files.
    pub packages: PathBuf,
    /// What this project makes: the simulator and descriptions of machines.
    made: PathBuf,
    /// `MHC_AMDHIP` names the packages' place, so that nothing is downloaded.
    pub borrowed: bool,
}

impl Tree {
    pub fn find(home: &Home) -> Result<Self> {
        let made = home.checkout("sim")?.join("target/amd-hip");
        let borrowed = std::env::var_os("MHC_AMDHIP").filter(|v| !v.is_empty()).map(PathBuf::from);
        let packages = borrowed.as_ref().unwrap_or(&made).join("root");
        Ok(Self { packages, made, borrowed: borrowed.is_some() })
    }

    /// A folder for what is downloaded on the way.
    pub fn downloads(&self) -> PathBuf {
        self.made.join("downloads")
    }

    fn libraries(&self) -> PathBuf {
        self.packages.join(LIBRARIES)
    }

    fn simulator(&self) -> PathBuf {
        self.made.join("build/release/libmhc_gfxsim.so")
    }

    fn topology(&self, gpu: Gpu) -> PathBuf {
        self.made.join("topology").join(gpu.name())
    }

    /// What there must be: its name, whether it is there, and where.
    pub fn parts(&self) -> Vec<(&'static str, bool, PathBuf)> {
        let libraries = self.libraries();
        let files = [
            ("C library", self.packages.join(PROGRAM_LOADER)),
            ("HIP 7 runtime", libraries.join("libamdhip64.so.7")),
            ("HIP 7 compiler", libraries.join("libhiprtc.so.7")),
            ("disassembler", libraries.join("libamd_comgr.so.3")),
            ("HIP 6 runtime (for --hip 6)", libraries.join("libamdhip64.so.6")),
            ("simulator", self.simulator()),
        ];
        files.into_iter().map(|(what, path)| (what, path.is_file(), path)).collect()
    }

    /// Whether AMD's runtime is unpacked.
    pub fn has_runtime(&self) -> bool {
        self.parts()
            .iter()
            .filter(|(what, ..)| !what.contains("--") && *what != "simulator")
            .all(|(_, there, _)| *there)
    }

    /// What is missing and how to get it, if anything is.
    pub fn missing(&self) -> Option<String> {
        match (self.has_runtime(), self.borrowed) {
            (true, _) => None,
            (false, true) => {
                Some(format!("MHC_AMDHIP names a folder without AMD's runtime: {}", self.packages.display()))
            }
            (false, false) => Some("AMD's runtime is not unpacked: run `cargo xtask sim setup`".into()),
        }
    }

    /// An error with what is missing; the simulator is built again where it is older than its sources.
    pub fn ready(&self, home: &Home) -> Result<()> {
        match self.missing() {
            Some(why) => bail!(why),
            None => self.build(home),
        }
    }

    /// Builds the simulator for this machine's processor, apart from everything else: a wave's lanes are added 16 at a time where it can.
    pub fn build(&self, home: &Home) -> Result<()> {
        let shell = home.shell()?;
        let target = self.made.join("build");
        cmd!(
            shell,
            "cargo rustc --quiet --release --package mhc-gfxsim --lib --crate-type cdylib --target-dir {target} -- -C target-cpu=native"
        )
        .env_remove("CARGO_TARGET_DIR")
        .run()
        .context("building the simulator")?;
        for gpu in Gpu::ALL {
            topology::write(gpu.arch(), &self.topology(gpu)).context("describing the machine")?;
        }
        Ok(())
    }

    /// The words before a program's own that let it find AMD's libraries.
    fn loader(&self) -> Vec<String> {
        let (loader, libraries) = (self.packages.join(PROGRAM_LOADER), self.libraries());
        vec![loader.display().to_string(), "--library-path".into(), libraries.display().to_string()]
    }

    /// A program with AMD's libraries, and no GPU.
    pub fn loaded(&self, program: &Path) -> Command {
        let words = self.loader();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program);
        command
    }

    /// A program on a simulated GPU.
    pub fn command(&self, gpu: Gpu, hip: Hip, program: &Path) -> Command {
        let mut command = self.loaded(program);
        command.env("HSA_MODEL_TOPOLOGY", self.topology(gpu)).env("HSA_MODEL_LIB", self.simulator());
        // Copies by packets of their own are not modelled; the runtime's kernels copy instead.
        command.env("HSA_ENABLE_SDMA", "0");
        // Signals are polled: at its end the runtime takes their events away while the device may still be about to set one, and aborts.
        command.env("HSA_ENABLE_INTERRUPT", "0");
        command.env(SIMULATED, gpu.name()).env(LOADER, self.loader().join("\n"));
        if hip == Hip::Six {
            let library = |name: &str| self.libraries().join(name);
            command.env("MHC_HIP_LIBRARY", library("libamdhip64.so.6")).env("MHC_HIPRTC", library("libhiprtc.so.6"));
        }
        command
    }
}
