//! Kernel images, as every GPU backend finds them: embedded ones, what a run-time compiler makes, and the order in which they are tried.

mod cache;
mod compiler;

use std::io::Read;

use ruzstd::decoding::StreamingDecoder;

pub use cache::Cache;
pub use compiler::{Code, Compiler, Output, Program, Recipe, Unit};

/// An embedded image.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The device source.
    pub source: &'static str,
    /// The element type of its entries.
    pub dtype: &'static str,
    /// What it runs on, as the compiler names it: `sm_90`, `compute_80`, `gfx942`.
    pub target: &'static str,
    /// Bytes in front of it in what the frame unpacks to: images for one family of architectures share a frame, and so what they have in
    /// common.
    pub offset: usize,
    /// Its size.
    pub bytes: usize,
    /// A Zstandard frame.
    pub data: &'static [u8],
}

impl Image {
    /// Its bytes. The error says what is wrong with the frame.
    pub fn unpack(&self) -> Result<Vec<u8>, String> {
        let mut decoder = StreamingDecoder::new(self.data).map_err(|e| e.to_string())?;
        let mut skipped = vec![0; self.offset];
        decoder.read_exact(&mut skipped).map_err(|e| format!("has no {} bytes before it: {e}", self.offset))?;
        // What follows it in the frame is not unpacked. Assembly gets a zero at its end by the backend.
        let mut bytes = Vec::with_capacity(self.bytes + 1);
        decoder.take(self.bytes as u64).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        if bytes.len() != self.bytes {
            return Err(format!("unpacks to {} bytes instead of {}", bytes.len(), self.bytes));
        }
        Ok(bytes)
    }
}

/// An image to load.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it is, for messages: `embedded sm_90`.
    pub name: String,
    /// What it runs on, as [`Image::target`].
    pub target: String,
    /// Its bytes.
    pub image: Vec<u8>,
}

/// A way to an image.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// To unpack an embedded one.
    Embedded(&'static Image),
    /// To ask the run-time compiler.
    Compile,
}

/// The first of the steps whose image is there and loads, with the image's name. The error has a line for each.
pub fn first<T>(
    steps: impl IntoIterator<Item = Step>,
    compile: impl Fn() -> Result<Found, String>,
    load: impl Fn(Found) -> Result<T, String>,
) -> Result<(T, String), Vec<String>> {
    let mut failed = Vec::new();
    for step in steps {
        let found = match step {
            Step::Embedded(image) => {
                let name = format!("embedded {}", image.target);
                let unpacked = image.unpack().map_err(|e| format!("{name}: {e}"));
                unpacked.map(|bytes| Found { name, target: image.target.into(), image: bytes })
            }
            Step::Compile => compile(),
        };
        let loaded = found.and_then(|found| {
            let name = found.name.clone();
            load(found).map_err(|e| format!("{name}: {e}")).map(|loaded| (loaded, name))
        });
        match loaded {
            Ok(loaded) => return Ok(loaded),
            Err(why) => failed.push(why),
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `image`, as a Zstandard frame with one block that is not compressed.
    const FRAME: &[u8] = b"\x28\xb5\x2f\xfd\x20\x05\x29\x00\x00image";
    const WHOLE: Image = Image { source: "post", dtype: "f32", target: "sm_90", offset: 0, bytes: 5, data: FRAME };
    const CUT: Image = Image { bytes: 6, ..WHOLE };

    #[test]
    fn a_frame_may_hold_several() {
        let part = |offset, bytes| Image { offset, bytes, ..WHOLE }.unpack();
        assert_eq!(part(0, 2), Ok(b"im".to_vec()));
        assert_eq!(part(2, 3), Ok(b"age".to_vec()));
        assert!(part(3, 3).unwrap_err().contains("unpacks to 2 bytes instead of 3"));
        assert!(part(6, 1).unwrap_err().contains("has no 6 bytes before it"));
    }

    fn compiled() -> Result<Found, String> {
        Ok(Found { name: "compiled".into(), target: "sm_90".into(), image: b"new".to_vec() })
    }

    #[test]
    fn the_first_that_loads_is_taken() {
        let only = |wanted: &'static [u8]| {
            move |found: Found| if found.image == wanted { Ok(()) } else { Err("refused".into()) }
        };
        let steps = [Step::Embedded(&CUT), Step::Embedded(&WHOLE), Step::Compile];
        let name = |wanted| first(steps, compiled, only(wanted)).map(|(_, name)| name);
        assert_eq!(name(b"image"), Ok("embedded sm_90".into()));
        assert_eq!(name(b"new"), Ok("compiled".into()));
        let unpacks = "embedded sm_90: unpacks to 5 bytes instead of 6".to_string();
        assert_eq!(name(b"none"), Err(vec![unpacks, "embedded sm_90: refused".into(), "compiled: refused".into()]));
    }

    #[test]
    fn a_compiler_that_fails_is_in_the_list() {
        let failed = first([Step::Compile], || Err("no compiler".into()), |_| Ok::<_, String>(()));
        assert_eq!(failed, Err(vec!["no compiler".to_string()]));
    }
}
