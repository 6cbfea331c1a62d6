//! Facts about credentials for registries, and about asking registries again.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use holdfast_api::clock;
use holdfast_api::tasks::refresh_tags;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Api, Device, settings, target};
use crate::support::registry::digest;

crate::on_both_databases![
    the_most_special_credentials_are_used,
    a_secret_is_in_no_answer_no_log_and_no_row,
    with_another_key_file_they_are_refused_and_digests_stay,
    removed_credentials_are_used_no_more,
    a_moved_tag_is_noticed_and_changes_no_target,
    a_tag_that_moves_back_vanishes_or_returns_is_an_event,
    a_restart_asks_for_nothing_before_its_time,
    two_replicas_ask_once,
    c37_a_registry_that_wants_peace_gets_it,
    what_waits_for_one_digest_keeps_the_others,
];

const CANARY: &str = "canary-pässword-4711";

fn with_refresh(
    seconds: u64,
) -> impl FnOnce(holdfast_api::config::Settings) -> holdfast_api::config::Settings {
    move |mut settings| {
        settings.refresh_interval = Some(Duration::from_secs(seconds));
        settings
    }
}

async fn put(api: &Api, host: &str, body: Value) -> crate::support::api::Answer {
    let path = format!("/api/v1/registries/{host}/credentials");
    api.call("PUT", &path, &api.admin, Some(body)).await
}

fn password(user: &str) -> Value {
    json!({"username": user, "password": CANARY})
}

fn with(mut body: Value, name: &str, value: &str) -> Value {
    body[name] = value.into();
    body
}

async fn label(api: &Api, device: &Device, fleet: &str) {
    let body = json!({"labels": {"fleet": fleet}});
    api.call("PATCH", &device.path(""), &api.admin, Some(body))
        .await
        .expect(200);
}

async fn events(api: &Api, kind: &str) -> Vec<Value> {
    let path = format!("/api/v1/events?kind={kind}");
    let page = api.get(&path, &api.admin).await.expect(200).json();
    page["items"].as_array().unwrap().clone()
}

/// Asks for all that is due now, whatever was planned.
async fn refresh(api: &Api) {
    api.post("/api/v1/images/refresh", &api.admin, json!({}))
        .await
        .expect(202);
    refresh_tags::run_once(&api.app, clock::now())
        .await
        .unwrap();
}

async fn the_most_special_credentials_are_used(place: Place) {
    let api = Api::start(place).await;
    let image = "reg.example/web:1";
    api.registry.push(image, "v1", &["linux/amd64"]);
    let devices = [api.enrol().await, api.enrol().await, api.enrol().await];
    label(&api, &devices[0], "north").await;
    label(&api, &devices[1], "north").await;
    put(&api, "reg.example", password("everybody"))
        .await
        .expect(200);
    put(
        &api,
        "reg.example",
        with(password("north"), "fleet", "north"),
    )
    .await
    .expect(200);
    let own = with(password("own"), "device", &devices[0].uuid);
    put(&api, "reg.example", own).await.expect(200);
    for device in &devices {
        api.set(device, image).await.expect(200);
    }
    let logins = api.registry.logins();
    for (login, user) in logins.iter().zip(["own", "north", "everybody"]) {
        assert!(login.contains(&format!("\"{user}\"")), "{login}");
    }
    assert_eq!(logins.len(), 3);
    let listed = api
        .get("/api/v1/registries/reg.example/credentials", &api.admin)
        .await
        .expect(200)
        .json();
    let users: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["username"].as_str().unwrap())
        .collect();
    assert_eq!(users, ["everybody", "north", "own"]);
    // The background asks with the same logins, each once.
    refresh(&api).await;
    assert_eq!(api.registry.logins().len(), 6);
}

