//! Facts about fleets: how they come into being, and what devices follow.

use holdfast_api::store::reports::Report;
use holdfast_api::store::rollouts::members;
use holdfast_api::store::{
    StoreError, Tx, devices, generations, releases, reports, rollouts, targets,
};
use holdfast_api::tasks::advance_rollouts::run_once;
use holdfast_api::{clock, fleets};
use holdfast_domain::rollout::state::State;
use holdfast_domain::rollout::tick::Standing;
use holdfast_proto::id::DeviceId;
use holdfast_proto::time::Timestamp;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Api, Device, target};
use crate::support::registry::digest;

crate::on_both_databases![
    a_fleet_is_made_described_counted_and_removed,
    a_fleet_that_somebody_names_comes_into_being,
    what_is_no_fleet_is_refused_by_field,
    a_devices_own_target_counts_until_it_is_cleared,
    late_joiners_get_what_was_rolled_out_completely,
    a_device_that_moves_gets_the_other_fleets_release,
    a_device_is_kept_at_a_release_and_left_out,
    a_device_on_other_hardware_is_not_given_what_it_cannot_run,
];

const FLEETS: &str = "/api/v1/fleets";

/// A new device in this fleet.
pub async fn join(api: &Api, fleet: &str) -> Device {
    let device = api.enrol().await;
    label(api, &device, fleet).await;
    device
}

async fn label(api: &Api, device: &Device, fleet: &str) {
    let body = json!({ "labels": { "fleet": fleet } });
    api.call("PATCH", &device.path(""), &api.admin, Some(body))
        .await
        .expect(200);
}

/// Makes a release of one service.
pub async fn release(api: &Api, fleet: &str, image: &str) -> Value {
    let path = format!("{FLEETS}/{fleet}/target-state");
    let answer = api
        .call("PUT", &path, &api.admin, Some(target(image)))
        .await;
    assert!(
        matches!(answer.status.as_u16(), 200 | 201),
        "{:?}",
        answer.json()
    );
    answer.json()
}

/// Has the rollout of a release succeed: its devices do as they are told, and time flies. One that has no rollout is
/// taken for rolled out.
pub async fn complete(api: &Api, fleet: &'static str, number: i64) {
    let scope = format!("fleet:{fleet}");
    let active = api.app.store.read(move |tx| {
        let active = rollouts::active_release(tx, &scope)?;
        let active = active.map_or(Ok(None), |id| rollouts::find(tx, id))?;
        Ok::<_, StoreError>(active.filter(|found| found.tag == number.to_string()))
    });
    let Some(active) = active.await.unwrap() else {
        let logins = api.app.logins.clone();
        let done = api.app.store.transact(move |tx| {
            let release = releases::numbered(tx, fleet, number)?.unwrap();
            fleets::completed(tx, &logins, release.listed.id, clock::now())
        });
        return done.await.unwrap();
    };
    let begun = clock::now();
    for minutes in 0..60 {
        let now = begun.plus_ms(minutes * 60_000);
        run_once(&api.app, "tests", || now).await.unwrap();
        let id = active.id;
        let state = api.app.store.transact(move |tx| {
            for device in members::all(tx, id)? {
                if matches!(device.standing, Standing::Updating { .. }) {
                    obey(tx, device.device, now)?;
                }
            }
            Ok::<_, StoreError>(rollouts::find(tx, id)?.unwrap().state)
        });
        if state.await.unwrap() == State::Succeeded {
            return;
        }
    }
    panic!("release {number} of {fleet} is not rolled out");
}

/// The device reports that it runs what it was told to.
fn obey(tx: &mut Tx<'_>, uuid: DeviceId, now: Timestamp) -> Result<(), StoreError> {
    let device = devices::find(tx, uuid)?.unwrap();
    let target = targets::find(tx, device.id)?.unwrap();
    let told: Value = serde_json::from_str(&target.body).unwrap();
    let mut apps = told["apps"].clone();
    for app in apps.as_object_mut().unwrap().values_mut() {
        let services = app["services"].as_array().unwrap().iter();
        let services = services.map(|service| {
            let content = &service["pin"]["expected"]["configDigest"];
            let report = json!({ "configDigest": content, "state": "running", "verified": true });
            (service["serviceName"].as_str().unwrap().to_owned(), report)
        });
        *app = json!({ "services": services.collect::<serde_json::Map<_, _>>() });
    }
    let body = json!({ "sequence": 1, "agentVersion": "1", "generation": target.generation,
        "status": "converged", "apps": apps });
    let report = Report {
        sequence: u64::try_from(now.as_millis()).unwrap(),
        journal: String::new(),
        generation: target.generation,
        status: "converged".to_owned(),
        body: body.to_string(),
        received_at: now,
    };
    reports::put(tx, device.id, &report, "")?;
    generations::verify(tx, device.id, target.generation, now)
}

