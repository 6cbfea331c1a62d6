//! Facts about rollouts: how versions travel, stop and come back. Devices are played by the tests, by their real calls.

use std::collections::BTreeMap;

use holdfast_api::rollouts::begin::{self, Begun, Pushed};
use holdfast_api::rollouts::facts::Circumstances;
use holdfast_api::rollouts::step::{Step, step};
use holdfast_api::store::{devices, leases};
use holdfast_api::tasks::advance_rollouts::run_once;
use holdfast_api::tasks::watch_presence::look;
use holdfast_api::tasks::{deliver, refresh_tags};
use holdfast_proto::image::Reference;
use holdfast_proto::time::Timestamp;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Api, Device};
use crate::support::registry::digest;

crate::on_both_databases![
    a_version_travels_batch_by_batch,
    a_bad_version_goes_back_and_reaches_nobody_else,
    c36_a_newer_push_takes_the_place_of_the_one_before_it,
    c42_an_old_push_and_one_that_was_rolled_back_begin_nothing,
    c45_an_approval_taken_back_stops_before_the_next_batch,
    what_means_nothing_now_is_refused_in_words,
    a_preview_is_what_happens,
    c31_who_is_removed_is_not_waited_for,
    c22_c27_lies_and_late_reports_move_nothing,
    failed_devices_are_tried_again,
    going_back_leaves_what_others_changed,
    people_start_and_approve_where_the_policy_says_so,
    c05_a_lease_that_was_taken_over_writes_nothing,
    c48_what_no_device_can_use_is_no_rollout,
    c48_a_batch_larger_than_the_fleet_is_the_fleet,
    c48_a_window_that_stays_closed_touches_nobody,
    devices_that_go_silent_and_come_back_are_told_of_once,
    a_tag_that_moves_without_a_push_is_rolled_out,
    rollouts_are_found_by_what_they_are_about,
];

const ROLLOUTS: &str = "/api/v1/rollouts";

/// A fleet whose devices run version one of `nginx:1`, and verified it.
pub struct Fleet {
    pub api: Api,
    pub devices: Vec<Device>,
    sequence: u64,
}

impl Fleet {
    pub async fn new(place: Place, many: usize, policy: Value) -> Self {
        let api = Api::start(place).await;
        let image = json!({ "image_name": "nginx" });
        api.post("/api/v1/images", &api.admin, image)
            .await
            .expect(201);
        let mut body = json!({
            "name": "all", "image_pattern": "nginx:*", "batch_size": 2, "batch_delay_minutes": 0,
            "max_failure_rate": 10,
        });
        for (member, value) in policy.as_object().unwrap() {
            body[member] = value.clone();
        }
        api.post("/api/v1/policies", &api.admin, body)
            .await
            .expect(201);
        api.registry.push("nginx:1", "v1", &["linux/amd64"]);
        let mut devices = Vec::new();
        for _ in 0..many {
            let device = api.enrol().await;
            api.set(&device, "nginx:1").await.expect(200);
            devices.push(device);
        }
        let mut fleet = Self {
            api,
            devices,
            sequence: 0,
        };
        for n in 0..many {
            fleet.report(n, |_| {}).await;
        }
        fleet
    }

    /// The device reports that it runs its target; `adjust` says what is otherwise.
    pub async fn report(&mut self, n: usize, adjust: impl FnOnce(&mut Value)) {
        self.sequence += 1;
        let device = &self.devices[n];
        let target = self.api.poll(device, &[]).await.expect(200).json();
        let mut services = json!({});
        for service in target["apps"]["1001"]["services"].as_array().unwrap() {
            let name = service["serviceName"].as_str().unwrap();
            services[name] = json!({
                "configDigest": service["pin"]["expected"]["configDigest"],
                "state": "running", "verified": true,
            });
        }
        let mut report = json!({
            "sequence": self.sequence, "agentVersion": "1.0.0", "generation": target["generation"],
            "status": "converged", "apps": { "1001": { "services": services } },
        });
        adjust(&mut report);
        let path = device.path("/current-state");
        let answer = self.api.call("PUT", &path, &device.token, Some(report));
        answer.await.expect(204);
    }

