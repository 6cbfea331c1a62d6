//! Owns looking at the machine itself: memory limits, disk, clock.

use std::path::Path;

use holdfast_proto::time::{Timestamp, retry_after_seconds};

use super::Check;
use crate::clock;
use crate::config::Settings;
use crate::engine::EngineInfo;
use crate::reserve::Reserve;
use crate::system::Machine;

/// Less than this share of the disk free is worth a word.
const LOW_DISK_PERCENT: u64 = 10;
/// Seconds that a clock may be off the server's: more than any network takes, less than any window has.
const CLOCK_OFF_S: u64 = 60;
/// Where a Raspberry Pi keeps its kernel's command line: since Debian 12, and before.
const CMDLINES: [&str; 2] = ["boot/firmware/cmdline.txt", "boot/cmdline.txt"];

/// Memory limits need the kernel's memory controller; some boards start without it.
pub(super) fn cgroups(root: &Path) -> Check {
    let name = "cgroups";
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let unlimited = |found: &str| Check::warning(name, found).advice(without_memory(root));
    if let Some(controllers) = read("sys/fs/cgroup/cgroup.controllers") {
        if controllers.split_whitespace().any(|name| name == "memory") {
            return Check::ok(name, "version 2 with memory limits");
        }
        return unlimited("version 2 without the memory controller");
    }
    let Some(table) = read("proc/cgroups") else {
        return Check::warning(name, "the kernel does not tell");
    };
    let memory_is_on = table.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.next() == Some("memory") && fields.nth(2) == Some("1")
    });
    if memory_is_on {
        Check::ok(name, "version 1 with memory limits")
    } else {
        unlimited("version 1 without the memory controller")
    }
}

/// Where the kernel's command line is written differs; the firmware of a Raspberry Pi turns the controller
/// off by itself.
fn without_memory(root: &Path) -> String {
    let words = "cgroup_enable=memory cgroup_memory=1";
    let cmdline = CMDLINES.iter().find(|path| root.join(path).is_file());
    match cmdline {
        Some(path) => format!(
            "memory limits have no effect: add `{words}` to the one line in /{path}, and restart the machine"
        ),
        None => format!(
            "memory limits have no effect: add `{words}` to the kernel's command line, and restart the machine"
        ),
    }
}

pub(super) fn disk(info: Option<&EngineInfo>) -> Check {
    let name = "disk";
    let Some(info) = info else {
        return Check::warning(name, "not known without the engine");
    };
    let machine = Machine::new(Path::new(&info.root));
    let Some(report) = machine.map(|mut machine| machine.read(&info.platform)) else {
        return Check::warning(name, "the machine does not tell");
    };
    let mib = |bytes: u64| bytes >> 20;
    let found = format!(
        "{} of {} MiB free in {}",
        mib(report.disk_free_bytes),
        mib(report.disk_total_bytes),
        info.root
    );
    let low = report.disk_total_bytes / 100 * LOW_DISK_PERCENT;
    if report.disk_free_bytes <= low {
        Check::warning(name, found)
            .advice("an update needs the new image beside the old one: free some space")
    } else {
        Check::ok(name, found)
    }
}

/// The file that is given up to let an agent end what it began on a full disk.
pub(super) fn reserve(settings: &Settings) -> Check {
    let (name, bytes) = ("reserve", settings.disk.reserve_bytes());
    let size = settings.disk.reserve_mb;
    let folder = settings.state_dir.display();
    if bytes == 0 {
        return Check::warning(name, "none is wanted")
            .advice("set disk.reserve_mb: on a full disk it lets the agent go back");
    }
    if Reserve::of(&settings.state_dir, bytes).missing_bytes() == 0 {
        return Check::ok(name, format!("{size} MiB kept in {folder}"));
    }
    Check::warning(name, format!("{size} MiB are not kept in {folder}"))
        .advice("the running agent makes it once twice as much is free there")
}

