//! Owns the reserve: a file that only takes room, so that deleting it lets a commit or a way back through
//! on a full disk.
//!
//! A full disk stops an engine from changing a restart policy and the journal from writing an intent, but
//! takes nothing from what runs (measured). The file lies beside the journal: where the engine keeps its
//! data on another file system, it saves the journal only. It holds no spare inodes: neither a container
//! that was made before nor the journal needs a new file to go back.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::disk;

/// The file's name in the state folder.
const FILE: &str = "reserve";
/// Less than this is full: one more intent and one more change of a container may not fit.
const FULL_BYTES: u64 = 4 << 20;
/// Written at once where a file system cannot allocate without writing.
static BLOCK: [u8; 4 << 10] = [0; 4 << 10];

/// The reserve of one state folder.
pub struct Reserve {
    folder: PathBuf,
    bytes: u64,
    is_made: Cell<bool>,
}

impl Reserve {
    /// The reserve of a state folder, as it is; changes nothing yet.
    pub fn of(folder: &Path, bytes: u64) -> Self {
        let found = std::fs::symlink_metadata(folder.join(FILE));
        let is_made = found.is_ok_and(|found| found.is_file() && is_whole(&found, bytes));
        Self {
            folder: folder.to_owned(),
            bytes,
            is_made: Cell::new(is_made && bytes > 0),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// What has to stay free by itself because the file does not hold it.
    pub fn missing_bytes(&self) -> u64 {
        if self.is_made.get() { 0 } else { self.bytes }
    }

    /// Makes the file if it is not there and at least twice as much is free; whether it is as it should be.
    /// One of another size makes way.
    pub fn make(&self) -> bool {
        if self.is_made.get() {
            return true;
        }
        if self.path().exists() {
            self.delete();
        }
        if self.bytes == 0 {
            return true;
        }
        let free_bytes = disk::free(&self.folder).map_or(0, |free| free.bytes);
        if free_bytes < self.bytes.saturating_mul(2) {
            return false;
        }
        match self.allocate() {
            Ok(()) => self.is_made.set(true),
            Err(error) => {
                tracing::warn!(%error, "the reserve could not be made");
                self.delete();
            }
        }
        self.is_made.get()
    }

    fn allocate(&self) -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path())?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => fill(&mut file, self.bytes)?,
            Err(error) => return Err(error.into()),
        }
        file.sync_all()
    }

    /// Deletes the file if the disk is full; whether that made room.
    pub fn give_up_if_full(&self) -> bool {
        let is_full = disk::free(&self.folder).is_some_and(|free| free.bytes < FULL_BYTES);
        is_full && self.give_up()
    }

    /// Deletes the file; whether that made room.
    pub fn give_up(&self) -> bool {
        if !self.is_made.replace(false) {
            return false;
        }
        self.delete();
        tracing::warn!("the disk is full: the reserve was given up so that work could be ended");
        true
    }

    fn delete(&self) {
        if let Err(error) = std::fs::remove_file(self.path())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the reserve could not be deleted");
        }
    }
}

/// Whether a file takes the room that its length says.
fn is_whole(found: &std::fs::Metadata, bytes: u64) -> bool {
    /// The unit of `st_blocks`, whatever the file system's own.
    const BLOCK_BYTES: u64 = 512;
    found.len() == bytes && found.blocks().saturating_mul(BLOCK_BYTES) >= bytes
}

fn fill(file: &mut File, bytes: u64) -> std::io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).map_or(BLOCK.len(), |left| left.min(BLOCK.len()));
        file.write_all(&BLOCK[..part])?;
        left = left.saturating_sub(u64::try_from(part).unwrap_or(left));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const BYTES: u64 = 300_000;

    #[test]
    fn it_takes_its_room_is_private_and_goes_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(folder.path(), BYTES);
        assert_eq!(reserve.missing_bytes(), BYTES);
        assert!(reserve.make());
        assert_eq!(reserve.missing_bytes(), 0);
        let found = std::fs::metadata(folder.path().join(FILE)).unwrap();
        assert_eq!(found.len(), BYTES);
        assert!(found.blocks() * 512 >= BYTES, "it is not sparse");
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert!(reserve.give_up());
        assert!(!reserve.give_up(), "it goes once");
        assert!(!folder.path().join(FILE).exists());
        assert!(reserve.make(), "and comes back");
    }

    #[test]
    fn one_from_before_is_taken_up_unless_its_size_changed() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Reserve::of(folder.path(), BYTES).make());
        assert_eq!(Reserve::of(folder.path(), BYTES).missing_bytes(), 0);
        let smaller = Reserve::of(folder.path(), 9);
        assert_eq!(smaller.missing_bytes(), 9);
        assert!(smaller.make());
        let found = std::fs::metadata(folder.path().join(FILE)).unwrap();
        assert_eq!(found.len(), 9);
        assert!(Reserve::of(folder.path(), 0).make());
        assert!(!folder.path().join(FILE).exists());
    }

    #[test]
    fn a_sparse_file_is_no_reserve() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join(FILE)).unwrap();
        file.set_len(BYTES).unwrap();
        assert_eq!(Reserve::of(folder.path(), BYTES).missing_bytes(), BYTES);
    }

    #[test]
    fn it_is_not_made_where_room_is_short() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(folder.path(), u64::MAX / 4);
        assert!(!reserve.make());
        assert!(!folder.path().join(FILE).exists());
    }

    #[test]
    fn without_a_size_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(folder.path(), 0);
        assert!(reserve.make());
        assert!(!folder.path().join(FILE).exists());
        assert_eq!(reserve.missing_bytes(), 0);
    }
}
