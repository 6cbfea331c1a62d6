//! Setting a target of a thousand services over fifty images, beside fifty plain HEAD requests to the same
//! registry at once: what asking each image once, and keeping the answer, comes to.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt as _;
use holdfast_tests::api::{Api, Options, client};
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::registry::{ACCEPT_ALL, Registry};
use reqwest::Method;
use serde_json::{Value, json};

use crate::spread::Spread;

/// Images that the services are made from.
const IMAGES: usize = 50;
/// Services of one device: a target has at most 512.
const SERVICES: usize = 500;
/// Devices that get such a target.
const DEVICES: usize = 2;

/// The times of each round.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// Nothing known before.
    pub(crate) first: Vec<Duration>,
    /// Within the time for which answers are good.
    pub(crate) kept: Vec<Duration>,
    /// After that: every image is asked about with the digest that is known.
    pub(crate) confirmed: Vec<Duration>,
    /// Fifty HEAD requests at once.
    pub(crate) heads: Vec<Duration>,
}

async fn enrol(api: &Api) -> anyhow::Result<String> {
    let wish = json!({ "name": "bench" });
    let key = api.post("/enrolment-keys", &wish);
    let key = key.await?.good()?.json["key"].clone();
    let body = json!({ "name": "paper", "labels": {}, "agentVersion": "0",
        "platform": { "os": "linux", "architecture": "amd64" } });
    let made = api
        .call_as(key.as_str(), Method::POST, "/enroll", &[], Some(&body))
        .await?
        .good()?;
    Ok(made.json["uuid"].as_str().context("a uuid")?.to_owned())
}

/// Sets the target of every device at once.
async fn set(api: &Api, devices: &[String], target: &Value) -> anyhow::Result<Duration> {
    let watch = Stopwatch::start();
    let calls = devices.iter().map(|uuid| async move {
        let path = format!("/devices/{uuid}/target-state");
        api.post(&path, target).await?.good()
    });
    for answer in futures_util::future::join_all(calls).await {
        answer?;
    }
    Ok(watch.elapsed())
}

async fn heads(registry: &Registry, images: &[Pushed]) -> anyhow::Result<Duration> {
    let client = client();
    let watch = Stopwatch::start();
    let asked = images.iter().map(|image| {
        let url = format!(
            "{}/v2/{}/manifests/{}",
            registry.url(),
            image.repository,
            image.tag
        );
        client.head(url).header("accept", ACCEPT_ALL).send()
    });
    let answers: Vec<_> = futures_util::stream::iter(asked)
        .buffer_unordered(IMAGES)
        .collect()
        .await;
    let took = watch.elapsed();
    for answer in answers {
        ensure!(answer?.status().is_success(), "a HEAD failed");
    }
    Ok(took)
}

/// So many rounds, each with a control API that knows nothing.
pub(crate) async fn rounds(many: usize) -> anyhow::Result<Times> {
    let registry = Registry::open().await?;
    let mut images = Vec::new();
    for n in 0..IMAGES {
        let image = Image::new("bench/resolution").single();
        let image = image.label("bench", &n.to_string());
        images.push(image.push(&registry, &format!("t{n}")).await?);
    }
    let services: Vec<Value> = (0..SERVICES)
        .map(|n| {
            let image = images[n % IMAGES].reference();
            json!({ "serviceId": n, "serviceName": format!("s{n}"), "imageName": image })
        })
        .collect();
    let target =
        json!({ "apps": { "1": { "appId": 1, "appName": "many", "services": services } } });
    let mut times = Times::default();
    for _ in 0..many {
        let options = Options::default()
            .set("digest_cache_seconds", json!(3_600))
            .set("refresh", json!({ "interval_seconds": 0 }))
            .set("log", json!({ "format": "json", "level": "info" }));
        let mut api = Api::start(options.registry(&registry, None)).await?;
        let mut devices = Vec::new();
        for _ in 0..DEVICES {
            devices.push(enrol(&api).await?);
        }
        times.heads.push(heads(&registry, &images).await?);
        times.first.push(set(&api, &devices, &target).await?);
        times.kept.push(set(&api, &devices, &target).await?);
        let file = api.config_file();
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        config["digest_cache_seconds"] = json!(0);
        std::fs::write(&file, config.to_string())?;
        api.process().stop();
        api.process().restart()?;
        api.ready().await?;
        times
            .confirmed
            .push(set(&api, &devices[..1], &target).await?);
    }
    Ok(times)
}

/// Measures, and says it in Markdown.
pub(crate) async fn measure(many: usize) -> anyhow::Result<String> {
    let times = rounds(many).await?;
    let [first, kept, confirmed, heads] =
        [times.first, times.kept, times.confirmed, times.heads].map(Spread::of);
    let ratio = |of: Spread| of.median.as_secs_f64() / heads.median.as_secs_f64();
    Ok(format!(
        "{DEVICES} devices, {SERVICES} services each, {IMAGES} images with one manifest each, set at \
         once over HTTP. The registry is a distribution 2.8 on this machine; at most 4 questions at a \
         time go to it, so that no registry takes it for a flood. How many questions there are is a \
         test (`resolution.rs`): 50 manifests, none, and 50 answered 304.\n\n\
         | ms | least | median | p95 | most | runs |\n|---|---|---|---|---|---|\n\
         | nothing known | {first} |\n\
         | again, answers kept | {kept} |\n\
         | one device, after that time | {confirmed} |\n\
         | 50 HEAD requests at once | {heads} |\n\n\
         Ratios of the medians to that of the HEAD requests: {:.2}, {:.2}, {:.2}.\n",
        ratio(first),
        ratio(kept),
        ratio(confirmed),
    ))
}
