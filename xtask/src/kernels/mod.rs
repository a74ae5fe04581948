//! `cargo xtask kernels`: compiles the device sources for every architecture, without a GPU, into what the CUDA crate embeds.

mod manifest;
mod resources;
mod wheel;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use mhc_core::{DType, gpu::Source};
use mhc_cuda::{
    images::{self, WAVE},
    nvrtc::{Format, Nvrtc, Unit},
};
use sha2::{Digest, Sha256};
use xshell::Shell;

use self::{
    manifest::{Image, Manifest},
    resources::{Bounds, Resources},
};
use crate::{home::Home, report};

/// The most builds of one image: of those of `recompute`, one in three differs in some 100 bytes.
const BUILDS: usize = 12;

/// Where the images lie.
const FOLDER: &str = "mhc-cuda/kernels/gen";

/// Compile the device sources into the images that the CUDA crate embeds
///
/// Needs no GPU and no CUDA toolkit: the pinned NVRTC is downloaded with pip, or MHC_NVRTC names its library. Sources that have not
/// changed since the manifest was written are not compiled again.
#[derive(clap::Args)]
pub struct Args {
    /// Compile everything again, write nothing, and fail where the committed images are not what comes out
    #[arg(long)]
    check: bool,
    /// Compile nothing, and fail where a source is not the one that the committed images were compiled from
    #[arg(long, conflicts_with = "check")]
    fresh: bool,
    /// These sources only
    #[arg(value_name = "SOURCE")]
    only: Vec<String>,
}

struct Job {
    source: &'static Source,
    dtype: DType,
    target: String,
    input: String,
}

/// What came of a job.
struct Built {
    image: Image,
    compressed: Vec<u8>,
    parameters: BTreeMap<String, u32>,
}

impl Job {
    fn new(source: &'static Source, dtype: DType, target: String) -> Self {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(wheel::VERSION);
        images::options(&target).iter().for_each(|o| add(o));
        images::headers(source).iter().flat_map(|(name, text)| [name, text]).for_each(|t| add(t));
        add(&source.translation_unit(dtype, WAVE));
        Self { source, dtype, input: wheel::hex(&hash.finalize()), target }
    }

    fn format(&self) -> Format {
        if self.target.starts_with("compute") { Format::Ptx } else { Format::Cubin }
    }

    /// `post.bf16.sm_90.cubin`
    fn file(&self) -> String {
        let extension = if self.format() == Format::Ptx { "ptx" } else { "cubin" };
        format!("{}.{}.{}.{extension}", self.source.name, self.dtype, self.target)
    }

    /// The image, and if it is not the one that was made of the same input before, another: the assembler does not always give the
    /// same bytes. That one build gives what is committed shows where that comes from.
    fn build_like(&self, nvrtc: Nvrtc, old: &Manifest) -> Result<Built> {
        let before = old.images.get(&self.file()).filter(|image| image.input == self.input);
        let mut built = self.build(nvrtc)?;
        for _ in 1..BUILDS {
            if before.is_none_or(|image| *image == built.image) {
                break;
            }
            built = self.build(nvrtc)?;
        }
        Ok(built)
    }

    fn build(&self, nvrtc: Nvrtc) -> Result<Built> {
        let text = self.source.translation_unit(self.dtype, WAVE);
        let headers = images::headers(self.source);
        let unit = Unit { name: &format!("{}.cu", self.source.name), text: &text, headers: &headers };
        let compiled = nvrtc.compile(unit, &images::options(&self.target), self.format());
        let compiled = compiled.map_err(|log| anyhow::anyhow!("{}:\n{log}", self.file()))?;
        let bounds = resources::bounds(&compiled.assembly);
        let mut entries = resources::parse(&compiled.log)?;
        for (name, entry) in &mut entries {
            let Bounds { threads, blocks, .. } = bounds.get(name).copied().unwrap_or_default();
            (entry.threads, entry.blocks) = (threads, blocks);
        }
        let mut wanted: Vec<_> = self.source.entries_of(self.dtype).iter().map(|e| e.name(WAVE)).collect();
        wanted.sort();
        let assembled = self.format() == Format::Ptx || wanted.iter().eq(entries.keys());
        ensure!(
            assembled && wanted.iter().eq(bounds.keys()),
            "{} has entries {:?}, but {wanted:?} are listed",
            self.file(),
            bounds.keys()
        );
        let parameters = bounds.into_iter().map(|(name, bounds)| (name, bounds.parameter)).collect();
        let compressed = encode(&compiled.image)?;
        let image = Image {
            source: self.source.name.into(),
            dtype: self.dtype.name().into(),
            target: self.target.clone(),
            input: self.input.clone(),
            image: wheel::hex(&Sha256::digest(&compiled.image)),
            bytes: compiled.image.len(),
            compressed: compressed.len(),
            entries,
        };
        Ok(Built { image, compressed, parameters })
    }
}

