//! The formats: which tensors, under which names, in which layout.

use mhc_core::{MAX_STREAMS, Result};

use super::{read::Checkpoint, write::Tensors};
use crate::{HostParams, HostProjection};

/// n from n(n+2).
fn streams_of(mix: usize) -> Option<usize> {
    (1..=MAX_STREAMS).find(|n| n * (n + 2) == mix)
}

/// n and C from the shape `[n(n+2), n·C]` of phi, or of its transpose.
fn phi_sizes(file: &Checkpoint, name: &str, transposed: bool) -> Result<(usize, usize)> {
    let want = if transposed { "[n·C, n(n+2)] with n in 1..=32" } else { "[n(n+2), n·C] with n in 1..=32" };
    let shape = file.shape(name, want)?;
    let sizes = match (shape.as_slice(), transposed) {
        (&[mix, row], false) | (&[row, mix], true) => streams_of(mix).filter(|n| row % n == 0).map(|n| (n, row / n)),
        _ => None,
    };
    sizes.ok_or_else(|| file.wrong(name, want, format!("{shape:?}")))
}

/// The rows of a matrix as columns.
fn transposed(rows: usize, columns: usize, data: &[f32]) -> Vec<f32> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| data[r * columns + c])).collect()
}

/// This library's own.
pub(super) mod mhc {
    use super::*;
    use crate::checkpoint::Format;

    pub fn read(file: &mut Checkpoint, prefix: &str) -> Result<HostParams> {
        let name = |n: &str| format!("{prefix}{n}");
        let (streams, channels) =
            if file.has(&name("phi")) { phi_sizes(file, &name("phi"), false)? } else { static_sizes(file, prefix)? };
        let mix = streams * (streams + 2);
        let row = streams * channels;
        let mut optional =
            |n: &str, len| if file.has(&name(n)) { file.tensor(&name(n), &[len]).map(Some) } else { Ok(None) };
        let (norm_weight, w) = (optional("norm_weight", row)?, optional("w", channels)?);
        let projection = if file.has(&name("phi")) {
            let phi = file.tensor(&name("phi"), &[mix, row])?;
            let alpha = file.tensor(&name("alpha"), &[3])?;
            Some(HostProjection { phi, alpha: [alpha[0], alpha[1], alpha[2]], norm_weight })
        } else {
            None
        };
        let bias = file.tensor(&name("bias"), &[mix])?;
        Ok(HostParams { streams, channels, orientation: Format::Mhc.orientation(), projection, bias, w })
    }

    /// A static layer's tensors need not say what C is; its writer noted it.
    fn static_sizes(file: &Checkpoint, prefix: &str) -> Result<(usize, usize)> {
        let (bias, want) = (format!("{prefix}bias"), "[n(n+2)] with n in 1..=32");
        let shape = file.shape(&bias, want)?;
        let streams = match shape.as_slice() {
            &[mix] => streams_of(mix),
            _ => None,
        };
        let streams = streams.ok_or_else(|| file.wrong(&bias, want, format!("{shape:?}")))?;
        let note = format!("{prefix}channels");
        let channels = file.note(&note).and_then(|c| c.parse().ok());
        Ok((streams, channels.ok_or_else(|| file.fail(format!("metadata lacks `{note}`, the C of a static layer")))?))
    }

    pub fn write(to: &mut Tensors<'_>, p: &HostParams) -> Result<()> {
        let (mix, row) = (p.streams * (p.streams + 2), p.streams * p.channels);
        if let Some(projection) = &p.projection {
            to.add("phi", &[mix, row], projection.phi.clone())?;
            to.add("alpha", &[3], projection.alpha.to_vec())?;
            if let Some(norm_weight) = &projection.norm_weight {
                to.add("norm_weight", &[row], norm_weight.clone())?;
            }
        }
        if let Some(w) = &p.w {
            to.add("w", &[p.channels], w.clone())?;
        }
        to.note("channels", p.channels.to_string());
        to.add("bias", &[mix], p.bias.clone())
    }
}

/// DeepSeek-V4, TileKernels.
pub(super) mod deepseek {
    use super::*;
    use crate::{HostHead, checkpoint::Format};

