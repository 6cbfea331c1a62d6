//! Owns Podman's own way to pull: Docker's has no word for a registry without TLS, and Podman trusts none on
//! loopback by itself.
//!
//! Refuses to judge how far it is: Podman says nothing while a layer comes. Whoever gives it the layers knows.

use bytes::Bytes;
use holdfast_proto::image::Platform;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::{Request, Response};
use serde::Deserialize;

use super::DockerEngine;
use super::get::{Broken, Conversation};
use crate::engine::{EngineError, Operation};
use crate::fault::foreign;

/// A line of an answer: names and messages.
const MAX_LINE_BYTES: usize = 64 << 10;

/// One line of an answer (`libpod/images/pull`).
#[derive(Deserialize)]
struct Line {
    error: Option<String>,
}

impl DockerEngine {
    /// Pulls from the agent's own registry on loopback.
    pub(super) async fn pull_from_agent(
        &self,
        name: &str,
        platform: &Platform,
    ) -> Result<(), EngineError> {
        let unreachable = |source: Broken| {
            self.noted(EngineError::Unreachable {
                operation: Operation::Pull,
                source,
            })
        };
        let conversation = Conversation::open(&self.socket).await;
        let conversation = conversation.map_err(unreachable)?;
        let Platform {
            os,
            architecture,
            variant,
        } = platform;
        let variant = variant.as_deref().unwrap_or_default();
        let path = format!(
            "/v4.0.0/libpod/images/pull?reference={name}&tlsVerify=false&policy=always\
             &OS={os}&Arch={architecture}&Variant={variant}"
        );
        let request = Request::post(path)
            .header(HOST, "podman")
            .body(Empty::<Bytes>::new())
            .map_err(|error| EngineError::Nonsense {
                detail: error.to_string(),
            })?;
        let (outcome, _) = conversation
            .hold(async |sender| {
                let answer = sender.send_request(request).await;
                let answer = answer.map_err(|error| unreachable(error.into()))?;
                read(answer, unreachable).await
            })
            .await;
        outcome
    }
}

async fn read(
    answer: Response<Incoming>,
    unreachable: impl Fn(Broken) -> EngineError,
) -> Result<(), EngineError> {
    let status = answer.status();
    let mut body = answer.into_body();
    let mut line = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| unreachable(error.into()))?;
        for byte in frame.data_ref().into_iter().flatten() {
            if *byte == b'\n' {
                judge(&line)?;
                line.clear();
            } else if line.len() < MAX_LINE_BYTES {
                line.push(*byte);
            }
        }
    }
    judge(&line)?;
    if status.is_success() {
        return Ok(());
    }
    Err(EngineError::Refused {
        operation: Operation::Pull,
        status: status.as_u16(),
        message: foreign(&String::from_utf8_lossy(&line)),
    })
}

fn judge(line: &[u8]) -> Result<(), EngineError> {
    match serde_json::from_slice::<Line>(line) {
        Ok(Line { error: Some(error) }) => Err(EngineError::PullBroke {
            message: foreign(&error),
        }),
        // What it copies and how, for people.
        Ok(Line { error: None }) | Err(_) => Ok(()),
    }
}
