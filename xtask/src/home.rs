//! Where the tool stands: in a checkout, where cargo builds what it runs, or in a bundle, where that was built beforehand.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

/// The file that marks a bundle's root.
pub const BUNDLE_MARK: &str = "bundle.json";

/// The root of a checkout or of a bundle.
pub enum Home {
    /// The repository.
    Checkout(PathBuf),
    /// A folder written by `cargo xtask bundle`.
    Bundle(PathBuf),
}

impl Home {
    /// Cargo tells a program it runs where its package is; a bundled program finds its mark beside itself.
    pub fn find() -> Result<Self> {
        if let Some(package) = std::env::var_os("CARGO_MANIFEST_DIR") {
            let root = Path::new(&package).parent().context("the xtask package lies in the workspace's root")?;
            return Ok(Self::Checkout(root.into()));
        }
        let program = std::env::current_exe().context("this program's own path")?;
        match program.ancestors().find(|dir| dir.join(BUNDLE_MARK).is_file()) {
            Some(root) => Ok(Self::Bundle(root.into())),
            None => bail!("run this as `cargo xtask` in a checkout, or from a folder that `cargo xtask bundle` wrote"),
        }
    }

    /// The root.
    pub fn root(&self) -> &Path {
        match self {
            Self::Checkout(root) | Self::Bundle(root) => root,
        }
    }

    /// The root of the checkout; an error in a bundle, where `task` cannot be done.
    pub fn checkout(&self, task: &str) -> Result<&Path> {
        match self {
            Self::Checkout(root) => Ok(root),
            Self::Bundle(_) => bail!("`{task}` needs the sources: run it in a checkout"),
        }
    }

    /// A file of the data that comes with the repository.
    pub fn data(&self, name: &str) -> PathBuf {
        self.root().join("tests/data").join(name)
    }

    /// Where a task puts what it makes for people.
    pub fn output(&self, task: &str) -> PathBuf {
        match self {
            Self::Checkout(root) => root.join("target").join(task),
            Self::Bundle(root) => root.join("results").join(task),
        }
    }

    /// An empty folder for a task's intermediate files.
    pub fn scratch(&self, task: &str) -> Result<PathBuf> {
        let folder = self.output("xtask").join(task);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }

    /// A shell in the root.
    pub fn shell(&self) -> Result<Shell> {
        let shell = Shell::new()?;
        shell.change_dir(self.root());
        Ok(shell)
    }

    /// The commit that is checked out, where there is git to ask, or that the bundle was made of.
    pub fn commit(&self) -> Option<String> {
        match self {
            Self::Checkout(_) => {
                let shell = self.shell().ok()?;
                cmd!(shell, "git rev-parse --short=12 HEAD").quiet().ignore_stderr().read().ok()
            }
            Self::Bundle(root) => {
                let mark: serde_json::Value =
                    serde_json::from_str(&fs::read_to_string(root.join(BUNDLE_MARK)).ok()?).ok()?;
                Some(mark.get("commit")?.as_str()?.to_string())
            }
        }
    }
}
