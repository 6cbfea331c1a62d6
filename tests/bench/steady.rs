//! A device at rest: how many engine calls change something, and how many bytes the agent writes, over
//! many reconciles.
//!
//! A reconcile is provoked by setting a container's restart policy to what it is already: the engine
//! tells of an update that changed nothing, which the agent must look at and leave alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use holdfast_tests::serving::{Serving, id, life};
use holdfast_tests::site::{CONVERGES_WITHIN, Site};
use holdfast_tests::tap::Call;
use holdfast_tests::wait::try_wait_for;
use http::{Method, StatusCode};
use serde_json::json;

/// What many reconciles cost.
#[derive(Debug)]
pub(crate) struct Steady {
    /// Looks at the engine.
    pub(crate) reconciles: usize,
    /// Calls of the agent that may have changed something.
    pub(crate) mutations: Vec<Call>,
    /// Bytes that it caused to be written to a disk (`write_bytes`).
    pub(crate) disk_bytes: u64,
    /// Bytes of all its write calls (`wchar`): the log, and requests to engine and API.
    pub(crate) all_bytes: u64,
    /// Files of its state folder that are not as they were.
    pub(crate) changed_files: Vec<String>,
    /// Open files before and after.
    pub(crate) handles: (usize, usize),
}

/// A figure of `/proc/PID/io`.
pub(crate) fn io(pid: u32, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let figure = line.and_then(|line| line.strip_prefix(": "));
    Ok(figure
        .with_context(|| format!("{name} in {text}"))?
        .parse()?)
}

/// Content of each file of a folder.
fn files(folder: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let entries = fs::read_dir(folder)?.flatten();
    let files = entries.filter(|entry| entry.path().is_file()).map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        Ok((name, fs::read(entry.path())?))
    });
    files.collect()
}

/// So many reconciles of a device that serves.
pub(crate) async fn reconciles(many: usize) -> anyhow::Result<Steady> {
    let serving = Serving::at(Site::start().await?, |options| {
        options.set("log", "level", "info")
    })
    .await?;
    let before = serving.only_container().await?;
    let body = json!({ "RestartPolicy": before["HostConfig"]["RestartPolicy"] });
    let update = format!("/containers/{}/update", id(&before));
    let looks = || {
        let calls = serving.device.tap.calls();
        let look =
            |call: &&Call| call.path == "/containers/json" && call.status == Some(StatusCode::OK);
        calls.iter().filter(look).count()
    };
    let nudge = async || {
        let seen = looks();
        serving
            .device
            .docker()
            .call(Method::POST, &update, Some(&body))
            .await?;
        try_wait_for("another look", CONVERGES_WITHIN, async || looks() > seen).await
    };
    // What an update leaves to do for a moment is done by now: reports, the journal's own tidying.
    for _ in 0..5 {
        nudge().await?;
    }
    let pid = serving.device.agent.process()?.pid();
    let state = serving.device.agent.state();
    let handles = || fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count);
    serving.device.tap.forget();
    let (disk, all, kept, open) = (
        io(pid, "write_bytes")?,
        io(pid, "wchar")?,
        files(&state)?,
        handles()?,
    );
    while looks() < many {
        nudge().await?;
    }
    let now = files(&state)?;
    let changed = now
        .iter()
        .filter(|(name, text)| kept.get(*name) != Some(text));
    let changed_files = changed.map(|(name, _)| name.clone()).collect();
    let after = serving.only_container().await?;
    anyhow::ensure!(life(&before) == life(&after), "the container was touched");
    Ok(Steady {
        reconciles: looks(),
        mutations: serving.device.tap.mutations(),
        disk_bytes: io(pid, "write_bytes")? - disk,
        all_bytes: io(pid, "wchar")? - all,
        changed_files,
        handles: (open, handles()?),
    })
}

/// The section of `docs/figures.md`.
pub(crate) async fn measure(many: usize) -> anyhow::Result<String> {
    let steady = reconciles(many).await?;
    let names: Vec<String> = steady
        .mutations
        .iter()
        .map(|call| format!("{} {}", call.method, call.path))
        .collect();
    let changed = match (steady.changed_files.is_empty(), names.is_empty()) {
        (true, true) => String::new(),
        _ => format!("\nChanged: {:?}; calls: {names:?}\n", steady.changed_files),
    };
    Ok(format!(
        "A device at rest is made to look again by an engine event that changed nothing; it polls and \
         reports meanwhile.\n\n\
         | reconciles | engine calls that change | bytes written to a disk | state files changed | open files before, after |\n\
         |---|---|---|---|---|\n| {} | {} | {} | {} | {}, {} |\n\n\
         All its write calls together (`wchar`: the log, and requests to engine and API): {} bytes.\n{changed}",
        steady.reconciles,
        steady.mutations.len(),
        steady.disk_bytes,
        steady.changed_files.len(),
        steady.handles.0,
        steady.handles.1,
        steady.all_bytes,
    ))
}
