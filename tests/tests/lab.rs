//! The lab's own tests: each one runs the real thing and asks it.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::api::client;
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::docker::Docker;
use holdfast_tests::engine::Engine;
use holdfast_tests::images::{Image, Kind, Pushed};
use holdfast_tests::place::{Port, temporary, unique};
use holdfast_tests::postgres::Postgres;
use holdfast_tests::process::{Process, Program, Signal};
use holdfast_tests::receiver::Receiver;
use holdfast_tests::registry::{ACCEPT_ALL, Login, Options, Registry};
use holdfast_tests::tap::{Action, EngineTap, Rule, When};
use holdfast_tests::tcp_tap::{Mode, TcpTap};
use holdfast_tests::token_server::TokenPolicy;
use holdfast_tests::wait::{try_wait_for, wait_for};
use reqwest::StatusCode;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const ALL: &[&str] = &["linux/amd64", "linux/arm64", "linux/arm/v7"];

#[expect(clippy::print_stdout, reason = "shown only with --no-capture")]
/// Sets a measured time beside the test's name when `--no-capture` is on.
fn took(what: &str, watch: Stopwatch) {
    println!("{what}: {:?}", watch.elapsed());
}

/// Removes what a test put into the shared engine, also when it failed.
async fn tidy(docker: &Docker, name: &str, image: &Pushed) -> anyhow::Result<()> {
    docker.remove(name).await?;
    docker.remove_image(&image.pinned()).await
}

