//! What the agent's adapter makes of a real engine, call by call.

mod adapter;

use std::time::Duration;

use adapter::{Adapter, key, service};
use holdfast_agent::engine::docker::DockerEngine;
use holdfast_agent::engine::sandbox;
use holdfast_agent::engine::{Engine as _, EngineError, NewNetwork};
use holdfast_agent::policy::Policy;
use holdfast_agent::secrets;
use holdfast_plan::{Amounts, ContainerState, Published};
use holdfast_proto::image::Platform;
use holdfast_proto::spec::{Protocol, RestartPolicy};
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::engine::Engine;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::place::{self, Port};
use holdfast_tests::registry::Registry;
use holdfast_tests::site::wait_for_page;
use holdfast_tests::tap::{Action, EngineTap, Rule, When};
use holdfast_tests::wait::wait_for;
use serde_json::json;

const MEBIBYTE: u64 = 1 << 20;

/// A shared engine, a registry, and an image that serves a page.
struct Lab {
    adapter: Adapter,
    image: Pushed,
    registry: Registry,
    _engine: Engine,
}

async fn lab() -> anyhow::Result<Lab> {
    lab_on(Engine::shared().await?).await
}

async fn lab_on(engine: Engine) -> anyhow::Result<Lab> {
    let registry = Registry::open().await?;
    let adapter = Adapter::at(engine.socket())?;
    let repository = format!("web-{}", place::unique());
    let image = Image::web(&repository, "one").push(&registry, "1").await?;
    adapter.docker.pull(&image.pinned(), None).await?;
    Ok(Lab {
        adapter,
        image,
        registry,
        _engine: engine,
    })
}

#[tokio::test]
async fn a_sandbox_starts_at_once_from_an_image_made_on_the_device() -> anyhow::Result<()> {
    let engine = Engine::private().await?;
    let socket = engine.socket().to_owned();
    let adapter = Adapter::at(&socket)?;
    // Nothing was ever pulled here: there is no image at all.
    assert_eq!(adapter.engine.images().await?, []);
    let service = no_image_service(&json!({ "ports": ["127.0.0.1::8080"] }))?;
    let mut fastest = Duration::MAX;
    for round in 0..5 {
        let id = adapter
            .create_sandbox(&format!("net{round}"), &service, &[])
            .await?;
        let begun = Stopwatch::start();
        adapter.engine.start(&id).await?;
        fastest = fastest.min(begun.elapsed());
        let found = adapter.engine.container(&id).await?.expect("it was made");
        assert_eq!(found.state, ContainerState::Running);
        assert_eq!(found.restart, RestartPolicy::No);
        assert_eq!(found.published.len(), 1, "{:?}", found.published);
        let begun = Stopwatch::start();
        adapter.engine.stop(&id).await?;
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "it ends without a grace period"
        );
        adapter.engine.remove(&id).await?;
    }
    println!("fastest start of a sandbox: {} ms", fastest.as_millis());
    assert!(fastest < Duration::from_millis(900), "{fastest:?}");
    let image = adapter.docker.image(sandbox::IMAGE).await?.expect("made");
    let size = image["Size"].as_u64().expect("a size");
    assert!(size < 200, "{size} bytes");
    // Somebody cleans up: it is made again, the same.
    adapter.docker.remove_image(sandbox::IMAGE).await?;
    adapter.create_sandbox("again", &service, &[]).await?;
    let again = adapter
        .docker
        .image(sandbox::IMAGE)
        .await?
        .expect("made again");
    assert_eq!(again["Id"], image["Id"]);
    Ok(())
}

