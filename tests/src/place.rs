//! The lab's folder on this machine, its locks, and loopback ports nobody else in the lab has.
//!
//! It refuses a folder that belongs to somebody else. Every lock is an advisory file lock, so a
//! killed process never leaves one behind.

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, ensure};
use tempfile::TempDir;

/// First and last port handed out: below the kernel's range for outgoing connections.
const PORTS: std::ops::RangeInclusive<u16> = 20_000..=31_999;

/// The lab's folder: `HOLDFAST_LAB_DIR`, else one in `/tmp` per user.
///
/// It stays short because a unix socket's path ends at 107 bytes, and it is not in a memory file
/// system because engines keep their images below it.
pub fn root() -> anyhow::Result<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let path = match std::env::var_os("HOLDFAST_LAB_DIR") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(format!("/tmp/holdfast-lab-{uid}")),
    };
    // Others may pass through (PostgreSQL runs as its own user) but not look around.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(&path)
        .with_context(|| format!("create the lab's folder {}", path.display()))?;
    let owner = fs::symlink_metadata(&path)?;
    ensure!(
        owner.is_dir() && owner.uid() == uid,
        "{} is not our folder",
        path.display()
    );
    Ok(path)
}

/// A folder below the lab's folder, made when missing.
pub fn folder(name: &str) -> anyhow::Result<PathBuf> {
    let path = root()?.join(name);
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// A temporary folder below the lab's folder, removed when dropped.
///
/// A process that is killed cannot remove its own; the next process of the lab does it.
pub fn temporary(what: &str) -> anyhow::Result<TempDir> {
    static SWEPT: Once = Once::new();
    let below = folder("tmp")?;
    SWEPT.call_once(|| {
        for entry in fs::read_dir(&below).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let owner = name.split('-').next().unwrap_or_default();
            if !Path::new("/proc").join(owner).exists() {
                // Another process may be removing it too.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    });
    let prefix = format!("{}-{what}-", std::process::id());
    let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(&below);
    made.with_context(|| format!("make a folder in {}", below.display()))
}

/// Opens a lock file of the lab without locking it.
pub fn lock_file(name: &str) -> anyhow::Result<File> {
    let path = folder("locks")?.join(name);
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open the lock {}", path.display()))
}

/// Takes a lock of the lab; it is free again when the returned file closes.
pub fn lock(name: &str) -> anyhow::Result<File> {
    let file = lock_file(name)?;
    file.lock().with_context(|| format!("lock {name}"))?;
    Ok(file)
}

/// A loopback port that stays ours, also while nothing listens, until this value is dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Finds a port that no lab process holds and nothing listens on.
    pub fn take() -> anyhow::Result<Self> {
        let span = PORTS.end() - PORTS.start() + 1;
        let [high, low, ..] = *uuid::Uuid::from_bytes(random()?).as_bytes();
        let start = u16::from_be_bytes([high, low]) % span;
        for step in 0..span {
            let number = PORTS.start() + (start + step) % span;
            let file = lock_file(&format!("port-{number}"))?;
            if file.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Ok(Self {
                    number,
                    _lock: file,
                });
            }
        }
        anyhow::bail!("every port from {PORTS:?} is taken")
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

/// Sixteen random bytes from the system.
pub fn random() -> anyhow::Result<[u8; 16]> {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 16];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system gave no random bytes"))?;
    Ok(bytes)
}

/// A short random word (10 hex letters) for names that must not meet another test's.
///
/// # Panics
/// When the system has no random bytes.
pub fn unique() -> String {
    let bytes = random().expect("the system's random source answers");
    bytes[..5].iter().fold(String::new(), |mut word, byte| {
        use std::fmt::Write as _;
        write!(word, "{byte:02x}").expect("a String takes everything");
        word
    })
}
