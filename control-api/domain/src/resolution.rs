//! Owns what is known of an image and how an answer changes it; refuses to un-learn a digest.

use std::time::Duration;

use holdfast_proto::image::{
    Reference, Resolution, ResolutionStatus, ResolvedImage, written_registry,
};
use holdfast_proto::time::Timestamp;

/// Which image a reference asks for, whatever way it was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Canonical registry, such as `docker.io`.
    pub registry: String,
    /// Canonical path, such as `library/redis`.
    pub repository: String,
    /// The tag, or the digest where one was written (a digest has a colon, a tag cannot).
    pub selector: String,
}

impl Key {
    /// The image this reference asks for.
    pub fn of(reference: &Reference) -> Self {
        Self {
            registry: reference.repository().registry().to_owned(),
            repository: reference.repository().path().to_owned(),
            selector: reference
                .digest()
                .map_or_else(|| reference.tag_or_latest().to_owned(), ToString::to_string),
        }
    }

    /// A reference that asks for this image, to give to a registry.
    pub fn reference(&self) -> Option<Reference> {
        self.to_string().parse().ok()
    }

    /// Whether it names a digest, which can never mean anything else.
    pub fn is_pinned(&self) -> bool {
        self.selector.contains(':')
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let separator = if self.is_pinned() { '@' } else { ':' };
        let Self {
            registry,
            repository,
            selector,
        } = self;
        let registry = written_registry(registry);
        write!(f, "{registry}/{repository}{separator}{selector}")
    }
}

/// The name by which registries say that there is no such thing.
pub const NOT_FOUND: &str = "not_found";

/// Why a registry did not say what a reference points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Stable name of the reason, such as `rate_limited`.
    pub code: String,
    /// The reason in words, without credentials.
    pub why: String,
    /// How long the registry wants peace, if it says.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of this name.
    pub fn new(code: &str, why: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            why: why.into(),
            retry_after: None,
        }
    }
}

/// What is known of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What a registry said when it last answered; none if it never did.
    pub image: Option<ResolvedImage>,
    /// When it said so.
    pub resolved_at: Option<Timestamp>,
    /// When it was last asked.
    pub asked_at: Timestamp,
    /// Why it did not answer when last asked.
    pub error: Option<String>,
    /// The stable name of that reason.
    pub error_code: Option<String>,
    /// Since when the digest could not be confirmed.
    pub stale_since: Option<Timestamp>,
}

impl Known {
    /// How the resolution stands.
    pub const fn status(&self) -> ResolutionStatus {
        match (&self.image, &self.error) {
            (Some(_), None) => ResolutionStatus::Resolved,
            (Some(_), Some(_)) => ResolutionStatus::Stale,
            (None, _) => ResolutionStatus::Failed,
        }
    }

    /// The same in the words of a pin.
    pub fn resolution(&self) -> Resolution {
        Resolution {
            status: self.status(),
            at: self.asked_at,
            error: self.error.clone(),
            stale_since: self.stale_since,
        }
    }
}

/// What is known after a registry was asked.
///
/// A digest once known stays known while the registry is away: an outage never un-pins a fleet.
pub fn learn(
    before: Option<&Known>,
    answer: Result<ResolvedImage, Failure>,
    now: Timestamp,
) -> Known {
    match answer {
        Ok(image) => Known {
            image: Some(image),
            resolved_at: Some(now),
            asked_at: now,
            error: None,
            error_code: None,
            stale_since: None,
        },
        Err(Failure { code, why, .. }) => {
            let image = before.and_then(|known| known.image.clone());
            Known {
                stale_since: image
                    .is_some()
                    .then(|| before.and_then(|known| known.stale_since).unwrap_or(now)),
                resolved_at: before.and_then(|known| known.resolved_at),
                asked_at: now,
                error: Some(why),
                error_code: Some(code),
                image,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::image::{Digest, IndexDigest, TopDigest};

    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn image(content: &str) -> ResolvedImage {
        let reference: Reference = "nginx".parse().unwrap();
        ResolvedImage {
            repository: reference.repository().clone(),
            top: TopDigest::Index(IndexDigest(Digest::of(content.as_bytes()))),
            media_type: "application/vnd.oci.image.index.v1+json".into(),
            platforms: Vec::new(),
        }
    }

    #[test]
    fn an_outage_keeps_the_known_digest_and_says_since_when() {
        let known = learn(None, Ok(image("a")), at(1));
        let stale = learn(
            Some(&known),
            Err(Failure::new("x", "connection refused")),
            at(2),
        );
        let staler = learn(Some(&stale), Err(Failure::new("x", "429")), at(3));
        assert_eq!(staler.image, Some(image("a")));
        assert_eq!(staler.status(), ResolutionStatus::Stale);
        assert_eq!(staler.stale_since, Some(at(2)));
        assert_eq!(staler.resolved_at, Some(at(1)));
        assert_eq!(staler.error.as_deref(), Some("429"));
    }

    #[test]
    fn an_answer_ends_staleness() {
        let known = learn(None, Ok(image("a")), at(1));
        let stale = learn(Some(&known), Err(Failure::new("x", "away")), at(2));
        let fresh = learn(Some(&stale), Ok(image("b")), at(3));
        assert_eq!(fresh, learn(None, Ok(image("b")), at(3)));
        assert_eq!(fresh.status(), ResolutionStatus::Resolved);
    }

    #[test]
    fn what_was_never_resolved_has_failed() {
        let known = learn(None, Err(Failure::new("x", "not found")), at(1));
        assert_eq!(known.status(), ResolutionStatus::Failed);
        assert_eq!(known.stale_since, None);
    }

    #[test]
    fn spellings_of_one_image_share_a_key() {
        let key = |text: &str| Key::of(&text.parse().unwrap());
        assert_eq!(key("redis"), key("docker.io/library/redis:latest"));
        assert_eq!(key("redis"), key("index.docker.io/library/redis"));
        assert_ne!(key("redis:7"), key("redis:7-alpine"));
    }

    #[test]
    fn a_key_turns_back_into_a_reference() {
        let digest = Digest::of(b"x");
        for text in [
            "127.0.0.1:5000/demo/web:1".to_owned(),
            "redis".to_owned(),
            format!("redis:7@{digest}"),
        ] {
            let key = Key::of(&text.parse().unwrap());
            assert_eq!(Key::of(&key.reference().unwrap()), key);
        }
    }
}
