//! Facts about polls and reports.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::support::Place;
use crate::support::api::{Api, report, target, wait_for};

crate::on_both_databases![
    a_device_without_a_target_gets_an_empty_one,
    a_known_etag_is_answered_304_without_a_body,
    an_older_report_is_ignored_without_an_error,
    a_held_poll_wakes_when_the_target_changes,
];

async fn a_device_without_a_target_gets_an_empty_one(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let polled = api.poll(&device, &[]).await.expect(200);
    assert_eq!(
        polled.json(),
        json!({"uuid": device.uuid, "generation": 0, "apps": {}})
    );
    let etag = polled.header("etag").to_owned();
    assert!(etag.starts_with('"') && etag.len() > 40);
    api.poll(&device, &[("if-none-match", &etag)])
        .await
        .expect(304);
}

async fn a_known_etag_is_answered_304_without_a_body(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    let etag = api.poll(&device, &[]).await.header("etag").to_owned();
    for known in [
        etag.clone(),
        format!("W/{etag}"),
        format!("\"other\", {etag} , \"x\""),
        "*".to_owned(),
    ] {
        let answer = api
            .poll(&device, &[("if-none-match", &known)])
            .await
            .expect(304);
        assert!(answer.bytes.is_empty());
        assert_eq!(answer.header("etag"), etag);
        assert_eq!(answer.header("cache-control"), "private, no-cache");
        assert_eq!(answer.header("vary"), "Authorization");
    }
    let spread = [("if-none-match", "\"a\""), ("if-none-match", &*etag)];
    api.poll(&device, &spread).await.expect(304);
    for unknown in ["", "\"other\"", &etag[1..], &etag[..etag.len() - 2]] {
        api.poll(&device, &[("if-none-match", unknown)])
            .await
            .expect(200);
    }
}

async fn an_older_report_is_ignored_without_an_error(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let path = device.path("/current-state");
    assert_eq!(
        api.get(&path, &api.admin).await.expect(404).code(),
        "no_report"
    );
    for (sequence, generation) in [(5, 1), (4, 9), (5, 9)] {
        let sent = report(sequence, generation);
        api.call("PUT", &path, &device.token, Some(sent))
            .await
            .expect(204);
    }
    let shown = api.get(&path, &api.admin).await.expect(200).json();
    assert_eq!(shown["sequence"], 5);
    assert_eq!(shown["generation"], 1);
    assert!(shown["ageSeconds"].is_number() && shown["receivedAt"].is_string());
    let device = api.get(&device.path(""), &api.admin).await.json();
    assert_eq!(device["reported_generation"], 1);
    assert_eq!(device["update_status"], "converged");
    assert_eq!(device["agent_version"], "1.0.1");
}

async fn a_held_poll_wakes_when_the_target_changes(place: Place) {
    let api = Arc::new(Api::start(place).await);
    let device = Arc::new(api.enrol().await);
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let etag = api.poll(&device, &[]).await.header("etag").to_owned();
    let held = {
        let (api, device) = (Arc::clone(&api), Arc::clone(&device));
        tokio::spawn(async move {
            let headers = [
                ("if-none-match", &*etag),
                ("prefer", "respond-async, wait=50"),
            ];
            api.poll(&device, &headers).await
        })
    };
    api.set(&device, "nginx:1").await.expect(200);
    let answer = tokio::time::timeout(Duration::from_secs(10), held)
        .await
        .unwrap()
        .unwrap()
        .expect(200);
    assert_eq!(answer.json()["generation"], 1);
}

#[tokio::test]
async fn a_held_poll_ends_with_304_when_time_is_up_or_the_server_stops() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    for prefer in ["wait=0", "wait=1", "wait=x", "wait"] {
        api.poll(&device, &[("if-none-match", "*"), ("prefer", prefer)])
            .await
            .expect(304);
    }
    let held = api.poll(&device, &[("if-none-match", "*"), ("prefer", "wait=60")]);
    let stop = async { api.stop.send(true).unwrap() };
    let (answer, ()) = tokio::join!(held, stop);
    answer.expect(304);
    assert_eq!(api.get("/readyz", "").await.status, 503);
    assert_eq!(api.get("/livez", "").await.status, 200);
}

#[tokio::test]
async fn a_held_poll_of_a_removed_device_ends_with_401() {
    let api = Arc::new(Api::start(Place::sqlite()).await);
    let device = Arc::new(api.enrol().await);
    let held = {
        let (api, device) = (Arc::clone(&api), Arc::clone(&device));
        tokio::spawn(async move {
            let headers = [("if-none-match", "*"), ("prefer", "wait=60")];
            api.poll(&device, &headers).await
        })
    };
    api.call("DELETE", &device.path(""), &api.admin, None)
        .await
        .expect(204);
    held.await.unwrap().expect(401);
}

#[tokio::test]
async fn a_replica_serves_what_another_one_stored() {
    let place = tokio::task::spawn_blocking(Place::postgres).await.unwrap();
    let other_place = Place {
        dir: tempfile::tempdir().unwrap(),
        location: place.location.clone(),
    };
    let one = Api::start(place).await;
    std::fs::write(
        other_place.dir.path().join("admin-token"),
        format!("{}\n", one.admin),
    )
    .unwrap();
    let other = Api::start(other_place).await;
    let tasks = holdfast_api::tasks::start(&other.app);
    let device = one.enrol().await;
    // Even before the feed has told it.
    other.poll(&device, &[]).await.expect(200);
    one.registry.push("nginx:1", "v1", &["linux/amd64"]);
    one.set(&device, "nginx:1").await.expect(200);
    wait_for("the other replica has heard of the target", || async {
        other.poll(&device, &[]).await.json()["generation"] == 1
    })
    .await;
    one.call("DELETE", &device.path(""), &one.admin, None)
        .await
        .expect(204);
    wait_for("the other replica has heard of the removal", || async {
        other.poll(&device, &[]).await.status == 401
    })
    .await;
    drop(tasks);
}

#[tokio::test]
async fn a_poll_makes_a_device_present() {
    let api = Api::start(Place::sqlite()).await;
    let tasks = holdfast_api::tasks::start(&api.app);
    let device = api.enrol().await;
    let shown = |query: &'static str| {
        let api = &api;
        async move {
            let path = format!("/api/v1/devices?presence={query}");
            let listed = api.get(&path, &api.admin).await.expect(200).json();
            listed["items"].as_array().unwrap().len()
        }
    };
    assert_eq!(shown("never_seen").await, 1);
    api.poll(&device, &[]).await.expect(200);
    wait_for("the device is present", || async {
        shown("online").await == 1
    })
    .await;
    assert_eq!(shown("never_seen").await, 0);
    assert_eq!(shown("offline").await, 0);
    drop(tasks);
}

#[tokio::test]
async fn a_re_set_target_reaches_the_device_byte_for_byte() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.post(&device.path("/target-state"), &api.admin, target("nginx:1"))
        .await
        .expect(200);
    let before = api.poll(&device, &[]).await;
    api.app.live.reload(&api.app.store).await.unwrap();
    let after = api.poll(&device, &[]).await;
    assert_eq!(before.bytes, after.bytes);
    assert_eq!(before.header("etag"), after.header("etag"));
}
