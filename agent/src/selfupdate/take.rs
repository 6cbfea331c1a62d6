//! Owns taking a release's program out of its image: proved before it is whole, whole before it is named.
//!
//! The files are read from a container that is made for it and never started. Refuses everything that is not
//! proved, without touching the program that runs.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use holdfast_proto::spec::ServiceSpec;
use holdfast_proto::target::{Identity, ServiceTarget};
use holdfast_proto::time::Timestamp;
use ring::digest::{Context, SHA256};

use super::launcher::{own_hash, own_head, package};
use super::release::{HEAD_BYTES, Listed, fits, listed};
use super::slots::{Came, Current, PROGRAM, Place, Release, Trial};
use super::{SelfUpdate, hex};
use crate::disk;
use crate::engine::member::Piece;
use crate::engine::{Engine, ReadError};

/// Ten times an agent of today.
const MAX_PROGRAM_BYTES: u64 = 64 << 20;
/// Lines of a hundred bytes, one for each platform.
const MAX_SUMS_BYTES: u64 = 64 << 10;
/// Four lines.
const MAX_SIGNATURE_BYTES: u64 = 4 << 10;
/// What has to stay free beside the program: the journal and what is remembered of releases.
const MARGIN_BYTES: u64 = 4 << 20;

/// A release's program could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It is not what it should be, and never will be.
    #[error("{0}")]
    Rejected(String),
    /// The disk has no room for it.
    #[error("its program needs {need} bytes beside the one that runs, {free} are free")]
    NoRoom {
        /// What it needs, with what has to stay free.
        need: u64,
        /// What is free.
        free: u64,
    },
    /// It could not be read just now.
    #[error("{path} could not be read out of its image")]
    Read {
        /// Which file.
        path: &'static str,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// It could not be written just now.
    #[error("its program could not be written")]
    Write(#[from] std::io::Error),
}

const SUMS: &str = "/SHA256SUMS";
const SIGNATURE: &str = "/SHA256SUMS.minisig";
const IN_IMAGE: &str = "/holdfast-agent";

impl SelfUpdate {
    /// Takes the program of a release and writes down that it is to be tried. One that is the very program that
    /// runs is the agent from now on, without a trial.
    ///
    /// `container` is made from the release's image and holds the files.
    pub async fn take<E: Engine>(
        &self,
        engine: &E,
        container: &str,
        service: &ServiceTarget,
        now: Timestamp,
    ) -> Result<(), TakeError> {
        let Some(identity) = service.identity() else {
            return Err(TakeError::Rejected("it was not resolved".to_owned()));
        };
        let sums = small(engine, container, SUMS, MAX_SUMS_BYTES).await?;
        let signature = small(engine, container, SIGNATURE, MAX_SIGNATURE_BYTES).await?;
        let listed = listed(&self.keys, &sums, &signature).map_err(TakeError::Rejected)?;
        let release = release(identity, service, listed);
        let package = package(&self.launched)?;
        if own_hash()? == release.sha256 {
            let place = self.launched.place;
            self.make_folder(&self.folder)?;
            return Ok(self.change(|slots| {
                slots.package = Some(package);
                slots.note(&release, Came::Confirmed, None, now);
                slots.current = Some(Current {
                    place,
                    release,
                    starts: 0,
                });
                (slots.failed, slots.superseded) = (None, None);
            })?);
        }
        let place = self.launched.place.other_slot();
        self.write_program(engine, container, &release, place)
            .await?;
        self.change(|slots| {
            slots.package = Some(package);
            slots.trial = Some(Trial {
                place,
                release,
                tries: 0,
                begun: None,
            });
        })?;
        self.begun.set(true);
        Ok(())
    }

    fn make_folder(&self, folder: &Path) -> std::io::Result<()> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.and_then(|()| {
            // The folder's own name must outlive a power cut as well.
            let above = folder.parent().unwrap_or(&self.folder);
            File::open(above)?.sync_all()
        })
    }

    async fn write_program<E: Engine>(
        &self,
        engine: &E,
        container: &str,
        release: &Release,
        place: Place,
    ) -> Result<(), TakeError> {
        let program = place.program(&self.folder);
        let folder = program.parent().unwrap_or(&self.folder);
        self.make_folder(&self.folder)?;
        self.make_folder(folder)?;
        let fresh = Fresh::begin(folder)?;
        let mut file = &fresh.file;
        let mut context = Context::new(&SHA256);
        let mut head = Vec::with_capacity(HEAD_BYTES);
        let mut lacks = None;
        let mut take = |piece: Piece<'_>| match piece {
            Piece::Size(bytes) => {
                let need = bytes.saturating_add(MARGIN_BYTES);
                let free = disk::free(folder).map_or(need, |free| free.bytes);
                if free < need {
                    lacks = Some(TakeError::NoRoom { need, free });
                    return Err(std::io::ErrorKind::StorageFull.into());
                }
                Ok(())
            }
            Piece::Bytes(bytes) => {
                let missing = HEAD_BYTES.saturating_sub(head.len()).min(bytes.len());
                head.extend_from_slice(&bytes[..missing]);
                context.update(bytes);
                file.write_all(bytes)
            }
        };
        let read = engine.read_file(container, IN_IMAGE, MAX_PROGRAM_BYTES, &mut take);
        let read = read.await;
        if let Some(lacks) = lacks {
            return Err(lacks);
        }
        read.map_err(|source| not_read(IN_IMAGE, source))?;
        if hex(context.finish().as_ref()) != release.sha256 {
            let why = "its program is not the one that SHA256SUMS names";
            return Err(TakeError::Rejected(why.to_owned()));
        }
        fits(&head, &own_head()?).map_err(TakeError::Rejected)?;
        Ok(fresh.finish(&program)?)
    }
}

