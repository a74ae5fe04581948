//! Rules about the size of what is published.

use super::File;

/// Bytes of a crate, of which the registry takes 10 MiB, 10.49 million: images are packed as tightly as they can be, so that the archive is
/// not much smaller. The rest is for what packing adds and for whoever takes a megabyte for a million.
const LIMIT: usize = 9_700_000;

/// What a manifest leaves out of its crate.
fn excluded(manifest: &File) -> Vec<&str> {
    let lists = manifest.text.lines().filter_map(|line| line.strip_prefix("exclude = ["));
    lists.flat_map(|list| list.split('"').skip(1).step_by(2)).collect()
}

pub fn crates(files: &[File]) -> Vec<String> {
    let mut places = Vec::new();
    for manifest in files.iter().filter(|f| f.path.starts_with("mhc-") && f.path.ends_with("/Cargo.toml")) {
        let folder = manifest.path.trim_end_matches("Cargo.toml");
        let left_out = excluded(manifest);
        let inside = files.iter().filter(|f| f.path.strip_prefix(folder).is_some_and(|p| !left_out.contains(&p)));
        let bytes: usize = inside.map(|f| f.bytes).sum();
        if bytes > LIMIT {
            places.push(format!("{folder} has {bytes} bytes, {} more than {LIMIT}", bytes - LIMIT));
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_published() {
        let file = |path: &str, text: &str, bytes| File { path: path.into(), text: text.into(), bytes };
        let with = |bytes| {
            crates(&[
                file("mhc-cuda/Cargo.toml", "exclude = [\"gen/list.json\", \"x\"]\n", 30),
                file("mhc-cuda/gen/list.json", "", LIMIT),
                file("mhc-cuda/gen/image.zst", "", bytes),
                file("mhc-hip/gen/image.zst", "", LIMIT),
            ])
        };
        assert_eq!(with(LIMIT - 30), [""; 0]);
        assert_eq!(with(LIMIT), [format!("mhc-cuda/ has {} bytes, 30 more than {LIMIT}", LIMIT + 30)]);
    }
}
