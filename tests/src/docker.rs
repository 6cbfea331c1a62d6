//! The engine's HTTP interface over its unix socket, as far as tests ask it for facts.
//!
//! It shares no code with the agent, so it cannot repeat the agent's mistakes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::apt;

/// Longer than any single engine call of a test takes, pulls on a busy machine included.
const CALL_ENDS_WITHIN: Duration = Duration::from_mins(2);

/// Speaks to one engine.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
}

/// An answer of the engine, whole.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// The body as it came.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null when it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    fn good(self, what: &str) -> anyhow::Result<Self> {
        ensure!(
            self.status.is_success() || self.status == StatusCode::NOT_MODIFIED,
            "{what}: {} {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        Ok(self)
    }
}

impl Docker {
    /// The engine behind this socket.
    pub fn at(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// One call; any status is an answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "docker");
        let bytes = body.map(serde_json::to_vec).transpose()?;
        if bytes.is_some() {
            request = request.header("content-type", "application/json");
        }
        self.send(request.body(Full::from(bytes.unwrap_or_default()))?)
            .await
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let whole = async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            connection.abort();
            Ok(Answer { status, body })
        };
        tokio::time::timeout(CALL_ENDS_WITHIN, whole).await?
    }

    /// Whether the engine answers.
    pub async fn ping(&self) -> anyhow::Result<()> {
        let pong = tokio::time::timeout(
            Duration::from_secs(5),
            self.call(Method::GET, "/_ping", None),
        );
        pong.await??.good("ping").map(drop)
    }

    /// A successful GET as JSON.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.call(Method::GET, path, None).await?;
        Ok(answer.good(path)?.json())
    }

    /// A container by name or id; `None` when there is none.
    pub async fn container(&self, name: &str) -> anyhow::Result<Option<Value>> {
        self.find(&format!("/containers/{name}/json")).await
    }

    /// An image by reference or id; `None` when there is none.
    pub async fn image(&self, name: &str) -> anyhow::Result<Option<Value>> {
        self.find(&format!("/images/{name}/json")).await
    }

    async fn find(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let answer = self.call(Method::GET, path, None).await?;
        // Podman says the latter of a container that goes while it looks at it.
        let gone = || String::from_utf8_lossy(&answer.body).contains("no such container");
        if answer.status == StatusCode::NOT_FOUND
            || (answer.status == StatusCode::INTERNAL_SERVER_ERROR && gone())
        {
            return Ok(None);
        }
        Ok(Some(answer.good(path)?.json()))
    }

    /// Summaries of all containers with this label (`key` or `key=value`), ended ones included.
    pub async fn labelled(&self, label: &str) -> anyhow::Result<Vec<Value>> {
        let filters = json!({ "label": [label] }).to_string();
        let path = format!("/containers/json?all=true&filters={}", encode(&filters));
        match self.get(&path).await? {
            Value::Array(list) => Ok(list),
            other => bail!("a list of containers was expected, not {other}"),
        }
    }

    /// Pulls an image (`name:tag` or `name@sha256:…`), with credentials when given.
    pub async fn pull(&self, image: &str, login: Option<(&str, &str)>) -> anyhow::Result<()> {
        let path = format!("/images/create?fromImage={}", encode(image));
        let mut request = Request::post(path).header("host", "docker");
        if let Some((username, password)) = login {
            let auth = json!({ "username": username, "password": password }).to_string();
            let auth = base64::engine::general_purpose::URL_SAFE.encode(auth);
            request = request.header("x-registry-auth", auth);
        }
        let answer = self.send(request.body(Full::default())?).await?;
        let answer = answer.good(&format!("pull {image}"))?;
        // The engine answers 200 first and tells of a failure in the last lines.
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let failed = text.lines().find(|line| line.contains("\"error\""));
        match failed {
            Some(line) => bail!("pull {image}: {line}"),
            None => Ok(()),
        }
    }

    /// Creates and starts a container that is not Holdfast's; `body` as the engine's create call.
    pub async fn run(&self, name: &str, body: &Value) -> anyhow::Result<String> {
        let path = format!("/containers/create?name={}", encode(name));
        let answer = self.call(Method::POST, &path, Some(body)).await?;
        let id = answer.good("create")?.json()["Id"].clone();
        let id = id.as_str().context("create answered no id")?.to_owned();
        self.post(&format!("/containers/{id}/start")).await?;
        Ok(id)
    }

    /// A successful POST without a body.
    pub async fn post(&self, path: &str) -> anyhow::Result<()> {
        let answer = self.call(Method::POST, path, None).await?;
        answer.good(path).map(drop)
    }

    /// Kills a container's first process, as a crash of the application would.
    pub async fn kill(&self, name: &str) -> anyhow::Result<()> {
        self.post(&format!("/containers/{name}/kill")).await
    }

    /// Removes a container by force, volumes included; it is fine when there is none.
    pub async fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = format!("/containers/{name}?force=true&v=true");
        self.delete(&path).await
    }

    /// Removes an image by force; it is fine when there is none.
    pub async fn remove_image(&self, name: &str) -> anyhow::Result<()> {
        self.delete(&format!("/images/{name}?force=true")).await
    }

    async fn delete(&self, path: &str) -> anyhow::Result<()> {
        let answer = self.call(Method::DELETE, path, None).await?;
        // 409: somebody else is removing it right now.
        if matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::CONFLICT) {
            return Ok(());
        }
        answer.good(path).map(drop)
    }

    /// Removes every container and network with this label.
    pub async fn sweep(&self, label: &str) -> anyhow::Result<()> {
        for container in self.labelled(label).await? {
            self.remove(container["Id"].as_str().unwrap_or_default())
                .await?;
        }
        let filters = json!({ "label": [label] }).to_string();
        let networks = self
            .get(&format!("/networks?filters={}", encode(&filters)))
            .await?;
        for network in networks.as_array().into_iter().flatten() {
            let id = network["Id"].as_str().unwrap_or_default();
            self.delete(&format!("/networks/{id}")).await?;
        }
        Ok(())
    }

    /// What the container wrote, both outputs in order.
    pub async fn logs(&self, name: &str) -> anyhow::Result<String> {
        // The engine sends frames: a stream number, three zeros, the length, then the bytes.
        let path = format!("/containers/{name}/logs?stdout=true&stderr=true");
        let answer = self.call(Method::GET, &path, None).await?.good(&path)?;
        let mut rest = &answer.body[..];
        let mut text = Vec::new();
        while let [_, 0, 0, 0, a, b, c, d, after @ ..] = rest {
            let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d]))?;
            let (frame, next) = after.split_at(length.min(after.len()));
            text.extend_from_slice(frame);
            rest = next;
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Runs the docker program against this engine, for what is clumsy over HTTP (exec, cp).
    pub async fn cli(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("docker");
        command
            .arg("-H")
            .arg(format!("unix://{}", self.socket.display()))
            .args(args);
        tokio::task::spawn_blocking(move || apt::run(&mut command)).await?
    }
}

/// Percent-encodes a value for a query.
pub fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte.into());
            }
            other => write!(out, "%{other:02X}").expect("a String takes everything"),
        }
        out
    })
}
