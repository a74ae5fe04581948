//! The real activations.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use mhc_ops::{DType, f16};
use safetensors::{Dtype, SafeTensors};

/// Embedding and sub-layer outputs of a pretrained transformer on a text.
pub struct Activations {
    /// Tokens taken.
    pub tokens: usize,
    /// The model's hidden size.
    pub channels: usize,
    /// `[tokens, channels]`.
    pub embedding: Vec<f64>,
    /// `[tokens, channels]` each, in the model's order.
    pub sub_layers: Vec<Vec<f64>>,
}

impl Activations {
    /// The first `tokens` tokens of the file, or all of them, rounded to the streams' type.
    pub fn load(file: &Path, tokens: Option<usize>, act: DType) -> Result<Self> {
        let bytes = fs::read(file).with_context(|| file.display().to_string())?;
        let file = SafeTensors::deserialize(&bytes).with_context(|| file.display().to_string())?;
        let embedding = file.tensor("embedding")?;
        let &[there, channels] = embedding.shape() else { bail!("`embedding` must have two axes") };
        let tokens = tokens.unwrap_or(there);
        ensure!((1..=there).contains(&tokens), "--tokens must be 1..={there}, the tokens that were recorded");
        let read = |name: &str| {
            let tensor = file.tensor(name)?;
            ensure!(tensor.dtype() == Dtype::F16, "`{name}` must be f16, but is {:?}", tensor.dtype());
            ensure!(tensor.shape() == [there, channels], "`{name}` has shape {:?}", tensor.shape());
            let values = tensor.data().as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64());
            Ok(values.take(tokens * channels).map(|v| act.round(v)).collect::<Vec<_>>())
        };
        let count = file.names().iter().filter(|n| n.starts_with("sublayer.")).count();
        let sub_layers = (0..count).map(|l| read(&format!("sublayer.{l}"))).collect::<Result<_>>()?;
        Ok(Self { tokens, channels, embedding: read("embedding")?, sub_layers })
    }
}
