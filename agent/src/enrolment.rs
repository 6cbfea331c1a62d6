//! Owns who this device is: its id, its token and its server, in one private file.
//!
//! Refuses to show the token: no Debug, no Display, no log.

use std::path::{Path, PathBuf};

use holdfast_proto::id::DeviceId;
use serde::{Deserialize, Serialize};

/// A device's bearer token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// Wraps a token.
    pub fn new(token: String) -> Self {
        Self(token)
    }

    /// The token itself, for the one header it belongs in.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What an enrolment gave this device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// The device's id.
    pub uuid: DeviceId,
    /// The device's token.
    pub token: Token,
    /// The server that gave it: the token is never sent to another.
    pub api_url: String,
    /// How often that server wants to be asked.
    pub poll_interval_seconds: u64,
}

/// The enrolment could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// There is none.
    #[error("this device is not enrolled: run `holdfast-agent enroll --key KEY --api URL`")]
    Missing,
    /// The file is not readable as an enrolment.
    #[error("cannot read {}; enrol again or restore the file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The file in a state folder.
pub(crate) fn path_in(folder: &Path) -> PathBuf {
    folder.join("enrolment.json")
}

impl Enrolment {
    /// Reads the enrolment kept in a state folder.
    pub fn load(folder: &Path) -> Result<Self, EnrolmentError> {
        let path = path_in(folder);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(EnrolmentError::Missing);
            }
            Err(source) => return Err(EnrolmentError::Read { path, source }),
        };
        serde_json::from_slice(&bytes).map_err(|error| EnrolmentError::Read {
            path,
            // The message of a JSON error may quote the token: only its place is kept.
            source: std::io::Error::other(format!(
                "not an enrolment (line {}, column {})",
                error.line(),
                error.column()
            )),
        })
    }

    /// Writes it so that a power cut leaves the old file or the new one, readable by its owner only.
    pub fn store(&self, folder: &Path) -> Result<(), EnrolmentError> {
        let path = path_in(folder);
        let written = serde_json::to_vec_pretty(self)
            .map_err(std::io::Error::from)
            .and_then(|bytes| crate::durable::replace(&path, &bytes));
        written.map_err(|source| EnrolmentError::Write { path, source })
    }
}

/// Makes the state folder, closed to other users, if there is none.
pub fn make_state_folder(folder: &Path) -> Result<(), EnrolmentError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| EnrolmentError::Write {
            path: folder.to_owned(),
            source,
        })
}

/// Gives what root wrote to whom the folder belongs: the agent's user must be able to read it.
pub fn hand_over(folder: &Path) -> Result<(), EnrolmentError> {
    use std::os::unix::fs::{MetadataExt as _, lchown};
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| EnrolmentError::Write { path, source }
    };
    let owner = std::fs::metadata(folder).map_err(failed(folder))?;
    for path in [path_in(folder), crate::lock::path_in(folder)] {
        let file = std::fs::symlink_metadata(&path).map_err(failed(&path))?;
        if file.uid() != owner.uid() {
            lchown(&path, Some(owner.uid()), Some(owner.gid())).map_err(failed(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn enrolment() -> Enrolment {
        Enrolment {
            uuid: DeviceId::from_random([1; 16]),
            token: Token::new("hfd_secret".to_owned()),
            api_url: "http://127.0.0.1:1/".to_owned(),
            poll_interval_seconds: 30,
        }
    }

    #[test]
    fn is_kept_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            Enrolment::load(folder.path()),
            Err(EnrolmentError::Missing)
        ));
        enrolment().store(folder.path()).unwrap();
        let meta = std::fs::metadata(path_in(folder.path())).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        assert_eq!(Enrolment::load(folder.path()).unwrap(), enrolment());
    }

    #[test]
    fn what_root_wrote_belongs_to_the_folders_owner() {
        use std::os::unix::fs::{MetadataExt as _, chown};
        // Only root can write into another user's folder at all.
        let own = rustix::process::geteuid();
        let owner = if own.is_root() { 65_534 } else { own.as_raw() };
        let folder = tempfile::tempdir().unwrap();
        chown(folder.path(), Some(owner), None).unwrap();
        let lock = crate::lock::FolderLock::take(folder.path()).unwrap();
        enrolment().store(folder.path()).unwrap();
        hand_over(folder.path()).unwrap();
        drop(lock);
        for file in std::fs::read_dir(folder.path()).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().uid(), owner);
        }
    }

    #[test]
    fn never_shows_its_token() {
        assert!(!format!("{:?}", enrolment()).contains("hfd_secret"));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(path_in(folder.path()), r#"{"token":"hfd_secret","uuid":1}"#).unwrap();
        let error = Enrolment::load(folder.path()).unwrap_err();
        assert!(!crate::fault::chain(&error).contains("hfd_secret"));
    }
}
