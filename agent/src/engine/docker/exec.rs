//! Owns running programs inside containers, for probes, and telling "it said no" from "it cannot run".
//!
//! Refuses to wait for a program longer than asked: it goes on by itself, and its answer is lost.

use std::future::Future;
use std::time::Duration;

use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use futures_util::StreamExt as _;

use super::answers::{Checked, Health};
use super::{DockerEngine, DockerError, READ_TIMEOUT, fault};
use crate::engine::{EngineError, Executed, Operation};
use crate::fault::foreign;

/// The beginning of a program's output says what there is to say.
const MAX_OUTPUT_BYTES: usize = 4 << 10;
/// An engine closes a program's output a moment before it knows its exit code.
const END_PAUSE: Duration = Duration::from_millis(20);

impl DockerEngine {
    pub(super) async fn execute(
        &self,
        id: &str,
        words: &[String],
        timeout_ms: u64,
    ) -> Result<Executed, EngineError> {
        let config = ExecConfig {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(words.to_vec()),
            ..ExecConfig::default()
        };
        let made = self
            .call(Operation::Exec, READ_TIMEOUT, |docker| async move {
                docker.create_exec(id, config).await
            })
            .await?;
        let mut output = Vec::new();
        let ended = {
            let run = self.run_to_its_end(&made.id, &mut output);
            tokio::time::timeout(Duration::from_millis(timeout_ms), run).await
        };
        let exit_code = match ended {
            Err(_) => None,
            Ok(Ok(exit_code)) => Some(exit_code),
            // Some engines say at once what others say in the program's output.
            Ok(Err(EngineError::Refused { message, .. })) if says_it_cannot_run(&message) => {
                output = message.into_bytes();
                Some(Executed::NOT_RUNNABLE)
            }
            Ok(Err(error)) => return Err(error),
        };
        let output = String::from_utf8_lossy(&output);
        Ok(Executed {
            exit_code: exit_code.map(|code| as_meant(code, &output)),
            output: foreign(&output),
        })
    }

    async fn run_to_its_end(&self, exec: &str, output: &mut Vec<u8>) -> Result<i64, EngineError> {
        let docker = self.docker(Operation::Exec).await?;
        let options = Some(StartExecOptions::default());
        let started = said(docker.start_exec(exec, options)).await?;
        if let StartExecResults::Attached {
            output: mut stream, ..
        } = started
        {
            // Read to its end, kept in part: a program whose output nobody reads stands still.
            while let Some(part) = stream.next().await {
                let part = part.map_err(|error| fault(Operation::Exec, error))?;
                let room = MAX_OUTPUT_BYTES - output.len();
                let bytes = part.into_bytes();
                output.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
        }
        loop {
            let found = said(docker.inspect_exec(exec)).await?;
            match found.exit_code {
                Some(code) if found.running != Some(true) => return Ok(code),
                Some(_) | None => tokio::time::sleep(END_PAUSE).await,
            }
        }
    }
}

async fn said<T>(call: impl Future<Output = Result<T, DockerError>>) -> Result<T, EngineError> {
    call.await.map_err(|error| fault(Operation::Exec, error))
}

/// An engine gives one code for a program that is not there and for one that it could not start just
/// now, such as when the container has no process left to spare: only the first is for good.
pub(super) fn as_meant(exit_code: i64, output: &str) -> i64 {
    let not_started = output.starts_with("OCI runtime exec failed");
    if not_started && !says_it_cannot_run(output) {
        Executed::NOT_STARTED
    } else {
        exit_code
    }
}

/// Whether an engine speaks of a program that is not there or may not be run.
fn says_it_cannot_run(text: &str) -> bool {
    [
        "executable file not found",
        "no such file or directory",
        "permission denied",
        "exec format error",
    ]
    .iter()
    .any(|words| text.contains(words))
}

/// Why the engine's own health check cannot be run, if its newest result says so.
///
/// An engine gives -1 both to a check that took too long and to one that it could not run at all;
/// the shell gives 126 and 127 to a program that is missing or may not be run.
pub(super) fn health_check_fault(health: &Health) -> Option<String> {
    let Checked { exit_code, output } = health.log.as_ref()?.last()?;
    let output = output.as_deref().unwrap_or_default();
    let cannot = match exit_code {
        Some(126 | 127) => true,
        Some(-1) | None => says_it_cannot_run(output),
        Some(_) => false,
    };
    cannot.then(|| foreign(output))
}