    /// The device's gate lets the version not through.
    async fn reject(&mut self, n: usize) {
        self.report(n, |report| {
            report["status"] = json!("holding");
            report["apps"]["1001"]["services"]["nginx"]["rejected"] = json!({
                "image": "nginx@x", "reason": "its health check failed",
                "at": "2026-11-21T00:00:00Z",
            });
        })
        .await;
    }

    pub async fn push(&self, content: &str) -> Begun {
        self.api.registry.push("nginx:1", content, &["linux/amd64"]);
        self.pushed().await
    }

    /// A push is told of, whatever the tag means.
    pub async fn pushed(&self) -> Begun {
        let nginx: Reference = "nginx:1".parse().unwrap();
        let pushed = Pushed {
            repository: nginx.repository().clone(),
            tag: "1".to_owned(),
            source: "tests".to_owned(),
        };
        begin::by_push(&self.api.app, &pushed).await.unwrap()
    }

    /// A push that begins a rollout.
    pub async fn begin(&self, content: &str) -> i64 {
        match self.push(content).await {
            Begun::Rollout(id) => id,
            Begun::Nothing(why) | Begun::Later(why) => panic!("nothing begins: {why}"),
        }
    }

    /// The monitor looks, so many minutes from now.
    async fn look_in(&self, minutes: i64) {
        let now = || holdfast_api::clock::now().plus_ms(minutes * 60_000);
        run_once(&self.api.app, "tests", now).await.unwrap();
    }

    pub async fn look(&self) {
        self.look_in(0).await;
    }

    pub async fn show(&self, id: i64) -> Value {
        let path = format!("{ROLLOUTS}/{id}");
        self.api
            .get(&path, &self.api.admin)
            .await
            .expect(200)
            .json()
    }

    async fn order(&self, id: i64, order: &str, status: u16) -> Value {
        let path = format!("{ROLLOUTS}/{id}/{order}");
        let answer = self.api.post(&path, &self.api.admin, json!({})).await;
        answer.expect(status).json()
    }

    /// What each device is served: the content of its service, by number.
    async fn served(&self) -> Vec<String> {
        let mut served = Vec::new();
        for device in &self.devices {
            let target = self.api.poll(device, &[]).await.expect(200).json();
            let image = &target["apps"]["1001"]["services"][0]["imageName"];
            served.push(image.as_str().unwrap().to_owned());
        }
        served
    }

    /// Devices that are served this content.
    pub async fn with(&self, content: &str) -> Vec<usize> {
        let wanted = format!("nginx@{}", digest(content));
        let served = self.served().await;
        let with = served.iter().enumerate();
        let with = with.filter(|(_, image)| **image == wanted);
        with.map(|(n, _)| n).collect()
    }

    async fn events(&self) -> Vec<String> {
        let path = "/api/v1/events?limit=200";
        let page = self.api.get(path, &self.api.admin).await.expect(200).json();
        let items = page["items"].as_array().unwrap().iter().rev();
        let kinds = items.map(|event| event["kind"].as_str().unwrap().to_owned());
        kinds
            .filter(|kind| kind.starts_with("image.rollout"))
            .collect()
    }
}

