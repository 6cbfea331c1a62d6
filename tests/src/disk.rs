//! Small file systems in a file, for disks that fill up, run out of inodes or turn read-only.
//!
//! They need root and a loop device, like the lab's engines.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use tempfile::TempDir;

use crate::{apt, place};

/// How big a file system should be.
#[derive(Debug, Clone, Copy)]
pub struct SmallDisk {
    /// Its size, the file system's own tables included.
    pub bytes: u64,
    /// How many files it can hold; as many as usual, unless told.
    pub inodes: Option<u32>,
}

impl SmallDisk {
    /// A file system of this size.
    pub fn of(bytes: u64) -> Self {
        Self {
            bytes,
            inodes: None,
        }
    }

    /// Makes it in `file` and mounts it on `at`.
    pub(crate) fn mount(self, file: &Path, at: &Path) -> anyhow::Result<()> {
        apt::require(&["mkfs.ext4", "mount", "umount"])?;
        fs::create_dir_all(at)?;
        File::create(file)?.set_len(self.bytes)?;
        let mut make = Command::new("mkfs.ext4");
        // Nothing kept back for root, and no journal: a full disk is full at once.
        make.args(["-q", "-F", "-m", "0", "-O", "^has_journal"]);
        if let Some(inodes) = self.inodes {
            make.args(["-N", &inodes.to_string()]);
        }
        apt::run(make.arg(file))?;
        apt::run(Command::new("mount").args(["-o", "loop"]).arg(file).arg(at))?;
        Ok(())
    }
}

/// A mounted small file system; dropping it unmounts it.
#[derive(Debug)]
pub struct Disk {
    folder: TempDir,
}

impl Disk {
    /// Makes and mounts one.
    pub fn mount(disk: SmallDisk) -> anyhow::Result<Self> {
        let folder = place::temporary("disk")?;
        disk.mount(&folder.path().join("file"), &folder.path().join("root"))?;
        Ok(Self { folder })
    }

    /// Where it is mounted.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// What is left after a power cut now: the disk as the kernel has written it, mounted on its own. What nobody
    /// asked to be written lies in the memory of the file system that goes on here.
    pub fn after_power_cut(&self) -> anyhow::Result<Self> {
        apt::require(&["e2fsck", "mount", "umount"])?;
        let folder = place::temporary("disk")?;
        let (file, root) = (folder.path().join("file"), folder.path().join("root"));
        fs::copy(self.folder.path().join("file"), &file)?;
        fs::create_dir(&root)?;
        // 0: clean; 1: mended, as a machine does at its next start.
        let checked = Command::new("e2fsck")
            .args(["-f", "-y"])
            .arg(&file)
            .output()?;
        let code = checked.status.code();
        anyhow::ensure!(matches!(code, Some(0 | 1)), "e2fsck: {checked:?}");
        apt::run(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(&file)
                .arg(&root),
        )?;
        Ok(Self { folder })
    }

    /// Cuts the power: what nobody asked to be written is gone. Programs that had files open on it are dead by then.
    pub fn lose_power(&self) -> anyhow::Result<()> {
        let left = self.after_power_cut()?;
        apt::run(Command::new("umount").arg(left.root()))?;
        // This writes the rest of its memory, into a file that is replaced at once.
        apt::run(Command::new("umount").arg(self.root()))?;
        let file = self.folder.path().join("file");
        fs::copy(left.folder.path().join("file"), &file)?;
        let mut mount = Command::new("mount");
        apt::run(mount.args(["-o", "loop"]).arg(file).arg(self.root())).map(drop)
    }

    /// Makes it read-only at once, as the kernel does after an error, whoever has files open on it.
    pub fn fail(&self) -> anyhow::Result<()> {
        let mut mount = Command::new("mount");
        apt::run(mount.args(["-o", "remount,abort"]).arg(self.root())).map(drop)
    }

    /// Writable again after [`Disk::fail`], for programs that start from now on.
    pub fn mend(&self) -> anyhow::Result<()> {
        let root = self.root();
        // At once where nobody uses it: while a lazy one ends, two loop devices would write to one file.
        let at_once = apt::run(Command::new("umount").arg(&root));
        at_once.or_else(|_| apt::run(Command::new("umount").arg("-l").arg(&root)))?;
        let file = self.folder.path().join("file");
        apt::run(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(file)
                .arg(root),
        )
        .map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a program of the test may still hold a file open, and ends a moment later.
        let _ = apt::run(Command::new("umount").arg("-l").arg(self.root()));
    }
}

/// Fills the file system that `folder` is on up to this many free bytes; the file it took is given back.
pub fn fill(folder: &Path, leave_bytes: u64) -> anyhow::Result<PathBuf> {
    let path = folder.join(format!("filler-{}", place::unique()));
    let mut file = File::create(&path)?;
    let free = |folder: &Path| -> anyhow::Result<u64> {
        let disk = rustix::fs::statvfs(folder).context("ask for free space")?;
        Ok(disk.f_bavail * disk.f_frsize)
    };
    let chunk = vec![0x5a; 64 << 10];
    loop {
        let left = free(folder)?.saturating_sub(leave_bytes);
        let some = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        if some == 0 || file.write_all(&chunk[..some]).is_err() {
            break;
        }
        // Blocks are counted when they are allocated.
        file.sync_data().ok();
    }
    Ok(path)
}