/// A service whose image nobody has, for what needs none.
fn no_image_service(
    config: &serde_json::Value,
) -> anyhow::Result<holdfast_proto::target::ServiceTarget> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let child = holdfast_tests::images::Child {
        platform: "linux/amd64".to_owned(),
        manifest_digest: digest.clone(),
        config_digest: digest.clone(),
        layers_size_bytes: 1,
    };
    let image = Pushed {
        name: "127.0.0.1:1/nothing".to_owned(),
        repository: "nothing".to_owned(),
        tag: "1".to_owned(),
        top_digest: digest.clone(),
        index_digest: Some(digest),
        children: vec![child],
    };
    service(&image, config)
}

#[tokio::test]
async fn an_app_is_replaced_inside_its_sandbox_while_the_port_stays() -> anyhow::Result<()> {
    let lab = lab().await?;
    let adapter = &lab.adapter;
    let port = Port::take()?;
    let published = format!("127.0.0.1:{}:8080", port.number());
    let spec = service(
        &lab.image,
        &json!({ "ports": [published], "hostname": "inside" }),
    )?;
    let sandbox = adapter.create_sandbox("net", &spec, &[]).await?;
    adapter.engine.start(&sandbox).await?;
    let old = adapter
        .create("one", &spec, NewNetwork::Shared(&sandbox))
        .await?;
    adapter.engine.start(&old).await?;
    wait_for_page(port.number(), "one").await;
    assert_eq!(adapter.sh(&old, "hostname").await?, "inside");

    let two = Image::web(&lab.image.repository, "two")
        .push(&lab.registry, "2")
        .await?;
    adapter.docker.pull(&two.pinned(), None).await?;
    let spec = service(&two, &json!({ "ports": [published] }))?;
    let new = adapter
        .create("two", &spec, NewNetwork::Shared(&sandbox))
        .await?;
    let found = adapter.engine.container(&new).await?.expect("it was made");
    assert_eq!(found.shares.as_deref(), Some(sandbox.as_str()));
    let watch = Stopwatch::start();
    adapter.engine.stop(&old).await?;
    let stopped = watch.elapsed();
    adapter.engine.start(&new).await?;
    let started = watch.elapsed();
    wait_for_page(port.number(), "two").await;
    println!(
        "stop {} ms, start {} ms, page after {} ms more",
        stopped.as_millis(),
        (started - stopped).as_millis(),
        (watch.elapsed() - started).as_millis()
    );
    let found = adapter.engine.container(&sandbox).await?.expect("it stays");
    let expected = Published {
        target: 8080,
        protocol: Protocol::Tcp,
        host: port.number(),
    };
    assert_eq!(found.published.first(), Some(&expected));
    let all = adapter.engine.containers(&adapter.device).await?;
    let (one, other) = (&all[0].addresses, &all[1].addresses);
    assert_eq!(all.len(), 3);
    assert!(
        !one.is_empty() && one == other,
        "all are reached at the sandbox"
    );
    Ok(())
}