async fn body_of(url: &str) -> anyhow::Result<String> {
    let response = client().get(url).send().await?.error_for_status()?;
    Ok(response.text().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_by_digest_and_serves_a_page_over_a_published_port() -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    let engine = Engine::shared().await?;
    took("engine", watch);
    let watch = Stopwatch::start();
    let registry = Registry::open().await?;
    took("registry", watch);
    let repository = format!("lab/web-{}", unique());
    for (kind, version) in [(Kind::Docker, "one"), (Kind::Oci, "two")] {
        let image = Image::healthy_web(&repository, version)
            .kind(kind)
            .platforms(ALL);
        let watch = Stopwatch::start();
        let pushed = image.push(&registry, version).await?;
        took("push of three platforms", watch);
        let watch = Stopwatch::start();
        engine.docker().pull(&pushed.pinned(), None).await?;
        took("pull", watch);
        let local = engine.docker().image(&pushed.pinned()).await?;
        let local = local.context("the pulled image is not there")?;
        assert_eq!(local["Id"], pushed.child("linux/amd64").config_digest);

        let (port, name) = (Port::take()?, unique());
        let body = json!({
            "Image": pushed.pinned(),
            "HostConfig": { "PortBindings": {
                "8080/tcp": [{ "HostIp": "127.0.0.1", "HostPort": port.number().to_string() }],
            }},
        });
        let watch = Stopwatch::start();
        engine.docker().run(&name, &body).await?;
        let url = format!("http://{}/", port.address());
        let page = wait_for("the page", SOON, async || body_of(&url).await).await;
        took("run until the page answers", watch);
        assert_eq!(page, format!("{version}\n"));
        wait_for("healthy", SOON, async || {
            let container = engine.docker().container(&name).await?;
            let health = container.unwrap_or_default()["State"]["Health"]["Status"].clone();
            ensure!(health == "healthy", "{health}");
            anyhow::Ok(())
        })
        .await;
        let watch = Stopwatch::start();
        engine
            .docker()
            .post(&format!("/containers/{name}/stop"))
            .await?;
        took("stop", watch);
        tidy(engine.docker(), &name, &pushed).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_images_fail_in_the_way_their_name_says() -> anyhow::Result<()> {
    let engine = Engine::shared().await?;
    let docker = engine.docker();
    let registry = Registry::open().await?;
    let start = async |image: Image| -> anyhow::Result<(String, Pushed, anyhow::Result<String>)> {
        let pushed = image.push(&registry, "1").await?;
        docker.pull(&pushed.pinned(), None).await?;
        let name = unique();
        let ran = docker
            .run(&name, &json!({ "Image": pushed.pinned() }))
            .await;
        Ok((name, pushed, ran))
    };
    let state = async |name: &str| docker.container(name).await.map(Option::unwrap_or_default);

    let (name, pushed, ran) =
        start(Image::broken_entrypoint(format!("lab/broken-{}", unique()))).await?;
    let error = format!("{:#}", ran.expect_err("it cannot start"));
    assert!(error.contains("not-there"), "{error}");
    tidy(docker, &name, &pushed).await?;

    let (name, pushed, ran) =
        start(Image::crash_loop(format!("lab/crash-{}", unique()), 0)).await?;
    ran?;
    wait_for("status 3", SOON, async || {
        let state = state(&name).await?["State"].clone();
        ensure!(
            state["ExitCode"] == 3 && state["Running"] == false,
            "{state}"
        );
        anyhow::Ok(())
    })
    .await;
    assert_eq!(docker.logs(&name).await?, "about to crash\n");
    tidy(docker, &name, &pushed).await?;

    let sick = Image::never_healthy(format!("lab/sick-{}", unique()), "1");
    let (name, pushed, ran) = start(sick).await?;
    ran?;
    wait_for("unhealthy", SOON, async || {
        let state = state(&name).await?["State"].clone();
        ensure!(state["Health"]["Status"] == "unhealthy", "{state}");
        anyhow::Ok(())
    })
    .await;
    tidy(docker, &name, &pushed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_gives_back_both_kinds_of_index_as_pushed() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    for (kind, media_type) in [
        (Kind::Oci, "application/vnd.oci.image.index.v1+json"),
        (
            Kind::Docker,
            "application/vnd.docker.distribution.manifest.list.v2+json",
        ),
    ] {
        let repository = format!("lab/kinds-{}", unique());
        let image = Image::web(&repository, "1").kind(kind).platforms(ALL);
        let pushed = image.clone().attested().push(&registry, "1").await?;
        let answer = registry.manifest(&repository, "1", ACCEPT_ALL).await?;
        assert_eq!(answer.headers()["content-type"], media_type);
        assert_eq!(
            answer.headers()["docker-content-digest"],
            pushed.top_digest.as_str()
        );
        let index: Value = answer.json().await?;
        assert_eq!(index["manifests"].as_array().map(Vec::len), Some(4));
        for child in &pushed.children {
            let answer = registry.manifest(&repository, &child.manifest_digest, ACCEPT_ALL);
            let manifest: Value = answer.await?.error_for_status()?.json().await?;
            assert_eq!(manifest["config"]["digest"], child.config_digest);
        }

        // The same description gives the same digests; one platform's file changes one child.
        let again = image.clone().attested().push(&registry, "again").await?;
        assert_eq!(again.top_digest, pushed.top_digest);
        let other = image.file_only("linux/arm64", "/www/note", "new");
        let other = other.push(&registry, "2").await?;
        let changed: Vec<&str> = (other.children.iter())
            .filter(|child| !pushed.children.contains(child))
            .map(|child| child.platform.as_str())
            .collect();
        assert_eq!(changed, ["linux/arm64"]);

        let single = Image::web(&repository, "3").kind(kind).single();
        let single = single.push(&registry, "3").await?;
        assert_eq!(single.index_digest, None);
        assert_eq!(single.top_digest, single.children[0].manifest_digest);
    }
    let asked = |method: &str, part: &str| {
        let requests = registry.requests();
        let fits = |access: &&holdfast_tests::registry::Access| {
            access.method == method && access.path.contains(part)
        };
        requests.iter().filter(fits).count()
    };
    wait_for("every request in the access log", SOON, async || {
        asked("GET", "/manifests/1") == 2 && asked("PUT", "/manifests/again") == 2
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_login_refuses_and_admits() -> anyhow::Result<()> {
    let engine = Engine::shared().await?;
    let login = Login::Basic {
        username: "ada".to_owned(),
        password: "engine no 1".to_owned(),
    };
    let registry = Registry::start(Options {
        login,
        ..Options::default()
    })
    .await?;
    refuses_and_admits(&engine, &registry, "Basic ").await
}

#[tokio::test(flavor = "multi_thread")]
async fn token_login_refuses_and_admits() -> anyhow::Result<()> {
    let engine = Engine::shared().await?;
    let login = Login::Token(TokenPolicy::user("ada", "engine no 1"));
    let registry = Registry::start(Options {
        login,
        ..Options::default()
    })
    .await?;
    refuses_and_admits(&engine, &registry, "Bearer ").await?;
    let tokens = registry.tokens().context("a token server")?;
    assert!(tokens.asked() >= 2, "{}", tokens.asked());
    Ok(())
}

async fn refuses_and_admits(
    engine: &Engine,
    registry: &Registry,
    scheme: &str,
) -> anyhow::Result<()> {
    let repository = format!("lab/login-{}", unique());
    let pushed = Image::web(&repository, "1").push(registry, "1").await?;
    let url = format!("{}/v2/{repository}/manifests/1", registry.url());
    let refused = client().get(url).send().await?;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let challenge = refused.headers()["www-authenticate"].to_str()?;
    assert!(challenge.starts_with(scheme), "{challenge}");

    let docker = engine.docker();
    for login in [None, Some(("ada", "engine no 2"))] {
        assert!(docker.pull(&pushed.pinned(), login).await.is_err());
    }
    docker
        .pull(&pushed.pinned(), Some(("ada", "engine no 1")))
        .await?;
    docker.remove_image(&pushed.pinned()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_announced_to_the_receiver() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let registry = Registry::start(Options {
        notify: Some((format!("{}/hook", receiver.url()), "s3cret".to_owned())),
        ..Options::default()
    })
    .await?;
    let repository = format!("lab/told-{}", unique());
    let pushed = Image::web(&repository, "1").push(&registry, "1.0").await?;
    let notice = receiver
        .wait_for("the push of the tag", SOON, |request| {
            let events = request.json()["events"].clone();
            let mut events = events.as_array().into_iter().flatten();
            events.any(|event| {
                event["action"] == "push"
                    && event["target"]["tag"] == "1.0"
                    && event["target"]["digest"] == pushed.top_digest
            })
        })
        .await?;
    assert_eq!(notice.path, "/hook");
    assert_eq!(notice.header("authorization"), Some("Bearer s3cret"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_comes_back_on_its_port_with_its_content() -> anyhow::Result<()> {
    let mut registry = Registry::start(Options {
        delete: true,
        ..Options::default()
    })
    .await?;
    let pushed = Image::idle("lab/kept", "1").push(&registry, "1").await?;
    registry.stop();
    let away = registry.manifest("lab/kept", "1", ACCEPT_ALL).await;
    assert!(away.is_err_and(|error| format!("{error:#}").contains("error sending")));
    registry.resume().await?;
    let back = registry.manifest("lab/kept", "1", ACCEPT_ALL).await?;
    assert_eq!(back.status(), StatusCode::OK);
    registry.tag("lab/kept", &pushed.top_digest, "2").await?;
    let status = registry.delete("lab/kept", &pushed.top_digest).await?;
    assert_eq!(status, StatusCode::ACCEPTED);
    for tag in ["1", "2"] {
        let gone = registry.manifest("lab/kept", tag, ACCEPT_ALL).await?;
        assert_eq!(gone.status(), StatusCode::NOT_FOUND);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_answers_in_a_database_of_its_own() -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    let postgres = Postgres::start().await?;
    took("postgres", watch);
    let (one, two) = (postgres.database().await?, postgres.database().await?);
    assert_ne!(one, two);
    let query = holdfast_tests::postgres::query;
    query(
        &one,
        "create table t (n int); insert into t values (6), (7)",
    )
    .await?;
    assert_eq!(query(&one, "select n from t order by n").await?, ["6", "7"]);
    assert!(query(&two, "select n from t").await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tap_kills_its_client_after_the_engine_created_the_container() -> anyhow::Result<()> {
    let engine = Engine::shared().await?;
    let registry = Registry::open().await?;
    let image = Image::idle(format!("lab/tap-{}", unique()), "1");
    let pushed = image.push(&registry, "1").await?;
    let tap = EngineTap::start(engine.socket())?;
    let through = Docker::at(&tap.socket());
    // A pull is one long chunked stream.
    through.pull(&pushed.pinned(), None).await?;
    assert_eq!(tap.mutations().len(), 1);

    let name = unique();
    let folder = temporary("lab")?;
    // The shell waits for a nod, so that its pid is known to the rule before it calls.
    let nod = folder.path().join("nod");
    let script = format!(
        "until [ -e {} ]; do sleep 0.01; done; exec docker -H unix://{} create --name {name} {}",
        nod.display(),
        tap.socket().display(),
        pushed.pinned()
    );
    let victim = Process::start(
        "docker create",
        Program::new("/bin/sh", ["-c", &script]),
        &folder.path().join("log"),
    )?;
    let fired = tap.arm(
        Rule::on("POST /containers/create")
            .when(When::AfterResponse)
            .then(Action::Kill9(victim.pid())),
    );
    std::fs::write(nod, "")?;
    let call = fired.wait(SOON).await?;
    assert_eq!(call.status, Some(StatusCode::CREATED));
    let status = victim.wait_for_end(SOON).await?;
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9)
    );
    assert_eq!(victim.lines(), Vec::<String>::new());
    let created = engine.docker().container(&name).await?;
    assert_eq!(created.context("created")?["State"]["Status"], "created");
    tidy(engine.docker(), &name, &pushed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tap_passes_streams_and_upgrades_and_stalls_on_demand() -> anyhow::Result<()> {
    let engine = Engine::shared().await?;
    let registry = Registry::open().await?;
    let image = Image::idle(format!("lab/tap-{}", unique()), "1");
    let pushed = image.push(&registry, "1").await?;
    engine.docker().pull(&pushed.pinned(), None).await?;
    let tap = EngineTap::start(engine.socket())?;
    let through = Docker::at(&tap.socket());
    let name = unique();

    // Events stream through while they happen.
    let folder = temporary("lab")?;
    let host = format!("unix://{}", tap.socket().display());
    let filter = format!("container={name}");
    let watch = ["-H", &host, "events", "--filter", &filter].map(str::to_owned);
    let events = Process::start(
        "docker events",
        Program::new("/usr/bin/docker", watch),
        &folder.path().join("log"),
    )?;
    wait_for("the watcher to listen", SOON, async || {
        tap.calls().iter().any(|call| call.path == "/events")
    })
    .await;
    let body = json!({ "Image": pushed.pinned() });
    through.run(&name, &body).await?;
    events.wait_for_log(&["container start"], SOON).await?;
    drop(events);

    // exec upgrades the connection.
    let said = through.cli(&["exec", &name, "echo", "hello"]).await?;
    assert_eq!(said, "hello\n");

    // A stalled call waits; the others go on.
    let fired = tap.arm(Rule::on("POST /containers/*/kill").then(Action::Stall));
    let killing = tokio::spawn({
        let (through, name) = (through.clone(), name.clone());
        async move { through.kill(&name).await }
    });
    assert_eq!(fired.wait(SOON).await?.status, None);
    let container = through.container(&name).await?.unwrap_or_default();
    assert_eq!(container["State"]["Running"], true);
    assert!(!killing.is_finished());
    tap.release();
    killing.await??;

    // Answering in the engine's place, and hanging up.
    tap.arm(Rule::on("GET /_ping").then(Action::Answer(StatusCode::INTERNAL_SERVER_ERROR)));
    assert!(through.ping().await.is_err());
    tap.arm(Rule::on("GET /_ping").then(Action::Reset));
    assert!(through.ping().await.is_err());
    through.ping().await?;
    let mutations = tap.mutations();
    let paths: Vec<&str> = mutations.iter().map(|call| call.path.as_str()).collect();
    assert!(paths.contains(&"/containers/create"), "{paths:?}");
    tap.forget();
    through.get("/containers/json").await?;
    assert_eq!(tap.mutations(), []);
    tidy(engine.docker(), &name, &pushed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_tap_cuts_stalls_and_mends() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let tap = TcpTap::start(registry.host()).await?;
    let url = format!("{}/v2/", tap.url());
    let ask = async |within: u64| -> anyhow::Result<StatusCode> {
        let request = client().get(&url).timeout(Duration::from_millis(within));
        Ok(request.send().await?.status())
    };
    assert_eq!(ask(10_000).await?, StatusCode::OK);
    tap.set(Mode::Cut);
    assert!(ask(10_000).await.is_err());
    tap.set(Mode::Stall);
    let stalled = ask(200).await.expect_err("no byte moves");
    assert!(format!("{stalled:#}").contains("timed out"), "{stalled:#}");
    tap.set(Mode::Open);
    assert_eq!(ask(10_000).await?, StatusCode::OK);
    assert_eq!(tap.connections(), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_engine_dies_and_returns_with_its_containers_running() -> anyhow::Result<()> {
    let shared = Engine::shared().await?;
    let bridge = || std::path::Path::new("/sys/class/net/docker0").exists();
    let had_bridge = bridge();
    let watch = Stopwatch::start();
    let engine = Engine::private().await?;
    took("private engine", watch);
    let registry = Registry::open().await?;
    let pushed = Image::web("lab/private", "1").push(&registry, "1").await?;
    engine.docker().pull(&pushed.pinned(), None).await?;
    let port = Port::take()?;
    let body = json!({
        "Image": pushed.pinned(),
        "Labels": { "io.holdfast.device": "d1" },
        "HostConfig": {
            "RestartPolicy": { "Name": "always" },
            "PortBindings": {
                "8080/tcp": [{ "HostIp": "127.0.0.1", "HostPort": port.number().to_string() }],
            },
        },
    });
    engine.docker().run("survivor", &body).await?;
    let url = format!("http://{}/", port.address());
    let page = async || body_of(&url).await;
    assert_eq!(wait_for("the page", SOON, page).await, "1\n");
    engine.kill9().await?;
    assert!(engine.docker().ping().await.is_err());
    shared.docker().ping().await?;
    engine.start().await?;
    wait_for("the container to run", SOON, async || {
        let container = engine.docker().container("survivor").await?;
        let state = container.unwrap_or_default()["State"].clone();
        ensure!(state["Running"] == true, "{state}");
        anyhow::Ok(())
    })
    .await;
    assert_eq!(wait_for("the page again", SOON, page).await, "1\n");
    assert!(shared.docker().container("survivor").await?.is_none());
    assert_eq!(bridge(), had_bridge, "the shared engine's bridge");
    engine.sweep("d1").await?;
    assert!(
        engine
            .docker()
            .labelled("io.holdfast.device=d1")
            .await?
            .is_empty()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_are_killed_restarted_and_never_left_behind() -> anyhow::Result<()> {
    let folder = temporary("lab")?;
    let log = folder.path().join("log");
    let script = "echo started $$; trap 'echo asked' TERM; while :; do sleep 0.05; done";
    let program = Program::new("/bin/sh", ["-c", script]);
    let mut process = Process::start("a shell", program, &log)?;
    process.wait_for_log(&["started"], SOON).await?;
    let first = process.pid();
    process.kill9();
    assert!(process.ended().is_some());
    let mark = process.mark();
    process.restart()?;
    process.wait_for_log_since(mark, &["started"], SOON).await?;
    let second = process.pid();
    assert_ne!(first, second);
    process.signal(Signal::TERM);
    process.wait_for_log_since(mark, &["asked"], SOON).await?;
    // It ignores SIGTERM, and is gone all the same when its owner drops it.
    drop(process);
    assert!(!std::path::Path::new(&format!("/proc/{second}")).exists());
    assert!(std::fs::read_to_string(&log)?.contains("asked"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_at_its_deadline_and_says_what_it_saw() {
    let deadline = Duration::from_millis(50);
    let seen = try_wait_for("rain", deadline, async || Err::<(), _>("sun")).await;
    let error = format!("{:#}", seen.expect_err("it never rains"));
    assert!(error.contains("rain") && error.contains("sun"), "{error}");
    let hung = try_wait_for("an answer", deadline, std::future::pending::<Option<()>>).await;
    assert!(hung.is_err());
}
