//! Facts about image update policies: what a device or a fleet says of its own updates, and what comes of it.

use holdfast_api::rollouts::begin::{self, Begun, Pushed};
use holdfast_api::tasks::advance_rollouts::run_once;
use holdfast_proto::image::Reference;
use holdfast_proto::time::Timestamp;
use serde_json::{Value, json};

use crate::fleets::{join, release, served};
use crate::rollouts::Fleet;
use crate::support::Place;
use crate::support::api::{Answer, Api, Device, target};
use crate::support::registry::digest;

crate::on_both_databases![
    a_policy_is_said_shown_and_taken_back,
    the_device_counts_before_its_fleet,
    what_cannot_be_carried_out_is_refused_by_member,
    logins_act_and_are_told_nobody,
    only_who_administers_sets_logins,
    an_answer_is_taken_for_good_as_long_as_the_device_says,
    a_release_takes_answers_for_good_as_long_as_the_fleet_says,
    a_pinned_tag_stays_until_somebody_asks,
    a_push_of_a_moving_tag_reaches_nobody_who_does_not_want_it,
    who_says_no_after_the_rollout_began_is_left_out,
    a_rollout_waits_for_each_devices_window,
    a_release_waits_for_the_fleets_window,
];

const CANARY: &str = "canary-password";
const DAY_MS: i64 = 24 * 60 * 60_000;

async fn patch(api: &Api, path: &str, policy: Value) -> Answer {
    let body = json!({ "imageUpdatePolicy": policy });
    api.call("PATCH", path, &api.admin, Some(body)).await
}

async fn say(api: &Api, path: &str, policy: Value) -> Value {
    patch(api, path, policy).await.expect(200).json()
}

async fn make_fleet(api: &Api, policy: Value) -> Value {
    let body = json!({ "name": "north", "imageUpdatePolicy": policy });
    let made = api.post(FLEETS, &api.admin, body).await;
    made.expect(201).json()
}

const FLEETS: &str = "/api/v1/fleets";
const NORTH: &str = "/api/v1/fleets/north";

/// What of a policy was said.
fn said(policy: &Value) -> Value {
    let mut policy = policy.clone();
    let members = policy.as_object_mut().unwrap();
    members.retain(|_, value| !value.is_null() && *value != json!({}));
    policy
}

async fn items(api: &Api, path: &str) -> Vec<Value> {
    let page = api.get(path, &api.admin).await.expect(200).json();
    page["items"].as_array().unwrap().clone()
}

async fn audited(api: &Api, action: &str) -> Vec<Value> {
    let mut rows = items(api, "/api/v1/audit?limit=200").await;
    rows.retain(|row| row["action"] == action);
    rows
}

