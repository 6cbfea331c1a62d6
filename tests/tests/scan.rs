//! `holdfast-agent scan` without any server, on a real engine with real registries.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::docker::Docker;
use holdfast_tests::engine::Engine;
use holdfast_tests::http_tap::{HttpTap, reply};
use holdfast_tests::images::Image;
use holdfast_tests::registry::{Login, Options, Registry};
use holdfast_tests::{binaries, place};
use serde_json::{Value, json};

/// A scan takes a second; on a busy machine with other tests' containers much more.
const ENDS_WITHIN: Duration = Duration::from_mins(2);
const PASSWORD: &str = "hunter2-of-the-scan";

/// A machine with containers that nobody manages; they are removed with it.
struct Machine {
    engine: Engine,
    containers: Vec<String>,
    home: tempfile::TempDir,
}

impl Machine {
    fn new(engine: Engine) -> anyhow::Result<Self> {
        Ok(Self {
            engine,
            containers: Vec::new(),
            home: place::temporary("scan")?,
        })
    }

    fn docker(&self) -> &Docker {
        self.engine.docker()
    }

    /// Runs a container of an image that the engine has; gives its name.
    async fn run(&mut self, image: &str) -> anyhow::Result<String> {
        let name = format!("scan-{}", place::unique());
        self.containers.push(name.clone());
        self.docker().run(&name, &json!({ "Image": image })).await?;
        Ok(name)
    }

    async fn pull_and_run(&mut self, image: &str) -> anyhow::Result<String> {
        self.docker().pull(image, None).await?;
        self.run(image).await
    }

    /// Gives an image that the engine has another name.
    async fn tag(&self, image: &str, repository: &str, tag: &str) -> anyhow::Result<()> {
        let path = format!("/images/{image}/tag?repo={repository}&tag={tag}");
        self.docker().post(&path).await
    }

    async fn scan(&self, words: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Output> {
        let mut command = tokio::process::Command::new(binaries::agent()?);
        command
            .arg("scan")
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("HOLDFAST_STATE_DIR", self.home.path())
            .env("HOLDFAST_DOCKER__SOCKET", self.docker().socket())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(ENDS_WITHIN, command.output()).await??;
        for text in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(text);
            ensure!(!text.contains(PASSWORD), "a password is shown: {text}");
        }
        Ok(output)
    }