    pub fn read(file: &mut Checkpoint, prefix: &str) -> Result<HostParams> {
        let name = |n: &str| format!("{prefix}{n}");
        let (streams, channels) = phi_sizes(file, &name("fn"), false)?;
        let mix = streams * (streams + 2);
        let phi = file.tensor(&name("fn"), &[mix, streams * channels])?;
        let scale = file.tensor(&name("scale"), &[3])?;
        let bias = file.tensor(&name("base"), &[mix])?;
        let projection = Some(HostProjection { phi, alpha: [scale[0], scale[1], scale[2]], norm_weight: None });
        Ok(HostParams { streams, channels, orientation: Format::DeepSeekV4.orientation(), projection, bias, w: None })
    }

    pub fn write(to: &mut Tensors<'_>, p: &HostParams) -> Result<()> {
        to.only(p, Format::DeepSeekV4, &[])?;
        let mix = p.streams * (p.streams + 2);
        if let Some(projection) = &p.projection {
            to.add("fn", &[mix, p.streams * p.channels], projection.phi.clone())?;
            to.add("scale", &[3], projection.alpha.to_vec())?;
        }
        to.add("base", &[mix], p.bias.clone())
    }

    pub fn read_head(file: &mut Checkpoint, prefix: &str) -> Result<HostHead> {
        let name = |n: &str| format!("{prefix}{n}");
        let want = "[n, n·C] with n in 1..=32";
        let shape = file.shape(&name("fn"), want)?;
        let sizes = match shape.as_slice() {
            &[n, row] if (1..=MAX_STREAMS).contains(&n) && row % n == 0 => Some((n, row / n)),
            _ => None,
        };
        let (streams, channels) = sizes.ok_or_else(|| file.wrong(&name("fn"), want, format!("{shape:?}")))?;
        let phi = file.tensor(&name("fn"), &[streams, streams * channels])?;
        let scale = file.scalar(&name("scale"))?;
        let bias = file.tensor(&name("base"), &[streams])?;
        Ok(HostHead { streams, channels, phi, scale, bias })
    }

    pub fn write_head(to: &mut Tensors<'_>, head: &HostHead) -> Result<()> {
        to.add("fn", &[head.streams, head.streams * head.channels], head.phi.clone())?;
        to.add("scale", &[1], vec![head.scale])?;
        to.add("base", &[head.streams], head.bias.clone())
    }
}

/// mHC.cu, whose three parts are tensors of their own.
pub(super) mod mhc_cu {
    use super::*;
    use crate::checkpoint::Format;

    pub fn read(file: &mut Checkpoint, prefix: &str) -> Result<HostParams> {
        let name = |n: &str| format!("{prefix}{n}");
        let (dynamic, fixed) = (file.has(&name("phi_pre")), file.has(&name("H_pre")));
        match (dynamic, fixed) {
            (true, false) => read_dynamic(file, prefix),
            (false, true) => read_static(file, prefix),
            (false, false) => {
                let why = format!("neither `{}` (dynamic) nor `{}` (static) is there", name("phi_pre"), name("H_pre"));
                Err(file.fail(format!("{why}; its names are {}", file.names().join(", "))))
            }
            (true, true) => Err(file.fail(format!(
                "both `{}` (dynamic) and `{}` (static) are there",
                name("phi_pre"),
                name("H_pre")
            ))),
        }
    }

    fn read_dynamic(file: &mut Checkpoint, prefix: &str) -> Result<HostParams> {
        let name = |n: &str| format!("{prefix}{n}");
        let want = "[n, n·C] with n in 1..=32";
        let shape = file.shape(&name("phi_pre"), want)?;
        let (n, row) = match shape.as_slice() {
            &[n, row] if (1..=MAX_STREAMS).contains(&n) && row % n == 0 => (n, row),
            _ => return Err(file.wrong(&name("phi_pre"), want, format!("{shape:?}"))),
        };
        let mut phi = file.tensor(&name("phi_pre"), &[n, row])?;
        phi.extend(file.tensor(&name("phi_post"), &[n, row])?);
        phi.extend(file.tensor(&name("phi_res"), &[n * n, row])?);
        let alpha =
            [file.scalar(&name("alpha_pre"))?, file.scalar(&name("alpha_post"))?, file.scalar(&name("alpha_res"))?];
        let bias = packed(file, n, [name("b_pre"), name("b_post"), name("b_res")])?;
        let weight = name("rmsnorm_weight");
        let w = if file.has(&weight) { Some(file.tensor(&weight, &[row / n])?) } else { None };
        let projection = Some(HostProjection { phi, alpha, norm_weight: None });
        let orientation = Format::MhcCu.orientation();
        Ok(HostParams { streams: n, channels: row / n, orientation, projection, bias, w })
    }