fn release(identity: Identity, service: &ServiceTarget, listed: Listed) -> Release {
    Release {
        identity,
        image: service.image_name.clone(),
        version: listed.version,
        sha256: listed.sha256,
    }
}

/// The service whose container holds a release's files: it is never started, so that its program is only
/// named because engines make no container without one.
pub(crate) fn holder(service: &ServiceTarget) -> ServiceTarget {
    let command = serde_json::json!({ "command": [IN_IMAGE] });
    let config: ServiceSpec = serde_json::from_value(command).unwrap_or_default();
    ServiceTarget {
        config: ServiceSpec {
            image: service.config.image.clone(),
            holdfast: service.config.holdfast.clone(),
            ..config
        },
        ..service.clone()
    }
}

async fn small<E: Engine>(
    engine: &E,
    container: &str,
    path: &'static str,
    most_bytes: u64,
) -> Result<Vec<u8>, TakeError> {
    let mut found = Vec::new();
    let mut take = |piece: Piece<'_>| {
        if let Piece::Bytes(bytes) = piece {
            found.extend_from_slice(bytes);
        }
        Ok(())
    };
    let read = engine
        .read_file(container, path, most_bytes, &mut take)
        .await;
    read.map_err(|source| not_read(path, source))?;
    Ok(found)
}

/// Whether a file that was not read will never be.
fn not_read(path: &'static str, source: ReadError) -> TakeError {
    match source {
        ReadError::NotThere | ReadError::NotAFile | ReadError::TooLarge { .. } => {
            TakeError::Rejected(format!("{path} of its image cannot be used: {source}"))
        }
        ReadError::Sink(error) => TakeError::Write(error),
        ReadError::Engine(_) | ReadError::Truncated => TakeError::Read { path, source },
    }
}

/// A program that is being written; dropped before it is finished, it is gone.
struct Fresh {
    file: File,
    path: PathBuf,
    finished: bool,
}

impl Fresh {
    fn begin(folder: &Path) -> std::io::Result<Self> {
        let path = folder.join(format!("{PROGRAM}.new"));
        // Never the file of a program that runs: a name of its own, begun anew.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self {
            file,
            path,
            finished: false,
        })
    }

    fn finish(mut self, program: &Path) -> std::io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(0o755))?;
        self.file.sync_all()?;
        std::fs::rename(&self.path, program)?;
        self.finished = true;
        match program.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.finished {
            // What is left is removed before the next one is written.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
