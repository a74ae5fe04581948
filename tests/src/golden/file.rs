//! A golden case as it lies in its file.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A tensor: its shape and its elements, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Vec<f64>,
}

/// One case: an operator, its attributes, and tensors called `in.x`, `out.y`, `d_out.y`, `d_in.x`.
#[derive(Clone, Debug)]
pub struct Golden {
    /// The operator's name in these files.
    pub op: String,
    /// Its attributes.
    pub attrs: Attrs,
    /// What produced the numbers.
    pub source: String,
    /// The tensors.
    pub tensors: BTreeMap<String, Array>,
}

impl Golden {
    /// Reads a file's contents. An error if it is not a whole `.safetensors` file with the metadata and the float tensors of a case.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(bytes).context("not a whole .safetensors file")?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let Some(op) = metadata.get("op") else { bail!("the metadata has no `op`") };
        let attrs = metadata.get("attrs").map_or("{}", String::as_str);
        let attrs = serde_json::from_str(attrs).with_context(|| format!("`attrs` is no JSON object: {attrs}"))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(bytes)?.tensors() {
            let data: Vec<f64> = match view.dtype() {
                Dtype::F64 => view.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
                Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
                other => bail!("tensor `{name}` is {other:?}, not F64 or F32"),
            };
            ensure!(data.iter().all(|v| v.is_finite()), "tensor `{name}` has elements that are not finite");
            tensors.insert(name, Array { shape: view.shape().to_vec(), data });
        }
        let source = metadata.get("source").cloned().unwrap_or_default();
        Ok(Self { op: op.clone(), attrs: Attrs(attrs), source, tensors })
    }

    /// The tensor `<kind>.<name>`, if it is there.
    pub fn get(&self, kind: &str, name: &str) -> Option<&Array> {
        self.tensors.get(&format!("{kind}.{name}"))
    }

    /// The names of the tensors of a kind: of `in`, `x` and `y`.
    pub fn names(&self, kind: &str) -> impl Iterator<Item = &str> {
        self.tensors.keys().filter_map(move |k| k.split_once('.').filter(|(k, _)| *k == kind).map(|(_, name)| name))
    }
}

/// Attributes of a case.
#[derive(Clone, Debug)]
pub struct Attrs(serde_json::Map<String, Value>);

impl Attrs {
    /// The number called `name`, if there is one.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        value.as_f64().map(Some).with_context(|| format!("attribute `{name}` must be a number, but is {value}"))
    }

    /// The number called `name`. An error if there is none.
    pub fn need(&self, name: &str) -> Result<f64> {
        self.number(name)?.with_context(|| format!("attribute `{name}` is missing"))
    }

    /// The count called `name`. An error if there is none.
    pub fn count(&self, name: &str) -> Result<u32> {
        let value = self.need(name)?;
        ensure!(
            value.fract() == 0.0 && (0.0..4e9).contains(&value),
            "attribute `{name}` must be a count, but is {value}"
        );
        Ok(value as u32)
    }

    /// The first of `names` that is there, as text; empty if none is.
    pub fn text(&self, names: &[&str]) -> &str {
        names.iter().find_map(|n| self.0.get(*n)?.as_str()).unwrap_or("")
    }

    /// The JSON value called `name`. An error if there is none.
    pub fn value(&self, name: &str) -> Result<&Value> {
        self.0.get(name).with_context(|| format!("attribute `{name}` is missing"))
    }
}
