//! What is embedded and what it was made of: `mhc-cuda/kernels/gen/manifest.json`, and the index that the crate includes.

use std::{collections::BTreeMap, fmt::Write};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::resources::Resources;

/// The manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name and version.
    pub compiler: String,
    /// Each image by its file's name.
    pub images: BTreeMap<String, Image>,
    /// Bytes of each entry's parameter, 8 per argument of a launch.
    pub parameters: BTreeMap<String, u32>,
}

/// One embedded image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The device source.
    pub source: String,
    /// The element type of its entries.
    pub dtype: String,
    /// What it was compiled for.
    pub target: String,
    /// SHA-256 of everything that was compiled, and how: text, included files, options, compiler.
    pub input: String,
    /// SHA-256 of the image before compression.
    pub image: String,
    /// Its bytes.
    pub bytes: usize,
    /// Its bytes in the crate.
    pub compressed: usize,
    /// What each entry takes. None for NVIDIA's assembly, where the driver decides.
    pub entries: BTreeMap<String, Resources>,
}

impl Image {
    /// The entries that take more than they may, in words.
    pub fn over_budget(&self) -> impl Iterator<Item = String> {
        let entries = self.entries.iter();
        entries.filter_map(|(name, entry)| Some(format!("{name} for {}: {}", self.target, entry.excess(name)?)))
    }
}

impl Manifest {
    /// As text, one line for each entry, so that a change shows as one line.
    pub fn to_json(&self) -> Result<String> {
        let mut out = format!("{{\n\"compiler\": {},\n\"images\": {{\n", serde_json::to_string(&self.compiler)?);
        for (i, (file, image)) in self.images.iter().enumerate() {
            let Image { source, dtype, target, input, image: hash, bytes, compressed, entries } = image;
            let head = serde_json::to_string(&serde_json::json!({
                "source": source, "dtype": dtype, "target": target, "bytes": bytes, "compressed": compressed, "input": input, "image": hash,
            }))?;
            let head = head.trim_end_matches('}');
            writeln!(out, "{}: {head}, \"entries\": {{", serde_json::to_string(file)?)?;
            lines(&mut out, entries)?;
            writeln!(out, "}}}}{}", if i + 1 < self.images.len() { "," } else { "" })?;
        }
        out.push_str("},\n\"parameters\": {\n");
        lines(&mut out, &self.parameters)?;
        out.push_str("}\n}\n");
        Ok(out)
    }

    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("kernels/gen/manifest.json")
    }

    /// The expression that the crate includes.
    pub fn to_index(&self) -> Result<String> {
        let mut out = "// Written by `cargo xtask kernels`.\n&[\n".to_string();
        for (file, Image { source, dtype, target, bytes, .. }) in &self.images {
            let data = format!("include_bytes!({:?})", format!("{file}.zst"));
            writeln!(
                out,
                "    Image {{ source: {source:?}, dtype: {dtype:?}, target: {target:?}, bytes: {bytes}, data: {data} }},"
            )?;
        }
        out.push_str("]\n");
        Ok(out)
    }
}

fn lines<T: Serialize>(out: &mut String, map: &BTreeMap<String, T>) -> Result<()> {
    for (i, (name, value)) in map.iter().enumerate() {
        let comma = if i + 1 < map.len() { "," } else { "" };
        writeln!(out, "{}: {}{comma}", serde_json::to_string(name)?, serde_json::to_string(value)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let entries = BTreeMap::from([
            ("a".into(), Resources { registers: 40, ..Default::default() }),
            ("b".into(), Resources::default()),
        ]);
        let image = |entries| Image {
            source: "post".into(),
            dtype: "bf16".into(),
            target: "sm_90".into(),
            input: "1".into(),
            image: "2".into(),
            bytes: 3,
            compressed: 4,
            entries,
        };
        let manifest = Manifest {
            compiler: "NVRTC".into(),
            images: BTreeMap::from([
                ("post.sm_90.cubin".into(), image(entries)),
                ("post.compute_80.ptx".into(), image(BTreeMap::new())),
            ]),
            parameters: BTreeMap::from([("a".into(), 136), ("b".into(), 8)]),
        };
        assert_eq!(Manifest::from_json(&manifest.to_json().unwrap()).unwrap(), manifest);
        assert_eq!(manifest.to_index().unwrap().matches("Image {").count(), 2);
    }
}
