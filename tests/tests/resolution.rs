//! The control API's questions to a real registry: how many there are, what an outage leaves, what moves.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::api::{Api, Options};
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::postgres::Postgres;
use holdfast_tests::registry::{self, Access, Registry};
use holdfast_tests::wait::try_wait_for;
use reqwest::Method;
use serde_json::{Value, json};

/// A registry's next attempt after a failure is ten seconds away; a busy machine takes its time.
const COMES_WITHIN: Duration = Duration::from_mins(2);
const IMAGES: usize = 50;

/// A registry and a control API, without any engine.
struct Office {
    registry: Registry,
    api: Api,
}

impl Office {
    async fn open(options: Options) -> anyhow::Result<Self> {
        let registry = Registry::start(registry::Options {
            delete: true,
            ..registry::Options::default()
        })
        .await?;
        let api = Api::start(options.registry(&registry, None)).await?;
        Ok(Self { registry, api })
    }

    async fn device(&self) -> anyhow::Result<String> {
        let wish = json!({ "name": "test" });
        let key = self.api.post("/enrolment-keys", &wish);
        let key = key.await?.good()?.json["key"].clone();
        let body = json!({ "name": "paper", "labels": {}, "agentVersion": "0",
            "platform": { "os": "linux", "architecture": "amd64" } });
        let made = self
            .api
            .call_as(key.as_str(), Method::POST, "/enroll", &[], Some(&body))
            .await?
            .good()?;
        let uuid = made.json["uuid"].as_str().context("a uuid")?;
        Ok(uuid.to_owned())
    }

    async fn set(&self, uuid: &str, target: &Value) -> anyhow::Result<Value> {
        let path = format!("/devices/{uuid}/target-state");
        Ok(self.api.post(&path, target).await?.good()?.json)
    }

    async fn target(&self, uuid: &str) -> anyhow::Result<Value> {
        let path = format!("/devices/{uuid}/target-state");
        Ok(self.api.get(&path).await?.good()?.json)
    }

    async fn event(&self, kind: &str) -> anyhow::Result<Value> {
        let path = format!("/events?kind={kind}");
        let page = self.api.get(&path).await?.good()?.json;
        let first = page["items"][0].clone();
        ensure!(first.is_object(), "no {kind} yet");
        Ok(first)
    }

    async fn comes(&self, kind: &str) -> anyhow::Result<Value> {
        try_wait_for(&format!("an event {kind}"), COMES_WITHIN, async || {
            self.event(kind).await.map_err(|error| error.to_string())
        })
        .await
    }

    /// Every question about manifests so far; what was asked before this is certainly among them.
    async fn questions(&self) -> anyhow::Result<Vec<Access>> {
        let marker = format!("/v2/marker/{}/tags/list", self.registry.requests().len());
        let request = self.registry.request(Method::GET, "marker", &marker)?;
        request.send().await?;
        try_wait_for("the registry's log", COMES_WITHIN, async || {
            let all = self.registry.requests();
            let seen = all.iter().any(|access| access.path == marker);
            seen.then_some(()).ok_or("not there yet")
        })
        .await?;
        let manifest = |access: &Access| access.path.contains("/manifests/");
        Ok(self
            .registry
            .requests()
            .into_iter()
            .filter(|access| manifest(access) && access.method != "PUT")
            .collect())
    }
}

fn services(images: &[Pushed], count: usize) -> Value {
    let services: Vec<Value> = (0..count)
        .map(|n| {
            let image = images[n % images.len()].reference();
            json!({ "serviceId": n, "serviceName": format!("s{n}"), "imageName": image })
        })
        .collect();
    json!({ "apps": { "1": { "appId": 1, "appName": "many", "services": services } } })
}

fn only(image: &str) -> Value {
    json!({ "apps": { "1": { "appId": 1, "appName": "one", "services": [
        { "serviceId": 1, "serviceName": "web", "imageName": image }] } } })
}

