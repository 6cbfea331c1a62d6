//! Owns the proof that a list of sums is from whoever releases agents: minisign keys and signatures.
//!
//! Refuses the prehashed form, which needs another hash than this program has, and every signature whose
//! trusted comment is not signed as well.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};

/// The algorithm's name in keys and in signatures over the text itself.
const LEGACY: &[u8; 2] = b"Ed";
/// The algorithm's name in signatures over a hash of the text.
const PREHASHED: &[u8; 2] = b"ED";
const KEY_ID_BYTES: usize = 8;
const KEY_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;
const TRUSTED: &str = "trusted comment: ";

/// A key that releases are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    id: [u8; KEY_ID_BYTES],
    key: [u8; KEY_BYTES],
}

impl PublicKey {
    /// Reads the line that `minisign` writes into its `.pub` file; the comment above it may be left out.
    pub fn parse(text: &str) -> Result<Self, String> {
        let line = text.lines().rfind(|line| !line.trim().is_empty());
        let bytes = STANDARD.decode(line.unwrap_or_default().trim());
        let bytes = bytes.map_err(|_| "it is not a minisign public key".to_owned())?;
        let parts = bytes.strip_prefix(LEGACY).and_then(|rest| {
            let (id, key) = rest.split_at_checked(KEY_ID_BYTES)?;
            Some((id.try_into().ok()?, key.try_into().ok()?))
        });
        let (id, key) = parts.ok_or("it is not a minisign public key")?;
        Ok(Self { id, key })
    }
}

/// Proves that `text` was signed by the holder of one of the keys; says why not.
pub fn verify(keys: &[PublicKey], text: &[u8], signature: &str) -> Result<(), String> {
    let mut lines = signature.lines();
    let mut line = |what: &str| lines.next().ok_or_else(|| format!("it has no {what}"));
    line("comment")?;
    let signed = decode(line("signature")?)?;
    let comment = line("trusted comment")?;
    let comment = comment
        .strip_prefix(TRUSTED)
        .ok_or("it has no trusted comment")?;
    let global = decode(line("signature of its trusted comment")?)?;
    if signed.starts_with(PREHASHED) {
        return Err("it is over a hash of the text: sign with `minisign -S -l`".to_owned());
    }
    let rest = signed.strip_prefix(LEGACY);
    let (id, signed) = rest
        .and_then(|rest| rest.split_at_checked(KEY_ID_BYTES))
        .filter(|(_, signed)| signed.len() == SIGNATURE_BYTES)
        .ok_or("it is no minisign signature")?;
    let Some(key) = keys.iter().find(|key| key.id == id) else {
        return Err("it was made with a key that this device does not know".to_owned());
    };
    let key = UnparsedPublicKey::new(&ED25519, key.key);
    key.verify(text, signed)
        .map_err(|_| "it is not of this text".to_owned())?;
    let all = [signed, comment.as_bytes()].concat();
    key.verify(&all, &global)
        .map_err(|_| "its trusted comment was changed".to_owned())
}

fn decode(line: &str) -> Result<Vec<u8>, String> {
    let bytes = STANDARD.decode(line.trim());
    bytes.map_err(|_| "it is no minisign signature".to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair as _};

    use super::*;

    /// A key made of one byte, and what it signs.
    pub(in crate::selfupdate) fn signed(seed: u8, text: &[u8]) -> (PublicKey, String) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let id = [seed; KEY_ID_BYTES];
        let key = PublicKey {
            id,
            key: pair.public_key().as_ref().try_into().unwrap(),
        };
        let signature = pair.sign(text);
        let comment = "timestamp:1";
        let global = pair.sign(&[signature.as_ref(), comment.as_bytes()].concat());
        let line = STANDARD.encode([&LEGACY[..], &id, signature.as_ref()].concat());
        let global = STANDARD.encode(global.as_ref());
        let text = format!("untrusted comment: x\n{line}\n{TRUSTED}{comment}\n{global}\n");
        (key, text)
    }

    #[test]
    fn reads_the_form_of_public_keys() {
        let (key, _) = signed(7, b"");
        let line = STANDARD.encode([&LEGACY[..], &key.id, &key.key].concat());
        assert!(line.starts_with("RW"), "as minisign's own begin: {line}");
        let file = format!("untrusted comment: minisign public key\n{line}\n");
        assert_eq!(PublicKey::parse(&line), Ok(key.clone()));
        assert_eq!(PublicKey::parse(&file), Ok(key));
        for bad in ["", "x", "RWQ", &line[..40], &STANDARD.encode([b'E'; 42])] {
            assert!(PublicKey::parse(bad).is_err(), "{bad}");
        }
    }

    /// Written by minisign 0.11: `minisign -G -W`, `minisign -S -l -t timestamp:1`.
    #[test]
    fn what_minisign_itself_wrote_counts() {
        let key = "RWS10srXbyuLybZ+d2xI6RJQf7xIdgFKxVG15YOGgtHAWnBzc3GjTZGf";
        let signature = "untrusted comment: signature from minisign secret key\n\
            RWS10srXbyuLyRi7Cy3ovMe+sZKFYpYEKMU9eSf5uEFQGwc9JgLSMg8xrCSuYEysAAvqe1gGpb5zyhxS0XVb92c/3s+VhN207QA=\n\
            trusted comment: timestamp:1\n\
            1wD1vKvAlnFrItBZuKL5TIV8wH3eYENJPKuKn29DQSxBDydatk2ImBa44DUPp5M9yaDq73os1UJTJBYRGzkLDg==\n";
        let keys = [PublicKey::parse(key).unwrap()];
        assert_eq!(verify(&keys, b"x\n", signature), Ok(()));
        assert!(verify(&keys, b"y\n", signature).is_err());
    }

    #[test]
    fn only_an_unchanged_text_of_a_known_key_is_proved() {
        let text = b"0123  holdfast-agent\n";
        let (key, signature) = signed(7, text);
        let (other, _) = signed(8, text);
        let keys = [other.clone(), key.clone()];
        assert_eq!(verify(&keys, text, &signature), Ok(()));
        let refused = |keys: &[PublicKey], text: &[u8], signature: &str, why: &str| {
            let said = verify(keys, text, signature).unwrap_err();
            assert!(said.contains(why), "{said}");
        };
        refused(&keys, b"other", &signature, "not of this text");
        refused(&[other], text, &signature, "does not know");
        refused(&[], text, &signature, "does not know");
        let comment = signature.replace("timestamp:1", "timestamp:2");
        refused(&keys, text, &comment, "trusted comment was changed");
        refused(&keys, text, "", "no comment");
        refused(&keys, text, "a\nb", "no minisign signature");
        let cut: String = signature.lines().take(2).collect::<Vec<_>>().join("\n");
        refused(&keys, text, &cut, "no trusted comment");
        let line = signature.lines().nth(1).unwrap();
        let mut bytes = STANDARD.decode(line).unwrap();
        bytes[1] = b'D';
        let prehashed = signature.replace(line, &STANDARD.encode(bytes));
        refused(&keys, text, &prehashed, "minisign -S -l");
    }
}
