//! Owns what registries send, written here from the lists of their members, and an API whose tasks run.

use std::time::Duration;

use base64::Engine as _;
use holdfast_api::config::Settings;
use holdfast_api::secret::Secret;
use holdfast_api::tasks;
use holdfast_domain::approval::Internal;
use http::Request;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Place;
use super::api::{Answer, Api, WEBHOOK_SECRET};

pub const SECOND_SECRET: &str = "another-webhook-secret";
pub const HEX: &str = "35c4a2c15539c6c1e4e5fa4e554dac323ad0107d8eb5c582d6ff386b383b7dce";

/// An API with its tasks, `iotistic/*` as its own images, and a second secret.
pub struct Receiver {
    pub api: Api,
    _tasks: JoinSet<()>,
}

/// `iotistic/*` as its own images, and a second secret.
pub fn rules(mut settings: Settings) -> Settings {
    settings.pushes.internal = vec![Internal {
        registry: "docker.io".into(),
        namespace: "iotistic".into(),
    }];
    let second = Secret::new(SECOND_SECRET.into());
    settings.pushes.secrets.insert("second".into(), second);
    settings
}

impl Receiver {
    pub async fn start(place: Place) -> Self {
        Self::start_with(place, |settings| settings).await
    }

    pub async fn start_with(place: Place, adjust: impl FnOnce(Settings) -> Settings) -> Self {
        let patient = |mut settings: Settings| {
            // A machine with other work takes its time.
            settings.pushes.answer_within = Duration::from_mins(1);
            adjust(rules(settings))
        };
        let api = Api::start_with(place, patient).await;
        Self {
            _tasks: tasks::start(&api.app),
            api,
        }
    }

    /// Sends a body to a webhook, with the secret as bearer token.
    pub async fn push(&self, vendor: &str, body: &Value) -> Answer {
        let path = format!("/api/v1/webhooks/{vendor}");
        self.api.post(&path, WEBHOOK_SECRET, body.clone()).await
    }

    /// Sends a push in the generic form.
    pub async fn told(&self, image: &str, tag: &str) -> Answer {
        self.push("generic", &generic(image, tag)).await
    }

    pub async fn get(&self, path: &str) -> Value {
        self.api.get(path, &self.api.admin).await.expect(200).json()
    }

    /// The items of a list.
    pub async fn items(&self, path: &str) -> Vec<Value> {
        self.get(path).await["items"].as_array().unwrap().clone()
    }

    pub async fn events(&self, kind: &str) -> Vec<Value> {
        self.items(&format!("/api/v1/events?kind={kind}&limit=200"))
            .await
    }

    /// How many events there are.
    pub async fn event_count(&self) -> usize {
        self.items("/api/v1/events?limit=200").await.len()
    }

    pub async fn deliveries(&self) -> Vec<Value> {
        self.items("/api/v1/webhooks/deliveries?limit=200").await
    }

    /// Makes an image known; answers its path.
    pub async fn image(&self, name: &str, status: &str) -> String {
        let body = json!({ "image_name": name, "approval_status": status });
        let made = self.api.post("/api/v1/images", &self.api.admin, body).await;
        format!("/api/v1/images/{}", made.expect(201).json()["id"])
    }
}

/// Sends bytes with these headers.
pub async fn send(api: &Api, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let mut request = Request::builder().method("POST").uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    api.send(request.body(body.into()).unwrap()).await
}

pub fn generic(image: &str, tag: &str) -> Value {
    json!({ "image": image, "tag": tag })
}

pub fn docker_hub(name: &str, tag: &str) -> Value {
    json!({
        "push_data": { "pushed_at": 1.7e9, "pusher": "x", "tag": tag },
        "repository": { "repo_name": name, "is_private": true, "status": "Active" },
        "callback_url": "http://169.254.169.254/",
    })
}

pub fn distribution(id: &str, host: &str, repository: &str, tag: &str) -> Value {
    json!({ "events": [{
        "id": id, "timestamp": "2026-01-01T00:00:00Z", "action": "push",
        "target": {
            "mediaType": "application/vnd.oci.image.index.v1+json", "size": 1,
            "repository": repository, "tag": tag, "digest": format!("sha256:{HEX}"),
        },
        "request": { "id": "r", "host": host, "method": "PUT" },
    }] })
}

/// Every vendor's form of a push of `acme/web:v1`, and the image that it means.
pub fn every_vendor() -> Vec<(&'static str, Value, &'static str)> {
    let digest = format!("sha256:{HEX}");
    let data = json!({
        "action": "INSERT", "digest": format!("europe-docker.pkg.dev/p/r/web@{digest}"),
        "tag": "europe-docker.pkg.dev/p/r/web:v1",
    });
    let data = base64::engine::general_purpose::STANDARD.encode(data.to_string());
    vec![
        ("docker_hub", docker_hub("acme/web", "v1"), "acme/web"),
        (
            "github",
            json!({
                "action": "published",
                "registry_package": {
                    "name": "web", "namespace": "Acme", "package_type": "CONTAINER",
                    "package_version": {
                        "container_metadata": { "tag": { "name": "v1", "digest": digest } },
                        "package_url": "ghcr.io/acme/web:v1",
                    },
                },
            }),
            "ghcr.io/acme/web",
        ),
        (
            "distribution",
            distribution("1", "reg.lan:5000", "acme/web", "v1"),
            "reg.lan:5000/acme/web",
        ),
        (
            "gitlab",
            distribution("2", "registry.gitlab.example", "acme/web", "v1"),
            "registry.gitlab.example/acme/web",
        ),
        (
            "harbor",
            json!({
                "type": "PUSH_ARTIFACT", "occur_at": 1_700_000_000, "operator": "x",
                "event_data": {
                    "resources": [
                        { "digest": digest, "tag": "v1", "resource_url": "harbor.lan/acme/web:v1" },
                    ],
                    "repository": { "name": "web", "repo_full_name": "acme/web" },
                },
            }),
            "harbor.lan/acme/web",
        ),
        (
            "quay",
            json!({
                "name": "web", "repository": "acme/web", "namespace": "acme",
                "docker_url": "quay.io/acme/web", "updated_tags": ["v1"],
            }),
            "quay.io/acme/web",
        ),
        (
            "acr",
            json!({
                "id": "a", "action": "push",
                "target": { "repository": "acme/web", "tag": "v1", "digest": digest },
                "request": { "host": "acme.azurecr.io" },
            }),
            "acme.azurecr.io/acme/web",
        ),
        (
            "ecr",
            json!({
                "id": "e", "detail-type": "ECR Image Action", "account": "123456789012",
                "region": "eu-central-1",
                "detail": {
                    "result": "SUCCESS", "action-type": "PUSH", "repository-name": "acme/web",
                    "image-digest": digest, "image-tag": "v1",
                },
            }),
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com/acme/web",
        ),
        (
            "gar",
            json!({ "message": { "data": data, "messageId": "m" }, "subscription": "s" }),
            "europe-docker.pkg.dev/p/r/web",
        ),
        (
            "jfrog",
            json!({
                "domain": "docker", "event_type": "pushed",
                "jpd_origin": "https://acme.jfrog.io/artifactory",
                "data": {
                    "repo_key": "local", "image_name": "acme/web", "tag": "v1", "sha256": HEX,
                },
            }),
            "acme.jfrog.io/local/acme/web",
        ),
        ("generic", generic("acme/other", "v1"), "acme/other"),
    ]
}
