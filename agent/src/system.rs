//! Owns the machine's figures for reports; sysinfo is named only here.

use std::path::{Path, PathBuf};

use holdfast_proto::current::SystemReport;
use holdfast_proto::image::Platform;
use rustix::fs::statvfs;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Where the kernel names each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where it tells how long ago that was.
const UPTIME: &str = "/proc/uptime";

/// Reads the machine's figures; processor use is measured between two readings.
pub struct Machine {
    system: System,
    root: PathBuf,
    boot_id: Option<String>,
}

impl Machine {
    /// A reader; `root` is the folder whose file system counts (where the engine keeps images).
    ///
    /// None where the machine does not tell (no /proc): reports then come without figures.
    pub fn new(root: &Path) -> Option<Self> {
        let system = System::new_with_specifics(RefreshKind::nothing()).ok()?;
        Some(Self {
            system,
            root: root.to_owned(),
            boot_id: boot_id(),
        })
    }

    /// The figures now.
    pub fn read(&mut self, platform: &Platform) -> SystemReport {
        self.system
            .refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        self.system
            .refresh_cpu_specifics(CpuRefreshKind::nothing().with_usage());
        let (disk_free_bytes, disk_total_bytes) = disk(&self.root);
        let cpu = self.system.global_cpu_usage();
        SystemReport {
            platform: platform.clone(),
            cpu_percent: if cpu.is_finite() { cpu } else { 0.0 },
            memory_used_bytes: self.system.used_memory(),
            memory_total_bytes: self.system.total_memory(),
            disk_free_bytes,
            disk_total_bytes,
            uptime_seconds: System::uptime().unwrap_or(0),
            boot_id: self.boot_id.clone(),
        }
    }
}

/// The kernel's name for this start of the machine, if it has one.
pub fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string(BOOT_ID).ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Milliseconds since the machine started; 0 where it does not tell.
pub fn uptime_ms() -> u64 {
    let text = std::fs::read_to_string(UPTIME).unwrap_or_default();
    let seconds = text.split_whitespace().next().unwrap_or_default();
    let (whole, part) = seconds.split_once('.').unwrap_or((seconds, ""));
    let whole = whole.parse::<u64>().unwrap_or(0);
    let part = format!("{part:0<3}")
        .get(..3)
        .and_then(|part| part.parse().ok());
    whole
        .saturating_mul(1_000)
        .saturating_add(part.unwrap_or(0))
}

/// Free and total bytes of the file system that holds `path`; of the folder above it that can be seen from
/// here where it cannot itself, as the engine's folders often cannot.
fn disk(path: &Path) -> (u64, u64) {
    let found = path.ancestors().find_map(|path| statvfs(path).ok());
    found.map_or((0, 0), |found| {
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        (bytes(found.f_bavail), bytes(found.f_blocks))
    })
}

/// The platform of this machine by the agent's own build, for when no engine answers.
pub fn own_platform() -> Platform {
    Platform::new(std::env::consts::OS, std::env::consts::ARCH, None)
}

/// The machine's name.
pub fn host_name() -> Option<String> {
    System::host_name().ok().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_figures_that_make_sense() {
        let mut machine = Machine::new(Path::new("/")).unwrap();
        let report = machine.read(&own_platform());
        assert!(report.memory_total_bytes >= report.memory_used_bytes);
        assert!(report.memory_total_bytes > 0);
        assert!(report.uptime_seconds > 0);
        assert_eq!(report.boot_id.as_deref().map(str::len), Some(36));
        assert!((0.0..=100.0).contains(&report.cpu_percent));
    }

    #[test]
    fn a_folder_that_cannot_be_seen_is_on_the_disk_of_the_one_above() {
        let (free, total) = disk(Path::new("/"));
        assert!(0 < free && free < total, "{free} of {total}");
        assert_eq!(disk(Path::new("/no/such/folder")).1, total);
        assert_eq!(disk(Path::new("")), (0, 0));
    }
}
