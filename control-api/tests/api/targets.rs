//! Facts about setting targets.

use holdfast_api::clock;
use holdfast_api::config::{PushRules, Settings};
use holdfast_api::tasks::refresh_tags;
use holdfast_domain::approval::TargetRule;
use holdfast_proto::target::TargetState;
use serde_json::json;

use crate::support::Place;
use crate::support::api::{Api, report, target};
use crate::support::registry::digest;

crate::on_both_databases![
    the_body_of_the_contract_becomes_a_pinned_target,
    the_same_target_again_changes_nothing,
    c37_an_outage_keeps_the_digest_and_says_stale,
    a_reference_never_resolved_is_kept_as_written_and_resolved_later,
    an_image_without_the_platform_is_refused_and_nothing_stored,
    a_required_digest_that_is_missing_is_refused_and_nothing_stored,
    a_generation_rises_above_what_the_device_reported,
    images_that_may_not_run_are_in_no_target_where_that_is_wanted,
    nobody_overrules_where_that_is_closed,
];

async fn the_body_of_the_contract_becomes_a_pinned_target(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    api.registry
        .push("nginx:latest", "v1", &["linux/amd64", "linux/arm64"]);
    let body = r#"{"apps":{"1001":{"appId":1001,"appName":"Web Server","services":[
  {"serviceId":1,"serviceName":"nginx","imageName":"nginx:latest","config":{"ports":["80:80"]}}]}}}"#;
    let set = api
        .call_raw(
            "POST",
            &device.path("/target-state"),
            &api.admin,
            Some(body.as_bytes().to_vec()),
        )
        .await
        .expect(200);
    let answer = set.json();
    let service = &answer["apps"]["1001"]["services"][0];
    let pinned = format!("nginx@{}", digest("v1"));
    assert_eq!(answer["generation"], 1);
    assert_eq!(service["serviceId"], 1);
    assert_eq!(service["imageName"], pinned);
    assert_eq!(service["config"]["image"], pinned);
    assert_eq!(service["pin"]["reference"], "nginx:latest");
    assert_eq!(service["pin"]["registry"], "docker.io");
    assert_eq!(service["pin"]["repository"], "library/nginx");
    assert_eq!(service["pin"]["indexDigest"], digest("v1").to_string());
    assert_eq!(
        service["pin"]["expected"]["manifestDigest"],
        digest("v1 linux/amd64").to_string()
    );
    let [resolution] = answer["resolutions"].as_array().unwrap().as_slice() else {
        panic!("one resolution expected");
    };
    assert_eq!(resolution["status"], "resolved");
    assert_eq!(
        resolution["platforms"][1]["configDigest"],
        digest("config v1 linux/arm64").to_string()
    );

    let polled = api.poll(&device, &[]).await.expect(200);
    assert_eq!(polled.header("etag"), set.header("etag"));
    let state = TargetState::parse(&polled.bytes).unwrap();
    assert_eq!(state.generation, 1);
    let shown = api
        .get(&device.path("/target-state"), &api.admin)
        .await
        .expect(200);
    assert_eq!(shown.json(), answer);
    assert_eq!(shown.header("etag"), set.header("etag"));
}