async fn a_secret_is_in_no_answer_no_log_and_no_row(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let mut seen = Vec::new();
    for body in [
        password("reader"),
        json!({"identity_token": CANARY, "fleet": "north"}),
        json!({"registry_token": CANARY, "device": device.uuid}),
    ] {
        seen.push(put(&api, "reg.example:5000", body).await.expect(200));
    }
    // Refusals do not quote it either.
    for wrong in [
        json!({"password": CANARY}),
        json!({"username": CANARY, "password": [CANARY]}),
        json!({"username": "a", "password": CANARY, "identity_token": CANARY}),
        json!({"username": "a", "password": CANARY, "fleet": "x", "device": device.uuid}),
        json!({"username": "a", "password": CANARY, "device": "67e55044-10b1-426f-9247-bb680e5fe0c8"}),
        json!({"identity_token": CANARY, "username": "a"}),
    ] {
        let refused = put(&api, "reg.example:5000", wrong.clone())
            .await
            .expect(422);
        let text = String::from_utf8(refused.bytes.clone()).unwrap();
        assert!(!text.contains(CANARY), "{wrong}: {text}");
    }
    put(&api, "word", password("a")).await.expect(400);
    for path in [
        "/api/v1/registries/credentials",
        "/api/v1/registries/reg.example:5000/credentials",
        "/api/v1/audit",
        "/api/v1/events",
    ] {
        seen.push(api.get(path, &api.admin).await.expect(200));
    }
    for answer in &seen {
        assert!(!String::from_utf8_lossy(&answer.bytes).contains("canary"));
    }
    let audit = api
        .get("/api/v1/audit?subject=reg.example:5000", &api.admin)
        .await;
    assert_eq!(audit.json()["items"].as_array().unwrap().len(), 3);
    // Every text of the table, as the database has it.
    let rows = api
        .app
        .store
        .read(|tx| {
            tx.query(
                "select registry || scope || kind || coalesce(username, '') || sealed || key_id
                 from registry_credentials",
                holdfast_api::params![],
            )
        })
        .await
        .unwrap();
    assert_eq!(rows.len(), 3);
    // "canary" in hex.
    let plain = "63616e617279";
    for row in rows {
        let text = row.text(0).unwrap();
        assert!(!text.contains("canary") && !text.contains(plain), "{text}");
    }
    // Nor is it anywhere in the files of the server, the key's own among them.
    for entry in std::fs::read_dir(api.place.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let found = bytes.windows(6).any(|window| window == b"canary");
        assert!(!found, "{}", path.display());
    }
}

async fn with_another_key_file_they_are_refused_and_digests_stay(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let image = "reg.example/web:1";
    api.registry.push(image, "v1", &["linux/amd64"]);
    put(&api, "reg.example", password("reader"))
        .await
        .expect(200);
    api.set(&device, image).await.expect(200);
    let key = api.place.dir.path().join("credentials-key");
    let mode = std::fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let Api { place, app, .. } = api;
    drop(app);
    let first = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let api = Api::start(place).await;
    let set = api.set(&device, image).await.expect(200).json();
    let resolution = &set["resolutions"][0];
    assert_eq!(set["generation"], 1);
    assert_eq!(resolution["status"], "stale");
    let error = resolution["error"].as_str().unwrap();
    assert!(
        error.contains("was") || error.contains("were encrypted with key"),
        "{error}"
    );
    assert!(
        api.registry.logins().is_empty(),
        "nobody was asked without them"
    );
    let path = "/api/v1/registries/reg.example/credentials";
    let listed = api.get(path, &api.admin).await.json();
    assert_eq!(listed["items"][0]["error"].as_str().unwrap(), error);
    // The right file again, as an operator would put it there.
    let Api { place, app, .. } = api;
    drop(app);
    std::fs::write(&key, first).unwrap();
    let api = Api::start(place).await;
    let listed = api.get(path, &api.admin).await.json();
    assert_eq!(listed["items"][0]["error"], Value::Null);
}

#[tokio::test]
async fn a_key_file_that_others_may_read_is_refused() {
    let place = Place::sqlite();
    let settings = settings(&place);
    let key = &settings.credentials_key_file;
    std::fs::write(key, "00".repeat(32)).unwrap();
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (_stop, stopping) = tokio::sync::watch::channel(false);
    let registry = std::sync::Arc::new(crate::support::registry::Registry::default());
    let started =
        holdfast_api::program::assemble(&settings, registry, std::sync::Arc::default(), stopping);
    let error = started.await.unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
}

