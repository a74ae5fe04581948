//! Writing: whole files only.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use mhc_core::{DType, Error, Result};
use safetensors::{Dtype, View};

use super::{Format, error, format};
use crate::{HostHead, HostParams};

/// Collects layers and writes them as one safetensors file.
#[derive(Clone, Debug, Default)]
pub struct CheckpointWriter {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    notes: HashMap<String, String>,
}

impl CheckpointWriter {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer, its n·n block in the orientation of the format whatever the one of `params` is.
    ///
    /// [`Error::Checkpoint`] if the format has no place for something that the layer has, or a name is taken.
    pub fn layer(mut self, format: Format, prefix: &str, params: &HostParams) -> Result<Self> {
        params.check()?;
        let params = params.clone().oriented(format.orientation());
        let mut to = Tensors { writer: &mut self, prefix };
        match format {
            Format::Mhc => format::mhc::write(&mut to, &params),
            Format::DeepSeekV4 => format::deepseek::write(&mut to, &params),
            Format::MhcCu => format::mhc_cu::write(&mut to, &params),
            Format::Liger => format::liger::write(&mut to, &params),
        }?;
        Ok(self)
    }

    /// Adds a head as `fn`, `scale`, `base` behind the prefix. [`Error::Checkpoint`] if a name is taken.
    pub fn head(mut self, prefix: &str, head: &HostHead) -> Result<Self> {
        head.check()?;
        format::deepseek::write_head(&mut Tensors { writer: &mut self, prefix }, head)?;
        Ok(self)
    }

    /// Writes the file. It appears under its name only when it is complete; one that was there before is then replaced.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let tensors = self.tensors.iter().map(|(name, (shape, data))| (name, F32 { shape, data }));
        let notes = (!self.notes.is_empty()).then(|| self.notes.clone());
        let bytes = safetensors::serialize(tensors, notes).map_err(|e| error(path, format!("cannot be made: {e}")))?;
        let partial = beside(path);
        let written = File::create(&partial).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.and_then(|()| fs::rename(&partial, path)).map_err(|e| {
            // Best effort: what matters is that `path` is as it was.
            let _ = fs::remove_file(&partial);
            error(path, format!("cannot be written: {e}"))
        })
    }
}

/// A name of its own in the same directory, from which renaming is atomic.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    path.with_file_name(name)
}

/// Where a format puts the tensors of one layer.
pub(super) struct Tensors<'a> {
    writer: &'a mut CheckpointWriter,
    prefix: &'a str,
}

impl Tensors<'_> {
    /// Adds a tensor.
    pub fn add(&mut self, name: &str, shape: &[usize], data: Vec<f32>) -> Result<()> {
        let name = format!("{}{name}", self.prefix);
        if self.writer.tensors.contains_key(&name) {
            return Err(Error::Checkpoint(format!(
                "tensor `{name}` is there twice; give each layer a prefix of its own"
            )));
        }
        self.writer.tensors.insert(name, (shape.to_vec(), data));
        Ok(())
    }

    /// Adds a string to the file's table.
    pub fn note(&mut self, name: &str, value: String) {
        self.writer.notes.insert(format!("{}{name}", self.prefix), value);
    }

    /// The error of a layer that the format cannot hold.
    pub fn fail(&self, why: impl core::fmt::Display) -> Error {
        Error::Checkpoint(format!("layer `{}`: {why}", self.prefix))
    }

    /// An error if the layer has more than a projection and biases, and it is not in `places`.
    pub fn only(&self, p: &HostParams, format: Format, places: &[&str]) -> Result<()> {
        let has = [
            ("static", p.projection.is_none(), "a static layer"),
            ("w", p.w.is_some(), "`w`, the RMSNorm weight of the sub-layer's input"),
            ("norm_weight", p.projection.as_ref().is_some_and(|p| p.norm_weight.is_some()), "`norm_weight`"),
        ];
        match has.into_iter().find(|(name, present, _)| *present && !places.contains(name)) {
            None => Ok(()),
            Some((_, _, what)) => Err(self.fail(format!("{} checkpoints have no place for {what}", format.name()))),
        }
    }
}

/// A tensor as safetensors wants to see it.
struct F32<'a> {
    shape: &'a [usize],
    data: &'a [f32],
}

impl View for F32<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            return Cow::Borrowed(bytemuck::must_cast_slice(self.data));
        }
        Cow::Owned(self.data.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.data.len() * DType::F32.size()
    }
}
