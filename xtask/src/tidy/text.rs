//! Rules about the text of files.

use super::File;

const SOURCES: &[&str] = &["rs", "cuh", "cu", "hip"];
const MAX_LINES: usize = 500;
/// Lines between an `unsafe` and the end of its SAFETY comment: a statement may begin above the block.
const REACH: usize = 6;

fn sources(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|f| f.is(SOURCES))
}

/// `path:line: what` for every line for which `bad` says what is wrong.
fn lines<'a>(files: impl Iterator<Item = &'a File>, bad: impl Fn(&File, &str) -> Option<String>) -> Vec<String> {
    let mut places = Vec::new();
    for file in files {
        for (i, line) in file.text.lines().enumerate() {
            places.extend(bad(file, line).map(|what| format!("{}:{}: {what}", file.path, i + 1)));
        }
    }
    places
}

pub fn long_files(files: &[File]) -> Vec<String> {
    let counted = sources(files).map(|f| (f, f.text.lines().count()));
    counted.filter(|(_, n)| *n > MAX_LINES).map(|(f, n)| format!("{}: {n} lines", f.path)).collect()
}

/// Where a file silences clippy's own lint for a whole item, the reason stands above that; elsewhere above each block.
pub fn unsafe_without_reason(files: &[File]) -> Vec<String> {
    let mut places = Vec::new();
    for file in files.iter().filter(|f| f.is(&["rs"])) {
        let text: Vec<_> = file.text.lines().collect();
        let silenced = |l: &str| {
            l.starts_with("#[allow(clippy::undocumented_unsafe")
                || l.starts_with("#![allow(clippy::undocumented_unsafe")
        };
        let one_reason = text.iter().any(|l| silenced(l));
        for (i, line) in text.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let block = ["unsafe {", "unsafe impl"].iter().any(|u| code.contains(u)) && !code.contains('"');
            let needs_reason = if one_reason { silenced(code) } else { block };
            let above = &text[i.saturating_sub(REACH)..=i];
            if needs_reason && !above.iter().any(|l| l.contains("SAFETY")) {
                places.push(format!("{}:{}", file.path, i + 1));
            }
        }
    }
    places
}

pub fn unfinished(files: &[File]) -> Vec<String> {
    // Spelled in two halves, so that this file does not break its own rule.
    let marks = [
        ("TO", "DO"),
        ("FIX", "ME"),
        ("XX", "X"),
        ("todo", "!("),
        ("unimple", "mented!("),
        ("db", "g!("),
        ("#[ig", "nore"),
    ];
    let marks: Vec<_> = marks.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let text = files.iter().filter(|f| f.is(&["rs", "md", "toml", "cuh", "cu", "hip", "sh", "py"]));
    lines(text, |_, line| marks.iter().find(|m| line.contains(m.as_str())).map(|m| format!("`{m}`")))
}

pub fn paths(files: &[File]) -> Vec<String> {
    let roots = [("/ho", "me/"), ("/ro", "ot/"), ("/tm", "p/"), ("/wo", "rk/"), ("/Us", "ers/"), ("C:", "\\")];
    let roots: Vec<_> = roots.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let addresses = ["arxiv.org", "github.com", "docs.rs", "www.apache.org", "www.w3.org"];
    let text = files.iter().filter(|f| !f.path.ends_with("Cargo.lock") && !f.path.starts_with("LICENSE"));
    lines(text, |_, line| {
        if let Some(root) = roots.iter().find(|r| line.contains(r.as_str())) {
            return Some(format!("`{root}`"));
        }
        let hosts =
            line.split("://").skip(1).map(|rest| rest.split(['/', ' ', ')', '"', '`', '>']).next().unwrap_or(rest));
        hosts.into_iter().find(|h| h.contains('.') && !addresses.contains(h)).map(|h| format!("`{h}`"))
    })
}

pub fn blanks(files: &[File]) -> Vec<String> {
    let mut places = lines(files.iter().filter(|f| !f.path.starts_with("LICENSE")), |f, line| {
        let tab = line.contains('\t') && f.is(&["rs", "md", "toml"]);
        (tab || line.ends_with([' ', '\t'])).then(|| "blanks".into())
    });
    let ends = files.iter().filter(|f| !f.text.is_empty() && (!f.text.ends_with('\n') || f.text.ends_with("\n\n")));
    places.extend(ends.map(|f| format!("{}: end of file", f.path)));
    places
}

pub fn manifests(files: &[File]) -> Vec<String> {
    let wanted = [
        "version.workspace = true",
        "edition.workspace = true",
        "rust-version.workspace = true",
        "[lints]\nworkspace = true",
    ];
    let members = files.iter().filter(|f| f.path.ends_with("/Cargo.toml"));
    members
        .flat_map(|f| {
            wanted
                .iter()
                .filter(|w| !f.text.contains(*w))
                .map(|w| format!("{}: lacks `{}`", f.path, w.replace('\n', " ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rs(text: &str) -> Vec<File> {
        vec![File { path: "a/src/b.rs".into(), text: text.into(), bytes: text.len() }]
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        assert_eq!(long_files(&rs(&"x\n".repeat(501))), ["a/src/b.rs: 501 lines"]);
        assert!(long_files(&rs(&"x\n".repeat(500))).is_empty());
        assert_eq!(unsafe_without_reason(&rs("fn f() {\n    unsafe { g() }\n}\n")), ["a/src/b.rs:2"]);
        assert!(unsafe_without_reason(&rs("// SAFETY: it holds.\nunsafe { g() }\n")).is_empty());
        assert_eq!(unfinished(&rs(&format!("x\n// {}\n", ["TO", "DO"].concat()))).len(), 1);
        assert_eq!(paths(&rs(&format!("// {}me/user\n", "/ho"))).len(), 1);
        let address = ["https:", "//example.com"].concat();
        assert_eq!(paths(&rs(&format!("// see {address}/a\n"))), ["a/src/b.rs:1: `example.com`"]);
        assert!(paths(&rs("// see https://arxiv.org/abs/2512.24880\n")).is_empty());
        assert_eq!(blanks(&rs("x \n")).len(), 1);
        assert_eq!(blanks(&rs("x")).len(), 1);
        let manifest = File { path: "a/Cargo.toml".into(), text: "edition.workspace = true\n".into(), bytes: 0 };
        assert_eq!(manifests(&[manifest]).len(), 3);
    }
}