async fn removed_credentials_are_used_no_more(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let image = "reg.example/web:1";
    api.registry.push(image, "v1", &["linux/amd64"]);
    put(
        &api,
        "reg.example",
        with(password("own"), "device", &device.uuid),
    )
    .await
    .expect(200);
    api.set(&device, image).await.expect(200);
    let path = "/api/v1/registries/reg.example/credentials";
    let mine = format!("{path}?device={}", device.uuid);
    api.call("DELETE", path, &api.admin, None).await.expect(404);
    api.call("DELETE", &mine, &api.admin, None)
        .await
        .expect(204);
    // What it knew stays known, while the registry is away.
    api.registry.lose(image);
    let set = api.set(&device, image).await.expect(200).json();
    let service = &set["apps"]["1001"]["services"][0];
    assert_eq!(
        service["imageName"],
        format!("reg.example/web@{}", digest("v1"))
    );
    assert_eq!(set["resolutions"][0]["status"], "stale");
    assert_eq!(api.registry.logins().last().unwrap(), "");
}

async fn a_moved_tag_is_noticed_and_changes_no_target(place: Place) {
    let api = Api::start_with(place, with_refresh(100)).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    api.registry.push("nginx:1", "v2", &["linux/amd64"]);
    let now = clock::now();
    let next = refresh_tags::run_once(&api.app, now)
        .await
        .unwrap()
        .unwrap();
    let wait = next.since_ms(now);
    assert!((80_000..=110_000).contains(&wait), "{wait}");
    assert_eq!(api.registry.asked().len(), 1, "not before its time");
    refresh_tags::run_once(&api.app, next).await.unwrap();
    assert_eq!(api.registry.asked().len(), 2);
    let [moved] = events(&api, "image.tag_moved").await.try_into().unwrap();
    assert_eq!(moved["subject"], "docker.io/library/nginx:1");
    assert_eq!(moved["detail"]["from"], digest("v1").to_string());
    assert_eq!(moved["detail"]["to"], digest("v2").to_string());
    assert_eq!(api.poll(&device, &[]).await.json()["generation"], 1);
    let history = api
        .get("/api/v1/images/history?reference=nginx:1", &api.admin)
        .await
        .expect(200)
        .json();
    assert_eq!(history["reference"], "docker.io/library/nginx:1");
    let digests: Vec<_> = history["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["digest"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        digests,
        [digest("v2").to_string(), digest("v1").to_string()]
    );
}

async fn a_tag_that_moves_back_vanishes_or_returns_is_an_event(place: Place) {
    let api = Api::start_with(place, with_refresh(100)).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    for content in ["v2", "v1"] {
        api.registry.push("nginx:1", content, &["linux/amd64"]);
        refresh(&api).await;
    }
    let [back] = events(&api, "image.tag_moved_back")
        .await
        .try_into()
        .unwrap();
    assert_eq!(back["detail"]["to"], digest("v1").to_string());
    api.registry.remove("nginx:1");
    for _ in 0..3 {
        refresh(&api).await;
    }
    let [gone] = events(&api, "image.tag_vanished").await.try_into().unwrap();
    assert_eq!(gone["detail"]["digest"], digest("v1").to_string());
    let shown = api
        .get(&device.path("/target-state"), &api.admin)
        .await
        .json();
    assert_eq!(shown["resolutions"][0]["status"], "stale");
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    refresh(&api).await;
    assert_eq!(events(&api, "image.tag_returned").await.len(), 1);
    assert_eq!(events(&api, "image.tag_moved").await.len(), 1);
    assert_eq!(api.poll(&device, &[]).await.json()["generation"], 1);
}

async fn a_restart_asks_for_nothing_before_its_time(place: Place) {
    let api = Api::start_with(place, with_refresh(100)).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    let Api { place, app, .. } = api;
    drop(app);
    let api = Api::start_with(place, with_refresh(100)).await;
    let now = clock::now();
    let next = refresh_tags::run_once(&api.app, now)
        .await
        .unwrap()
        .unwrap();
    assert!(next.since_ms(now) > 80_000);
    assert!(api.registry.asked().is_empty());
}

