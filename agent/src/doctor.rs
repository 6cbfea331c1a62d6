//! Owns the examination of a device: what the agent needs, whether it is there, what to do if not.
//!
//! Changes nothing but a file it makes and removes in the state folder to see whether it can.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::clock::{self, Clock};
use crate::config::Settings;
use crate::control::client::{Client, Origin};
use crate::engine::docker::DockerEngine;
use crate::engine::{Engine as _, EngineInfo};
use crate::enrolment::Enrolment;
use crate::fault::chain;
use crate::local_api::client::{AskError, ask};
use crate::policy::{DEFAULT_PATH as POLICY_PATH, Policy, PolicyError};
use crate::reserve::Reserve;
use crate::system::Machine;

/// Looking up a name: a resolver that needs longer is as good as none.
const DNS_LIMIT: Duration = Duration::from_secs(10);
/// Less than this share of the disk free is worth a word.
const LOW_DISK_PERCENT: u64 = 10;
/// The oldest engine API that the agent is tested with (Docker 20.10).
const TESTED_API: (u32, u32) = (1, 41);

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The agent works, but something a person may want does not.
    Warning,
    /// The agent cannot do its work.
    Wrong,
}

impl Verdict {
    /// Its word in tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            advice: None,
        }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found)
    }

    fn warning(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warning, found)
    }

    fn wrong(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Wrong, found)
    }

    fn advice(self, advice: impl Into<String>) -> Self {
        Self {
            advice: Some(advice.into()),
            ..self
        }
    }
}

/// Looks at everything, each thing even when an earlier one is wrong.
pub async fn examine<C: Clock>(settings: &Settings, clock: &C) -> Vec<Check> {
    let mut checks = vec![state_folder(&settings.state_dir)];
    let enrolment = Enrolment::load(&settings.state_dir);
    checks.push(match &enrolment {
        Ok(enrolment) => Check::ok("enrolment", format!("device {}", enrolment.uuid)),
        Err(error) => Check::wrong("enrolment", chain(error))
            .advice("run `holdfast-agent enroll --key KEY --api URL` as the agent's user or root"),
    });
    checks.push(agent(&settings.local_api.socket).await);
    let (check, info) = engine(&settings.docker.socket).await;
    checks.push(check);
    checks.push(policy(Policy::load(settings.policy.file.as_deref())));
    checks.push(cgroups(Path::new("/")));
    checks.push(disk(info.as_ref()));
    checks.push(reserve(settings));
    checks.push(clock_check(clock));
    let origin = enrolment
        .as_ref()
        .ok()
        .and_then(|enrolment| Origin::parse(&enrolment.api_url).ok())
        .or_else(|| settings.api.url.clone());
    checks.push(dns(origin.as_ref()).await);
    checks.push(server(settings, enrolment.as_ref().ok()).await);
    checks
}

fn state_folder(folder: &Path) -> Check {
    let name = "state folder";
    let probe = folder.join("doctor.probe");
    let written = crate::durable::replace(&probe, b"x").and_then(|()| std::fs::remove_file(&probe));
    let shown = folder.display();
    match written {
        Ok(()) => Check::ok(name, format!("{shown} can be written")),
        Err(error) => Check::wrong(name, format!("{shown} cannot be written: {error}")).advice(
            "run this as root or as the agent's user; else look at owner, mount and free space",
        ),
    }
}

async fn agent(socket: &Path) -> Check {
    let name = "running agent";
    let shown = socket.display();
    let alive = ask::<serde_json::Value>(socket, hyper::Method::GET, "/livez", None).await;
    match alive {
        Ok(_) => Check::ok(name, format!("answers on {shown}")),
        Err(error @ AskError::Forbidden { .. }) => Check::warning(name, error.to_string()),
        Err(error) => Check::warning(name, chain(&error))
            .advice("`systemctl status holdfast-agent` says why; what runs goes on without it"),
    }
}

async fn engine(socket: &Path) -> (Check, Option<EngineInfo>) {
    let name = "container engine";
    let info = match DockerEngine::looking(socket).describe().await {
        Ok(info) => info,
        Err(error) => {
            let check = Check::wrong(name, chain(&error)).advice(format!(
                "is the engine running, and may this user open {}? see `systemctl status docker`",
                socket.display()
            ));
            return (check, None);
        }
    };
    let found = format!(
        "{}, API {}, {} store, {}",
        info.version,
        info.api_version,
        info.store.word(),
        info.platform
    );
    let check = match api_version(&info.api_version) {
        Some(version) if version < TESTED_API => {
            let (major, minor) = TESTED_API;
            Check::warning(name, found).advice(format!(
                "older than API {major}.{minor}, the oldest that is tested: upgrade the engine"
            ))
        }
        Some(_) | None => Check::ok(name, found),
    };
    (check, Some(info))
}

