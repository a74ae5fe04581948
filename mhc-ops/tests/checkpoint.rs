//! Checkpoints: what is written is read, other implementations' files are understood, and bad files are told apart in words.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{collections::BTreeMap, fs, path::Path};

use mhc_ops::{
    Checkpoint, CheckpointWriter, DType, Error, Format, HostHead, HostParams, HostProjection, Init, Orientation,
};
use safetensors::{Dtype, tensor::TensorView};

fn counted(len: usize, from: f32) -> Vec<f32> {
    (0..len).map(|i| from + i as f32 / 64.0).collect()
}

/// A layer in which every number is another one.
fn layer(n: usize, c: usize, orientation: Orientation) -> HostParams {
    let mix = n * (n + 2);
    let projection = HostProjection { phi: counted(mix * n * c, 1.0), alpha: [0.5, 0.25, 0.125], norm_weight: None };
    HostParams { streams: n, channels: c, orientation, projection: Some(projection), bias: counted(mix, -3.0), w: None }
}

fn round_trip(format: Format, params: &HostParams) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer.safetensors");
    CheckpointWriter::new().layer(format, "layers.3.", params).unwrap().save(&path).unwrap();
    let read = Checkpoint::open(&path).unwrap().layer(format, "layers.3.").unwrap();
    assert_eq!(read.orientation, format.orientation());
    assert_eq!(&read.oriented(params.orientation), params, "{format:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no partial file is left");
}

#[test]
fn every_format_returns_what_it_was_given() {
    for orientation in [Orientation::ToFrom, Orientation::FromTo] {
        for (n, c) in [(1, 1), (2, 3), (4, 16), (5, 7)] {
            let plain = layer(n, c, orientation);
            for format in [Format::Mhc, Format::DeepSeekV4, Format::MhcCu, Format::Liger] {
                round_trip(format, &plain);
            }
            let weighted = HostParams { w: Some(counted(c, 9.0)), ..plain.clone() };
            round_trip(Format::MhcCu, &weighted);
            let mut all = weighted.clone();
            all.projection.as_mut().unwrap().norm_weight = Some(counted(n * c, 5.0));
            round_trip(Format::Mhc, &all);
            let fixed = HostParams { projection: None, ..weighted };
            round_trip(Format::Mhc, &fixed);
            round_trip(Format::MhcCu, &fixed);
            round_trip(Format::Mhc, &HostParams { w: None, ..fixed });
        }
    }
}

#[test]
fn a_head_and_several_layers_share_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let head = HostHead { streams: 2, channels: 3, phi: counted(12, 0.0), scale: 0.75, bias: counted(2, 8.0) };
    let (a, b) = (layer(2, 3, Orientation::FromTo), Init::Liger { seed: 1 }.params(2, 3).unwrap());
    let writer = CheckpointWriter::new().layer(Format::DeepSeekV4, "layers.0.hc_attn_", &a).unwrap();
    let writer = writer.layer(Format::DeepSeekV4, "layers.0.hc_ffn_", &b).unwrap().head("hc_head_", &head).unwrap();
    writer.save(&path).unwrap();
    let mut file = Checkpoint::open(&path).unwrap();
    assert!(file.names().contains(&"layers.0.hc_ffn_scale".to_owned()));
    assert_eq!(file.head("hc_head_").unwrap(), head);
    assert_eq!(file.layer(Format::DeepSeekV4, "layers.0.hc_attn_").unwrap(), a);
    assert_eq!(file.layer(Format::DeepSeekV4, "layers.0.hc_ffn_").unwrap().oriented(Orientation::ToFrom), b);
}

/// A file of somebody else's: tensors by name, as shape, type and values.
type Foreign<'a> = BTreeMap<&'a str, (Vec<usize>, DType, Vec<f64>)>;

