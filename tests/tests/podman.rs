//! The agent on Podman's Docker-compatible socket instead of Docker's own.

mod adapter;

use adapter::{Adapter, key, service};
use holdfast_agent::engine::{Engine as _, Fetch, NewNetwork};
use holdfast_agent::secrets;
use holdfast_plan::{Amounts, ContainerState};
use holdfast_proto::spec::RestartPolicy;
use holdfast_tests::engine::Engine;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::place::{self, Port};
use holdfast_tests::podman::Podman;
use holdfast_tests::registry::Registry;
use holdfast_tests::site::{
    CONVERGES_WITHIN, Site, page, service as wanted, target, wait_for_page,
};
use holdfast_tests::wait::wait_for;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn an_update_passes_and_a_bad_one_is_rolled_back_on_podman() -> anyhow::Result<()> {
    let mut site = Site::start().await?;
    let podman = Podman::start(&site.registry).await?;
    site.engine = Engine::at(podman.socket());
    let repository = format!("web-{}", place::unique());
    let one = Image::web(&repository, "one")
        .push(&site.registry, "1")
        .await?;
    let two = Image::web(&repository, "two")
        .push(&site.registry, "2")
        .await?;
    let bad = Image::crash_loop(&repository, 0)
        .push(&site.registry, "3")
        .await?;
    let mut device = site.device().await?;
    let port = device.port()?;
    let web = |image: &Pushed| -> Value {
        let ports = json!({ "ports": [format!("127.0.0.1:{port}:8080")] });
        target(&[wanted("web", &image.reference(), &ports)])
    };
    device.agent.run()?;
    site.converge(&device, &web(&one)).await?;
    wait_for_page(port, "one").await;
    site.converge(&device, &web(&two)).await?;
    wait_for_page(port, "two").await;

    let stored = site.set(&device.uuid, &web(&bad)).await?;
    site.wait_for_status(&device.uuid, &stored["generation"], "holding")
        .await;
    wait_for("version two to serve again", CONVERGES_WITHIN, async || {
        let report = site.report(&device.uuid).await.map_err(|e| e.to_string())?;
        let rejected = report.to_string().contains("\"rejected\"");
        let back = page(port).await.is_ok_and(|page| page == "two");
        (rejected && back)
            .then_some(())
            .ok_or_else(|| report.to_string())
    })
    .await;

    // It came from the agent, over loopback, and no name says so any more.
    let log = std::fs::read_to_string(device.agent.process()?.log_file())?;
    assert!(!log.contains("the engine fetches by itself"), "{log}");
    let pinned = two.child("linux/amd64").config_digest.clone();
    let found = podman.docker().image(&pinned).await?.expect("it is there");
    let names = found["RepoTags"].as_array().expect("a list");
    let is_transit = |name: &Value| {
        let name = name.as_str().unwrap_or_default();
        holdfast_plan::is_transit_name(name) || name.starts_with("127.0.0.1:")
    };
    assert!(
        !names.is_empty() && !names.iter().any(is_transit),
        "{found}"
    );

    // Podman itself would not: the agent starts what ends.
    let running = device.wait_running("web").await?;
    assert_eq!(running["HostConfig"]["RestartPolicy"]["Name"], "no");
    let id = running["Id"].as_str().unwrap_or_default().to_owned();
    podman.docker().kill(&id).await?;
    wait_for_page(port, "two").await;

    // All settled: nothing more is asked of the engine than to be looked at.
    device.tap.forget();
    let looks = || {
        let calls = device.tap.calls();
        let lists = calls
            .iter()
            .filter(|call| call.path.contains("/containers/json"));
        lists.count()
    };
    for _ in 0..3 {
        let before = looks();
        device.agent.command(&["update-now"]).await?;
        wait_for("another look", CONVERGES_WITHIN, async || looks() > before).await;
    }
    let changed = device.tap.mutations();
    assert!(changed.is_empty(), "{changed:?}");
    Ok(())
}

