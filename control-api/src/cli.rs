//! Owns the command line of `holdfast-api`.

mod health;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use holdfast_domain::chain::{Break, Verdict};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{self, ENV_CONFIG, Settings};
use crate::program::StartError;
use crate::store::backup::backup;
use crate::store::restore::restore;
use crate::store::{Location, Store, audit};
use crate::telemetry::Metrics;
use crate::{clock, http, program, registries, telemetry};

/// Control API of Holdfast: resolves tags to digests and serves targets to devices.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  holdfast-api serve --config /etc/holdfast/api.yaml\n  \
                  HOLDFAST_API_LISTEN=0.0.0.0:8080 holdfast-api serve\n  holdfast-api config check --config api.yaml\n  \
                  holdfast-api backup --config api.yaml /backups/monday.db\n\n\
                  Every key of the file can be set as HOLDFAST_API_<KEY>; `__` goes one level down,\n\
                  as in HOLDFAST_API_LOG__LEVEL=debug."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves devices and operators until it is told to end.
    Serve {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Looks at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Looks at the audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Copies the database to a new file, while the server runs or not.
    ///
    /// The copy is one consistent moment. It holds hashes of tokens, and secrets that targets carry: keep it as you
    /// keep the server. The key file that registry credentials are encrypted with is not in it; keep that one too, elsewhere.
    Backup {
        #[command(flatten)]
        config: ConfigFile,
        /// The new file; one that is there is not overwritten.
        file: PathBuf,
    },
    /// Puts a backup in the place of the database; the server must be stopped.
    ///
    /// The database that was there is kept beside it, under a name that ends in `.before-` and the time. What changed
    /// since the backup is gone: tokens and keys that were revoked since work again until they are revoked again.
    Restore {
        #[command(flatten)]
        config: ConfigFile,
        /// The backup.
        file: PathBuf,
    },
    /// Asks the server that runs here whether it is ready; 1 is the exit code when it is not.
    ///
    /// For health checks of container engines: an image with this program alone has no other that could ask.
    Health {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Prints the OpenAPI document.
    Openapi,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Reads the configuration and says what is wrong with it, without starting anything.
    Check {
        #[command(flatten)]
        file: ConfigFile,
    },
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Reads the whole audit log and says whether it is as it was written; 1 is the exit code when it is not.
    Verify {
        #[command(flatten)]
        config: ConfigFile,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file; without it, defaults and the environment.
    #[arg(long, value_name = "FILE", env = ENV_CONFIG)]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Settings, config::ConfigError> {
        let env = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        config::load(self.config.as_deref(), env)
    }
}

/// A person has to act first, mostly on the configuration: a restart mends nothing (`EX_CONFIG`, sysexits.h).
const EXIT_CONFIG: u8 = 78;
const EXIT_FAILED: u8 = 1;
/// How long threads that wait for a database are waited for at the end: what nobody waits for any more is not
/// acknowledged, and rolled back.
const LAST_STATEMENT: Duration = Duration::from_secs(2);

/// The exit code of a program that ends with this error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let is_stuck = error
        .downcast_ref::<StartError>()
        .is_some_and(StartError::needs_a_person);
    if is_stuck || error.is::<config::ConfigError>() {
        EXIT_CONFIG
    } else {
        EXIT_FAILED
    }
}

/// Runs one command.
///
/// # Errors
/// What a person should read; the caller prints it.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve { file } => serve(&file.load()?),
        Command::Config(ConfigCommand::Check { file }) => {
            file.load()?;
            print("the configuration is good\n")
        }
        Command::Audit(AuditCommand::Verify { config }) => verify(config.load()?.location),
        Command::Backup { config, file } => {
            let made = backup(sqlite(&config.load()?.location, "pg_dump")?, &file)?;
            print(&format!(
                "{} devices, {} bytes in {}\nthe key file for registry credentials is not in it: keep that one elsewhere\n",
                made.devices,
                made.size_bytes,
                file.display()
            ))
        }
        Command::Restore { config, file } => {
            let database = config.load()?.location;
            let restored = restore(sqlite(&database, "pg_restore")?, &file, clock::now())?;
            let kept = restored.kept.map_or(String::new(), |kept| {
                format!("the database that was there is {}\n", kept.display())
            });
            print(&format!(
                "{} devices are back\n{kept}what was revoked since the backup works again: revoke it again\n",
                restored.content.devices
            ))
        }
        Command::Health { config } => health::ask(config.load()?.listen),
        Command::Openapi => print(&http::document_text()),
    }
}

/// The file of a SQLite store; `instead` is what PostgreSQL has for the purpose.
fn sqlite<'a>(location: &'a Location, instead: &str) -> anyhow::Result<&'a Path> {
    match location {
        Location::Sqlite(path) => Ok(path),
        Location::Postgres(_) => bail!("the store is in PostgreSQL: use its own {instead}"),
    }
}

fn verify(location: Location) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let (verdict, rows) = runtime.block_on(async {
        let store = Store::look(location)
            .await
            .context("cannot open the store")?;
        store
            .read(audit::verify)
            .await
            .context("cannot read the audit log")
    })?;
    match verdict {
        Verdict::Whole(last) => print(&format!(
            "{rows} rows, unbroken up to row {} with the hash {}\n",
            last.id, last.hash
        )),
        Verdict::Broken(id, how) => bail!(
            "the audit log is broken at row {id}, which {}",
            match how {
                Break::Changed => "is not what was written there",
                Break::Missing => "is missing",
                Break::Beginning => "was removed with those before it, and not by the retention",
            }
        ),
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to standard output")
}

fn serve(settings: &Settings) -> anyhow::Result<()> {
    telemetry::start_logs(&settings.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let served = runtime.block_on(async {
        let (stop, stopping) = watch::channel(false);
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            tracing::info!("asked to end: no new connections, open requests may finish");
            let _ = stop.send(true);
            // Keeps the channel open until the process ends.
            std::future::pending::<()>().await;
        });
        let metrics = Arc::new(Metrics::default());
        let registries = registries::client(settings, Arc::clone(&metrics))
            .context("cannot set up the registry client")?;
        program::run(settings, registries, metrics, stopping).await?;
        Ok(())
    });
    runtime.shutdown_timeout(LAST_STATEMENT);
    served
}
