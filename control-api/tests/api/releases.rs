//! Facts about releases: frozen once, numbered, compared, rolled out again.

use serde_json::{Value, json};

use crate::fleets::{complete, join, release, served};
use crate::support::Place;
use crate::support::api::{Api, Device, target};
use crate::support::registry::digest;

crate::on_both_databases![
    a_release_is_frozen_numbered_and_written_down,
    the_same_content_makes_no_other_release,
    an_image_without_a_platform_of_the_fleet_is_refused_whole,
    a_reference_without_a_digest_is_refused_whole,
    two_releases_are_compared_without_their_values,
    an_older_release_is_rolled_out_again,
    old_releases_are_forgotten_but_not_those_that_count,
    a_fleets_own_login_is_used_and_devices_are_told_of_theirs,
    what_a_rollout_knew_is_not_told_again_when_it_is_done,
    a_device_that_comes_back_on_other_hardware_gets_its_platforms_image,
];

const NORTH: &str = "/api/v1/fleets/north";

async fn numbers(api: &Api) -> Vec<i64> {
    let path = format!("{NORTH}/releases?limit=200");
    let listed = api.get(&path, &api.admin).await.expect(200).json();
    let items = listed["items"].as_array().unwrap().iter();
    items.map(|item| item["number"].as_i64().unwrap()).collect()
}

async fn put(api: &Api, body: Value) -> crate::support::api::Answer {
    let path = format!("{NORTH}/target-state");
    api.call("PUT", &path, &api.admin, Some(body)).await
}

fn with_environment(image: &str, password: &str) -> Value {
    let mut body = target(image);
    body["apps"]["1001"]["services"][0]["config"] =
        json!({ "environment": { "PASSWORD": password } });
    body
}

async fn a_release_is_frozen_numbered_and_written_down(place: Place) {
    let api = Api::start(place).await;
    join(&api, "north").await;
    api.registry
        .push("nginx:1", "v1", &["linux/amd64", "linux/arm64"]);
    let body = json!({ "apps": { "1": { "appId": 1, "appName": "a", "services": [
        { "serviceId": 1, "serviceName": "one", "imageName": "nginx:1" },
        { "serviceId": 2, "serviceName": "two", "imageName": "docker.io/library/nginx:1",
          "config": { "environment": { "PASSWORD": "hunter2" } } },
    ] } } });
    let made = put(&api, body.clone()).await.expect(201).json();
    assert_eq!(
        api.registry.asked().len(),
        1,
        "each image is asked for once"
    );
    assert_eq!(made["number"], 1);
    assert_eq!(made["is_current"], false);
    assert!(made["rollout"].is_number() && made["reason"].is_null());
    assert_eq!(
        made["images"],
        json!([{ "reference": "docker.io/library/nginx:1", "digest": digest("v1").to_string(),
                 "platforms": ["linux/amd64", "linux/arm64"] }])
    );
    let shown = api
        .get(&format!("{NORTH}/releases/1"), &api.admin)
        .await
        .expect(200)
        .json();
    assert_eq!(shown["target"], body);
    assert_eq!(shown["images"], made["images"]);
    api.get(&format!("{NORTH}/releases/2"), &api.admin)
        .await
        .expect(404);
    api.get(&format!("{NORTH}/releases/x"), &api.admin)
        .await
        .expect(400);
    let audit = api
        .get("/api/v1/audit?subject=north", &api.admin)
        .await
        .json();
    assert_eq!(audit["items"][0]["action"], "release.create");
    let events = api
        .get("/api/v1/events?kind=release.created", &api.admin)
        .await
        .json();
    assert_eq!(events["items"][0]["subject"], "north");
    let list = api
        .get(&format!("{NORTH}/releases"), &api.admin)
        .await
        .json();
    for answer in [audit, events, list] {
        assert!(!answer.to_string().contains("hunter2"), "{answer}");
    }
    // A fleet that nobody made is not there, and a viewer makes no release.
    let path = "/api/v1/fleets/sotuh/target-state";
    api.call("PUT", path, &api.admin, Some(body.clone()))
        .await
        .expect(404);
    let viewer = api.token("viewer").await;
    api.call("PUT", &format!("{NORTH}/target-state"), &viewer, Some(body))
        .await
        .expect(403);
}

async fn the_same_content_makes_no_other_release(place: Place) {
    let api = Api::start(place).await;
    join(&api, "north").await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    put(&api, target("nginx:1")).await.expect(201);
    let again = put(&api, target("nginx:1")).await.expect(200).json();
    assert_eq!(again["number"], 1);
    // The tag means something else now.
    api.registry.push("nginx:1", "v2", &["linux/amd64"]);
    let moved = put(&api, target("nginx:1")).await.expect(201).json();
    assert_eq!(moved["number"], 2);
    let other = with_environment("nginx:1", "x");
    assert_eq!(put(&api, other).await.expect(201).json()["number"], 3);
    // An outage changes no content.
    api.registry.lose("nginx:1");
    put(&api, with_environment("nginx:1", "x"))
        .await
        .expect(200);
    assert_eq!(numbers(&api).await, [3, 2, 1]);
}

