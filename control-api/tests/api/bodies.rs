//! Facts about bad input: a clear problem with the field's path, and nothing stored.

use axum::body::Body;
use http::{Request, header};
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Api, report, target};

crate::on_both_databases![c16_bad_targets_are_refused_with_the_path_of_the_field];

async fn c16_bad_targets_are_refused_with_the_path_of_the_field(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let path = device.path("/target-state");
    let change = |pointer: &str, value: Value| {
        let mut body = target("nginx:1");
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = body.pointer_mut(parent).unwrap();
        match name.parse::<usize>() {
            Ok(position) if parent.is_array() => parent[position] = value,
            _ => parent[name] = value,
        }
        body.to_string().into_bytes()
    };
    let service = "/apps/1001/services/0";
    let cases: Vec<(Vec<u8>, u16, String)> = vec![
        (b"{".to_vec(), 400, String::new()),
        (b"".to_vec(), 400, String::new()),
        (b"\xff\xfe".to_vec(), 400, String::new()),
        (br#"{"apps":{"1":"\ud800"}}"#.to_vec(), 400, "*".into()),
        ("[".repeat(100_000).into_bytes(), 400, "*".into()),
        (br#"{"apps":NaN}"#.to_vec(), 400, "*".into()),
        (b"[]".to_vec(), 422, "*".into()),
        (
            br#"{"apps":{},"generation":9}"#.to_vec(),
            422,
            "/generation".into(),
        ),
        (
            change(&format!("{service}/unknown"), json!(1)),
            422,
            format!("{service}/unknown"),
        ),
        (
            change(&format!("{service}/config/ports"), json!(80)),
            422,
            "*".into(),
        ),
        (
            change(&format!("{service}/imageName"), json!(7)),
            422,
            format!("{service}/imageName"),
        ),
        (
            change(&format!("{service}/imageName"), json!("Bad Name")),
            422,
            format!("{service}/imageName"),
        ),
        (
            change(&format!("{service}/imageName"), json!("a\u{0}")),
            422,
            format!("{service}/imageName"),
        ),
        (
            change("/apps/1001/appName", json!("a\u{0}")),
            422,
            "/apps/1001/appName".into(),
        ),
        (
            change("/apps/1001/appId", json!(5)),
            422,
            "/apps/1001/appId".into(),
        ),
    ];
    for (body, status, pointer) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        let refused = api.call_raw("POST", &path, &api.admin, Some(body)).await;
        assert_eq!(
            refused.status.as_u16(),
            status,
            "{shown}: {:?}",
            refused.json()
        );
        if pointer != "*" {
            assert_eq!(refused.pointers(), [pointer], "{shown}");
        }
    }
    let two = json!({"apps": {"1": {"appId": 1, "appName": "a", "services": [
        {"serviceId": 1, "serviceName": "a", "imageName": "x", "config": {"ports": ["8080:80"]}},
        {"serviceId": 2, "serviceName": "b", "imageName": "x", "config": {"ports": ["8080:81"]}}]}}});
    let conflict = api.post(&path, &api.admin, two).await.expect(422);
    assert_eq!(conflict.pointers(), ["/apps/1/services/1/config/ports/0"]);
    assert_eq!(api.poll(&device, &[]).await.json()["generation"], 0);
    assert!(api.registry.asked().is_empty());
}

#[tokio::test]
async fn c15_a_body_over_its_limit_is_413_and_the_limit_is_named() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    let key = api.key(json!({})).await;
    let targets = device.path("/target-state");
    let reports = device.path("/current-state");
    for (method, path, token, limit) in [
        ("POST", &*targets, &*api.admin, 1_048_576_usize),
        ("PUT", &*reports, &*device.token, 262_144),
        ("POST", "/api/v1/tokens", &*api.admin, 65_536),
        ("POST", "/api/v1/enroll", &*key, 65_536),
        ("PATCH", &*device.path(""), &*api.admin, 65_536),
    ] {
        let body = |size: usize| Some(vec![b' '; size]);
        let refused = api
            .call_raw(method, path, token, body(limit + 1))
            .await
            .expect(413);
        assert_eq!(refused.code(), "too_large");
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(&limit.to_string()), "{detail}");
        // One byte less is read, and found not to be JSON.
        api.call_raw(method, path, token, body(limit))
            .await
            .expect(400);
    }
}

#[tokio::test]
async fn c15_an_oversized_body_is_refused_after_the_credential() {
    let api = Api::start(Place::sqlite()).await;
    let body = Some(vec![b' '; 2 << 20]);
    api.call_raw("POST", "/api/v1/tokens", "", body)
        .await
        .expect(401);
}

