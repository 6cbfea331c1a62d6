//! Owns whether the disk has room for what is about to be done. Refuses to guess: an unmeasured disk
//! holds nothing back.

use std::fmt;

use crate::Situation;
use crate::history::ServiceHistory;
use crate::images::canonical;

/// What is free where the engine keeps images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that an ordinary user may still write.
    pub free_bytes: u64,
    /// Files that may still be made; none where the file system does not count them.
    pub free_inodes: Option<u64>,
    /// Bytes that must stay free, whatever is done.
    pub floor_bytes: u64,
    /// How often what is fetched lies here until it is unpacked: with the engine, and with the agent where
    /// that keeps it on the same disk.
    pub copies: u64,
}

/// Not enough room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Too few bytes.
    Bytes {
        /// So many must be free.
        need: u64,
        /// So many are.
        free: u64,
    },
    /// Too few files may be made.
    Inodes {
        /// So many must be free.
        need: u64,
        /// So many are.
        free: u64,
    },
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { need, free } => {
                write!(
                    f,
                    "it needs {} free, {} are",
                    megabytes(*need),
                    megabytes(*free)
                )
            }
            Self::Inodes { need, free } => {
                write!(
                    f,
                    "it needs room for {need} files, there is room for {free}"
                )
            }
        }
    }
}

/// Bytes in the unit that people compare; a need is never shown smaller than it is by much.
fn megabytes(bytes: u64) -> String {
    const MB: u64 = 1_000_000;
    if bytes < 10 * MB {
        format!("{}.{} MB", bytes / MB, bytes % MB / (MB / 10))
    } else {
        format!("{} MB", bytes / MB)
    }
}

/// Unpacked, images of common languages and systems take 2.2 to 2.8 times what is fetched (debian,
/// nginx, python, node); the fetched layers lie beside them until they are unpacked, see [`Disk::copies`].
pub const UNPACKED_PER_FETCHED: u64 = 3;
/// Between a distribution (a file for each 5 kB fetched) and one program alone: enough to tell an image
/// that cannot fit, few enough to hold no other back.
const FETCHED_PER_INODE: u64 = 20_000;
/// Containers, their folders and layers, whatever the image.
const LEAST_INODES: u64 = 100;
/// A pull that ran out of room is not tried again for a few bytes more.
const LEAST_GAIN: u64 = 16 << 20;

/// What is missing for a pull of so many bytes; none if it fits, or nobody can tell.
pub(crate) fn lacks_for_pull(
    situation: &Situation<'_>,
    image: &str,
    size_bytes: u64,
) -> Option<Shortage> {
    lacks(situation, image, size_bytes, 0)
}

/// The same, after images of `gain_bytes` are gone.
pub(crate) fn lacks(
    situation: &Situation<'_>,
    image: &str,
    size_bytes: u64,
    gain_bytes: u64,
) -> Option<Shortage> {
    let disk = situation.observed.disk?;
    // What is to be cleared away first shares nothing with what comes then.
    let shared_bytes = if gain_bytes == 0 {
        may_share_bytes(situation, image)
    } else {
        0
    };
    let fetched = size_bytes.saturating_sub(shared_bytes);
    let mut need = fetched
        .saturating_mul(disk.copies.saturating_add(UNPACKED_PER_FETCHED))
        .saturating_add(disk.floor_bytes);
    if let Some(began) = situation.history.outgrown.get(image) {
        need = need.max(began.saturating_add(size_bytes.max(LEAST_GAIN)));
    }
    if disk.free_bytes.saturating_add(gain_bytes) < need {
        let free = disk.free_bytes;
        return Some(Shortage::Bytes { need, free });
    }
    let need = LEAST_INODES.saturating_add(fetched / FETCHED_PER_INODE);
    lacks_inodes(disk, need)
}

/// What images of the same repository that are there already took to fetch, the largest of them.
///
/// Which layers they share with the new one nobody can tell before the pull: only what it is larger by is
/// asked for, and the pull is watched. One that was cut off for it is asked for in full, see `outgrown`.
fn may_share_bytes(situation: &Situation<'_>, image: &str) -> u64 {
    let repository = |name: &str| name.split('@').next().map(str::to_owned);
    let own = repository(&canonical(image));
    let stored = situation.observed.stored.as_deref().unwrap_or_default();
    let history = situation.history.services.values();
    let past = history.flat_map(ServiceHistory::ways_back);
    let target = situation.target.services().map(|(_, service)| service);
    let siblings = past.chain(target).filter_map(|service| {
        let pinned = canonical(&service.pinned_image()?);
        let is_there = stored.iter().any(|image| image.digests.contains(&pinned));
        let expected = service.pin.as_ref()?.expected.as_ref()?;
        (is_there && repository(&pinned) == own).then_some(expected.size_bytes)
    });
    siblings.max().unwrap_or(0)
}

/// What is missing for making a container and swapping it in.
pub(crate) fn lacks_for_swap(situation: &Situation<'_>) -> Option<Shortage> {
    let disk = situation.observed.disk?;
    if disk.free_bytes < disk.floor_bytes {
        return Some(Shortage::Bytes {
            need: disk.floor_bytes,
            free: disk.free_bytes,
        });
    }
    lacks_inodes(disk, LEAST_INODES)
}

fn lacks_inodes(disk: Disk, need: u64) -> Option<Shortage> {
    let free = disk.free_inodes?;
    (free < need).then_some(Shortage::Inodes { need, free })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_says_its_numbers() {
        let bytes = Shortage::Bytes {
            need: 240_000_000,
            free: 5_250_000,
        };
        assert_eq!(bytes.to_string(), "it needs 240 MB free, 5.2 MB are");
        let inodes = Shortage::Inodes { need: 100, free: 3 };
        assert_eq!(
            inodes.to_string(),
            "it needs room for 100 files, there is room for 3"
        );
    }
}
