//! Owns a control API in memory of the test, and a client that checks every answer against the
//! OpenAPI document.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use holdfast_api::app::Shared;
use holdfast_api::config::{Install, Log, LogFormat, Notifications, PushRules, Settings};
use holdfast_api::secret::Secret;
use holdfast_api::{http as surface, program};
use holdfast_domain::retention::Retention;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::registry::Registry;
use super::{Place, schema};

pub const WEBHOOK_SECRET: &str = "a-webhook-secret-for-tests";
pub const POLL_INTERVAL_S: u32 = 30;
const STREAM: &str = "text/event-stream";

pub struct Api {
    pub app: Shared,
    pub router: Router,
    pub registry: Arc<Registry>,
    pub admin: String,
    pub place: Place,
    pub stop: watch::Sender<bool>,
}

pub struct Device {
    pub uuid: String,
    pub token: String,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no header {name}"))
            .to_str()
            .unwrap()
    }

    /// The stable code of a problem.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json");
        self.json()["code"].as_str().unwrap().to_owned()
    }

    /// The pointers of a problem's fields.
    pub fn pointers(&self) -> Vec<String> {
        self.json()["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|error| error["pointer"].as_str().unwrap().to_owned())
            .collect()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(
            self.status.as_u16(),
            status,
            "{}",
            String::from_utf8_lossy(&self.bytes)
        );
        self
    }
}

pub fn settings(place: &Place) -> Settings {
    Settings {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: place.dir.path().to_owned(),
        location: place.location.clone(),
        log: Log {
            format: LogFormat::Text,
            level: "info".into(),
        },
        registries: Vec::new(),
        poll_interval_s: POLL_INTERVAL_S,
        digest_cache_s: 0,
        refresh_interval: None,
        credentials_key_file: place.dir.path().join("credentials-key"),
        webhook_secret: Some(Secret::new(WEBHOOK_SECRET.into())),
        pushes: PushRules::default(),
        retention: Retention {
            events_days: None,
            audit_days: None,
            rollouts_days: None,
        },
        notifications: Notifications::default(),
        install: Install::default(),
    }
}

impl Api {
    pub async fn start(place: Place) -> Self {
        Self::start_with(place, |settings| settings).await
    }

    /// As [`Api::start`], with other settings.
    pub async fn start_with(place: Place, adjust: impl FnOnce(Settings) -> Settings) -> Self {
        let registry = Arc::new(Registry::default());
        let (stop, stopping) = watch::channel(false);
        let app = program::assemble(
            &adjust(settings(&place)),
            registry.clone(),
            Arc::default(),
            stopping,
        )
        .await
        .unwrap();
        let admin = std::fs::read_to_string(place.dir.path().join("admin-token"))
            .unwrap()
            .trim()
            .to_owned();
        Self {
            router: surface::router(app.clone()),
            app,
            registry,
            admin,
            place,
            stop,
        }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        // A stream has no end to wait for; who wants to read one does it without this.
        let is_stream = parts
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind == STREAM);
        let answer = Answer {
            status: parts.status,
            headers: parts.headers,
            bytes: if is_stream {
                Vec::new()
            } else {
                body.collect().await.unwrap().to_bytes().to_vec()
            },
        };
        check(&method, &path, &answer);
        answer
    }

    pub async fn call(&self, method: &str, path: &str, token: &str, body: Option<Value>) -> Answer {
        let body = body.map(|body| body.to_string().into_bytes());
        self.call_raw(method, path, token, body).await
    }

    pub async fn call_raw(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Option<Vec<u8>>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Body::empty, Body::from);
        self.send(request.body(body).unwrap()).await
    }

    pub async fn get(&self, path: &str, token: &str) -> Answer {
        self.call("GET", path, token, None).await
    }

    pub async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.call("POST", path, token, Some(body)).await
    }

    /// A new operator token with this role.
    pub async fn token(&self, role: &str) -> String {
        let body = json!({"name": role, "role": role});
        let made = self
            .post("/api/v1/tokens", &self.admin, body)
            .await
            .expect(201);
        made.json()["token"].as_str().unwrap().to_owned()
    }

    /// A new enrolment key.
    pub async fn key(&self, mut extra: Value) -> String {
        extra["name"] = "tests".into();
        let made = self
            .post("/api/v1/enrolment-keys", &self.admin, extra)
            .await
            .expect(201);
        made.json()["key"].as_str().unwrap().to_owned()
    }

    /// A new device of this platform.
    pub async fn enrol_as(&self, platform: &str) -> Device {
        let key = self.key(json!({})).await;
        let (os, architecture) = platform.split_once('/').unwrap();
        let body = json!({"name": "box", "agentVersion": "1.0.0",
            "platform": {"os": os, "architecture": architecture}});
        let answer = self.post("/api/v1/enroll", &key, body).await.expect(201);
        let body = answer.json();
        Device {
            uuid: body["uuid"].as_str().unwrap().to_owned(),
            token: body["token"].as_str().unwrap().to_owned(),
        }
    }

    pub async fn enrol(&self) -> Device {
        self.enrol_as("linux/amd64").await
    }

    /// Sets a target of one service.
    pub async fn set(&self, device: &Device, image: &str) -> Answer {
        self.post(&device.path("/target-state"), &self.admin, target(image))
            .await
    }

    /// Polls, with these headers.
    pub async fn poll(&self, device: &Device, extra: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder()
            .uri(device.path("/state"))
            .header(header::AUTHORIZATION, format!("Bearer {}", device.token));
        for (name, value) in extra {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }
}

