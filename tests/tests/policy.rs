//! The device's own policy: no target gets past it, and what runs goes on (A40, T1, T2).

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_tests::agent::{Agent, Options};
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::place;
use holdfast_tests::site::{CONVERGES_WITHIN, Device, Site, page, service, target, wait_for_page};
use holdfast_tests::wait::wait_for;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A policy file in a folder of its own; both are root's, as the tests are.
fn policy(rules: &str) -> anyhow::Result<(TempDir, PathBuf)> {
    let folder = place::temporary("policy")?;
    let file = folder.path().join("policy.yaml");
    std::fs::write(&file, rules)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))?;
    Ok((folder, file))
}

/// A web service of this image with more settings.
fn web(image: &Pushed, port: u16, more: &Value) -> Value {
    let mut config = json!({ "ports": [format!("127.0.0.1:{port}:8080")] });
    for (name, value) in more.as_object().expect("settings") {
        config[name] = value.clone();
    }
    if config["network_mode"] == "host" {
        config["ports"] = json!([]);
    }
    target(&[service("web", &image.reference(), &config)])
}

/// A site with one device that allows only images below `REGISTRY/ours-…`, and serves version `one`.
async fn serving() -> anyhow::Result<(Site, Device, u16, Pushed, TempDir)> {
    let site = Site::start().await?;
    let rules = format!("registries: ['{}/ours-*']", site.registry.host());
    let (folder, file) = policy(&rules)?;
    let with_policy = |options: Options| options.set("policy", "file", file.display().to_string());
    let mut device = site.device_at(site.api.url(), with_policy).await?;
    let repository = format!("ours-{}", place::unique());
    let one = Image::healthy_web(&repository, "one")
        .push(&site.registry, "1")
        .await?;
    let port = device.port()?;
    device.agent.run()?;
    site.converge(&device, &web(&one, port, &json!({}))).await?;
    wait_for_page(port, "one").await;
    Ok((site, device, port, one, folder))
}

