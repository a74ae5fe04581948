//! From device sources to what a crate embeds: what must be compiled, what came of it, and whether that is what is committed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest, Sha256};
use xshell::Shell;

use super::{
    Args,
    manifest::{Image, Manifest},
    vendor::{Compiled, Job, Taken, Vendor},
    wheel,
};
use crate::{home::Home, report};

/// What came of a job.
struct Built<T> {
    line: Image<T>,
    image: Vec<u8>,
    parameters: BTreeMap<String, u32>,
}

type All<T> = BTreeMap<String, Built<T>>;

/// The images of one vendor.
pub fn run<V: Vendor>(args: &Args, home: &Home) -> Result<()> {
    let folder = home.checkout("kernels")?.join(V::FOLDER);
    let sh = home.shell()?;
    let old = Manifest::<V::Taken>::read(&folder)?;
    let all = V::jobs();
    let wanted = |job: &&Job| args.only.is_empty() || args.only.iter().any(|n| n == job.source.name);
    let input = |job: &Job| (job.file(), job.input::<V>());
    let inputs: BTreeMap<String, String> = all.iter().map(input).collect();
    let current = |job: &Job| {
        let image = old.images.get(&job.file()).filter(|i| i.input == inputs[&job.file()]);
        image.is_some_and(|i| i.frame == job.frame()) && data_file(&folder, &job.frame()).is_file()
    };
    // Who changes one image of a frame needs the others.
    let changed: BTreeSet<String> = all.iter().filter(|j| args.check || !current(j)).map(Job::frame).collect();
    let stale: Vec<&Job> = all.iter().filter(wanted).filter(|j| changed.contains(&j.frame())).collect();
    if args.fresh {
        return fresh(&old, &stale);
    }
    let (built, failed) =
        if stale.is_empty() { Default::default() } else { compile::<V>(&V::open(&sh, home.root())?, &stale, &inputs)? };
    println!("{}", summary(&built));
    let failed = || if failed.is_empty() { Ok(()) } else { Err(anyhow!("{}", failed.join("\n"))) };
    if args.check {
        failed()?;
        compare(&folder, &old, &all, &built, args.only.is_empty())?;
        within_budget(&old)
    } else {
        // What did compile need not be compiled again.
        let new = write::<V>(&sh, &folder, old, &all, built)?;
        failed()?;
        within_budget(&new)
    }
}

/// Fails where an image was compiled from another source; compiles nothing.
fn fresh<T: Taken>(old: &Manifest<T>, stale: &[&Job]) -> Result<()> {
    // A source without any image is one that has not been built yet: its kernels are compiled at run time.
    let (none, files): (Vec<&Job>, Vec<&Job>) =
        stale.iter().copied().partition(|j| old.images.values().all(|i| i.source != j.source.name));
    let sources: BTreeSet<_> = none.iter().map(|job| job.source.name).collect();
    if !sources.is_empty() {
        let sources = sources.into_iter().collect::<Vec<_>>().join(", ");
        println!("no images in the package yet, compiled at run time: {sources}");
    }
    let files: Vec<_> = files.iter().map(|job| job.file()).collect();
    ensure!(files.is_empty(), "run `cargo xtask kernels` and commit the result; changed:\n  {}", files.join("\n  "));
    within_budget(old)
}

/// Fails where an entry takes more than it may, or has registers in memory.
fn within_budget<T: Taken>(manifest: &Manifest<T>) -> Result<()> {
    let over = manifest.over_budget();
    ensure!(over.is_empty(), "{} entries take too much:\n  {}", over.len(), over.join("\n  "));
    Ok(())
}

pub fn data_file(folder: &Path, frame: &str) -> PathBuf {
    folder.join(format!("{frame}.zst"))
}

/// Runs the jobs on all processors, a frame at a time; what came of them, and why some failed.
fn compile<V: Vendor>(
    vendor: &V,
    jobs: &[&Job],
    inputs: &BTreeMap<String, String>,
) -> Result<(All<V::Taken>, Vec<String>)> {
    let frames: Vec<_> = frames(jobs.iter().copied()).into_iter().collect();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let progress = indicatif::ProgressBar::new(frames.len() as u64)
        .with_style(indicatif::ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}")?);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                while let Some((frame, jobs)) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
                    progress.set_message(frame.clone());
                    let built = build(vendor, jobs, inputs).with_context(|| frame.clone());
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(built);
                    progress.inc(1);
                }
            });
        }
    });
    progress.finish_and_clear();
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failed = done.iter().filter_map(|built| Some(format!("{:#}", built.as_ref().err()?))).collect();
    Ok((done.into_iter().flatten().flatten().collect(), failed))
}

