//! Facts about Compose files as targets.

use axum::body::Body;
use http::{Request, header};
use serde_json::json;

use crate::fleets::{join, served};
use crate::support::Place;
use crate::support::api::{Answer, Api};
use crate::support::registry::digest;

crate::on_both_databases![
    a_compose_file_is_a_devices_target,
    a_compose_file_is_a_release,
    what_is_not_taken_is_refused_by_its_place_and_nothing_stored,
];

const FILE: &str = r#"
name: shop
services:
  web:
    image: nginx:1
    ports: ["80:80"]
    environment: {PRICE: "5$$"}
    volumes: ["data:/data"]
volumes:
  data:
"#;

async fn send(api: &Api, path: &str, kind: &str, text: impl Into<Body>) -> Answer {
    let request = Request::builder()
        .method("PUT")
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {}", api.admin))
        .header(header::CONTENT_TYPE, kind);
    api.send(request.body(text.into()).unwrap()).await
}

async fn a_compose_file_is_a_devices_target(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let path = device.path("/compose");
    let set = send(&api, &path, "application/yaml", FILE)
        .await
        .expect(200)
        .json();
    let service = &set["apps"]["shop"]["services"][0];
    assert_eq!(service["serviceName"], "web");
    assert_eq!(service["imageName"], format!("nginx@{}", digest("v1")));
    assert_eq!(service["pin"]["reference"], "nginx:1");
    assert_eq!(service["config"]["environment"]["PRICE"], "5$");
    let again = send(&api, &path, "text/x-yaml; charset=utf-8", FILE)
        .await
        .expect(200)
        .json();
    assert_eq!(again["generation"], 1);
    let follows = api.get(&device.path("/release"), &api.admin).await.json();
    assert_eq!(follows["own_target"], true);
    let strict = format!("{path}?require_digest=true");
    let file = "services: {a: {image: unknown}}";
    let refused = send(&api, &strict, "application/yaml", file)
        .await
        .expect(424);
    assert_eq!(refused.code(), "unresolved");
}

async fn a_compose_file_is_a_release(place: Place) {
    let api = Api::start(place).await;
    api.post("/api/v1/fleets", &api.admin, json!({ "name": "north" }))
        .await
        .expect(201);
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let path = "/api/v1/fleets/north/compose";
    let made = send(&api, path, "application/yaml", FILE)
        .await
        .expect(201)
        .json();
    assert_eq!(
        (&made["number"], &made["is_current"]),
        (&json!(1), &json!(true))
    );
    send(&api, path, "application/yaml", FILE).await.expect(200);
    let device = join(&api, "north").await;
    let images = vec![format!("nginx@{}", digest("v1"))];
    assert_eq!(served(&api, &device).await, (1, images));
}

async fn what_is_not_taken_is_refused_by_its_place_and_nothing_stored(place: Place) {
    let api = Api::start(place).await;
    let device = join(&api, "north").await;
    api.registry.push("nginx", "v1", &["linux/amd64"]);
    let long = format!(
        "services: {{a: {{image: nginx}}}} #{}",
        "x".repeat(256 * 1024)
    );
    for path in [
        device.path("/compose"),
        "/api/v1/fleets/north/compose".to_owned(),
    ] {
        for (field, pointer) in [
            ("build: .", "/services/web/build"),
            ("env_file: [.env]", "/services/web/env_file"),
            ("ports: [\"99999:1\"]", "/services/web/ports/0"),
            (
                "environment: {KEY: $SECRET}",
                "/services/web/environment/KEY",
            ),
        ] {
            let file = format!("services:\n  web:\n    image: nginx\n    {field}\n");
            let refused = send(&api, &path, "application/yaml", file)
                .await
                .expect(422);
            assert_eq!(refused.pointers(), [pointer], "{field}");
            assert!(!refused.json().to_string().contains("SECRET"));
        }
        let refused = send(&api, &path, "application/yaml", "services: [")
            .await
            .expect(400);
        assert_eq!(refused.code(), "malformed");
        let refused = send(&api, &path, "application/json", "{}")
            .await
            .expect(415);
        assert_eq!(refused.code(), "unsupported_media_type");
        let refused = send(&api, &path, "application/yaml", long.clone())
            .await
            .expect(413);
        assert_eq!(refused.code(), "too_large");
        let bomb = format!(
            "a: &a {}\nb: [{}]",
            "x".repeat(100_000),
            "*a, ".repeat(30_000)
        );
        send(&api, &path, "application/yaml", bomb)
            .await
            .expect(422);
    }
    assert_eq!(served(&api, &device).await.0, 0);
    let listed = api
        .get("/api/v1/fleets/north/releases", &api.admin)
        .await
        .json();
    assert_eq!(listed["items"], json!([]));
    assert!(api.registry.asked().is_empty());
}
