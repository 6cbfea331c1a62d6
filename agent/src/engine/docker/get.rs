//! Owns reading from the engine: GET requests over one connection that is kept, and only the fields that are used.
//!
//! Refuses to change anything: a request may be sent twice. bollard opens a connection for each call and reads
//! every field of its answer, which is most of what a device at rest would do.

use std::path::Path;
use std::pin::pin;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{DockerEngine, READ_TIMEOUT, answers, millis, refusal};
use crate::eager::eager;
use crate::engine::{EngineError, Operation};
use crate::fault::foreign;

/// The longest answer is the list of images: about a kilobyte each, some more with many labels. This is a list
/// of thousands, and no more memory than a small device has to spare for a moment.
const MAX_ANSWER_BYTES: usize = 32 << 20;
/// What stays as it is in a path: engines take names of images as they are written.
const IN_NAMES: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b'@');

/// Why a connection is of no use.
pub(super) type Broken = Box<dyn std::error::Error + Send + Sync>;
/// Where requests are given to a connection.
pub(super) type Sender = http1::SendRequest<Empty<Bytes>>;

/// A connection to the engine, which moves only while an exchange runs over it.
pub(super) struct Conversation {
    sender: Sender,
    connection: http1::Connection<TokioIo<UnixStream>, Empty<Bytes>>,
}

impl Conversation {
    /// Connects.
    pub(super) async fn open(socket: &Path) -> Result<Self, Broken> {
        let stream = UnixStream::connect(socket).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Self { sender, connection })
    }

    /// Runs an exchange; gives the conversation back unless the engine ended it.
    pub(super) async fn hold<T>(
        self,
        exchange: impl AsyncFnOnce(&mut Sender) -> T,
    ) -> (T, Option<Self>) {
        eager(self.drive(exchange)).await
    }

    async fn drive<T>(self, exchange: impl AsyncFnOnce(&mut Sender) -> T) -> (T, Option<Self>) {
        let Self {
            mut sender,
            mut connection,
        } = self;
        let (outcome, connection) = {
            let mut exchange = pin!(exchange(&mut sender));
            let outcome = tokio::select! {
                biased;
                outcome = &mut exchange => Some(outcome),
                _ended = &mut connection => None,
            };
            if let Some(outcome) = outcome {
                (outcome, Some(connection))
            } else {
                // What came before the end can still be read; whatever is missing is an error of the
                // exchange from here on.
                drop(connection);
                (exchange.await, None)
            }
        };
        let open = connection.map(|connection| Self { sender, connection });
        (outcome, open)
    }
}

/// Why an exchange gave no answer.
enum Failed {
    /// None of it came.
    Unanswered(Broken),
    /// It broke off.
    BrokenOff(Broken),
    /// It is longer than any that is expected.
    TooLong,
}

impl DockerEngine {
    /// What the engine answers to a GET request, below the version that was agreed on.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        operation: Operation,
        path_and_query: &str,
    ) -> Result<T, EngineError> {
        let body = self.get_bytes(operation, path_and_query).await?;
        serde_json::from_slice(&body).map_err(|error| {
            self.noted(if error.is_eof() {
                EngineError::Unreachable {
                    operation,
                    source: error.into(),
                }
            } else {
                EngineError::Nonsense {
                    detail: foreign(&error.to_string()),
                }
            })
        })
    }

    async fn get_bytes(
        &self,
        operation: Operation,
        path_and_query: &str,
    ) -> Result<Bytes, EngineError> {
        let version = self.agreed(operation).await?.docker.client_version();
        let (major, minor) = (version.major_version, version.minor_version);
        let path = format!("/v{major}.{minor}{path_and_query}");
        let outcome = tokio::time::timeout(READ_TIMEOUT, self.converse(&path)).await;
        let failure = match outcome {
            Ok(Ok((status, body))) if status.is_success() => return Ok(body),
            Ok(Ok((status, body))) => {
                let said = serde_json::from_slice(&body);
                let said = said.map(|answers::Refusal { message }| message);
                let said = said.unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned());
                refusal(operation, status.as_u16(), &said)
            }
            Ok(Err(Failed::Unanswered(source) | Failed::BrokenOff(source))) => {
                EngineError::Unreachable { operation, source }
            }
            Ok(Err(Failed::TooLong)) => EngineError::Nonsense {
                detail: format!("it is longer than {} MiB", MAX_ANSWER_BYTES >> 20),
            },
            Err(_) => EngineError::TimedOut {
                operation,
                timeout_ms: millis(READ_TIMEOUT),
            },
        };
        Err(self.noted(failure))
    }

    /// One exchange, over the connection that is kept if nobody else uses it now.
    async fn converse(&self, path: &str) -> Result<(StatusCode, Bytes), Failed> {
        if let Some(kept) = self.conversation.take() {
            match kept.hold(async |sender| ask(sender, path).await).await {
                // The engine closed it in the meantime, as it does when it starts again.
                (Err(Failed::Unanswered(_)), _) => {}
                (outcome, open) => return self.keep(outcome, open),
            }
        }
        let fresh = Conversation::open(&self.socket).await;
        let fresh = fresh.map_err(Failed::Unanswered)?;
        let (outcome, open) = fresh.hold(async |sender| ask(sender, path).await).await;
        self.keep(outcome, open)
    }

    /// Keeps a conversation for the next read; one whose answer was not read to its end is of no use.
    fn keep<T>(&self, outcome: Result<T, Failed>, open: Option<Conversation>) -> Result<T, Failed> {
        if let (Ok(_), Some(open)) = (&outcome, open) {
            self.conversation.replace(Some(open));
        }
        outcome
    }
}

async fn ask(sender: &mut Sender, path: &str) -> Result<(StatusCode, Bytes), Failed> {
    let request = Request::get(path)
        .header(HOST, "localhost")
        .body(Empty::new());
    let request = request.map_err(|error| Failed::Unanswered(error.into()))?;
    let ready = sender.ready().await;
    ready.map_err(|error| Failed::Unanswered(error.into()))?;
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| Failed::Unanswered(error.into()))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
    match body.collect().await {
        Ok(body) => Ok((status, body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(Failed::TooLong),
        Err(error) => Err(Failed::BrokenOff(error)),
    }
}

/// A name or an id as it is written in a path.
pub(super) fn name(name: &str) -> impl std::fmt::Display {
    utf8_percent_encode(name, IN_NAMES)
}

/// The part of a query that asks only for what `kind` of it is `value`, such as a label.
pub(super) fn only(kind: &str, value: &str) -> String {
    let filters = serde_json::json!({ kind: [value] }).to_string();
    format!(
        "filters={}",
        utf8_percent_encode(&filters, NON_ALPHANUMERIC)
    )
}

#[cfg(test)]
mod tests;