#[tokio::test]
async fn the_adapters_calls_mean_the_same_on_podman() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let podman = Podman::start(&registry).await?;
    let adapter = Adapter::at(podman.socket())?;
    let engine = &adapter.engine;
    let info = engine.describe().await?;
    assert_eq!(
        info,
        engine.describe().await?,
        "it is the same engine each time"
    );
    assert!(info.id.starts_with("podman:/"), "{info:?}");
    assert_eq!(engine.images().await?, []);

    // Pull, look, name, remove a name.
    let repository = format!("web-{}", place::unique());
    let image = Image::web(&repository, "one").push(&registry, "1").await?;
    let child = image.child("linux/amd64");
    let pinned = image.pinned();
    let fetch = Fetch {
        pinned: &pinned,
        from: &pinned,
        platform: &info.platform,
        auth: None,
        no_progress_ms: 20_000,
    };
    engine.pull(&fetch).await?;
    let found = engine.image(&image.pinned()).await?.expect("pulled");
    assert_eq!(found.ids[0].to_string(), child.config_digest);
    assert_eq!(found.platform, info.platform);
    let name = "holdfast.local/kept:1";
    engine.tag(&image.pinned(), name).await?;
    engine.tag(&image.pinned(), name).await?;
    let images = engine.images().await?;
    assert!(images[0].tags.contains(&name.to_owned()), "{images:?}");
    engine.remove_image(name).await?;
    engine.remove_image(name).await?;
    assert!(engine.image(&image.pinned()).await?.is_some());

    // A sandbox from an image made on the device, and an app in it.
    let port = Port::take()?;
    let config = json!({
        "ports": [format!("127.0.0.1:{}:8080", port.number())],
        "mem_limit": "64m", "cpus": 0.5, "hostname": "inside", "restart": "unless-stopped",
        "secrets": [{ "source": "key", "content": "hunter2" }],
    });
    let spec = service(&image, &config)?;
    let network = adapter.create_network("back").await?;
    assert_eq!(adapter.create_network("back").await?, network);
    let joined = [(network.clone(), vec!["web".to_owned()])];
    let sandbox = adapter.create_sandbox("net", &spec, &joined).await?;
    assert_eq!(
        adapter.create_sandbox("net", &spec, &joined).await?,
        sandbox
    );
    engine.set_restart(&sandbox, RestartPolicy::Always).await?;
    engine.start(&sandbox).await?;
    let found = engine.container(&sandbox).await?.expect("runs");
    assert_eq!(found.restart, RestartPolicy::Always);
    assert_eq!(found.published.len(), 1, "{found:?}");
    assert!(
        found.networks[&network].aliases.contains("web"),
        "{found:?}"
    );
    secrets::ensure(&adapter.secrets, &key("web"), &spec.config)?;
    let app = adapter
        .create("one", &spec, NewNetwork::Shared(&sandbox))
        .await?;
    assert_eq!(
        adapter
            .create("one", &spec, NewNetwork::Shared(&sandbox))
            .await?,
        app
    );
    let made = engine.container(&app).await?.expect("made");
    assert_eq!(made.state, ContainerState::Created);
    assert_eq!((made.restart, made.networks.len()), (RestartPolicy::No, 0));
    assert_eq!(made.amounts, Amounts::of(&spec.config));
    assert_eq!(made.shares.as_deref(), Some(sandbox.as_str()));
    engine.start(&app).await?;
    engine.start(&app).await?;
    wait_for_page(port.number(), "one").await;
    assert_eq!(adapter.sh(&app, "cat /run/secrets/key").await?, "hunter2");
    assert_eq!(adapter.sh(&app, "hostname").await?, "inside");
    let refused = engine
        .set_amounts(&app, Amounts::default())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("Podman"), "{refused}");

    // A second service reaches it by its name; connections come and go.
    let front = adapter.create_network("front").await?;
    let other = adapter
        .create(
            "other",
            &service(&image, &json!({}))?,
            NewNetwork::Own(&joined),
        )
        .await?;
    engine
        .connect(&front, &other, &["other".to_owned()])
        .await?;
    engine
        .connect(&front, &other, &["other".to_owned()])
        .await?;
    engine.start(&other).await?;
    engine
        .connect(&front, &other, &["other".to_owned()])
        .await?;
    let page = adapter.sh(&other, "wget -q -O - http://web:8080/").await?;
    assert_eq!(page, "one");
    engine.disconnect(&front, &other).await?;
    engine.disconnect(&front, &other).await?;
    engine.remove_network(&front).await?;
    engine.remove_network(&front).await?;
    let networks = engine.networks(&adapter.device).await?;
    assert_eq!(networks.len(), 1, "{networks:?}");

    // Renaming, stopping and removing.
    let name = adapter.name("renamed");
    engine.rename(&other, &name).await?;
    engine.rename(&other, &name).await?;
    for id in [&app, &sandbox, &other] {
        engine.stop(id).await?;
        engine.stop(id).await?;
        engine.remove(id).await?;
        engine.remove(id).await?;
    }
    assert_eq!(engine.containers(&adapter.device).await?, []);
    Ok(())
}
