//! AMD's runtime from the packages of a Debian mirror: asked for, checked and downloaded by the system's own apt, in a folder of its own.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use super::Tree;
use crate::report;

/// What is wanted. HIP 7 is in `experimental`, its companions and HIP 6 in `sid`.
const WANTED: [&str; 5] = ["libamdhip64-7", "libhiprtc7", "libamd-comgr3", "libamdhip64-6", "libhiprtc6"];
const SUITES: [&str; 2] = ["sid", "experimental"];
/// The keys that Debian signs its lists of packages with.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What packages say they need to be installed, and libraries that are only loaded do not.
const NEEDLESS: &[&str] = &["dpkg", "perl", "debconf", "tar", "base-files", "python", "gcc-", "libc-gconv"];

/// A package's file.
#[derive(Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
    bytes: u64,
}

/// Downloads and unpacks everything, or leaves nothing behind.
pub fn unpack(tree: &Tree) -> Result<()> {
    let shell = Shell::new()?;
    let folder = tree.downloads();
    let options = &prepare(&shell, &folder)?;
    cmd!(shell, "apt-get {options...} --quiet=2 update").run().context("asking for the list of packages")?;
    let list = cmd!(shell, "apt-get {options...} --quiet=2 --no-install-recommends --print-uris install {WANTED...}");
    let list = list.read().context("asking what the packages need")?;
    let packages: Vec<_> = list.lines().filter_map(package).filter(needed).collect();
    if let Some(lacking) = WANTED.iter().find(|name| packages.iter().all(|p| p.name != **name)) {
        bail!("apt knows no package `{lacking}` to download");
    }
    // Renamed when it is whole.
    let part = tree.packages.with_extension("part");
    shell.remove_path(&part)?;
    shell.create_dir(&part)?;
    let files = folder.join("files");
    let total = packages.iter().map(|p| p.bytes).sum::<u64>();
    let bar = report::progress((total >> 20) as usize, "AMD's runtime (MB)");
    let mut done = 0;
    for package in &packages {
        let wanted = format!("{}={}", package.name, package.version);
        shell.remove_path(&files)?;
        shell.create_dir(&files)?;
        let _there = shell.push_dir(&files);
        cmd!(shell, "apt-get {options...} --quiet=2 download {wanted}").quiet().ignore_stdout().run()?;
        let file = shell.read_dir(&files)?.pop().with_context(|| format!("apt downloaded no {wanted}"))?;
        cmd!(shell, "dpkg-deb --extract {file} {part}").quiet().run()?;
        done += package.bytes;
        bar.set_position(done >> 20);
    }
    bar.finish_and_clear();
    shell.remove_path(&tree.packages)?;
    fs::rename(&part, &tree.packages)?;
    shell.remove_path(&folder)?;
    Ok(())
}

/// Folders for apt, and the options that keep it to them: it neither reads nor changes what is installed.
fn prepare(shell: &Shell, folder: &Path) -> Result<Vec<String>> {
    let mirrors = cmd!(shell, "apt-get indextargets --format $(REPO_URI)").quiet().ignore_stderr().read();
    let mirrors = mirrors.context("this needs apt, with a Debian mirror in its configuration")?;
    let mirror = mirrors.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    let mirror = mirror.context("apt's configuration names no Debian mirror (or `apt-get update` was never run)")?;
    ensure!(Path::new(KEYS).is_file(), "{KEYS} is missing: it is in the package debian-archive-keyring");
    for name in ["lists/partial", "archives/partial", "files"] {
        shell.create_dir(folder.join(name))?;
    }
    let sources: String = SUITES.map(|suite| format!("deb [signed-by={KEYS}] {mirror} {suite} main\n")).concat();
    let (list, status) = (folder.join("sources.list"), folder.join("status"));
    shell.write_file(&list, sources)?;
    shell.write_file(&status, "")?;
    let at = |name: &str| folder.join(name).display().to_string();
    let settings = [
        ("Dir::State::lists", at("lists")),
        ("Dir::State::status", at("status")),
        ("Dir::Cache", at("")),
        ("Dir::Cache::archives", at("archives")),
        ("Dir::Etc::sourcelist", at("sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("APT::Architecture", "amd64".into()),
        ("APT::Default-Release", "experimental".into()),
        // What this user downloads, this user may read.
        ("APT::Sandbox::User", "root".into()),
        ("Debug::NoLocking", "1".into()),
    ];
    Ok(settings.into_iter().map(|(name, value)| format!("--option={name}={value}")).collect())
}

/// `'address' libfoo1_1.2-3_amd64.deb 12345 SHA256:…`
fn package(line: &str) -> Option<Package> {
    let mut words = line.split_whitespace().skip(1);
    let file = words.next()?.strip_suffix(".deb")?;
    let mut parts = file.split('_');
    let (name, version) = (parts.next()?.to_string(), parts.next()?.replace("%3a", ":"));
    Some(Package { name, version, bytes: words.next()?.parse().ok()? })
}

fn needed(package: &Package) -> bool {
    !NEEDLESS.iter().any(|start| package.name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_from_what_apt_prints() {
        let line = "'mirror/libelf1t64_0.196-1_amd64.deb' libelf1t64_1%3a0.196-1_amd64.deb 61224 SHA256:00";
        let found = Package { name: "libelf1t64".into(), version: "1:0.196-1".into(), bytes: 61224 };
        assert_eq!(package(line), Some(found));
        assert_eq!(package("Reading package lists..."), None);
        assert!(!needed(&Package { name: "perl-base".into(), version: String::new(), bytes: 0 }));
    }
}