#[tokio::test]
async fn networks_are_made_once_and_names_resolve_in_them() -> anyhow::Result<()> {
    let lab = lab().await?;
    let adapter = &lab.adapter;
    let engine = &adapter.engine;
    let back = adapter.create_network("back").await?;
    let front = adapter.create_network("front").await?;
    assert_eq!(adapter.create_network("back").await?, back, "again is fine");
    let mut networks = engine.networks(&adapter.device).await?;
    networks.sort_by(|one, other| one.name.cmp(&other.name));
    let names: Vec<&str> = networks
        .iter()
        .map(|network| network.name.as_str())
        .collect();
    assert_eq!(names, [&back, &front]);
    assert_eq!(networks[0].labels["io.holdfast.network"], "back");

    let spec = service(&lab.image, &json!({}))?;
    let aliases = vec!["web".to_owned(), "api".to_owned()];
    let id = adapter
        .create(
            "web",
            &spec,
            NewNetwork::Own(&[(back.clone(), aliases.clone())]),
        )
        .await?;
    let found = engine.container(&id).await?.expect("made");
    assert!(
        found.networks[&back]
            .aliases
            .is_superset(&aliases.iter().cloned().collect())
    );
    // A created container can be connected to more, twice is fine, and so is a running one.
    engine.connect(&front, &id, &["web".to_owned()]).await?;
    engine.connect(&front, &id, &["web".to_owned()]).await?;
    engine.start(&id).await?;
    engine.connect(&front, &id, &["web".to_owned()]).await?;
    let other = adapter
        .create(
            "other",
            &spec,
            NewNetwork::Own(&[(front.clone(), vec!["other".to_owned()])]),
        )
        .await?;
    engine.start(&other).await?;
    assert_eq!(
        adapter.sh(&other, "wget -q -O - http://web:8080/").await?,
        "one"
    );
    let found = engine.container(&id).await?.expect("runs");
    assert_eq!(found.networks.len(), 2, "{:?}", found.networks);
    assert!(
        found
            .networks
            .values()
            .all(|joined| joined.address.is_some())
    );
    assert_eq!(found.networks[&back].network_id, networks[0].id);

    // Another name there: it is connected anew.
    engine
        .connect(&front, &id, &["web".to_owned(), "www".to_owned()])
        .await?;
    assert_eq!(
        adapter.sh(&other, "wget -q -O - http://www:8080/").await?,
        "one"
    );
    engine.disconnect(&front, &id).await?;
    engine.disconnect(&front, &id).await?;
    let found = engine.container(&id).await?.expect("runs");
    assert_eq!(found.networks.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_connection_to_a_network_that_is_gone_can_be_taken_away() -> anyhow::Result<()> {
    let lab = lab().await?;
    let adapter = &lab.adapter;
    let engine = &adapter.engine;
    let spec = service(&lab.image, &json!({}))?;
    for by_name in [true, false] {
        let network = adapter.create_network("back").await?;
        let joined = [(network.clone(), vec!["web".to_owned()])];
        let name = format!("web-{by_name}");
        let id = adapter
            .create(&name, &spec, NewNetwork::Own(&joined))
            .await?;
        engine.start(&id).await?;
        engine.stop(&id).await?;
        let networks = engine.networks(&adapter.device).await?;
        engine.remove_network(&networks[0].id).await?;
        engine.remove_network(&networks[0].id).await?;
        assert_eq!(engine.networks(&adapter.device).await?, []);
        assert!(engine.start(&id).await.is_err(), "its network is gone");
        let gone = if by_name { &network } else { &networks[0].id };
        engine.disconnect(gone, &id).await?;
        let again = adapter.create_network("back").await?;
        engine.connect(&again, &id, &["web".to_owned()]).await?;
        engine.start(&id).await?;
        engine.stop(&id).await?;
        engine.remove(&id).await?;
        engine.remove_network(&again).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_left_alone() -> anyhow::Result<()> {
    let lab = lab().await?;
    let adapter = &lab.adapter;
    let foreign = adapter.name("back");
    adapter.docker.cli(&["network", "create", &foreign]).await?;
    let refused = adapter.create_network("back").await.unwrap_err();
    adapter.docker.cli(&["network", "rm", &foreign]).await?;
    assert!(refused.to_string().contains("did not make"), "{refused}");

    let spec = service(&lab.image, &json!({}))?;
    let id = adapter.create("web", &spec, NewNetwork::Own(&[])).await?;
    let stranger = adapter.name("stranger");
    let stranger_body = json!({ "Image": lab.image.pinned() });
    adapter.docker.run(&stranger, &stranger_body).await?;
    let refused = adapter.engine.rename(&id, &stranger).await.unwrap_err();
    assert!(
        matches!(refused, EngineError::ForeignName { .. }),
        "{refused}"
    );
    let taken = adapter
        .create("stranger", &spec, NewNetwork::Own(&[]))
        .await;
    adapter.docker.remove(&stranger).await?;
    assert!(taken.unwrap_err().to_string().contains("did not make"));
    // Back to its own name, twice.
    adapter.engine.rename(&id, &stranger).await?;
    adapter.engine.rename(&id, &stranger).await?;
    let found = adapter.engine.container(&id).await?.expect("it stays");
    assert_eq!(found.name, stranger);
    Ok(())
}

#[tokio::test]
async fn resources_change_while_it_runs_and_can_be_taken_away() -> anyhow::Result<()> {
    let lab = lab().await?;
    let adapter = &lab.adapter;
    let spec = service(&lab.image, &json!({ "mem_limit": "32m", "pids_limit": 50 }))?;
    let id = adapter.create("web", &spec, NewNetwork::Own(&[])).await?;
    adapter.engine.start(&id).await?;
    let made = Amounts::of(&spec.config);
    let more = Amounts {
        memory: 256 * MEBIBYTE,
        memory_reservation: 16 * MEBIBYTE,
        nano_cpus: 500_000_000,
        pids: 100,
    };
    assert_eq!(
        adapter.engine.container(&id).await?.expect("runs").amounts,
        made
    );
    for wanted in [more, made, Amounts::default(), made] {
        adapter.engine.set_amounts(&id, wanted).await?;
        let found = adapter.engine.container(&id).await?.expect("runs");
        assert_eq!(found.amounts, wanted);
        assert_eq!(found.state, ContainerState::Running);
    }
    Ok(())
}

#[tokio::test]
async fn a_volume_outlives_its_containers() -> anyhow::Result<()> {
    let lab = lab().await?;
    let adapter = &lab.adapter;
    let volume = format!("data-{}", place::unique());
    let spec = service(
        &lab.image,
        &json!({ "volumes": [format!("{volume}:/data")] }),
    )?;
    let id = adapter.create("one", &spec, NewNetwork::Own(&[])).await?;
    adapter.engine.start(&id).await?;
    adapter.sh(&id, "echo kept > /data/file").await?;
    adapter.engine.stop(&id).await?;
    adapter.engine.remove(&id).await?;
    let path = format!("/volumes/1001_{volume}");
    let labels = adapter.docker.get(&path).await?["Labels"].take();
    assert_eq!(labels["io.holdfast.managed"], "true");
    assert_eq!(labels["io.holdfast.device"], adapter.device.to_string());
    assert_eq!(labels["io.holdfast.app"], "1001");
    let id = adapter.create("two", &spec, NewNetwork::Own(&[])).await?;
    adapter.engine.start(&id).await?;
    assert_eq!(adapter.sh(&id, "cat /data/file").await?, "kept");
    Ok(())
}

#[tokio::test]
async fn secrets_are_files_and_nothing_else() -> anyhow::Result<()> {
    let lab = lab().await?;
    let adapter = &lab.adapter;
    let spec = service(
        &lab.image,
        &json!({
            "read_only": true,
            "tmpfs": ["/run"],
            "secrets": [{ "source": "key", "content": "hunter2", "uid": "7", "gid": "8", "mode": 0o400 }],
            "configs": [{ "source": "app.conf", "content": "colour: blue" }],
        }),
    )?;
    secrets::ensure(&adapter.secrets, &key("web"), &spec.config)?;
    let id = adapter.create("web", &spec, NewNetwork::Own(&[])).await?;
    // Gone after a reboot: no start, and no folder in their place.
    secrets::keep_only(&adapter.secrets.runtime_dir, [])?;
    let missing = adapter.engine.start(&id).await.unwrap_err();
    assert!(!missing.is_engine_away(), "{missing}");
    assert!(!adapter.secrets.runtime_dir.join("files/1001").exists());
    secrets::ensure(&adapter.secrets, &key("web"), &spec.config)?;
    adapter.engine.start(&id).await?;
    assert_eq!(
        adapter.sh(&id, "cat /run/secrets/key /app.conf").await?,
        "hunter2colour: blue"
    );
    let listed = adapter.sh(&id, "ls -ln /run/secrets/key").await?;
    assert!(listed.starts_with("-r--------"), "{listed}");
    let columns: Vec<&str> = listed.split_whitespace().collect();
    assert_eq!(columns[2..4], ["7", "8"]);
    assert!(
        adapter.sh(&id, "echo x > /app.conf").await.is_err(),
        "it is read only"
    );
    let told = adapter
        .docker
        .container(&id)
        .await?
        .expect("runs")
        .to_string();
    assert!(!told.contains("hunter2") && !told.contains("colour"));
    Ok(())
}

#[tokio::test]
async fn images_are_listed_named_and_removed() -> anyhow::Result<()> {
    let lab = lab().await?;
    let engine = &lab.adapter.engine;
    let id = &lab.image.child("linux/amd64").config_digest;
    let listed = async || -> anyhow::Result<Option<Vec<String>>> {
        let images = engine.images().await?;
        let found = images.into_iter().find(|image| image.id == *id);
        Ok(found.map(|image| {
            assert!(image.size_bytes > MEBIBYTE);
            assert!(image.digests.iter().all(|name| name.contains("@sha256:")));
            image.tags
        }))
    };
    assert_eq!(listed().await?, Some(vec![]));
    let name = format!("holdfast.local/{}:last-good", lab.image.repository);
    engine.tag(&lab.image.pinned(), &name).await?;
    engine.tag(id, &name).await?;
    assert_eq!(listed().await?, Some(vec![name.clone()]));
    engine.remove_image(&name).await?;
    engine.remove_image(&name).await?;
    assert_eq!(listed().await?, Some(vec![]));
    engine.remove_image(id).await?;
    engine.remove_image(id).await?;
    assert_eq!(listed().await?, None);
    assert!(engine.tag(id, &name).await.is_err());
    Ok(())
}

#[tokio::test]
async fn an_image_in_use_is_not_removed() -> anyhow::Result<()> {
    let lab = lab().await?;
    let spec = service(&lab.image, &json!({}))?;
    lab.adapter
        .create("web", &spec, NewNetwork::Own(&[]))
        .await?;
    let id = &lab.image.child("linux/amd64").config_digest;
    let refused = lab.adapter.engine.remove_image(id).await.unwrap_err();
    assert!(
        matches!(refused, EngineError::Refused { status: 409, .. }),
        "{refused}"
    );
    Ok(())
}

/// Makes a call whose answer is lost after the engine did its part, then makes it again.
async fn shaken<T>(
    tap: &EngineTap,
    call: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let lose = Rule::on_mutation()
        .when(When::AfterResponse)
        .then(Action::Reset);
    let fired = tap.arm(lose);
    if let Err(error) = call().await {
        let error = error.downcast::<EngineError>()?;
        anyhow::ensure!(error.is_engine_away(), "{error}");
    }
    anyhow::ensure!(fired.call().is_some(), "no answer was lost");
    call().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_costs_nothing() -> anyhow::Result<()> {
    let mut lab = lab().await?;
    let tap = EngineTap::start(lab.adapter.docker.socket())?;
    let runtime = lab.adapter.secrets.runtime_dir.clone();
    lab.adapter.engine = DockerEngine::new(&tap.socket(), &runtime, Policy::unrestricted());
    let adapter = &lab.adapter;
    let engine = &adapter.engine;
    let spec = service(&lab.image, &json!({ "mem_limit": "64m" }))?;

    let network = shaken(&tap, async || adapter.create_network("back").await).await?;
    assert_eq!(engine.networks(&adapter.device).await?.len(), 1);
    let joined = [(network.clone(), vec!["web".to_owned()])];
    let net = async || adapter.create_sandbox("net", &spec, &joined).await;
    let net = shaken(&tap, net).await?;
    let id = async || adapter.create("web", &spec, NewNetwork::Own(&[])).await;
    let id = shaken(&tap, id).await?;
    let mut all = engine.containers(&adapter.device).await?;
    all.retain(|found| found.id != net && found.id != id);
    assert_eq!(all, [], "nothing was made twice");

    let policy = RestartPolicy::OnFailure(Some(3));
    shaken(&tap, async || Ok(engine.set_restart(&id, policy).await?)).await?;
    shaken(&tap, async || {
        Ok(engine.connect(&network, &id, &["web".to_owned()]).await?)
    })
    .await?;
    shaken(&tap, async || Ok(engine.start(&id).await?)).await?;
    let name = adapter.name("renamed");
    shaken(&tap, async || Ok(engine.rename(&id, &name).await?)).await?;
    let amounts = Amounts {
        memory: 128 * MEBIBYTE,
        ..Amounts::default()
    };
    shaken(&tap, async || Ok(engine.set_amounts(&id, amounts).await?)).await?;
    let found = engine.container(&id).await?.expect("runs");
    assert_eq!(found.state, ContainerState::Running);
    assert_eq!(
        (found.restart, found.name, found.amounts),
        (policy, name, amounts)
    );
    assert!(found.networks[&network].aliases.contains("web"));

    shaken(&tap, async || Ok(engine.disconnect(&network, &id).await?)).await?;
    for id in [&id, &net] {
        shaken(&tap, async || Ok(engine.stop(id).await?)).await?;
        shaken(&tap, async || Ok(engine.remove(id).await?)).await?;
    }
    shaken(&tap, async || Ok(engine.remove_network(&network).await?)).await?;
    let kept = format!("holdfast.local/{}:kept", lab.image.repository);
    shaken(&tap, async || {
        Ok(engine.tag(&lab.image.pinned(), &kept).await?)
    })
    .await?;
    shaken(&tap, async || Ok(engine.remove_image(&kept).await?)).await?;
    assert_eq!(engine.containers(&adapter.device).await?, []);
    assert_eq!(engine.networks(&adapter.device).await?, []);
    Ok(())
}

#[tokio::test]
async fn removals_that_meet_all_end_well() -> anyhow::Result<()> {
    let lab = lab().await?;
    let adapter = &lab.adapter;
    let spec = service(&lab.image, &json!({}))?;
    for round in 0..5 {
        let name = format!("web-{round}");
        let id = adapter.create(&name, &spec, NewNetwork::Own(&[])).await?;
        let remove = || adapter.engine.remove(&id);
        let (one, two, three) = tokio::join!(remove(), remove(), remove());
        for outcome in [one, two, three] {
            outcome?;
        }
        assert_eq!(adapter.engine.container(&id).await?, None);
    }
    Ok(())
}

/// Runs the programs for other processors as this machine can: instruction by instruction.
#[tokio::test]
async fn the_sandbox_program_of_each_processor_waits() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let emulators = holdfast_tests::apt::require(&["qemu-aarch64-static", "qemu-arm-static"])?;
    let folder = tempfile::tempdir()?;
    for (emulator, platform) in emulators.iter().zip(["linux/arm64", "linux/arm/v6"]) {
        let platform: Platform = platform.parse()?;
        let path = folder.path().join(&platform.architecture);
        std::fs::write(&path, sandbox::program(&platform)?)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o500))?;
        let trace = folder.path().join("trace");
        let mut child = tokio::process::Command::new(emulator)
            .arg("-strace")
            .arg(&path)
            .stderr(std::fs::File::create(&trace)?)
            .kill_on_drop(true)
            .spawn()?;
        // It shows the system call only once it ended, but its name as it begins.
        let waits = async || {
            let said = std::fs::read_to_string(&trace).unwrap_or_default();
            (said.contains("ppoll(") || said.contains("pause("))
                .then_some(())
                .ok_or(said)
        };
        wait_for("the system call that waits", Duration::from_secs(20), waits).await;
        assert_eq!(child.try_wait()?, None, "{platform}");
        child.kill().await?;
    }
    Ok(())
}
