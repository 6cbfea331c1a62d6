//! Owns what a person writes to name an image, and its one canonical form.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::digest::{Digest, DigestError};

const HUB: &str = "docker.io";
const HUB_API: &str = "registry-1.docker.io";
const HUB_ALIASES: [&str; 3] = [HUB, "index.docker.io", HUB_API];
/// The grammar's own bound on a repository's path; the host is not counted.
const MAX_PATH_CHARS: usize = 255;
const MAX_TAG_CHARS: usize = 128;

/// Which rule of the distribution project's reference grammar a text breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was written.
    #[error("an image reference cannot be empty")]
    Empty,
    /// The host before the first `/` is malformed.
    #[error("`{0}` is not a registry host")]
    Host(String),
    /// A path component is empty or uses other characters than the grammar allows.
    #[error(
        "`{0}` is not a repository path: lower-case letters, digits and single `.`, `_`, `__` or dashes between them"
    )]
    Path(String),
    /// A tag or digest where only a name belongs.
    #[error("write the name without `{0}`")]
    NotAlone(String),
    /// The path is longer than 255 characters.
    #[error("a repository path has at most {MAX_PATH_CHARS} characters")]
    TooLong,
    /// The part after `:` is no tag.
    #[error("`{0}` is not a tag: a letter, digit or `_`, then up to 127 of these, `.` and `-`")]
    Tag(String),
    /// The part after `@` is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A repository in canonical form: the registry's name and the path inside it.
///
/// `redis`, `library/redis`, `docker.io/library/redis`, `index.docker.io/library/redis` and
/// `registry-1.docker.io/library/redis` are all `(docker.io, library/redis)`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    registry: String,
    path: String,
}

/// A registry as it has to be written before a path: what could be a part of the path is a host only in capitals.
pub fn written_registry(registry: &str) -> Cow<'_, str> {
    if looks_like_host(registry) {
        Cow::Borrowed(registry)
    } else {
        Cow::Owned(registry.to_ascii_uppercase())
    }
}

impl Repository {
    /// The repository at this path of a registry, as [`Repository::registry`] and [`Repository::path`] tell them.
    ///
    /// # Errors
    /// When they are not in canonical form.
    pub fn of(registry: &str, path: &str) -> Result<Self, ReferenceError> {
        let found: Self = format!("{}/{path}", written_registry(registry)).parse()?;
        if found.registry == registry && found.path == path {
            Ok(found)
        } else {
            Err(ReferenceError::Host(excerpt(registry)))
        }
    }

    /// The registry's canonical name with its port, such as `docker.io` or `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path inside the registry, such as `library/redis`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The shortest name that people write and that means this: `redis`, `acme/web`, `ghcr.io/acme/web`.
    pub fn familiar(&self) -> String {
        let first = self.path.split('/').next().unwrap_or_default();
        if self.registry != HUB || looks_like_host(first) {
            return self.to_string();
        }
        match self.path.strip_prefix("library/") {
            Some(short) if !short.contains('/') => short.to_owned(),
            Some(_) | None => self.path.clone(),
        }
    }

    /// The host that serves the registry's API: Docker Hub's differs from its name.
    pub fn api_host(&self) -> &str {
        if self.registry == HUB {
            HUB_API
        } else {
            &self.registry
        }
    }
}

/// Reads any spelling; a tag or digest beside it is refused.
impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let reference: Reference = text.parse()?;
        match (reference.tag, reference.digest) {
            (None, None) => Ok(reference.repository),
            (Some(tag), _) => Err(ReferenceError::NotAlone(excerpt(&tag))),
            (None, Some(digest)) => Err(ReferenceError::NotAlone(digest.to_string())),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", written_registry(&self.registry), self.path)
    }
}

/// What a person writes to name an image: `nginx:1.27`, `ghcr.io/o/app@sha256:…`.
///
/// The grammar is the distribution project's. Its `Display` is the text as it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    repository: Repository,
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Where the image lives, in canonical form.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The name as written, without tag and digest.
    pub fn familiar_name(&self) -> &str {
        &self.name
    }

    /// The tag, if one was written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The tag that a registry is asked for: `latest` when none was written.
    pub fn tag_or_latest(&self) -> &str {
        self.tag.as_deref().unwrap_or("latest")
    }

    /// The digest, if the reference is pinned already; it wins over a tag beside it.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name as written, pinned to a digest: what an engine pulls.
    pub fn pinned(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn is_host_name(host: &str) -> bool {
    host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    })
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((inner, port)) if inner.parse::<std::net::Ipv6Addr>().is_ok() => {
                return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
            }
            Some(_) | None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    is_host_name(name) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// Letters and digits, joined by one `.`, one or two `_`, or any number of dashes.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(alphanumeric)
        && component.ends_with(alphanumeric)
        && component
            .split(alphanumeric)
            .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG_CHARS
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && tag
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The part before the first `/` is a host iff it could not be a path component of Docker Hub.
fn looks_like_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.chars().any(|c| c.is_ascii_uppercase())
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon after the last slash starts the tag; one before it belongs to the host's port.
        let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[path_start..].split_once(':') {
            Some((last, tag)) => (&rest[..path_start + last.len()], Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(excerpt(tag)));
        }
        let (host, path) = match name.split_once('/') {
            Some((first, path)) if looks_like_host(first) => (Some(first), path),
            Some(_) | None => (None, name),
        };
        if let Some(host) = host.filter(|host| !is_host(host)) {
            return Err(ReferenceError::Host(excerpt(host)));
        }
        if !path.split('/').all(is_path_component) {
            return Err(ReferenceError::Path(excerpt(path)));
        }
        // 64 hex digits alone are an image ID to engines; the grammar refuses them as a name.
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ReferenceError::Path(excerpt(text)));
        }
        let repository = canonical(host, path);
        if repository.path.len() > MAX_PATH_CHARS {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self {
            repository,
            name: name.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

fn canonical(host: Option<&str>, path: &str) -> Repository {
    let registry = host.unwrap_or(HUB).to_ascii_lowercase();
    if HUB_ALIASES.contains(&registry.as_str()) {
        let path = if path.contains('/') {
            path.to_owned()
        } else {
            format!("library/{path}")
        };
        Repository {
            registry: HUB.to_owned(),
            path,
        }
    } else {
        Repository {
            registry,
            path: path.to_owned(),
        }
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
#[path = "reference/tests.rs"]
mod tests;