async fn a_version_travels_batch_by_batch(place: Place) {
    let mut fleet = Fleet::new(place, 5, json!({})).await;
    let id = fleet.begin("v2").await;
    let begun = fleet.show(id).await;
    assert_eq!(begun["state"], "pending");
    assert_eq!(begun["batch_count"], 3);
    assert_eq!(begun["counts"], json!({ "waiting": 5 }));
    assert_eq!(begun["digest"], digest("v2").to_string());
    assert_eq!(begun["previous_digest"], digest("v1").to_string());
    let mut done = 0;
    for batch in 1..=3 {
        fleet.look().await;
        let now = fleet.with("v2").await;
        let size = if batch == 3 { 1 } else { 2 };
        assert_eq!(now.len(), done + size, "batch {batch}");
        // As long as one is on its way, nobody else is touched.
        fleet.look().await;
        assert_eq!(fleet.with("v2").await, now);
        let shown = fleet.show(id).await;
        assert_eq!(shown["opened"], batch);
        assert_eq!(shown["waits_for"], "devices are on their way");
        for n in now {
            fleet.report(n, |_| {}).await;
        }
        done += size;
    }
    fleet.look().await;
    let ended = fleet.show(id).await;
    assert_eq!(ended["state"], "succeeded");
    assert_eq!(ended["counts"], json!({ "verified": 5 }));
    assert!(ended["ended_at"].is_string());
    assert_eq!(
        fleet.events().await,
        [
            "image.rollout_created",
            "image.rollout_started",
            "image.rollout_batch_started",
            "image.rollout_batch_completed",
            "image.rollout_batch_started",
            "image.rollout_batch_completed",
            "image.rollout_batch_started",
            "image.rollout_batch_completed",
            "image.rollout_completed",
        ]
    );
    let path = format!("{ROLLOUTS}/{id}/devices?limit=2");
    let page = fleet
        .api
        .get(&path, &fleet.api.admin)
        .await
        .expect(200)
        .json();
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!(page["items"][0]["standing"], "verified");
    assert_eq!(page["items"][0]["back_to"], 1);
    let cursor = page["next_cursor"].as_str().unwrap();
    let path = format!("{ROLLOUTS}/{id}/devices?cursor={cursor}&limit=200");
    let page = fleet
        .api
        .get(&path, &fleet.api.admin)
        .await
        .expect(200)
        .json();
    assert_eq!(page["items"].as_array().unwrap().len(), 3);
    let device = &fleet.devices[0].uuid;
    let path = format!("{ROLLOUTS}/{id}/timeline?device={device}");
    let page = fleet
        .api
        .get(&path, &fleet.api.admin)
        .await
        .expect(200)
        .json();
    let what = page["items"].as_array().unwrap().iter();
    let what: Vec<_> = what.map(|one| one["what"].clone()).collect();
    assert_eq!(what, ["told", "verified"]);
    // Another push of the same content is nothing new.
    let again = fleet.pushed().await;
    let why = "every device runs this digest already".to_owned();
    assert_eq!(again, Begun::Nothing(why));
}

async fn a_bad_version_goes_back_and_reaches_nobody_else(place: Place) {
    let mut fleet = Fleet::new(place, 6, json!({})).await;
    let id = fleet.begin("bad").await;
    fleet.look().await;
    let exposed = fleet.with("bad").await;
    assert_eq!(exposed.len(), 2);
    for n in &exposed {
        fleet.reject(*n).await;
    }
    fleet.look().await;
    let shown = fleet.show(id).await;
    assert_eq!(shown["state"], "rolling_back");
    assert_eq!(shown["reason"], "2 of 2 devices failed");
    assert_eq!(
        fleet.with("v1").await.len(),
        6,
        "everybody is told what was verified"
    );
    for n in exposed {
        fleet.report(n, |_| {}).await;
    }
    fleet.look().await;
    let ended = fleet.show(id).await;
    assert_eq!(ended["state"], "rolled_back");
    assert_eq!(ended["counts"], json!({ "returned": 2, "waiting": 4 }));
    // The registry still says the same, and nobody is bothered with it again.
    let again = fleet.pushed().await;
    let why = format!("rollout {id} of this digest did not succeed: begin it by hand");
    assert_eq!(again, Begun::Nothing(why));
    let by_hand = json!({ "image": "nginx:1" });
    let begun = fleet.api.post(ROLLOUTS, &fleet.api.admin, by_hand).await;
    assert_eq!(begun.expect(201).json()["state"], "pending");
}

async fn c36_a_newer_push_takes_the_place_of_the_one_before_it(place: Place) {
    let mut fleet = Fleet::new(place, 4, json!({})).await;
    let first = fleet.begin("v2").await;
    fleet.look().await;
    let early = fleet.with("v2").await;
    // What the tag means by now changes nothing about a rollout that is on its way.
    fleet.api.registry.push("nginx:1", "v3", &["linux/amd64"]);
    for n in &early {
        fleet.report(*n, |_| {}).await;
    }
    fleet.look().await;
    assert_eq!(fleet.with("v2").await.len(), 4);
    assert_eq!(fleet.with("v3").await.len(), 0);
    // A push does: devices in flight go on to the newer one.
    let Begun::Rollout(second) = fleet.pushed().await else {
        panic!("nothing begins");
    };
    assert_eq!(fleet.show(first).await["state"], "superseded");
    for _ in 0..3 {
        fleet.look().await;
        for n in fleet.with("v3").await {
            fleet.report(n, |_| {}).await;
        }
    }
    fleet.look().await;
    let ended = fleet.show(second).await;
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert_eq!(ended["counts"], json!({ "verified": 4 }));
    assert_eq!(fleet.with("v3").await.len(), 4);
}

