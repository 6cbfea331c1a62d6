//! Owns what is free on a file system. Refuses to guess: what cannot be measured is unknown.

use std::os::unix::fs::MetadataExt as _;
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

/// The disk that the engine keeps images on, in the planner's words. Images on their way lie in `spool`, if
/// the agent fetches them: what it holds is of use for the next pull, or goes for it.
pub fn of_engine(root: &Path, reserve: &Reserve, spool: Option<&Path>) -> Option<Disk> {
    let free = free(root)?;
    let device = |folder: &Path| std::fs::metadata(folder).ok().map(|data| data.dev());
    // Where it cannot be told they are taken for one disk: that asks for more room, not for less.
    let is_shared = |spool: &Path| {
        device(spool)
            .zip(device(root))
            .is_none_or(|(one, other)| one == other)
    };
    let spool = spool.filter(|spool| is_shared(spool));
    Some(Disk {
        free_bytes: free.bytes.saturating_add(spool.map_or(0, held)),
        free_inodes: free.inodes,
        floor_bytes: SWAP_BYTES.saturating_add(reserve.missing_bytes()),
        copies: 1 + u64::from(spool.is_some()),
    })
}

/// The bytes of the files in a folder.
fn held(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| entry.metadata().ok());
    sizes.map(|data| data.len()).sum()
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