fn policy(policy: Result<Policy, PolicyError>) -> Check {
    let name = "policy";
    match policy {
        Ok(policy) if policy.rules().is_some() => Check::ok(name, "targets are held to its rules"),
        Ok(_) => Check::warning(name, "none: a target may ask the engine for anything").advice(
            format!("write {POLICY_PATH} to say what no target may ask for"),
        ),
        Err(error) => Check::wrong(name, chain(&error))
            .advice("the agent does not start with a policy that it cannot trust"),
    }
}

fn api_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Memory limits need the kernel's memory controller; some boards start without it.
fn cgroups(root: &Path) -> Check {
    let name = "cgroups";
    let advice = "memory limits have no effect: add `cgroup_enable=memory` to the kernel's \
                  command line";
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    if let Some(controllers) = read("sys/fs/cgroup/cgroup.controllers") {
        if controllers.split_whitespace().any(|name| name == "memory") {
            return Check::ok(name, "version 2 with memory limits");
        }
        return Check::warning(name, "version 2 without the memory controller").advice(advice);
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
        Check::warning(name, "version 1 without the memory controller").advice(advice)
    }
}

fn disk(info: Option<&EngineInfo>) -> Check {
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
fn reserve(settings: &Settings) -> Check {
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

fn clock_check<C: Clock>(clock: &C) -> Check {
    let (name, now) = ("clock", clock.now());
    let found = format!("it shows {now}");
    if clock::is_plausible(now) {
        Check::ok(name, found)
    } else {
        Check::warning(name, found).advice(
            "that is before this agent was built: update windows wait, and TLS may fail; \
             set up time synchronisation",
        )
    }
}

async fn dns(origin: Option<&Origin>) -> Check {
    let name = "DNS";
    let Some((host, port)) = origin.and_then(Origin::host_and_port) else {
        return Check::warning(name, "no server to look up: this device is not enrolled");
    };
    let lookup = tokio::net::lookup_host((host.as_str(), port));
    let advice = "see /etc/resolv.conf and the network; what runs goes on without it";
    match tokio::time::timeout(DNS_LIMIT, lookup).await {
        Ok(Ok(mut addresses)) => match addresses.next() {
            Some(address) => Check::ok(name, format!("{host} is {}", address.ip())),
            None => Check::wrong(name, format!("{host} has no address")).advice(advice),
        },
        Ok(Err(error)) => {
            Check::wrong(name, format!("{host} cannot be looked up: {error}")).advice(advice)
        }
        Err(_) => {
            let seconds = DNS_LIMIT.as_secs();
            Check::wrong(name, format!("no answer about {host} within {seconds} s")).advice(advice)
        }
    }
}

/// Asks for the target as the agent does: the way, the certificate and the token in one.
async fn server(settings: &Settings, enrolment: Option<&Enrolment>) -> Check {
    let name = "control API";
    let Some(enrolment) = enrolment else {
        return Check::warning(name, "not asked: this device is not enrolled");
    };
    let asked = async {
        let origin = Origin::parse(&enrolment.api_url)?;
        let client = Client::new(origin, settings.api.ca_file.as_deref());
        let client = client.map_err(|error| chain(&error))?;
        let answer = client
            .state(&enrolment.uuid, &enrolment.token, None, 0)
            .await;
        answer.map_err(|error| chain(&error))
    };
    match asked.await {
        Ok(_) => Check::ok(name, format!("{} knows this device", enrolment.api_url)),
        Err(error) => Check::wrong(name, error).advice(
            "what runs goes on; look at address, certificate (api.ca_file), clock and enrolment",
        ),
    }
}

#[cfg(test)]
mod tests {
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
        assert!(off.advice.unwrap().contains("cgroup_enable=memory"));
        write("proc/cgroups", "cpu\t1\t1\t1\nmemory\t9\t70\t1\n");
        assert_eq!(cgroups(root.path()).verdict, Verdict::Ok);
        write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n");
        assert_eq!(cgroups(root.path()).verdict, Verdict::Warning);
        write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu memory\n");
        assert_eq!(cgroups(root.path()).verdict, Verdict::Ok);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_wrong_and_nothing_is_left_in_one_that_can() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(state_folder(folder.path()).verdict, Verdict::Ok);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let missing = state_folder(&folder.path().join("none"));
        assert_eq!(missing.verdict, Verdict::Wrong);
        assert!(missing.advice.is_some());
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
    fn api_versions_compare_as_numbers() {
        assert!(api_version("1.9") < Some(TESTED_API));
        assert!(api_version("1.100") > Some(TESTED_API));
        assert_eq!(api_version("none"), None);
    }

    struct At(i64);

    impl Clock for At {
        fn now(&self) -> holdfast_proto::time::Timestamp {
            holdfast_proto::time::Timestamp::from_millis(self.0)
        }
        fn monotonic_ms(&self) -> u64 {
            0
        }
        async fn sleep_ms(&self, _: u64) {}
    }

    #[test]
    fn a_clock_in_1970_is_named() {
        assert_eq!(clock_check(&At(86_400_000)).verdict, Verdict::Warning);
        let now = clock::EARLIEST.as_millis();
        assert_eq!(clock_check(&At(now)).verdict, Verdict::Ok);
    }
}
