//! Owns neighbours: asking one for a blob, and what proves that one may ask.
//!
//! Refuses to wait for a neighbour that dawdles: the registry is never far. What a neighbour gives is proven
//! like anybody's bytes. The proof holds for one blob and says nothing of the key; whoever overhears it has
//! seen the very bytes that it is good for.

use std::cell::Cell;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use holdfast_proto::image::Digest;
use holdfast_registry::RetryAdvice;
use reqwest::header::{AUTHORIZATION, RANGE};
use reqwest::{Response, StatusCode};
use ring::hmac;
use tokio::time::{Instant, timeout};

use super::source::{BlobSource, Bytestream, SourceError, Wanted};
use crate::fault::{chain, foreign};

/// A neighbour that needs longer to be reached is no neighbour.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// The longest silence of a neighbour.
const SILENCE: Duration = Duration::from_secs(5);
/// Over this time and slower than this, a neighbour dawdles: a wire of ten megabit is ten times as fast.
const JUDGED: Duration = Duration::from_secs(5);
const SLOWEST: u64 = 100_000;
/// One that could not be reached, was silent or dawdled is left alone for so long, one that lied for longer:
/// every blob would wait for it again.
const LEFT_ALONE: Duration = Duration::from_mins(1);
const DISTRUSTED: Duration = Duration::from_hours(1);
/// Before the proof, in the header `authorization`.
const SCHEME: &str = "Holdfast-Peer ";
/// Below what neighbours have blobs.
pub(super) const BLOBS: &str = "/v1/blobs/";

/// What neighbours share.
#[derive(Clone)]
pub struct PeerKey(hmac::Key);

impl PeerKey {
    /// The key of these bytes.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Proves that one knows the key, for one blob.
    pub fn proof(&self, blob: Digest) -> String {
        use std::fmt::Write as _;
        let tag = hmac::sign(&self.0, blob.to_string().as_bytes());
        let mut proof = SCHEME.to_owned();
        for byte in tag.as_ref() {
            // A String takes everything.
            let _ = write!(proof, "{byte:02x}");
        }
        proof
    }

    /// Whether this proves it.
    pub fn accepts(&self, proof: &str, blob: Digest) -> bool {
        let digits = proof.strip_prefix(SCHEME).unwrap_or_default().as_bytes();
        let pairs = digits.chunks_exact(2);
        let byte = |pair: &[u8]| {
            let text = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(text, 16).ok()
        };
        let tag: Option<Vec<u8>> = pairs.map(byte).collect();
        tag.is_some_and(|tag| hmac::verify(&self.0, blob.to_string().as_bytes(), &tag).is_ok())
    }
}

impl std::fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerKey(…)")
    }
}

/// An agent nearby that may have a blob.
#[derive(Debug)]
pub struct Peer {
    address: String,
    key: PeerKey,
    client: reqwest::Client,
    left_alone_until: Cell<Option<Instant>>,
}

impl Peer {
    /// The agent at `address` (`host:port`).
    ///
    /// # Errors
    /// When no client can be made.
    pub fn new(address: &str, key: PeerKey) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self {
            address: address.to_owned(),
            key,
            client,
            left_alone_until: Cell::default(),
        })
    }

    /// It does not serve anybody well now.
    fn weak(&self, why: impl Into<String>) -> SourceError {
        self.left_alone_until.set(Some(Instant::now() + LEFT_ALONE));
        self.failed(why)
    }

    fn failed(&self, why: impl Into<String>) -> SourceError {
        SourceError {
            source_name: format!("the neighbour {}", self.address),
            why: why.into(),
            // It may have it soon, but who has it anyway is asked next.
            retry: RetryAdvice::Never,
            wants_login: false,
            is_general: false,
        }
    }
}

impl BlobSource for Peer {
    fn name(&self) -> &str {
        &self.address
    }

    fn open<'a>(
        &'a self,
        wanted: &'a Wanted,
        from: u64,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Bytestream + 'a>, SourceError>> {
        Box::pin(async move {
            if self
                .left_alone_until
                .get()
                .is_some_and(|until| Instant::now() < until)
            {
                return Err(self.failed("it failed a moment ago"));
            }
            let url = format!("http://{}{BLOBS}{}", self.address, wanted.digest);
            let mut asked = self.client.get(url);
            asked = asked.header(AUTHORIZATION, self.key.proof(wanted.digest));
            if from > 0 {
                asked = asked.header(RANGE, format!("bytes={from}-"));
            }
            let answer = timeout(SILENCE, asked.send()).await;
            let answer = answer.map_err(|_| self.weak("it is silent"))?;
            let answer = answer.map_err(|error| self.weak(foreign(&chain(&error))))?;
            let (at, expected) = match answer.status() {
                StatusCode::OK => (0, wanted.size),
                StatusCode::PARTIAL_CONTENT => (from, wanted.size.saturating_sub(from)),
                StatusCode::NOT_FOUND => return Err(self.failed("it does not have it")),
                other => return Err(self.failed(format!("it answered {}", other.as_u16()))),
            };
            if answer
                .content_length()
                .is_some_and(|length| length != expected)
            {
                return Err(self.failed("it has something else of this name"));
            }
            let stream = FromPeer {
                peer: self,
                answer,
                at,
                left: expected,
                begun: Instant::now(),
                came: 0,
            };
            Ok(Box::new(stream) as Box<dyn Bytestream + 'a>)
        })
    }

    fn distrust(&self) {
        self.left_alone_until.set(Some(Instant::now() + DISTRUSTED));
    }
}

struct FromPeer<'a> {
    peer: &'a Peer,
    answer: Response,
    at: u64,
    left: u64,
    begun: Instant,
    came: u64,
}

impl Bytestream for FromPeer<'_> {
    fn at(&self) -> u64 {
        self.at
    }

    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async {
            let next = timeout(SILENCE, self.answer.chunk()).await;
            let next = next.map_err(|_| self.peer.weak("it is silent"))?;
            let next = next.map_err(|error| self.peer.weak(foreign(&chain(&error))))?;
            let Some(bytes) = next else {
                return match self.left {
                    0 => Ok(None),
                    _ => Err(self.peer.failed("it broke off")),
                };
            };
            let count = bytes.len() as u64;
            self.left = self
                .left
                .checked_sub(count)
                .ok_or_else(|| self.peer.failed("it gives more than there is"))?;
            self.at += count;
            self.came += count;
            let took = self.begun.elapsed();
            if took > JUDGED && self.came / took.as_secs().max(1) < SLOWEST {
                return Err(self.peer.weak("it dawdles"));
            }
            Ok(Some(bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_for_one_blob_and_one_key() {
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let key = PeerKey::new(b"a key that neighbours share");
        let proof = key.proof(one);
        assert!(key.accepts(&proof, one));
        assert!(!key.accepts(&proof, other));
        assert!(!PeerKey::new(b"another key").accepts(&proof, one));
        let bare = proof.trim_start_matches(SCHEME);
        for wrong in [
            "",
            SCHEME,
            bare,
            &proof[..proof.len() - 2],
            &proof.replace(bare, "zz"),
        ] {
            assert!(!key.accepts(wrong, one), "{wrong}");
        }
        assert_eq!(format!("{key:?}"), "PeerKey(…)");
    }
}
