//! Owns update locks that services take with a file: what a lease says, and how long it holds.
//!
//! Refuses to be fooled by what a container may put there: links, pipes, huge files and garbage are
//! read as a lock that says nothing, never followed and never waited for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use holdfast_proto::id::ServiceKey;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::fault::foreign;

/// The file's name, in a service's folder and at the top for the whole device.
pub const FILE: &str = "update.lock";
/// A lease is three short fields.
const MAX_BYTES: u64 = 4_096;
/// What a lock says that cannot be read.
const UNREADABLE: &str = "unreadable lock";

/// Who wants no update, for how long, and why. An empty one is a lock, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lease {
    /// Who holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How long it holds after the agent first saw it; until it is taken away when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// What for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Lease {
    /// Makes the texts fit for logs and reports: they are a stranger's.
    #[must_use]
    pub fn tamed(self) -> Self {
        let tame = |text: Option<String>| {
            let text = text.map(|text| foreign(&text));
            text.filter(|text| !text.is_empty())
        };
        Self {
            owner: tame(self.owner),
            reason: tame(self.reason),
            ttl_seconds: self.ttl_seconds,
        }
    }

    /// The lock as it stands, first seen at `seen_ms`; none once its time is over.
    pub fn held(&self, seen_ms: u64, now_ms: u64) -> Option<Held> {
        let end_ms = self
            .ttl_seconds
            .map(|seconds| seen_ms.saturating_add(seconds.saturating_mul(1_000)));
        if end_ms.is_some_and(|end_ms| end_ms <= now_ms) {
            return None;
        }
        Some(Held {
            lease: self.clone(),
            left_ms: end_ms.map(|end_ms| end_ms - now_ms),
        })
    }
}

/// A lock that holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What it says.
    pub lease: Lease,
    /// Milliseconds until it ends by itself; none if it does not.
    pub left_ms: Option<u64>,
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("locked")?;
        if let Some(owner) = &self.lease.owner {
            write!(f, " by {owner}")?;
        }
        if let Some(reason) = &self.lease.reason {
            write!(f, ": {reason}")?;
        }
        Ok(())
    }
}

/// What tells one lease from the next one in the same place.
type Mark = (Option<SystemTime>, Vec<u8>);

/// The lease files of one device, and when each was first seen as it is now.
#[derive(Debug)]
pub struct LeaseFiles {
    folder: PathBuf,
    seen: BTreeMap<PathBuf, (Mark, u64)>,
}

/// The locks found by one look.
#[derive(Debug, Default)]
pub struct FileLocks {
    /// On the whole device.
    pub device: Option<Held>,
    /// On single services.
    pub services: BTreeMap<ServiceKey, Held>,
}

impl LeaseFiles {
    /// Lease files below `folder`, which may be missing.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            seen: BTreeMap::new(),
        }
    }

    /// Looks at the device's file and those of these services; forgets all others.
    pub fn look<'k>(
        &mut self,
        services: impl Iterator<Item = &'k ServiceKey>,
        now_ms: u64,
    ) -> FileLocks {
        let mut seen = BTreeMap::new();
        let mut found = FileLocks {
            device: self.one(self.folder.join(FILE), now_ms, &mut seen),
            services: BTreeMap::new(),
        };
        for key in services {
            let folder = self
                .folder
                .join(key.app.as_str())
                .join(key.service.as_str());
            if let Some(held) = self.one(folder.join(FILE), now_ms, &mut seen) {
                found.services.insert(key.clone(), held);
            }
        }
        self.seen = seen;
        found
    }

    fn one(
        &self,
        path: PathBuf,
        now_ms: u64,
        seen: &mut BTreeMap<PathBuf, (Mark, u64)>,
    ) -> Option<Held> {
        let (mark, lease) = read(&path)?;
        let since_ms = match self.seen.get(&path) {
            Some((before, since_ms)) if *before == mark => *since_ms,
            Some(_) | None => now_ms,
        };
        let held = lease.held(since_ms, now_ms);
        seen.insert(path, (mark, since_ms));
        held
    }
}

/// The lease in a file; none if there is no file. What cannot be read is a lock without an end.
fn read(path: &Path) -> Option<(Mark, Lease)> {
    let unreadable = || Lease {
        reason: Some(UNREADABLE.to_owned()),
        ..Lease::default()
    };
    // Not through links, and not waiting for the other end of a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return None,
        Err(_) => return Some(((None, Vec::new()), unreadable())),
    };
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file);
    let Some(metadata) = metadata else {
        return Some(((None, Vec::new()), unreadable()));
    };
    let mut bytes = Vec::new();
    let whole = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    let fits = whole.is_ok_and(|len| len as u64 <= MAX_BYTES);
    let lease = if !fits {
        unreadable()
    } else if bytes.trim_ascii().is_empty() {
        Lease::default()
    } else {
        serde_json::from_slice(&bytes).map_or_else(|_| unreadable(), Lease::tamed)
    };
    Some(((metadata.modified().ok(), bytes), lease))
}

#[cfg(test)]
mod tests;
