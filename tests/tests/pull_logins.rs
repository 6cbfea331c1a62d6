//! Pulls from a registry with a login, on the real engine: the device has none, and gets what it needs.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use holdfast_tests::api;
use holdfast_tests::http_tap::HttpTap;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::registry::Login;
use holdfast_tests::site::{Device, Site, service, target};
use holdfast_tests::token_server::TokenPolicy;
use http::StatusCode;
use serde_json::{Value, json};

/// The password that no device may ever hold.
const CANARY: &str = "canary-password-4711";
const USER: &str = "robot";

/// What an engine was given to log in with, pull by pull.
fn logins(device: &Device) -> Vec<Option<Value>> {
    let calls = device.tap.calls();
    let pulls = calls
        .iter()
        .filter(|call| call.path.ends_with("/images/create"));
    pulls
        .map(|call| {
            let text = call.registry_auth.as_ref()?;
            let bytes = URL_SAFE.decode(text).or_else(|_| STANDARD.decode(text));
            serde_json::from_slice(&bytes.ok()?).ok()
        })
        .collect()
}

/// Every file below a folder that holds one of these texts.
fn files_with(folder: &Path, texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap_or_default();
            for text in texts {
                let holds = bytes
                    .windows(text.len())
                    .any(|window| window == text.as_bytes());
                if holds {
                    found.push(format!("{} holds {text}", path.display()));
                }
            }
        }
    }
    found
}

/// Nothing that opens a registry is on the device: not in its journal, not in its log.
fn holds_nothing(device: &Device) -> anyhow::Result<()> {
    let folder = device.agent.config_file();
    let folder = folder.parent().unwrap_or(&folder);
    // Tokens of the lab's server are JWTs.
    let found = files_with(folder, &[CANARY, "registrytoken", "eyJ0eXAi", "eyJhbGci"]);
    assert!(found.is_empty(), "{found:?}");
    let log = std::fs::read_to_string(device.agent.process()?.log_file())?;
    assert!(log.contains("got a login for a pull"), "{log}");
    Ok(())
}

fn web(image: &Pushed) -> Value {
    target(&[service("web", &image.reference(), &json!({}))])
}

async fn give(site: &Site, hand_out: bool) -> anyhow::Result<()> {
    let path = format!("/registries/{}/credentials", site.registry.host());
    let body = json!({ "username": USER, "password": CANARY, "hand_out": hand_out });
    site.api.put(&path, &body).await?.good()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_a_password_pulls_with_a_minted_token() -> anyhow::Result<()> {
    let login = Login::Token(TokenPolicy::user(USER, CANARY));
    let site = Site::start_with(api::Options::default(), login, None).await?;
    give(&site, false).await?;
    let image = Image::idle("login/minted", "token 1")
        .push(&site.registry, "1")
        .await?;
    let mut device = site.device().await?;
    device.agent.run()?;
    site.converge(&device, &web(&image)).await?;
    device.wait_running("web").await?;
    let used = logins(&device);
    let [Some(login)] = used.as_slice() else {
        panic!("one pull with a login expected: {used:?}");
    };
    assert!(
        login["registrytoken"]
            .as_str()
            .is_some_and(|token| token.len() > 40)
    );
    assert!(!login.to_string().contains(CANARY));
    assert_eq!(login["password"].as_str().unwrap_or_default(), "");
    holds_nothing(&device)?;
    // Nor does the server tell anybody but the device.
    let log = std::fs::read_to_string(site.api.log_file())?;
    assert!(!log.contains(CANARY) && !log.contains("eyJ0eXAi"));
    let events = site
        .api
        .get("/events?kind=device.pull_login_issued")
        .await?;
    assert_eq!(events.json["items"][0]["detail"]["kind"], "token");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_came_after_the_target_are_asked_for_when_the_registry_refuses()
-> anyhow::Result<()> {
    let login = Login::Token(TokenPolicy::user(USER, CANARY));
    let known = Some((USER, CANARY));
    let site = Site::start_with(api::Options::default(), login, known).await?;
    let image = Image::idle("login/late", "late 1")
        .push(&site.registry, "1")
        .await?;
    // The way to the API takes the hint out of the target, as an API of before would have served it.
    let tap = HttpTap::start(site.api.address()).await?;
    tap.alter(|asked, answer| {
        let is_target = asked.path.ends_with("/state") && answer.status() == StatusCode::OK;
        if !is_target {
            return answer;
        }
        let (parts, body) = answer.into_parts();
        let text = String::from_utf8_lossy(&body).replace(",\"pullLogin\":true", "");
        let mut changed = http::Response::builder().status(parts.status);
        for (name, value) in &parts.headers {
            if name != http::header::CONTENT_LENGTH {
                changed = changed.header(name, value);
            }
        }
        changed.body(text.into()).expect("an answer as it was")
    });
    let mut device = site.device_at(tap.url(), |options| options).await?;
    device.agent.run()?;
    site.converge(&device, &web(&image)).await?;
    let used = logins(&device);
    assert!(used.len() >= 2, "{used:?}");
    assert!(used.first().is_some_and(Option::is_none), "{used:?}");
    let last = used.last().cloned().flatten().unwrap_or_default();
    assert!(last["registrytoken"].is_string(), "{used:?}");
    holds_nothing(&device)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_for_everybody_is_pulled_while_no_login_can_be_had() -> anyhow::Result<()> {
    let site = Site::start_with(api::Options::default(), Login::Open, Some((USER, CANARY))).await?;
    let image = Image::idle("login/open", "open 1")
        .push(&site.registry, "1")
        .await?;
    let tap = HttpTap::start(site.api.address()).await?;
    tap.alter(|asked, answer| {
        if asked.path.ends_with("/pull-tokens") {
            holdfast_tests::http_tap::reply(503, &[], "away")
        } else {
            answer
        }
    });
    let mut device = site.device_at(tap.url(), |options| options).await?;
    device.agent.run()?;
    site.converge(&device, &web(&image)).await?;
    let asked = tap.asked();
    assert!(
        asked
            .iter()
            .any(|asked| asked.path.ends_with("/pull-tokens"))
    );
    assert_eq!(logins(&device), [None]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_mints_nothing_needs_its_operators_leave() -> anyhow::Result<()> {
    let login = Login::Basic {
        username: USER.to_owned(),
        password: CANARY.to_owned(),
    };
    let site = Site::start_with(api::Options::default(), login, None).await?;
    give(&site, false).await?;
    let image = Image::idle("login/basic", "basic 1")
        .push(&site.registry, "1")
        .await?;
    let mut device = site.device().await?;
    device.agent.run()?;
    let stored = site.set(&device.uuid, &web(&image)).await?;
    device
        .agent
        .process()?
        .wait_for_log(
            &["no login for a pull", "hand_out"],
            holdfast_tests::site::CONVERGES_WITHIN,
        )
        .await?;
    assert!(logins(&device).iter().all(Option::is_none));
    give(&site, true).await?;
    site.wait_for_status(&device.uuid, &stored["generation"], "converged")
        .await;
    let last = logins(&device).pop().flatten().unwrap_or_default();
    assert_eq!(last["username"], USER);
    holds_nothing(&device)
}
