//! Faults C07 and C09: a disk that is full, fails, turns read-only, or forgets what was not synced.

use std::fs;

use anyhow::ensure;
use holdfast_tests::api::{Api, Options};
use holdfast_tests::disk::{Disk, SmallDisk, fill};
use holdfast_tests::process::{Process, Program, Signal};
use holdfast_tests::{apt, place};
use serde_json::json;

use super::{Office, RECOVERS_WITHIN, has_all};

const DISK: u64 = 64 << 20;

fn on(disk: &Disk) -> Options {
    Options::default().set("data_dir", json!(disk.root()))
}

#[tokio::test(flavor = "multi_thread")]
async fn c07_on_a_full_disk_nothing_is_half_written_and_it_recovers_by_itself() -> anyhow::Result<()>
{
    let disk = Disk::mount(SmallDisk::of(DISK))?;
    let mut office = Office::open(on(&disk)).await?;
    let filler = fill(&disk.root(), 0)?;
    // The journal has some room left of its own.
    let mut refused = 0;
    for _ in 0..5_000 {
        refused += usize::from(!office.writes().await?);
        if refused == 20 {
            break;
        }
    }
    ensure!(refused == 20, "the disk is not full");
    office.polls().await?;
    office.has_all().await?;
    fs::remove_file(filler)?;
    office.recovers().await?;
    office.has_all().await?;
    ensure!(office.api.process().ended().is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c07_a_disk_whose_writes_fail_costs_only_writes() -> anyhow::Result<()> {
    let mut office = Office::open(Options::default()).await?;
    let strace = apt::require(&["strace"])?.remove(0);
    let folder = place::temporary("strace")?;
    let pid = office.api.process().pid().to_string();
    for calls in ["pwrite64", "fsync,fdatasync"] {
        let (trace, inject) = (
            format!("trace={calls}"),
            format!("inject={calls}:error=EIO"),
        );
        let words = [
            "-f",
            "-p",
            &pid,
            "-o",
            "/dev/null",
            "-e",
            &trace,
            "-e",
            &inject,
        ];
        let log = folder.path().join(calls);
        let mut fails = Process::start("strace", Program::new(&strace, words), &log)?;
        fails.wait_for_log(&["attached"], RECOVERS_WITHIN).await?;
        for _ in 0..5 {
            ensure!(!office.writes().await?, "{calls} did not fail");
            office.polls().await?;
            office.api.get("/devices").await?.good()?;
        }
        fails.stop();
        office.recovers().await?;
    }
    office.has_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn c07_a_disk_that_turns_read_only_costs_only_writes() -> anyhow::Result<()> {
    let disk = Disk::mount(SmallDisk::of(DISK))?;
    let mut office = Office::open(on(&disk)).await?;
    for _ in 0..5 {
        ensure!(office.writes().await?);
    }
    disk.fail()?;
    for _ in 0..5 {
        ensure!(!office.writes().await?, "the disk is still writable");
        office.polls().await?;
        office.api.get("/devices").await?.good()?;
    }
    // A file system that is mounted anew is another one: this takes a start.
    office.api.process().stop();
    disk.mend()?;
    office.api.process().restart()?;
    office.api.ready().await?;
    office.recovers().await?;
    office.has_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn c09_what_was_acknowledged_is_there_after_a_power_cut() -> anyhow::Result<()> {
    let disk = Disk::mount(SmallDisk::of(DISK))?;
    let mut office = Office::open(on(&disk)).await?;
    for _ in 0..3 {
        for _ in 0..20 {
            ensure!(office.writes().await?);
        }
        let forgotten = disk.root().join("nobody-synced-this");
        fs::write(&forgotten, "x".repeat(4_096))?;
        office.api.process().signal(Signal::STOP);
        let left = disk.after_power_cut()?;
        office.api.process().signal(Signal::CONT);
        // Else nothing was cut.
        let there = fs::read(left.root().join("nobody-synced-this")).unwrap_or_default();
        ensure!(!there.starts_with(b"x"), "the disk forgets nothing");
        fs::remove_file(forgotten)?;
        for name in ["admin-token", "credentials-key"] {
            let (kept, own) = (left.root().join(name), disk.root().join(name));
            ensure!(fs::read(kept)? == fs::read(own)?, "{name} is lost");
        }
        let after = Api::start(on(&left)).await?;
        has_all(&after, &office.acknowledged).await?;
    }
    Ok(())
}
