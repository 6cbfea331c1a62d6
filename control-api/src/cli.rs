//! Owns the command line of `holdfast-api`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{self, ENV_CONFIG, Settings};
use crate::telemetry::Metrics;
use crate::{http, program, registries, telemetry};

/// Control API of Holdfast: resolves tags to digests and serves targets to devices.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  holdfast-api serve --config /etc/holdfast/api.yaml\n  \
                  HOLDFAST_API_LISTEN=0.0.0.0:8080 holdfast-api serve\n  holdfast-api config check --config api.yaml\n\n\
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

/// The configuration has to be changed first: a restart mends nothing (`EX_CONFIG`, sysexits.h).
const EXIT_CONFIG: u8 = 78;
const EXIT_FAILED: u8 = 1;

/// The exit code of a program that ends with this error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<config::ConfigError>() {
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
        Command::Openapi => print(&http::document_text()),
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
    runtime.block_on(async {
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
    })
}