async fn fifty(registry: &Registry) -> anyhow::Result<Vec<Pushed>> {
    let mut images = Vec::new();
    for n in 0..IMAGES {
        let image = Image::new("resolution/many").single();
        let image = image.label("resolution", &n.to_string());
        images.push(image.push(registry, &format!("t{n}")).await?);
    }
    Ok(images)
}

async fn thousand_services(options: Options) -> anyhow::Result<()> {
    let options = options
        .set("digest_cache_seconds", json!(3_600))
        .set("refresh", json!({ "interval_seconds": 0 }));
    let mut office = Office::open(options).await?;
    let images = fifty(&office.registry).await?;
    let (one, two) = (office.device().await?, office.device().await?);
    let before = office.questions().await?.len();
    let target = services(&images, 500);
    let (first, second) = tokio::try_join!(office.set(&one, &target), office.set(&two, &target))?;
    for stored in [&first, &second] {
        let resolutions = stored["resolutions"].as_array().context("resolutions")?;
        assert_eq!(resolutions.len(), IMAGES);
        assert!(resolutions.iter().all(|it| it["status"] == "resolved"));
    }
    assert_eq!(office.questions().await?.len() - before, IMAGES);
    // Again within the time for which an answer is good.
    let again = office.set(&one, &target).await?;
    assert_eq!(again["generation"], first["generation"]);
    assert_eq!(office.questions().await?.len() - before, IMAGES);
    // And when no answer is good any more: the store still knows what it asks about.
    let file = office.api.config_file();
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    config["digest_cache_seconds"] = json!(0);
    std::fs::write(&file, config.to_string())?;
    office.api.process().stop();
    office.api.process().restart()?;
    office.api.ready().await?;
    let again = office.set(&one, &target).await?;
    assert_eq!(again["generation"], first["generation"]);
    let all = office.questions().await?;
    let conditional = &all[before + IMAGES..];
    assert_eq!(conditional.len(), IMAGES);
    for access in conditional {
        assert_eq!((access.method.as_str(), access.status), ("HEAD", 304));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_services_over_fifty_images_are_fifty_questions() -> anyhow::Result<()> {
    thousand_services(Options::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_services_are_fifty_questions_on_postgresql_too() -> anyhow::Result<()> {
    let postgres = Postgres::start().await?;
    let options = Options {
        database: Some(postgres.database().await?),
        ..Options::default()
    };
    thousand_services(options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_changes_nothing_and_what_was_new_in_it_comes_by_itself() -> anyhow::Result<()> {
    let options = Options::default().set("digest_cache_seconds", json!(0));
    let mut office = Office::open(options).await?;
    let known = Image::new("resolution/known")
        .push(&office.registry, "1")
        .await?;
    let new = Image::new("resolution/new")
        .push(&office.registry, "1")
        .await?;
    let (old, fresh) = (office.device().await?, office.device().await?);
    let first = office.set(&old, &only(&known.reference())).await?;
    office.registry.stop();
    let again = office.set(&old, &only(&known.reference())).await?;
    assert_eq!(again["generation"], first["generation"]);
    assert_eq!(again["apps"], first["apps"]);
    assert_eq!(again["resolutions"][0]["status"], "stale");
    let waiting = office.set(&fresh, &only(&new.reference())).await?;
    assert_eq!(waiting["resolutions"][0]["status"], "failed");
    let image = &waiting["apps"]["1"]["services"][0]["imageName"];
    assert_eq!(*image, new.reference());
    office.registry.resume().await?;
    let came = try_wait_for("the digest", COMES_WITHIN, async || {
        let shown = office.target(&fresh).await.map_err(|e| e.to_string())?;
        let image = &shown["apps"]["1"]["services"][0]["imageName"];
        if *image == new.pinned() {
            Ok(shown)
        } else {
            Err(shown.to_string())
        }
    })
    .await?;
    assert_eq!(came["generation"], 2);
    try_wait_for("the mark to go", COMES_WITHIN, async || {
        let shown = office.target(&old).await.map_err(|e| e.to_string())?;
        if shown["resolutions"][0]["status"] == "resolved" {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    })
    .await?;
    assert_eq!(
        office.target(&old).await?["generation"],
        first["generation"]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_moves_back_or_vanishes_is_noticed() -> anyhow::Result<()> {
    let options = Options::default().set("refresh", json!({ "interval_seconds": 2 }));
    let office = Office::open(options).await?;
    let image = |version| Image::new("resolution/tag").label("version", version);
    let one = image("1").push(&office.registry, "stable").await?;
    let device = office.device().await?;
    let stored = office.set(&device, &only(&one.reference())).await?;
    let two = image("2").push(&office.registry, "stable").await?;
    let moved = office.comes("image.tag_moved").await?;
    assert_eq!(moved["subject"], one.reference());
    assert_eq!(moved["detail"]["from"], one.top_digest);
    assert_eq!(moved["detail"]["to"], two.top_digest);
    office
        .registry
        .tag("resolution/tag", &one.top_digest, "stable")
        .await?;
    let back = office.comes("image.tag_moved_back").await?;
    assert_eq!(back["detail"]["to"], one.top_digest);
    office
        .registry
        .delete("resolution/tag", &one.top_digest)
        .await?;
    office.comes("image.tag_vanished").await?;
    let shown = office.target(&device).await?;
    assert_eq!(shown["generation"], stored["generation"]);
    assert_eq!(shown["apps"], stored["apps"]);
    let path = format!("/images/history?reference={}", one.reference());
    let history = office.api.get(&path).await?.good()?.json;
    let digests: Vec<&str> = history["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item["digest"].as_str())
        .collect();
    assert_eq!(digests, [&one.top_digest, &two.top_digest, &one.top_digest]);
    let metrics = office
        .api
        .call_as(None, Method::GET, "//metrics", &[], None);
    let text = String::from_utf8(metrics.await?.body)?;
    let host = office.registry.host();
    for line in [
        format!("holdfast_api_registry_requests_total{{registry=\"{host}\",code=\"200\"}}"),
        format!("holdfast_api_registry_request_seconds_count{{registry=\"{host}\"}}"),
        "holdfast_api_registry_cache_total{result=\"miss\"}".to_owned(),
        "holdfast_api_refresh_lag_seconds".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_tags_are_found_with_their_releases() -> anyhow::Result<()> {
    let office = Office::open(Options::default()).await?;
    let source = "https://github.com/example/web";
    for (tag, platforms) in [
        ("1.2.0", &["linux/amd64", "linux/arm64"][..]),
        ("1.2.1", &["linux/amd64", "linux/arm64"]),
        ("1.3.0", &["linux/amd64"]),
        ("1.3.0-rc1", &["linux/amd64"]),
        ("2.0.0", &["linux/amd64"]),
        ("1.3.1-alpine", &["linux/amd64"]),
    ] {
        Image::new("resolution/versions")
            .platforms(platforms)
            .label("org.opencontainers.image.source", source)
            .label("org.opencontainers.image.version", tag)
            .push(&office.registry, tag)
            .await?;
    }
    let name = format!("{}/resolution/versions", office.registry.host()).replace('/', "%2F");
    let path = format!("/images/{name}/available-updates?current=1.2.0&arch=arm64");
    let found = office.api.get(&path).await?.good()?.json;
    let found: Vec<_> = found
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| {
            (
                &item["tag"],
                &item["is_latest"],
                &item["platform_available"],
            )
        })
        .collect();
    let expected = [
        (&json!("1.3.0"), &json!(true), &json!("no")),
        (&json!("1.2.1"), &json!(false), &json!("yes")),
    ];
    assert_eq!(found, expected);
    let path = format!("/images/{name}/available-updates?current=1.2.0");
    let found = office.api.get(&path).await?.good()?.json;
    let link = found[0]["release_url"].as_str().unwrap_or_default();
    assert_eq!(link, format!("{source}/releases/tag/1.3.0"));
    Ok(())
}
