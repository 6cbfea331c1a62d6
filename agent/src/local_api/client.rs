//! Owns asking the running agent over its socket, as the command line does.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::problem::Problem;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

/// The agent answers at once, but may be in the middle of a step.
const LIMIT: Duration = Duration::from_secs(5);
/// The most that is read: a status of hundreds of services.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// The running agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "no agent answers on {socket}; is it running? start it with `systemctl start holdfast-agent`"
    )]
    NotRunning {
        /// The socket.
        socket: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// This user may not ask.
    #[error("{socket} is closed to you; become a member of the group holdfast, or root")]
    Forbidden {
        /// The socket.
        socket: String,
    },
    /// The conversation failed.
    #[error("the agent did not answer: {detail}")]
    Broke {
        /// Why.
        detail: String,
    },
    /// The agent said no.
    #[error("{detail}")]
    Refused {
        /// The status of its answer.
        status: u16,
        /// Its words.
        detail: String,
    },
}

/// Asks once.
pub async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<T, AskError> {
    let exchange = exchange(socket, method, path, body);
    match tokio::time::timeout(LIMIT, exchange).await {
        Ok(outcome) => outcome,
        Err(_) => Err(AskError::Broke {
            detail: format!("not within {} s", LIMIT.as_secs()),
        }),
    }
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<T, AskError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| {
        let socket = socket.display().to_string();
        if source.kind() == std::io::ErrorKind::PermissionDenied {
            AskError::Forbidden { socket }
        } else {
            AskError::NotRunning { socket, source }
        }
    })?;
    let broke = |error: &dyn std::error::Error| AskError::Broke {
        detail: crate::fault::chain(error),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broke(&error))?;
    let bytes = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(bytes)))
        .map_err(|error| broke(&error))?;
    let conversation = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, bytes.to_bytes()))
    };
    let (outcome, _) = tokio::join!(conversation, connection);
    let (status, bytes) = outcome.map_err(|error| broke(&*error))?;
    if status.is_success() {
        return serde_json::from_slice(&bytes).map_err(|error| broke(&error));
    }
    let problem: Option<Problem> = serde_json::from_slice(&bytes).ok();
    let detail = problem.and_then(|problem| {
        let errors = problem.errors.iter().map(|error| format!("; {error}"));
        let errors: String = errors.collect();
        problem.detail.map(|detail| detail + &errors)
    });
    Err(AskError::Refused {
        status: status.as_u16(),
        detail: detail.unwrap_or_else(|| status.to_string()),
    })
}