/// What a device is served: the generation and its images.
pub async fn served(api: &Api, device: &Device) -> (u64, Vec<String>) {
    // What the feed would do:
    let uuid = device.uuid.parse().unwrap();
    api.app.live.refresh(&api.app.store, uuid).await.unwrap();
    let state = api.poll(device, &[]).await.expect(200).json();
    let apps = state["apps"].as_object().unwrap().values();
    let services = apps.flat_map(|app| app["services"].as_array().unwrap());
    let images = services.map(|service| service["imageName"].as_str().unwrap().to_owned());
    (state["generation"].as_u64().unwrap(), images.collect())
}

fn nginx(content: &str) -> Vec<String> {
    vec![format!("nginx@{}", digest(content))]
}

async fn causes(api: &Api, device: &Device) -> Vec<String> {
    let history = api
        .get(&device.path("/target-state/history"), &api.admin)
        .await;
    let history = history.expect(200).json();
    let items = history["items"].as_array().unwrap().iter();
    items
        .map(|item| item["cause"].as_str().unwrap().to_owned())
        .collect()
}

async fn actions(api: &Api, subject: &str) -> Vec<String> {
    let path = format!("/api/v1/audit?subject={subject}");
    let rows = api.get(&path, &api.admin).await.expect(200).json();
    let items = rows["items"].as_array().unwrap().iter();
    items
        .map(|row| row["action"].as_str().unwrap().to_owned())
        .collect()
}

async fn a_fleet_is_made_described_counted_and_removed(place: Place) {
    let api = Api::start(place).await;
    let policy = json!({ "name": "careful", "image_pattern": "*" });
    let policy = api
        .post("/api/v1/policies", &api.admin, policy)
        .await
        .expect(201)
        .json();
    let body = json!({ "name": "north sea/1", "description": "ships", "policy": policy["id"] });
    let made = api
        .post(FLEETS, &api.admin, body.clone())
        .await
        .expect(201)
        .json();
    assert_eq!(made["policy"], policy["id"]);
    assert_eq!(
        (&made["devices"], &made["release"]),
        (&json!(0), &json!(null))
    );
    let refused = api.post(FLEETS, &api.admin, body).await.expect(409);
    assert_eq!(refused.code(), "known_fleet");
    let path = format!("{FLEETS}/north%20sea%2F1");
    assert_eq!(api.get(&path, &api.admin).await.expect(200).json(), made);
    let change = json!({ "policy": null });
    let changed = api
        .call("PATCH", &path, &api.admin, Some(change))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&changed["policy"], &changed["description"]),
        (&json!(null), &json!("ships"))
    );
    let device = join(&api, "north sea/1").await;
    let shown = api.get(FLEETS, &api.admin).await.expect(200).json();
    assert_eq!(shown["items"][0]["devices"], 1);
    let refused = api
        .call("DELETE", &path, &api.admin, None)
        .await
        .expect(409);
    assert_eq!(refused.code(), "fleet_not_empty");
    api.call("DELETE", &device.path(""), &api.admin, None)
        .await
        .expect(204);
    let viewer = api.token("viewer").await;
    api.call("DELETE", &path, &viewer, None).await.expect(403);
    api.call("DELETE", &path, &api.admin, None)
        .await
        .expect(204);
    api.get(&path, &api.admin).await.expect(404);
    assert_eq!(
        actions(&api, "north%20sea%2F1").await,
        ["fleet.remove", "fleet.change", "fleet.create"]
    );
}

async fn a_fleet_that_somebody_names_comes_into_being(place: Place) {
    let api = Api::start(place).await;
    join(&api, "north").await;
    join(&api, "north").await;
    let key = api.key(json!({ "labels": { "fleet": "south" } })).await;
    let body = json!({ "agentVersion": "1", "labels": { "fleet": "elsewhere" },
        "platform": { "os": "linux", "architecture": "arm64" } });
    api.post("/api/v1/enroll", &key, body).await.expect(201);
    // A label that names nothing makes no fleet, and nobody's labels are refused for it.
    join(&api, " ").await;
    let all = api.get(FLEETS, &api.admin).await.expect(200).json();
    let all: Vec<_> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fleet| {
            (
                fleet["name"].as_str().unwrap().to_owned(),
                fleet["devices"].clone(),
            )
        })
        .collect();
    assert_eq!(
        all,
        [
            ("north".to_owned(), json!(2)),
            ("south".to_owned(), json!(1))
        ]
    );
    let events = api
        .get("/api/v1/events?kind=fleet.created", &api.admin)
        .await
        .json();
    assert_eq!(events["items"].as_array().unwrap().len(), 2);
}

