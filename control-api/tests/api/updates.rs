//! Facts about update reports and newer tags.

use std::time::Duration;

use holdfast_api::clock;
use holdfast_api::tasks::refresh_tags;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Api, Device};
use crate::support::registry::digest;

crate::on_both_databases![
    a_report_tells_what_runs_and_what_the_registry_has,
    a_fleets_report_tells_each_image_once,
    newer_tags_are_in_the_report_once_they_were_looked_for,
];

/// Reports that the device runs its target's only service, made from this content.
async fn runs(api: &Api, device: &Device, sequence: u64, image: &str, content: &str) {
    let name = image.split(':').next().unwrap();
    let body = json!({"sequence": sequence, "agentVersion": "1", "generation": 1,
        "status": "converged", "apps": {"1001": {"services": {"nginx": {
            "containerId": format!("id of {content}"), "containerName": "1001_nginx_1",
            "image": format!("{name}@{}", digest(content)),
            "configDigest": digest(&format!("config {content} linux/amd64")).to_string(),
            "state": "running"}}}}});
    api.call(
        "PUT",
        &device.path("/current-state"),
        &device.token,
        Some(body),
    )
    .await
    .expect(204);
}

async fn updates(api: &Api, device: &Device) -> Vec<Value> {
    let answer = api.get(&device.path("/updates"), &api.admin).await;
    let body = answer.expect(200).json();
    assert_eq!(body["deviceUuid"], device.uuid.as_str());
    body["updates"].as_array().unwrap().clone()
}

async fn refresh(api: &Api) {
    api.post("/api/v1/images/refresh", &api.admin, json!({}))
        .await
        .expect(202);
    refresh_tags::run_once(&api.app, clock::now())
        .await
        .unwrap();
}

async fn a_report_tells_what_runs_and_what_the_registry_has(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    assert!(updates(&api, &device).await.is_empty());
    api.registry
        .push("nginx:1", "v1", &["linux/arm64", "linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    runs(&api, &device, 1, "nginx:1", "v1").await;
    let asked = api.registry.asked().len();
    let [update] = updates(&api, &device).await.try_into().unwrap();
    assert_eq!(
        update,
        json!({"containerName": "1001_nginx_1", "containerId": "id of v1",
            "imageReference": "nginx:1",
            "platform": {"os": "linux", "architecture": "amd64"},
            "runningDigest": digest("v1").to_string(),
            "registryDigest": digest("v1").to_string(), "hasUpdate": false, "tag": "1",
            "isManifestList": true, "state": "running", "status": "up_to_date", "error": null})
    );
    api.registry
        .push("nginx:1", "v2", &["linux/arm64", "linux/amd64"]);
    refresh(&api).await;
    let [update] = updates(&api, &device).await.try_into().unwrap();
    assert_eq!(update["hasUpdate"], true);
    assert_eq!(update["registryDigest"], digest("v2").to_string());
    assert_eq!(update["runningDigest"], digest("v1").to_string());
    api.registry.lose("nginx:1");
    refresh(&api).await;
    let [update] = updates(&api, &device).await.try_into().unwrap();
    assert_eq!(update["hasUpdate"], Value::Null);
    assert_eq!(update["error"], "connection refused");
    assert_eq!(update["status"], "unknown");
    // Reports ask nobody.
    assert_eq!(api.registry.asked().len(), asked + 2);
}

async fn a_fleets_report_tells_each_image_once(place: Place) {
    let api = Api::start(place).await;
    api.registry.push("nginx:1", "v2", &["linux/amd64"]);
    for n in 0..5 {
        let device = api.enrol().await;
        let fleet = if n < 3 { "north" } else { "south" };
        let body = json!({"labels": {"fleet": fleet}});
        api.call("PATCH", &device.path(""), &api.admin, Some(body))
            .await
            .expect(200);
        api.set(&device, "nginx:1").await.expect(200);
        let content = if n == 0 { "v2" } else { "v1" };
        runs(&api, &device, 1, "nginx:1", content).await;
    }
    let page = |query: &str| {
        let path = format!("/api/v1/updates?{query}");
        let api = &api;
        async move { api.get(&path, &api.admin).await.expect(200).json() }
    };
    let all = page("").await;
    let items = all["items"].as_array().unwrap();
    let counts: Vec<_> = items
        .iter()
        .map(|item| {
            (
                item["hasUpdate"] == true,
                item["deviceCount"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(items.len(), 2);
    assert!(
        counts.contains(&(true, 4)) && counts.contains(&(false, 1)),
        "{counts:?}"
    );
    let north = page("fleet=north&has_update=true").await;
    assert_eq!(north["items"][0]["deviceCount"], 2);
    assert_eq!(north["items"].as_array().unwrap().len(), 1);
    assert_eq!(page("fleet=west").await["items"], json!([]));
    // Page by page it is the same list.
    let first = page("limit=1").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = page(&format!("limit=1&cursor={cursor}")).await;
    assert_eq!(
        [&first["items"][0], &second["items"][0]],
        [&items[0], &items[1]]
    );
    assert_eq!(second["next_cursor"], Value::Null);
}

async fn newer_tags_are_in_the_report_once_they_were_looked_for(place: Place) {
    let api = Api::start_with(place, |mut settings| {
        settings.refresh_interval = Some(Duration::from_mins(5));
        settings
    })
    .await;
    let device = api.enrol().await;
    api.registry.push("nginx:1.2", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1.2").await.expect(200);
    runs(&api, &device, 1, "nginx:1.2", "v1").await;
    assert_eq!(updates(&api, &device).await[0].get("candidates"), None);
    refresh_tags::run_once(&api.app, clock::now())
        .await
        .unwrap();
    assert_eq!(
        updates(&api, &device).await[0]["candidates"],
        json!([{"tag": "1.2.1", "isLatest": true, "platformAvailable": "yes",
                "releaseUrl": "https://releases.example/linux/amd64"}])
    );
}

#[tokio::test]
async fn newer_tags_of_an_image_are_listed_by_its_name() {
    let api = Api::start(Place::sqlite()).await;
    let list = |rest: &str| {
        let path = format!("/api/v1/images/{rest}");
        let api = &api;
        async move { api.get(&path, &api.admin).await }
    };
    for name in [
        "nginx",
        "docker.io%2Flibrary%2Fnginx",
        "reg.example:5000%2Fa%2Fb",
    ] {
        let path = format!("{name}/available-updates?current=1.26&arch=arm64");
        assert_eq!(
            list(&path).await.expect(200).json(),
            json!([{"tag": "1.26.1", "is_latest": true, "platform_available": "yes",
                    "release_url": "https://releases.example/linux/arm64"}]),
            "{name}"
        );
    }
    for bad in [
        "nginx/available-updates",
        "nginx/available-updates?current=not%20a%20tag",
        "nginx/available-updates?current=1&arch=a%2Fb%2Fc%2Fd",
        "nginx:1/available-updates?current=1",
        "Nginx%20/available-updates?current=1",
    ] {
        list(bad).await.expect(400);
    }
    list("away%2Fweb/available-updates?current=1")
        .await
        .expect(502);
}
