//! AMD's images: clang for AMDGCN, which the Zig project publishes for Python. No ROCm, no GPU.

mod assembly;
mod isa;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use mhc_core::{DType, gpu::Source};
use mhc_hip::images;
use serde::{Deserialize, Serialize};
use xshell::Shell;

use self::isa::Rules;
use super::{
    vendor::{self, Compiled, Job, Taken, Vendor},
    wheel::Wheel,
};

const WHEEL: Wheel = Wheel {
    package: "ziglang",
    version: "0.17.0",
    megabytes: 101,
    file: ("manylinux_2_12_x86_64", "97079827064a7492cce5541ceb438ae8003ce1e54e399676da2d62fb7a5dc08b"),
    folder: "zig",
    wanted: "ziglang/zig",
    variable: "MHC_ZIG",
};

/// What an entry takes of a compute unit, and what it is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Vector registers of a lane; on CDNA with the accumulators.
    pub vgprs: u32,
    /// Scalar registers of a wave.
    pub sgprs: u32,
    /// Bytes of static shared memory of a block.
    pub lds: u32,
    /// Bytes of a lane's memory: arrays that are indexed at run time, and registers that did not fit.
    pub scratch: u32,
    /// Vector registers that did not fit.
    pub spills: u32,
    /// The most threads of a block.
    pub threads: u32,
    /// Waves that a SIMD has room for.
    pub waves: u32,
    /// Instructions by kind.
    pub mix: Mix,
}

/// Instructions of an entry, as they stand in its code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    /// Arithmetic of lanes.
    pub vector: u32,
    /// Products of matrices.
    pub matrix: u32,
    /// Of waves.
    pub scalar: u32,
    /// Loads and stores of memory.
    pub memory: u32,
    /// Those of 16 bytes a lane among them.
    pub wide: u32,
    /// Shared memory and its crossbar.
    pub local: u32,
}

impl Taken for Resources {
    fn excess(&self, _: &str) -> Option<String> {
        let Self { scratch, spills, .. } = *self;
        (scratch > 0 || spills > 0).then(|| format!("{scratch} bytes of a lane's memory, {spills} registers spilled"))
    }

    fn summary(&self) -> [u32; 3] {
        [self.vgprs, self.scratch, self.lds]
    }
}

/// Clang, the assembler and the linker.
pub struct Hip {
    zig: PathBuf,
    rules: Rules,
    scratch: PathBuf,
}

impl Vendor for Hip {
    type Taken = Resources;
    const FOLDER: &'static str = "mhc-hip/kernels/gen";

    fn compiler() -> String {
        format!("clang of {} {}", WHEEL.package, WHEEL.version)
    }

    fn jobs() -> Vec<Job> {
        vendor::jobs(images::sources(), images::targets, job)
    }

    fn open(sh: &Shell, root: &Path) -> Result<Self> {
        let zig = WHEEL.get(sh, root)?;
        make_executable(&zig)?;
        let rules = root.join("mhc-hip/kernels/isa.txt");
        let rules = Rules::read(&sh.read_file(&rules)?).with_context(|| rules.display().to_string())?;
        Ok(Self { zig, rules, scratch: root.join("target/xtask/hip") })
    }

    /// Targets of one family that are given the same code differ in how that is packed alone: it is generated once.
    fn compile(&self, jobs: &[&Job]) -> Result<Vec<Compiled<Resources>>> {
        let mut codes: BTreeMap<&str, String> = BTreeMap::new();
        let mut compiled = Vec::new();
        for job in jobs {
            let code = images::code(&job.target);
            if !codes.contains_key(code) {
                codes.insert(code, self.generate(job, code)?);
            }
            compiled.push(self.assemble(job, code, &codes[code]).with_context(|| job.file())?);
        }
        Ok(compiled)
    }
}

fn job(source: &'static Source, dtype: DType, target: String) -> Job {
    Job {
        source,
        dtype,
        wave: images::wave(&target),
        options: [images::options(images::code(&target)), vec![object_version(&target)]].concat(),
        headers: images::headers(source),
        extension: "hsaco",
        family: images::family(&target).into(),
        target,
    }
}

fn object_version(target: &str) -> String {
    format!("-mcode-object-version={}", images::object_version(target))
}

impl Hip {
    /// A folder with the sources of a job.
    fn folder(&self, job: &Job) -> Result<PathBuf> {
        let folder = self.scratch.join(job.frame());
        std::fs::create_dir_all(&folder)?;
        job.headers.iter().try_for_each(|(name, text)| std::fs::write(folder.join(name), text))?;
        std::fs::write(folder.join(format!("{}.hip", job.source.name)), job.text())?;
        Ok(folder)
    }

    /// Assembly for a target.
    fn generate(&self, job: &Job, code: &str) -> Result<String> {
        let folder = self.folder(job)?;
        let (input, output) = (format!("{}.hip", job.source.name), format!("{code}.s"));
        let fixed = ["-x", "hip", "--cuda-device-only", "-nogpuinc", "-nogpulib", "-fuse-cuid=none", "-w", "-S"];
        let mut command = Command::new(&self.zig);
        command.current_dir(&folder).arg("clang").args(fixed).args(images::options(code)).arg(object_version(code));
        run(command.args(["-I", ".", "-o", &output, &input]))?;
        std::fs::read_to_string(folder.join(&output)).context(output)
    }

    /// The code object of a target from assembly for `code`, after a look at what that does.
    fn assemble(&self, job: &Job, code: &str, assembly: &str) -> Result<Compiled<Resources>> {
        let kernels = assembly::parse(assembly)?;
        let broken: Vec<_> = kernels.iter().flat_map(|k| self.rules.broken(k, &job.target)).collect();
        ensure!(broken.is_empty(), "{}", broken.join("\n"));
        let folder = self.folder(job)?;
        let file = |extension: &str| format!("{}.out.{extension}", job.target);
        let version = images::object_version(&job.target);
        std::fs::write(folder.join(file("s")), assembly::retarget(assembly, code, &job.target, version)?)?;
        let machine = format!("-mcpu={}", job.target);
        let mut command = Command::new(&self.zig);
        command.current_dir(&folder).args(["clang", "-target", "amdgcn-amd-amdhsa", &machine]);
        run(command.args([&object_version(&job.target), "-c", "-o", &file("o"), &file("s")]))?;
        let mut command = Command::new(&self.zig);
        command.current_dir(&folder).args(["ld.lld", "-shared", "-o", &file("hsaco"), &file("o")]);
        run(&mut command)?;
        let image = std::fs::read(folder.join(file("hsaco")))?;
        let parameters = kernels.iter().map(|k| (k.name.clone(), k.parameter)).collect();
        let entries = kernels.into_iter().map(|k| (k.name, k.resources)).collect();
        Ok(Compiled { image, entries, parameters })
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Archives of Python's packages do not say what is a program.
#[cfg(unix)]
fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut permissions = std::fs::metadata(file).with_context(|| file.display().to_string())?.permissions();
    if permissions.mode() & 0o111 == 0 {
        permissions.set_mode(permissions.mode() | 0o755);
        std::fs::set_permissions(file, permissions)?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result<()> {
    Ok(())
}