/// The images of a frame.
fn build<V: Vendor>(vendor: &V, jobs: &[&Job], inputs: &BTreeMap<String, String>) -> Result<All<V::Taken>> {
    let compiled = vendor.compile(jobs)?;
    jobs.iter().zip(compiled).map(|(job, compiled)| line(job, compiled, &inputs[&job.file()])).collect()
}

fn line<T>(job: &Job, compiled: Compiled<T>, input: &str) -> Result<(String, Built<T>)> {
    let (file, Compiled { image, entries, parameters }) = (job.file(), compiled);
    let wanted = job.entries();
    ensure!(
        (entries.is_empty() || wanted.iter().eq(entries.keys())) && wanted.iter().eq(parameters.keys()),
        "{file} has entries {:?}, but {wanted:?} are listed",
        parameters.keys()
    );
    let line = Image {
        source: job.source.name.into(),
        dtype: job.dtype.name().into(),
        target: job.target.clone(),
        input: input.into(),
        image: wheel::hex(&Sha256::digest(&image)),
        bytes: image.len(),
        frame: job.frame(),
        offset: 0,
        compressed: 0,
        entries,
    };
    Ok((file, Built { line, image, parameters }))
}

fn summary<T: Taken>(built: &All<T>) -> String {
    let row = |(file, b): (&String, &Built<T>)| {
        let most = |i: usize| b.line.entries.values().map(|e| e.summary()[i]).max().unwrap_or(0).to_string();
        let entries = b.parameters.len().to_string();
        vec![file.clone(), entries, most(0), most(1), most(2), b.line.bytes.to_string()]
    };
    let header = ["image", "entries", "registers", "spilled", "shared", "bytes"];
    report::table(&header, 1, built.iter().map(row).collect()).to_string()
}

/// The jobs of each frame, in their order.
fn frames<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> BTreeMap<String, Vec<&'a Job>> {
    let mut frames: BTreeMap<String, Vec<&Job>> = BTreeMap::new();
    jobs.into_iter().for_each(|job| frames.entry(job.frame()).or_default().push(job));
    frames
}

