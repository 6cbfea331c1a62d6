//! Owns the registry on loopback that the engine pulls from: who may ask it what, in the distribution
//! specification's words.
//!
//! Refuses whoever does not know a pull's secret, and whatever is not of a pull.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::image::Digest;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::net::{TcpListener, TcpStream};

use super::feed::Answer;

/// A whole head of a request: whoever needs longer is no engine.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Request line and headers of any engine.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// A failed accept (no more file descriptors) is tried again after this time.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Says that a registry speaks the protocol (distribution-spec, "Determining Support").
const API_VERSION: &str = "docker-distribution-api-version";
const CONTENT_DIGEST: &str = "docker-content-digest";

/// A document that is given as it is.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its media type, by which an engine reads it.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Which bytes of a blob are wanted: from the first on, up to the one behind the last.
pub type Span = std::ops::Range<u64>;

/// What the engine may be given.
pub trait Offer {
    /// A manifest.
    fn manifest(&self, digest: Digest) -> Option<Document>;

    /// How many bytes a blob has, if it is one of a pull.
    fn size(&self, blob: Digest) -> Option<u64>;

    /// Bytes of a blob of a pull; whoever is the first to ask has it fetched.
    fn blob(&self, blob: Digest, span: Span) -> Option<Answer>;
}

/// A port on loopback, and the secrets of the pulls it was opened for.
///
/// One that was given out stays good until the port closes: an engine that needs a layer for a second image
/// goes on asking for it by the name of the first.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    port: u16,
    secrets: RefCell<Vec<Given>>,
}

#[derive(Debug)]
struct Given {
    secret: String,
    was_used: bool,
}

