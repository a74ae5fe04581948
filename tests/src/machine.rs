//! This machine and this day, as records name them. Nothing that says where on it anything lies.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use mhc_core::DeviceInfo;

/// The processor as its vendor names it, and how many of its threads there are here.
pub fn name() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {threads} threads", model.unwrap_or(std::env::consts::ARCH))
}

/// The version of a device's driver: of the kernel's where it says so, else what the device's notes say of a driver or a runtime.
pub fn driver(device: &DeviceInfo) -> Option<String> {
    let version = fs::read_to_string("/proc/driver/nvidia/version").ok().filter(|_| device.id.backend == "cuda");
    let names = |name: &str| name.contains("driver") || name.contains("runtime");
    let noted = || device.notes.iter().find(|(name, _)| names(name)).map(|(n, v)| format!("{n} {v}"));
    version.as_deref().and_then(version_in).or_else(noted)
}

/// `580.159.04` in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue ...`.
fn version_in(text: &str) -> Option<String> {
    let mut words = text.lines().next()?.split_whitespace();
    let number =
        |w: &&str| w.contains('.') && w.split('.').all(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit()));
    words.find(number).map(str::to_string)
}

/// Processor time of all threads since this machine started, in ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ticks {
    wanted: u64,
    stolen: u64,
}

impl Ticks {
    /// Until now, where the system counts what it wanted and others on the same host got: on Linux.
    pub fn now() -> Option<Self> {
        Self::of(fs::read_to_string("/proc/stat").ok()?.lines().next()?)
    }

    /// `cpu user nice system idle iowait irq softirq stolen ...`.
    fn of(line: &str) -> Option<Self> {
        let ticks = line.strip_prefix("cpu ")?.split_whitespace().map(|t| t.parse().ok());
        let [user, nice, system, _, _, irq, softirq, stolen]: [u64; 8] =
            ticks.take(8).collect::<Option<Vec<_>>>()?.try_into().ok()?;
        Some(Self { wanted: user + nice + system + irq + softirq + stolen, stolen })
    }

    /// The percentage that others got of what was wanted since then.
    pub fn stolen_since(self, then: Self) -> f64 {
        let wanted = self.wanted.saturating_sub(then.wanted).max(1);
        100.0 * self.stolen.saturating_sub(then.stolen) as f64 / wanted as f64
    }
}

/// Today in UTC: `2026-11-21`.
pub fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = civil((seconds / 86_400) as i64);
    format!("{year}-{month:02}-{day:02}")
}

/// Year, month and day of a number of days since 1970-01-01 in the Gregorian calendar, counted in eras of 400 years from 1 March.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year_of_era + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use super::{Ticks, civil, version_in};

    #[test]
    fn days_have_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_778), (2026, 11, 21));
        assert_eq!(civil(-1), (1969, 12, 31));
    }

    #[test]
    fn stolen_time_is_a_share_of_what_was_wanted() {
        let then = Ticks::of("cpu  100 10 20 5000 7 1 2 30 0 0").unwrap();
        let now = Ticks::of("cpu  160 20 30 9000 9 1 2 50 0 0").unwrap();
        assert_eq!(now.stolen_since(then), 20.0);
        assert_eq!(then.stolen_since(then), 0.0);
        assert_eq!(Ticks::of("cpu  100 10 20"), None);
        assert_eq!(Ticks::of("cpu0 1 1 1 1 1 1 1 1"), None);
    }

    #[test]
    fn drivers_have_versions() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC version: gcc 12.2.0\n";
        assert_eq!(version_in(text).as_deref(), Some("580.159.04"));
        assert_eq!(version_in("nothing of the kind 1."), None);
    }
}
