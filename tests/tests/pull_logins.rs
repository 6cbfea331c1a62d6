//! Pulls from a registry with a login, on the real engine: the device has none, and gets what it needs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use holdfast_tests::http_tap::HttpTap;
use holdfast_tests::images::{Image, Pushed, noise};
use holdfast_tests::registry::{self, Login, Registry};
use holdfast_tests::site::{CONVERGES_WITHIN, Device, Site, service, target};
use holdfast_tests::token_server::TokenPolicy;
use holdfast_tests::{agent, api, apt, place};
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

/// A device whose engine fetches by itself, and so is given logins.
async fn device(site: &Site, api: String) -> anyhow::Result<Device> {
    let by_engine = |options: agent::Options| options.set("pull", "fetch", "engine");
    site.device_at(api, by_engine).await
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
    let image = Image::idle(format!("login/minted-{}", place::unique()), "token 1")
        .push(&site.registry, "1")
        .await?;
    let mut device = device(&site, site.api.url()).await?;
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
    let image = Image::idle(format!("login/late-{}", place::unique()), "late 1")
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
    let mut device = device(&site, tap.url()).await?;
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
    let image = Image::idle(format!("login/open-{}", place::unique()), "open 1")
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
    let mut device = device(&site, tap.url()).await?;
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
    let image = Image::idle(format!("login/basic-{}", place::unique()), "basic 1")
        .push(&site.registry, "1")
        .await?;
    let mut device = device(&site, site.api.url()).await?;
    device.agent.run()?;
    let stored = site.set(&device.uuid, &web(&image)).await?;
    device
        .agent
        .process()?
        .wait_for_log(&["no login for a pull", "hand_out"], CONVERGES_WITHIN)
        .await?;
    assert!(logins(&device).iter().all(Option::is_none));
    give(&site, true).await?;
    site.wait_for_status(&device.uuid, &stored["generation"], "converged")
        .await;
    let last = logins(&device).pop().flatten().unwrap_or_default();
    assert_eq!(last["username"], USER);
    holds_nothing(&device)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_is_given_no_login_where_the_agent_fetches() -> anyhow::Result<()> {
    let login = Login::Token(TokenPolicy::user(USER, CANARY));
    let site = Site::start_with(api::Options::default(), login, None).await?;
    give(&site, false).await?;
    let image = Image::idle(format!("login/own-{}", place::unique()), "own 1")
        .push(&site.registry, "1")
        .await?;
    let mut device = site.device().await?;
    device.agent.run()?;
    site.converge(&device, &web(&image)).await?;
    device.wait_running("web").await?;
    assert_eq!(logins(&device), [None]);
    holds_nothing(&device)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_ends_in_the_middle_of_a_pull_is_renewed() -> anyhow::Result<()> {
    let login = Login::Token(TokenPolicy::user(USER, CANARY));
    let registry = Registry::start(registry::Options {
        login,
        ..registry::Options::default()
    })
    .await?;
    let tap = HttpTap::start(registry.host()).await?;
    let mut options = api::Options::default();
    let known = json!({ "host": tap.address(), "plain_http": true });
    options.registries.push(known);
    let site = Site::start_with(options, Login::Open, None).await?;
    let path = format!("/registries/{}/credentials", tap.address());
    let body = json!({ "username": USER, "password": CANARY });
    site.api.put(&path, &body).await?.good()?;
    let image = Image::idle(format!("login/long-{}", place::unique()), "long 1")
        .file("noise", noise(4 << 20))
        .push(&registry, "1")
        .await?;
    let layer = registry.largest_layer(&image).await?;
    let mut device = site.device().await?;
    device.agent.run()?;
    // The first half comes; then the token is over.
    let asked = Arc::new(AtomicUsize::new(0));
    let (times, path) = (Arc::clone(&asked), layer.clone());
    tap.alter(move |request, honest| {
        if !request.path.ends_with(&path) || honest.status().as_u16() >= 400 {
            return honest;
        }
        match times.fetch_add(1, Ordering::SeqCst) {
            0 => {
                let (mut parts, body) = honest.into_parts();
                parts.headers.remove("content-length");
                let chunked = http::HeaderValue::from_static("chunked");
                parts.headers.insert("transfer-encoding", chunked);
                http::Response::from_parts(parts, body.slice(..body.len() / 2))
            }
            // The second time because a registry may have forgotten a token that is good.
            1 | 2 => holdfast_tests::http_tap::reply(401, &[], "over"),
            _ => honest,
        }
    });
    let reference = image.reference().replace(&registry.host(), &tap.address());
    let wanted = target(&[service("web", &reference, &json!({}))]);
    site.converge(&device, &wanted).await?;
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    let asked = tap.asked();
    let last = asked.iter().rfind(|asked| asked.path.ends_with(&layer));
    assert!(
        last.is_some_and(|asked| asked.status == StatusCode::PARTIAL_CONTENT),
        "it went on where it was: {asked:?}"
    );
    let events = site
        .api
        .get("/events?kind=device.pull_login_issued")
        .await?;
    let issued = events.json["items"].as_array().map(Vec::len);
    assert_eq!(issued, Some(2), "{}", events.json);
    Ok(())
}

/// A file with a login of the device's own, in the form of docker's `config.json`.
fn own_login(registry: &str) -> anyhow::Result<(tempfile::NamedTempFile, String)> {
    let basic = STANDARD.encode(format!("{USER}:{CANARY}"));
    let file = tempfile::NamedTempFile::new()?;
    let login = json!({ "auths": { registry: { "auth": basic } } });
    std::fs::write(file.path(), login.to_string())?;
    Ok((file, basic))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_of_the_devices_own_goes_to_its_registry_and_nowhere_else() -> anyhow::Result<()> {
    let login = Login::Basic {
        username: USER.to_owned(),
        password: CANARY.to_owned(),
    };
    let known = Some((USER, CANARY));
    let site = Site::start_with(api::Options::default(), login, known).await?;
    let host = site.registry.host();
    let (file, basic) = own_login(&host)?;
    let image = Image::idle(format!("login/file-{}", place::unique()), "file 1")
        .push(&site.registry, "1")
        .await?;
    let own = |options: agent::Options| {
        options.set(
            "pull",
            "credentials_file",
            file.path().display().to_string(),
        )
    };
    let mut device = site.device_at(site.api.url(), own).await?;
    let folder = place::temporary("sockets")?;
    let calls = folder.path().join("calls");
    let strace = apt::require(&["strace"])?.remove(0).display().to_string();
    let words = [
        &strace,
        "-f",
        "-qq",
        "-yy",
        "-s",
        "65536",
        "-e",
        "trace=write,writev,pwrite64,sendto,sendmsg,sendmmsg",
        "-o",
        &calls.display().to_string(),
    ];
    device.agent.run_under(&words.map(str::to_owned))?;
    site.converge(&device, &web(&image)).await?;
    assert_eq!(logins(&device), [None]);
    device.agent.stop();
    let calls = std::fs::read_to_string(&calls)?;
    let told: Vec<_> = calls
        .lines()
        .filter(|line| line.contains(CANARY) || line.contains(&basic))
        .collect();
    assert!(!told.is_empty(), "the registry was told");
    for call in told {
        assert!(
            call.contains(&format!("->{host}]")) && call.contains("uthorization: Basic"),
            "{call}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_crashes_leaves_no_memory_behind() -> anyhow::Result<()> {
    let folder = place::temporary("core")?;
    let there = folder.path().display().to_string();
    // What dies here would leave its memory: that this machine does so is part of the test.
    let script = |end: &str| format!("ulimit -c unlimited; cd {there}; {end}");
    let witness = std::process::Command::new("sh")
        .args(["-c", &script("kill -ABRT $$")])
        .status()?;
    assert!(!witness.success());
    let dumps = || -> anyhow::Result<Vec<_>> {
        let entries = std::fs::read_dir(folder.path())?.flatten();
        Ok(entries.map(|entry| entry.path()).collect())
    };
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    let is_here = !pattern.starts_with(['|', '/']);
    assert_eq!(dumps()?.len(), usize::from(is_here), "{pattern}");
    for dump in dumps()? {
        std::fs::remove_file(dump)?;
    }
    let site = Site::start().await?;
    let image = Image::idle(format!("login/core-{}", place::unique()), "core 1")
        .push(&site.registry, "1")
        .await?;
    let mut device = site.device().await?;
    let words = ["sh", "-c", &script("exec \"$0\" \"$@\"")];
    device.agent.run_under(&words.map(str::to_owned))?;
    site.converge(&device, &web(&image)).await?;
    let agent = device.agent.process()?;
    agent.signal(rustix::process::Signal::ABORT);
    agent.wait_for_end(CONVERGES_WITHIN).await?;
    assert_eq!(dumps()?, Vec::<std::path::PathBuf>::new());
    Ok(())
}
