//! Owns secrets: how they are made, hashed, compared and kept out of logs.
//!
//! Tokens have 256 random bits, so a fast hash is the right one to store.

use std::fmt;

use holdfast_proto::id::DeviceId;
use holdfast_proto::image::Digest;
use ring::hmac;
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

/// Whether `signature` is the HMAC-SHA256 of these bytes under the secret, in a time that does not tell how far.
pub fn signs(secret: &Secret, bytes: &[u8], signature: &[u8; 32]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.0.as_bytes());
    hmac::verify(&key, bytes, signature).is_ok()
}

/// The 32 bytes of 64 hex digits.
pub fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(bytes)
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
    fn a_signature_is_of_these_bytes_under_this_secret() {
        // RFC 4231, test case 2.
        let secret = Secret::new("Jefe".into());
        let hex = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let signature = from_hex(hex).unwrap();
        assert!(signs(&secret, b"what do ya want for nothing?", &signature));
        assert!(!signs(&secret, b"what do ya want for nothing!", &signature));
        let other = Secret::new("jefe".into());
        assert!(!signs(&other, b"what do ya want for nothing?", &signature));
        assert_eq!(from_hex(&hex[1..]), None);
        assert_eq!(from_hex(&format!("x{}", &hex[1..])), None);
        assert_eq!(from_hex(&"ä".repeat(32)), None);
    }

    #[test]
    fn compares_whole_texts() {
        assert!(same("abc", "abc"));
        assert!(!same("abc", "abd"));
        assert!(!same("abc", "ab"));
        assert!(!same("", "a"));
    }
}
