//! Owns `holdfast-agent support-bundle`: an archive for whoever helps the device's owner.
//!
//! Refuses secrets by what it takes: checked settings, reports and the doctor's findings. The target
//! itself stays out, because it carries environment variables and secrets of services; of the
//! journal only names, digests, reasons and times go in.

use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use holdfast_plan::ServiceHistory;
use serde_json::{Value, json};

use super::show;
use crate::clock::{Clock as _, SystemClock};
use crate::config::Settings;
use crate::doctor::examine;
use crate::engine::Engine as _;
use crate::engine::docker::DockerEngine;
use crate::fault::chain;
use crate::journal::Journal;

pub(super) async fn write(
    settings: &Settings,
    config: &Path,
    file: &Path,
    talk: &mut dyn Write,
) -> anyhow::Result<()> {
    let clock = SystemClock::start();
    let files = [
        ("about.json", about(&clock)),
        ("config.json", of(serde_json::to_value(settings))),
        (
            "doctor.json",
            of(serde_json::to_value(
                examine(settings, config, &clock).await,
            )),
        ),
        ("engine.json", engine(settings).await),
        ("journal.json", journal(settings)),
        ("plan.json", asked(show::plan_of(settings).await)),
        ("status.json", asked(show::status_of(settings).await)),
    ];
    let seconds = u64::try_from(clock.now().as_millis() / 1_000).unwrap_or(0);
    let archive = archive(&files, seconds)?;
    crate::durable::replace(file, &archive)
        .with_context(|| format!("cannot write {}", file.display()))?;
    writeln!(
        talk,
        "{} holds {} files and no secrets: look through it before you give it away",
        file.display(),
        files.len()
    )?;
    Ok(())
}

fn of(value: serde_json::Result<Value>) -> Value {
    value.unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

/// What could not be looked at is said in its place: the rest may be all the more telling.
fn asked<T: serde::Serialize>(outcome: anyhow::Result<T>) -> Value {
    match outcome {
        Ok(value) => of(serde_json::to_value(value)),
        Err(error) => json!({ "error": format!("{error:#}") }),
    }
}

fn about(clock: &SystemClock) -> Value {
    json!({
        "agent_version": env!("CARGO_PKG_VERSION"),
        "architecture": std::env::consts::ARCH,
        "made_at": clock.now(),
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map(|text| text.trim().to_owned())
            .ok(),
    })
}

async fn engine(settings: &Settings) -> Value {
    match DockerEngine::looking(&settings.docker.socket)
        .describe()
        .await
    {
        Ok(info) => json!({
            "version": info.version,
            "api_version": info.api_version,
            "image_store": info.store.word(),
            "platform": info.platform,
            "root": info.root,
        }),
        Err(error) => json!({ "error": chain(&error) }),
    }
}

fn journal(settings: &Settings) -> Value {
    let read = || -> Result<Value, crate::journal::JournalError> {
        let Some(journal) = Journal::open_read_only(&settings.state_dir)? else {
            return Ok(Value::Null);
        };
        let target = journal.target()?;
        let histories = journal.histories()?;
        let services: serde_json::Map<String, Value> = histories
            .iter()
            .map(|(key, history)| (key.to_string(), facts(history)))
            .collect();
        Ok(json!({
            "target": target.map(|target| json!({
                "generation": target.generation,
                "etag": target.etag,
                "received_at": target.received_at,
                "size_bytes": target.body.len(),
            })),
            "services": services,
        }))
    };
    read().unwrap_or_else(|error| json!({ "error": chain(&error) }))
}

/// A service's history without its spec: that one carries environment variables.
fn facts(history: &ServiceHistory) -> Value {
    let good = history.last_good.as_ref();
    json!({
        "last_good": good.map(|good| json!({
            "image": good.image_name,
            "identity": good.identity(),
        })),
        "rejected": history.rejected,
        "attempts": history.attempts,
        "interrupted": history.interrupted,
    })
}

fn archive(files: &[(&str, Value)], seconds: u64) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (name, value) in files {
        let bytes = serde_json::to_vec_pretty(value)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        archive.append_data(
            &mut header,
            format!("holdfast-support/{name}"),
            bytes.as_slice(),
        )?;
    }
    Ok(archive.into_inner()?.finish()?)
}
