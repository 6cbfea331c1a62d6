//! Owns what is free on a file system. Refuses to guess: what cannot be measured is unknown.

use std::path::Path;

use holdfast_plan::Disk;

use crate::reserve::Reserve;

/// What making a container and swapping it in writes: its folder, its first log lines, the engine's own
/// records. Below it an engine fails half-way (measured: create and update fail, start errs but runs).
const SWAP_BYTES: u64 = 16 << 20;

/// What is free on one file system, for a user without privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Bytes.
    pub bytes: u64,
    /// Files that can still be made; none where the file system does not count them.
    pub inodes: Option<u64>,
}

/// What is free where `folder` is; none if it cannot be seen from here.
pub fn free(folder: &Path) -> Option<Free> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(Free {
        bytes: found.f_bavail.saturating_mul(found.f_frsize),
        inodes: (found.f_files > 0).then_some(found.f_favail),
    })
}

/// The disk that the engine keeps images on, in the planner's words.
pub fn of_engine(root: &Path, reserve: &Reserve) -> Option<Disk> {
    let free = free(root)?;
    Some(Disk {
        free_bytes: free.bytes,
        free_inodes: free.inodes,
        floor_bytes: SWAP_BYTES.saturating_add(reserve.missing_bytes()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_unknown() {
        assert!(free(Path::new("/")).is_some_and(|free| free.bytes > 0));
        assert_eq!(free(Path::new("/no/such/folder")), None);
    }
}
