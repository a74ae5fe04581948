//! Pinned compilers: packages that their vendors publish for Python, in folders of the project that git ignores.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use xshell::{Shell, cmd};

/// A package of which one file is wanted.
pub struct Wheel {
    /// Its name.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// How much is downloaded, in MB.
    pub megabytes: u32,
    /// The platform and the hash of its file for Linux on x86-64. No other is pinned.
    pub file: (&'static str, &'static str),
    /// What the folder is called, before the version.
    pub folder: &'static str,
    /// The file that is wanted.
    pub wanted: &'static str,
    /// The variable that may name it instead.
    pub variable: &'static str,
}

impl Wheel {
    /// The file that is wanted: what the variable names, or else the pinned one, downloaded and unpacked if it is not yet.
    pub fn get(&self, sh: &Shell, root: &Path) -> Result<PathBuf> {
        let &Self { package, version, megabytes, file: (platform, hash), folder, wanted, variable } = self;
        if let Some(path) = std::env::var_os(variable).filter(|p| !p.is_empty()) {
            return Ok(path.into());
        }
        ensure!(
            cfg!(all(target_os = "linux", target_arch = "x86_64")),
            "no wheel is pinned for this machine: set {variable} to the {wanted} of {package} {version}"
        );
        let folder = root.join("target").join(format!("{folder}-{version}"));
        let file = folder.join(wanted);
        if file.is_file() {
            return Ok(file);
        }
        eprintln!("downloading {package} {version} ({megabytes} MB)");
        let part = folder.with_file_name(format!("{package}-{version}.part"));
        sh.remove_path(&part)?;
        sh.create_dir(&part)?;
        let package = format!("{package}=={version}");
        let download = cmd!(
            sh,
            "python3 -m pip download --quiet --no-deps --only-binary :all: --platform {platform} --dest {part} {package}"
        );
        download.run().with_context(|| format!("downloading {package} with pip; or set {variable} to its {wanted}"))?;
        let wheel = sh.read_dir(&part)?.pop().context("pip downloaded nothing")?;
        let found = hex(&Sha256::digest(sh.read_binary_file(&wheel)?));
        if found != hash {
            bail!("{} has hash {found}, but {hash} is pinned", wheel.display());
        }
        cmd!(sh, "python3 -m zipfile -e {wheel} {part}").run()?;
        sh.remove_path(&wheel)?;
        // A folder from before, without the file, is in the way.
        sh.remove_path(&folder)?;
        std::fs::rename(&part, &folder)?;
        Ok(file)
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
