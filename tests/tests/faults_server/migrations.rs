//! Fault C12: migrations that are killed, or whose connection breaks, anywhere.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use holdfast_proto::image::Digest;
use holdfast_tests::api::Options;
use holdfast_tests::postgres::{self, Postgres};
use holdfast_tests::process::{Process, Program};
use holdfast_tests::tcp_tap::Mode;
use holdfast_tests::{apt, binaries, place};
use serde_json::json;

use super::{Office, RECOVERS_WITHIN, tap};

/// The settings of a control API that has this data folder.
fn settings(folder: &Path) -> anyhow::Result<String> {
    let file = folder.join("api.yaml");
    let data = folder.join("data");
    fs::create_dir_all(&data)?;
    let config = json!({ "listen": "127.0.0.1:0", "data_dir": data });
    fs::write(&file, config.to_string())?;
    Ok(file.display().to_string())
}

/// Makes the database of a program that knew the first migrations only.
fn older(data: &Path) -> anyhow::Result<()> {
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-api/migrations");
    let mut script = "create table schema_migrations (
        version bigint primary key, name text not null, checksum text not null, applied_at bigint not null);"
        .to_owned();
    for (version, name) in (1..).zip(["0001_first_tables", "0002_registries", "0003_rollouts"]) {
        let text = fs::read_to_string(migrations.join(format!("{name}.sql")))?;
        let checksum = Digest::of(text.as_bytes()).hex();
        script += &text
            .replace("IDENTITY_KEY", "integer primary key autoincrement")
            .replace("ROW_KEY", "integer primary key");
        writeln!(
            script,
            "insert into schema_migrations values ({version}, 'x', '{checksum}', 0);"
        )?;
    }
    let sqlite = apt::require(&["sqlite3"])?.remove(0);
    let mut command = std::process::Command::new(sqlite);
    apt::run(command.arg(data.join("holdfast.db")).arg(script)).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn c12_a_migration_that_was_killed_anywhere_is_done_by_the_next_start() -> anyhow::Result<()>
{
    let strace = apt::require(&["strace"])?.remove(0).display().to_string();
    let program = binaries::api()?.display().to_string();
    // In the first transaction, between others, in the last ones: a start makes more writes than these.
    let fresh = [1, 2, 3, 5, 9, 20, 40, 80].map(|nth| (nth, false));
    let upgrade = [1, 2, 3, 6, 12, 20, 30].map(|nth| (nth, true));
    for (nth, is_upgrade) in fresh.into_iter().chain(upgrade) {
        let folder = place::temporary("api")?;
        let config = settings(folder.path())?;
        let data = folder.path().join("data");
        if is_upgrade {
            older(&data)?;
        }
        let inject = format!("inject=pwrite64:signal=KILL:when={nth}");
        let words = [
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=pwrite64",
            "-e",
            &inject,
        ];
        let run = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            &program,
            "serve",
            "--config",
            &config,
        ];
        let log = folder.path().join("log");
        let words = words.into_iter().chain(run);
        let killed = Process::start("strace", Program::new(&strace, words), &log)?;
        let status = killed.wait_for_end(RECOVERS_WITHIN).await;
        let status = status.with_context(|| format!("write {nth} was not reached"))?;
        ensure!(!status.success(), "{status}");
        let options = Options::default().set("data_dir", json!(data));
        let office = Office::open(options).await;
        let mut office = office.with_context(|| format!("after write {nth}, {is_upgrade}"))?;
        ensure!(office.writes().await?, "after write {nth}");
        office.has_all().await?;
    }
    Ok(())
}

/// What tables and columns a database has.
const COLUMNS: &str = "select table_name || '.' || column_name || ' ' || data_type
    from information_schema.columns where table_schema = 'public' order by 1";

#[tokio::test(flavor = "multi_thread")]
async fn c12_a_migration_whose_connection_breaks_is_done_by_the_next_start() -> anyhow::Result<()> {
    let cluster = Postgres::start().await?;
    let (tap, url) = tap(&cluster).await?;
    let program = binaries::api()?;
    let folder = place::temporary("api")?;
    let config = settings(folder.path())?;
    for bytes in [500, 700, 900, 1_100, 1_400, 1_800, 2_400] {
        tap.set(Mode::EndsAfter { bytes });
        let start = Program::new(&program, ["serve", "--config", &config]);
        let start = start.env("HOLDFAST_API_DATABASE", &url);
        let broken = Process::start("holdfast-api", start, &folder.path().join("log"))?;
        let status = broken.wait_for_end(RECOVERS_WITHIN).await;
        let status = status.with_context(|| format!("it serves after {bytes} bytes"))?;
        ensure!(!status.success(), "{status}");
    }
    tap.set(Mode::Open);
    let options = |url: &str| Options {
        database: Some(url.to_owned()),
        ..Options::default()
    };
    let mended = Office::open(options(&url)).await?;
    let fresh = cluster.database().await?;
    let _fresh = Office::open(options(&fresh)).await?;
    let (mended_has, fresh_has) = (
        postgres::query(&url, COLUMNS).await?,
        postgres::query(&fresh, COLUMNS).await?,
    );
    ensure!(mended_has.len() > 100 && mended_has == fresh_has);
    mended.has_all().await
}
