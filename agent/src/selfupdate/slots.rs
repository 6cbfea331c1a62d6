//! Owns what is remembered of the agent's own programs: the file beside them, and how it is written.
//!
//! The launcher that reads it may be older than the agent that wrote it: members are only ever added, a
//! reader leaves out what it does not know, and another format is another file's business.

use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use holdfast_plan::{FailedAgent, RunningAgent};
use holdfast_proto::target::Identity;
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::durable;

/// The folder of the programs, below the state folder.
pub const FOLDER: &str = "versions";
/// What is remembered of them.
const FILE: &str = "state.json";
/// The program's name in its slot.
pub const PROGRAM: &str = "holdfast-agent";
/// Names, digests and two reasons; a file that is larger is not ours.
const MAX_BYTES: u64 = 64 << 10;
/// What this agent writes and understands.
const FORMAT: u32 = 1;

/// Where a program of the agent is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Where it was installed with the machine, by a package for instance.
    #[default]
    Package,
    /// The first slot of the state folder.
    A,
    /// The second one.
    B,
}

impl Place {
    /// The word for it, also the name of its folder.
    pub fn word(self) -> &'static str {
        match self {
            Self::Package => "package",
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The slot of that name.
    pub fn slot(word: &str) -> Option<Self> {
        [Self::A, Self::B]
            .into_iter()
            .find(|place| place.word() == word)
    }

    /// The slot that can be written while this one runs.
    #[must_use]
    pub fn other_slot(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::Package | Self::B => Self::A,
        }
    }

    /// Its program, in the folder of all.
    pub fn program(self, folder: &Path) -> PathBuf {
        folder.join(self.word()).join(PROGRAM)
    }
}

/// A release of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// What the target named.
    pub identity: Identity,
    /// Its pinned image.
    pub image: String,
    /// Its version, as its list of sums says.
    pub version: String,
    /// The hash of the program, in hexadecimal digits.
    pub sha256: String,
}

/// The release that was confirmed last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Current {
    /// Where its program is.
    pub place: Place,
    /// What it is.
    pub release: Release,
    /// How often it was started since it was last seen to work.
    #[serde(default)]
    pub starts: u32,
}

/// A release that has to prove itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    /// Where its program is.
    pub place: Place,
    /// What it is.
    pub release: Release,
    /// How often its trial was begun.
    #[serde(default)]
    pub tries: u32,
    /// When it was begun last, unless it was ended in good order since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Begun>,
}

/// A moment of one start of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Begun {
    /// The kernel's name for that start.
    pub boot: String,
    /// Milliseconds since then.
    pub uptime_ms: u64,
}

/// A release that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failed {
    /// Which one.
    pub identity: Identity,
    /// How, in words.
    pub reason: String,
}

/// A release that lived but reached nobody, which may not be its fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unreached {
    /// Which one.
    pub identity: Identity,
    /// How often.
    pub times: u32,
    /// When last.
    pub at: Timestamp,
    /// What it did not reach, in words.
    pub reason: String,
}

/// The program that was installed with the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Package {
    /// How its file looked.
    pub stamp: Stamp,
    /// The hash of its content, in hexadecimal digits.
    pub sha256: String,
}

/// What tells a file from another one that was put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stamp {
    /// Its file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Its length.
    pub size: u64,
    /// When it was written last, seconds and nanoseconds.
    pub modified: (i64, i64),
}

impl Stamp {
    /// Of a file that is there.
    pub fn of(found: &std::fs::Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }
}

/// What came of an update of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Came {
    /// It runs for good.
    Confirmed,
    /// It failed, and the one before it is back.
    Rejected,
    /// It reached nobody; the one before it is back and tries it again.
    Unreached,
    /// Somebody installed another program in its place.
    Superseded,
}

/// The last update of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The release's version.
    pub version: String,
    /// Its pinned image.
    pub image: String,
    /// What came of it.
    pub came: Came,
    /// Why, where it is not obvious.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// All that is remembered of the agent's programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Slots {
    /// What this was written as.
    pub(super) format: u32,
    /// The installed program, as it was when a release was last put beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<Package>,
    /// What runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<Current>,
    /// What is to run for a trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    /// What failed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    /// What is tried again later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreached: Option<Unreached>,
    /// What ran until somebody installed another program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superseded: Option<Release>,
    /// The last update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Outcome>,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            format: FORMAT,
            package: None,
            current: None,
            trial: None,
            failed: None,
            unreached: None,
            superseded: None,
            last: None,
        }
    }
}

