//! `cargo xtask new-op NAME`: the files of a new operator, complete and right, to be changed into what is wanted.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use mhc_core::AnyOp;

use crate::home::Home;

/// Write the files of a new operator and name the three lines that put it in place
///
/// The new operator doubles its operand, forward and backward, with reference, description, cases and a CPU kernel: it passes every
/// test as it is. Change it into what you want; the compiler, `cargo xtask tidy` and the tests name what is missing on the way.
#[derive(clap::Args)]
pub struct Args {
    /// Its name, such as `soft_cap`
    name: String,
}

const CORE: &str = "mhc-core/src/ops";
const CPU: &str = "mhc-cpu/src/ops";

/// Template and where it goes.
const FILES: [(&str, &str); 3] = [
    (include_str!("../templates/mod.rs.in"), "mhc-core/src/ops/@name@/mod.rs"),
    (include_str!("../templates/reference.rs.in"), "mhc-core/src/ops/@name@/reference.rs"),
    (include_str!("../templates/cpu.rs.in"), "mhc-cpu/src/ops/@name@.rs"),
];

/// A line to be added: the file, the line, and the text before whose first line it goes.
pub struct Edit {
    pub file: String,
    pub line: String,
    pub before: &'static str,
}

pub fn run(args: &Args) -> Result<()> {
    let home = Home::find()?;
    for path in write(home.checkout("new-op")?, &args.name)? {
        println!("wrote {path}");
    }
    println!("\nNow add three lines, each in its place in the alphabet:");
    for edit in edits(&args.name) {
        println!("  {}\n    {}", edit.file, edit.line.trim());
    }
    println!("\nThen: cargo xtask tidy --bless && cargo xtask test --op {}", args.name);
    Ok(())
}

/// Writes the files below `root` and gives their paths. Nothing is written if the name will not do.
pub fn write(root: &Path, name: &str) -> Result<Vec<String>> {
    let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !name.split('_').all(word) || !name.starts_with(|c: char| c.is_ascii_lowercase()) || name.ends_with("_bwd") {
        bail!("`{name}` will not do: a name is lower-case words joined by `_`, without `_bwd`, such as `soft_cap`");
    }
    if AnyOp::all_descs().iter().any(|d| d.name == name) {
        bail!("there is an operator `{name}` already");
    }
    let paths = FILES.map(|(_, path)| path.replace("@name@", name));
    if let Some(there) = paths.iter().find(|p| root.join(p).exists()) {
        bail!("{there} is there already");
    }
    for ((template, _), path) in FILES.iter().zip(&paths) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        let text = template.replace("@name@", name).replace("@Name@", &camel(name));
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(paths.into())
}

/// The lines that put it in place.
pub fn edits(name: &str) -> [Edit; 3] {
    let camel = camel(name);
    let edit = |file: &str, line: String, before| Edit { file: format!("{file}/mod.rs"), line, before };
    [
        edit(CORE, format!("pub mod {name};"), "pub mod "),
        edit(CORE, format!("            {name}: {camel}, {camel}Bwd;"), "            aggregate: "),
        edit(CPU, format!("mod {name};"), "mod "),
    ]
}

/// `soft_cap` as `SoftCap`.
fn camel(name: &str) -> String {
    let word = |w: &str| w[..1].to_uppercase() + &w[1..];
    name.split('_').map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_will_not_do_write_nothing() {
        let root = std::env::temp_dir().join(format!("mhc-new-op-{}", std::process::id()));
        for name in ["", "Post", "a__b", "_a", "1a", "a-b", "soft_cap_bwd", "post", "../a"] {
            assert!(write(&root, name).is_err(), "{name}");
        }
        assert!(!root.exists());
        assert_eq!(write(&root, "soft_cap").unwrap().len(), 3);
        assert!(write(&root, "soft_cap").unwrap_err().to_string().contains("already"));
        let text = fs::read_to_string(root.join("mhc-core/src/ops/soft_cap/mod.rs")).unwrap();
        assert!(text.contains("pub struct SoftCapBwd") && !text.contains('@'));
        fs::remove_dir_all(root).unwrap();
    }
}