async fn what_is_no_fleet_is_refused_by_field(place: Place) {
    let api = Api::start(place).await;
    for (body, pointer) in [
        (json!({ "name": " " }), "/name"),
        (json!({ "name": "x".repeat(257) }), "/name"),
        (json!({ "name": "a\nb" }), "/name"),
        (
            json!({ "name": "a", "description": "x".repeat(1_001) }),
            "/description",
        ),
        (json!({ "name": "a", "policy": 99 }), "/policy"),
        (json!({ "name": "a", "colour": 1 }), "/colour"),
    ] {
        let refused = api.post(FLEETS, &api.admin, body.clone()).await.expect(422);
        assert_eq!(refused.pointers(), [pointer], "{body}");
    }
    for path in ["a%00b", "%20", "a%FFb"] {
        api.get(&format!("{FLEETS}/{path}"), &api.admin)
            .await
            .expect(400);
    }
    let all = api.get(FLEETS, &api.admin).await.expect(200).json();
    assert_eq!(all["items"], json!([]), "nothing was stored");
}

async fn a_devices_own_target_counts_until_it_is_cleared(place: Place) {
    let api = Api::start(place).await;
    let device = join(&api, "north").await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.registry.push("nginx:2", "v2", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    assert_eq!(release(&api, "north", "nginx:2").await["number"], 1);
    complete(&api, "north", 1).await;
    assert_eq!(served(&api, &device).await, (1, nginx("v1")));
    let follows = api
        .get(&device.path("/release"), &api.admin)
        .await
        .expect(200)
        .json();
    assert_eq!(
        follows,
        json!({ "fleet": "north", "own_target": true, "pinned": null, "fleet_release": 1,
                "generation": 1 })
    );
    let path = device.path("/target-state");
    let follows = api
        .call("DELETE", &path, &api.admin, None)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&follows["own_target"], &follows["generation"]),
        (&json!(false), &json!(2))
    );
    assert_eq!(served(&api, &device).await, (2, nginx("v2")));
    // Once more changes nothing.
    api.call("DELETE", &path, &api.admin, None)
        .await
        .expect(200);
    assert_eq!(served(&api, &device).await.0, 2);
    // The very content of the release, but the device's own: no new generation, and yet it counts.
    api.set(&device, "nginx:2").await.expect(200);
    assert_eq!(served(&api, &device).await.0, 2);
    let follows = api.get(&device.path("/release"), &api.admin).await.json();
    assert_eq!(follows["own_target"], true);
    // Outside of a fleet there is nothing to follow.
    label(&api, &device, "").await;
    api.call("DELETE", &path, &api.admin, None)
        .await
        .expect(200);
    assert_eq!(served(&api, &device).await, (3, Vec::new()));
    assert_eq!(causes(&api, &device).await, ["cleared", "release:1", "set"]);
    let done = actions(&api, &device.uuid).await;
    assert!(
        done.starts_with(&["target.set".into(), "target.clear".into()]),
        "{done:?}"
    );
    assert!(done.contains(&"target.own".to_owned()), "{done:?}");
}

async fn late_joiners_get_what_was_rolled_out_completely(place: Place) {
    let api = Api::start(place).await;
    let early = join(&api, "north").await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    release(&api, "north", "nginx:1").await;
    // Not before it is completed.
    let late = join(&api, "north").await;
    assert_eq!(served(&api, &late).await, (0, Vec::new()));
    complete(&api, "north", 1).await;
    assert_eq!(served(&api, &late).await, (1, nginx("v1")));
    // The tag moves on; the release does not.
    api.registry.push("nginx:1", "v2", &["linux/amd64"]);
    let asked = api.registry.asked().len();
    let key = api.key(json!({ "labels": { "fleet": "north" } })).await;
    let body = json!({ "agentVersion": "1",
        "platform": { "os": "linux", "architecture": "amd64" } });
    let later = api
        .post("/api/v1/enroll", &key, body)
        .await
        .expect(201)
        .json();
    let later = Device {
        uuid: later["uuid"].as_str().unwrap().to_owned(),
        token: later["token"].as_str().unwrap().to_owned(),
    };
    assert_eq!(served(&api, &later).await, (1, nginx("v1")));
    assert_eq!(causes(&api, &later).await, ["release:1"]);
    assert_eq!(api.registry.asked().len(), asked, "no registry was asked");
    assert_eq!(served(&api, &early).await, (1, nginx("v1")));
}

