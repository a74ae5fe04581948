//! The programs that tasks run: built by cargo in a checkout, carried along in a bundle.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use xshell::{Cmd, cmd};

use crate::home::{BUNDLE_MARK, Home};

/// The bench program `ops` of the CPU, or `gpu` of GPUs.
pub fn bench(home: &Home, name: &str) -> Result<PathBuf> {
    match home {
        Home::Bundle(root) => bundled(root, &bundled_bench(name)),
        Home::Checkout(_) => {
            let shell = home.shell()?;
            one(built(cmd!(shell, "cargo bench --package mhc-tests --bench {name} --no-run"))?, name)
        }
    }
}

/// What a bench program is called in a bundle, where tests have names of their own.
pub fn bundled_bench(name: &str) -> String {
    format!("bench-{name}")
}

/// The test programs of package mhc-tests with their names.
pub fn tests(home: &Home) -> Result<Vec<(String, PathBuf)>> {
    let shell = home.shell()?;
    built(cmd!(shell, "cargo test --release --package mhc-tests --no-run"))
}

/// A test program of another package.
pub fn test_of(home: &Home, package: &str, name: &str) -> Result<PathBuf> {
    let shell = home.shell()?;
    one(built(cmd!(shell, "cargo test --release --package {package} --test {name} --no-run"))?, name)
}

/// The test programs that a bundle says it carries.
pub fn bundled_tests(root: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Mark {
        tests: Vec<String>,
    }
    let file = root.join(BUNDLE_MARK);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let mark: Mark = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    mark.tests.iter().map(|name| bundled(root, name)).collect()
}

/// A program that the bundle carries.
fn bundled(root: &Path, name: &str) -> Result<PathBuf> {
    let path = root.join("bin").join(name);
    if path.is_file() { Ok(path) } else { bail!("the bundle lacks bin/{name}") }
}

fn one(built: Vec<(String, PathBuf)>, name: &str) -> Result<PathBuf> {
    let found = built.into_iter().find(|(n, _)| n == name);
    found.map(|(_, path)| path).with_context(|| format!("cargo built no program `{name}`"))
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds, and gives the programs with their names. Cargo's own words go to the user.
fn built(command: Cmd<'_>) -> Result<Vec<(String, PathBuf)>> {
    let out = command.arg("--message-format=json-render-diagnostics").quiet().read()?;
    let messages = out.lines().filter_map(|l| serde_json::from_str::<Message>(l).ok());
    let programs = messages.filter(|m| m.reason == "compiler-artifact");
    Ok(programs.filter_map(|m| Some((m.target?.name, m.executable?))).collect())
}
