//! Owns encryption at rest: one key in a file, and texts sealed under it, each for one place.
//!
//! AES-256-GCM with a random nonce for each text (96 bits: safe for far more texts than a store holds);
//! what a text is sealed for is authenticated with it, so that a row's secret opens in no other row.
//! Refuses a key file that others may read.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_proto::image::Digest;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::secret::{NoRandomness, Secret, hex, random};
use crate::store::backup::folder;

/// Bytes of an AES-256 key.
const KEY_LEN: usize = 32;
/// Hex digits by which keys are told apart: a collision would only spoil an error message.
const KEY_ID_DIGITS: usize = 16;
/// A key file has 64 hex digits and a line's end; more than this is something else.
const LARGEST_FILE: u64 = 256;

/// Why the key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// It cannot be read or made.
    #[error("cannot use the credentials key file {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Others may read it.
    #[error(
        "the credentials key file {path} has mode {mode:04o}: others may read it; run chmod 600 on it"
    )]
    Readable {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It holds something else.
    #[error("the credentials key file {path} does not hold a key: 64 hex digits on one line")]
    NoKey {
        /// Which file.
        path: PathBuf,
    },
    /// No key could be made.
    #[error("cannot make a key for credentials")]
    Randomness(#[from] NoRandomness),
}

/// Why a sealed text does not open. None of it is secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It was sealed with another key.
    #[error(
        "they were encrypted with key {sealed_with}, but this server's key file holds key {ours}: \
         give it the right file, or set the credentials again"
    )]
    OtherKey {
        /// The key that sealed it.
        sealed_with: String,
        /// The key at hand.
        ours: String,
    },
    /// It was changed, or belongs to another place.
    #[error("they were changed in the store, or moved from another row: set the credentials again")]
    Changed,
}

/// A sealed text as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Nonce, cipher text and tag, in hex.
    pub text: String,
    /// Which key sealed it.
    pub key_id: String,
}

/// Seals and opens texts; cheap to clone.
#[derive(Clone)]
pub struct Vault {
    key: Arc<LessSafeKey>,
    key_id: String,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the key file, which is made (mode 0600) when it is missing.
    ///
    /// # Errors
    /// As [`VaultError`] says.
    pub fn open(path: &Path) -> Result<Self, VaultError> {
        let failed = |source| VaultError::File {
            path: path.to_owned(),
            source,
        };
        match make(path)? {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(VaultError::Readable {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = String::new();
        (&mut file)
            .take(LARGEST_FILE)
            .read_to_string(&mut text)
            .map_err(failed)?;
        unhex(text.trim())
            .and_then(|bytes| Self::of(&bytes))
            .ok_or_else(|| VaultError::NoKey {
                path: path.to_owned(),
            })
    }

    fn of(key: &[u8]) -> Option<Self> {
        let unbound = UnboundKey::new(&AES_256_GCM, key).ok()?;
        // The key is random: its hash tells nothing about it.
        let mut key_id = Digest::of(&[b"holdfast credentials key ", key].concat()).hex();
        key_id.truncate(KEY_ID_DIGITS);
        Some(Self {
            key: Arc::new(LessSafeKey::new(unbound)),
            key_id,
        })
    }

    /// The name of the key.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Seals a text for one place.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn seal(&self, place: &str, text: &Secret) -> Result<Sealed, NoRandomness> {
        let nonce = random::<NONCE_LEN>()?;
        let mut bytes = text.expose().as_bytes().to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place.as_bytes()),
                &mut bytes,
            )
            .map_err(|_| NoRandomness)?;
        Ok(Sealed {
            text: hex(&[&nonce[..], &bytes].concat()),
            key_id: self.key_id.clone(),
        })
    }

    /// Opens a text that was sealed for this place.
    ///
    /// # Errors
    /// As [`OpenError`] says.
    pub fn open_sealed(&self, place: &str, sealed: &Sealed) -> Result<Secret, OpenError> {
        if sealed.key_id != self.key_id {
            return Err(OpenError::OtherKey {
                sealed_with: sealed.key_id.clone(),
                ours: self.key_id.clone(),
            });
        }
        let bytes = unhex(&sealed.text).ok_or(OpenError::Changed)?;
        let (nonce, rest) = bytes
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(OpenError::Changed)?;
        let mut rest = rest.to_vec();
        let plain = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(place.as_bytes()),
                &mut rest,
            )
            .map_err(|_| OpenError::Changed)?;
        let text = std::str::from_utf8(plain).map_err(|_| OpenError::Changed)?;
        Ok(Secret::new(text.to_owned()))
    }
}

