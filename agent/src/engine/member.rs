//! Owns reading one file out of the archive that an engine sends, piece by piece and within a bound.

use std::io;

use super::ReadError;

const BLOCK: usize = 512;

/// What is read of a file, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// How long it is.
    Size(u64),
    /// The next bytes of it.
    Bytes(&'a [u8]),
}

/// Where the bytes of a file go.
pub type Sink<'a> = &'a mut dyn FnMut(Piece<'_>) -> io::Result<()>;

/// How far an archive of one file was read.
#[derive(Debug)]
pub struct Member {
    most_bytes: u64,
    /// The block of the header that is being read.
    header: Vec<u8>,
    at: At,
}

#[derive(Debug)]
enum At {
    Header,
    /// So many bytes of something that is not the file.
    Beside(u64),
    /// So many bytes of the file are missing.
    File(u64),
    End,
}

impl Member {
    /// At an archive's beginning; a file that is longer is refused before any of it is taken.
    pub fn new(most_bytes: u64) -> Self {
        Self {
            most_bytes,
            header: Vec::with_capacity(BLOCK),
            at: At::Header,
        }
    }

    /// Takes the next bytes of the archive.
    pub fn push(&mut self, mut bytes: &[u8], take: Sink<'_>) -> Result<(), ReadError> {
        while !bytes.is_empty() {
            match self.at {
                At::Header => {
                    let some = bytes.len().min(BLOCK - self.header.len());
                    let (now, rest) = bytes.split_at(some);
                    self.header.extend_from_slice(now);
                    bytes = rest;
                    if self.header.len() == BLOCK {
                        self.begin(take)?;
                        self.header.clear();
                    }
                }
                At::Beside(left) => {
                    let some = part(bytes, left);
                    bytes = &bytes[some..];
                    self.at = match left - some as u64 {
                        0 => At::Header,
                        left => At::Beside(left),
                    };
                }
                At::File(left) => {
                    let (now, rest) = bytes.split_at(part(bytes, left));
                    take(Piece::Bytes(now)).map_err(ReadError::Sink)?;
                    bytes = rest;
                    self.at = match left - now.len() as u64 {
                        0 => At::End,
                        left => At::File(left),
                    };
                }
                At::End => return Ok(()),
            }
        }
        Ok(())
    }

    fn begin(&mut self, take: Sink<'_>) -> Result<(), ReadError> {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(&self.header);
        let kind = header.entry_type();
        let size = header.entry_size().map_err(|_| ReadError::NotAFile)?;
        let is_about_the_next = kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions()
            || kind.is_gnu_longname()
            || kind.is_gnu_longlink();
        if is_about_the_next && size <= self.most_bytes {
            self.at = match size.div_ceil(BLOCK as u64) * BLOCK as u64 {
                0 => At::Header,
                beside => At::Beside(beside),
            };
            return Ok(());
        }
        // A link would lead to another file than the one that was asked for.
        if !kind.is_file() {
            return Err(ReadError::NotAFile);
        }
        if size > self.most_bytes {
            return Err(ReadError::TooLarge {
                bytes: size,
                most_bytes: self.most_bytes,
            });
        }
        take(Piece::Size(size)).map_err(ReadError::Sink)?;
        self.at = if size == 0 { At::End } else { At::File(size) };
        Ok(())
    }

    /// Ends the archive: whether the whole file was in it.
    pub fn end(self) -> Result<(), ReadError> {
        match self.at {
            At::End => Ok(()),
            At::Header | At::Beside(_) | At::File(_) => Err(ReadError::Truncated),
        }
    }
}

fn part(bytes: &[u8], left: u64) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(kind: tar::EntryType, content: &[u8]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        if kind.is_symlink() {
            header.set_link_name("/etc/passwd").unwrap();
        }
        archive.append_data(&mut header, "file", content).unwrap();
        archive.into_inner().unwrap()
    }

    fn read(archive: &[u8], pieces: usize, most: u64) -> Result<(u64, Vec<u8>), ReadError> {
        let (mut size, mut found) = (0, Vec::new());
        let mut take = |piece: Piece<'_>| {
            match piece {
                Piece::Size(bytes) => size = bytes,
                Piece::Bytes(bytes) => found.extend_from_slice(bytes),
            }
            Ok(())
        };
        let mut member = Member::new(most);
        for piece in archive.chunks(pieces) {
            member.push(piece, &mut take)?;
        }
        member.end()?;
        Ok((size, found))
    }

    #[test]
    fn a_file_is_read_however_its_archive_is_cut() {
        let content: Vec<u8> = (0..1_300_u32).map(|n| n.to_le_bytes()[0]).collect();
        let whole = archive(tar::EntryType::Regular, &content);
        for pieces in [1, 7, 511, 512, 513, 100_000] {
            let found = read(&whole, pieces, 2_000).unwrap();
            assert_eq!(found, (1_300, content.clone()), "pieces of {pieces}");
        }
        let empty = archive(tar::EntryType::Regular, b"");
        assert_eq!(read(&empty, 100, 10).unwrap(), (0, Vec::new()));
    }

    #[test]
    fn what_is_said_about_the_file_is_passed_over() {
        let mut all = archive(tar::EntryType::XHeader, b"30 mtime=1795219200.123456789\n");
        all.truncate(1_024);
        all.extend(archive(tar::EntryType::Regular, b"content"));
        assert_eq!(read(&all, 100, 600).unwrap().1, b"content");
    }

    #[test]
    fn what_is_no_whole_file_within_the_bound_is_refused() {
        let whole = archive(tar::EntryType::Regular, &[7; 1_000]);
        assert!(matches!(
            read(&whole, 512, 999),
            Err(ReadError::TooLarge {
                bytes: 1_000,
                most_bytes: 999
            })
        ));
        for cut in [0, 100, 512, 1_000] {
            let outcome = read(&whole[..cut], 512, 2_000);
            assert!(matches!(outcome, Err(ReadError::Truncated)), "{cut}");
        }
        for kind in [
            tar::EntryType::Symlink,
            tar::EntryType::Directory,
            tar::EntryType::Fifo,
        ] {
            let outcome = read(&archive(kind, b""), 512, 2_000);
            assert!(matches!(outcome, Err(ReadError::NotAFile)), "{kind:?}");
        }
    }
}