/// Writes what was built, and removes what is no longer wanted.
fn write<V: Vendor>(
    sh: &Shell,
    folder: &Path,
    old: Manifest<V::Taken>,
    all: &[Job],
    mut built: All<V::Taken>,
) -> Result<Manifest<V::Taken>> {
    let names: BTreeSet<String> = all.iter().flat_map(Job::entries).collect();
    let frames = frames(all);
    let kept = old.images.into_iter().filter(|(_, image)| frames.contains_key(&image.frame));
    let mut new = Manifest {
        compiler: V::compiler(),
        images: kept.collect(),
        parameters: old.parameters.into_iter().filter(|(name, _)| names.contains(name)).collect(),
    };
    sh.create_dir(folder)?;
    for (frame, jobs) in &frames {
        let files: Vec<_> = jobs.iter().map(|job| job.file()).collect();
        if !files.iter().any(|file| built.contains_key(file)) {
            continue;
        }
        new.images.retain(|_, image| image.frame != *frame);
        let mut whole = Vec::new();
        for file in &files {
            let b = built.remove(file).with_context(|| format!("{file} was not built with the others of its frame"))?;
            new.images.insert(file.clone(), Image { offset: whole.len(), ..b.line });
            new.parameters.extend(b.parameters);
            whole.extend(b.image);
        }
        let compressed = zstd::bulk::compress(&whole, 22).context("compressing an image")?;
        if let Some(first) = new.images.get_mut(&files[0]) {
            first.compressed = compressed.len();
        }
        sh.write_file(data_file(folder, frame), &compressed)?;
    }
    for path in sh.read_dir(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.strip_suffix(".zst").is_some_and(|frame| !frames.contains_key(frame)) {
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
fn compare<T: Taken>(folder: &Path, old: &Manifest<T>, all: &[Job], built: &All<T>, whole: bool) -> Result<()> {
    let mut wrong = Vec::new();
    for (frame, jobs) in frames(all) {
        let files: Vec<_> = jobs.iter().map(|job| job.file()).collect();
        // A check of some sources builds none of the others.
        let Some(made) = files.iter().map(|file| built.get(file)).collect::<Option<Vec<_>>>() else { continue };
        let mut offset = 0;
        for (file, b) in files.iter().zip(&made) {
            match old.images.get(file) {
                None => wrong.push(format!("{file} is not committed")),
                Some(image) => {
                    let line = Image { offset, compressed: image.compressed, ..b.line.clone() };
                    if *image != line {
                        wrong.push(format!("{file} differs from its line in the manifest"));
                    }
                }
            }
            offset += b.image.len();
        }
        let committed = std::fs::read(data_file(folder, &frame)).context(frame.clone());
        let unpacked = committed.and_then(|data| Ok(zstd::bulk::decompress(&data, offset)?));
        let made: Vec<u8> = made.iter().flat_map(|b| b.image.iter().copied()).collect();
        if !unpacked.is_ok_and(|bytes| bytes == made) {
            wrong.push(format!("{frame}.zst is not what its sources give"));
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
    use super::*;
    use crate::kernels::hip::{Hip, Resources};

    /// A frame of two images as it is committed, and what comes of compiling them again, with one thing changed.
    fn said(change: impl FnOnce(&mut All<Resources>, &Path)) -> String {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("mhc-kernels-test-{}-{run}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let jobs: Vec<Job> = Hip::jobs().into_iter().filter(|j| j.frame() == "sum.f32.gfx12.hsaco").collect();
        assert_eq!(jobs.len(), 3, "gfx1200, gfx1201, gfx12-generic");
        let mut built: All<Resources> = BTreeMap::new();
        for job in &jobs {
            let name = job.entries().remove(0);
            let entries = BTreeMap::from([(name.clone(), Resources { vgprs: 21, waves: 16, ..Default::default() })]);
            let compiled =
                Compiled { image: job.target.bytes().collect(), entries, parameters: BTreeMap::from([(name, 40)]) };
            built.extend([line(job, compiled, "input").unwrap()]);
        }
        let mut old = Manifest::<Resources>::default();
        let mut whole = Vec::new();
        for job in &jobs {
            let b = &built[&job.file()];
            old.images.insert(job.file(), Image { offset: whole.len(), ..b.line.clone() });
            old.parameters.extend(b.parameters.clone());
            whole.extend(&b.image);
        }
        std::fs::write(data_file(&folder, &jobs[0].frame()), zstd::bulk::compress(&whole, 3).unwrap()).unwrap();
        change(&mut built, &folder);
        let result = compare(&folder, &old, &jobs, &built, false);
        std::fs::remove_dir_all(folder).unwrap();
        result.map_or_else(|e| e.to_string(), |()| "the same".into())
    }

    #[test]
    fn whatever_differs_from_what_is_committed_is_found() {
        assert_eq!(said(|_, _| {}), "the same");
        let second = "sum.f32.gfx1201.hsaco";
        let bytes = said(|built, _| built.get_mut(second).unwrap().image[0] ^= 1);
        assert!(bytes.contains("sum.f32.gfx12.hsaco.zst is not what its sources give"), "{bytes}");
        let registers =
            said(|built, _| built.get_mut(second).unwrap().line.entries.values_mut().for_each(|e| e.vgprs += 1));
        assert!(registers.contains("sum.f32.gfx1201.hsaco differs from its line"), "{registers}");
        let parameter = said(|built, _| built.get_mut(second).unwrap().parameters.values_mut().for_each(|p| *p += 8));
        assert!(parameter.contains("its parameter differs"), "{parameter}");
        let gone = said(|_, folder| std::fs::remove_file(data_file(folder, "sum.f32.gfx12.hsaco")).unwrap());
        assert!(gone.contains("sum.f32.gfx12.hsaco.zst is not what its sources give"), "{gone}");
    }
}