fn write(path: &Path, tensors: &Foreign<'_>) {
    let bytes: Vec<_> = tensors.values().map(|(_, dtype, data)| dtype.encode(data)).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, (shape, dtype, _)), bytes)| {
        let dtype = match dtype {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
        };
        (*name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn numbers(shape: &[usize], from: f64, dtype: DType) -> (Vec<usize>, DType, Vec<f64>) {
    (shape.to_vec(), dtype, (0..shape.iter().product()).map(|i| from + i as f64).collect())
}

/// n = 2, C = 3 in mHC.cu's parts: number 100·part + position, so that every place can be told.
fn foreign_mhc_cu() -> Foreign<'static> {
    [
        ("m.phi_pre", numbers(&[2, 6], 0.0, DType::F32)),
        ("m.phi_post", numbers(&[2, 6], 100.0, DType::F32)),
        ("m.phi_res", numbers(&[4, 6], 200.0, DType::Bf16)),
        ("m.alpha_pre", numbers(&[], 1.0, DType::F32)),
        ("m.alpha_post", numbers(&[1], 2.0, DType::F32)),
        ("m.alpha_res", numbers(&[], 3.0, DType::F16)),
        ("m.b_pre", numbers(&[2], 10.0, DType::F32)),
        ("m.b_post", numbers(&[2], 20.0, DType::F32)),
        ("m.b_res", numbers(&[2, 2], 30.0, DType::F32)),
        ("m.rmsnorm_weight", numbers(&[3], 40.0, DType::Bf16)),
    ]
    .into()
}

#[test]
fn a_file_of_mhc_cu_is_understood_and_turned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mhc_cu.safetensors");
    write(&path, &foreign_mhc_cu());
    let p = Checkpoint::open(&path).unwrap().layer(Format::MhcCu, "m.").unwrap();
    assert_eq!((p.streams, p.channels, p.orientation), (2, 3, Orientation::ToFrom));
    assert_eq!(p.bias, [10., 11., 20., 21., 30., 31., 32., 33.]);
    assert_eq!(p.w.as_deref(), Some(&[40., 41., 42.][..]));
    assert_eq!(p.projection.as_ref().unwrap().alpha, [1., 2., 3.]);
    let turned = p.oriented(Orientation::FromTo);
    assert_eq!(turned.bias, [10., 11., 20., 21., 30., 32., 31., 33.]);
    let phi = turned.projection.unwrap().phi;
    // Rows: pre 2, post 2, then [0][0], [1][0], [0][1], [1][1] of the old block.
    let first: Vec<f32> = phi.chunks(6).map(|row| row[0]).collect();
    assert_eq!(first, [0., 6., 100., 106., 200., 212., 206., 218.]);
}

#[test]
fn a_file_of_liger_is_transposed_and_ggufs_suffix_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let mut tensors: Foreign<'_> = [
        ("phi", numbers(&[6, 8], 0.0, DType::F16)),
        ("b", numbers(&[8], 0.0, DType::F32)),
        ("blk.0.hc_ffn_fn.weight", numbers(&[8, 6], 0.0, DType::F32)),
        ("blk.0.hc_ffn_scale.weight", numbers(&[3], 1.0, DType::F32)),
        ("blk.0.hc_ffn_base.weight", numbers(&[8], 0.0, DType::F32)),
    ]
    .into();
    for alpha in ["alpha_pre", "alpha_post", "alpha_res"] {
        tensors.insert(alpha, numbers(&[1], 1.0, DType::F32));
    }
    write(&path, &tensors);
    let mut file = Checkpoint::open(&path).unwrap();
    let liger = file.layer(Format::Liger, "").unwrap().projection.unwrap().phi;
    assert_eq!(liger[..7], [0., 8., 16., 24., 32., 40., 1.]);
    let gguf = file.layer(Format::DeepSeekV4, "blk.0.hc_ffn_").unwrap();
    assert_eq!(gguf.projection.unwrap().phi[..7], [0., 1., 2., 3., 4., 5., 6.]);
}

/// The error of reading a layer must be about the checkpoint, and say all of `words`.
fn says(result: Result<HostParams, Error>, words: &[&str]) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Checkpoint(_)), "{error:?}");
    let text = error.to_string();
    assert!(words.iter().all(|w| text.contains(w)), "{text}\nlacks one of {words:?}");
}