impl Endpoint {
    /// Opens a port on loopback that the system chooses.
    ///
    /// # Errors
    /// When there is none to be had.
    pub async fn open() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        Ok(Self {
            listener,
            port,
            secrets: RefCell::default(),
        })
    }

    /// A new secret, the first part of every name of one pull: who does not know it finds nothing.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn secret(&self) -> io::Result<String> {
        let mut random = [0; 16];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| io::Error::other("the system gave no random bytes"))?;
        let secret = format!("{:032x}", u128::from_be_bytes(random));
        self.secrets.borrow_mut().push(Given {
            secret: secret.clone(),
            was_used: false,
        });
        Ok(secret)
    }

    /// The name by which the engine pulls `digest` here; `word` is for whoever reads the engine's log.
    pub fn name(&self, secret: &str, word: &str, digest: Digest) -> String {
        format!("127.0.0.1:{}/{secret}/{word}@{digest}", self.port)
    }

    /// Whether anybody ever came with this secret.
    pub fn was_used(&self, secret: &str) -> bool {
        let secrets = self.secrets.borrow();
        secrets
            .iter()
            .any(|given| given.secret == secret && given.was_used)
    }

    /// The next connection.
    pub async fn accept(&self) -> TcpStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    tracing::warn!(error = %error, "a connection of the engine could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Answers on a connection until it ends.
    pub async fn converse(&self, stream: TcpStream, offer: &impl Offer) {
        // Small answers follow each other: they must not wait for one another's receipts.
        let _ = stream.set_nodelay(true);
        let service =
            service_fn(async |request| Ok::<_, Infallible>(self.respond(&request, offer)));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        // An engine that goes away is nobody's fault here; what it still wants it asks for again.
        drop(connection.await);
    }

    fn respond(&self, request: &Request<Incoming>, offer: &impl Offer) -> Response<Answer> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED");
        }
        let wants_body = request.method() == Method::GET;
        match Resource::find(request.uri().path(), |secret| self.use_secret(secret)) {
            Some(Resource::Support) => {
                let nothing = Document {
                    media_type: "application/json".to_owned(),
                    bytes: Bytes::from_static(b"{}"),
                };
                document(nothing, wants_body)
            }
            Some(Resource::Manifest(digest)) => match offer.manifest(digest) {
                Some(found) => {
                    let mut response = document(found, wants_body);
                    name(&mut response, digest);
                    response
                }
                None => refuse(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            },
            Some(Resource::Blob(digest)) => {
                let open = |span| offer.blob(digest, span);
                let found = offer.size(digest);
                let found = found.and_then(|size| blob(request.headers(), wants_body, size, open));
                let Some(mut response) = found else {
                    return refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
                };
                name(&mut response, digest);
                response
            }
            None => refuse(StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        }
    }

    /// Whether this is the secret of a pull.
    fn use_secret(&self, given: &str) -> bool {
        let mut secrets = self.secrets.borrow_mut();
        let found = secrets
            .iter_mut()
            .find(|known| is_same(known.secret.as_bytes(), given.as_bytes()));
        found.is_some_and(|known| {
            known.was_used = true;
            true
        })
    }
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Resource {
    Support,
    Manifest(Digest),
    Blob(Digest),
}

impl Resource {
    fn find(path: &str, is_known: impl FnOnce(&str) -> bool) -> Option<Self> {
        let rest = path.strip_prefix("/v2/")?;
        if rest.is_empty() {
            return Some(Self::Support);
        }
        let mut parts = rest.rsplitn(3, '/');
        let (digest, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        let (given, _) = name.split_once('/')?;
        is_known(given).then_some(())?;
        let digest = digest.parse().ok()?;
        match kind {
            "manifests" => Some(Self::Manifest(digest)),
            "blobs" => Some(Self::Blob(digest)),
            _ => None,
        }
    }
}

/// Whether two secrets are equal, in a time that tells nothing of where they differ.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let differs = |(one, other): (&u8, &u8)| one ^ other;
    let pairs = one.iter().zip(other);
    one.len() == other.len() && pairs.map(differs).fold(0, |all, bits| all | bits) == 0
}

/// The span that a request wants of a blob of `size` bytes (RFC 9110, section 14): one range, from a byte
/// on; anything else means the whole, which a server may always give.
fn span(headers: &HeaderMap, size: u64) -> Result<Option<Span>, ()> {
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
    let Some((from, last)) = range
        .and_then(|range| range.strip_prefix("bytes="))
        .and_then(|range| range.split_once('-'))
    else {
        return Ok(None);
    };
    let Ok(from) = from.trim().parse::<u64>() else {
        return Ok(None);
    };
    let until = match last.trim() {
        "" => size,
        last => match last.parse::<u64>() {
            Ok(last) => last.saturating_add(1).min(size),
            Err(_) => return Ok(None),
        },
    };
    if from >= size || from >= until {
        return Err(());
    }
    Ok(Some(from..until))
}

/// An answer with a blob, or with the part of it that the headers ask for.
pub(super) fn blob(
    headers: &HeaderMap,
    wants_body: bool,
    size: u64,
    open: impl FnOnce(Span) -> Option<Answer>,
) -> Option<Response<Answer>> {
    let (status, wanted) = match span(headers, size) {
        Ok(Some(span)) => (StatusCode::PARTIAL_CONTENT, span),
        Ok(None) => (StatusCode::OK, 0..size),
        Err(()) => {
            let mut response = refuse(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID");
            put(&mut response, CONTENT_RANGE, &format!("bytes */{size}"));
            return Some(response);
        }
    };
    let Span { start, end } = wanted;
    let body = if wants_body {
        open(start..end)?
    } else {
        whole(Bytes::new())
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    put(&mut response, CONTENT_TYPE, "application/octet-stream");
    put(&mut response, ACCEPT_RANGES, "bytes");
    put(&mut response, CONTENT_LENGTH, &(end - start).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {start}-{}/{size}", end - 1);
        put(&mut response, CONTENT_RANGE, &range);
    }
    Some(response)
}

fn document(document: Document, wants_body: bool) -> Response<Answer> {
    let length = document.bytes.len();
    let bytes = if wants_body {
        document.bytes
    } else {
        Bytes::new()
    };
    let mut response = Response::new(whole(bytes));
    put(&mut response, CONTENT_TYPE, &document.media_type);
    put(&mut response, CONTENT_LENGTH, &length.to_string());
    put(&mut response, API_VERSION, "registry/2.0");
    response
}

/// An answer in the words of the distribution-spec, "Error Codes".
pub(super) fn refuse(status: StatusCode, code: &str) -> Response<Answer> {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": "not of this pull" }] });
    let mut response = Response::new(whole(body.to_string().into()));
    *response.status_mut() = status;
    put(&mut response, CONTENT_TYPE, "application/json");
    response
}

fn name(response: &mut Response<Answer>, digest: Digest) {
    put(response, CONTENT_DIGEST, &digest.to_string());
}

/// Sets a header; a value that no header can have, from a registry's document, is left out.
fn put(response: &mut Response<Answer>, name: impl hyper::header::IntoHeaderName, value: &str) {
    if let Ok(value) = value.parse() {
        response.headers_mut().insert(name, value);
    }
}

fn whole(bytes: Bytes) -> Answer {
    Box::pin(Full::new(bytes).map_err(|never| match never {}))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "00112233445566778899aabbccddeeff";

    fn digest() -> Digest {
        Digest::of(b"x")
    }

    #[test]
    fn whoever_does_not_know_the_secret_finds_nothing() {
        let digest = digest();
        let find = |path: &str| {
            Resource::find(path, |secret| is_same(secret.as_bytes(), SECRET.as_bytes()))
        };
        let manifest = format!("/v2/{SECRET}/web/manifests/{digest}");
        assert_eq!(find(&manifest), Some(Resource::Manifest(digest)));
        let blob = format!("/v2/{SECRET}/web/blobs/{digest}");
        assert_eq!(find(&blob), Some(Resource::Blob(digest)));
        assert_eq!(find("/v2/"), Some(Resource::Support));
        for wrong in [
            "/",
            "/v2",
            "/v2/_catalog",
            "/v2/web/tags/list",
            &format!("/v2/web/blobs/{digest}"),
            &format!("/v2/{}/web/blobs/{digest}", SECRET.replace('f', "e")),
            &format!("/v2/{}/web/blobs/{digest}", &SECRET[1..]),
            &format!("/v2/{SECRET}/web/manifests/latest"),
            &format!("/v2/{SECRET}/web/uploads/{digest}"),
            &format!("/v2/{SECRET}/blobs/{digest}"),
        ] {
            assert_eq!(find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn one_range_is_understood_and_anything_else_is_the_whole() {
        let of = |range: &str| {
            let headers = HeaderMap::from_iter([(RANGE, range.parse().unwrap())]);
            span(&headers, 10)
        };
        assert_eq!(span(&HeaderMap::new(), 10), Ok(None));
        assert_eq!(of("bytes=3-"), Ok(Some(3..10)));
        assert_eq!(of("bytes=3-5"), Ok(Some(3..6)));
        assert_eq!(of("bytes=3-99"), Ok(Some(3..10)));
        for whole in ["bytes=-3", "bytes=1-2,4-5", "lines=3-", "bytes=x-"] {
            assert_eq!(of(whole), Ok(None), "{whole}");
        }
        for none in ["bytes=10-", "bytes=5-3"] {
            assert_eq!(of(none), Err(()), "{none}");
        }
    }
}
