//! `cargo xtask bundle DIR`: everything needed to test and time a machine that has no Rust.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use mhc_tests::machine;
use serde_json::json;

use crate::{
    home::{BUNDLE_MARK, Home},
    programs,
};

/// Write a folder with test and bench programs and their data, to be carried to a machine that has no Rust
///
/// There, `./run.sh` runs everything and leaves its findings in `results/`; `./xtask test`, `bench`, `golden`, `doctor` and `demo` work as
/// they do here. The machine must have this one's instruction set and a C library no older than this one's.
#[derive(clap::Args)]
pub struct Args {
    /// The folder; it must be empty or not be there
    dir: PathBuf,
    /// A folder of golden cases to carry along
    #[arg(long, value_name = "DIR")]
    golden: Option<PathBuf>,
}

const SCRIPT: &str = r#"#!/bin/sh
# Tests and times this machine. Needs nothing but a GPU's driver, if there is one. Findings go to results/.
cd "$(dirname "$0")" || exit 1
mkdir -p results
failed=0
step() {
    name=$1
    shift
    echo "== $name"
    "$@" > "results/$name.txt" 2>&1 || { failed=1; echo "   FAILED, see results/$name.txt"; }
    tail -n 1 "results/$name.txt"
}
step doctor ./xtask doctor
step test ./xtask test --level "${LEVEL:-full}"
if [ -d golden ]; then step golden ./xtask golden golden; fi
step demo ./xtask demo --out results/demo
step bench ./xtask bench --save results/bench.json
if ls /dev/nvidia0 > /dev/null 2>&1; then step bars ./xtask bench --backend cuda --suite bars --save results/bars.json; fi
[ $failed = 0 ] && echo "everything passed" || echo "something failed"
exit $failed
"#;

pub fn run(args: &Args) -> Result<()> {
    let home = Home::find()?;
    home.checkout("bundle")?;
    if args.dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty", args.dir.display());
    }
    let tests = programs::tests(&home)?;
    let benches = ["ops", "gpu"].map(|name| Ok((programs::bundled_bench(name), programs::bench(&home, name)?)));
    let benches = benches.into_iter().collect::<Result<Vec<_>>>()?;
    copy(&std::env::current_exe().context("this program's own path")?, &args.dir.join("xtask"))?;
    for (name, path) in &benches {
        copy(path, &args.dir.join("bin").join(name))?;
    }
    let mut names = Vec::new();
    for (name, path) in &tests {
        copy(path, &args.dir.join("bin").join(name))?;
        names.push(name);
    }
    for entry in fs::read_dir(home.data(""))? {
        let path = entry?.path();
        copy(&path, &args.dir.join("tests/data").join(path.file_name().context("a file has a name")?))?;
    }
    if let Some(golden) = &args.golden {
        for path in mhc_tests::golden::files(golden)? {
            copy(&path, &args.dir.join("golden").join(path.file_name().context("a file has a name")?))?;
        }
    }
    let (version, date) = (env!("CARGO_PKG_VERSION"), machine::today());
    let mark = json!({ "version": version, "date": date, "commit": home.commit(), "tests": names });
    fs::write(args.dir.join(BUNDLE_MARK), serde_json::to_string_pretty(&mark)?)?;
    script(&args.dir.join("run.sh"))?;
    println!("wrote {}: carry it over and run ./run.sh there", args.dir.display());
    Ok(())
}

/// Copies a file with its permissions, making its folder.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file has a folder")?)?;
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(())
}

fn script(path: &Path) -> Result<()> {
    fs::write(path, SCRIPT)?;
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}