async fn a_policy_is_said_shown_and_taken_back(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let path = device.path("");
    let fresh = api.get(&path, &api.admin).await.expect(200).json();
    assert_eq!(said(&fresh["imageUpdatePolicy"]), json!({}));
    let effective =
        json!({"autoResolveDigests": true, "digestCacheTTL": 0, "autoUpdateLatest": true});
    assert_eq!(said(&fresh["effectiveImageUpdatePolicy"]), effective);
    let window = json!({"start": "01:00", "end": "04:00", "timezone": "Europe/Berlin"});
    let policy = json!({
        "autoResolveDigests": false, "digestCacheTTL": 60, "autoUpdateLatest": false,
        "updateWindow": window,
    });
    let changed = say(&api, &path, policy.clone()).await;
    assert_eq!(said(&changed["imageUpdatePolicy"]), policy);
    let shown = api.get(&path, &api.admin).await.expect(200).json();
    assert_eq!(shown, changed);
    let row = &audited(&api, "device.change").await[0];
    assert_eq!(row["after"]["image_update_policy"], policy);
    assert_eq!(row["before"]["image_update_policy"], json!({}));
    let event = &items(&api, "/api/v1/events?kind=device.changed").await[0];
    assert_eq!(event["detail"]["image_update_policy"], policy);
    // One member goes, the others stay; a change of something else changes none.
    let changed = say(&api, &path, json!({ "updateWindow": null })).await;
    let rest =
        json!({"autoResolveDigests": false, "digestCacheTTL": 60, "autoUpdateLatest": false});
    assert_eq!(said(&changed["imageUpdatePolicy"]), rest);
    let rename = json!({ "name": "other" });
    let renamed = api.call("PATCH", &path, &api.admin, Some(rename)).await;
    assert_eq!(said(&renamed.expect(200).json()["imageUpdatePolicy"]), rest);
    let changed = say(&api, &path, json!(null)).await;
    assert_eq!(said(&changed["imageUpdatePolicy"]), json!({}));
    // The same once more is no change.
    let many = items(&api, "/api/v1/events?kind=device.changed")
        .await
        .len();
    say(&api, &path, json!({ "updateWindow": null })).await;
    let now = items(&api, "/api/v1/events?kind=device.changed")
        .await
        .len();
    assert_eq!(now, many);
    // A fleet's, too.
    let made = make_fleet(&api, policy.clone()).await;
    assert_eq!(said(&made["imageUpdatePolicy"]), policy);
    let changed = say(&api, NORTH, json!({ "digestCacheTTL": 5 })).await;
    assert_eq!(changed["imageUpdatePolicy"]["digestCacheTTL"], 5);
    assert_eq!(
        changed["effectiveImageUpdatePolicy"]["updateWindow"],
        window
    );
    let event = &items(&api, "/api/v1/events?kind=fleet.changed").await[0];
    assert_eq!(event["detail"]["image_update_policy"]["digestCacheTTL"], 5);
    let viewer = api.token("viewer").await;
    let body = json!({ "imageUpdatePolicy": null });
    let refused = api.call("PATCH", &path, &viewer, Some(body)).await;
    refused.expect(403);
}

async fn the_device_counts_before_its_fleet(place: Place) {
    let api = Api::start(place).await;
    make_fleet(
        &api,
        json!({"digestCacheTTL": 60, "autoUpdateLatest": false}),
    )
    .await;
    let device = join(&api, "north").await;
    let shown = say(&api, &device.path(""), json!({ "digestCacheTTL": 7 })).await;
    assert_eq!(
        said(&shown["imageUpdatePolicy"]),
        json!({ "digestCacheTTL": 7 })
    );
    let effective =
        json!({"autoResolveDigests": true, "digestCacheTTL": 7, "autoUpdateLatest": false});
    assert_eq!(said(&shown["effectiveImageUpdatePolicy"]), effective);
    // Another fleet, another policy: nothing of the one that it left.
    let labels = json!({ "labels": { "fleet": "south" } });
    let path = device.path("");
    let moved = api.call("PATCH", &path, &api.admin, Some(labels)).await;
    let effective =
        json!({"autoResolveDigests": true, "digestCacheTTL": 7, "autoUpdateLatest": true});
    let moved = moved.expect(200).json();
    assert_eq!(said(&moved["effectiveImageUpdatePolicy"]), effective);
}

async fn what_cannot_be_carried_out_is_refused_by_member(place: Place) {
    let api = Api::start(place).await;
    make_fleet(&api, json!({})).await;
    let device = api.enrol().await;
    let window = |start: &str, zone: &str| json!({"updateWindow": {"start": start, "end": "04:00", "timezone": zone}});
    for (policy, member) in [
        (json!({"digestCacheTTL": 3601}), "digestCacheTTL"),
        (json!({"digestCacheTTL": -1}), "digestCacheTTL"),
        (json!({"autoResolveDigests": "no"}), "autoResolveDigests"),
        (json!({"autoUpdateLatest": 1}), "autoUpdateLatest"),
        (window("01:00", "Mars/Olympus"), "updateWindow/timezone"),
        (window("25:00", "UTC"), "updateWindow/start"),
        (json!({"updateWindow": {"start": "01:00"}}), "updateWindow"),
        (json!({"autoupdate": true}), "autoupdate"),
        (json!({"registryCredentials": []}), "registryCredentials"),
        (
            json!({"registryCredentials": {"reg.example": {"username": "u"}}}),
            "registryCredentials/reg.example/password",
        ),
        (
            json!({"registryCredentials": {"reg.example/x": {"username": "u", "password": "p"}}}),
            "registryCredentials/reg.example~1x",
        ),
    ] {
        for path in [device.path(""), NORTH.to_owned()] {
            let refused = patch(&api, &path, policy.clone()).await.expect(422);
            let pointer = format!("/imageUpdatePolicy/{member}");
            assert_eq!(refused.pointers(), [pointer], "{policy}");
        }
    }
    // Nothing of a change is kept of which something is refused.
    let body = json!({"name": "other", "imageUpdatePolicy": {"digestCacheTTL": 3601}});
    let path = device.path("");
    let refused = api.call("PATCH", &path, &api.admin, Some(body)).await;
    refused.expect(422);
    let shown = api.get(&path, &api.admin).await.expect(200).json();
    assert_eq!(shown["name"], "box");
    assert!(
        items(&api, "/api/v1/events?kind=registry.credentials_set")
            .await
            .is_empty()
    );
}

