//! What a run-time compiler has made, kept on disk by content.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// A folder of images, each in a file whose name is the hash of what it was made of. A file begins with the hash of the image.
#[derive(Clone, Debug)]
pub struct Cache(Option<PathBuf>);

const HASH: usize = 32;

impl Cache {
    /// The folder that `MHC_CACHE_DIR` names, or else one of the user's. `MHC_CACHE=0` turns it off.
    pub fn from_env() -> Self {
        let path = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if std::env::var("MHC_CACHE").is_ok_and(|v| v == "0") {
            return Self(None);
        }
        let users = || match cfg!(windows) {
            true => path("LOCALAPPDATA"),
            false => path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache"))),
        };
        Self(path("MHC_CACHE_DIR").or_else(|| Some(users()?.join("mhc"))))
    }

    /// A certain folder.
    pub fn at(folder: PathBuf) -> Self {
        Self(Some(folder))
    }

    /// The name of what is made of these texts.
    pub fn key(content: &[&str]) -> String {
        let mut hash = Sha256::new();
        for text in content {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// An image that was kept; `None` where there is none or it is not what was written.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let file = std::fs::read(self.0.as_ref()?.join(key)).ok()?;
        let (hash, image) = file.split_at_checked(HASH)?;
        (Sha256::digest(image)[..] == *hash).then(|| image.to_vec())
    }

    /// Keeps an image. Where that does not work it will be compiled again, which is no failure.
    pub fn put(&self, key: &str, image: &[u8]) {
        let Some(folder) = &self.0 else { return };
        let file = [&Sha256::digest(image)[..], image].concat();
        let part = folder.join(format!("{key}.{}", std::process::id()));
        let written = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&part, file))
            // Whole or not at all, whoever else writes the same.
            .and_then(|()| std::fs::rename(&part, folder.join(key)));
        if written.is_err() {
            let _ = std::fs::remove_file(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_put_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("mhc-cache-test-{}", std::process::id()));
        let cache = Cache::at(folder.clone());
        let (a, b) = (Cache::key(&["a", "b"]), Cache::key(&["ab", ""]));
        assert_ne!(a, b, "texts are kept apart");
        assert_eq!(cache.get(&a), None);
        cache.put(&a, b"image");
        assert_eq!(cache.get(&a).as_deref(), Some(&b"image"[..]));
        assert_eq!(cache.get(&b), None);
        let mut damaged = std::fs::read(folder.join(&a)).unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        std::fs::write(folder.join(&a), damaged).unwrap();
        assert_eq!(cache.get(&a), None, "damaged");
        std::fs::write(folder.join(&a), b"short").unwrap();
        assert_eq!(cache.get(&a), None, "cut off");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
