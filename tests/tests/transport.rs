//! Images that the agent fetches itself and gives to the engine over loopback.

use holdfast_tests::engine::{Engine, Private};
use holdfast_tests::http_tap::{HttpTap, reply};
use holdfast_tests::images::{Image, noise};
use holdfast_tests::line::Line;
use holdfast_tests::registry::{Login, Registry};
use holdfast_tests::serving::Serving;
use holdfast_tests::site::{CONVERGES_WITHIN, Device, Site, service, target, wait_for_page};
use holdfast_tests::tap::{Action, Rule};
use holdfast_tests::tcp_tap::{Mode, TcpTap};
use holdfast_tests::wait::wait_for;
use holdfast_tests::{api, place};
use http::StatusCode;
use serde_json::{Value, json};

fn web(image: &str, port: u16) -> Value {
    let ports = json!({ "ports": [format!("127.0.0.1:{port}:8080")] });
    target(&[service("web", image, &ports)])
}

/// The names that `POST /images/create` was called with so far.
fn pulled(device: &Device) -> Vec<String> {
    let calls = device.tap.calls();
    let pulls = calls
        .iter()
        .filter(|call| call.path == "/images/create")
        .filter_map(|call| {
            let mut pairs = call
                .query
                .split('&')
                .filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == "fromImage")
        });
    pulls
        .map(|(_, name)| {
            let name = name.replace("%3A", ":").replace("%2F", "/");
            name.replace("%40", "@")
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_over_loopback_has_a_readable_name_and_no_other() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let repository = format!("web-{}", place::unique());
    let one = Image::web(&repository, "one")
        .push(&site.registry, "1")
        .await?;
    let two = Image::web(&repository, "two")
        .push(&site.registry, "2")
        .await?;
    let mut device = site.device().await?;
    let port = device.port()?;
    device.agent.run()?;
    for (image, page) in [(&one, "one"), (&two, "two")] {
        site.converge(&device, &web(&image.reference(), port))
            .await?;
        wait_for_page(port, page).await;
        let names = pulled(&device);
        let last = names.last().map(String::as_str).unwrap_or_default();
        assert!(holdfast_plan::is_transit_name(last), "{names:?}");
        let docker = site.engine.docker();
        let id = &image.child("linux/amd64").config_digest;
        let found = docker.image(id).await?.expect("it is there");
        let tags = found["RepoTags"].as_array().expect("a list");
        assert!(
            tags.len() == 1 && tags[0].as_str().unwrap_or_default().contains("/1001/web:"),
            "{found}"
        );
        assert_eq!(found["RepoDigests"], json!([]), "{found}");
        let running = device.running("web").await?;
        assert_eq!(running["Config"]["Image"], tags[0]);
        assert_eq!(running["Image"], *id);
        assert!(
            docker.image(last).await?.is_none(),
            "the name on loopback is gone"
        );
    }
    Ok(())
}

/// An image of 8 MB behind a line on which it takes some seconds, and a device that begins to pull it.
async fn pulling(engine: Engine) -> anyhow::Result<(Line, Device, u64, Value)> {
    let line = Line::on(engine).await?;
    let repository = format!("idle-{}", place::unique());
    let image = Image::idle(&repository, "one").file("noise", noise(8 << 20));
    let image = image.push(&line.registry, "1").await?;
    let mut device = line.site.device().await?;
    device.agent.run()?;
    line.tap.set(Mode::Slow {
        bytes_per_second: 4_000_000,
    });
    let stored = line.site.set(&device.uuid, &line.target(&image)).await?;
    let bytes = image.child("linux/amd64").layers_size_bytes;
    Ok((line, device, bytes, stored["generation"].clone()))
}

async fn megabytes(line: &Line, many: u64) {
    let came = async || line.came() > many * 1_000_000;
    wait_for("some megabytes", CONVERGES_WITHIN, came).await;
}

/// It arrives, and not a quarter of it came twice.
async fn arrives(line: &Line, device: &Device, bytes: u64, generation: &Value) {
    line.tap.set(Mode::Open);
    line.site
        .wait_for_status(&device.uuid, generation, "converged")
        .await;
    let came = line.came();
    assert!(
        came < bytes + bytes / 4,
        "{came} bytes came for an image of {bytes}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_where_a_killed_agent_left_it() -> anyhow::Result<()> {
    let (line, mut device, bytes, generation) = pulling(Engine::shared().await?).await?;
    for part in 1..=3 {
        megabytes(&line, part * 2).await;
        device.agent.kill9();
        device.agent.run()?;
    }
    arrives(&line, &device, bytes, &generation).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_where_a_killed_engine_left_it() -> anyhow::Result<()> {
    let engine = Engine::private_with(Private::default()).await?;
    let (line, device, bytes, generation) = pulling(engine).await?;
    megabytes(&line, 4).await;
    line.site.engine.kill9().await?;
    line.site.engine.start().await?;
    arrives(&line, &device, bytes, &generation).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn how_far_a_pull_is_is_told() -> anyhow::Result<()> {
    let (line, device, bytes, generation) = pulling(Engine::shared().await?).await?;
    line.tap.set(Mode::Slow {
        bytes_per_second: 1_000_000,
    });
    let told = async || {
        let report = line.site.report(&device.uuid).await?;
        let pull = report["pulls"][0].clone();
        anyhow::ensure!(pull["secondsLeft"].is_u64(), "{report}");
        anyhow::Ok(pull)
    };
    let pull = wait_for("the report to tell it", CONVERGES_WITHIN, told).await;
    let number = |name: &str| pull[name].as_u64().unwrap_or_default();
    assert!(
        number("fetchedBytes") > 0 && number("bytesPerSecond") > 0,
        "{pull}"
    );
    // All layers, and the configuration.
    let most = number("mostBytes");
    assert!((bytes..bytes + 10_000).contains(&most), "{pull}");
    let status = device.agent.command(&["status"]).await?;
    assert!(
        status.contains(" of at most 9.") && status.contains(" s left"),
        "{status}"
    );
    arrives(&line, &device, bytes, &generation).await;
    let gone = async || {
        let report = line.site.report(&device.uuid).await;
        report.is_ok_and(|report| report["pulls"].is_null())
    };
    wait_for("the report to say no more of it", CONVERGES_WITHIN, gone).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a14_a_registry_that_stalls_does_not_wedge_the_engine() -> anyhow::Result<()> {
    let line = Line::on(Engine::shared().await?).await?;
    let site = &line.site;
    let mut device = site.device().await?;
    let port = device.port()?;
    device.agent.run()?;
    for (round, still) in [Mode::Stall, Mode::Mute { words: "/blobs/" }]
        .into_iter()
        .enumerate()
    {
        let layer = place::unique();
        let image = |version: &str| {
            let repository = format!("web-{}", place::unique());
            Image::web(repository, version).file("shared", layer.clone().into_bytes())
        };
        let one = image("one").push(&line.registry, "1").await?;
        let page = format!("two {round}");
        let two = image(&page).push(&site.registry, "1").await?;
        if still == Mode::Stall {
            // The layers take long enough to be caught on their way.
            line.tap.set(Mode::Slow {
                bytes_per_second: 20_000,
            });
        } else {
            line.tap.set(still);
        }
        let before = pulled(&device).len();
        site.set(&device.uuid, &web(&line.reference(&one), port))
            .await?;
        let asked = async || pulled(&device).len() > before;
        wait_for("the engine to be told", CONVERGES_WITHIN, asked).await;
        line.tap.set(still);
        site.converge(&device, &web(&two.reference(), port)).await?;
        wait_for_page(port, &page).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_does_not_come_to_the_port_fetches_by_itself() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let two = serving.good("two").await?;
    serving
        .device
        .tap
        .arm(Rule::on("POST /images/create").then(Action::Refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
        )));
    serving.converge(&two).await?;
    serving.serves("two").await;
    let names = pulled(&serving.device);
    let last = names.last().map(String::as_str).unwrap_or_default();
    assert_eq!(
        last,
        two.pinned(),
        "it was told to fetch from the registry: {names:?}"
    );
    serving
        .says(&["fetched_by_engine", "connection refused"])
        .await;
    // The next one comes over the port again, and there is nothing to say any more.
    let three = serving.good("three").await?;
    serving.converge(&three).await?;
    let names = pulled(&serving.device);
    assert!(
        names
            .last()
            .is_some_and(|name| holdfast_plan::is_transit_name(name))
    );
    let gone = async || {
        let report = serving.site.report(&serving.device.uuid).await;
        report.is_ok_and(|report| !report.to_string().contains("fetched_by_engine"))
    };
    wait_for("the notice to go", CONVERGES_WITHIN, gone).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_fit_into_the_spool_is_fetched_by_the_engine() -> anyhow::Result<()>
{
    let site = Site::start().await?;
    let small = |options: holdfast_tests::agent::Options| options.set("pull", "spool_mb", 2);
    let serving = Serving::at(site, small).await?;
    let image = Image::healthy_web(&serving.repository, "two").file("noise", noise(3 << 20));
    let two = serving.push(image, "two").await?;
    serving.converge(&two).await?;
    serving.serves("two").await;
    let names = pulled(&serving.device);
    assert_eq!(names.last(), Some(&two.pinned()), "{names:?}");
    serving
        .says(&["fetched_by_engine", "the spool is full"])
        .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_cannot_use_its_spool_says_so_and_the_engine_fetches() -> anyhow::Result<()> {
    let mut serving = Serving::start().await?;
    let two = serving.good("two").await?;
    // A file where the folder should be.
    serving.device.agent.stop();
    let spool = serving.device.agent.state().join("spool");
    std::fs::remove_dir_all(&spool)?;
    std::fs::write(&spool, "")?;
    serving.device.agent.run()?;
    serving.converge(&two).await?;
    serving.serves("two").await;
    let names = pulled(&serving.device);
    assert_eq!(names.last(), Some(&two.pinned()), "{names:?}");
    serving.says(&["fetched_by_engine"]).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_first_and_missed_by_nobody() -> anyhow::Result<()> {
    let mirror = Registry::open().await?;
    let tap = TcpTap::start(mirror.host()).await?;
    let site = Site::start().await?;
    let registries = json!({
        site.registry.host(): { "mirrors": [tap.address()] },
        tap.address(): { "plain_http": true },
    });
    let serving = Serving::at(site, |options| {
        options.set("pull", "registries", registries)
    })
    .await?;
    let origin = &serving.site.registry;
    let image = Image::healthy_web(&serving.repository, "two").file("noise", noise(4 << 20));
    image.push(&mirror, "two").await?;
    let two = serving.push(image, "two").await?;
    serving.converge(&two).await?;
    serving.serves("two").await;
    let layer = origin.largest_layer(&two).await?;
    assert_eq!((mirror.gave(&layer), origin.gave(&layer)), (1, 0));
    tap.set(Mode::Cut);
    let image = Image::healthy_web(&serving.repository, "three").file("noise", noise(4 << 20));
    let three = serving.push(image, "three").await?;
    serving.converge(&three).await?;
    serving.serves("three").await;
    assert_eq!(origin.gave(&origin.largest_layer(&three).await?), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_for_patience_gets_it() -> anyhow::Result<()> {
    let second = Registry::open().await?;
    let tap = HttpTap::start(second.host()).await?;
    let mut options = api::Options::default();
    options
        .registries
        .push(json!({ "host": tap.address(), "plain_http": true }));
    let site = Site::start_with(options, Login::Open, None).await?;
    let mut services = Vec::new();
    for name in ["one", "two"] {
        let repository = format!("patience-{}", place::unique());
        let pushed = Image::idle(repository, name).push(&second, "1").await?;
        let reference = pushed.reference().replace(&second.host(), &tap.address());
        services.push(service(name, &reference, &json!({})));
    }
    let mut device = site.device().await?;
    site.set(&device.uuid, &target(&services)).await?;
    tap.alter(|_, _| reply(429, &[("retry-after", "3600")], "later"));
    tap.forget();
    device.agent.run()?;
    let says = async |words: &str| {
        let report = site.report(&device.uuid).await;
        report.is_ok_and(|report| report.to_string().contains(words))
    };
    wait_for("a pull to fail", CONVERGES_WITHIN, async || {
        says("pull_failed").await
    })
    .await;
    // Two images are asked for at a time.
    let gets = || {
        let asked = tap.asked();
        // The API asks with HEAD.
        asked.iter().filter(|asked| asked.method == "GET").count()
    };
    let asked = gets();
    assert!((1..=2).contains(&asked), "{:?}", tap.asked());
    // Neither an operator's hurry nor a new target are a reason to ask again.
    for many in [2, 1] {
        services.truncate(many);
        site.set(&device.uuid, &target(&services)).await?;
        device.agent.command(&["update-now"]).await?;
        let patient = async || says("is left alone for 3").await;
        wait_for("it to be said", CONVERGES_WITHIN, patient).await;
    }
    assert_eq!(gets(), asked, "{:?}", tap.asked());
    Ok(())
}