/// Writes a new key, unless there is a file.
fn make(path: &Path) -> Result<Result<(), std::io::Error>, VaultError> {
    if path.exists() {
        return Ok(Ok(()));
    }
    let key = hex(&random::<KEY_LEN>()?);
    // Linked into place whole: a replica that starts at the same time never reads half a key.
    let fresh = path.with_extension(format!("new-{}", hex(&random::<6>()?)));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        writeln!(file, "{key}")?;
        file.sync_all()?;
        std::fs::hard_link(&fresh, path)?;
        // Its name too must outlive a power cut: what is sealed with it will.
        std::fs::File::open(folder(path))?.sync_all()
    })();
    // What was linked has its own name by now; what was not is of no use.
    let _ = std::fs::remove_file(&fresh);
    Ok(written)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn vault() -> (tempfile::TempDir, PathBuf, Vault) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials-key");
        let vault = Vault::open(&path).unwrap();
        (dir, path, vault)
    }

    fn secret() -> Secret {
        Secret::new("canary-pässword".into())
    }

    #[test]
    fn a_sealed_text_opens_in_its_place_and_in_no_other() {
        let (_dir, path, vault) = vault();
        let sealed = vault.seal("a", &secret()).unwrap();
        assert_eq!(vault.open_sealed("a", &sealed).unwrap(), secret());
        assert_eq!(vault.open_sealed("b", &sealed), Err(OpenError::Changed));
        // After a restart, too.
        let again = Vault::open(&path).unwrap();
        assert_eq!(again.open_sealed("a", &sealed).unwrap(), secret());
    }

    #[test]
    fn no_two_sealings_are_alike_and_none_shows_the_text() {
        let (_dir, path, vault) = vault();
        let one = vault.seal("a", &secret()).unwrap();
        let two = vault.seal("a", &secret()).unwrap();
        assert_ne!(one.text, two.text);
        let plain = hex("canary".as_bytes());
        assert!(!one.text.contains(&plain));
        let key = std::fs::read_to_string(path).unwrap();
        assert!(!format!("{vault:?}").contains(key.trim()));
    }

    #[test]
    fn a_changed_text_does_not_open() {
        let (_dir, _path, vault) = vault();
        let sealed = vault.seal("a", &secret()).unwrap();
        for position in [0, 30, sealed.text.len() - 1] {
            let mut text = sealed.text.clone().into_bytes();
            text[position] = if text[position] == b'0' { b'1' } else { b'0' };
            let changed = Sealed {
                text: String::from_utf8(text).unwrap(),
                ..sealed.clone()
            };
            assert_eq!(vault.open_sealed("a", &changed), Err(OpenError::Changed));
        }
        for text in ["", "00", "zz", "é0"] {
            let changed = Sealed {
                text: text.to_owned(),
                ..sealed.clone()
            };
            assert_eq!(vault.open_sealed("a", &changed), Err(OpenError::Changed));
        }
    }

    #[test]
    fn another_key_is_named_in_the_error() {
        let (_one, _, first) = vault();
        let (_two, _, second) = vault();
        let sealed = first.seal("a", &secret()).unwrap();
        let error = second.open_sealed("a", &sealed).unwrap_err().to_string();
        assert!(error.contains(first.key_id()), "{error}");
        assert!(error.contains(second.key_id()), "{error}");
    }

    #[test]
    fn the_key_file_is_for_its_owner_alone() {
        let (_dir, path, _vault) = vault();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        for open in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(open)).unwrap();
            let error = Vault::open(&path).unwrap_err();
            assert!(matches!(error, VaultError::Readable { .. }), "{error}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        Vault::open(&path).unwrap();
    }

    #[test]
    fn a_file_that_holds_no_key_is_refused() {
        let (_dir, path, _vault) = vault();
        for text in ["", "00", "not a key"] {
            std::fs::write(&path, text).unwrap();
            let error = Vault::open(&path).unwrap_err();
            assert!(matches!(error, VaultError::NoKey { .. }), "{error}");
        }
    }
}