#[test]
fn wrong_tensors_are_named_with_what_was_wanted_and_what_came() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wrong.safetensors");
    let read = |change: &dyn Fn(&mut Foreign<'_>)| {
        let mut tensors = foreign_mhc_cu();
        change(&mut tensors);
        write(&path, &tensors);
        Checkpoint::open(&path).unwrap().layer(Format::MhcCu, "m.")
    };
    read(&|_| ()).unwrap();
    says(read(&|t| drop(t.remove("m.b_res"))), &["wrong.safetensors", "`m.b_res`", "[2, 2]", "missing", "m.b_pre"]);
    let wide = |t: &mut Foreign<'_>| drop(t.insert("m.phi_post", numbers(&[2, 7], 0.0, DType::F32)));
    says(read(&wide), &["`m.phi_post`", "must be [2, 6]", "is [2, 7]"]);
    let odd = |t: &mut Foreign<'_>| drop(t.insert("m.phi_pre", numbers(&[2, 7], 0.0, DType::F32)));
    says(read(&odd), &["`m.phi_pre`", "[n, n·C]", "[2, 7]"]);
    let many = |t: &mut Foreign<'_>| drop(t.insert("m.alpha_res", numbers(&[2], 0.0, DType::F32)));
    says(read(&many), &["`m.alpha_res`", "[1] or []", "[2]"]);
    let both = |t: &mut Foreign<'_>| drop(t.insert("m.H_pre", numbers(&[2], 0.0, DType::F32)));
    says(read(&both), &["`m.phi_pre`", "`m.H_pre`", "both"]);
    says(
        Checkpoint::open(&path).unwrap().layer(Format::MhcCu, "other."),
        &["`other.phi_pre`", "`other.H_pre`", "neither"],
    );
    says(
        Checkpoint::open(&path).unwrap().layer(Format::Liger, "m."),
        &["`m.phi`", "[n·C, n(n+2)]", "missing", "m.phi_post"],
    );
    says(Checkpoint::open(&path).unwrap().layer(Format::DeepSeekV4, "m."), &["`m.fn`", "[n(n+2), n·C]", "missing"]);
}

#[test]
fn integers_where_numbers_are_wanted_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ints.safetensors");
    let bytes = [0; 3 * 3 * 4];
    let view = TensorView::new(Dtype::I32, vec![3, 3], &bytes).unwrap();
    fs::write(&path, safetensors::serialize([("fn", view)], None).unwrap()).unwrap();
    says(Checkpoint::open(&path).unwrap().layer(Format::DeepSeekV4, ""), &["`fn`", "f32, bf16 or f16", "I32"]);
}

#[test]
fn damaged_files_are_errors_at_every_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.safetensors");
    write(&path, &foreign_mhc_cu());
    let whole = fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(5) {
        fs::write(&path, &whole[..len]).unwrap();
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(error.contains("truncated") || error.contains("not safetensors"), "{len}: {error}");
    }
    fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
    assert!(Checkpoint::open(&path).unwrap_err().to_string().contains("belong to no tensor"));
    // A header that calls f32 what has the bytes of bf16.
    let text = String::from_utf8_lossy(&whole[8..whole.len().min(2000)]).into_owned();
    let at = 8 + text.find("BF16").unwrap();
    let mut mislabelled = whole.clone();
    mislabelled[at..at + 6].copy_from_slice(b"F32\" ,");
    fs::write(&path, &mislabelled).unwrap();
    assert!(Checkpoint::open(&path).unwrap_err().to_string().contains("not valid"));
    assert!(Checkpoint::open(dir.path().join("absent")).unwrap_err().to_string().contains("cannot be opened"));
}

#[test]
fn a_format_refuses_what_it_has_no_place_for() {
    let dynamic = layer(2, 3, Orientation::ToFrom);
    let weighted = HostParams { w: Some(counted(3, 1.0)), ..dynamic.clone() };
    let fixed = HostParams { projection: None, ..dynamic.clone() };
    let mut normed = dynamic.clone();
    normed.projection.as_mut().unwrap().norm_weight = Some(counted(6, 1.0));
    let refuses = |format, params: &HostParams, word: &str| {
        let error = CheckpointWriter::new().layer(format, "a.", params).unwrap_err().to_string();
        assert!(error.contains("`a.`") && error.contains(word), "{error}");
    };
    refuses(Format::DeepSeekV4, &weighted, "`w`");
    refuses(Format::Liger, &fixed, "static");
    refuses(Format::MhcCu, &normed, "`norm_weight`");
    refuses(Format::MhcCu, &fixed, "`w`");
    let twice =
        CheckpointWriter::new().layer(Format::Liger, "a.", &dynamic).unwrap().layer(Format::Liger, "a.", &dynamic);
    assert!(twice.unwrap_err().to_string().contains("`a.phi` is there twice"));
}

#[test]
fn a_file_that_cannot_be_replaced_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("taken");
    fs::create_dir(&path).unwrap();
    let writer = CheckpointWriter::new().layer(Format::Liger, "", &layer(2, 3, Orientation::ToFrom)).unwrap();
    let error = writer.save(&path).unwrap_err().to_string();
    assert!(error.contains("taken: cannot be written"), "{error}");
    assert!(path.is_dir() && fs::read_dir(dir.path()).unwrap().count() == 1);
}