async fn c42_an_old_push_and_one_that_was_rolled_back_begin_nothing(place: Place) {
    let mut fleet = Fleet::new(place, 1, json!({})).await;
    let id = fleet.begin("v2").await;
    let again = fleet.pushed().await;
    assert_eq!(
        again,
        Begun::Nothing(format!("rollout {id} carries it already"))
    );
    fleet.look().await;
    fleet.report(0, |_| {}).await;
    fleet.look().await;
    assert_eq!(fleet.show(id).await["state"], "succeeded");
    // The delivery of a month ago comes again: the registry is asked, and the tag means what runs.
    let again = fleet.pushed().await;
    assert!(matches!(again, Begun::Nothing(_)));
    assert_eq!(fleet.with("v2").await, [0]);
    // A registry that does not answer begins nothing.
    fleet.api.registry.remove("nginx:1");
    assert!(matches!(fleet.pushed().await, Begun::Later(_)));
}

async fn c45_an_approval_taken_back_stops_before_the_next_batch(place: Place) {
    let mut fleet = Fleet::new(place, 4, json!({})).await;
    let id = fleet.begin("v2").await;
    fleet.look().await;
    let first = fleet.with("v2").await;
    let images = fleet.api.get("/api/v1/images", &fleet.api.admin).await;
    let image = images.expect(200).json()["items"][0].clone();
    let path = format!("/api/v1/images/{}", image["id"]);
    let change = json!({ "approval_status": "rejected" });
    fleet
        .api
        .call("PUT", &path, &fleet.api.admin, Some(change))
        .await
        .expect(200);
    for n in &first {
        fleet.report(*n, |_| {}).await;
    }
    fleet.look().await;
    let shown = fleet.show(id).await;
    assert_eq!(shown["state"], "paused", "{shown}");
    assert_eq!(shown["reason"], "this image was rejected");
    assert_eq!(fleet.with("v2").await, first);
    let refused = fleet.order(id, "resume", 409).await;
    assert_eq!(refused["detail"], "this image was rejected");
    // Nor does a new one begin.
    let Begun::Nothing(why) = fleet.push("v3").await else {
        panic!("a rejected image is rolled out");
    };
    assert_eq!(why, "this image was rejected");
    let by_hand = json!({ "image": "nginx:1" });
    let refused = fleet.api.post(ROLLOUTS, &fleet.api.admin, by_hand).await;
    assert_eq!(refused.expect(403).code(), "image_not_approved");
}

async fn what_means_nothing_now_is_refused_in_words(place: Place) {
    let fleet = Fleet::new(place, 2, json!({})).await;
    let id = fleet.begin("v2").await;
    for (order, detail) in [
        ("resume", "it has not begun: start it"),
        ("rollback", "no device was touched yet: cancel it"),
        ("approve-batch", "its batches need no approval"),
    ] {
        let refused = fleet.order(id, order, 409).await;
        assert_eq!(refused["detail"], detail);
    }
    assert_eq!(fleet.order(id, "pause", 200).await["state"], "paused");
    fleet.look().await;
    assert_eq!(fleet.with("v2").await.len(), 0);
    assert_eq!(fleet.order(id, "resume", 200).await["state"], "running");
    fleet.look().await;
    assert_eq!(fleet.with("v2").await.len(), 2);
    assert_eq!(fleet.order(id, "cancel", 200).await["state"], "cancelled");
    assert_eq!(
        fleet.with("v2").await.len(),
        2,
        "devices stay where they are"
    );
    assert_eq!(
        fleet.order(id, "rollback", 200).await["state"],
        "rolling_back"
    );
    fleet.look().await;
    assert_eq!(fleet.with("v1").await.len(), 2);
    fleet.order(id, "explode", 404).await;
    fleet.order(99, "pause", 404).await;
    let viewer = fleet.api.token("viewer").await;
    let path = format!("{ROLLOUTS}/{id}/cancel");
    fleet.api.post(&path, &viewer, json!({})).await.expect(403);
    let reason = json!({ "reason": "x".repeat(501) });
    let refused = fleet
        .api
        .post(&path, &fleet.api.admin, reason)
        .await
        .expect(422);
    assert_eq!(refused.pointers(), ["/reason"]);
}