async fn the_same_target_again_changes_nothing(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let first = api.set(&device, "nginx:1").await.expect(200);
    let again = api.set(&device, "nginx:1").await.expect(200);
    assert_eq!(again.json()["generation"], 1);
    assert_eq!(again.header("etag"), first.header("etag"));
    api.registry.push("nginx:1", "v2", &["linux/amd64"]);
    let moved = api.set(&device, "nginx:1").await.expect(200);
    assert_eq!(moved.json()["generation"], 2);
    assert_ne!(moved.header("etag"), first.header("etag"));
    let audit = api
        .get(
            &format!("/api/v1/audit?subject={}", device.uuid),
            &api.admin,
        )
        .await
        .json();
    let actions: Vec<_> = audit["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["target.set", "target.set", "device.enrol"]);
}

async fn c37_an_outage_keeps_the_digest_and_says_stale(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let second = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    api.registry.lose("nginx:1");
    let kept = api.set(&device, "nginx:1").await.expect(200).json();
    assert_eq!(kept["generation"], 1);
    assert_eq!(kept["resolutions"][0]["status"], "stale");
    assert_eq!(kept["resolutions"][0]["error"], "connection refused");
    // Another device gets the known digest too, under any spelling, and even when it must have one.
    let path = second.path("/target-state?require_digest=true");
    api.registry.lose("docker.io/library/nginx:1");
    let other = api
        .post(&path, &api.admin, target("docker.io/library/nginx:1"))
        .await
        .expect(200)
        .json();
    let service = &other["apps"]["1001"]["services"][0];
    assert_eq!(
        service["imageName"],
        format!("docker.io/library/nginx@{}", digest("v1"))
    );
    assert_eq!(service["pin"]["resolution"]["status"], "stale");
}

async fn a_reference_never_resolved_is_kept_as_written_and_resolved_later(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let set = api.set(&device, "reg.local:5000/web:1").await.expect(200);
    let service = &set.json()["apps"]["1001"]["services"][0];
    assert_eq!(service["imageName"], "reg.local:5000/web:1");
    assert_eq!(service["pin"]["resolution"]["status"], "failed");
    assert!(service["pin"]["resolution"]["error"].is_string());

    let now = clock::now();
    let next = refresh_tags::run_once(&api.app, now)
        .await
        .unwrap()
        .unwrap();
    assert!(next > now, "not asked again at once");
    assert_eq!(api.registry.asked().len(), 1);
    let after = refresh_tags::run_once(&api.app, next)
        .await
        .unwrap()
        .unwrap();
    assert!(after.since_ms(next) > next.since_ms(now), "waits grow");
    assert_eq!(api.poll(&device, &[]).await.json()["generation"], 1);

    api.registry
        .push("reg.local:5000/web:1", "v1", &["linux/amd64"]);
    let rest = refresh_tags::run_once(&api.app, after).await.unwrap();
    assert_eq!(rest, None);
    // What the feed would do:
    api.app
        .live
        .refresh(&api.app.store, device.uuid.parse().unwrap())
        .await
        .unwrap();
    let polled = api.poll(&device, &[]).await.json();
    assert_eq!(polled["generation"], 2);
    assert_eq!(
        polled["apps"]["1001"]["services"][0]["imageName"],
        format!("reg.local:5000/web@{}", digest("v1"))
    );
}

async fn an_image_without_the_platform_is_refused_and_nothing_stored(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol_as("linux/riscv64").await;
    api.registry
        .push("nginx:1", "v1", &["linux/amd64", "linux/arm64"]);
    let refused = api.set(&device, "nginx:1").await.expect(422);
    assert_eq!(refused.code(), "unsupported_platform");
    assert_eq!(refused.pointers(), ["/apps/1001/services/0/imageName"]);
    let shown = api.poll(&device, &[]).await.json();
    assert_eq!(shown["generation"], 0);
}

async fn a_required_digest_that_is_missing_is_refused_and_nothing_stored(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let path = device.path("/target-state?require_digest=true");
    let refused = api
        .post(&path, &api.admin, target("nginx:1"))
        .await
        .expect(424);
    assert_eq!(refused.code(), "unresolved");
    assert_eq!(refused.pointers(), ["/apps/1001/services/0/imageName"]);
    assert_eq!(api.poll(&device, &[]).await.json()["generation"], 0);
    let events = api
        .get("/api/v1/events?kind=device.target_changed", &api.admin)
        .await;
    assert_eq!(events.json()["items"], json!([]));
}

async fn a_generation_rises_above_what_the_device_reported(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let reports = device.path("/current-state");
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    // A device ahead of a store without a target for it is left alone: an empty target would clear it.
    api.call("PUT", &reports, &device.token, Some(report(1, 40)))
        .await
        .expect(204);
    assert_eq!(api.poll(&device, &[]).await.json()["generation"], 0);
    let set = api.set(&device, "nginx:1").await.expect(200);
    assert_eq!(set.json()["generation"], 41);
    // A device ahead of a restored store: the same target, lifted.
    api.call("PUT", &reports, &device.token, Some(report(2, 60)))
        .await
        .expect(204);
    let lifted = api.poll(&device, &[]).await;
    assert_eq!(lifted.json()["generation"], 61);
    assert_eq!(lifted.json()["apps"], set.json()["apps"]);
    assert_ne!(lifted.header("etag"), set.header("etag"));
    api.call("PUT", &reports, &device.token, Some(report(3, u64::MAX)))
        .await
        .expect(422);
}

#[tokio::test]
async fn each_reference_is_asked_for_once() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let services: Vec<_> = (1..=40)
        .map(|n| {
            json!({"serviceId": n, "serviceName": format!("s{n}"),
                   "imageName": if n % 2 == 0 { "nginx:1" } else { "docker.io/library/nginx:1" }})
        })
        .collect();
    let body = json!({"apps": {"1": {"appId": 1, "appName": "a", "services": services}}});
    api.post(&device.path("/target-state"), &api.admin, body)
        .await
        .expect(200);
    assert_eq!(api.registry.asked().len(), 1);
}

