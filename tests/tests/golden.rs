//! The golden runner itself: what it accepts, what it must not, and the cases beside the repository where they are there.

use std::{collections::HashMap, path::Path};

use anyhow::{Result, ensure};
use mhc_tests::{
    data::Rng,
    devices,
    golden::{Golden, Verdict, run, run_dir, run_file},
};
use safetensors::{Dtype, serialize, tensor::TensorView};

/// The tensors of a case by name, with their shapes.
type Tensors = Vec<(&'static str, Vec<usize>, Vec<f64>)>;

/// `y = x·r ⊙ w` and its gradients, written out for three tokens, so that nothing here rests on the reference under test.
fn rms_norm() -> Tensors {
    let (t, c, eps) = (3, 5, 1e-3);
    let mut rng = Rng::new(7);
    let (x, w, g) = (rng.normals(t * c), rng.normals(c), rng.normals(t * c));
    let (mut y, mut d_x, mut d_w) = (vec![], vec![], vec![0.0; c]);
    for (x, g) in x.chunks(c).zip(g.chunks(c)) {
        let r = (x.iter().map(|v| v * v).sum::<f64>() / c as f64 + eps).sqrt().recip();
        let dot: f64 = (0..c).map(|k| g[k] * w[k] * x[k]).sum();
        for k in 0..c {
            y.push(x[k] * r * w[k]);
            d_x.push(g[k] * w[k] * r - x[k] * r.powi(3) * dot / c as f64);
            d_w[k] += g[k] * x[k] * r;
        }
    }
    vec![
        ("in.x", vec![t, c], x),
        ("in.w", vec![c], w),
        ("out.y", vec![t, c], y),
        ("d_out.y", vec![t, c], g),
        ("d_in.x", vec![t, c], d_x),
        ("d_in.w", vec![c], d_w),
    ]
}

fn file(op: &str, attrs: &str, tensors: &Tensors) -> Result<Vec<u8>> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, v)| v.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), b)| Ok((*name, TensorView::new(Dtype::F64, shape.clone(), b)?)));
    let metadata = HashMap::from([("op".to_string(), op.to_string()), ("attrs".to_string(), attrs.to_string())]);
    Ok(serialize(views.collect::<Result<Vec<_>>>()?, Some(metadata))?)
}

/// The first failure of a case, or "" if every row passes; an unreadable case is a failure, too.
fn failure(bytes: &[u8]) -> Result<String> {
    let device = devices::cpu()?.device;
    let rows = Golden::parse(bytes).and_then(|g| run("case", &g, &[device]));
    let rows = match rows {
        Ok(rows) => rows,
        Err(e) => return Ok(format!("{e:#}")),
    };
    ensure!(rows.len() == 4, "a reference and three element types make four rows, not {}", rows.len());
    let failed = rows.iter().find_map(|r| if let Verdict::Fail(why) = &r.verdict { Some(why.clone()) } else { None });
    Ok(failed.unwrap_or_default())
}

const EPS: &str = r#"{"eps": 1e-3}"#;

#[test]
fn right_numbers_pass() -> Result<()> {
    assert_eq!(failure(&file("rms_norm", EPS, &rms_norm())?)?, "");
    Ok(())
}

/// One number of any result or gradient off by 1e-8 is a miss, and the tensor is named.
#[test]
fn every_number_counts() -> Result<()> {
    for i in (0..rms_norm().len()).filter(|&i| rms_norm()[i].0.contains("out.y") || rms_norm()[i].0.contains("d_in")) {
        let mut tensors = rms_norm();
        tensors[i].2[2] *= 1.0 + 1e-8;
        let why = failure(&file("rms_norm", EPS, &tensors)?)?;
        let named = if tensors[i].0 == "d_out.y" { "d_in" } else { tensors[i].0 };
        assert!(why.contains(named) && why.contains("relative"), "{}: `{why}`", tensors[i].0);
    }
    Ok(())
}

#[test]
fn bad_files_are_named_not_skipped() -> Result<()> {
    let whole = file("rms_norm", EPS, &rms_norm())?;
    let without = |name: &str| file("rms_norm", EPS, &rms_norm().into_iter().filter(|t| t.0 != name).collect());
    let reshaped = || {
        let mut tensors = rms_norm();
        tensors[1].1 = vec![1, 5];
        tensors[0] = ("in.x", vec![5, 3], tensors[0].2.clone());
        file("rms_norm", EPS, &tensors)
    };
    let mut infinite = rms_norm();
    infinite[0].2[0] = f64::INFINITY;
    for (what, bytes, why) in [
        ("cut short", whole[..whole.len() - 8].to_vec(), "not a whole"),
        ("header only", whole[..40].to_vec(), "not a whole"),
        ("empty", Vec::new(), "not a whole"),
        ("another operator", file("rms_norms", EPS, &rms_norm())?, "unknown operator `rms_norms`"),
        ("post's name", file("post", "{}", &rms_norm())?, "`in.y` is missing"),
        ("no attribute", file("rms_norm", "{}", &rms_norm())?, "`eps` is missing"),
        ("a word for a number", file("rms_norm", r#"{"eps": "small"}"#, &rms_norm())?, "must be a number"),
        ("a negative eps", file("rms_norm", r#"{"eps": -1.0}"#, &rms_norm())?, "not negative"),
        ("attributes that are no JSON", file("rms_norm", "eps", &rms_norm())?, "no JSON object"),
        ("no input", without("in.w")?, "`in.w` is missing"),
        ("no result", without("out.y")?, "no `out.` tensor"),
        ("disagreeing shapes", reshaped()?, "says"),
        ("infinity", file("rms_norm", EPS, &infinite)?, "not finite"),
    ] {
        let got = failure(&bytes)?;
        assert!(got.contains(why), "{what}: `{got}` does not say `{why}`");
    }
    Ok(())
}

#[test]
fn an_empty_folder_is_an_error() -> Result<()> {
    let dir = tempfile::tempdir()?;
    assert!(run_dir(dir.path(), &[]).is_err_and(|e| e.to_string().contains("no .safetensors")));
    assert!(run_dir(&dir.path().join("absent"), &[]).is_err_and(|e| e.to_string().contains("absent")));
    std::fs::write(dir.path().join("cut.safetensors"), b"short")?;
    let rows = run_dir(dir.path(), &[])?;
    assert!(matches!(rows.as_slice(), [row] if row.case == "cut" && matches!(row.verdict, Verdict::Fail(_))));
    Ok(())
}

/// Every case in the folder that `MHC_GOLDEN` names, or in the one beside the repository if that is there.
#[test]
fn every_case_at_hand() -> Result<()> {
    let asked = std::env::var_os("MHC_GOLDEN");
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/mhc");
    let dir = asked.clone().map_or(beside, Into::into);
    if asked.is_none() && !dir.is_dir() {
        eprintln!("no golden cases beside the repository; MHC_GOLDEN=FOLDER names others");
        return Ok(());
    }
    let rows = run_dir(&dir, &[devices::cpu()?.device])?;
    let failed: Vec<_> = rows.iter().filter(|r| matches!(r.verdict, Verdict::Fail(_))).collect();
    assert!(failed.is_empty(), "{} of {} rows: {failed:#?}", failed.len(), rows.len());
    assert!(rows.iter().any(|r| r.verdict == Verdict::Pass), "nothing was compared");
    let path = dir.join("no such file.safetensors");
    assert!(matches!(run_file(&path, &[])[0].verdict, Verdict::Fail(_)));
    Ok(())
}