    /// The report on one container.
    async fn report(&self, name: &str, env: &[(&str, &str)]) -> anyhow::Result<Value> {
        let output = self.scan(&["--output", "json"], env).await?;
        let reports: Vec<Value> = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let mut reports = reports.into_iter();
        let own = reports.find(|report| report["containerName"] == *name);
        own.context("the scan has the container")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Whatever the test said; the engine itself may be gone already.
        let _ = Command::new("docker")
            .arg("-H")
            .arg(format!("unix://{}", self.docker().socket().display()))
            .args(["rm", "--force", "--volumes"])
            .args(&self.containers)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// An image that runs and is no other test's.
fn image(repository: &str, version: &str) -> Image {
    Image::idle(repository, version)
        .label("scan.test", repository)
        .platforms(&["linux/amd64", "linux/arm64"])
}

fn unique(name: &str) -> String {
    format!("{name}-{}", place::unique())
}

fn error(report: &Value) -> &str {
    report["error"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_change_for_this_platform_is_an_update() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let mut machine = Machine::new(Engine::shared().await?)?;
    let repository = unique("app");
    let first = image(&repository, "1").push(&registry, "stable").await?;
    let tagged = machine.pull_and_run(&first.reference()).await?;
    let pinned = machine.pull_and_run(&first.pinned()).await?;

    let report = machine.report(&tagged, &[]).await?;
    assert_eq!(report["hasUpdate"], false, "{report}");
    assert_eq!(report["status"], "up_to_date");
    assert_eq!(report["tag"], "stable");
    assert_eq!(report["isManifestList"], true);
    assert_eq!(report["state"], "running");
    assert_eq!(
        report["platform"],
        json!({ "os": "linux", "architecture": "amd64" })
    );
    assert_eq!(report["runningDigest"], json!(first.top_digest));
    assert_eq!(report["registryDigest"], json!(first.top_digest));
    let report = machine.report(&pinned, &[]).await?;
    assert_eq!(report["status"], "pinned", "{report}");

    let other = image(&repository, "1").file_only("linux/arm64", "/other", "x");
    let other = other.push(&registry, "stable").await?;
    let report = machine.report(&tagged, &[]).await?;
    assert_eq!(report["hasUpdate"], false, "{report}");
    assert_eq!(report["runningDigest"], json!(first.top_digest));
    assert_eq!(report["registryDigest"], json!(other.top_digest));

    let second = image(&repository, "2").push(&registry, "stable").await?;
    let report = machine.report(&tagged, &[]).await?;
    assert_eq!(report["hasUpdate"], true, "{report}");
    assert_eq!(
        report["change"],
        json!({ "from": "1", "to": "2", "releaseUrl": null })
    );
    // Pulled again by somebody: the engine has the new image, the container still runs the old one.
    machine.docker().pull(&second.reference(), None).await?;
    assert_eq!(machine.report(&tagged, &[]).await?["hasUpdate"], true);
    let report = machine.report(&pinned, &[]).await?;
    assert_eq!((&report["hasUpdate"], error(&report)), (&json!(false), ""));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_is_read_with_the_logins_of_whoever_asks() -> anyhow::Result<()> {
    let registry = Registry::start(Options {
        login: Login::Basic {
            username: "reader".to_owned(),
            password: PASSWORD.to_owned(),
        },
        ..Options::default()
    });
    let registry = registry.await?;
    let mut machine = Machine::new(Engine::shared().await?)?;
    let pushed = image(&unique("private"), "1").push(&registry, "1").await?;
    let login = Some(("reader", PASSWORD));
    machine.docker().pull(&pushed.reference(), login).await?;
    let name = machine.run(&pushed.reference()).await?;

    let report = machine.report(&name, &[]).await?;
    assert_eq!(report["hasUpdate"], Value::Null, "{report}");
    assert_eq!(report["status"], "unknown");
    assert!(error(&report).contains("401"), "{report}");

    let host = registry.host();
    let environment = |password| {
        [
            ("DOCKER_REGISTRY", host.as_str()),
            ("DOCKER_REGISTRY_USERNAME", "reader"),
            ("DOCKER_REGISTRY_PASSWORD", password),
        ]
    };
    let report = machine.report(&name, &environment("wrong")).await?;
    assert!(error(&report).contains("401"), "{report}");
    let report = machine.report(&name, &environment(PASSWORD)).await?;
    assert_eq!(report["hasUpdate"], false, "{report}");
    // Without a registry's name they are Docker Hub's, and nobody else sees them.
    let report = machine.report(&name, &environment(PASSWORD)[1..]).await?;
    assert!(error(&report).contains("401"), "{report}");

    let folder = place::temporary("docker-config")?;
    write_config(
        folder.path(),
        &json!({ "auths": { &host: { "username": "reader", "password": PASSWORD } } }),
    )?;
    let config = folder.path().display().to_string();
    let report = machine.report(&name, &[("DOCKER_CONFIG", &config)]).await?;
    assert_eq!(report["hasUpdate"], false, "{report}");

    write_config(folder.path(), &json!({ "credHelpers": { &host: "lab" } }))?;
    let answer = json!({ "ServerURL": host, "Username": "reader", "Secret": PASSWORD });
    let helper = write_helper(folder.path(), &answer)?;
    let path = format!("{}:/usr/bin:/bin", helper.display());
    let with_helper = [("DOCKER_CONFIG", config.as_str()), ("PATH", path.as_str())];
    let report = machine.report(&name, &with_helper).await?;
    assert_eq!(report["hasUpdate"], false, "{report}");

    std::fs::write(folder.path().join("config.json"), "{ nonsense")?;
    let output = machine.scan(&[], &[("DOCKER_CONFIG", &config)]).await?;
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(talk.contains("no logins"), "{talk}");
    // A damaged file takes nothing from the login beside it.
    let mut beside = environment(PASSWORD).to_vec();
    beside.push(("DOCKER_CONFIG", config.as_str()));
    let report = machine.report(&name, &beside).await?;
    assert_eq!(report["hasUpdate"], false, "{report}");
    Ok(())
}

fn write_config(folder: &Path, config: &Value) -> anyhow::Result<()> {
    Ok(std::fs::write(
        folder.join("config.json"),
        config.to_string(),
    )?)
}

fn write_helper(folder: &Path, answer: &Value) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let bin = folder.join("bin");
    std::fs::create_dir(&bin)?;
    let helper = bin.join("docker-credential-lab");
    std::fs::write(
        &helper,
        format!("#!/bin/sh\ncat >/dev/null\necho '{answer}'\n"),
    )?;
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755))?;
    Ok(bin)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_was_pulled_by_is_read_by_repository() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let mut machine = Machine::new(Engine::shared().await?)?;
    let (one, other) = (unique("one"), unique("other"));
    // The same content twice: one image to the engine, with a digest for each repository.
    let content = |repository: &str, version| {
        let image = image(repository, version).label("scan.test", one.as_str());
        image.label("test.repository", one.as_str())
    };
    let first = content(&one, "1").push(&registry, "1").await?;
    let second = content(&other, "1").push(&registry, "1").await?;
    let from_one = machine.pull_and_run(&first.reference()).await?;
    let from_other = machine.pull_and_run(&second.reference()).await?;
    let known = machine.docker().image(&first.reference()).await?;
    let known = known.context("it was pulled")?;
    assert_eq!(
        known["RepoDigests"].as_array().map(Vec::len),
        Some(2),
        "{known}"
    );

    content(&other, "2").push(&registry, "1").await?;
    let report = machine.report(&from_one, &[]).await?;
    assert_eq!(report["hasUpdate"], false, "{report}");
    let report = machine.report(&from_other, &[]).await?;
    assert_eq!(report["hasUpdate"], true, "{report}");

    // Named by hand as a third, which has the same content, then another.
    let third = unique("third");
    let pushed = content(&third, "1").push(&registry, "1").await?;
    machine.tag(&first.reference(), &pushed.name, "1").await?;
    let renamed = machine.run(&pushed.reference()).await?;
    let report = machine.report(&renamed, &[]).await?;
    assert_eq!(report["hasUpdate"], false, "{report}");
    content(&third, "2").push(&registry, "1").await?;
    let report = machine.report(&renamed, &[]).await?;
    assert_eq!(report["hasUpdate"], Value::Null, "{report}");
    assert_eq!(error(&report), "it was pulled from another repository");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_does_not_say_is_not_known() -> anyhow::Result<()> {
    let mut registry = Registry::open().await?;
    let tap = HttpTap::start(registry.host()).await?;
    let mut machine = Machine::new(Engine::shared().await?)?;
    let pushed = image(&unique("app"), "1").push(&registry, "1").await?;
    let through = format!("{}/{}:1", tap.address(), pushed.repository);
    let name = machine.pull_and_run(&through).await?;
    assert_eq!(machine.report(&name, &[]).await?["hasUpdate"], false);

    for (status, expected) in [(429, "429"), (403, "403"), (404, "404"), (500, "500")] {
        tap.alter(move |_, _| reply(status, &[("retry-after", "30")], "{}"));
        let report = machine.report(&name, &[]).await?;
        assert_eq!(report["hasUpdate"], Value::Null, "{report}");
        assert_eq!(report["status"], "unknown");
        assert_eq!(report["registryDigest"], Value::Null);
        assert!(error(&report).contains(expected), "{report}");
    }
    tap.alter(|_, _| reply(200, &[("content-type", "text/html")], "<html>log in</html>"));
    let report = machine.report(&name, &[]).await?;
    assert_eq!(report["hasUpdate"], Value::Null, "{report}");
    tap.honest();
    assert_eq!(machine.report(&name, &[]).await?["hasUpdate"], false);

    let direct = machine.pull_and_run(&pushed.reference()).await?;
    registry.stop();
    let report = machine.report(&direct, &[]).await?;
    assert_eq!(report["hasUpdate"], Value::Null, "{report}");
    assert!(error(&report).contains("cannot be reached"), "{report}");
    registry.resume().await?;
    assert_eq!(machine.report(&direct, &[]).await?["hasUpdate"], false);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_built_here_is_asked_of_nobody() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let mut machine = Machine::new(Engine::shared().await?)?;
    let pushed = image(&unique("base"), "1").push(&registry, "1").await?;
    let base = machine.pull_and_run(&pushed.reference()).await?;
    let (built, tag) = (format!("{}/{}", registry.host(), unique("built")), "1");
    // A commit is an image without a registry's digest, as a build is.
    let path = format!("/commit?container={base}&repo={built}&tag={tag}");
    machine.docker().post(&path).await?;
    let name = machine.run(&format!("{built}:{tag}")).await?;
    let report = machine.report(&name, &[]).await?;
    assert_eq!(report["hasUpdate"], Value::Null, "{report}");
    assert!(error(&report).contains("built here"), "{report}");
    assert_eq!(report["runningDigest"], Value::Null);
    let repository = built.rsplit_once('/').context("a host")?.1.to_owned();
    let asked = registry.requests();
    let asked = asked
        .iter()
        .filter(|asked| asked.path.contains(&repository));
    assert_eq!(asked.count(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_one_image_share_one_question() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    // Its own engine: a scan of another test would ask this registry too.
    let mut machine = Machine::new(Engine::private().await?)?;
    let pushed = image(&unique("app"), "1").push(&registry, "1.0").await?;
    machine.docker().pull(&pushed.reference(), None).await?;
    let mut last = String::new();
    for _ in 0..4 {
        last = machine.run(&pushed.reference()).await?;
    }
    let before = registry.requests().len();
    let report = machine.report(&last, &[]).await?;
    assert_eq!(report["hasUpdate"], false, "{report}");
    let asked = registry.requests().split_off(before);
    let of = |end: &str| {
        asked
            .iter()
            .filter(|asked| asked.path.ends_with(end))
            .count()
    };
    assert_eq!(of("/manifests/1.0"), 1, "{asked:?}");
    assert!(
        asked
            .iter()
            .filter(|asked| asked.path.contains("/tags/list"))
            .count()
            <= 1
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_names_what_would_change_and_the_exit_code_sums_it_up() -> anyhow::Result<()> {
    let mut registry = Registry::open().await?;
    // Its own engine: no other test's container counts.
    let mut machine = Machine::new(Engine::private().await?)?;
    let output = machine.scan(&[], &[]).await?;
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "no container runs\n"
    );

    let repository = unique("web");
    let source = "https://github.com/o/web";
    let version = |version: &str| {
        image(&repository, version).label("org.opencontainers.image.source", source)
    };
    let first = version("1.26.1").push(&registry, "1.26").await?;
    version("1.26.1").push(&registry, "1.26.1").await?;
    let moving = machine.pull_and_run(&first.reference()).await?;
    let exact = format!("{}:1.26.1", first.name);
    let exact_name = machine.pull_and_run(&exact).await?;
    let output = machine.scan(&[], &[]).await?;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{table}");

    let next = version("1.26.3").push(&registry, "1.26").await?;
    version("1.26.3").push(&registry, "1.26.3").await?;
    version("2.0.0").push(&registry, "2.0.0").await?;
    let output = machine.scan(&[], &[]).await?;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2), "{table}");
    let row_of = |name: &str| table.lines().find(|line| line.starts_with(name));
    let short = |digest: &str| digest["sha256:".len()..][..12].to_owned();
    let (name, link) = (&first.name, "https://github.com/o/web/releases/tag/1.26.3");
    let row = row_of(&moving).context("a line for it")?;
    for part in [
        "linux/amd64",
        &short(&first.top_digest),
        &short(&next.top_digest),
        &format!("yes {name} 1.26.1 → 1.26.3 {link}"),
    ] {
        assert!(row.contains(part), "{part} is not in {row}");
    }
    let row = row_of(&exact_name).context("a line for it")?;
    let newer = format!("no (newer tag: {name} 1.26.1 → 1.26.3) {link}");
    assert!(row.ends_with(&newer), "{row}");
    let report = machine.report(&exact_name, &[]).await?;
    assert_eq!(
        report["candidates"],
        json!([{
            "tag": "1.26.3", "isLatest": true, "releaseUrl": link, "platformAvailable": "yes"
        }])
    );

    registry.stop();
    let output = machine.scan(&["--output", "json"], &[]).await?;
    assert_eq!(output.status.code(), Some(1));
    Ok(())
}