async fn an_image_without_a_platform_of_the_fleet_is_refused_whole(place: Place) {
    let api = Api::start(place).await;
    join(&api, "north").await;
    let odd = api.enrol_as("linux/riscv64").await;
    let body = json!({ "labels": { "fleet": "north" } });
    api.call("PATCH", &odd.path(""), &api.admin, Some(body))
        .await
        .expect(200);
    api.registry
        .push("nginx:1", "v1", &["linux/amd64", "linux/arm64"]);
    let refused = put(&api, target("nginx:1")).await.expect(422);
    assert_eq!(refused.code(), "unsupported_platform");
    assert_eq!(refused.pointers(), ["/apps/1001/services/0/imageName"]);
    let detail = refused.json()["errors"][0]["detail"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        detail.contains("nginx:1") && detail.contains("linux/riscv64"),
        "{detail}"
    );
    assert_eq!(numbers(&api).await, Vec::<i64>::new());
    api.call("DELETE", &odd.path(""), &api.admin, None)
        .await
        .expect(204);
    put(&api, target("nginx:1")).await.expect(201);
}

async fn a_reference_without_a_digest_is_refused_whole(place: Place) {
    let api = Api::start(place).await;
    join(&api, "north").await;
    let refused = put(&api, target("nginx:1")).await.expect(424);
    assert_eq!(refused.code(), "unresolved");
    assert_eq!(refused.pointers(), ["/apps/1001/services/0/imageName"]);
    let refused = put(&api, json!({ "apps": {}, "colour": 1 }))
        .await
        .expect(422);
    assert_eq!(refused.pointers(), ["/colour"]);
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let path = format!("{NORTH}/target-state?policy=99");
    let refused = api
        .call("PUT", &path, &api.admin, Some(target("nginx:1")))
        .await
        .expect(422);
    assert_eq!(refused.pointers(), ["/policy"]);
    assert_eq!(numbers(&api).await, Vec::<i64>::new());
    let events = api
        .get("/api/v1/events?kind=release.created", &api.admin)
        .await
        .json();
    assert_eq!(events["items"], json!([]));
}

async fn two_releases_are_compared_without_their_values(place: Place) {
    let api = Api::start(place).await;
    join(&api, "north").await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    put(&api, with_environment("nginx:1", "first-secret"))
        .await
        .expect(201);
    api.registry.push("nginx:1", "v2", &["linux/amd64"]);
    put(&api, with_environment("nginx:1", "second-secret"))
        .await
        .expect(201);
    let path = format!("{NORTH}/releases/compare?from=1&to=2");
    let answer = api.get(&path, &api.admin).await.expect(200).json();
    assert_eq!(
        answer["differences"],
        json!([{
            "service": "1001/nginx", "change": "changed", "fields": ["environment"],
            "image_before": format!("nginx@{}", digest("v1")),
            "image_after": format!("nginx@{}", digest("v2")),
        }])
    );
    assert!(!answer.to_string().contains("secret"));
    api.get(&format!("{NORTH}/releases/compare?from=1&to=9"), &api.admin)
        .await
        .expect(404);
}

