//! Owns what this device's owner lets any target ask for, whoever sends it.
//!
//! The rules come from a file that only root can write, are read once at start, and cannot be widened
//! by the control API. Without a file nothing is restricted (`doctor` recommends one); with a file
//! whatever reaches beyond a container is refused unless it is listed.
//!
//! Refuses to judge a spec: `engine/guard.rs` judges the finished request, field by field, by these rules.

mod config;
mod pattern;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;

use holdfast_proto::image::Reference;
use holdfast_proto::spec::{ByteSize, Cpus};

pub use config::{DEFAULT_PATH, PolicyError};
pub(crate) use pattern::clean_path;
use pattern::{ImagePattern, PathPattern};

/// What the device's owner allows; made by [`Policy::load`].
#[derive(Clone, Debug, Default)]
pub struct Policy(Option<Rc<Rules>>);

impl Policy {
    /// The policy of a device without a policy file: everything is allowed.
    pub fn unrestricted() -> Self {
        Self::default()
    }

    /// The rules; none when nothing is restricted.
    pub fn rules(&self) -> Option<&Rules> {
        self.0.as_deref()
    }
}

/// The policy does not allow a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this device's policy does not allow `{field}`: {why}")]
pub struct Refusal {
    /// The field of the engine's request, in the engine's words.
    pub field: String,
    /// Why not.
    pub why: String,
}

/// The rules of a policy file. A container itself, its named volumes, the networks of its app and
/// its memory file systems are always allowed; the rest is refused unless it is listed here.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a line of the policy file"
)]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Where images may come from.
    registries: Vec<ImagePattern>,
    /// Containers with all rights on the device.
    pub(crate) privileged: bool,
    /// The device's own network.
    pub(crate) host_network: bool,
    /// The device's own processes.
    pub(crate) host_pid: bool,
    /// The device's own shared memory.
    pub(crate) host_ipc: bool,
    /// The device's own users, on an engine that maps them.
    pub(crate) host_userns: bool,
    bind_mounts: Vec<BindRule>,
    devices: Vec<PathPattern>,
    /// Capabilities that may be added, in upper case and without `CAP_`.
    capabilities: Vec<String>,
    /// Security options, written with `=`.
    security_opt: Vec<String>,
    /// Names of kernel parameters.
    pub(crate) sysctls: Vec<String>,
    /// Names of kernel limits.
    pub(crate) ulimits: Vec<String>,
    /// Logging drivers beside those that keep the log on the device.
    pub(crate) log_drivers: Vec<String>,
    /// Runtimes beside the engine's default.
    pub(crate) runtimes: Vec<String>,
    /// The most that one container may use.
    pub(crate) ceilings: Ceilings,
    /// Where ports may be published.
    pub(crate) ports: Ports,
}

/// A path of the device that containers may be given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BindRule {
    /// In the form of [`clean_path`].
    path: String,
    read_only: bool,
    /// Whether everything below the path is meant too.
    below: bool,
}

/// The most that one container may use; a container without a limit exceeds any.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ceilings {
    pub(crate) memory: Option<ByteSize>,
    pub(crate) cpus: Option<Cpus>,
    pub(crate) pids: Option<u32>,
}

/// Where ports may be published; nowhere named means anywhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ports {
    pub(crate) host_ips: Option<Vec<IpAddr>>,
    pub(crate) range: Option<RangeInclusive<u16>>,
}

impl Rules {
    /// Whether an image may come from where its reference says.
    pub(crate) fn allows_image(&self, reference: &Reference) -> bool {
        let repository = reference.repository();
        let mut patterns = self.registries.iter();
        patterns.any(|pattern| pattern.covers(repository.registry(), repository.path()))
    }

    /// Whether a path of the device, in the form of [`clean_path`], may be mounted this way.
    pub(crate) fn allows_bind(&self, path: &str, read_only: bool) -> bool {
        self.bind_mounts.iter().any(|rule| {
            let covers = rule.path == path || (rule.below && is_below(path, &rule.path));
            covers && (read_only || !rule.read_only)
        })
    }

    /// Whether a device file, in the form of [`clean_path`], may be given to a container.
    pub(crate) fn allows_device(&self, path: &str) -> bool {
        self.devices.iter().any(|pattern| pattern.covers(path))
    }

    /// Whether a capability may be added, in any of the engine's spellings.
    pub(crate) fn allows_capability(&self, name: &str) -> bool {
        self.capabilities.contains(&canonical_capability(name))
    }

    /// Whether a security option may be set, in either of the engine's spellings.
    pub(crate) fn allows_security_option(&self, option: &str) -> bool {
        let option = canonical_option(option);
        // It only ever takes rights away.
        let tightens = matches!(
            option.as_str(),
            "no-new-privileges" | "no-new-privileges=true"
        );
        tightens || self.security_opt.contains(&option)
    }
}

/// Whether `path` lies strictly below `folder`, by whole components. Links below `/proc` lead
/// anywhere on the device, so nothing there is below anything else.
fn is_below(path: &str, folder: &str) -> bool {
    let in_proc = |path: &str| path == "/proc" || path.starts_with("/proc/");
    let rest = path.strip_prefix(folder.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.starts_with('/') && rest.len() > 1) && !in_proc(path)
}

/// Engines take `CAP_NET_ADMIN`, `NET_ADMIN` and `net_admin` for one.
fn canonical_capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

/// Engines take `seccomp:unconfined`, the older spelling, for `seccomp=unconfined`.
fn canonical_option(option: &str) -> String {
    if option.contains('=') {
        option.to_owned()
    } else {
        option.replacen(':', "=", 1)
    }
}

#[cfg(test)]
mod tests;