/// A Zstandard frame.
fn encode(image: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(image, 22).context("compressing an image")
}

pub fn run(args: &Args) -> Result<()> {
    let home = Home::find()?;
    let folder = home.checkout("kernels")?.join(FOLDER);
    let sh = home.shell()?;
    for name in &args.only {
        ensure!(images::sources().any(|s| s.name == name), "there is no device source `{name}`");
    }
    let old = read_manifest(&folder)?;
    let all = jobs();
    let wanted = |job: &&Job| args.only.is_empty() || args.only.iter().any(|n| n == job.source.name);
    let current = |job: &&Job| {
        let image = old.images.get(&job.file());
        !args.check && image.is_some_and(|i| i.input == job.input) && data_file(&folder, &job.file()).is_file()
    };
    let stale: Vec<&Job> = all.iter().filter(wanted).filter(|j| !current(j)).collect();
    if args.fresh {
        // A source without any image is one that has not been built yet: its kernels are compiled by NVRTC at run time.
        let (none, files): (Vec<&Job>, Vec<&Job>) =
            stale.into_iter().partition(|j| old.images.values().all(|i| i.source != j.source.name));
        let mut sources: Vec<_> = none.iter().map(|job| job.source.name).collect();
        sources.dedup();
        if !sources.is_empty() {
            println!("no images in the package yet, compiled at run time: {}", sources.join(", "));
        }
        let files: Vec<_> = files.iter().map(|job| job.file()).collect();
        ensure!(
            files.is_empty(),
            "run `cargo xtask kernels` and commit the result; changed:\n  {}",
            files.join("\n  ")
        );
        return within_budget(&old);
    }
    let built = if stale.is_empty() { BTreeMap::new() } else { compile(&sh, home.root(), &stale, &old)? };
    println!("{}", summary(&built));
    if args.check {
        compare(&folder, &old, &all, &built, args.only.is_empty())?;
        within_budget(&old)
    } else {
        within_budget(&write(&sh, &folder, old, &all, built)?)
    }
}

/// Fails where an entry takes more of a multiprocessor than its source declares, or has registers in memory.
fn within_budget(manifest: &Manifest) -> Result<()> {
    let over: Vec<_> = manifest.images.values().flat_map(Image::over_budget).collect();
    ensure!(over.is_empty(), "{} entries take too much:\n  {}", over.len(), over.join("\n  "));
    Ok(())
}

/// One for each image.
fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    for source in images::sources() {
        for dtype in source.dtypes() {
            jobs.extend(images::targets(source).into_iter().map(|target| Job::new(source, dtype, target)));
        }
    }
    jobs
}

fn data_file(folder: &Path, file: &str) -> PathBuf {
    folder.join(format!("{file}.zst"))
}

fn read_manifest(folder: &Path) -> Result<Manifest> {
    match std::fs::read_to_string(folder.join("manifest.json")) {
        Ok(text) => Manifest::from_json(&text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Manifest::default()),
        Err(e) => Err(e).context("kernels/gen/manifest.json"),
    }
}

/// Runs the jobs on all processors.
fn compile(sh: &Shell, root: &Path, jobs: &[&Job], old: &Manifest) -> Result<BTreeMap<String, Built>> {
    let path = wheel::library(sh, root)?;
    let nvrtc = Nvrtc::load(&path).map_err(|e| anyhow::anyhow!("{e}"))?;
    let (major, minor) = nvrtc.version();
    ensure!(wheel::VERSION.starts_with(&format!("{major}.{minor}.")), "{nvrtc:?}, but {} is pinned", wheel::VERSION);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let progress = indicatif::ProgressBar::new(jobs.len() as u64)
        .with_style(indicatif::ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}")?);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    progress.set_message(job.file());
                    let built = job.build_like(nvrtc, old);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((job.file(), built));
                    progress.inc(1);
                }
            });
        }
    });
    progress.finish_and_clear();
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.into_iter().map(|(file, built)| Ok((file, built?))).collect()
}

fn summary(built: &BTreeMap<String, Built>) -> String {
    let row = |(file, b): (&String, &Built)| {
        let most = |f: fn(&Resources) -> u32| b.image.entries.values().map(f).max().unwrap_or(0).to_string();
        let entries = b.image.entries.len().max(b.parameters.len()).to_string();
        let (bytes, compressed) = (b.image.bytes.to_string(), b.image.compressed.to_string());
        vec![
            file.clone(),
            entries,
            most(|r| r.registers),
            most(|r| r.spill_stores),
            most(|r| r.shared),
            bytes,
            compressed,
        ]
    };
    let header = ["image", "entries", "registers", "spilled", "shared", "bytes", "compressed"];
    report::table(&header, 1, built.iter().map(row).collect()).to_string()
}

