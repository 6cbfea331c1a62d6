//! Owns bytes of blobs on their way to the engine: a folder of whole blobs and of beginnings, by digest.
//!
//! Refuses to call a blob whole whose bytes do not have its digest, and to hold more than its bound. What it
//! holds survives the agent: a pull goes on where it was, after a crash or a reboot. Nothing here is synced to the
//! disk, which would hold everything else up on a slow card: what was whole before the machine was started is
//! proven again when it is wanted.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use holdfast_proto::image::{Digest, Hasher};

use crate::disk;

/// Read at a time when a beginning is hashed again.
const BLOCK: usize = 64 << 10;
/// Blocks that are hashed before others have a turn: the slowest devices hash a megabyte in a tenth of a second.
const BLOCKS_IN_A_TURN: u32 = 16;
/// Names the start of the machine in which the rest was written.
const BOOT: &str = "boot";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What a beginning is called, behind its digest.
const PART: &str = "part";

/// Why bytes cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder or a file in it.
    #[error("the spool {path} cannot be used")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It would hold more than it may.
    #[error("the spool is full: {wanted} bytes more do not fit into its {bound}")]
    Full {
        /// What was to be kept.
        wanted: u64,
        /// What it may hold in all.
        bound: u64,
    },
    /// The bytes are not those of the digest; they were thrown away.
    #[error("what came for {wanted} hashes to {found}")]
    OtherBytes {
        /// The digest that was asked for.
        wanted: Digest,
        /// That of the bytes.
        found: Digest,
    },
}

/// The folder. One process uses it at a time.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    bound: u64,
}

/// What the spool has of a blob.
#[derive(Debug)]
pub enum Held {
    /// All of it.
    Whole(File),
    /// Its beginning, which may be empty.
    Part(Box<Part>),
}

/// The beginning of a blob, which grows.
#[derive(Debug)]
pub struct Part {
    digest: Digest,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    length: u64,
}

