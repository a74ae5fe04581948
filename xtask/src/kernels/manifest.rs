//! What is embedded and what it was made of: `kernels/gen/manifest.json`, and the index that the crate includes.

use std::{collections::BTreeMap, fmt::Write, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::vendor::Taken;

/// The manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "T: Taken")]
pub struct Manifest<T> {
    /// Name and version.
    pub compiler: String,
    /// Each image by its name.
    pub images: BTreeMap<String, Image<T>>,
    /// Bytes of each entry's parameter, 8 per argument of a launch.
    pub parameters: BTreeMap<String, u32>,
}

impl<T> Default for Manifest<T> {
    fn default() -> Self {
        Self { compiler: String::new(), images: BTreeMap::new(), parameters: BTreeMap::new() }
    }
}

/// One embedded image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "T: Taken")]
pub struct Image<T> {
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
    /// The frame that has it, and perhaps others.
    #[serde(default)]
    pub frame: String,
    /// Bytes of the images in front of it there.
    #[serde(default)]
    pub offset: usize,
    /// Bytes of the frame in the crate, at the first image in it.
    pub compressed: usize,
    /// What each entry takes. None where the driver decides.
    pub entries: BTreeMap<String, T>,
}

impl<T: Taken> Image<T> {
    /// The entries that take more than they may, in words.
    pub fn over_budget(&self) -> impl Iterator<Item = String> {
        let entries = self.entries.iter();
        entries.filter_map(|(name, entry)| Some(format!("{name} for {}: {}", self.target, entry.excess(name)?)))
    }
}

impl<T: Taken> Manifest<T> {
    /// The manifest in a folder; an empty one where there is none.
    pub fn read(folder: &Path) -> Result<Self> {
        match std::fs::read_to_string(folder.join("manifest.json")) {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("{}/manifest.json", folder.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("{}/manifest.json", folder.display())),
        }
    }

    /// The entries that take more than they may, in words.
    pub fn over_budget(&self) -> Vec<String> {
        self.images.values().flat_map(Image::over_budget).collect()
    }

    /// As text, one line for each entry, so that a change shows as one line.
    pub fn to_json(&self) -> Result<String> {
        let mut out = format!("{{\n\"compiler\": {},\n\"images\": {{\n", serde_json::to_string(&self.compiler)?);
        for (i, (name, image)) in self.images.iter().enumerate() {
            let mut head = serde_json::to_value(Image { entries: BTreeMap::new(), ..image.clone() })?;
            head.as_object_mut().context("an image is an object")?.remove("entries");
            let head = serde_json::to_string(&head)?;
            let head = head.trim_end_matches('}');
            writeln!(out, "{}: {head}, \"entries\": {{", serde_json::to_string(name)?)?;
            lines(&mut out, &image.entries)?;
            writeln!(out, "}}}}{}", if i + 1 < self.images.len() { "," } else { "" })?;
        }
        out.push_str("},\n\"parameters\": {\n");
        lines(&mut out, &self.parameters)?;
        out.push_str("}\n}\n");
        Ok(out)
    }

    /// The expression that the crate includes.
    pub fn to_index(&self) -> Result<String> {
        let mut out = "// Written by `cargo xtask kernels`.\n&[\n".to_string();
        for Image { source, dtype, target, frame, offset, bytes, .. } in self.images.values() {
            let data = format!("include_bytes!({:?})", format!("{frame}.zst"));
            writeln!(
                out,
                "    Image {{ source: {source:?}, dtype: {dtype:?}, target: {target:?}, offset: {offset}, bytes: {bytes}, data: {data} }},"
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
    use crate::kernels::cuda::resources::Resources;

    #[test]
    fn what_is_written_is_read_back() {
        let entries = BTreeMap::from([
            ("a".into(), Resources { registers: 40, ..Default::default() }),
            ("b".into(), Resources::default()),
        ]);
        let image = |entries, offset| Image {
            source: "post".into(),
            dtype: "bf16".into(),
            target: "sm_90".into(),
            input: "1".into(),
            image: "2".into(),
            bytes: 3,
            frame: "post.bf16".into(),
            offset,
            compressed: 4,
            entries,
        };
        let manifest = Manifest {
            compiler: "NVRTC".into(),
            images: BTreeMap::from([
                ("post.sm_90.cubin".into(), image(entries, 0)),
                ("post.compute_80.ptx".into(), image(BTreeMap::new(), 3)),
            ]),
            parameters: BTreeMap::from([("a".into(), 136), ("b".into(), 8)]),
        };
        let read: Manifest<Resources> = serde_json::from_str(&manifest.to_json().unwrap()).unwrap();
        assert_eq!(read, manifest);
        let index = manifest.to_index().unwrap();
        assert_eq!((index.matches("Image {").count(), index.matches("offset: 3, bytes: 3").count()), (2, 1), "{index}");
    }
}