impl Device {
    pub fn path(&self, rest: &str) -> String {
        format!("/api/v1/devices/{}{rest}", self.uuid)
    }
}

/// A target of one service, as the contract shows it.
pub fn target(image: &str) -> Value {
    json!({"apps": {"1001": {"appId": 1001, "appName": "Web Server", "services": [
        {"serviceId": 1, "serviceName": "nginx", "imageName": image,
         "config": {"ports": ["80:80"]}}]}}})
}

/// A report of this sequence and generation.
pub fn report(sequence: u64, generation: u64) -> Value {
    json!({"sequence": sequence, "agentVersion": "1.0.1", "generation": generation,
           "status": "converged", "newField": true})
}

/// Waits for a condition, at most ten seconds.
pub async fn wait_for<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .is_ok(),
        "waited in vain until {what}"
    );
}

pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| serde_json::from_str(&surface::document_text()).unwrap())
}

/// Checks an answer against what the document promises for its route and status.
fn check(method: &Method, path: &str, answer: &Answer) {
    let status = answer.status.as_u16().to_string();
    assert!(!answer.header("x-request-id").is_empty());
    let Some(operation) = operation(method, path) else {
        assert!(
            matches!(answer.status.as_u16(), 404 | 405),
            "{path}: {status}"
        );
        assert_problem(answer);
        return;
    };
    let responses = &operation["responses"];
    let response = responses
        .get(&status)
        .or_else(|| {
            responses
                .get("default")
                .filter(|_| answer.status.as_u16() >= 400)
        })
        .unwrap_or_else(|| panic!("{method} {path}: status {status} is not in the document"));
    let Some(content) = response.get("content") else {
        assert!(
            answer.bytes.is_empty(),
            "{method} {path}: {status} has a body"
        );
        return;
    };
    let kind = answer.header("content-type");
    let Some(media) = content.get(kind) else {
        assert!(
            content.get("text/plain").is_some() && !kind.contains("json"),
            "{method} {path}: {kind} is not in the document"
        );
        return;
    };
    if !kind.contains("json") {
        return;
    }
    let faults = schema::faults(document(), &media["schema"], &answer.json());
    assert!(faults.is_empty(), "{method} {path} {status}: {faults:#?}");
    if answer.status.as_u16() >= 400 {
        assert_problem(answer);
    }
}

fn assert_problem(answer: &Answer) {
    let problem = answer.json();
    assert_eq!(problem["status"], answer.status.as_u16());
    assert_eq!(problem["request_id"], answer.header("x-request-id"));
    for member in ["type", "title", "detail", "code", "instance"] {
        assert!(
            problem[member].is_string(),
            "{member} is missing: {problem}"
        );
    }
}

fn operation(method: &Method, path: &str) -> Option<&'static Value> {
    let parts: Vec<&str> = path.split('/').collect();
    let paths = document()["paths"].as_object()?;
    paths
        .iter()
        .filter(|(pattern, _)| {
            let pattern: Vec<&str> = pattern.split('/').collect();
            pattern.len() == parts.len()
                && pattern
                    .iter()
                    .zip(&parts)
                    .all(|(pattern, part)| pattern.starts_with('{') || pattern == part)
        })
        .find_map(|(_, item)| item.get(method.as_str().to_lowercase()))
}