async fn a_device_that_moves_gets_the_other_fleets_release(place: Place) {
    let api = Api::start(place).await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.registry.push("nginx:2", "v2", &["linux/amd64"]);
    for (fleet, image) in [("north", "nginx:1"), ("south", "nginx:2")] {
        api.post(FLEETS, &api.admin, json!({ "name": fleet }))
            .await
            .expect(201);
        // With nobody in the fleet there is nothing to roll out.
        let made = release(&api, fleet, image).await;
        assert_eq!(
            (&made["is_current"], &made["rollout"]),
            (&json!(true), &json!(null))
        );
    }
    let device = join(&api, "north").await;
    assert_eq!(served(&api, &device).await, (1, nginx("v1")));
    let body = json!({ "release": 1 });
    api.call("PUT", &device.path("/release"), &api.admin, Some(body))
        .await
        .expect(200);
    label(&api, &device, "south").await;
    assert_eq!(served(&api, &device).await, (2, nginx("v2")));
    let follows = api.get(&device.path("/release"), &api.admin).await.json();
    assert_eq!(
        follows["pinned"],
        json!(null),
        "that was a release of the other fleet"
    );
    // Nothing stops because a device is taken out of its fleet, or comes into an empty one.
    label(&api, &device, "").await;
    label(&api, &device, "east").await;
    assert_eq!(served(&api, &device).await, (2, nginx("v2")));
}

async fn a_device_is_kept_at_a_release_and_left_out(place: Place) {
    let api = Api::start(place).await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.registry.push("nginx:2", "v2", &["linux/amd64"]);
    let (kept, other) = (join(&api, "north").await, join(&api, "north").await);
    release(&api, "north", "nginx:1").await;
    complete(&api, "north", 1).await;
    release(&api, "north", "nginx:2").await;
    let pin = |number: i64| Some(json!({ "release": number }));
    let path = kept.path("/release");
    let follows = api
        .call("PUT", &path, &api.admin, pin(1))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&follows["pinned"], &follows["generation"]),
        (&json!(1), &json!(1))
    );
    let members = api.app.store.read(|tx| fleets::members(tx, "north"));
    let members: Vec<String> = members
        .await
        .unwrap()
        .iter()
        .map(|device| device.uuid.to_string())
        .collect();
    assert_eq!(members, [&*other.uuid]);
    complete(&api, "north", 2).await;
    assert_eq!(served(&api, &kept).await, (1, nginx("v1")));
    assert_eq!(served(&api, &other).await, (2, nginx("v2")));
    let fleet = api.get(&format!("{FLEETS}/north"), &api.admin).await.json();
    assert_eq!(
        (&fleet["pinned"], &fleet["release"]),
        (&json!(1), &json!(2))
    );
    // Ahead of the fleet, too.
    api.call("PUT", &path, &api.admin, pin(2)).await.expect(200);
    assert_eq!(served(&api, &kept).await, (2, nginx("v2")));
    api.call("PUT", &path, &api.admin, pin(1)).await.expect(200);
    let follows = api
        .call("DELETE", &path, &api.admin, None)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&follows["pinned"], &follows["generation"]),
        (&json!(null), &json!(4))
    );
    assert_eq!(served(&api, &kept).await, (4, nginx("v2")));

    let refused = api.call("PUT", &path, &api.admin, pin(9)).await.expect(422);
    assert_eq!(refused.pointers(), ["/release"]);
    api.set(&kept, "nginx:1").await.expect(200);
    let refused = api.call("PUT", &path, &api.admin, pin(1)).await.expect(409);
    assert_eq!(refused.code(), "own_target");
    let nowhere = api.enrol().await;
    let refused = api
        .call("PUT", &nowhere.path("/release"), &api.admin, pin(1))
        .await;
    assert_eq!(refused.expect(409).code(), "no_fleet");
    let viewer = api.token("viewer").await;
    api.call("PUT", &path, &viewer, pin(1)).await.expect(403);
}

async fn a_device_on_other_hardware_is_not_given_what_it_cannot_run(place: Place) {
    let api = Api::start(place).await;
    api.registry
        .push("nginx:1", "v1", &["linux/amd64", "linux/arm64"]);
    api.post(FLEETS, &api.admin, json!({ "name": "north" }))
        .await
        .expect(201);
    release(&api, "north", "nginx:1").await;
    // Another platform than any at the time of the release, and yet in it.
    let arm = api.enrol_as("linux/arm64").await;
    label(&api, &arm, "north").await;
    assert_eq!(served(&api, &arm).await, (1, nginx("v1")));
    let odd = api.enrol_as("linux/riscv64").await;
    label(&api, &odd, "north").await;
    assert_eq!(served(&api, &odd).await, (0, Vec::new()));
    let events = api
        .get("/api/v1/events?kind=device.release_unfit", &api.admin)
        .await
        .json();
    assert_eq!(events["items"][0]["device"], odd.uuid.as_str());
    assert_eq!(events["items"][0]["detail"]["platform"], "linux/riscv64");
    let body = Some(json!({ "release": 1 }));
    let refused = api
        .call("PUT", &odd.path("/release"), &api.admin, body)
        .await
        .expect(422);
    assert_eq!(refused.code(), "unsupported_platform");
    let follows = api.get(&odd.path("/release"), &api.admin).await.json();
    assert_eq!(follows["pinned"], json!(null), "nothing was stored");
}