async fn a_preview_is_what_happens(place: Place) {
    let fleet = Fleet::new(place, 5, json!({})).await;
    fleet.api.registry.push("nginx:1", "v2", &["linux/amd64"]);
    let body = json!({ "image": "nginx:1" });
    let path = format!("{ROLLOUTS}?dry_run=true");
    let preview = fleet.api.post(&path, &fleet.api.admin, body.clone()).await;
    let preview = preview.expect(200).json();
    let page = fleet
        .api
        .get(ROLLOUTS, &fleet.api.admin)
        .await
        .expect(200)
        .json();
    assert_eq!(page["items"], json!([]), "nothing is stored");
    let begun = fleet
        .api
        .post(ROLLOUTS, &fleet.api.admin, body)
        .await
        .expect(201)
        .json();
    let path = format!("{ROLLOUTS}/{}/devices", begun["id"]);
    let page = fleet
        .api
        .get(&path, &fleet.api.admin)
        .await
        .expect(200)
        .json();
    let mut batches: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for device in page["items"].as_array().unwrap() {
        let batch = batches
            .entry(device["batch"].as_u64().unwrap())
            .or_default();
        batch.push(device["uuid"].as_str().unwrap().to_owned());
    }
    for batch in preview["batches"].as_array().unwrap() {
        let devices = batch["devices"].as_array().unwrap().iter();
        let mut devices: Vec<_> = devices
            .map(|device| device["uuid"].as_str().unwrap().to_owned())
            .collect();
        devices.sort();
        assert_eq!(batches[&batch["batch"].as_u64().unwrap()], devices);
    }
    assert_eq!(preview["digest"], digest("v2").to_string());
    assert_eq!(preview["policy"], "all");
    let refused = json!({ "image": "nginx@sha256:1" });
    let refused = fleet
        .api
        .post(ROLLOUTS, &fleet.api.admin, refused)
        .await
        .expect(422);
    assert_eq!(refused.pointers(), ["/image"]);
}

async fn c31_who_is_removed_is_not_waited_for(place: Place) {
    let mut fleet = Fleet::new(place, 4, json!({})).await;
    let id = fleet.begin("v2").await;
    fleet.look().await;
    let first = fleet.with("v2").await;
    let gone = fleet.devices[first[0]].path("");
    fleet
        .api
        .call("DELETE", &gone, &fleet.api.admin, None)
        .await
        .expect(204);
    // The other one gets another target by hand: it is not ours any more.
    fleet.api.registry.push("redis:7", "r7", &["linux/amd64"]);
    fleet
        .api
        .set(&fleet.devices[first[1]], "redis:7")
        .await
        .expect(200);
    fleet.look().await;
    let shown = fleet.show(id).await;
    assert_eq!(shown["counts"]["gone"], 2, "{shown}");
    assert_eq!(shown["opened"], 2);
    fleet.devices.remove(first[0]);
    for n in fleet.with("v2").await {
        fleet.report(n, |_| {}).await;
    }
    fleet.look().await;
    assert_eq!(fleet.show(id).await["state"], "succeeded");
}

async fn c22_c27_lies_and_late_reports_move_nothing(place: Place) {
    let mut fleet = Fleet::new(place, 3, json!({ "batch_size": 1 })).await;
    let id = fleet.begin("v2").await;
    fleet.look().await;
    let first = fleet.with("v2").await[0];
    let old = "sha256:".to_owned() + &"0".repeat(64);
    // It says that it is done, and runs something else.
    fleet
        .report(first, |report| {
            report["apps"]["1001"]["services"]["nginx"]["configDigest"] = json!(old);
        })
        .await;
    fleet.look().await;
    assert_eq!(
        fleet.show(id).await["counts"],
        json!({ "updating": 1, "waiting": 2 })
    );
    // It runs the right thing, and reports the generation before.
    fleet
        .report(first, |report| report["generation"] = json!(1))
        .await;
    fleet.look().await;
    assert_eq!(
        fleet.show(id).await["counts"],
        json!({ "updating": 1, "waiting": 2 })
    );
    // A report that was overtaken is not read at all.
    let before = fleet.sequence;
    fleet.report(first, |_| {}).await;
    fleet
        .report(first, |report| {
            report["sequence"] = json!(before);
            report["generation"] = json!(1);
        })
        .await;
    fleet.look().await;
    assert_eq!(fleet.show(id).await["counts"]["verified"], 1);
}