async fn pull_login(api: &Api, device: &Device) -> Answer {
    let body = json!({ "image": "reg.example/basic/web:1" });
    let path = device.path("/pull-tokens");
    api.post(&path, &device.token, body).await
}

async fn logins_act_and_are_told_nobody(place: Place) {
    let api = Api::start(place).await;
    let image = "reg.example/basic/web:1";
    api.registry.push(image, "v1", &["linux/amd64"]);
    make_fleet(&api, json!({})).await;
    let device = join(&api, "north").await;
    let other = api.enrol().await;
    for device in [&device, &other] {
        api.set(device, image).await.expect(200);
        let open = pull_login(&api, device).await.expect(200).json();
        assert_eq!(open["kind"], "open", "nobody has a login");
    }
    let login = |user: &str| json!({"reg.example": {"username": user, "password": CANARY}});
    let policy = json!({ "registryCredentials": login("canary-north") });
    let mut told = vec![say(&api, NORTH, policy).await];
    let has_login = json!({ "reg.example": { "hasLogin": true } });
    assert_eq!(
        told[0]["imageUpdatePolicy"]["registryCredentials"],
        has_login
    );
    // It acts: the registry mints nothing for it, and it may not leave.
    let refused = pull_login(&api, &device).await.expect(409);
    assert_eq!(refused.code(), "no_pull_token");
    let open = pull_login(&api, &other).await.expect(200).json();
    assert_eq!(open["kind"], "open", "it is in no fleet");
    api.set(&device, image).await.expect(200);
    let asked_as = api.registry.logins().last().cloned().unwrap();
    assert!(asked_as.contains("canary-north"), "{asked_as}");
    let shown = api
        .get(&device.path(""), &api.admin)
        .await
        .expect(200)
        .json();
    assert_eq!(shown["imageUpdatePolicy"]["registryCredentials"], json!({}));
    let effective = &shown["effectiveImageUpdatePolicy"]["registryCredentials"];
    assert_eq!(*effective, has_login);
    told.push(shown);
    // The device's own counts first.
    let policy = json!({ "registryCredentials": login("canary-own") });
    told.push(say(&api, &device.path(""), policy).await);
    api.set(&device, image).await.expect(200);
    let asked_as = api.registry.logins().last().cloned().unwrap();
    assert!(asked_as.contains("canary-own"), "{asked_as}");
    // Whether devices may be given it is said elsewhere, and outlasts a new password.
    let handed = json!({"username": "canary", "password": CANARY, "hand_out": true,
                        "device": device.uuid});
    let credentials = "/api/v1/registries/reg.example/credentials";
    let put = api.call("PUT", credentials, &api.admin, Some(handed)).await;
    put.expect(200);
    let policy = json!({ "registryCredentials": login("canary-new") });
    told.push(say(&api, &device.path(""), policy).await);
    let given = pull_login(&api, &device).await.expect(200).json();
    assert_eq!(given["username"], "canary-new");
    // One goes, then all.
    let policy = json!({ "registryCredentials": { "reg.example": null } });
    told.push(say(&api, &device.path(""), policy).await);
    assert_eq!(
        told[4]["imageUpdatePolicy"]["registryCredentials"],
        json!({})
    );
    told.push(say(&api, NORTH, json!(null)).await);
    assert_eq!(
        told[5]["imageUpdatePolicy"]["registryCredentials"],
        json!({})
    );
    let open = pull_login(&api, &device).await.expect(200).json();
    assert_eq!(open["kind"], "open");
    for (list, many) in [
        ("/api/v1/events?kind=registry.credentials_set", 4),
        ("/api/v1/events?kind=registry.credentials_removed", 2),
        ("/api/v1/events?kind=fleet.changed", 0),
    ] {
        let rows = items(&api, list).await;
        assert_eq!(rows.len(), many, "{list}");
        told.extend(rows);
    }
    for (action, many) in [
        ("registry_credentials.set", 4),
        ("registry_credentials.remove", 2),
    ] {
        let rows = audited(&api, action).await;
        assert_eq!(rows.len(), many, "{action}");
        told.extend(rows);
    }
    for list in [
        "/api/v1/audit?limit=200",
        "/api/v1/devices",
        FLEETS,
        "/api/v1/events?limit=200",
    ] {
        told.extend(items(&api, list).await);
    }
    let told = told.iter().map(Value::to_string);
    // The user that was named elsewhere is told there.
    let told = told.filter(|text| !text.contains(r#""username":"canary""#));
    for text in told {
        assert!(!text.contains("canary"), "{text}");
    }
}

async fn only_who_administers_sets_logins(place: Place) {
    let api = Api::start(place).await;
    make_fleet(&api, json!({})).await;
    let device = api.enrol().await;
    let operator = api.token("operator").await;
    let login = json!({"reg.example": {"username": "u", "password": CANARY}});
    for path in [device.path(""), NORTH.to_owned()] {
        let of = async |policy: Value, token: &str| {
            let body = json!({ "imageUpdatePolicy": policy });
            api.call("PATCH", &path, token, Some(body)).await
        };
        of(json!({"digestCacheTTL": 5}), &operator)
            .await
            .expect(200);
        let with = json!({"digestCacheTTL": 6, "registryCredentials": login});
        let refused = of(with.clone(), &operator).await.expect(403);
        assert!(!refused.json().to_string().contains(CANARY));
        let shown = api.get(&path, &api.admin).await.expect(200).json();
        assert_eq!(
            shown["imageUpdatePolicy"]["digestCacheTTL"], 5,
            "all or nothing"
        );
        // Without logins there is nothing to administer.
        of(json!(null), &operator).await.expect(200);
        of(with, &api.admin).await.expect(200);
        of(json!(null), &operator).await.expect(403);
        let gone = json!({"registryCredentials": null});
        of(gone.clone(), &operator).await.expect(403);
        let changed = of(gone, &api.admin).await.expect(200).json();
        let left = json!({"digestCacheTTL": 6});
        assert_eq!(said(&changed["imageUpdatePolicy"]), left);
    }
}

async fn an_answer_is_taken_for_good_as_long_as_the_device_says(place: Place) {
    let api = Api::start_with(place, |mut settings| {
        settings.digest_cache_s = 300;
        settings
    })
    .await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let device = api.enrol().await;
    let asked = async || {
        let before = api.registry.asked().len();
        api.set(&device, "nginx:1").await.expect(200);
        api.registry.asked().len() - before
    };
    assert_eq!(asked().await, 1);
    assert_eq!(asked().await, 0, "the server's setting counts");
    let shown = say(&api, &device.path(""), json!({ "digestCacheTTL": 0 })).await;
    let effective = &shown["effectiveImageUpdatePolicy"];
    assert_eq!(effective["digestCacheTTL"], 0);
    assert_eq!(asked().await, 1);
    assert_eq!(asked().await, 1);
    say(&api, &device.path(""), json!({ "digestCacheTTL": 3600 })).await;
    assert_eq!(asked().await, 0);
    // Nobody else is concerned.
    let other = api.enrol().await;
    let before = api.registry.asked().len();
    api.set(&other, "nginx:1").await.expect(200);
    assert_eq!(api.registry.asked().len(), before);
}

async fn a_release_takes_answers_for_good_as_long_as_the_fleet_says(place: Place) {
    let api = Api::start(place).await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    make_fleet(&api, json!({ "digestCacheTTL": 600 })).await;
    release(&api, "north", "nginx:1").await;
    let before = api.registry.asked().len();
    release(&api, "north", "nginx:1").await;
    assert_eq!(api.registry.asked().len(), before);
    say(&api, NORTH, json!({ "digestCacheTTL": null })).await;
    release(&api, "north", "nginx:1").await;
    assert_eq!(api.registry.asked().len(), before + 1);
}

async fn a_pinned_tag_stays_until_somebody_asks(place: Place) {
    let fleet = Fleet::new(place, 2, json!({})).await;
    let (api, device) = (&fleet.api, &fleet.devices[0]);
    let path = device.path("");
    say(api, &path, json!({ "autoResolveDigests": false })).await;
    // A push passes it by.
    let id = fleet.begin("v2").await;
    assert_eq!(fleet.show(id).await["counts"], json!({ "waiting": 1 }));
    fleet.look().await;
    assert_eq!(fleet.with("v2").await, [1]);
    // So does a target that changes something else.
    let mut body = target("nginx:1");
    body["apps"]["1001"]["services"][0]["config"]["ports"] = json!(["81:80"]);
    let set = device.path("/target-state");
    let kept = api.post(&set, &api.admin, body.clone()).await.expect(200);
    assert_eq!(kept.json()["generation"], 2);
    assert_eq!(fleet.with("v1").await, [0]);
    // What was not pinned before is pinned now.
    api.registry.push("nginx:2", "other", &["linux/amd64"]);
    api.set(device, "nginx:2").await.expect(200);
    assert_eq!(fleet.with("other").await, [0]);
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(device, "nginx:1").await.expect(200);
    api.registry.push("nginx:1", "v2", &["linux/amd64"]);
    api.set(device, "nginx:1").await.expect(200);
    assert_eq!(fleet.with("v1").await, [0]);
    // Somebody asks, in either way.
    let asking = format!("{set}?resolve_digests=true");
    let body = target("nginx:1");
    api.post(&asking, &api.admin, body).await.expect(200);
    assert_eq!(fleet.with("v2").await, [0, 1]);
    fleet.api.registry.push("nginx:1", "v3", &["linux/amd64"]);
    let by_hand = json!({ "image": "nginx:1" });
    let begun = api.post("/api/v1/rollouts", &api.admin, by_hand).await;
    begun.expect(201);
    fleet.look().await;
    assert_eq!(fleet.with("v3").await, [0, 1]);
}

async fn pushed(api: &Api, image: &str) -> Begun {
    let reference: Reference = image.parse().unwrap();
    let pushed = Pushed {
        repository: reference.repository().clone(),
        tag: reference.tag_or_latest().to_owned(),
        source: "tests".to_owned(),
    };
    begin::by_push(&api.app, &pushed).await.unwrap()
}

async fn a_push_of_a_moving_tag_reaches_nobody_who_does_not_want_it(place: Place) {
    let fleet = Fleet::new(place, 2, json!({})).await;
    let (api, device) = (&fleet.api, &fleet.devices[0]);
    make_fleet(api, json!({ "autoUpdateLatest": false })).await;
    let labels = json!({ "labels": { "fleet": "north" } });
    let path = device.path("");
    let joined = api.call("PATCH", &path, &api.admin, Some(labels)).await;
    joined.expect(200);
    api.registry.push("nginx:latest", "v1", &["linux/amd64"]);
    for device in &fleet.devices {
        api.set(device, "nginx:latest").await.expect(200);
    }
    api.registry.push("nginx:latest", "v2", &["linux/amd64"]);
    let Begun::Rollout(id) = pushed(api, "nginx:latest").await else {
        panic!("nothing begins");
    };
    assert_eq!(fleet.show(id).await["counts"], json!({ "waiting": 1 }));
    fleet.look().await;
    assert_eq!(fleet.with("v2").await, [1]);
    // Nobody else is left.
    api.set(&fleet.devices[1], "nginx:1").await.expect(200);
    let Begun::Nothing(why) = pushed(api, "nginx:latest").await else {
        panic!("it is pushed to who does not want it");
    };
    assert!(why.contains("imageUpdatePolicy"), "{why}");
    // A version is no moving tag, and the device's own word counts before its fleet's.
    api.set(device, "nginx:1").await.expect(200);
    let id = fleet.begin("v3").await;
    assert_eq!(fleet.show(id).await["counts"], json!({ "waiting": 2 }));
    api.set(device, "nginx:latest").await.expect(200);
    say(api, &path, json!({ "autoUpdateLatest": true })).await;
    api.registry.push("nginx:latest", "v4", &["linux/amd64"]);
    assert!(matches!(
        pushed(api, "nginx:latest").await,
        Begun::Rollout(_)
    ));
}

async fn who_says_no_after_the_rollout_began_is_left_out(place: Place) {
    let fleet = Fleet::new(place, 2, json!({})).await;
    let id = fleet.begin("v2").await;
    let path = fleet.devices[0].path("");
    say(&fleet.api, &path, json!({ "autoResolveDigests": false })).await;
    fleet.look().await;
    assert_eq!(fleet.with("v2").await, [1]);
    let counts = json!({ "gone": 1, "updating": 1 });
    assert_eq!(fleet.show(id).await["counts"], counts);
    // What a person orders goes to it all the same.
    fleet.api.registry.push("nginx:1", "v3", &["linux/amd64"]);
    let by_hand = json!({ "image": "nginx:1" });
    let path = "/api/v1/rollouts";
    let begun = fleet.api.post(path, &fleet.api.admin, by_hand).await;
    begun.expect(201);
    fleet.look().await;
    assert_eq!(fleet.with("v3").await, [0, 1]);
}

/// The monitor looks at this time of a day that is to come.
async fn look_at(api: &Api, hour: i64, minute: i64) {
    let now = holdfast_api::clock::now().as_millis();
    let midnight = (now / DAY_MS + 2) * DAY_MS;
    let now = Timestamp::from_millis(midnight + (hour * 60 + minute) * 60_000);
    run_once(&api.app, "tests", || now).await.unwrap();
}

/// In Kathmandu it is five hours and three quarters later than in UTC, all the year.
fn night() -> Value {
    json!({"updateWindow": {"start": "02:00", "end": "03:00", "timezone": "Asia/Kathmandu"}})
}

async fn a_rollout_waits_for_each_devices_window(place: Place) {
    let mut fleet = Fleet::new(
        place,
        3,
        json!({"update_strategy": "immediate", "batch_size": null}),
    )
    .await;
    make_fleet(&fleet.api, night()).await;
    let always = json!({"updateWindow": {"start": "00:00", "end": "00:00", "timezone": "UTC"}});
    for n in [0, 1] {
        let path = fleet.devices[n].path("");
        let body = json!({ "labels": { "fleet": "north" } });
        let api = &fleet.api;
        let joined = api.call("PATCH", &path, &api.admin, Some(body)).await;
        joined.expect(200);
    }
    say(&fleet.api, &fleet.devices[1].path(""), always).await;
    let id = fleet.begin("v2").await;
    look_at(&fleet.api, 20, 10).await;
    assert_eq!(fleet.with("v2").await, [1, 2]);
    for n in [1, 2] {
        fleet.report(n, |_| {}).await;
    }
    look_at(&fleet.api, 20, 14).await;
    assert_eq!(fleet.with("v1").await, [0]);
    assert_eq!(fleet.show(id).await["state"], "running");
    look_at(&fleet.api, 20, 16).await;
    assert_eq!(fleet.with("v2").await, [0, 1, 2]);
    fleet.report(0, |_| {}).await;
    look_at(&fleet.api, 20, 17).await;
    assert_eq!(fleet.show(id).await["state"], "succeeded");
}

async fn a_release_waits_for_the_fleets_window(place: Place) {
    let api = Api::start(place).await;
    make_fleet(&api, night()).await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let device = join(&api, "north").await;
    release(&api, "north", "nginx:1").await;
    look_at(&api, 20, 14).await;
    assert!(served(&api, &device).await.1.is_empty());
    look_at(&api, 20, 16).await;
    let image = format!("nginx@{}", digest("v1"));
    assert_eq!(served(&api, &device).await.1, [image]);
}