/// Writes what was built, and removes what is no longer wanted.
fn write(sh: &Shell, folder: &Path, old: Manifest, all: &[Job], built: BTreeMap<String, Built>) -> Result<Manifest> {
    let mut new = Manifest { compiler: format!("NVRTC {}", wheel::VERSION), ..Manifest::default() };
    let entries: Vec<String> = images::sources().flat_map(|s| (s.entries)()).map(|e| e.name(WAVE)).collect();
    new.parameters = old.parameters.into_iter().filter(|(name, _)| entries.contains(name)).collect();
    sh.create_dir(folder)?;
    let kept = old.images.into_iter().filter(|(file, _)| all.iter().any(|job| job.file() == *file));
    new.images.extend(kept);
    for (file, b) in built {
        sh.write_file(data_file(folder, &file), &b.compressed)?;
        new.images.insert(file, b.image);
        new.parameters.extend(b.parameters);
    }
    for path in sh.read_dir(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.strip_suffix(".zst").is_some_and(|file| !new.images.contains_key(file)) {
            sh.remove_path(path)?;
        }
    }
    sh.write_file(folder.join("manifest.json"), new.to_json()?)?;
    sh.write_file(folder.join("index.rs"), new.to_index()?)?;
    let total: usize = new.images.values().map(|i| i.compressed).sum();
    println!("{} images, {} KiB in the crate", new.images.len(), total / 1024);
    Ok(new)
}

/// Fails where the committed images are not what the sources give.
fn compare(folder: &Path, old: &Manifest, all: &[Job], built: &BTreeMap<String, Built>, whole: bool) -> Result<()> {
    let mut wrong = Vec::new();
    for (file, b) in built {
        match old.images.get(file) {
            None => wrong.push(format!("{file} is not committed")),
            Some(image) if *image != b.image => wrong.push(format!("{file} differs from its line in the manifest")),
            Some(_) if std::fs::read(data_file(folder, file)).ok().as_ref() != Some(&b.compressed) => {
                wrong.push(format!("{file}.zst is not what its source gives"));
            }
            Some(_) => {}
        }
    }
    let extra = old.images.keys().filter(|file| whole && !all.iter().any(|job| job.file() == **file));
    wrong.extend(extra.map(|file| format!("{file} has no source any more")));
    let parameters = built.values().flat_map(|b| &b.parameters);
    let differ = parameters.filter(|(name, bytes)| old.parameters.get(*name) != Some(bytes));
    wrong.extend(differ.map(|(name, _)| format!("{name}: its parameter differs from the manifest")));
    if whole && std::fs::read_to_string(folder.join("index.rs")).ok() != old.to_index().ok() {
        wrong.push("index.rs does not fit the manifest".into());
    }
    ensure!(wrong.is_empty(), "run `cargo xtask kernels` and commit the result:\n  {}", wrong.join("\n  "));
    println!("{} images are what their sources give", built.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mhc_core::{AnyOp, Level, gpu::GpuCaps};

    use super::*;

    fn committed() -> Manifest {
        read_manifest(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FOLDER)).unwrap()
    }

    /// Devices that take the portable kernels alone, and all of the tuned ones.
    fn devices() -> [GpuCaps; 2] {
        let caps = |arch: &str, tuned| GpuCaps {
            arch: arch.into(),
            wave: WAVE,
            units: 132,
            shared_per_block: 232_448,
            max_threads: 1024,
            tuned,
        };
        [caps("sm_80", Vec::new()), caps("sm_90", images::tuned(90))]
    }

    #[test]
    fn every_source_has_an_image_for_every_target() {
        let manifest = committed();
        let missing: Vec<_> = jobs().iter().map(Job::file).filter(|file| !manifest.images.contains_key(file)).collect();
        assert!(missing.is_empty(), "run `cargo xtask kernels`: there is no {}", missing.join(", "));
    }

    /// What any plan launches is embedded. The cells that a launch passes are copied into the entry's one parameter: they must be of
    /// one size.
    #[test]
    fn every_launch_has_an_entry_and_as_many_arguments_as_that_takes() {
        let manifest = committed();
        let mut missing = BTreeSet::new();
        for (case, caps) in AnyOp::all_cases(Level::Full).iter().flat_map(|c| devices().map(|caps| (c, caps))) {
            for act in DType::ALL {
                let plan = case.op.plan(&case.dims, act, &caps).unwrap();
                let fallback = plan.fallback.iter().flat_map(|f| &f.launches);
                for launch in plan.launches.iter().chain(fallback) {
                    let name = launch.entry.name(WAVE);
                    let Some(&bytes) = manifest.parameters.get(&name) else {
                        missing.insert(name);
                        continue;
                    };
                    // A tensor map is aligned to 64 bytes, and so the struct that has one.
                    let maps = launch.args.iter().any(|arg| arg.cells() > 1);
                    let align = if maps { 64 } else { 8 };
                    assert_eq!((launch.cells() * 8).next_multiple_of(align), bytes as usize, "{name}");
                }
            }
        }
        assert!(missing.is_empty(), "run `cargo xtask kernels`: launched, but not embedded: {missing:?}");
    }
}
