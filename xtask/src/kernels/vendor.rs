//! What the builders of both vendors' images share: what is to be compiled, and what comes of it.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use mhc_core::{DType, gpu::Source};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use xshell::Shell;

use super::wheel;

/// A vendor's compiler.
pub trait Vendor: Sized + Sync {
    /// What the manifest says about an entry.
    type Taken: Taken;
    /// Where the images lie.
    const FOLDER: &'static str;

    /// The compiler's name and version.
    fn compiler() -> String;
    /// One for each image.
    fn jobs() -> Vec<Job>;
    /// The compiler, downloaded if it is not there yet.
    fn open(sh: &Shell, root: &Path) -> Result<Self>;
    /// Compiles the images of one frame, and checks what must hold of the machine code. The error has what the compiler said.
    fn compile(&self, jobs: &[&Job]) -> Result<Vec<Compiled<Self::Taken>>>;
}

/// What an entry takes of a multiprocessor.
pub trait Taken: Clone + PartialEq + Send + Serialize + Sync + DeserializeOwned {
    /// In what the entry of this name goes beyond what it may take.
    fn excess(&self, entry: &str) -> Option<String>;
    /// Registers of a lane, bytes of them in memory, bytes of shared memory.
    fn summary(&self) -> [u32; 3];
}

/// What the compiler made of a job.
pub struct Compiled<T> {
    /// The image.
    pub image: Vec<u8>,
    /// What each entry takes; nothing where the driver decides.
    pub entries: BTreeMap<String, T>,
    /// Bytes of each entry's parameter.
    pub parameters: BTreeMap<String, u32>,
}

/// One image to be made.
pub struct Job {
    /// The device source, and of its entries those of one element type.
    pub source: &'static Source,
    /// As just said.
    pub dtype: DType,
    /// What it is compiled for.
    pub target: String,
    /// Lanes of a wave.
    pub wave: u32,
    /// The compiler's options.
    pub options: Vec<String>,
    /// The files that the source includes, names and texts.
    pub headers: Vec<(&'static str, &'static str)>,
    /// The kind of image: `cubin`.
    pub extension: &'static str,
    /// Images of one source and element type with the same name here are packed into one frame, where they share what they have in common.
    pub family: String,
}

/// The images of all sources: `job` makes the one with a source's entries of one element type for a target.
pub fn jobs(
    sources: impl Iterator<Item = &'static Source>,
    targets: impl Fn(&Source) -> Vec<String>,
    job: impl Fn(&'static Source, DType, String) -> Job,
) -> Vec<Job> {
    let mut jobs = Vec::new();
    for source in sources {
        for dtype in source.dtypes() {
            jobs.extend(targets(source).into_iter().map(|target| job(source, dtype, target)));
        }
    }
    jobs
}

impl Job {
    /// `post.bf16.sm_90.cubin`
    pub fn file(&self) -> String {
        format!("{}.{}.{}.{}", self.source.name, self.dtype, self.target, self.extension)
    }

    /// The frame that it lies in: `post.bf16.gfx11.hsaco`.
    pub fn frame(&self) -> String {
        format!("{}.{}.{}.{}", self.source.name, self.dtype, self.family, self.extension)
    }

    /// What is compiled.
    pub fn text(&self) -> String {
        self.source.translation_unit(self.dtype, self.wave)
    }

    /// The names of the entries that must come of it.
    pub fn entries(&self) -> Vec<String> {
        let mut names: Vec<_> = self.source.entries_of(self.dtype).iter().map(|e| e.name(self.wave)).collect();
        names.sort();
        names
    }

    /// SHA-256 of everything that is compiled, and how.
    pub fn input<V: Vendor>(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(&V::compiler());
        self.options.iter().for_each(|o| add(o));
        self.headers.iter().flat_map(|(name, text)| [name, text]).for_each(|t| add(t));
        add(&self.text());
        wheel::hex(&hash.finalize())
    }
}