/// The clock, beside the `Date` of the control API's answer where there was one.
pub(super) fn clock(now: Timestamp, date: Option<&str>) -> Check {
    let (name, found) = ("clock", format!("it shows {now}"));
    if !clock::is_plausible(now) {
        return Check::warning(name, found).advice(
            "that is before this agent was built: update windows wait, and TLS may fail; \
             set up time synchronisation (`timedatectl set-ntp true`)",
        );
    }
    match date.and_then(|date| off_s(now, date)) {
        None => Check::ok(name, found),
        Some(off_s) if off_s <= CLOCK_OFF_S => {
            Check::ok(name, format!("{found}, as the control API's does"))
        }
        Some(off_s) => Check::warning(name, format!("{found}, {off_s} s off the control API's"))
            .advice(
                "update windows open at the wrong time; one of the two machines needs time \
             synchronisation (`timedatectl`)",
            ),
    }
}

/// Seconds between a clock and a `Date`. Two dates are compared as for a pause that a server asks for, once
/// in each direction.
fn off_s(now: Timestamp, date: &str) -> Option<u64> {
    let own = now.rfc_5322()?;
    let ahead = retry_after_seconds(&own, Some(date))?;
    let behind = retry_after_seconds(date, Some(&own))?;
    Some(ahead.max(behind))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn cgroups_are_read_in_both_versions() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(cgroups(root.path()).verdict, Verdict::Warning);
        write(
            "proc/cgroups",
            "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t1\t0\n",
        );
        let off = cgroups(root.path());
        assert!(off.advice.unwrap().contains("the kernel's command line"));
        write(
            "boot/firmware/cmdline.txt",
            "console=tty1 root=PARTUUID=1\n",
        );
        let off = cgroups(root.path()).advice.unwrap();
        assert!(off.contains("cgroup_enable=memory"), "{off}");
        assert!(off.contains("/boot/firmware/cmdline.txt"), "{off}");
        write("proc/cgroups", "cpu\t1\t1\t1\nmemory\t9\t70\t1\n");
        assert_eq!(cgroups(root.path()).verdict, Verdict::Ok);
        write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n");
        assert_eq!(cgroups(root.path()).verdict, Verdict::Warning);
        write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu memory\n");
        assert_eq!(cgroups(root.path()).verdict, Verdict::Ok);
    }

    #[test]
    fn a_reserve_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let text = |reserve_mb: u64| {
            let folder = folder.path().display();
            format!("{{state_dir: {folder}, disk: {{reserve_mb: {reserve_mb}}}}}")
        };
        let settings = |mb| Settings::parse(Path::new("agent.yaml"), &text(mb), &[]).unwrap();
        assert_eq!(reserve(&settings(1)).verdict, Verdict::Warning);
        assert!(Reserve::of(folder.path(), 1 << 20).make());
        assert_eq!(reserve(&settings(1)).verdict, Verdict::Ok);
        assert_eq!(reserve(&settings(2)).verdict, Verdict::Warning);
        assert_eq!(reserve(&settings(0)).verdict, Verdict::Warning);
    }

    #[test]
    fn a_clock_in_1970_is_named_and_so_is_one_that_is_off_the_servers() {
        let boot = clock(Timestamp::from_millis(86_400_000), None);
        assert_eq!(boot.verdict, Verdict::Warning);
        // 2026-11-21T05:40:00Z
        let now = Timestamp::from_millis(1_795_239_600_123);
        assert_eq!(clock(now, None).verdict, Verdict::Ok);
        assert_eq!(clock(now, Some("yesterday")).verdict, Verdict::Ok);
        for near in ["05:39:01", "05:40:00", "05:41:00"] {
            let date = format!("Sat, 21 Nov 2026 {near} GMT");
            assert_eq!(clock(now, Some(&date)).verdict, Verdict::Ok, "{near}");
        }
        for far in ["05:38:59", "05:41:01"] {
            let date = format!("Sat, 21 Nov 2026 {far} GMT");
            let check = clock(now, Some(&date));
            assert_eq!(check.verdict, Verdict::Warning, "{far}");
            assert!(check.found.contains("61 s off"), "{}", check.found);
        }
    }
}
