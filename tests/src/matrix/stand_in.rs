//! An engine's answers to whoever only looks: containers and images as a test recorded or wrote them.
//!
//! It stands where no real engine can: for machines of other kinds, and for newer engines' image stores.
//! It refuses everything but a GET of a document that it was given.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// Its documents by path, without the version in front.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    found: BTreeMap<String, Value>,
    listed: Vec<Value>,
}

impl Documents {
    /// An engine that calls itself so: the answers to `/version` and `/info`.
    pub fn new(version: Value, info: Value) -> Self {
        let found = [("/version", version), ("/info", info)];
        Self {
            found: found
                .map(|(path, document)| (path.to_owned(), document))
                .into(),
            listed: Vec::new(),
        }
    }

    /// Adds a running container of an image; `more` goes into what the engine says of it.
    pub fn add(&mut self, name: &str, reference: &str, image: &Value, more: &Value) {
        let id = image["Id"].as_str().unwrap_or_default();
        let mut container = json!({
            "Id": name, "Name": format!("/{name}"), "Image": id,
            "State": { "Status": "running", "Running": true },
            "Config": { "Image": reference, "Labels": {} },
        });
        if let (Some(container), Some(more)) = (container.as_object_mut(), more.as_object()) {
            container.extend(more.clone());
        }
        self.listed
            .push(json!({ "Id": name, "Names": [format!("/{name}")], "Image": reference }));
        self.found
            .insert(format!("/containers/{name}/json"), container);
        self.found
            .insert(format!("/images/{id}/json"), image.clone());
    }
}

/// The engine; dropping it ends it.
#[derive(Debug)]
pub struct StandIn {
    folder: TempDir,
    task: JoinHandle<()>,
}

impl StandIn {
    /// Serves these documents on a socket of its own.
    pub fn start(mut documents: Documents) -> anyhow::Result<Self> {
        let listed = Value::Array(std::mem::take(&mut documents.listed));
        documents
            .found
            .insert("/containers/json".to_owned(), listed);
        let found = Arc::new(documents.found);
        let folder = crate::place::temporary("stand-in")?;
        let listener = UnixListener::bind(folder.path().join("docker.sock"))?;
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let found = Arc::clone(&found);
                let service = service_fn(move |request| {
                    let answer = answer(&found, &request);
                    std::future::ready(Ok::<_, std::convert::Infallible>(answer))
                });
                running.spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
                while running.try_join_next().is_some() {}
            }
        });
        Ok(Self { folder, task })
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        Path::join(self.folder.path(), "docker.sock")
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(found: &BTreeMap<String, Value>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let bare = match path
        .strip_prefix("/v")
        .and_then(|rest| rest.split_once('/'))
    {
        Some((version, _)) if version.starts_with(|c: char| c.is_ascii_digit()) => {
            &path[version.len() + 2..]
        }
        Some(_) | None => path,
    };
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, body) = match found.get(bare) {
        _ if bare == "/_ping" => (StatusCode::OK, Bytes::from_static(b"OK")),
        Some(document) if is_read => (StatusCode::OK, document.to_string().into()),
        Some(_) | None => {
            let body = json!({ "message": format!("No such image or container: {bare}") });
            (StatusCode::NOT_FOUND, body.to_string().into())
        }
    };
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let kind = http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert("content-type", kind);
    answer
}
