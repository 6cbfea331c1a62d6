//! Owns the promise that one agent works at a time: per state folder, and per device on an engine.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use holdfast_proto::id::DeviceId;

/// Another agent is at work, or it could not be told whether one is.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds the state folder.
    #[error("another agent{} works with {}; stop it first", pid.as_ref().map(|pid| format!(" (process {pid})")).unwrap_or_default(), folder.display())]
    FolderTaken {
        /// The state folder.
        folder: PathBuf,
        /// The process that wrote itself into the lock file.
        pid: Option<String>,
    },
    /// Another process works for this device on this engine, from another state folder.
    #[error("another agent works for device {device} on this engine from another state folder")]
    DeviceTaken {
        /// The device.
        device: DeviceId,
    },
    /// The lock itself could not be made.
    #[error("cannot lock {what}")]
    Io {
        /// Which lock.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The file in a state folder that is locked.
pub(crate) fn path_in(folder: &Path) -> PathBuf {
    folder.join("agent.lock")
}

/// Holds a state folder until dropped; the kernel lets go of it when the process dies.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the folder, or says who has it.
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        let path = path_in(folder);
        let failed = |source| LockError::Io {
            what: path.display().to_string(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            // A disk that turned read-only can still be locked, once there is a file.
            .or_else(|error| File::open(&path).map_err(|_| error))
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Only for the message: a lock without a readable process id is a lock all the same.
                let _ = file.read_to_string(&mut pid);
                let pid = Some(pid.trim().to_owned()).filter(|pid| !pid.is_empty());
                return Err(LockError::FolderTaken {
                    folder: folder.to_owned(),
                    pid,
                });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        // Only for the message above: a full disk takes no lock away.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

/// Holds one device's containers on one engine until dropped.
#[derive(Debug)]
pub struct DeviceLock {
    _socket: UnixListener,
}

impl DeviceLock {
    /// Takes the device on the engine with this id, or says that it is taken.
    ///
    /// A name in the kernel's abstract socket space: it needs no folder that both agents know, and
    /// it ends with the process.
    pub fn take(device: &DeviceId, engine_id: &str) -> Result<Self, LockError> {
        let name = format!("holdfast-agent/{device}/{engine_id}");
        let failed = |source| LockError::Io {
            what: format!("device {device}"),
            source,
        };
        // Abstract names have at most 107 bytes; the engine's id is text of its choosing.
        let name = name.get(..name.len().min(107)).unwrap_or(&name);
        let address = SocketAddr::from_abstract_name(name).map_err(failed)?;
        match UnixListener::bind_addr(&address) {
            Ok(socket) => Ok(Self { _socket: socket }),
            Err(source) if source.kind() == std::io::ErrorKind::AddrInUse => {
                Err(LockError::DeviceTaken { device: *device })
            }
            Err(source) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_on_the_same_folder_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::take(folder.path()).unwrap();
        let refused = FolderLock::take(folder.path()).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        drop(first);
        assert!(FolderLock::take(folder.path()).is_ok());
    }

    #[test]
    fn a_second_agent_for_the_same_device_and_engine_is_refused() {
        let device = DeviceId::from_random([7; 16]);
        let first = DeviceLock::take(&device, "ENGINE").unwrap();
        assert!(matches!(
            DeviceLock::take(&device, "ENGINE"),
            Err(LockError::DeviceTaken { .. })
        ));
        assert!(DeviceLock::take(&device, "OTHER").is_ok());
        assert!(DeviceLock::take(&DeviceId::from_random([8; 16]), "ENGINE").is_ok());
        drop(first);
        assert!(DeviceLock::take(&device, "ENGINE").is_ok());
    }
}
