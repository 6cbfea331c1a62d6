//! Facts about the logins that devices get for their pulls.

use holdfast_api::http::device::pull_login::MOST_REQUESTS;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Answer, Api, Device};

const CANARY: &str = "canary-password";

async fn ask(api: &Api, device: &Device, image: &str) -> Answer {
    let path = device.path("/pull-tokens");
    api.post(&path, &device.token, json!({ "image": image }))
        .await
}

async fn give(api: &Api, hand_out: bool) {
    let body = json!({"username": "reader", "password": CANARY, "hand_out": hand_out});
    let path = "/api/v1/registries/reg.example/credentials";
    api.call("PUT", path, &api.admin, Some(body))
        .await
        .expect(200);
}

/// A device whose target names this image.
async fn device_with(api: &Api, image: &str) -> Device {
    let device = api.enrol().await;
    api.registry.push(image, "v1", &["linux/amd64"]);
    api.set(&device, image).await.expect(200);
    device
}

#[tokio::test]
async fn a_token_is_minted_for_a_repository_of_the_devices_own_target() {
    let api = Api::start(Place::sqlite()).await;
    give(&api, false).await;
    let device = device_with(&api, "reg.example/mints/web:1").await;
    let target = api.poll(&device, &[]).await.json();
    let service = &target["apps"]["1001"]["services"][0];
    assert_eq!(service["pin"]["pullLogin"], true);
    let image = service["imageName"].as_str().unwrap();
    let answer = ask(&api, &device, image).await.expect(200).json();
    assert_eq!(
        answer,
        json!({"registry": "reg.example", "repository": "mints/web", "kind": "token",
               "token": "minted for mints/web", "expiresInSeconds": 240})
    );
    for other in [
        "reg.example/mints/other:1",
        "mints/web:1",
        "other.example/mints/web:1",
        "reg.example/mints/web/deeper:1",
    ] {
        let refused = ask(&api, &device, other).await.expect(403);
        assert_eq!(refused.code(), "not_in_target", "{other}");
    }
    ask(&api, &device, "Not an image").await.expect(422);
    // Another device's target opens nothing, nor does its token.
    let other = device_with(&api, "nginx:1").await;
    ask(&api, &other, image).await.expect(403);
    let path = device.path("/pull-tokens");
    let body = json!({ "image": image });
    api.post(&path, &other.token, body.clone())
        .await
        .expect(404);
    api.post(&path, &api.admin, body).await.expect(403);
}

#[tokio::test]
async fn what_was_given_is_told_without_what_is_secret() {
    let api = Api::start(Place::sqlite()).await;
    give(&api, true).await;
    let device = device_with(&api, "reg.example/mints/web:1").await;
    ask(&api, &device, "reg.example/mints/web:1")
        .await
        .expect(200);
    let events = api
        .get("/api/v1/events?kind=device.pull_login_issued", &api.admin)
        .await
        .json();
    assert_eq!(events["items"][0]["device"], device.uuid.as_str());
    let detail = &events["items"][0]["detail"];
    assert_eq!(detail["repository"], "mints/web");
    assert_eq!(detail["kind"], "token");
    let audit = api.get("/api/v1/audit", &api.admin).await.json();
    for text in [events.to_string(), audit.to_string()] {
        assert!(!text.contains("minted") && !text.contains(CANARY), "{text}");
    }
    assert_eq!(audit["items"][0]["action"], "pull_login.issue");
    assert_eq!(audit["items"][0]["actor"], device.uuid.as_str());
}

#[tokio::test]
async fn a_password_leaves_the_server_only_where_its_operator_allows_it() {
    let api = Api::start(Place::sqlite()).await;
    give(&api, false).await;
    let device = device_with(&api, "reg.example/basic/web:1").await;
    let refused = ask(&api, &device, "reg.example/basic/web:1")
        .await
        .expect(409);
    assert_eq!(refused.code(), "no_pull_token");
    assert!(!String::from_utf8_lossy(&refused.bytes).contains(CANARY));
    give(&api, true).await;
    let answer = ask(&api, &device, "reg.example/basic/web:1")
        .await
        .expect(200)
        .json();
    assert_eq!(answer["kind"], "password");
    assert_eq!(answer["username"], "reader");
    assert_eq!(answer["password"], CANARY);
    assert_eq!(answer.get("token"), None::<&Value>);
}

#[tokio::test]
async fn an_open_registry_and_one_that_is_away_are_told_apart() {
    let api = Api::start(Place::sqlite()).await;
    let device = device_with(&api, "open.example/open/web:1").await;
    let target = api.poll(&device, &[]).await.json();
    let pin = &target["apps"]["1001"]["services"][0]["pin"];
    assert_eq!(pin.get("pullLogin"), None, "nobody has a login for it");
    let answer = ask(&api, &device, "open.example/open/web:1").await;
    assert_eq!(answer.expect(200).json()["kind"], "open");
    give(&api, false).await;
    let device = device_with(&api, "reg.example/away/web:1").await;
    let away = ask(&api, &device, "reg.example/away/web:1")
        .await
        .expect(503);
    assert_eq!(away.code(), "registry_unavailable");
}

#[tokio::test]
async fn a_configured_login_shows_in_the_target_and_a_new_one_at_the_next_set() {
    let api = Api::start(Place::sqlite()).await;
    let known = device_with(&api, "configured.example/a:1").await;
    let marked = |target: &Value| target["apps"]["1001"]["services"][0]["pin"]["pullLogin"] == true;
    assert!(marked(&api.poll(&known, &[]).await.json()));
    let device = device_with(&api, "reg.example/mints/web:1").await;
    assert!(!marked(&api.poll(&device, &[]).await.json()));
    give(&api, false).await;
    let again = api
        .set(&device, "reg.example/mints/web:1")
        .await
        .expect(200);
    assert!(marked(&again.json()));
    assert_eq!(again.json()["generation"], 2);
    let again = api
        .set(&device, "reg.example/mints/web:1")
        .await
        .expect(200);
    assert_eq!(again.json()["generation"], 2);
}

#[tokio::test]
async fn a_device_that_asks_all_the_time_is_told_to_wait() {
    let api = Api::start(Place::sqlite()).await;
    let device = device_with(&api, "open.example/open/web:1").await;
    let other = device_with(&api, "open.example/open/web:2").await;
    for _ in 0..MOST_REQUESTS {
        ask(&api, &device, "open.example/open/web:1")
            .await
            .expect(200);
    }
    let refused = ask(&api, &device, "open.example/open/web:1")
        .await
        .expect(429);
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=601).contains(&wait), "{wait}");
    ask(&api, &other, "open.example/open/web:2")
        .await
        .expect(200);
}
