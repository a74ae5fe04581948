//! Reading: the header when a file is opened, a tensor's bytes when it is wanted.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use mhc_core::{DType, Result};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::{Format, error, format};
use crate::{HostHead, HostParams};

/// No real header is longer; a file of another kind often seems to promise one.
const MAX_HEADER: u64 = 100 << 20;

/// An open safetensors file. Only its header is in memory.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    file: File,
    /// Where the tensors' bytes begin.
    start: u64,
    metadata: Metadata,
}

impl Checkpoint {
    /// Opens a file and checks its header against its size. [`Error::Checkpoint`](mhc_core::Error::Checkpoint) if it cannot be read, is not
    /// safetensors, or is truncated.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let wrong = |why: String| error(&path, why);
        let mut file = File::open(&path).map_err(|e| wrong(format!("cannot be opened: {e}")))?;
        let bytes = file.metadata().map_err(|e| wrong(format!("cannot be read: {e}")))?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| wrong(format!("is not safetensors: it has {bytes} bytes")))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER {
            return Err(wrong(format!("is not safetensors: it promises a header of {length} bytes")));
        }
        if length > bytes - 8 {
            return Err(wrong(format!("is truncated: the header has {length} bytes, the file {bytes}")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(|e| wrong(format!("its header cannot be read: {e}")))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| wrong(format!("its header is not valid: {e}")))?;
        let want = 8 + length + metadata.data_len() as u64;
        if bytes != want {
            let how = if bytes < want { "is truncated" } else { "has bytes that belong to no tensor" };
            return Err(wrong(format!("{how}: its header describes {want} bytes, the file has {bytes}")));
        }
        Ok(Self { path, file, start: 8 + length, metadata })
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.metadata.offset_keys();
        names.sort_unstable();
        names
    }

    /// The parameters of one layer, in the orientation of the format. n and C follow from the shapes.
    ///
    /// [`Error::Checkpoint`](mhc_core::Error::Checkpoint) names the tensor that is missing or wrong, what was wanted and what came.
    pub fn layer(&mut self, format: Format, prefix: &str) -> Result<HostParams> {
        let params = match format {
            Format::Mhc => format::mhc::read(self, prefix),
            Format::DeepSeekV4 => format::deepseek::read(self, prefix),
            Format::MhcCu => format::mhc_cu::read(self, prefix),
            Format::Liger => format::liger::read(self, prefix),
        }?;
        params.check().map_err(|e| error(&self.path, format!("layer `{prefix}`: {e}")))?;
        Ok(params)
    }

    /// The parameters of a head: `fn [n, n·C]`, `scale [1]`, `base [n]` behind the prefix, as DeepSeek-V4 has them behind `hc_head_`.
    pub fn head(&mut self, prefix: &str) -> Result<HostHead> {
        let head = format::deepseek::read_head(self, prefix)?;
        head.check().map_err(|e| error(&self.path, format!("head `{prefix}`: {e}")))?;
        Ok(head)
    }

    /// What is called `name` in the file's own table of strings.
    pub(super) fn note(&self, name: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(name).map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name).or_else(|| self.metadata.info(&format!("{name}.weight")))
    }

    /// The shape of a tensor that must be there. `want` is for the message.
    pub(super) fn shape(&self, name: &str, want: &str) -> Result<Vec<usize>> {
        self.find(name).map(|info| info.shape.clone()).ok_or_else(|| self.missing(name, want))
    }

    fn missing(&self, name: &str, want: &str) -> mhc_core::Error {
        // What most likely was meant: the names that share the longest beginning with the one that is missing.
        let common = |other: &str| name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let mut near = self.names();
        near.sort_by_key(|other| core::cmp::Reverse(common(other)));
        near.truncate(6);
        error(
            &self.path,
            format!("tensor `{name}` {want} is missing; the nearest of its names are {}", near.join(", ")),
        )
    }

    /// The error of a tensor that is there and is not what was wanted.
    pub(super) fn wrong(&self, name: &str, want: &str, got: impl core::fmt::Display) -> mhc_core::Error {
        error(&self.path, format!("tensor `{name}` must be {want}, but is {got}"))
    }

    /// The error of a layer that is not there at all.
    pub(super) fn fail(&self, why: impl core::fmt::Display) -> mhc_core::Error {
        error(&self.path, why)
    }

    /// The elements of a tensor of a certain shape, widened to f32.
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let want = format!("{shape:?} of f32, bf16 or f16");
        let info = self.find(name).ok_or_else(|| self.missing(name, &want))?;
        let dtype = match info.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::BF16 => Some(DType::Bf16),
            Dtype::F16 => Some(DType::F16),
            _ => None,
        };
        let Some(dtype) = dtype.filter(|_| info.shape == shape) else {
            return Err(self.wrong(name, &want, format!("{:?} of {:?}", info.shape, info.dtype)));
        };
        let (begin, end) = info.data_offsets;
        let mut bytes = vec![0; end - begin];
        let place = SeekFrom::Start(self.start + begin as u64);
        let read = self.file.seek(place).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|e| error(&self.path, format!("tensor `{name}` cannot be read: {e}")))?;
        Ok(dtype.decode(&bytes).into_iter().map(|v| v as f32).collect())
    }

    /// One number, which may have one axis or none.
    pub(super) fn scalar(&mut self, name: &str) -> Result<f32> {
        let shape = self.shape(name, "[1] or []")?;
        if shape.iter().product::<usize>() != 1 {
            return Err(self.wrong(name, "[1] or []", format!("{shape:?}")));
        }
        Ok(self.tensor(name, &shape)?[0])
    }
}
