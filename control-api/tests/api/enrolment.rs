//! Facts about enrolment.

use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Api, Device};

crate::on_both_databases![
    a_key_makes_a_device_with_the_labels_it_fixes,
    a_known_device_enrols_again_with_its_old_token_or_leave,
    a_key_is_used_as_often_as_it_allows,
];

fn request(extra: &Value) -> Value {
    let mut body = json!({"name": "box", "agentVersion": "1.0.0", "unknownField": 1,
        "platform": {"os": "linux", "architecture": "aarch64"}, "labels": {"a": "device", "b": "device"}});
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    body
}

async fn a_key_makes_a_device_with_the_labels_it_fixes(place: Place) {
    let api = Api::start(place).await;
    let key = api.key(json!({"labels": {"a": "key"}})).await;
    let made = api
        .post("/api/v1/enroll", &key, request(&json!({})))
        .await
        .expect(201)
        .json();
    assert_eq!(made["pollIntervalSeconds"], 30);
    assert!(made["token"].as_str().unwrap().starts_with("hfd_"));
    let path = format!("/api/v1/devices/{}", made["uuid"].as_str().unwrap());
    let shown = api.get(&path, &api.admin).await.expect(200).json();
    assert_eq!(shown["labels"], json!({"a": "key", "b": "device"}));
    assert_eq!(shown["platform"]["architecture"], "arm64");
    assert_eq!(shown["presence"], "never_seen");
}

async fn a_known_device_enrols_again_with_its_old_token_or_leave(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let stranger = api.enrol().await;
    let body = request(&json!({"uuid": device.uuid}));
    let key = api.key(json!({})).await;
    let refused = api
        .post("/api/v1/enroll", &key, body.clone())
        .await
        .expect(409);
    assert_eq!(refused.code(), "already_enrolled");
    api.post("/api/v1/enroll", &stranger.token, body.clone())
        .await
        .expect(401);

    let renewed = api
        .post("/api/v1/enroll", &device.token, body.clone())
        .await
        .expect(201)
        .json();
    api.poll(&device, &[]).await.expect(401);
    let device = Device {
        token: renewed["token"].as_str().unwrap().to_owned(),
        ..device
    };
    api.poll(&device, &[]).await.expect(200);

    api.call(
        "PATCH",
        &device.path(""),
        &api.admin,
        Some(json!({"allow_re_enrolment": true, "name": "kept"})),
    )
    .await
    .expect(200);
    api.post("/api/v1/enroll", &key, body.clone())
        .await
        .expect(201);
    api.poll(&device, &[]).await.expect(401);
    let shown = api.get(&device.path(""), &api.admin).await.json();
    assert_eq!(shown["name"], "kept");
    // The leave was for once.
    api.post("/api/v1/enroll", &key, body).await.expect(409);
}

async fn a_key_is_used_as_often_as_it_allows(place: Place) {
    let api = Api::start(place).await;
    let key = api.key(json!({"max_uses": 2})).await;
    let taken = api.enrol().await;
    // A refused enrolment uses nothing up.
    api.post(
        "/api/v1/enroll",
        &key,
        request(&json!({"uuid": taken.uuid})),
    )
    .await
    .expect(409);
    for expected in [201, 201, 401] {
        api.post("/api/v1/enroll", &key, request(&json!({})))
            .await
            .expect(expected);
    }
}

#[tokio::test]
async fn wrong_credentials_and_wrong_fields_enrol_nobody() {
    let api = Api::start(Place::sqlite()).await;
    let key = api.key(json!({})).await;
    for token in ["", "hfk_0", "hfd_0", &api.admin] {
        api.post("/api/v1/enroll", token, request(&json!({})))
            .await
            .expect(401);
    }
    for (body, pointer) in [
        (request(&json!({"uuid": "x"})), "/uuid"),
        (request(&json!({"name": "\u{1b}[31m"})), "/name"),
        (request(&json!({"name": "a\u{0}"})), "/name"),
        (request(&json!({"labels": {"a b": "c"}})), "/labels/a b"),
        (
            request(&json!({"agentVersion": "x".repeat(65)})),
            "/agentVersion",
        ),
        (request(&json!({"platform": 1})), "/platform"),
    ] {
        let refused = api.post("/api/v1/enroll", &key, body).await.expect(422);
        assert_eq!(refused.pointers(), [pointer]);
    }
    let listed = api.get("/api/v1/devices", &api.admin).await.json();
    assert_eq!(listed["items"], json!([]));
}
