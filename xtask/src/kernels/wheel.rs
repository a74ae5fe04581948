//! The pinned compiler: NVRTC as NVIDIA publishes it for Python, in a folder of the project that git ignores.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use xshell::{Shell, cmd};

/// The package and its version. 12.9 is the last that writes machine code which drivers from 525 on load.
const PACKAGE: &str = "nvidia-cuda-nvrtc-cu12";
/// Its version.
pub const VERSION: &str = "12.9.86";

/// The wheel for this machine's architecture and its hash.
#[cfg(target_arch = "x86_64")]
const WHEEL: (&str, &str) =
    ("manylinux_2_12_x86_64", "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4");
#[cfg(not(target_arch = "x86_64"))]
const WHEEL: (&str, &str) = ("", "");

/// The compiler's library: what `MHC_NVRTC` names, or else the pinned wheel's, downloaded and unpacked if it is not yet.
pub fn library(sh: &Shell, root: &Path) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MHC_NVRTC").filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    let (platform, hash) = WHEEL;
    ensure!(
        cfg!(target_os = "linux") && !hash.is_empty(),
        "no wheel is pinned for this machine: set MHC_NVRTC to libnvrtc {VERSION}"
    );
    let folder = root.join("target").join(format!("nvrtc-{VERSION}"));
    let library = folder.join("nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
    if library.is_file() {
        return Ok(library);
    }
    eprintln!("downloading {PACKAGE} {VERSION} (90 MB)");
    let part = folder.with_extension("part");
    sh.remove_path(&part)?;
    sh.create_dir(&part)?;
    let package = format!("{PACKAGE}=={VERSION}");
    cmd!(
        sh,
        "python3 -m pip download --quiet --no-deps --only-binary :all: --platform {platform} --dest {part} {package}"
    )
    .run()
    .with_context(|| format!("downloading {package} with pip; or set MHC_NVRTC to its libnvrtc.so.12"))?;
    let wheel = sh.read_dir(&part)?.pop().context("pip downloaded nothing")?;
    let found = hex(&Sha256::digest(sh.read_binary_file(&wheel)?));
    if found != hash {
        bail!("{} has hash {found}, but {hash} is pinned", wheel.display());
    }
    cmd!(sh, "python3 -m zipfile -e {wheel} {part}").run()?;
    sh.remove_path(&wheel)?;
    std::fs::rename(&part, &folder)?;
    Ok(library)
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