/// Sets a target and waits until the device says that its policy holds the service; gives the words.
async fn held(site: &Site, device: &Device, asked: &Value) -> anyhow::Result<String> {
    let stored = site.set(&device.uuid, asked).await?;
    let report = site
        .wait_for_status(&device.uuid, &stored["generation"], "holding")
        .await;
    let hold = &report["holds"][0];
    assert_eq!(hold["code"], "policy", "{report}");
    assert_eq!(hold["service"], "1001/web", "{report}");
    Ok(hold["detail"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a40_what_the_policy_does_not_list_is_held_and_what_runs_goes_on() -> anyhow::Result<()> {
    let (site, device, port, one, _folder) = serving().await?;
    let before = device.running("web").await?;
    device.tap.forget();
    for (more, field) in [
        (json!({ "privileged": true }), "HostConfig.Privileged"),
        (
            json!({ "volumes": ["/var/run/docker.sock:/docker.sock"] }),
            "HostConfig.Binds[0]",
        ),
        (
            json!({ "volumes": [{ "type": "bind", "source": "/run/docker.sock", "target": "/s" }] }),
            "HostConfig.Mounts[0]",
        ),
        (json!({ "volumes": ["/:/host:ro"] }), "HostConfig.Binds[0]"),
        (json!({ "network_mode": "host" }), "HostConfig.NetworkMode"),
        (json!({ "pid": "host" }), "HostConfig.PidMode"),
        (json!({ "cap_add": ["SYS_ADMIN"] }), "HostConfig.CapAdd"),
        (json!({ "devices": ["/dev/kmsg"] }), "HostConfig.Devices[0]"),
        (
            json!({ "security_opt": ["seccomp:unconfined"] }),
            "HostConfig.SecurityOpt",
        ),
        // Saying it is allowed does not allow it.
        (
            json!({ "privileged": true, "x-policy": { "privileged": true } }),
            "HostConfig.Privileged",
        ),
    ] {
        let detail = held(&site, &device, &web(&one, port, &more)).await?;
        assert!(detail.contains(field), "{more}: {detail}");
    }
    assert_eq!(
        device.tap.mutations(),
        [],
        "the engine was asked for nothing"
    );
    let after = device.running("web").await?;
    assert_eq!(after["Id"], before["Id"]);
    assert_eq!(after["State"]["StartedAt"], before["State"]["StartedAt"]);
    assert_eq!(page(port).await, Ok("one".to_owned()));

    // A target that asks for nothing special is carried out as ever.
    let two = Image::healthy_web(&one.repository, "two")
        .push(&site.registry, "2")
        .await?;
    site.converge(&device, &web(&two, port, &json!({}))).await?;
    wait_for_page(port, "two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a40_an_image_from_elsewhere_is_not_even_fetched() -> anyhow::Result<()> {
    let (site, device, port, _, _folder) = serving().await?;
    device.tap.forget();
    let foreign = Image::healthy_web(format!("theirs-{}", place::unique()), "evil")
        .push(&site.registry, "1")
        .await?;
    let detail = held(&site, &device, &web(&foreign, port, &json!({}))).await?;
    assert!(detail.contains("`Image`"), "{detail}");
    assert_eq!(device.tap.mutations(), []);
    assert_eq!(page(port).await, Ok("one".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_written_later_holds_from_the_next_start_on() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let (_folder, file) = policy("registries: ['*']\ncapabilities: [NET_ADMIN]")?;
    let with_policy = |options: Options| options.set("policy", "file", file.display().to_string());
    let mut device = site.device_at(site.api.url(), with_policy).await?;
    let image = Image::healthy_web(format!("web-{}", place::unique()), "one")
        .push(&site.registry, "1")
        .await?;
    let port = device.port()?;
    let capable = web(&image, port, &json!({ "cap_add": ["NET_ADMIN"] }));
    device.agent.run()?;
    site.converge(&device, &capable).await?;
    let before = device.running("web").await?;

    // What runs was allowed when it was made, and stays; nothing more of the kind is made.
    device.agent.stop();
    std::fs::write(&file, "registries: ['*']")?;
    device.tap.forget();
    device.agent.run()?;
    let changed = web(
        &image,
        port,
        &json!({ "cap_add": ["NET_ADMIN"], "environment": { "A": "b" } }),
    );
    let detail = held(&site, &device, &changed).await?;
    assert!(detail.contains("HostConfig.CapAdd"), "{detail}");
    assert_eq!(device.tap.mutations(), []);
    assert_eq!(device.running("web").await?["Id"], before["Id"]);

    // Widened by the device's owner, it is carried out without another target.
    device.agent.stop();
    std::fs::write(&file, "registries: ['*']\ncapabilities: [net_admin]")?;
    device.agent.run()?;
    wait_for("the change", CONVERGES_WITHIN, async || {
        let running = device.running("web").await.map_err(|e| e.to_string())?;
        let environment = &running["Config"]["Env"];
        if environment.to_string().contains("A=b") && running["Id"] != before["Id"] {
            Ok(())
        } else {
            Err(environment.to_string())
        }
    })
    .await;
    Ok(())
}

/// Runs a command of the agent to its end; gives its exit code and what it said.
fn ended(config: &Path, words: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let output = Command::new(holdfast_tests::binaries::agent()?)
        .arg("--config")
        .arg(config)
        .args(words)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), said))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_trusted_or_read_ends_the_agent_with_a_reason() -> anyhow::Result<()>
{
    let (_folder, file) = policy("registries: ['*']")?;
    let options = Options::new("http://127.0.0.1:1", Path::new("/no/docker.sock"));
    let options = options.set("policy", "file", file.display().to_string());
    let agent = Agent::prepare(options)?;
    let config = agent.config_file();
    assert_eq!(ended(&config, &["config", "check"])?.0, Some(0));
    for (rules, mode, expected) in [
        ("registries: ['*']", 0o666, "others than root may write it"),
        ("registries: ['*']", 0o620, "others than root may write it"),
        (
            "privileged: true",
            0o600,
            "registries: write where images may come from",
        ),
        (
            "registries: ['*']\nprivilege: true",
            0o600,
            "unknown field `privilege`",
        ),
        ("registries: [", 0o600, "not valid YAML"),
    ] {
        std::fs::write(&file, rules)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
        for words in [&["run"][..], &["config", "check"]] {
            let (code, said) = ended(&config, words)?;
            assert_eq!(code, Some(78), "{rules}: {said}");
            assert!(said.contains(expected), "{rules}: {said}");
        }
    }
    std::fs::remove_file(&file)?;
    let (code, said) = ended(&config, &["run"])?;
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("cannot read the policy"), "{said}");
    Ok(())
}
