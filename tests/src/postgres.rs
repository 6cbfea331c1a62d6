//! A real `PostgreSQL` cluster in a temporary folder, one per test process, a database per test.
//!
//! The empty cluster is made once per machine and copied, which saves the seconds `initdb` takes.
//! It keeps nothing safe (`fsync=off`): it is thrown away with the process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use crate::place::{self, Port};
use crate::process::{Process, Program};
use crate::wait::try_wait_for;
use crate::{apt, clock};

/// Starts take ~200 ms; a busy machine more.
const STARTS_WITHIN: Duration = Duration::from_mins(1);

/// A running cluster; dropping it ends it and removes its files.
#[derive(Debug)]
pub struct Postgres {
    port: Port,
    process: Process,
    folder: TempDir,
}

impl Postgres {
    /// Starts a cluster of this caller's own.
    pub async fn start() -> anyhow::Result<Self> {
        let [postgres, initdb, _] = apt::require(&["postgres", "initdb", "setpriv"])?
            .try_into()
            .ok()
            .context("three programs")?;
        let user = user()?;
        let template = template(&initdb, user)?;
        let folder = place::temporary("postgres")?;
        let at = folder.path();
        own(at, user)?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(&template).arg(at.join("cluster"));
        apt::run(&mut copy)?;
        let port = Port::take()?;
        Self::run_in(folder, port, &postgres, user).await
    }

    /// A standby of this cluster, on which each commit from now on waits for it.
    pub async fn standby(&self) -> anyhow::Result<Self> {
        let programs = apt::require(&["postgres", "pg_basebackup", "setpriv"])?;
        let [postgres, backup, setpriv] = programs.try_into().ok().context("three programs")?;
        let user = user()?;
        let folder = place::temporary("postgres")?;
        own(folder.path(), user)?;
        let mut command = match user {
            Some(user) => {
                let mut command = Command::new(setpriv);
                command.args(["--reuid", user, "--regid", user, "--clear-groups", "--"]);
                command.arg(backup);
                command
            }
            None => Command::new(backup),
        };
        command
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(self.port.number().to_string())
            .args(["-R", "-c", "fast", "--no-sync", "-D"])
            .arg(folder.path().join("cluster"))
            .current_dir(folder.path());
        apt::run(&mut command)?;
        let standby = Self::run_in(folder, Port::take()?, &postgres, user).await?;
        // What the command line says of commits counts for roles that say nothing.
        for sql in [
            "alter system set synchronous_standby_names = '*'",
            "alter role postgres set synchronous_commit = 'on'",
            "select pg_reload_conf()",
        ] {
            self.run("postgres", sql).await?;
        }
        let in_step = "select 1 from pg_stat_replication where sync_state = 'sync'";
        try_wait_for("the standby to be in step", STARTS_WITHIN, async || {
            let found = self.run("postgres", in_step).await.unwrap_or_default();
            !found.is_empty()
        })
        .await?;
        Ok(standby)
    }

    async fn run_in(
        folder: TempDir,
        port: Port,
        postgres: &Path,
        user: Option<&str>,
    ) -> anyhow::Result<Self> {
        let at = folder.path();
        let mut args = vec!["-D".to_owned(), at.join("cluster").display().to_string()];
        let settings = [
            format!("port={}", port.number()),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", at.display()),
            "fsync=off".to_owned(),
            "synchronous_commit=off".to_owned(),
            "full_page_writes=off".to_owned(),
            "max_connections=200".to_owned(),
        ];
        for setting in settings {
            args.extend(["-c".to_owned(), setting]);
        }
        let mut program = Program::new(postgres, args);
        program.user = user.map(str::to_owned);
        let process = Process::start("postgres", program, &at.join("log"))?;
        let cluster = Self {
            port,
            process,
            folder,
        };
        let ready = try_wait_for("postgres to answer", STARTS_WITHIN, async || {
            cluster.run("postgres", "select 1").await.map(drop)
        });
        ready.await.with_context(|| cluster.process.tail())?;
        Ok(cluster)
    }

    /// Makes an empty database and answers its URL.
    pub async fn database(&self) -> anyhow::Result<String> {
        let name = format!("t_{}", place::unique());
        self.run("postgres", &format!("create database {name}"))
            .await?;
        Ok(self.url(&name))
    }

    /// The URL of a database in this cluster.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}", self.port.address())
    }

    /// The folder of its unix socket.
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs SQL without parameters; answers the first column of each row as text.
    pub async fn run(&self, database: &str, sql: &str) -> anyhow::Result<Vec<String>> {
        query(&self.url(database), sql).await
    }

    /// The program itself, to end or kill it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Runs SQL without parameters on any `PostgreSQL`; answers the first column of each row as text.
pub async fn query(url: &str, sql: &str) -> anyhow::Result<Vec<String>> {
    let (url, sql) = (url.to_owned(), sql.to_owned());
    let run = move || -> anyhow::Result<Vec<String>> {
        let mut client = postgres::Client::connect(&url, postgres::NoTls)?;
        let mut rows = Vec::new();
        for message in client.simple_query(&sql)? {
            if let postgres::SimpleQueryMessage::Row(row) = message {
                rows.push(row.get(0).unwrap_or_default().to_owned());
            }
        }
        Ok(rows)
    };
    tokio::task::spawn_blocking(run).await?
}

/// Whom the cluster runs as: `PostgreSQL` refuses root.
fn user() -> anyhow::Result<Option<&'static str>> {
    if !rustix::process::getuid().is_root() {
        return Ok(None);
    }
    let known = fs::read_to_string("/etc/passwd")?;
    let is_there = |name: &str| {
        known
            .lines()
            .any(|line| line.split(':').next() == Some(name))
    };
    let user = ["postgres", "nobody"]
        .into_iter()
        .find(|name| is_there(name));
    user.context("neither a user postgres nor nobody is there")
        .map(Some)
}

fn own(path: &Path, user: Option<&str>) -> anyhow::Result<()> {
    if let Some(user) = user {
        apt::run(Command::new("chown").arg(user).arg(path))?;
    }
    Ok(())
}

/// An empty cluster, made once per machine and version.
fn template(initdb: &Path, user: Option<&str>) -> anyhow::Result<PathBuf> {
    let version = apt::run(Command::new(initdb).arg("--version"))?;
    let version: String = version.chars().filter(char::is_ascii_digit).collect();
    let name = format!("pg-{version}-{}", user.unwrap_or("self"));
    let _lock = place::lock("pg-template")?;
    let folder = place::folder("postgres")?;
    let template = folder.join(&name);
    if template.join("done").exists() {
        return Ok(template.join("cluster"));
    }
    if template.exists() {
        fs::remove_dir_all(&template)?;
    }
    fs::create_dir(&template)?;
    own(&template, user)?;
    let watch = clock::Stopwatch::start();
    let mut command = match user {
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", user, "--regid", user, "--clear-groups", "--"]);
            command.arg(initdb);
            command
        }
        None => Command::new(initdb),
    };
    command
        .args(["--username=postgres", "--auth=trust", "--no-sync"])
        .args(["--encoding=UTF8", "--locale=C", "-D"])
        .arg(template.join("cluster"))
        .current_dir(&template);
    apt::run(&mut command)?;
    fs::write(template.join("done"), format!("{:?}\n", watch.elapsed()))?;
    Ok(template.join("cluster"))
}
