//! Owns the files that secrets and configs become: written below the runtime folder, which is memory.
//!
//! Refuses a folder on a disk, where a secret would outlive the power, unless the configuration says
//! that this is meant. The content goes nowhere else: not into labels, logs or errors.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use holdfast_proto::id::ServiceKey;
use holdfast_proto::image::Digest;
use holdfast_proto::spec::{FileGrant, ServiceSpec};

/// Everyone in the container may read, nobody may write (Compose spec, "mode").
const DEFAULT_MODE: u32 = 0o444;
/// Only the agent and root may look into the folders.
const FOLDER_MODE: u32 = 0o700;
/// File systems that live in memory (linux/magic.h: `TMPFS_MAGIC`, `RAMFS_MAGIC`).
const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Where the files are and what may hold them.
#[derive(Clone, Debug)]
pub struct Place {
    /// The agent's runtime folder.
    pub runtime_dir: PathBuf,
    /// Whether the folder may be on a disk.
    pub on_disk: bool,
}

/// The files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The runtime folder is on a disk.
    #[error(
        "{} is not in memory, so secrets would stay on the disk: \
         mount a tmpfs there, or set `secrets_on_disk: true`", folder.display()
    )]
    OnDisk {
        /// The folder.
        folder: PathBuf,
    },
    /// An owner is no number.
    #[error("`{field}` of {file} is not a number")]
    Owner {
        /// The file.
        file: String,
        /// Which of `uid` and `gid`.
        field: &'static str,
    },
    /// The file cannot be given to its owner.
    #[error("cannot give {file} to {owner}: the agent needs CAP_CHOWN for `uid` and `gid`")]
    Chown {
        /// The file.
        file: String,
        /// The owner and group.
        owner: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or folder could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One file and where a container sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GrantedFile {
    /// On the device.
    pub(crate) path: PathBuf,
    /// In the container.
    pub(crate) target: String,
}

/// The files of a service's secrets and configs, in the order of the spec.
pub(crate) fn files(runtime_dir: &Path, key: &ServiceKey, spec: &ServiceSpec) -> Vec<GrantedFile> {
    let folder = folder(runtime_dir, key, spec);
    grants(spec)
        .map(|(name, default_folder, grant)| {
            let named = grant.target.as_ref().unwrap_or(&grant.source);
            let target = if named.starts_with('/') {
                named.clone()
            } else {
                format!("{default_folder}{named}")
            };
            GrantedFile {
                path: folder.join(name),
                target,
            }
        })
        .collect()
}

/// Each with its file's name on the device and the folder that Compose puts it in by default.
///
/// The names are numbers: what a spec calls its secrets could lead out of the folder.
fn grants(spec: &ServiceSpec) -> impl Iterator<Item = (String, &'static str, &FileGrant)> {
    let secrets = spec.secrets.iter().enumerate();
    let configs = spec.configs.iter().enumerate();
    secrets
        .map(|(number, grant)| (format!("secret-{number}"), "/run/secrets/", grant))
        .chain(configs.map(|(number, grant)| (format!("config-{number}"), "/", grant)))
}

/// The folder with all files of a service.
pub(crate) fn service_folder(runtime_dir: &Path, key: &ServiceKey) -> PathBuf {
    runtime_dir
        .join("files")
        .join(key.app.as_str())
        .join(key.service.as_str())
}

/// Named by what is in it: the files of one spec never change, and two specs never share one.
fn folder(runtime_dir: &Path, key: &ServiceKey, spec: &ServiceSpec) -> PathBuf {
    // Plain data: JSON can always write it.
    let text = serde_json::to_string(&(&spec.secrets, &spec.configs)).unwrap_or_default();
    service_folder(runtime_dir, key).join(Digest::of(text.as_bytes()).hex())
}

/// Makes sure that the files of a service's secrets and configs are there.
///
/// Call it before a container is created **and** before each start of one: memory is empty after a
/// reboot, and a container whose files are missing does not start. Files that are there already are
/// not touched.
pub fn ensure(place: &Place, key: &ServiceKey, spec: &ServiceSpec) -> Result<(), SecretsError> {
    if grants(spec).next().is_none() {
        return Ok(());
    }
    let folder = folder(&place.runtime_dir, key, spec);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| SecretsError::Write { path, source }
    };
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(FOLDER_MODE);
    builder.create(&folder).map_err(failed(&folder))?;
    if !place.on_disk && !is_in_memory(&folder).map_err(failed(&folder))? {
        return Err(SecretsError::OnDisk { folder });
    }
    for (name, _, grant) in grants(spec) {
        let path = folder.join(&name);
        if path.is_dir() {
            // Podman makes a folder of a mount's missing source.
            fs::remove_dir(&path).map_err(failed(&path))?;
        }
        if !path.exists() {
            write(&folder, &path, grant)?;
        }
    }
    Ok(())
}

/// Writes beside, then renames: a file under its own name is always whole and has its owner.
fn write(folder: &Path, path: &Path, grant: &FileGrant) -> Result<(), SecretsError> {
    let failed = |source| SecretsError::Write {
        path: path.to_owned(),
        source,
    };
    let number = |field: &'static str, text: &Option<String>| {
        let parsed = text.as_ref().map(|text| text.parse::<u32>()).transpose();
        parsed.map_err(|_| SecretsError::Owner {
            file: grant.source.clone(),
            field,
        })
    };
    let (uid, gid) = (number("uid", &grant.uid)?, number("gid", &grant.gid)?);
    let half = folder.join("half");
    remove_file(&half).map_err(failed)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(&half).map_err(failed)?;
    file.write_all(grant.content.as_bytes()).map_err(failed)?;
    if uid.is_some() || gid.is_some() {
        let word = |id: Option<u32>| id.map_or("-".to_owned(), |id| id.to_string());
        std::os::unix::fs::fchown(&file, uid, gid).map_err(|source| SecretsError::Chown {
            file: grant.source.clone(),
            owner: format!("{}:{}", word(uid), word(gid)),
            source,
        })?;
    }
    // After the owner: changing that takes special bits away. Never a special bit of its own.
    let mode = grant.mode.unwrap_or(DEFAULT_MODE) & 0o777;
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(failed)?;
    drop(file);
    fs::rename(&half, path).map_err(failed)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_in_memory(folder: &Path) -> io::Result<bool> {
    let found = rustix::fs::statfs(folder)?;
    // The kernel's number has 32 bits, whatever its type is called here.
    let kind = u64::try_from(found.f_type).unwrap_or_default() & 0xffff_ffff;
    Ok(MEMORY_FILE_SYSTEMS.contains(&kind))
}

/// Removes the files of every spec but these: those that run, and those that may have to come back.
///
/// A file that a container uses must stay: the engine needs it again when it restarts the container.
pub fn keep_only<'s>(
    runtime_dir: &Path,
    wanted: impl IntoIterator<Item = (ServiceKey, &'s ServiceSpec)>,
) -> io::Result<()> {
    let keep: Vec<PathBuf> = wanted
        .into_iter()
        .map(|(key, spec)| folder(runtime_dir, &key, spec))
        .collect();
    for app in folders(&runtime_dir.join("files"))? {
        for service in folders(&app)? {
            for spec in folders(&service)? {
                if !keep.contains(&spec) {
                    fs::remove_dir_all(&spec)?;
                }
            }
            remove_if_empty(&service)?;
        }
        remove_if_empty(&app)?;
    }
    Ok(())
}

fn folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn remove_if_empty(folder: &Path) -> io::Result<()> {
    if folders(folder)?.is_empty() {
        fs::remove_dir(folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