async fn failed_devices_are_tried_again(place: Place) {
    let rules = json!({ "batch_size": 4, "max_failure_rate": 50, "min_success": 50 });
    let mut fleet = Fleet::new(place, 4, rules).await;
    let id = fleet.begin("v2").await;
    fleet.look().await;
    fleet.reject(0).await;
    for n in 1..4 {
        fleet.report(n, |_| {}).await;
    }
    fleet.look().await;
    let ended = fleet.show(id).await;
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert_eq!(ended["counts"], json!({ "failed": 1, "verified": 3 }));
    assert_eq!(fleet.order(id, "retry", 200).await["state"], "running");
    // An agent tries what it rejected only after another target.
    assert_eq!(fleet.with("v1").await, [0]);
    assert_eq!(
        fleet.show(id).await["counts"],
        json!({ "readying": 1, "verified": 3 })
    );
    fleet.report(0, |_| {}).await;
    fleet.look().await;
    assert_eq!(fleet.with("v2").await, [0, 1, 2, 3]);
    fleet.report(0, |_| {}).await;
    fleet.look().await;
    let ended = fleet.show(id).await;
    assert_eq!(ended["state"], "succeeded");
    assert_eq!(ended["counts"], json!({ "verified": 4 }));
}

async fn going_back_leaves_what_others_changed(place: Place) {
    let mut fleet = Fleet::new(place, 1, json!({})).await;
    fleet.api.registry.push("redis:7", "r7", &["linux/amd64"]);
    let id = fleet.begin("bad").await;
    fleet.look().await;
    // Somebody adds a service while the version is on its way.
    let target = json!({ "apps": { "1001": { "appId": 1001, "appName": "Web Server", "services": [
        { "serviceId": 1, "serviceName": "nginx", "imageName": "nginx:1", "config": { "ports": ["80:80"] } },
        { "serviceId": 2, "serviceName": "cache", "imageName": "redis:7" } ] } } });
    let path = fleet.devices[0].path("/target-state");
    fleet
        .api
        .post(&path, &fleet.api.admin, target)
        .await
        .expect(200);
    fleet.look().await;
    assert_eq!(
        fleet.show(id).await["counts"],
        json!({ "updating": 1 }),
        "it is still ours"
    );
    fleet.reject(0).await;
    fleet.look().await;
    assert_eq!(fleet.show(id).await["state"], "rolling_back");
    let target = fleet
        .api
        .poll(&fleet.devices[0], &[])
        .await
        .expect(200)
        .json();
    let services = target["apps"]["1001"]["services"].as_array().unwrap();
    assert_eq!(services.len(), 2);
    assert_eq!(services[0]["imageName"], format!("nginx@{}", digest("v1")));
    assert_eq!(services[1]["imageName"], format!("redis@{}", digest("r7")));
}

async fn people_start_and_approve_where_the_policy_says_so(place: Place) {
    let rules = json!({ "update_strategy": "manual", "approve_batches": true });
    let mut fleet = Fleet::new(place, 4, rules).await;
    let id = fleet.begin("v2").await;
    fleet.look().await;
    let shown = fleet.show(id).await;
    assert_eq!(shown["state"], "pending");
    assert_eq!(shown["waits_for"], "somebody has to start it");
    fleet.order(id, "start", 200).await;
    fleet.look().await;
    let first = fleet.with("v2").await;
    assert_eq!(first.len(), 2);
    for n in &first {
        fleet.report(*n, |_| {}).await;
    }
    fleet.look().await;
    let shown = fleet.show(id).await;
    assert_eq!(shown["waits_for"], "somebody has to approve batch 2");
    assert_eq!(fleet.with("v2").await, first);
    fleet.order(id, "approve-batch", 200).await;
    fleet.order(id, "approve-batch", 409).await;
    fleet.look().await;
    assert_eq!(fleet.with("v2").await.len(), 4);
}

