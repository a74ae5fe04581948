//! The GPUs that can be simulated.

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// MI200. AMD's runtime cannot be brought up on it without its kernel driver; kernels are launched directly.
    Gfx90a,
    /// MI300.
    Gfx942,
    /// MI350.
    Gfx950,
    /// RX 7900.
    Gfx1100,
}

impl Arch {
    pub const ALL: [Self; 4] = [Self::Gfx90a, Self::Gfx942, Self::Gfx950, Self::Gfx1100];

    /// As compilers call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gfx90a => "gfx90a",
            Self::Gfx942 => "gfx942",
            Self::Gfx950 => "gfx950",
            Self::Gfx1100 => "gfx1100",
        }
    }

    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// As the kernel driver's topology writes it.
    pub fn version(self) -> u32 {
        match self {
            Self::Gfx90a => 90_010,
            Self::Gfx942 => 90_402,
            Self::Gfx950 => 90_500,
            Self::Gfx1100 => 110_000,
        }
    }

    /// Lanes of a wave, unless a kernel asks for others.
    pub fn wave(self) -> usize {
        if self == Self::Gfx1100 { 32 } else { 64 }
    }

    /// Whether AMD's runtime runs on the simulated device.
    pub fn runs_hip(self) -> bool {
        self != Self::Gfx90a
    }

    /// 16-bit results clear the rest of a register on CDNA, and leave it on RDNA.
    pub fn clears_upper_half(self) -> bool {
        self != Self::Gfx1100
    }
}