#[tokio::test]
async fn a_target_for_nobody_is_not_found() {
    let api = Api::start(Place::sqlite()).await;
    let path = "/api/v1/devices/67e55044-10b1-426f-9247-bb680e5fe0c8/target-state";
    api.post(path, &api.admin, target("nginx:1"))
        .await
        .expect(404);
    api.get(path, &api.admin).await.expect(404);
    api.get("/api/v1/devices/not-a-uuid", &api.admin)
        .await
        .expect(400);
}

async fn images_that_may_not_run_are_in_no_target_where_that_is_wanted(place: Place) {
    let api = Api::start_with(place, judged(TargetRule::Overrule)).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let refused = api.set(&device, "nginx:1").await.expect(403);
    assert_eq!(refused.json()["error"], "Image not approved");
    assert_eq!(
        api.poll(&device, &[]).await.expect(200).json()["generation"],
        0
    );
    // Whoever overrules it is written down.
    let path = device.path("/target-state?overrule_approval=true");
    api.post(&path, &api.admin, target("nginx:1"))
        .await
        .expect(200);
    let audit = api
        .get("/api/v1/audit", &api.admin)
        .await
        .expect(200)
        .json();
    let overruled = audit["items"].as_array().unwrap().iter();
    let mut overruled = overruled.filter(|row| row["action"] == "approval.overrule");
    let row = overruled.next().expect("it is written down");
    assert_eq!(row["subject"], device.uuid);
    assert_eq!(row["after"], json!({ "images": ["nginx:1"] }));
    let fleet = json!({ "name": "north" });
    api.post("/api/v1/fleets", &api.admin, fleet)
        .await
        .expect(201);
    let release = "/api/v1/fleets/north/target-state";
    let made = api.call("PUT", release, &api.admin, Some(target("nginx:1")));
    made.await.expect(403);
    // Approved, it may; a digest of it by itself may not before it was approved, too.
    let image = json!({ "image_name": "nginx" });
    api.post("/api/v1/images", &api.admin, image)
        .await
        .expect(201);
    api.set(&device, "nginx:1").await.expect(200);
    let pinned = format!("nginx@sha256:{}", "0".repeat(64));
    let refused = api.set(&device, &pinned).await.expect(403);
    assert!(
        refused.json()["message"]
            .as_str()
            .unwrap()
            .contains("was not approved")
    );
}

async fn nobody_overrules_where_that_is_closed(place: Place) {
    let api = Api::start_with(place, judged(TargetRule::Closed)).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let path = device.path("/target-state?overrule_approval=true");
    let refused = api
        .post(&path, &api.admin, target("nginx:1"))
        .await
        .expect(403);
    let action = refused.json()["action_required"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(action, "approve it: POST /api/v1/images");
}

/// Settings by which targets are judged.
fn judged(targets: TargetRule) -> impl FnOnce(Settings) -> Settings {
    move |settings: Settings| Settings {
        pushes: PushRules {
            targets,
            ..PushRules::default()
        },
        ..settings
    }
}
