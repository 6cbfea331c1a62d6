//! Journey A as far as it goes today: a person sets a target by tag, a device runs that digest.

use std::process::Command;

use holdfast_tests::images::{Image, Kind};
use holdfast_tests::registry::Login;
use holdfast_tests::site::{CONVERGES_WITHIN, Site, service, target};
use holdfast_tests::token_server::TokenPolicy;
use holdfast_tests::wait::wait_for;
use holdfast_tests::{api, place, postgres};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const EVERYWHERE: [&str; 3] = ["linux/amd64", "linux/arm64", "linux/arm/v7"];

/// Runs `curl` as a person would and answers the body and the status.
fn curl(args: &[&str]) -> anyhow::Result<(String, u16)> {
    let output = Command::new("curl")
        .args(["-sS", "-w", "\n%{http_code}"])
        .args(args)
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    Ok((body.to_owned(), status.parse()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_the_contract_becomes_a_running_pinned_container() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let pushed = Image::web("nginx", "one")
        .platforms(&EVERYWHERE)
        .push(&site.registry, "latest")
        .await?;
    let mut device = site.device().await?;

    // To the letter but for the registry's host: nothing can be pulled from Docker Hub here.
    let body = format!(
        r#"{{"apps":{{"1001":{{"appId":1001,"appName":"Web Server","services":[
  {{"serviceId":1,"serviceName":"nginx","imageName":"{}","config":{{"ports":["80:80"]}}}}]}}}}}}"#,
        pushed.reference()
    );
    let url = format!(
        "{}/api/v1/devices/{}/target-state",
        site.api.url(),
        device.uuid
    );
    let bearer = format!("Authorization: Bearer {}", site.api.token());
    let json_type = "Content-Type: application/json";
    let words = [
        "-X", "POST", "-H", &bearer, "-H", json_type, "-d", &body, &url,
    ];
    let (answer, status) = curl(&words)?;
    assert_eq!(status, 200, "{answer}");
    let stored: Value = serde_json::from_str(&answer)?;
    let nginx = &stored["apps"]["1001"]["services"][0];
    let index = pushed.index_digest.clone().unwrap_or_default();
    let child = pushed.child("linux/amd64");
    assert_eq!(nginx["imageName"], pushed.pinned());
    assert_eq!(nginx["config"]["image"], pushed.pinned());
    assert_eq!(nginx["config"]["ports"], json!(["80:80"]));
    assert_eq!(nginx["pin"]["reference"], pushed.reference());
    assert_eq!(nginx["pin"]["registry"], site.registry.host());
    assert_eq!(nginx["pin"]["repository"], "nginx");
    assert_eq!(nginx["pin"]["indexDigest"], index);
    assert_eq!(
        nginx["pin"]["expected"]["manifestDigest"],
        child.manifest_digest
    );
    assert_eq!(
        nginx["pin"]["expected"]["configDigest"],
        child.config_digest
    );
    assert_eq!(nginx["pin"]["resolution"]["status"], "resolved");
    let platforms = stored["resolutions"][0]["platforms"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert_eq!(platforms.len(), 3);
    for child in &pushed.children {
        let found = platforms.iter().find(|platform| {
            platform["manifestDigest"] == child.manifest_digest
                && platform["configDigest"] == child.config_digest
        });
        assert!(
            found.is_some(),
            "{} is listed: {platforms:?}",
            child.platform
        );
    }

    device.agent.run()?;
    site.wait_for_status(&device.uuid, &stored["generation"], "converged")
        .await;
    let running = device.running("nginx").await?;
    assert_eq!(running["Image"], child.config_digest);
    let label = &running["Config"]["Labels"]["io.holdfast.image"];
    assert_eq!(*label, pushed.pinned());
    assert_eq!(running["HostConfig"]["RestartPolicy"]["Name"], "always");

    let poll = format!("/devices/{}/state", device.uuid);
    let first = site
        .api
        .call_as(Some(&device.token), Method::GET, &poll, &[], None)
        .await?;
    assert_eq!(first.status, StatusCode::OK);
    let etag = first.header("etag").unwrap_or_default().to_owned();
    assert!(
        etag.starts_with('"') && etag.ends_with('"'),
        "a strong tag: {etag}"
    );
    let again = [("if-none-match", etag.as_str())];
    let second = site
        .api
        .call_as(Some(&device.token), Method::GET, &poll, &again, None)
        .await?;
    assert_eq!(second.status, StatusCode::NOT_MODIFIED);
    assert_eq!(second.body, b"");

    let refused = [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND];
    let operator = site.api.call(Method::GET, &poll, None).await?;
    assert!(
        refused.contains(&operator.status),
        "an operator on a device's route: {}",
        operator.status
    );
    for path in [
        "/devices".to_owned(),
        format!("/devices/{}/target-state", device.uuid),
    ] {
        let answer = site
            .api
            .call_as(Some(&device.token), Method::GET, &path, &[], None)
            .await?;
        assert!(
            refused.contains(&answer.status),
            "a device on {path}: {}",
            answer.status
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_indexes_give_every_platform_its_own_image() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let devices = [
        (
            "linux/amd64",
            site.paper_device("linux", "x86_64", None).await?,
        ),
        (
            "linux/arm64",
            site.paper_device("linux", "aarch64", None).await?,
        ),
        (
            "linux/arm/v7",
            site.paper_device("linux", "arm", Some("v7")).await?,
        ),
    ];
    for kind in [Kind::Oci, Kind::Docker] {
        let image = Image::web("many", "1")
            .platforms(&EVERYWHERE)
            .kind(kind)
            .attested();
        let pushed = image
            .push(&site.registry, &format!("{kind:?}").to_lowercase())
            .await?;
        for (platform, uuid) in &devices {
            let wanted = target(&[service("web", &pushed.reference(), &json!({}))]);
            let stored = site.set(uuid, &wanted).await?;
            let pin = &stored["apps"]["1001"]["services"][0]["pin"];
            let child = pushed.child(platform);
            assert_eq!(
                pin["indexDigest"],
                *pushed.index_digest.as_ref().unwrap_or(&String::new())
            );
            assert_eq!(
                pin["expected"]["manifestDigest"], child.manifest_digest,
                "{kind:?} {platform}"
            );
            assert_eq!(
                pin["expected"]["configDigest"], child.config_digest,
                "{kind:?} {platform}"
            );
        }
    }

    let only_amd64 = Image::web("one", "1")
        .single()
        .push(&site.registry, "1")
        .await?;
    let wanted = target(&[service("web", &only_amd64.reference(), &json!({}))]);
    let (_, arm64) = &devices[1];
    let before = site
        .api
        .get(&format!("/devices/{arm64}/target-state"))
        .await?;
    let refused = site.try_set(arm64, &wanted).await?;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        refused.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(
        refused.json["code"], "unsupported_platform",
        "{}",
        refused.json
    );
    let after = site
        .api
        .get(&format!("/devices/{arm64}/target-state"))
        .await?;
    assert_eq!(before.body, after.body, "nothing was stored");
    let (_, amd64) = &devices[0];
    let stored = site.set(amd64, &wanted).await?;
    let pin = &stored["apps"]["1001"]["services"][0]["pin"];
    assert_eq!(pin["indexDigest"], Value::Null);
    assert_eq!(pin["expected"]["manifestDigest"], only_amd64.top_digest);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_for_another_platform_restarts_nothing() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let image = Image::web("shared", "same").platforms(&EVERYWHERE);
    let first = image.push(&site.registry, "1").await?;
    let mut device = site.device().await?;
    device.agent.run()?;
    let wanted = target(&[service("web", &first.reference(), &json!({}))]);
    site.converge(&device, &wanted).await?;
    let before = device.running("web").await?;
    let mutations = device.tap.mutations().len();

    let second = image
        .file_only("linux/arm64", "/www/arm64", "new")
        .push(&site.registry, "1")
        .await?;
    assert_ne!(first.index_digest, second.index_digest);
    assert_eq!(first.child("linux/amd64"), second.child("linux/amd64"));
    let report = site.converge(&device, &wanted).await?;
    let after = device.running("web").await?;
    assert_eq!(before["Id"], after["Id"]);
    assert_eq!(before["State"]["StartedAt"], after["State"]["StartedAt"]);
    assert_eq!(report["steps"], json!([]), "no update is reported");
    assert_eq!(report["holds"], json!([]));
    assert_eq!(
        device.tap.mutations().len(),
        mutations,
        "the engine was left alone"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_targets_name_their_fault_and_store_nothing() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let uuid = site.paper_device("linux", "amd64", None).await?;
    let url = format!("{}/api/v1/devices/{uuid}/target-state", site.api.url());
    let client = api::client();
    let one = |service: &str| {
        format!(r#"{{"apps":{{"1":{{"appId":1,"appName":"a","services":[{service}]}}}}}}"#)
    };
    let a = r#"{"serviceId":1,"serviceName":"a","imageName":"x:1","config":{"ports":["80:80"]}}"#;
    let b = r#"{"serviceId":2,"serviceName":"b","imageName":"x:1","config":{"ports":["80:81"]}}"#;
    let bad_reference = r#"{"serviceId":1,"serviceName":"a","imageName":"Not A Name"}"#;
    let wrong_type =
        r#"{"serviceId":1,"serviceName":"a","imageName":"x","config":{"privileged":"maybe"}}"#;
    let unknown =
        r#"{"serviceId":1,"serviceName":"a","imageName":"x","config":{"prots":["80:80"]}}"#;
    let huge = format!(r#"{{"apps":{{}},"padding":"{}"}}"#, "x".repeat(2 << 20));
    for (what, body, statuses, pointer) in [
        (
            "malformed",
            "{\"apps\":".to_owned(),
            vec![400],
            Some("/apps"),
        ),
        (
            "unknown field",
            one(unknown),
            vec![422],
            Some("/apps/1/services/0/config/prots"),
        ),
        (
            "wrong type",
            one(wrong_type),
            vec![422],
            Some("/apps/1/services/0/config/privileged"),
        ),
        (
            "port conflict",
            one(&format!("{a},{b}")),
            vec![422],
            Some("/apps/1/services/1/config/ports/0"),
        ),
        (
            "bad reference",
            one(bad_reference),
            vec![422],
            Some("/apps/1/services/0/imageName"),
        ),
        ("oversized", huge, vec![413], None),
    ] {
        let request = client.post(&url).bearer_auth(site.api.token()).body(body);
        let answer = request
            .header("content-type", "application/json")
            .send()
            .await?;
        let status = answer.status().as_u16();
        let kind = answer.headers().get("content-type").cloned();
        let text = answer.text().await?;
        assert!(
            statuses.contains(&status) || (status == 400 && statuses == [422]),
            "{what}: {status} {text}"
        );
        assert_eq!(
            kind.and_then(|kind| kind.to_str().ok().map(str::to_owned))
                .as_deref(),
            Some("application/problem+json"),
            "{what}"
        );
        let problem: Value = serde_json::from_str(&text)?;
        assert_eq!(problem["status"], status, "{what}");
        match pointer {
            Some(pointer) => assert_eq!(problem["errors"][0]["pointer"], pointer, "{what}: {text}"),
            None => assert!(
                problem["detail"]
                    .as_str()
                    .is_some_and(|d| d.contains("1048576") || d.contains("1 MiB")),
                "{text}"
            ),
        }
        let stored = site
            .api
            .get(&format!("/devices/{uuid}/target-state"))
            .await?;
        assert_eq!(stored.json["generation"], 0, "{what}: nothing was stored");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_never_unpins_a_device() -> anyhow::Result<()> {
    let mut site = Site::start().await?;
    let pushed = Image::web("sticky", "1").push(&site.registry, "1").await?;
    let uuid = site.paper_device("linux", "amd64", None).await?;
    let wanted = target(&[service("web", &pushed.reference(), &json!({}))]);
    let first = site.set(&uuid, &wanted).await?;
    site.registry.stop();
    // Another service makes it a new target; the known digest is kept and marked.
    let never = format!("{}/never-seen:1", site.registry.host());
    let both = target(&[
        service("web", &pushed.reference(), &json!({ "init": true })),
        service("new", &never, &json!({})),
    ]);
    let strict = format!("/devices/{uuid}/target-state?require_digest=true");
    let refused = site.api.post(&strict, &both).await?;
    assert_eq!(refused.status, StatusCode::FAILED_DEPENDENCY);
    let second = site.set(&uuid, &both).await?;
    let services = &second["apps"]["1001"]["services"];
    assert_eq!(services[0]["imageName"], pushed.pinned());
    assert_eq!(
        services[0]["pin"]["indexDigest"],
        first["apps"]["1001"]["services"][0]["pin"]["indexDigest"]
    );
    assert_eq!(services[1]["imageName"], never, "stored as written");
    assert_eq!(services[1]["pin"]["resolution"]["status"], "failed");
    assert!(services[1]["pin"]["resolution"]["error"].is_string());

    // Back again, with the image now pushed: resolved without anybody's help.
    site.registry.resume().await?;
    let late = Image::web("never-seen", "1")
        .push(&site.registry, "1")
        .await?;
    wait_for(
        "the failed reference to be resolved",
        CONVERGES_WITHIN,
        async || {
            let now = site
                .api
                .get(&format!("/devices/{uuid}/target-state"))
                .await
                .map_err(|e| e.to_string())?;
            let image = now.json["apps"]["1001"]["services"][1]["imageName"].clone();
            if image == late.pinned() {
                Ok(())
            } else {
                Err(image.to_string())
            }
        },
    )
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_with_a_login_are_asked_with_it() -> anyhow::Result<()> {
    let basic = Login::Basic {
        username: "reader".to_owned(),
        password: "basic-pw".to_owned(),
    };
    let token = Login::Token(TokenPolicy::user("reader", "token-pw"));
    for (login, password) in [(basic, "basic-pw"), (token, "token-pw")] {
        let site =
            Site::start_with(api::Options::default(), login, Some(("reader", password))).await?;
        let pushed = Image::web("private", "1").push(&site.registry, "1").await?;
        let uuid = site.paper_device("linux", "amd64", None).await?;
        let wanted = target(&[service("web", &pushed.reference(), &json!({}))]);
        let stored = site.set(&uuid, &wanted).await?;
        assert_eq!(
            stored["apps"]["1001"]["services"][0]["imageName"],
            pushed.pinned()
        );
        let log = std::fs::read_to_string(site.api.log_file())?;
        assert!(!log.contains(password), "the password is in no log");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_announced_and_recorded() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let pushed = Image::web("announced", "1")
        .push(&site.registry, "1")
        .await?;
    wait_for("the push to be recorded", CONVERGES_WITHIN, async || {
        let events = site
            .api
            .get("/events")
            .await
            .map_err(|error| error.to_string())?;
        let text = events.json.to_string();
        let recorded = text.contains("image.webhook_received") && text.contains(&pushed.top_digest);
        if recorded { Ok(()) } else { Err(text) }
    })
    .await;
    let bare = json!({ "events": [] });
    let path = "/webhooks/distribution";
    let anonymous = site
        .api
        .call_as(None, Method::POST, path, &[], Some(&bare))
        .await?;
    assert_eq!(anonymous.status, StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_works_the_same_on_postgresql() -> anyhow::Result<()> {
    let server = postgres::Postgres::start().await?;
    let options = api::Options {
        database: Some(server.database().await?),
        ..api::Options::default()
    };
    let site = Site::start_with(options, Login::Open, None).await?;
    let name = format!("pg-{}", place::unique());
    let pushed = Image::healthy_web(&name, "one")
        .push(&site.registry, "1")
        .await?;
    let mut device = site.device().await?;
    device.agent.run()?;
    let report = site
        .converge(
            &device,
            &target(&[service("web", &pushed.reference(), &json!({}))]),
        )
        .await?;
    let web = &report["apps"]["1001"]["services"]["web"];
    assert_eq!(web["image"], pushed.pinned());
    assert_eq!(web["verified"], true);
    Ok(())
}
