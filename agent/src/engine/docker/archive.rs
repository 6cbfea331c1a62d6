//! Owns reading a file out of a container, also one that was never started.

use bollard::query_parameters::DownloadFromContainerOptions;
use futures_util::StreamExt as _;

use super::{DockerEngine, READ_TIMEOUT, fault, millis};
use crate::engine::member::{Member, Sink};
use crate::engine::{EngineError, Operation, ReadError};

impl DockerEngine {
    pub(super) async fn read_archive(
        &self,
        id: &str,
        path: &str,
        most_bytes: u64,
        take: Sink<'_>,
    ) -> Result<(), ReadError> {
        let operation = Operation::ReadFile;
        let docker = self.docker(operation).await?;
        let options = DownloadFromContainerOptions {
            path: path.to_owned(),
        };
        let mut pieces = std::pin::pin!(docker.download_from_container(id, Some(options)));
        let mut member = Member::new(most_bytes);
        loop {
            let piece = tokio::time::timeout(READ_TIMEOUT, pieces.next()).await;
            let failure = match piece {
                Ok(None) => return member.end(),
                Ok(Some(Ok(bytes))) => {
                    member.push(&bytes, take)?;
                    continue;
                }
                Ok(Some(Err(error))) => fault(operation, error),
                Err(_) => EngineError::TimedOut {
                    operation,
                    timeout_ms: millis(READ_TIMEOUT),
                },
            };
            return Err(match failure {
                EngineError::Refused {
                    status: 404,
                    message,
                    ..
                } if !message.to_ascii_lowercase().contains("no such container") => {
                    ReadError::NotThere
                }
                failure => ReadError::Engine(self.noted(failure)),
            });
        }
    }
}
