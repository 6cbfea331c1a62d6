//! A registry in this process, for fleets that never pull: it serves manifests, and has no layers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use holdfast_proto::image::{ConfigDigest, Digest};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::serve::{Request, Server, answer};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// What each version is made for: simulated devices are the first of them.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// A version of an image, as it was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// `HOST/REPOSITORY:TAG`.
    pub reference: String,
    /// The repository's path in the registry.
    pub repository: String,
    /// The tag that it was pushed under.
    pub tag: String,
    /// The index.
    pub digest: Digest,
    /// What a simulated device runs.
    pub content: ConfigDigest,
}

#[derive(Debug, Default)]
struct State {
    tags: BTreeMap<(String, String), Digest>,
    documents: BTreeMap<Digest, (&'static str, Bytes)>,
    is_away: bool,
}

impl State {
    fn keep(&mut self, media_type: &'static str, document: &Value) -> (Digest, usize) {
        let bytes = Bytes::from(document.to_string());
        let (digest, size) = (Digest::of(&bytes), bytes.len());
        self.documents.insert(digest, (media_type, bytes));
        (digest, size)
    }
}

/// The registry; dropping it ends it.
#[derive(Debug)]
pub struct Shelf {
    server: Server,
    state: Arc<Mutex<State>>,
}

impl Shelf {
    /// Serves on a free loopback port.
    pub async fn start() -> anyhow::Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = Server::start(move |request| serve(&guard(&shared), &request)).await?;
        Ok(Self { server, state })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.server.url().trim_start_matches("http://").to_owned()
    }

    /// Pushes a version: from now on the tag means this content.
    pub fn push(&self, repository: &str, tag: &str, content: &str) -> Version {
        let mut state = guard(&self.state);
        let layer = Digest::of(content.as_bytes());
        let mut entries = Vec::new();
        let mut contents = Vec::new();
        for architecture in ARCHITECTURES {
            let config = json!({
                "os": "linux", "architecture": architecture, "rootfs": { "type": "layers", "diff_ids": [layer] },
                "config": { "Labels": { "repository": repository, "content": content } },
            });
            let (config, config_size) = state.keep(CONFIG, &config);
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST,
                "config": { "mediaType": CONFIG, "digest": config, "size": config_size },
                "layers": [{ "mediaType": LAYER, "digest": layer, "size": 1_000 }],
            });
            let (manifest, size) = state.keep(MANIFEST, &manifest);
            entries.push(json!({
                "mediaType": MANIFEST, "digest": manifest, "size": size,
                "platform": { "os": "linux", "architecture": architecture },
            }));
            contents.push(ConfigDigest(config));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        let (digest, _) = state.keep(INDEX, &index);
        let place = (repository.to_owned(), tag.to_owned());
        state.tags.insert(place, digest);
        Version {
            reference: format!("{}/{repository}:{tag}", self.host()),
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            digest,
            content: contents[0],
        }
    }

    /// Lets a tag mean a version that was pushed before.
    pub fn point(&self, version: &Version) {
        let place = (version.repository.clone(), version.tag.clone());
        guard(&self.state).tags.insert(place, version.digest);
    }

    /// Forgets a version, as a registry's clean-up does; its tag, if it still means it, is gone too.
    pub fn forget(&self, version: &Version) {
        let mut state = guard(&self.state);
        state.documents.remove(&version.digest);
        state.tags.retain(|_, digest| *digest != version.digest);
    }

    /// Whether it answers at all from now on.
    pub fn set_away(&self, is_away: bool) {
        guard(&self.state).is_away = is_away;
    }
}

fn serve(state: &State, request: &Request) -> Response<Bytes> {
    let nothing = || {
        answer(
            StatusCode::NOT_FOUND,
            &json!({ "errors": [{ "code": "UNKNOWN" }] }),
        )
    };
    if state.is_away {
        return answer(StatusCode::SERVICE_UNAVAILABLE, &Value::Null);
    }
    let path = request.path.trim_start_matches("/v2/");
    if request.path == "/v2/" {
        return answer(StatusCode::OK, &json!({}));
    }
    if let Some(repository) = path.strip_suffix("/tags/list") {
        let tags = state.tags.keys().filter(|(one, _)| one == repository);
        let tags: Vec<&str> = tags.map(|(_, tag)| tag.as_str()).collect();
        return answer(StatusCode::OK, &json!({ "name": repository, "tags": tags }));
    }
    let manifest = path.split_once("/manifests/");
    let Some((repository, name)) = manifest.or_else(|| path.split_once("/blobs/")) else {
        return nothing();
    };
    let digest = name.parse().ok().or_else(|| {
        let place = (repository.to_owned(), name.to_owned());
        state.tags.get(&place).copied()
    });
    let Some((digest, (media_type, bytes))) =
        digest.and_then(|digest| Some((digest, state.documents.get(&digest)?)))
    else {
        return nothing();
    };
    let mut response = Response::new(bytes.clone());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Ok(digest) = HeaderValue::try_from(digest.to_string()) {
        headers.insert("docker-content-digest", digest);
    }
    response
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