async fn two_replicas_ask_once(place: Place) {
    let api = Api::start_with(place, with_refresh(100)).await;
    for n in 0..20 {
        let device = api.enrol().await;
        let image = format!("nginx:{n}");
        api.registry.push(&image, "v1", &["linux/amd64"]);
        api.set(&device, &image).await.expect(200);
    }
    let other = std::sync::Arc::clone(&api.app);
    api.post("/api/v1/images/refresh", &api.admin, json!({}))
        .await
        .expect(202);
    // What one of them has asked for is not due again before the interval is over.
    let now = clock::now();
    let (one, two) = tokio::join!(
        refresh_tags::run_once(&api.app, now),
        refresh_tags::run_once(&other, now)
    );
    one.unwrap();
    two.unwrap();
    assert_eq!(api.registry.asked().len(), 40);
}

async fn c37_a_registry_that_wants_peace_gets_it(place: Place) {
    let api = Api::start_with(place, with_refresh(100)).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    api.registry.limit("nginx:1", Duration::from_mins(30));
    let later = clock::now().plus_ms(200_000);
    let before = clock::now();
    let next = refresh_tags::run_once(&api.app, later)
        .await
        .unwrap()
        .unwrap();
    assert!(next.since_ms(before) >= 1_800_000);
}

async fn what_waits_for_one_digest_keeps_the_others(place: Place) {
    let api = Api::start_with(place, with_refresh(100)).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let mut body = target("nginx:1");
    body["apps"]["1001"]["services"]
        .as_array_mut()
        .unwrap()
        .push(json!({"serviceId": 2, "serviceName": "late", "imageName": "late:1"}));
    api.post(&device.path("/target-state"), &api.admin, body)
        .await
        .expect(200);
    api.registry.push("nginx:1", "v2", &["linux/amd64"]);
    api.registry.push("late:1", "l1", &["linux/amd64"]);
    refresh(&api).await;
    let shown = api
        .get(&device.path("/target-state"), &api.admin)
        .await
        .json();
    let services = &shown["apps"]["1001"]["services"];
    assert_eq!(shown["generation"], 2);
    assert_eq!(services[0]["imageName"], format!("nginx@{}", digest("v1")));
    assert_eq!(services[1]["imageName"], format!("late@{}", digest("l1")));
}

#[tokio::test]
async fn an_answer_is_kept_for_its_time_for_everybody() {
    let api = Api::start_with(Place::sqlite(), |mut settings| {
        settings.digest_cache_s = 3_600;
        settings
    })
    .await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    for _ in 0..3 {
        let device = api.enrol().await;
        api.set(&device, "nginx:1").await.expect(200);
    }
    assert_eq!(api.registry.asked().len(), 1);
    // A refresh asks all the same, and what it brings counts from then on.
    api.registry.push("nginx:1", "v2", &["linux/amd64"]);
    // Without an interval nothing but failures is due; the resolver is asked as the task would.
    let device = api.enrol().await;
    let set = api.set(&device, "nginx:1").await.expect(200).json();
    assert_eq!(
        set["apps"]["1001"]["services"][0]["imageName"],
        format!("nginx@{}", digest("v1"))
    );
}

#[tokio::test]
async fn a_refresh_names_what_some_target_names() {
    let api = Api::start_with(Place::sqlite(), with_refresh(100)).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    let ask = |body: Value| api.post("/api/v1/images/refresh", &api.admin, body);
    let one = ask(json!({"reference": "docker.io/library/nginx:1"})).await;
    assert_eq!(one.expect(202).json()["questions"], 1);
    ask(json!({"reference": "redis:7"})).await.expect(422);
    let pinned = format!("nginx@{}", digest("v1"));
    ask(json!({ "reference": pinned })).await.expect(422);
    ask(json!({"reference": "Not A Reference"}))
        .await
        .expect(422);
    let history = |query: &str| {
        let path = format!("/api/v1/images/history{query}");
        async { api.get(&{ path }, &api.admin).await }
    };
    history("").await.expect(400);
    history("?reference=%20").await.expect(400);
}