async fn c05_a_lease_that_was_taken_over_writes_nothing(place: Place) {
    let fleet = Fleet::new(place, 2, json!({})).await;
    let id = fleet.begin("v2").await;
    let app = &fleet.api.app;
    let now = holdfast_api::clock::now();
    let take = async |holder: &'static str, now: Timestamp| {
        let until = now.plus_ms(12_000);
        let taken = app
            .store
            .transact(move |tx| leases::take_at(tx, "rollouts", holder, now, until));
        taken.await.unwrap()
    };
    let stale = take("one", now).await.unwrap();
    assert_eq!(
        take("two", now).await,
        None,
        "while it is held, nobody else has it"
    );
    // It was stopped for a minute, or its clock is five minutes behind.
    let fresh = take("two", now.plus_ms(60_000)).await.unwrap();
    let act = async |lease: leases::Lease| {
        let logins = app.logins.clone();
        let stepped = app.store.transact(move |tx| {
            let around = Circumstances {
                logins: &logins,
                internal: &[],
                poll_interval_s: 30,
                now,
            };
            step(tx, &lease, id, around)
        });
        stepped.await.unwrap()
    };
    assert_eq!(act(stale).await, Step::Overtaken);
    assert_eq!(fleet.show(id).await["state"], "pending");
    assert_eq!(act(fresh).await, Step::Done(Vec::new()));
    assert_eq!(fleet.show(id).await["state"], "running");
}

async fn c48_what_no_device_can_use_is_no_rollout(place: Place) {
    let fleet = Fleet::new(place, 2, json!({})).await;
    fleet.api.registry.push("nginx:1", "arm", &["linux/arm64"]);
    let why = "it has nothing for the platform of any device".to_owned();
    assert_eq!(fleet.pushed().await, Begun::Nothing(why));
    let nobody = json!({ "image": "redis:7" });
    let refused = fleet
        .api
        .post(ROLLOUTS, &fleet.api.admin, nobody)
        .await
        .expect(409);
    assert_eq!(refused.json()["detail"], "no device runs it");
    // Where one of several is of such a platform, it is left out and says so.
    let other = fleet.api.enrol_as("linux/arm64").await;
    fleet
        .api
        .registry
        .push("nginx:1", "v1", &["linux/amd64", "linux/arm64"]);
    fleet.api.set(&other, "nginx:1").await.expect(200);
    let id = fleet.begin("v2").await;
    let shown = fleet.show(id).await;
    assert_eq!(shown["counts"], json!({ "unsupported": 1, "waiting": 2 }));
}