async fn an_older_release_is_rolled_out_again(place: Place) {
    let api = Api::start(place).await;
    let device = join(&api, "north").await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.registry.push("nginx:2", "v2", &["linux/amd64"]);
    release(&api, "north", "nginx:1").await;
    release(&api, "north", "nginx:2").await;
    complete(&api, "north", 2).await;
    api.registry.remove("nginx:1");
    let path = format!("{NORTH}/releases/1/rollout");
    let begun = api
        .post(&path, &api.admin, json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(begun["number"], 1);
    complete(&api, "north", 1).await;
    let (generation, images) = served(&api, &device).await;
    assert_eq!(
        (generation, images),
        (2, vec![format!("nginx@{}", digest("v1"))])
    );
    // Those who join now get what the fleet runs, not what is newest.
    let late = join(&api, "north").await;
    assert_eq!(
        served(&api, &late).await.1,
        [format!("nginx@{}", digest("v1"))]
    );
    let fleet = api.get(NORTH, &api.admin).await.json();
    assert_eq!(
        (&fleet["release"], &fleet["newest_release"]),
        (&json!(1), &json!(2))
    );
    // A platform that came since is not left behind in silence.
    let odd = api.enrol_as("linux/riscv64").await;
    let body = json!({ "labels": { "fleet": "north" } });
    api.call("PATCH", &odd.path(""), &api.admin, Some(body))
        .await
        .expect(200);
    let refused = api.post(&path, &api.admin, json!({})).await.expect(422);
    assert_eq!(refused.code(), "unsupported_platform");
    api.post(
        &format!("{NORTH}/releases/7/rollout"),
        &api.admin,
        json!({}),
    )
    .await
    .expect(404);
}

async fn old_releases_are_forgotten_but_not_those_that_count(place: Place) {
    let api = Api::start(place).await;
    let kept = join(&api, "north").await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    for _ in 0..3 {
        api.registry.push(
            "nginx:1",
            &format!("v{}", numbers(&api).await.len()),
            &["linux/amd64"],
        );
        release(&api, "north", "nginx:1").await;
    }
    complete(&api, "north", 1).await;
    let pin = Some(json!({ "release": 2 }));
    api.call("PUT", &kept.path("/release"), &api.admin, pin)
        .await
        .expect(200);
    let made = api.app.store.transact(|tx| {
        let fleet = holdfast_api::store::fleets::find(tx, "north")?.unwrap();
        let newest = holdfast_api::store::releases::newest(tx, fleet.id)?.unwrap();
        let new = holdfast_api::store::releases::New {
            fleet_id: fleet.id,
            input: &newest.input,
            pins: &newest.listed.pins,
            created_by: "test",
        };
        for _ in 0..500 {
            holdfast_api::store::releases::insert(tx, &new, holdfast_api::clock::now())?;
        }
        Ok::<_, holdfast_api::store::StoreError>(())
    });
    made.await.unwrap();
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("{NORTH}/releases?limit=200{cursor}");
        let page = api.get(&path, &api.admin).await.expect(200).json();
        let items = page["items"].as_array().unwrap();
        all.extend(items.iter().map(|item| item["number"].as_i64().unwrap()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let mut expected: Vec<i64> = (4..=503).rev().collect();
    // Release 3 is on its way.
    expected.extend([3, 2, 1]);
    assert_eq!(all, expected);
}

async fn a_fleets_own_login_is_used_and_devices_are_told_of_theirs(place: Place) {
    let api = Api::start(place).await;
    let device = join(&api, "north").await;
    let image = "reg.example/web:1";
    api.registry.push(image, "v1", &["linux/amd64"]);
    let path = "/api/v1/registries/reg.example/credentials";
    for (user, fleet) in [
        ("everybody", None),
        ("fleet", Some("north")),
        ("other", Some("south")),
    ] {
        let mut body = json!({ "username": user, "password": "hunter2" });
        if let Some(fleet) = fleet {
            body["fleet"] = json!(fleet);
        }
        api.call("PUT", path, &api.admin, Some(body))
            .await
            .expect(200);
    }
    put(&api, target(image)).await.expect(201);
    let logins = api.registry.logins();
    assert!(
        logins.len() == 1 && logins[0].contains("\"fleet\""),
        "{logins:?}"
    );
    complete(&api, "north", 1).await;
    served(&api, &device).await;
    let state = api.poll(&device, &[]).await.expect(200).json();
    assert_eq!(
        state["apps"]["1001"]["services"][0]["pin"]["pullLogin"],
        true
    );
}

async fn what_a_rollout_knew_is_not_told_again_when_it_is_done(place: Place) {
    let api = Api::start(place).await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    // It took part: the end of the rollout must not give it the version again.
    let member = join(&api, "north").await;
    release(&api, "north", "nginx:1").await;
    let late = join(&api, "north").await;
    complete(&api, "north", 1).await;
    assert_eq!(served(&api, &member).await.0, 1);
    assert_eq!(served(&api, &late).await.0, 1);
}

async fn a_device_that_comes_back_on_other_hardware_gets_its_platforms_image(place: Place) {
    let api = Api::start(place).await;
    api.registry
        .push("nginx:1", "v1", &["linux/amd64", "linux/arm64"]);
    let device = join(&api, "north").await;
    release(&api, "north", "nginx:1").await;
    complete(&api, "north", 1).await;
    // The tag means something else by now.
    api.registry
        .push("nginx:1", "v2", &["linux/amd64", "linux/arm64"]);
    let body = json!({ "uuid": device.uuid, "agentVersion": "1",
        "platform": { "os": "linux", "architecture": "arm64" } });
    let again = api
        .post("/api/v1/enroll", &device.token, body)
        .await
        .expect(201)
        .json();
    let again = Device {
        uuid: device.uuid,
        token: again["token"].as_str().unwrap().to_owned(),
    };
    assert_eq!(served(&api, &again).await.0, 2);
    let state = api.poll(&again, &[]).await.expect(200).json();
    let pin = &state["apps"]["1001"]["services"][0]["pin"];
    let manifest = digest("v1 linux/arm64").to_string();
    assert_eq!(pin["expected"]["manifestDigest"], manifest);
}
