//! Owns patterns over `name:tag`, by which policies choose images.
//!
//! Refuses a pattern that could only match by accident, and to take longer than a pattern and a name are long.

use std::fmt;
use std::str::FromStr;

use holdfast_proto::image::Repository;

/// Longer names and tags do not exist (reference grammar of the distribution project: 255 and 128).
const MAX_BYTES: usize = 400;
/// The registry that names without a host mean.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The namespace that names without one mean there.
const DEFAULT_NAMESPACE: &str = "library/";

/// `*` is any characters, `?` one; everything else is itself, from the first to the last character.
///
/// A pattern without a tag means every tag. `redis:*` matches `redis:7` however it is written
/// (`library/redis:7`, `docker.io/library/redis:7`), and neither `redis-stack:7` nor `evil.example/redis:7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImagePattern {
    name: String,
    tag: String,
}

/// How much a pattern says of what it matches; the greater, the more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    literal: usize,
    /// Fewer are more specific.
    free_of_stars: bool,
}

/// A pattern that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing is written.
    #[error("it is empty: write a name, such as `redis:*`, or `*` for every image")]
    Empty,
    /// It is too long to match anything.
    #[error("it is longer than any image's name ({MAX_BYTES} characters)")]
    TooLong,
    /// A character that no image's name has.
    #[error("{0:?} is in no image's name: only `*` and `?` stand for others")]
    Character(char),
}

impl FromStr for ImagePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > MAX_BYTES {
            return Err(PatternError::TooLong);
        }
        let is_known = |c: &char| c.is_ascii_alphanumeric() || "._-/:*?[]".contains(*c);
        if let Some(other) = text.chars().find(|c| !is_known(c)) {
            return Err(PatternError::Character(other));
        }
        // A colon before a slash is a port's.
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            Some(_) | None => (text, "*"),
        };
        if name.is_empty() || tag.is_empty() {
            return Err(PatternError::Empty);
        }
        Ok(Self {
            name: name.to_owned(),
            tag: tag.to_owned(),
        })
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl ImagePattern {
    /// Whether it matches this tag of a repository.
    pub fn matches(&self, repository: &Repository, tag: &str) -> bool {
        matches(&self.tag, tag)
            && spellings(repository)
                .iter()
                .any(|name| matches(&self.name, name))
    }

    /// How much it says.
    pub fn specificity(&self) -> Specificity {
        let all = || self.name.bytes().chain(self.tag.bytes());
        Specificity {
            literal: all().filter(|byte| !b"*?".contains(byte)).count(),
            free_of_stars: all().all(|byte| byte != b'*'),
        }
    }
}

/// The ways in which people write a repository; all of them mean the same.
fn spellings(repository: &Repository) -> Vec<String> {
    let (registry, path) = (repository.registry(), repository.path());
    let mut all = vec![repository.to_string()];
    if registry == DEFAULT_REGISTRY {
        all.push(path.to_owned());
        if let Some(short) = path.strip_prefix(DEFAULT_NAMESPACE) {
            all.push(short.to_owned());
            all.push(format!("{registry}/{short}"));
        }
    }
    all
}

/// Whether a pattern matches the whole text: one mark is enough to come back to, the last star.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut next) = (0, 0);
    let mut last_star = None;
    while next < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                last_star = Some((at, next));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[next] => {
                at += 1;
                next += 1;
            }
            Some(_) | None => match last_star {
                Some((star, taken)) => {
                    last_star = Some((star, taken + 1));
                    (at, next) = (star + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use holdfast_proto::image::Reference;

    use super::*;

    fn is_match(pattern: &str, image: &str) -> bool {
        let (name, tag) = image.rsplit_once(':').unwrap();
        let reference: Reference = name.parse().unwrap();
        let pattern: ImagePattern = pattern.parse().unwrap();
        pattern.matches(reference.repository(), tag)
    }

    #[test]
    fn a_pattern_matches_the_whole_name_however_it_is_written() {
        for (pattern, image, expected) in [
            ("redis:*", "redis:7", true),
            ("redis", "redis:7", true),
            ("docker.io/redis:7*", "redis:7.2-alpine", true),
            ("docker.io/library/redis:7", "redis:7", true),
            ("library/redis:?", "docker.io/library/redis:7", true),
            ("redis:*", "redis-stack:7", false),
            ("redis:*", "evil.example/redis:7", false),
            ("iotistic/*", "iotistic/agent:1", true),
            ("iotistic/*", "evil.example/iotistic/agent:1", false),
            ("iotistic/*", "iotistic-evil/agent:1", false),
            ("iotistic/*", "Iotistic/agent:1", false),
            ("reg.lan:5000/web", "reg.lan:5000/web:1", true),
            ("reg.lan:5000/*:v*", "reg.lan:5000/a/b:v2", true),
            ("reg.lan:5000/*:v*", "reg.lan:5000/a/b:2", false),
            ("*", "ghcr.io/acme/web:1", true),
            ("*-prod", "acme/web-prod:1", true),
            ("*a*b*c*", "xaxbxcx:1", true),
            ("*a*b*c*", "xaxcxb:1", false),
            ("redis:?", "redis:12", false),
        ] {
            assert_eq!(is_match(pattern, image), expected, "{pattern} {image}");
        }
    }

    #[test]
    fn what_says_more_is_more_specific() {
        let of = |text: &str| text.parse::<ImagePattern>().unwrap().specificity();
        let order = [
            "*",
            "re*",
            "redis:*",
            "redis:7*",
            "redis:7.2",
            "redis:7.2-alpine",
        ];
        for pair in order.windows(2) {
            assert!(of(pair[0]) < of(pair[1]), "{pair:?}");
        }
        assert!(of("redis:7*") < of("redis:7"));
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        let error = |text: &str| text.parse::<ImagePattern>().unwrap_err();
        assert_eq!(error(""), PatternError::Empty);
        assert_eq!(error(":7"), PatternError::Empty);
        assert_eq!(error("redis:"), PatternError::Empty);
        assert_eq!(error("re dis"), PatternError::Character(' '));
        assert_eq!(error("(a+)+"), PatternError::Character('('));
        assert_eq!(error(&"a".repeat(401)), PatternError::TooLong);
    }

    #[test]
    fn a_pattern_of_stars_is_no_slower_than_it_is_long() {
        let pattern: ImagePattern = "*a".repeat(190).parse().unwrap();
        let name = format!("{}b", "a".repeat(200));
        let reference: Reference = name.parse().unwrap();
        assert!(!pattern.matches(reference.repository(), "1"));
    }
}
