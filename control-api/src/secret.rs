//! Owns secrets: how they are made, hashed, compared and kept out of logs.
//!
//! Tokens have 256 random bits, so a fast hash is the right one to store.

use std::fmt;

use holdfast_proto::id::DeviceId;
use holdfast_proto::image::Digest;
use ring::rand::{SecureRandom, SystemRandom};

/// A secret text that never shows in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text that must not be seen.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is stored and looked up instead of the text: its SHA-256 in hex.
    pub fn hash(&self) -> String {
        hash(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Which kind of token: its prefix tells people and secret scanners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A device's own token.
    Device,
    /// An operator's token.
    Operator,
    /// An enrolment key.
    EnrolmentKey,
}

impl Kind {
    /// The prefix of tokens of this kind.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Device => "hfd_",
            Self::Operator => "hfo_",
            Self::EnrolmentKey => "hfk_",
        }
    }
}

/// SHA-256 of a presented token, in hex.
pub fn hash(token: &str) -> String {
    Digest::of(token.as_bytes()).hex()
}

/// Whether two texts are equal, in a time that does not tell where they differ.
pub fn same(left: &str, right: &str) -> bool {
    // Equal lengths by hashing first; what an attacker times is the hash of a guess.
    let (left, right) = (hash(left), hash(right));
    left.bytes()
        .zip(right.bytes())
        .fold(0, |difference, (l, r)| difference | (l ^ r))
        == 0
}

/// The system's randomness failed: nothing secret can be made.
#[derive(Debug, thiserror::Error)]
#[error("the system has no randomness to give")]
pub struct NoRandomness;

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// Bytes as hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Makes a token of this kind.
pub fn token(kind: Kind) -> Result<Secret, NoRandomness> {
    Ok(Secret(format!(
        "{}{}",
        kind.prefix(),
        hex(&random::<32>()?)
    )))
}

/// Makes an identifier for a device that brings none.
pub fn device_id() -> Result<DeviceId, NoRandomness> {
    Ok(DeviceId::from_random(random()?))
}

/// Makes an identifier for a request that brings none.
pub fn request_id() -> Result<String, NoRandomness> {
    Ok(hex(&random::<12>()?))
}

/// Any number, to spread things in time; without randomness always the same, which only spreads less.
pub fn dice() -> u64 {
    random().map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_carry_256_bits() {
        let one = token(Kind::Device).unwrap();
        let two = token(Kind::Device).unwrap();
        assert_ne!(one, two);
        assert_eq!(one.expose().len(), 4 + 64);
        assert!(one.expose().starts_with("hfd_"));
    }

    #[test]
    fn a_secret_does_not_show_in_debug() {
        let secret = Secret::new("canary".into());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }

    #[test]
    fn compares_whole_texts() {
        assert!(same("abc", "abc"));
        assert!(!same("abc", "abd"));
        assert!(!same("abc", "ab"));
        assert!(!same("", "a"));
    }
}