    fn read_static(file: &mut Checkpoint, prefix: &str) -> Result<HostParams> {
        let name = |n: &str| format!("{prefix}{n}");
        let one_axis = |file: &Checkpoint, name: &str, want| match file.shape(name, want)?.as_slice() {
            &[len] => Ok(len),
            shape => Err(file.wrong(name, want, format!("{shape:?}"))),
        };
        let streams = one_axis(file, &name("H_pre"), "[n]")?;
        let channels = one_axis(file, &name("rmsnorm_weight"), "[C]")?;
        let bias = packed(file, streams, [name("H_pre"), name("H_post"), name("H_res")])?;
        let w = Some(file.tensor(&name("rmsnorm_weight"), &[channels])?);
        Ok(HostParams { streams, channels, orientation: Format::MhcCu.orientation(), projection: None, bias, w })
    }

    fn packed(file: &mut Checkpoint, n: usize, [pre, post, res]: [String; 3]) -> Result<Vec<f32>> {
        let mut all = file.tensor(&pre, &[n])?;
        all.extend(file.tensor(&post, &[n])?);
        all.extend(file.tensor(&res, &[n, n])?);
        Ok(all)
    }

    pub fn write(to: &mut Tensors<'_>, p: &HostParams) -> Result<()> {
        to.only(p, Format::MhcCu, &["static", "w"])?;
        let (n, row) = (p.streams, p.streams * p.channels);
        let parts = if let Some(HostProjection { phi, alpha, .. }) = &p.projection {
            to.add("phi_pre", &[n, row], phi[..n * row].to_vec())?;
            to.add("phi_post", &[n, row], phi[n * row..2 * n * row].to_vec())?;
            to.add("phi_res", &[n * n, row], phi[2 * n * row..].to_vec())?;
            for (name, alpha) in ["alpha_pre", "alpha_post", "alpha_res"].into_iter().zip(alpha) {
                to.add(name, &[1], vec![*alpha])?;
            }
            ["b_pre", "b_post", "b_res"]
        } else {
            ["H_pre", "H_post", "H_res"]
        };
        to.add(parts[0], &[n], p.bias[..n].to_vec())?;
        to.add(parts[1], &[n], p.bias[n..2 * n].to_vec())?;
        to.add(parts[2], &[n, n], p.bias[2 * n..].to_vec())?;
        match &p.w {
            Some(w) => to.add("rmsnorm_weight", &[p.channels], w.clone()),
            None if p.projection.is_some() => Ok(()),
            None => Err(to.fail("mHC.cu's static layers have an RMSNorm weight, `w`, and this one has none")),
        }
    }
}

/// Liger-Kernel, whose phi is `[n·C, n(n+2)]`.
pub(super) mod liger {
    use super::*;
    use crate::checkpoint::Format;

    pub fn read(file: &mut Checkpoint, prefix: &str) -> Result<HostParams> {
        let name = |n: &str| format!("{prefix}{n}");
        let (streams, channels) = phi_sizes(file, &name("phi"), true)?;
        let (mix, row) = (streams * (streams + 2), streams * channels);
        let phi = transposed(row, mix, &file.tensor(&name("phi"), &[row, mix])?);
        let bias = file.tensor(&name("b"), &[mix])?;
        let alpha =
            [file.scalar(&name("alpha_pre"))?, file.scalar(&name("alpha_post"))?, file.scalar(&name("alpha_res"))?];
        let projection = Some(HostProjection { phi, alpha, norm_weight: None });
        Ok(HostParams { streams, channels, orientation: Format::Liger.orientation(), projection, bias, w: None })
    }

    pub fn write(to: &mut Tensors<'_>, p: &HostParams) -> Result<()> {
        to.only(p, Format::Liger, &[])?;
        let (mix, row) = (p.streams * (p.streams + 2), p.streams * p.channels);
        if let Some(projection) = &p.projection {
            to.add("phi", &[row, mix], transposed(mix, row, &projection.phi))?;
            for (name, alpha) in ["alpha_pre", "alpha_post", "alpha_res"].into_iter().zip(projection.alpha) {
                to.add(name, &[1], vec![alpha])?;
            }
        }
        to.add("b", &[mix], p.bias.clone())
    }
}
