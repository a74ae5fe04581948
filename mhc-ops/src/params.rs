//! Parameters of a layer in host memory: what checkpoints hold and initialisation makes.

use mhc_core::{Dims, Error, MAX_STREAMS, Orientation, Result};

/// The parameters of one [`MhcLayer`](crate::MhcLayer) in host memory, f32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostParams {
    /// n.
    pub streams: usize,
    /// C.
    pub channels: usize,
    /// How the n·n block lies in `bias` and in the rows of `phi`.
    pub orientation: Orientation,
    /// What makes the coefficients depend on the token; a static layer has none.
    pub projection: Option<HostProjection>,
    /// `[n(n+2)]`: biases `[b_pre n | b_post n | b_res n·n]`, for a static layer its raw `[h_pre n | h_post n | h_res n·n]`.
    pub bias: Vec<f32>,
    /// `[C]`, the weight of an RMSNorm of the sub-layer's input, if there is one.
    pub w: Option<Vec<f32>>,
}

/// The part of [`HostParams`] that only dynamic layers have.
#[derive(Clone, Debug, PartialEq)]
pub struct HostProjection {
    /// `[n(n+2), n·C]`: rows `[pre n | post n | res n·n]`.
    pub phi: Vec<f32>,
    /// α of the three parts.
    pub alpha: [f32; 3],
    /// `[n·C]`, a weight of the projection's own RMSNorm, if there is one.
    pub norm_weight: Option<Vec<f32>>,
}

/// The parameters of the gated collapse to one stream, [`head`](crate::functional), in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct HostHead {
    /// n.
    pub streams: usize,
    /// C.
    pub channels: usize,
    /// `[n, n·C]`.
    pub phi: Vec<f32>,
    /// α.
    pub scale: f32,
    /// `[n]`.
    pub bias: Vec<f32>,
}

impl HostParams {
    /// The same layer with the n·n block in another orientation: the block of `bias` and the rows of `phi` that belong to it are transposed.
    pub fn oriented(mut self, orientation: Orientation) -> Self {
        if orientation != self.orientation {
            let (n, row) = (self.streams, self.streams * self.channels);
            transpose_rows(n, 1, &mut self.bias[2 * n..]);
            if let Some(projection) = &mut self.projection {
                transpose_rows(n, row, &mut projection.phi[2 * n * row..]);
            }
            self.orientation = orientation;
        }
        self
    }

    /// [`Error::Attribute`] and [`Error::Shape`] where sizes are out of range or do not fit each other.
    pub fn check(&self) -> Result<()> {
        check_sizes(self.streams, self.channels)?;
        let d = Dims::new(0, self.streams, self.channels);
        let row = d.row();
        length("bias", d.mix(), self.bias.len())?;
        if let Some(w) = &self.w {
            length("w", self.channels, w.len())?;
        }
        if let Some(projection) = &self.projection {
            length("phi", d.mix() * row, projection.phi.len())?;
            if let Some(norm_weight) = &projection.norm_weight {
                length("norm_weight", row, norm_weight.len())?;
            }
        }
        Ok(())
    }
}

impl HostHead {
    /// As [`HostParams::check`].
    pub fn check(&self) -> Result<()> {
        check_sizes(self.streams, self.channels)?;
        length("phi", self.streams * self.streams * self.channels, self.phi.len())?;
        length("bias", self.streams, self.bias.len())
    }
}

fn check_sizes(streams: usize, channels: usize) -> Result<()> {
    let attribute = |attr, want, got: usize| Err(Error::Attribute { op: "layer", attr, want, got: got.to_string() });
    if !(1..=MAX_STREAMS).contains(&streams) {
        return attribute("n", "1..=32", streams);
    }
    if channels == 0 {
        return attribute("C", "at least 1", 0);
    }
    Ok(())
}

fn length(slot: &'static str, want: usize, got: usize) -> Result<()> {
    if want == got {
        return Ok(());
    }
    Err(Error::Shape { op: "layer", slot, want: format!("{want} elements"), got: format!("{got} elements") })
}

/// Transposes an n·n matrix whose entries are rows of `row` elements.
fn transpose_rows(n: usize, row: usize, block: &mut [f32]) {
    for i in 0..n {
        for j in i + 1..n {
            let (low, high) = block.split_at_mut((j * n + i) * row);
            low[(i * n + j) * row..][..row].swap_with_slice(&mut high[..row]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(streams: usize, channels: usize) -> HostParams {
        let d = Dims::new(0, streams, channels);
        let count = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<_>>();
        HostParams {
            streams,
            channels,
            orientation: Orientation::ToFrom,
            projection: Some(HostProjection {
                phi: count(d.mix() * d.row()),
                alpha: [1.0, 2.0, 3.0],
                norm_weight: None,
            }),
            bias: count(d.mix()),
            w: None,
        }
    }

    #[test]
    fn orientation_transposes_the_square_block_and_nothing_else() {
        let (n, c) = (3, 2);
        let old = counted(n, c);
        let new = old.clone().oriented(Orientation::FromTo);
        let phi = |p: &HostParams, row: usize| p.projection.as_ref().unwrap().phi[row * n * c..][..n * c].to_vec();
        for gate in 0..2 * n {
            assert_eq!((new.bias[gate], phi(&new, gate)), (old.bias[gate], phi(&old, gate)));
        }
        for to in 0..n {
            for from in 0..n {
                let (a, b) = (2 * n + to * n + from, 2 * n + from * n + to);
                assert_eq!((new.bias[b], phi(&new, b)), (old.bias[a], phi(&old, a)));
            }
        }
        assert_eq!(new.oriented(Orientation::ToFrom), old);
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let wrong = |change: fn(&mut HostParams)| {
            let mut p = counted(3, 2);
            change(&mut p);
            p.check().unwrap_err().to_string()
        };
        counted(3, 2).check().unwrap();
        assert!(wrong(|p| p.bias.truncate(14)).contains("`bias` must have shape 15 elements, but has 14"));
        assert!(wrong(|p| p.w = Some(vec![1.0; 3])).contains("`w`"));
        assert!(wrong(|p| p.channels = 0).contains("`C` must be at least 1"));
        assert!(wrong(|p| p.streams = 33).contains("`n` must be 1..=32"));
    }
}
