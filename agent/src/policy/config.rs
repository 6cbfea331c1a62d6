//! Owns the policy file: who may have written it, its keys, and the rules that come of them.
//!
//! Refuses a file that anybody but root could have written, an unknown key, and a rule that would
//! allow more than it says.

use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use holdfast_proto::spec::{ByteSize, Cpus};
use serde::Deserialize;

use super::pattern::{ImagePattern, PathPattern, clean_path};
use super::{
    BindRule, Ceilings, Policy, Ports, Rules, canonical_capability, canonical_option, is_below,
};

/// Where the policy is looked for when no other place is named.
pub const DEFAULT_PATH: &str = "/etc/holdfast/policy.yaml";
/// More than any list that a person keeps.
const MAX_BYTES: u64 = 256 << 10;

/// The policy cannot be used, so nothing may be changed by it.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file could not be read.
    #[error("cannot read the policy {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody beside root could have written it.
    #[error("the policy {} cannot be trusted: {why}", path.display())]
    NotRoots {
        /// The file or its folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// It is too large.
    #[error("the policy {} is larger than {} KiB", path.display(), MAX_BYTES >> 10)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is no YAML.
    #[error("the policy {} is not valid YAML: {detail}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        detail: String,
    },
    /// Keys are unknown or have values that cannot be used.
    #[error("{}", faults.join("\n"))]
    Keys {
        /// One line for each, beginning with the file and the key's path.
        faults: Vec<String>,
    },
}

impl Policy {
    /// Reads the policy file that was named, or else the default one.
    ///
    /// Only the default one may be missing: then nothing is restricted. A file that is there counts
    /// only if nobody but root can have written it.
    pub fn load(named: Option<&Path>) -> Result<Self, PolicyError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let failed = |source| PolicyError::Read {
            path: path.to_owned(),
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
                return Ok(Self::unrestricted());
            }
            Err(error) => return Err(failed(error)),
        };
        // Of the open file, not of its name: it cannot be exchanged in between.
        let metadata = file.metadata().map_err(failed)?;
        trusted(path, metadata.uid(), metadata.mode())?;
        // Who can write the folder can take the file away.
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let metadata = std::fs::metadata(folder).map_err(failed)?;
        trusted(folder, metadata.uid(), metadata.mode())?;
        let mut text = String::new();
        let mut bounded = file.take(MAX_BYTES + 1);
        bounded.read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(PolicyError::TooLarge {
                path: path.to_owned(),
            });
        }
        Self::parse(path, &text)
    }

    /// The same, from the file's text.
    pub fn parse(path: &Path, text: &str) -> Result<Self, PolicyError> {
        let keys = |faults: Vec<String>| PolicyError::Keys {
            faults: faults
                .into_iter()
                .map(|fault| format!("{}: {fault}", path.display()))
                .collect(),
        };
        let value: serde_yaml::Value =
            serde_yaml::from_str(text).map_err(|error| PolicyError::Syntax {
                path: path.to_owned(),
                detail: error.to_string(),
            })?;
        let value = match value {
            serde_yaml::Value::Null => serde_yaml::Value::Mapping(serde_yaml::Mapping::new()),
            other => other,
        };
        let input: Input = serde_path_to_error::deserialize(value).map_err(|error| {
            let key = error.path().to_string();
            keys(vec![format!("{key}: {}", error.into_inner())])
        })?;
        let rules = input.validate().map_err(keys)?;
        Ok(Self(Some(Rc::new(rules))))
    }
}

/// Whether only root can have written what has this owner and mode.
fn trusted(path: &Path, uid: u32, mode: u32) -> Result<(), PolicyError> {
    owner_fault(uid, mode).map_or(Ok(()), |why| {
        Err(PolicyError::NotRoots {
            path: path.to_owned(),
            why,
        })
    })
}