async fn c48_a_batch_larger_than_the_fleet_is_the_fleet(place: Place) {
    let fleet = Fleet::new(place, 3, json!({ "batch_size": 4_294_967_295_u32 })).await;
    let id = fleet.begin("v2").await;
    fleet.look().await;
    let shown = fleet.show(id).await;
    assert_eq!(
        (&shown["batch_count"], &shown["opened"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(fleet.with("v2").await.len(), 3);
}

async fn c48_a_window_that_stays_closed_touches_nobody(place: Place) {
    // Two days that are neither today nor tomorrow, wherever the clock of this machine is.
    let week = ["thu", "fri", "sat", "sun", "mon", "tue", "wed"];
    let days_since_1970 = holdfast_api::clock::now().as_millis() / 86_400_000;
    let today = usize::try_from(days_since_1970).unwrap() % 7;
    let days = [week[(today + 3) % 7], week[(today + 4) % 7]];
    let windows = json!([{ "days": days, "start": "03:00", "end": "04:00", "timezone": "UTC" }]);
    let rules = json!({ "update_strategy": "scheduled", "windows": windows });
    let fleet = Fleet::new(place, 2, rules).await;
    let id = fleet.begin("v2").await;
    for minutes in [0, 60, 24 * 60] {
        fleet.look_in(minutes).await;
    }
    let shown = fleet.show(id).await;
    assert_eq!(shown["state"], "pending");
    assert_eq!(shown["waits_for"], "its window is closed");
    assert!(shown["waits_until"].is_string(), "{shown}");
    assert_eq!(fleet.with("v2").await.len(), 0);
    // Somebody may change their mind.
    fleet.order(id, "cancel", 200).await;
    assert_eq!(fleet.show(id).await["state"], "cancelled");
}

async fn devices_that_go_silent_and_come_back_are_told_of_once(place: Place) {
    let fleet = Fleet::new(place, 2, json!({})).await;
    let told = async || {
        let path = "/api/v1/events?limit=200";
        let page = fleet
            .api
            .get(path, &fleet.api.admin)
            .await
            .expect(200)
            .json();
        let kinds = page["items"].as_array().unwrap().iter().rev();
        let kinds = kinds.map(|event| event["kind"].as_str().unwrap().to_owned());
        let about = ["device.online", "device.offline"];
        kinds
            .filter(|kind| about.contains(&kind.as_str()))
            .collect::<Vec<_>>()
    };
    let heard_of = holdfast_api::clock::now();
    for (row, at) in fleet.api.app.live.take_seen() {
        let seen = fleet
            .api
            .app
            .store
            .transact(move |tx| devices::seen(tx, row, at));
        seen.await.unwrap();
    }
    for minutes in [0, 0, 60, 60] {
        look(&fleet.api.app, heard_of.plus_ms(minutes * 60_000))
            .await
            .unwrap();
    }
    let online = ["device.online"; 2];
    assert_eq!(told().await, [online, ["device.offline"; 2]].concat());
}

async fn a_tag_that_moves_without_a_push_is_rolled_out(place: Place) {
    let mut fleet = Fleet::new(place, 2, json!({})).await;
    let app = fleet.api.app.clone();
    let now = holdfast_api::clock::now();
    let ask_again = async |content: &str| {
        fleet
            .api
            .registry
            .push("nginx:1", content, &["linux/amd64"]);
        let wanted = json!({ "reference": "nginx:1" });
        let path = "/api/v1/images/refresh";
        fleet
            .api
            .post(path, &fleet.api.admin, wanted)
            .await
            .expect(202);
        refresh_tags::run_once(&app, now.plus_ms(1_000))
            .await
            .unwrap();
        deliver::run_once(&app, now.plus_ms(1_000)).await.unwrap()
    };
    assert_eq!(ask_again("v1").await, 0, "it means what it meant");
    assert_eq!(ask_again("v2").await, 1);
    fleet.look().await;
    for n in fleet.with("v2").await {
        fleet.report(n, |_| {}).await;
    }
    fleet.look().await;
    let shown = fleet.show(1).await;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(shown["created_by"], "refresh");
}

async fn rollouts_are_found_by_what_they_are_about(place: Place) {
    let fleet = Fleet::new(place, 2, json!({})).await;
    let first = fleet.begin("v2").await;
    let second = fleet.begin("v3").await;
    let list = async |query: &str| {
        let path = format!("{ROLLOUTS}?{query}");
        let page = fleet.api.get(&path, &fleet.api.admin).await;
        page.expect(200).json()
    };
    let ids = async |query: &str| {
        let page = list(query).await;
        let items = page["items"].as_array().unwrap().iter();
        items.map(|one| one["id"].as_i64().unwrap()).collect()
    };
    let both: Vec<i64> = ids("").await;
    assert_eq!(both, [second, first]);
    let superseded: Vec<i64> = ids("state=superseded").await;
    assert_eq!(superseded, [first]);
    for image in ["nginx", "docker.io/library/nginx"] {
        let of_image: Vec<i64> = ids(&format!("image={image}")).await;
        assert_eq!(of_image, both);
    }
    let with_device: Vec<i64> = ids(&format!("device={}", fleet.devices[0].uuid)).await;
    assert_eq!(with_device, both);
    for none in [
        "image=redis",
        "fleet=north",
        "device=00000000-0000-4000-8000-000000000000",
    ] {
        let found: Vec<i64> = ids(none).await;
        assert_eq!(found, [] as [i64; 0], "{none}");
    }
    let page = list("limit=1").await;
    assert_eq!(page["items"][0]["id"], second);
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest: Vec<i64> = ids(&format!("limit=1&cursor={cursor}")).await;
    assert_eq!(rest, [first]);
    let path = format!("{ROLLOUTS}?image=nginx:1");
    let refused = fleet.api.get(&path, &fleet.api.admin).await.expect(422);
    assert_eq!(refused.json()["errors"][0]["pointer"], "/image");
}
