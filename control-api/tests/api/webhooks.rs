//! Facts about webhooks of registries.

use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Api, WEBHOOK_SECRET};

crate::on_both_databases![pushes_of_tagged_manifests_are_recorded_once];

const PATH: &str = "/api/v1/webhooks/distribution";

fn event(id: &str, action: &str, kind: &str, tag: Option<&str>) -> Value {
    let mut event = json!({"id": id, "timestamp": "2026-01-01T00:00:00Z", "action": action,
        "target": {"mediaType": kind, "repository": "demo/web", "digest": "sha256:00", "size": 1},
        "request": {"id": "r", "host": "127.0.0.1:5000", "method": "PUT"}});
    if let Some(tag) = tag {
        event["target"]["tag"] = tag.into();
    }
    event
}

async fn pushes_of_tagged_manifests_are_recorded_once(place: Place) {
    let api = Api::start(place).await;
    let index = "application/vnd.oci.image.index.v1+json";
    let envelope = json!({"events": [
        event("1", "push", index, Some("1")),
        event("2", "push", "application/vnd.docker.distribution.manifest.v2+json", None),
        event("3", "push", "application/octet-stream", Some("1")),
        event("4", "pull", index, Some("1")),
        event("1", "push", index, Some("1")),
    ]});
    for _ in 0..2 {
        api.post(PATH, WEBHOOK_SECRET, envelope.clone())
            .await
            .expect(202);
    }
    let path = "/api/v1/events?kind=image.webhook_received";
    let recorded = api.get(path, &api.admin).await.json();
    let [one] = recorded["items"].as_array().unwrap().as_slice() else {
        panic!("one event expected: {recorded}");
    };
    assert_eq!(one["subject"], "127.0.0.1:5000/demo/web:1");
}

#[tokio::test]
async fn a_webhook_without_the_secret_is_refused_before_it_is_read() {
    let api = Api::start(Place::sqlite()).await;
    for token in ["", "wrong", &api.admin, &WEBHOOK_SECRET[1..]] {
        api.call_raw("POST", PATH, token, Some(b"{".to_vec()))
            .await
            .expect(401);
    }
    api.call_raw("POST", PATH, WEBHOOK_SECRET, Some(b"{".to_vec()))
        .await
        .expect(400);
    api.call_raw("POST", PATH, WEBHOOK_SECRET, Some(vec![b' '; 262_145]))
        .await
        .expect(413);
}

#[tokio::test]
async fn the_media_type_of_distribution_is_taken() {
    let api = Api::start(Place::sqlite()).await;
    let request = http::Request::builder()
        .method("POST")
        .uri(PATH)
        .header("authorization", format!("Bearer {WEBHOOK_SECRET}"))
        .header(
            "content-type",
            "application/vnd.docker.distribution.events.v1+json",
        )
        .body(axum::body::Body::from(r#"{"events":[]}"#))
        .unwrap();
    api.send(request).await.expect(202);
}