#[tokio::test]
async fn only_json_is_taken() {
    let api = Api::start(Place::sqlite()).await;
    for kind in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let mut request = Request::builder()
            .method("POST")
            .uri("/api/v1/tokens")
            .header(header::AUTHORIZATION, format!("Bearer {}", api.admin));
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let body = Body::from(json!({"name": "a", "role": "viewer"}).to_string());
        let refused = api.send(request.body(body).unwrap()).await.expect(415);
        assert_eq!(refused.code(), "unsupported_media_type");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_too() {
    let api = Api::start(Place::sqlite()).await;
    assert_eq!(
        api.get("/nowhere", "").await.expect(404).code(),
        "not_found"
    );
    let refused = api.call("DELETE", "/livez", "", None).await.expect(405);
    assert_eq!(refused.code(), "method_not_allowed");
    assert_eq!(refused.json()["instance"], "/livez");
}

#[tokio::test]
async fn people_may_not_send_fields_that_are_not_theirs() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    for (method, path, body, pointer) in [
        (
            "PATCH",
            device.path(""),
            json!({"generation": 9}),
            "/generation",
        ),
        (
            "PATCH",
            device.path(""),
            json!({"labels": {"a": 1}}),
            "/labels/a",
        ),
        ("PATCH", device.path(""), json!({"name": "  "}), "/name"),
        (
            "POST",
            "/api/v1/tokens".to_owned(),
            json!({"name": "a", "role": "root"}),
            "/role",
        ),
        (
            "POST",
            "/api/v1/tokens".to_owned(),
            json!({"name": "a", "role": "admin", "expires_at": "2020-01-01T00:00:00Z"}),
            "/expires_at",
        ),
        (
            "POST",
            "/api/v1/enrolment-keys".to_owned(),
            json!({"name": "a", "max_uses": 0}),
            "/max_uses",
        ),
        (
            "POST",
            "/api/v1/enrolment-keys".to_owned(),
            json!({"name": "a", "used": 0}),
            "/used",
        ),
    ] {
        let refused = api.call(method, &path, &api.admin, Some(body)).await;
        assert_eq!(refused.status, 422, "{path} {pointer}");
        assert_eq!(refused.pointers(), [pointer]);
    }
}

#[tokio::test]
async fn c16_bad_parameters_are_refused() {
    let api = Api::start(Place::sqlite()).await;
    for query in [
        "limit=0",
        "limit=201",
        "limit=x",
        "cursor=zz",
        "cursor=-1",
        "cursor=ffffffffffffffffff",
        "unknown=1",
        "search=%00",
        "presence=maybe",
        "platform=x",
    ] {
        let path = format!("/api/v1/devices?{query}");
        assert_eq!(api.get(&path, &api.admin).await.status, 400, "{query}");
    }
    for path in [
        "/api/v1/tokens/0",
        "/api/v1/tokens/x",
        "/api/v1/tokens/99999999999999999999",
    ] {
        let refused = api.call("DELETE", path, &api.admin, None).await;
        assert_eq!(refused.status, 400, "{path}");
    }
}

#[tokio::test]
async fn a_report_that_cannot_be_read_is_refused() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    let path = device.path("/current-state");
    let mut wrong = report(1, 0);
    wrong["status"] = "splendid".into();
    let refused = api
        .call("PUT", &path, &device.token, Some(wrong))
        .await
        .expect(422);
    assert_eq!(refused.pointers(), ["/status"]);
    api.get(&path, &api.admin).await.expect(404);
}

#[tokio::test]
async fn a_request_id_is_taken_over_only_when_it_is_harmless() {
    let api = Api::start(Place::sqlite()).await;
    for (sent, kept) in [
        ("abc-1.2_3", true),
        ("a b", false),
        (&*"x".repeat(65), false),
    ] {
        let request = Request::builder()
            .uri("/nowhere")
            .header("x-request-id", sent);
        let answer = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.header("x-request-id") == sent, kept, "{sent}");
    }
}

#[tokio::test]
async fn c17_a_panic_ends_one_request_and_is_counted() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    let refused = api.set(&device, "example.com/panic:1").await.expect(500);
    assert_eq!(refused.code(), "internal");
    assert!(!refused.json().to_string().contains("told to panic"));
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    let metrics = api.get("/metrics", "").await;
    let text = String::from_utf8(metrics.bytes).unwrap();
    assert!(text.contains("holdfast_api_panics_total 1"), "{text}");
}