impl Spool {
    /// Opens the folder, which is made if it is missing, and removes what is no blob, then the oldest until
    /// the rest fits into `bound` bytes.
    ///
    /// # Errors
    /// When the folder cannot be made, read or cleaned.
    pub fn open(folder: &Path, bound: u64) -> Result<Self, SpoolError> {
        let spool = Self {
            folder: folder.to_owned(),
            bound,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .create(folder)
            .map_err(|error| spool.failed(error))?;
        spool.clean(bound)?;
        spool.doubt(&fs::read_to_string(BOOT_ID).unwrap_or_default())?;
        Ok(spool)
    }

    /// After another start of the machine, blobs count as beginnings: a power cut may have taken bytes of them.
    fn doubt(&self, boot: &str) -> Result<(), SpoolError> {
        let marker = self.folder.join(BOOT);
        let is_known = !boot.is_empty() && fs::read_to_string(&marker).is_ok_and(|of| of == boot);
        if is_known {
            return Ok(());
        }
        let entries = self.entries()?;
        for entry in entries.values().filter(|entry| entry.is_blob) {
            if entry.path.extension().is_none() {
                fs::rename(&entry.path, entry.path.with_extension(PART))
                    .map_err(|error| self.failed(error))?;
            }
        }
        fs::write(&marker, boot).map_err(|error| self.failed(error))
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What there is of a blob of this size.
    ///
    /// # Errors
    /// [`SpoolError::Full`] when the rest would not fit even without everything else; otherwise when files fail.
    pub async fn hold(&self, digest: Digest, size: u64) -> Result<Held, SpoolError> {
        if let Ok(file) = File::open(self.path(digest)) {
            return Ok(Held::Whole(file));
        }
        if size > self.bound {
            return Err(SpoolError::Full {
                wanted: size,
                bound: self.bound,
            });
        }
        let path = self.path(digest).with_extension(PART);
        let part = Part::open(digest, &path, size).await;
        part.map(|part| Held::Part(Box::new(part)))
            .map_err(|error| self.failed(error))
    }

    /// How many bytes there are of a blob that is not whole yet.
    pub fn length(&self, digest: Digest) -> Option<u64> {
        let data = fs::metadata(self.path(digest).with_extension(PART)).ok()?;
        Some(data.len())
    }

    /// A whole blob and how many bytes it has; none if it is not here.
    pub fn whole(&self, digest: Digest) -> Option<(File, u64)> {
        let file = File::open(self.path(digest)).ok()?;
        let size = file.metadata().ok()?.len();
        Some((file, size))
    }

    /// Opens, when it is called, what there is of a blob: its beginning, or all of it.
    pub fn reader(&self, digest: Digest) -> impl Fn() -> io::Result<File> + use<> {
        let whole = self.path(digest);
        let part = whole.with_extension(PART);
        // A beginning may become the whole in between, never the other way.
        move || File::open(&part).or_else(|_| File::open(&whole))
    }

    /// Makes room for `bytes` more: whole blobs and beginnings go, the oldest first, but none of `kept`.
    ///
    /// # Errors
    /// [`SpoolError::Full`] when what must be kept leaves too little.
    pub fn make_room(&self, bytes: u64, kept: &[Digest]) -> Result<(), SpoolError> {
        let full = SpoolError::Full {
            wanted: bytes,
            bound: self.bound,
        };
        let mut left = self.bound.checked_sub(bytes).ok_or(full)?;
        let kept: Vec<_> = kept.iter().map(|digest| self.path(*digest)).collect();
        let is_kept = |path: &Path| kept.contains(&path.with_extension(""));
        let entries = self.entries()?;
        for entry in entries.values().filter(|entry| is_kept(&entry.path)) {
            left = left.checked_sub(entry.bytes).ok_or(SpoolError::Full {
                wanted: bytes,
                bound: self.bound,
            })?;
        }
        // The newest stay as long as they fit.
        for entry in entries.values().rev().filter(|entry| !is_kept(&entry.path)) {
            match left.checked_sub(entry.bytes) {
                Some(rest) => left = rest,
                None => fs::remove_file(&entry.path).map_err(|error| self.failed(error))?,
            }
        }
        Ok(())
    }

    /// Gives room on the disk for a pull: what is not of `kept` goes, the oldest first, until so many bytes are
    /// free.
    ///
    /// # Errors
    /// When the folder cannot be read or cleaned.
    pub fn give_way(&self, free_bytes: u64, kept: &[Digest]) -> Result<(), SpoolError> {
        let kept: Vec<_> = kept.iter().map(|digest| self.path(*digest)).collect();
        for entry in self.entries()?.values() {
            let is_short = disk::free(&self.folder).is_some_and(|free| free.bytes < free_bytes);
            if is_short && !kept.contains(&entry.path.with_extension("")) {
                fs::remove_file(&entry.path).map_err(|error| self.failed(error))?;
            }
        }
        Ok(())
    }

    /// Forgets a blob: the engine has it.
    pub fn forget(&self, digest: Digest) {
        // What stays is found and removed at the next start.
        let _ = fs::remove_file(self.path(digest));
        let _ = fs::remove_file(self.path(digest).with_extension(PART));
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    fn clean(&self, bound: u64) -> Result<(), SpoolError> {
        for entry in self.entries()?.values().filter(|entry| !entry.is_blob) {
            fs::remove_file(&entry.path).map_err(|error| self.failed(error))?;
        }
        let all = Self {
            folder: self.folder.clone(),
            bound,
        };
        all.make_room(0, &[])
    }

    /// Its files, the oldest first.
    fn entries(&self) -> Result<BTreeMap<(SystemTime, PathBuf), Entry>, SpoolError> {
        let mut entries = BTreeMap::new();
        for file in fs::read_dir(&self.folder).map_err(|error| self.failed(error))? {
            let file = file.map_err(|error| self.failed(error))?;
            let data = file.metadata().map_err(|error| self.failed(error))?;
            let path = file.path();
            if data.is_dir() || path.ends_with(BOOT) {
                continue;
            }
            let changed = data.modified().map_err(|error| self.failed(error))?;
            let entry = Entry {
                is_blob: data.is_file() && is_blob(&path),
                bytes: data.len(),
                path: path.clone(),
            };
            entries.insert((changed, path), entry);
        }
        Ok(entries)
    }

    pub(super) fn failed(&self, source: io::Error) -> SpoolError {
        SpoolError::Io {
            path: self.folder.clone(),
            source,
        }
    }
}

#[derive(Debug)]
struct Entry {
    path: PathBuf,
    bytes: u64,
    is_blob: bool,
}

fn is_blob(path: &Path) -> bool {
    let extension = path.extension();
    let stem = path.file_stem().and_then(|name| name.to_str());
    let named = stem.is_some_and(|hex| format!("sha256:{hex}").parse::<Digest>().is_ok());
    named && extension.is_none_or(|extension| extension == PART)
}

impl Part {
    async fn open(digest: Digest, path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let mut part = Self {
            digest,
            path: path.to_owned(),
            file,
            hasher: Hasher::default(),
            length: 0,
        };
        part.read_again().await?;
        if part.length > size {
            part.start_over()?;
        }
        Ok(part)
    }

    /// Hashes what a life before this one left, and lets others have their turns meanwhile.
    async fn read_again(&mut self) -> io::Result<()> {
        let mut block = vec![0; BLOCK];
        let mut reader = File::open(&self.path)?;
        loop {
            for _ in 0..BLOCKS_IN_A_TURN {
                let count = reader.read(&mut block)?;
                if count == 0 {
                    return Ok(());
                }
                self.hasher.update(&block[..count]);
                self.length += count as u64;
            }
            tokio::task::yield_now().await;
        }
    }

    /// How many bytes there are.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Adds bytes; they are in the file when this returns, so that a crash costs none of them.
    ///
    /// # Errors
    /// When the disk is full or fails; then none of these bytes count.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Throws everything away: the source cannot begin in the middle, or the bytes were wrong.
    ///
    /// # Errors
    /// When the file cannot be cut.
    pub fn start_over(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.hasher = Hasher::default();
        self.length = 0;
        Ok(())
    }

    /// Bytes that are there already, for a reader that follows; 0 at the end of what there is.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_at(&self, block: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(block, at)
    }

    /// The end: the bytes must be those of the digest. They become a whole blob, or are thrown away.
    ///
    /// # Errors
    /// [`SpoolError::OtherBytes`], or when files fail.
    pub fn finish(self) -> Result<File, SpoolError> {
        let failed = |source| SpoolError::Io {
            path: self.path.clone(),
            source,
        };
        let found = self.hasher.finish();
        if found != self.digest {
            fs::remove_file(&self.path).map_err(failed)?;
            return Err(SpoolError::OtherBytes {
                wanted: self.digest,
                found,
            });
        }
        fs::rename(&self.path, self.path.with_extension("")).map_err(failed)?;
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const BOUND: u64 = 1_000;

    fn spool(folder: &Path) -> Spool {
        Spool::open(folder, BOUND).unwrap()
    }

    fn part(spool: &Spool, digest: Digest, size: u64) -> Box<Part> {
        match hold(spool, digest, size).unwrap() {
            Held::Part(part) => part,
            Held::Whole(_) => panic!("it is whole"),
        }
    }

    /// What is short is read in one turn.
    fn hold(spool: &Spool, digest: Digest, size: u64) -> Result<Held, SpoolError> {
        spool.hold(digest, size).now_or_never().unwrap()
    }

    fn is_whole(spool: &Spool, digest: Digest) -> bool {
        matches!(hold(spool, digest, 1).unwrap(), Held::Whole(_))
    }

    #[test]
    fn after_a_reboot_what_was_whole_is_proven_again() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"whole");
        let first = spool(folder.path());
        let mut blob = part(&first, digest, 5);
        blob.append(b"whole").unwrap();
        blob.finish().unwrap();
        assert!(is_whole(&spool(folder.path()), digest), "the same boot");
        fs::write(folder.path().join(BOOT), "another").unwrap();
        let again = spool(folder.path());
        let blob = part(&again, digest, 5);
        assert_eq!(blob.length(), 5);
        blob.finish().unwrap();
        assert!(is_whole(&again, digest));
        assert!(is_whole(&spool(folder.path()), digest));
    }

    #[test]
    fn a_beginning_outlives_the_process_and_its_end_is_proven() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"first second");
        let mut first = part(&spool(folder.path()), digest, 12);
        first.append(b"first ").unwrap();
        drop(first);
        let spool = spool(folder.path());
        let mut rest = part(&spool, digest, 12);
        assert_eq!(rest.length(), 6);
        rest.append(b"second").unwrap();
        let mut block = [0; 20];
        assert_eq!(rest.read_at(&mut block, 6).unwrap(), 6);
        assert_eq!(&block[..6], b"second");
        rest.finish().unwrap();
        assert!(is_whole(&spool, digest));
        spool.forget(digest);
        assert_eq!(part(&spool, digest, 12).length(), 0);
    }

    #[test]
    fn other_bytes_are_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        let digest = Digest::of(b"right");
        let mut wrong = part(&spool, digest, 5);
        wrong.append(b"wrong").unwrap();
        let error = wrong.finish().unwrap_err();
        assert!(matches!(error, SpoolError::OtherBytes { .. }), "{error}");
        assert_eq!(part(&spool, digest, 5).length(), 0);
    }

    #[test]
    fn a_beginning_that_is_too_long_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        let digest = Digest::of(b"x");
        part(&spool, digest, 9).append(b"123456789").unwrap();
        assert_eq!(part(&spool, digest, 8).length(), 0);
    }

    #[test]
    fn at_the_start_strangers_go_and_then_the_oldest_until_it_fits() {
        let folder = tempfile::tempdir().unwrap();
        let of = |n: u8| Digest::of(&[n]);
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        for n in 0..3 {
            let path = folder.path().join(of(n).hex());
            fs::write(&path, [n; 400]).unwrap();
            File::open(&path)
                .unwrap()
                .set_modified(at(n.into()))
                .unwrap();
        }
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        fs::write(folder.path().join(of(1).hex()).with_extension("odd"), "x").unwrap();
        let spool = spool(folder.path());
        assert_eq!(spool.entries().unwrap().len(), 2);
        assert_eq!(
            [0, 1, 2].map(|n| spool.length(of(n))),
            [None, Some(400), Some(400)]
        );
    }

    #[test]
    fn on_a_disk_that_is_too_full_all_goes_but_what_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        let of = |n: u8| Digest::of(&[n]);
        for n in 0..3 {
            fs::write(folder.path().join(of(n).hex()), [n; 100]).unwrap();
        }
        spool.give_way(1, &[]).unwrap();
        assert!((0..3).all(|n| is_whole(&spool, of(n))));
        spool.give_way(u64::MAX, &[of(1)]).unwrap();
        assert_eq!(
            [0, 1, 2].map(|n| is_whole(&spool, of(n))),
            [false, true, false]
        );
    }

    #[test]
    fn room_is_made_without_what_must_stay_and_never_beyond_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        let of = |n: u8| Digest::of(&[n]);
        for n in 0..2 {
            fs::write(folder.path().join(of(n).hex()), [n; 400]).unwrap();
        }
        spool.make_room(600, &[of(0)]).unwrap();
        assert!(is_whole(&spool, of(0)));
        assert!(!is_whole(&spool, of(1)));
        assert!(matches!(
            spool.make_room(601, &[of(0)]),
            Err(SpoolError::Full { .. })
        ));
        assert!(matches!(
            hold(&spool, of(7), BOUND + 1),
            Err(SpoolError::Full { .. })
        ));
    }
}
