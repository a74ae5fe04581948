//! Device sources and the closed list of entries that is compiled from each.
//!
//! A source is a `.cuh` file without vendor headers that defines, for every kernel `K` it has, a macro
//! `MHC_KERNEL_K(NAME, E, N)` which expands to an `extern "C"` entry point `NAME` for streams of the element type `E` (`f32`,
//! `bf16`, `f16`) and `N` streams; `N` is 0 where the entry takes any number of streams. What is compiled is the source followed by
//! one such line per [`Entry`] of one element type ([`Source::translation_unit`]): one image holds what a program that uses one type needs
//! of a source, and no more, because images are unpacked before the first launch.
//!
//! An entry has one parameter: a struct whose fields are the launch's arguments in order, 8 bytes each.

use core::fmt::Write;

use crate::DType;

/// The files that device sources may include, by the name they use.
pub const HEADERS: &[(&str, &str)] = &[
    ("prelude.cuh", include_str!("../../device/prelude.cuh")),
    ("vector.cuh", include_str!("../../device/vector.cuh")),
    ("reduce.cuh", include_str!("../../device/reduce.cuh")),
    ("operand.cuh", include_str!("../../device/operand.cuh")),
    ("mix.cuh", include_str!("../../device/mix.cuh")),
    ("projection.cuh", include_str!("../../device/projection.cuh")),
    ("sinkhorn.cuh", include_str!("../../device/sinkhorn.cuh")),
];

/// The numbers of streams for which kernels are made at compile time; 0 stands for all others.
pub const STREAMS: &[u32] = &[0, 1, 2, 4, 8, 16, 32];

/// One device source.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The operator's folder: `post`; for a file tuned for one architecture, with that at the end: `pre_sm90`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
    /// The entries to compile.
    pub entries: fn() -> Vec<Entry>,
}

impl Source {
    /// The element types that it has entries for.
    pub fn dtypes(&self) -> Vec<DType> {
        let entries = (self.entries)();
        DType::ALL.into_iter().filter(|dtype| entries.iter().any(|e| e.dtype == *dtype)).collect()
    }

    /// The entries of one image.
    pub fn entries_of(&self, dtype: DType) -> Vec<Entry> {
        (self.entries)().into_iter().filter(|e| e.dtype == dtype).collect()
    }

    /// Those of the files `all`, names and texts, that its text includes, directly or through others.
    pub fn headers(&self, all: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        let mut found: Vec<(&str, &str)> = Vec::new();
        let mut texts = vec![self.text];
        while let Some(text) = texts.pop() {
            for header in includes(text).filter_map(|name| all.iter().find(|(n, _)| *n == name)) {
                if !found.contains(header) {
                    found.push(*header);
                    texts.push(header.1);
                }
            }
        }
        found
    }

    /// What the compiler is given for one image, for devices with `wave` lanes.
    pub fn translation_unit(&self, dtype: DType, wave: u32) -> String {
        let mut unit = format!("{}\n", self.text);
        for entry in self.entries_of(dtype) {
            let (kernel, dtype, streams) = (entry.kernel, entry.dtype, entry.streams);
            // Writing to a string cannot fail.
            let _ = writeln!(unit, "MHC_KERNEL_{kernel}({}, {dtype}, {streams})", entry.name(wave));
        }
        unit
    }
}

/// The names of the files that a text includes itself.
pub fn includes(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'))
}

/// Kernels that come in two forms, with the name of the other: the first wants rows of the streams' channels at multiples of 16 bytes and
/// moves them so; the other takes any rows, element by element. Which thread holds which element is the same, and so are all results.
///
/// The other form is compiled for any n alone, but for the numbers of streams up to the third field: there dot products are added in an
/// order that n decides, and no other entry would give the same bits.
const FORMS: &[(&str, &str, u32)] = &[
    ("aggregate_bwd", "aggregate_bwd_any", 8),
    ("aggregate_fwd", "aggregate_fwd_any", 0),
    ("collapse_fwd", "collapse_fwd_any", 0),
    ("expand_fwd", "expand_fwd_any", 0),
    ("layer_bwd", "layer_bwd_any", 4),
    ("layer_fwd", "layer_fwd_any", 0),
    ("post_bwd", "post_bwd_any", 4),
    ("post_bwd_f32", "post_bwd_f32_any", 4),
    ("post_fwd", "post_fwd_any", 0),
    ("pre_norm", "pre_norm_any", 0),
    ("pre_norm_bwd", "pre_norm_bwd_any", 0),
    ("recompute_bwd", "recompute_bwd_any", 0),
    ("recompute_fwd", "recompute_fwd_any", 0),
    ("rms_norm_bwd", "rms_norm_bwd_any", 0),
    ("rms_norm_fwd", "rms_norm_fwd_any", 0),
];

/// One instance of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// The kernel: operator, direction and, where a direction has several, its job: `post_fwd`, `pre_bwd_reduce`.
    pub kernel: &'static str,
    /// Element type of the streams.
    pub dtype: DType,
    /// n, or 0 where any n is taken at run time.
    pub streams: u32,
    /// The one architecture it is for, as in the source's name (`sm90`); empty for portable kernels.
    pub arch: &'static str,
}

impl Entry {
    /// A portable entry.
    pub const fn new(kernel: &'static str, dtype: DType, streams: u32) -> Self {
        Self { kernel, dtype, streams, arch: "" }
    }

    /// The name of the entry point: `mhc_post_fwd__bf16_n4_w32`, with `_sm90` at the end where it is for one architecture.
    pub fn name(&self, wave: u32) -> String {
        let separator = if self.arch.is_empty() { "" } else { "_" };
        format!("mhc_{}__{}_n{}_w{wave}{separator}{}", self.kernel, self.dtype, self.streams, self.arch)
    }

    /// The portable entry of a kernel that serves n streams: the one made for just n, or the one for any.
    pub fn serving(kernel: &'static str, dtype: DType, n: usize) -> Self {
        let exact = STREAMS.iter().find(|&&s| s as usize == n);
        Self::new(kernel, dtype, exact.copied().unwrap_or(0))
    }

    /// Every kernel of `kernels` in both its forms, for every element type and each of `streams`.
    pub fn both(kernels: &[&'static str], streams: &[u32]) -> Vec<Entry> {
        let mut entries = Self::all(kernels, streams);
        for any in entries.clone().iter().map(Self::any) {
            if !entries.contains(&any) {
                entries.push(any);
            }
        }
        entries
    }

    /// The form of the kernel that takes rows at any address; itself where there is one form only.
    pub fn any(&self) -> Self {
        let form = FORMS.iter().find(|(vector, ..)| *vector == self.kernel);
        form.map_or(*self, |&(_, kernel, own)| Self {
            kernel,
            streams: if self.streams <= own { self.streams } else { 0 },
            ..*self
        })
    }

    /// Every kernel of `kernels` for each of `streams`, where the streams' type plays no part.
    pub fn all_f32(kernels: &[&'static str], streams: &[u32]) -> Vec<Entry> {
        kernels.iter().flat_map(|&k| streams.iter().map(move |&n| Entry::new(k, DType::F32, n))).collect()
    }

    /// Every kernel of `kernels` for every element type and each of `streams`.
    pub fn all(kernels: &[&'static str], streams: &[u32]) -> Vec<Entry> {
        let each = |kernel| {
            let of = move |dtype| streams.iter().map(move |&n| Entry::new(kernel, dtype, n));
            DType::ALL.into_iter().flat_map(of)
        };
        kernels.iter().copied().flat_map(each).collect()
    }
}
