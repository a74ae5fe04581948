//! `cargo xtask tidy`: the rules that no compiler checks.

mod generated;
mod operators;
mod size;
mod text;

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::home::Home;

/// Check the rules of the repository that no compiler checks
///
/// Files that can be read in one sitting, complete operators, a reason at every `unsafe`, nothing unfinished, no paths of somebody's
/// machine, generated parts of the documents up to date.
#[derive(clap::Args)]
pub struct Args {
    /// Write the generated parts of the documents instead of comparing them
    #[arg(long)]
    bless: bool,
    /// Name the rules and stop
    #[arg(long)]
    list: bool,
}

/// A file that git tracks or would track.
struct File {
    /// Relative to the root, with `/`.
    path: String,
    /// Empty where it is not text.
    text: String,
    bytes: usize,
}

impl File {
    fn is(&self, extensions: &[&str]) -> bool {
        extensions.iter().any(|e| self.path.rsplit_once('.').is_some_and(|(_, ext)| ext == *e))
    }
}

/// A rule: what it demands, and the places that break it.
struct Rule {
    what: &'static str,
    broken: fn(&[File]) -> Vec<String>,
}

const RULES: &[Rule] = &[
    Rule { what: "source files have at most 500 lines", broken: text::long_files },
    Rule {
        what: "every `unsafe` block and impl has a SAFETY comment right above it",
        broken: text::unsafe_without_reason,
    },
    Rule { what: "nothing is left unfinished", broken: text::unfinished },
    Rule {
        what: "nothing names a path of somebody's machine or an address beyond the few a reader needs",
        broken: text::paths,
    },
    Rule { what: "no tabs, no trailing blanks, one newline at the end", broken: text::blanks },
    Rule { what: "every crate takes lints, edition and version from the workspace", broken: text::manifests },
    Rule { what: "a published crate stays below the 10 MiB that the registry takes", broken: size::crates },
    Rule { what: "every operator's folder has the fixed file names, and is listed", broken: operators::folders },
    Rule {
        what: "every operator has conformance cases, and every forward operator a backward",
        broken: operators::cases,
    },
    Rule { what: "backward operators name their operands after their forward's", broken: operators::names },
];

pub fn run(args: &Args) -> Result<()> {
    if args.list {
        RULES.iter().for_each(|r| println!("{}", r.what));
        return Ok(());
    }
    let home = Home::find()?;
    let root = home.checkout("tidy")?;
    let files = files(root, &home.shell()?)?;
    if args.bless {
        generated::bless(root, &files)?.iter().for_each(|path| println!("wrote {path}"));
    }
    let mut broken = 0;
    let stale = generated::stale(root, &files)?;
    if !stale.is_empty() {
        println!("generated parts of documents are up to date:");
        stale.iter().for_each(|p| println!("  {p}"));
        broken += stale.len();
    }
    for rule in RULES {
        let places = (rule.broken)(&files);
        if !places.is_empty() {
            println!("{}:", rule.what);
            places.iter().for_each(|p| println!("  {p}"));
        }
        broken += places.len();
    }
    if broken > 0 {
        bail!("{broken} places break a rule");
    }
    println!("tidy: {} rules, {} files", RULES.len(), files.len());
    Ok(())
}

/// The text files that are tracked, or new and not ignored.
fn files(root: &Path, shell: &Shell) -> Result<Vec<File>> {
    let list = cmd!(shell, "git ls-files --cached --others --exclude-standard").read()?;
    let mut files = Vec::new();
    for path in list.lines().filter(|p| root.join(p).is_file()) {
        let bytes = fs::read(root.join(path)).with_context(|| path.to_string())?;
        // Pictures and data are not text, and have no lines to break rules.
        let size = bytes.len();
        files.push(File { path: path.into(), text: String::from_utf8(bytes).unwrap_or_default(), bytes: size });
    }
    Ok(files)
}