/// Who beside root could have written a file; nobody, if this gives nothing.
fn owner_fault(uid: u32, mode: u32) -> Option<String> {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    if uid != 0 {
        return Some(format!("it belongs to user {uid}, make it root's"));
    }
    (mode & WRITABLE_BY_OTHERS != 0)
        .then(|| "others than root may write it, take that away with chmod go-w".to_owned())
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a line of the policy file"
)]
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Input {
    registries: Option<Vec<String>>,
    privileged: bool,
    host_network: bool,
    host_pid: bool,
    host_ipc: bool,
    host_userns: bool,
    bind_mounts: Vec<Bind>,
    devices: Vec<String>,
    capabilities: Vec<String>,
    security_opt: Vec<String>,
    sysctls: Vec<String>,
    ulimits: Vec<String>,
    log_drivers: Vec<String>,
    runtimes: Vec<String>,
    ceilings: CeilingsInput,
    ports: PortsInput,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bind {
    path: String,
    #[serde(default = "yes")]
    read_only: bool,
    #[serde(default)]
    below: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CeilingsInput {
    memory: Option<ByteSize>,
    cpus: Option<Cpus>,
    pids: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PortsInput {
    host_ips: Option<Vec<IpAddr>>,
    range: Option<String>,
}

impl Input {
    fn validate(self) -> Result<Rules, Vec<String>> {
        let mut faults = Vec::new();
        let registries = self.registries.unwrap_or_else(|| {
            faults
                .push("registries: write where images may come from, [\"*\"] for anywhere".into());
            Vec::new()
        });
        let rules = Rules {
            registries: each(&registries, "registries", &mut faults, |text| {
                ImagePattern::parse(text)
                    .ok_or_else(|| "is no registry such as ghcr.io or ghcr.io/team".to_owned())
            }),
            privileged: self.privileged,
            host_network: self.host_network,
            host_pid: self.host_pid,
            host_ipc: self.host_ipc,
            host_userns: self.host_userns,
            bind_mounts: bind_mounts(&self.bind_mounts, &mut faults),
            devices: each(&self.devices, "devices", &mut faults, |text| {
                PathPattern::parse(text)
                    .ok_or_else(|| "is no device file such as /dev/ttyUSB*".to_owned())
            }),
            capabilities: each(&self.capabilities, "capabilities", &mut faults, |name| {
                let name = canonical_capability(name);
                let plain =
                    !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
                plain
                    .then_some(name)
                    .ok_or_else(|| "is no capability such as NET_ADMIN".to_owned())
            }),
            security_opt: names(&self.security_opt, "security_opt", &mut faults)
                .iter()
                .map(|option| canonical_option(option))
                .collect(),
            sysctls: names(&self.sysctls, "sysctls", &mut faults),
            ulimits: names(&self.ulimits, "ulimits", &mut faults),
            log_drivers: names(&self.log_drivers, "log_drivers", &mut faults),
            runtimes: names(&self.runtimes, "runtimes", &mut faults),
            ceilings: Ceilings {
                memory: self.ceilings.memory,
                cpus: self.ceilings.cpus,
                pids: self.ceilings.pids,
            },
            ports: Ports {
                host_ips: self.ports.host_ips,
                range: self.ports.range.and_then(|text| {
                    let range = range(&text);
                    if range.is_none() {
                        let fault = format!("ports.range: `{text}` is no range such as 1024-65535");
                        faults.push(fault);
                    }
                    range
                }),
            },
        };
        if faults.is_empty() {
            Ok(rules)
        } else {
            Err(faults)
        }
    }
}

fn each<T>(
    texts: &[String],
    key: &str,
    faults: &mut Vec<String>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let mut values = Vec::with_capacity(texts.len());
    for (position, text) in texts.iter().enumerate() {
        match read(text) {
            Ok(value) => values.push(value),
            Err(fault) => faults.push(format!("{key}[{position}]: `{text}` {fault}")),
        }
    }
    values
}

/// Names that are compared as they are written.
fn names(texts: &[String], key: &str, faults: &mut Vec<String>) -> Vec<String> {
    each(texts, key, faults, |name| {
        if name.trim().is_empty() || name.contains('*') {
            Err("is no name: each is written out".to_owned())
        } else {
            Ok(name.to_owned())
        }
    })
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (0 < first && first <= last).then_some(first..=last)
}

/// Where engines keep volumes, which any container may write.
const ENGINE_FOLDERS: [&str; 2] = ["/var/lib/docker", "/var/lib/containers"];

/// A container that may write somewhere can plant a link there that leads anywhere on the device, so
/// that nothing below such a place can be promised to be what it is called.
fn bind_mounts(inputs: &[Bind], faults: &mut Vec<String>) -> Vec<BindRule> {
    let mut rules: Vec<BindRule> = Vec::with_capacity(inputs.len());
    for (position, input) in inputs.iter().enumerate() {
        let key = format!("bind_mounts[{position}]");
        match clean_path(&input.path) {
            Some(path) => rules.push(BindRule {
                path,
                read_only: input.read_only,
                below: input.below,
            }),
            None => faults.push(format!("{key}.path: `{}` is no absolute path", input.path)),
        }
        if input.below && !input.read_only {
            faults.push(format!(
                "{key}.below: what lies below a writable path cannot be allowed: a container could \
                 put a link there that leads anywhere; list each path by itself"
            ));
        }
    }
    let engine = ENGINE_FOLDERS.map(str::to_owned);
    let writable = rules.iter().filter(|rule| !rule.read_only);
    for writable in writable.map(|rule| &rule.path).chain(&engine) {
        for rule in &rules {
            let inside = is_below(&rule.path, writable);
            let around = rule.below && is_below(writable, &rule.path);
            if inside || around {
                faults.push(format!(
                    "bind_mounts: {} overlaps with {writable}, which containers may write: one \
                     could put a link there that leads anywhere",
                    rule.path
                ));
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_but_root_can_write_is_trusted() {
        for (uid, mode, trusted) in [
            (0, 0o100_600, true),
            (0, 0o100_644, true),
            (0, 0o100_640, true),
            (0, 0o40_755, true),
            (0, 0o100_664, false),
            (0, 0o100_646, false),
            (0, 0o40_1777, false),
            (1_000, 0o100_600, false),
            (1_000, 0o100_644, false),
        ] {
            assert_eq!(owner_fault(uid, mode).is_none(), trusted, "{uid} {mode:o}");
        }
    }
}
