//! Owns a blob on its way: at which byte it begins, how long it is, how long it may be silent.
//!
//! Refuses an answer that begins elsewhere than it says, is longer or shorter than the manifest says, or
//! stays silent. It does not hash: a blob may come in parts of several requests, and whoever puts
//! them together knows the whole.

use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::image::{Digest, Repository};
use reqwest::header::{CONTENT_RANGE, HeaderMap};
use reqwest::{Response, StatusCode};
use tokio::time::timeout;

use crate::answer::{broken, refusal};
use crate::client::{Client, Question};
use crate::error::RegistryError;
use crate::place::Place;
use crate::settings::Identity;

/// Which bytes are wanted.
#[derive(Clone, Copy, Debug)]
pub struct BlobRequest<'a> {
    /// Where they are.
    pub repository: &'a Repository,
    /// Of which blob.
    pub digest: Digest,
    /// How many bytes the whole blob has, as its manifest says.
    pub size: u64,
    /// How many of them are there already.
    pub from: u64,
    /// Whose credentials count; the configured ones without.
    pub who: Option<&'a Identity>,
    /// The longest silence, before the first byte and between two.
    pub silence: Duration,
}

/// Bytes of a blob that are on their way.
#[derive(Debug)]
pub struct Blob {
    response: Response,
    registry: String,
    what: String,
    at: u64,
    size: u64,
    silence: Duration,
}

impl Client {
    /// Asks for a blob from a byte on: the mirrors first, then the registry itself.
    ///
    /// # Errors
    /// As for any question; a registry that begins at a byte that was not asked for is `BadBlob`.
    pub async fn blob(&self, wanted: &BlobRequest<'_>) -> Result<Blob, RegistryError> {
        let name = wanted.digest.to_string();
        let question = Question {
            streams_from: Some(wanted.from),
            ..Question::blob(wanted.repository, wanted.who, &name, 0)
        };
        for mirror in self.mirrors(&question) {
            match self.blob_at(&question, wanted, &mirror).await {
                Ok(blob) => return Ok(blob),
                Err(error) => self.pass_by(&mirror, &error),
            }
        }
        let origin = Place::origin(wanted.repository);
        self.blob_at(&question, wanted, &origin).await
    }

    async fn blob_at(
        &self,
        question: &Question<'_>,
        wanted: &BlobRequest<'_>,
        place: &Place,
    ) -> Result<Blob, RegistryError> {
        // A place in the lane is held for the head of the answer: the bytes take their time.
        let asked = self
            .lanes
            .ask(&place.registry, self.ask_with_login(question, place));
        let asked = timeout(wanted.silence, asked).await;
        let response = asked.map_err(|_| RegistryError::TimedOut {
            registry: place.registry.clone(),
        })??;
        begin(wanted, place, question.what(), response)
    }
}

/// Reads the head of an answer.
fn begin(
    wanted: &BlobRequest<'_>,
    place: &Place,
    what: String,
    response: Response,
) -> Result<Blob, RegistryError> {
    if let Some(error) = refusal(&place.registry, &what, &response) {
        return Err(error);
    }
    let wrong = |why: &str| RegistryError::BadBlob {
        what: what.clone(),
        why: why.to_owned(),
    };
    let at = if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = content_range(response.headers()).ok_or_else(|| wrong("a part of what"))?;
        if range.from != wanted.from {
            return Err(wrong("it begins at another byte than was asked for"));
        }
        if range.size.is_some_and(|size| size != wanted.size) {
            return Err(wrong("its size is not what the manifest says"));
        }
        range.from
    } else {
        0
    };
    let rest = wanted.size.saturating_sub(at);
    if response
        .content_length()
        .is_some_and(|length| length != rest)
    {
        return Err(wrong("its size is not what the manifest says"));
    }
    Ok(Blob {
        response,
        registry: place.registry.clone(),
        what,
        at,
        size: wanted.size,
        silence: wanted.silence,
    })
}

impl Blob {
    /// The byte that comes next; 0 at the beginning where the registry cannot begin in the middle.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// `TimedOut` after too long a silence, `Unreachable` when the connection breaks or ends early, `BadBlob` when
    /// there is more than the manifest says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let chunk = timeout(self.silence, self.response.chunk()).await;
        let chunk = chunk.map_err(|_| RegistryError::TimedOut {
            registry: self.registry.clone(),
        })?;
        let Some(bytes) = chunk.map_err(|error| broken(&self.registry, &error))? else {
            if self.at < self.size {
                return Err(RegistryError::Unreachable {
                    registry: self.registry.clone(),
                    reason: format!("{} ended at byte {} of {}", self.what, self.at, self.size),
                });
            }
            return Ok(None);
        };
        self.at += bytes.len() as u64;
        if self.at > self.size {
            return Err(RegistryError::BadBlob {
                what: self.what.clone(),
                why: "there is more of it than its manifest says".to_owned(),
            });
        }
        Ok(Some(bytes))
    }
}

/// Which part of a whole an answer is (RFC 9110, section 14.4).
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    from: u64,
    /// Not every server knows.
    size: Option<u64>,
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, size) = rest.trim().split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let from = from.trim().parse().ok()?;
    let to: u64 = to.trim().parse().ok()?;
    let size = match size.trim() {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    let fits = from <= to && size.is_none_or(|size| to < size);
    (unit.eq_ignore_ascii_case("bytes") && fits).then_some(ContentRange { from, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_or_it_is_none() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, text.parse().unwrap());
            content_range(&headers)
        };
        let size = Some(100);
        assert_eq!(read("bytes 5-99/100"), Some(ContentRange { from: 5, size }));
        assert_eq!(
            read("Bytes 0-0/*"),
            Some(ContentRange {
                from: 0,
                size: None
            })
        );
        for text in [
            "",
            "bytes",
            "bytes */100",
            "bytes 5-",
            "bytes 9-5/100",
            "bytes 5-100/100",
            "lines 1-2/3",
            "bytes -5-9/10",
            "bytes 1-2/x",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
