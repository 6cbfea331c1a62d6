//! Faults A16 to A29: what somebody else changed behind the agent's back, in the engine or in its files.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use anyhow::Context;
use holdfast_tests::disk::{Disk, SmallDisk, fill};
use holdfast_tests::engine::Engine;
use holdfast_tests::images::Image;
use holdfast_tests::place;
use holdfast_tests::serving::{Serving, id, life};
use holdfast_tests::site::{CONVERGES_WITHIN, Site, page, service, target};
use holdfast_tests::tap::{Action, Call, Rule};
use holdfast_tests::wait::{try_wait_for, wait_for};
use http::StatusCode;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a16_a_running_image_removed_by_force_comes_back_without_a_restart() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    let image = before["Image"].as_str().context("an image id")?.to_owned();
    serving.device.docker().remove_image(&image).await?;
    try_wait_for(
        "the image to be pulled again",
        CONVERGES_WITHIN,
        async || match serving.device.docker().image(&image).await {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await?;
    serving.at_rest().await?;
    let after = serving.device.running("web").await?;
    assert_eq!(life(&before), life(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a17_a_prune_takes_neither_what_runs_nor_the_way_back() -> anyhow::Result<()> {
    let serving = Serving::on(Engine::private().await?).await?;
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    let before = serving.device.running("web").await?;
    serving.says(&["\"rollbackReady\":true"]).await;
    let docker = serving.device.docker();
    for prune in [
        &["image", "prune", "-f"][..],
        &["image", "prune", "-af"],
        &["system", "prune", "-af"],
    ] {
        docker.cli(prune).await?;
        let last_good = serving.one.child("linux/amd64").config_digest.clone();
        try_wait_for(
            "the last good image to be there",
            CONVERGES_WITHIN,
            async || docker.image(&last_good).await.ok().flatten(),
        )
        .await?;
    }
    serving.says(&["\"rollbackReady\":true"]).await;
    let after = serving.only_container().await?;
    assert_eq!(life(&before), life(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a17_a_way_back_that_cannot_be_restored_is_reported() -> anyhow::Result<()> {
    let mut serving = Serving::on(Engine::private().await?).await?;
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    let before = serving.device.running("web").await?;
    serving.says(&["\"rollbackReady\":true"]).await;
    serving.site.registry.stop();
    serving
        .device
        .docker()
        .cli(&["image", "prune", "-af"])
        .await?;
    serving.says(&["\"rollbackReady\":false"]).await;
    let after = serving.only_container().await?;
    assert_eq!(life(&before), life(&after));
    serving.site.registry.process().restart()?;
    serving.says(&["\"rollbackReady\":true"]).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a18_a_renamed_container_gets_its_name_back_without_a_restart() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    let other = format!("renamed-{}", place::unique());
    let rename = format!("/containers/{}/rename?name={other}", id(&before));
    serving.device.docker().post(&rename).await?;
    try_wait_for("the name to be back", CONVERGES_WITHIN, async || {
        let now = serving
            .device
            .running("web")
            .await
            .map_err(|e| e.to_string())?;
        if now["Name"] == before["Name"] {
            Ok(())
        } else {
            Err(now["Name"].to_string())
        }
    })
    .await?;
    let after = serving.only_container().await?;
    assert_eq!(life(&before), life(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a19_a_stopped_container_is_started_and_a_paused_one_goes_on() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    let docker = serving.device.docker();
    docker
        .post(&format!("/containers/{}/stop", id(&before)))
        .await?;
    serving.serves("one").await;
    docker
        .post(&format!("/containers/{}/pause", id(&before)))
        .await?;
    serving.serves("one").await;
    assert_eq!(serving.only_container().await?["Id"], before["Id"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a20_a_stranger_with_the_very_name_is_never_touched() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let two = serving.good("two").await?;
    // Somebody takes the candidate's own name a moment before the agent uses it.
    let socket = serving.device.docker().socket().display().to_string();
    let image = serving.one.pinned();
    let taken = Arc::new(std::sync::Mutex::new(String::new()));
    let name_of = Arc::clone(&taken);
    let steal = move |call: &Call| {
        let name = call
            .query
            .split('&')
            .find_map(|part| part.strip_prefix("name="));
        let name = name.unwrap_or_default().to_owned();
        let _ = std::process::Command::new("docker")
            .args([
                "-H",
                &format!("unix://{socket}"),
                "run",
                "-d",
                "--name",
                &name,
            ])
            .args(["--entrypoint", "/bin/sleep", &image, "3600"])
            .output();
        *name_of.lock().expect("nobody panicked") = name;
    };
    let stolen = serving
        .device
        .tap
        .arm(Rule::on("POST /containers/create").then(Action::Run(Arc::new(steal))));
    let generation = serving.set(&two).await?;
    stolen.wait(CONVERGES_WITHIN).await?;
    let name = taken.lock().expect("nobody panicked").clone();
    let stranger = serving.device.docker().container(&name).await?;
    let stranger = stranger.context("the stranger runs")?;
    serving.reports(&generation, "holding").await;
    serving.says(&[&name]).await;
    assert_eq!(serving.page().await, Ok("one".to_owned()));
    let now = serving.device.docker().container(&name).await?;
    assert_eq!(now.as_ref().map(life), Some(life(&stranger)));

    // It goes by itself one day; the update is not lost.
    serving.device.docker().remove(id(&stranger)).await?;
    serving.reports(&generation, "converged").await;
    serving.serves("two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a21_a_stranger_with_our_labels_is_reported_and_left_alone() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let ours = serving.device.running("web").await?;
    let name = format!("copy-{}", place::unique());
    let labels = ours["Config"]["Labels"].clone();
    let body = json!({
        "Image": ours["Image"], "Labels": labels, "Entrypoint": ["/bin/sleep"], "Cmd": ["3600"],
    });
    let copy = serving.device.docker().run(&name, &body).await?;
    let before = serving.device.docker().container(&copy).await?;
    serving.says(&["stranger", &name]).await;
    // Neither adopted nor touched, also by an update and by the end of the service.
    let two = serving.good("two").await?;
    let generation = serving.set(&two).await?;
    serving.serves("two").await;
    let gone = generation.as_u64().context("a generation")? + 1;
    serving.set_target(&json!({ "apps": {} })).await?;
    wait_for(
        "our own containers to be gone",
        CONVERGES_WITHIN,
        async || {
            let found = serving.device.containers().await;
            found.is_ok_and(|found| found.len() == 1 && found[0]["Id"] == copy.as_str())
        },
    )
    .await;
    serving.says(&[&format!("\"generation\":{gone}")]).await;
    let after = serving.device.docker().container(&copy).await?;
    assert_eq!(before.as_ref().map(life), after.as_ref().map(life));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a22_an_edited_container_is_repaired_where_it_was_edited() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    let docker = serving.device.docker();
    docker
        .cli(&[
            "update",
            "--restart=no",
            "--memory=64m",
            "--memory-swap=64m",
            id(&before),
        ])
        .await?;
    try_wait_for("the settings to be back", CONVERGES_WITHIN, async || {
        let now = serving.device.running("web").await;
        let host = now.map_err(|error| error.to_string())?["HostConfig"].clone();
        // The engine takes 0 for "as it is", so no limit is a number above all memory there is.
        let unlimited = host["Memory"]
            .as_u64()
            .is_some_and(|limit| limit == 0 || limit > 1 << 50);
        if host["RestartPolicy"]["Name"] == "always" && unlimited {
            Ok(())
        } else {
            Err(host.to_string())
        }
    })
    .await?;
    serving.serves("one").await;
    serving.only_container().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a22_a_container_cut_from_its_network_is_connected_without_a_restart() -> anyhow::Result<()>
{
    let serving = Serving::on(Engine::private().await?).await?;
    let idle = serving
        .push(Image::idle(&serving.repository, "1"), "idle")
        .await?;
    serving
        .site
        .converge(
            &serving.device,
            &target(&[service("idle", &idle.reference(), &json!({}))]),
        )
        .await?;
    let before = serving.device.running("idle").await?;
    let networks = before["NetworkSettings"]["Networks"].as_object();
    let network = networks
        .and_then(|all| all.keys().next())
        .context("a network")?;
    serving
        .device
        .docker()
        .cli(&["network", "disconnect", "-f", network, id(&before)])
        .await?;
    try_wait_for("the connection to be back", CONVERGES_WITHIN, async || {
        let now = serving.device.running("idle").await;
        let now = now.map_err(|error| error.to_string())?;
        let address = now["NetworkSettings"]["Networks"][network]["IPAddress"].clone();
        match address.as_str() {
            Some(address) if !address.is_empty() => Ok(()),
            _ => Err(now["NetworkSettings"]["Networks"].to_string()),
        }
    })
    .await?;
    let after = serving.device.running("idle").await?;
    assert_eq!(life(&before), life(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a23_a_removal_that_is_stuck_blocks_nothing() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let two = serving.good("two").await?;
    let busy = "removal of container is already in progress";
    let stuck = serving
        .device
        .tap
        .arm(Rule::on("DELETE /containers/*").then(Action::Refuse(StatusCode::CONFLICT, busy)));
    let generation = serving.set(&two).await?;
    stuck.wait(CONVERGES_WITHIN).await?;
    serving.serves("two").await;
    serving.reports(&generation, "converged").await;
    serving.only_container().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a23_a_container_that_somebody_else_removes_meanwhile_is_removed() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let two = serving.good("two").await?;
    let socket = serving.device.docker().socket().display().to_string();
    let race = move |call: &Call| {
        let id = call.path.rsplit('/').next().unwrap_or_default();
        let _ = std::process::Command::new("docker")
            .args(["-H", &format!("unix://{socket}"), "rm", "-f", id])
            .output();
    };
    let raced = serving
        .device
        .tap
        .arm(Rule::on("DELETE /containers/*").then(Action::Run(Arc::new(race))));
    let generation = serving.set(&two).await?;
    raced.wait(CONVERGES_WITHIN).await?;
    serving.reports(&generation, "converged").await;
    serving.only_container().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a24_a_stale_endpoint_is_cut_and_the_start_tried_again() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let two = serving.good("two").await?;
    let stale = "endpoint with name web already exists in network bridge";
    let refused = serving.device.tap.arm(
        Rule::on("POST /containers/*/start").then(Action::Refuse(StatusCode::FORBIDDEN, stale)),
    );
    let generation = serving.set(&two).await?;
    refused.wait(CONVERGES_WITHIN).await?;
    let report = serving.reports(&generation, "converged").await;
    assert!(!report.to_string().contains("\"rejected\":{"), "{report}");
    serving.serves("two").await;
    serving.only_container().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a25_a_removed_network_is_made_again() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let idle = serving
        .push(Image::idle(&serving.repository, "1"), "idle")
        .await?;
    let only = target(&[service("idle", &idle.reference(), &json!({}))]);
    serving.site.converge(&serving.device, &only).await?;
    let before = serving.device.running("idle").await?;
    let networks = before["NetworkSettings"]["Networks"].as_object();
    let network = networks
        .and_then(|all| all.keys().next())
        .context("a network")?;
    let docker = serving.device.docker();
    docker
        .cli(&["network", "disconnect", "-f", network, id(&before)])
        .await?;
    // The agent may have connected it again already: then the network is in use and stays.
    let _ = docker.cli(&["network", "rm", network]).await;
    try_wait_for("the network to be back", CONVERGES_WITHIN, async || {
        let now = serving.device.running("idle").await;
        let now = now.map_err(|error| error.to_string())?;
        let address = now["NetworkSettings"]["Networks"][network]["IPAddress"].clone();
        match address.as_str() {
            Some(address) if !address.is_empty() => Ok(()),
            _ => Err(now["NetworkSettings"]["Networks"].to_string()),
        }
    })
    .await?;
    assert_eq!(serving.device.containers_of("idle").await?.len(), 1);
    Ok(())
}

/// What is left when the journal was lost: nothing restarts, and the next update works.
async fn survives_without_its_journal(
    mut serving: Serving,
    damage: impl FnOnce(&std::path::Path) -> anyhow::Result<()>,
) -> anyhow::Result<Serving> {
    let before = serving.device.running("web").await?;
    serving.device.agent.stop();
    serving.device.tap.forget();
    damage(&serving.device.agent.state())?;
    serving.device.agent.run()?;
    serving.at_rest().await?;
    serving.says(&["\"converged\""]).await;
    let after = serving.only_container().await?;
    assert_eq!(life(&before), life(&after), "nothing was restarted");
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    serving.serves("two").await;
    serving.only_container().await?;
    Ok(serving)
}

/// The journal's file and what lies beside it.
fn journal_files(state: &std::path::Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let files = fs::read_dir(state)?.flatten().map(|entry| entry.path());
    let journal = |path: &std::path::PathBuf| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        name.starts_with("journal")
    };
    Ok(files.filter(journal).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a26_a_deleted_journal_is_rebuilt_from_what_runs() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    survives_without_its_journal(serving, |state| {
        let files = journal_files(state)?;
        assert!(!files.is_empty(), "there is a journal");
        files.iter().try_for_each(fs::remove_file)?;
        Ok(())
    })
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a27_a_journal_of_noise_is_moved_aside_and_rebuilt() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let serving = survives_without_its_journal(serving, |state| {
        for path in journal_files(state)? {
            let noise: Vec<u8> = (0..fs::metadata(&path)?.len())
                .map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[1])
                .collect();
            fs::write(path, noise)?;
        }
        Ok(())
    })
    .await?;
    let aside = journal_files(&serving.device.agent.state())?.len();
    assert!(
        aside > 1,
        "the damaged file is kept for a person to look at"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a27_a_journal_damaged_inside_is_found_out() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    survives_without_its_journal(serving, |state| {
        let path = journal_files(state)?;
        let path = path
            .iter()
            .find(|path| path.extension().is_some_and(|end| end == "db"));
        let path = path.context("the journal's file")?;
        let mut file = fs::File::options().write(true).open(path)?;
        file.seek(SeekFrom::Start(4_096))?;
        file.write_all(&[0xa7; 512])?;
        Ok(())
    })
    .await
    .map(drop)
}

/// A device whose state lies on a small disk of its own.
async fn serving_on(disk: &Disk) -> anyhow::Result<Serving> {
    let state = disk.root().join("state");
    Serving::at(Site::start().await?, |mut options| {
        options.state = Some(state);
        options
    })
    .await
}

/// While the journal cannot be written, an update does not begin; afterwards it does.
async fn refuses_to_begin(
    serving: &mut Serving,
    mend: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let before = serving.device.running("web").await?;
    let two = serving.good("two").await?;
    serving.device.tap.forget();
    let generation = serving.set(&two).await?;
    serving
        .device
        .agent
        .process()?
        .wait_for_log(&["cannot write the journal"], CONVERGES_WITHIN)
        .await?;
    serving.says(&["journal_unwritable"]).await;
    assert_eq!(serving.device.tap.mutations(), [], "nothing is changed");
    let after = serving.device.running("web").await?;
    assert_eq!(life(&before), life(&after));
    assert_eq!(serving.page().await, Ok("one".to_owned()));
    serving.device.agent.stop();
    mend()?;
    serving.device.agent.run()?;
    // Where it does not, the report says why.
    serving.reports(&generation, "converged").await;
    serving.serves("two").await;
    serving.only_container().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a28_with_a_read_only_state_folder_no_change_begins() -> anyhow::Result<()> {
    let disk = Disk::mount(SmallDisk::of(16 << 20))?;
    let mut serving = serving_on(&disk).await?;
    disk.fail()?;
    refuses_to_begin(&mut serving, || disk.mend()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a28_with_a_full_state_folder_no_change_begins() -> anyhow::Result<()> {
    let disk = Disk::mount(SmallDisk::of(16 << 20))?;
    let mut serving = serving_on(&disk).await?;
    let filler = fill(&disk.root(), 0)?;
    refuses_to_begin(&mut serving, || Ok(fs::remove_file(filler)?)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a28_when_the_disk_fails_to_sync_no_change_begins() -> anyhow::Result<()> {
    holdfast_tests::apt::require(&["strace"])?;
    let mut serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    let two = serving.good("two").await?;
    serving.device.agent.stop();
    let under = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fdatasync,fsync",
    ];
    let mut under: Vec<String> = under.map(str::to_owned).into();
    under.extend(["-e", "inject=fdatasync,fsync:error=EIO"].map(str::to_owned));
    serving.device.agent.run_under(&under)?;
    serving.device.tap.forget();
    serving.set(&two).await?;
    serving.says(&["journal_unwritable"]).await;
    assert_eq!(serving.device.tap.mutations(), [], "nothing is changed");
    let after = serving.device.running("web").await?;
    assert_eq!(life(&before), life(&after));
    // The disk works again after a restart.
    serving.device.agent.stop();
    serving.device.agent.run_under(&[])?;
    serving.serves("two").await;
    serving.only_container().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a29_a_journal_of_a_newer_agent_is_refused_and_left_as_it_is() -> anyhow::Result<()> {
    holdfast_tests::apt::require(&["sqlite3"])?;
    let mut serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    serving.device.agent.stop();
    let path = journal_files(&serving.device.agent.state())?;
    let path = path
        .iter()
        .find(|path| path.extension().is_some_and(|end| end == "db"));
    let path = path.context("the journal's file")?.clone();
    let sql = |sql: &str| {
        let mut sqlite = std::process::Command::new("sqlite3");
        holdfast_tests::apt::run(sqlite.arg(&path).arg(sql))
    };
    sql("pragma user_version = 999")?;
    serving.device.agent.run()?;
    let ended = serving
        .device
        .agent
        .process()?
        .wait_for_end(CONVERGES_WITHIN)
        .await?;
    assert!(!ended.success(), "{ended}");
    let tail = serving.device.agent.process()?.tail();
    assert!(tail.contains("newer"), "{tail}");
    assert_eq!(sql("pragma user_version")?.trim(), "999");
    let after = serving.device.running("web").await?;
    assert_eq!(life(&before), life(&after));
    assert_eq!(page(serving.port).await, Ok("one".to_owned()));
    Ok(())
}