impl Slots {
    /// Reads what is remembered in the folder of the programs; nothing, if no release was ever put there.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let path = folder.join(FILE);
        let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(told(&error)),
        };
        let mut text = Vec::new();
        let read = file.take(MAX_BYTES + 1).read_to_end(&mut text);
        read.map_err(|error| told(&error))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(told(&"it is too large"));
        }
        let slots: Self = serde_json::from_slice(&text).map_err(|error| told(&error))?;
        if slots.format != FORMAT {
            let format = slots.format;
            return Err(told(&format!("format {format} is not known here")));
        }
        Ok(slots)
    }

    /// Writes it; on the disk when this returns.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        durable::replace(&folder.join(FILE), &text)
    }

    /// Notes what came of a release.
    pub fn note(&mut self, release: &Release, came: Came, reason: Option<&str>, at: Timestamp) {
        self.last = Some(Outcome {
            version: release.version.clone(),
            image: release.image.clone(),
            came,
            reason: reason.map(str::to_owned),
            at,
        });
    }

    /// Notes that a release failed.
    pub fn fail(&mut self, release: &Release, reason: String, at: Timestamp) {
        self.note(release, Came::Rejected, Some(&reason), at);
        self.failed = Some(Failed {
            identity: release.identity,
            reason,
        });
        self.unreached = None;
    }

    /// The agent in the planner's words, as far as this tells it, if the program in `place` runs.
    pub fn running(&self, place: Place) -> RunningAgent {
        let current = self.current.as_ref();
        let current = current.filter(|current| current.place == place);
        RunningAgent {
            identity: current.map(|current| current.release.identity),
            image: current.map(|current| current.release.image.clone()),
            failed: self.failed.as_ref().map(|failed| FailedAgent {
                identity: failed.identity,
                reason: failed.reason.clone(),
            }),
            superseded: self.superseded.as_ref().map(|release| release.identity),
            ..RunningAgent::default()
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use holdfast_proto::hash::SpecHash;
    use holdfast_proto::image::{ConfigDigest, Digest};
    use holdfast_proto::spec::ServiceSpec;

    use super::*;

    pub(in crate::selfupdate) fn release(name: &str) -> Release {
        Release {
            identity: Identity {
                config_digest: ConfigDigest(Digest::of(name.as_bytes())),
                spec_hash: SpecHash::of(&ServiceSpec::default()),
            },
            image: format!("registry.example/agent@{}", Digest::of(name.as_bytes())),
            version: name.to_owned(),
            sha256: Digest::of(name.as_bytes()).hex(),
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_is_no_fault() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Slots::read(folder.path()), Ok(Slots::default()));
        let mut slots = Slots {
            trial: Some(Trial {
                place: Place::B,
                release: release("2"),
                tries: 1,
                begun: Some(Begun {
                    boot: "boot".to_owned(),
                    uptime_ms: 5,
                }),
            }),
            ..Slots::default()
        };
        slots.fail(
            &release("1"),
            "it died".to_owned(),
            Timestamp::from_millis(7),
        );
        slots.write(folder.path()).unwrap();
        assert_eq!(Slots::read(folder.path()), Ok(slots));
    }

    #[test]
    fn what_a_newer_agent_added_is_left_out_and_another_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(folder.path().join(FILE), text).unwrap();
        write(r#"{"format":1,"news":{"a":1}}"#);
        assert_eq!(Slots::read(folder.path()), Ok(Slots::default()));
        for bad in ["", "{", r#"{"format":2}"#, "[2]", r#"{"trial":{}}"#] {
            write(bad);
            assert!(Slots::read(folder.path()).is_err(), "{bad}");
        }
        write(&" ".repeat(70_000));
        assert!(
            Slots::read(folder.path())
                .unwrap_err()
                .contains("too large")
        );
    }
}
