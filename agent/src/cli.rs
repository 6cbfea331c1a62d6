//! Owns the command line: arguments, exit codes, where data and talk go.
//!
//! Data goes to standard output, talk to standard error. Exit codes: 0 done, 1 failed, 2 wrong
//! arguments, 78 wrong configuration (`EX_CONFIG` of sysexits.h); `scan` and `doctor` have their own.

mod bundle;
mod doctor;
mod enroll;
mod logs;
mod order;
mod scan;
mod show;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use futures_util::future::LocalBoxFuture;
use holdfast_proto::id::ServiceKey;
use holdfast_proto::spec::Period;

use self::order::Order;
use crate::config::{ConfigError, DEFAULT_PATH, Settings};
use crate::policy::Policy;
use crate::run::Ran;
use crate::selfupdate::launcher::{Launched, launch};
use crate::telemetry;

/// Done.
pub const EXIT_OK: u8 = 0;
/// Failed.
pub const EXIT_FAILED: u8 = 1;
/// Of `scan`: there are updates.
pub const EXIT_UPDATES: u8 = 2;
/// Wrong configuration.
pub const EXIT_CONFIG: u8 = 78;
/// Of `run`: another program of the agent is to run in the place of this one (`EX_TEMPFAIL` of sysexits.h). Seen
/// by others only if that could not be started at once.
pub const EXIT_MAKES_PLACE: u8 = 75;

/// Keeps this device on exactly the container images its operator chose.
#[derive(Debug, Parser)]
#[command(
    name = "holdfast-agent",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 78 wrong configuration; scan and doctor \
        have their own.\n\n\
        Examples:\n  holdfast-agent enroll --key KEY --api https://holdfast.example\n  \
        holdfast-agent run\n  holdfast-agent status --output json\n  \
        holdfast-agent lock --owner till --ttl 15m --reason 'a sale is open'\n  \
        HOLDFAST_LOG__LEVEL=debug holdfast-agent run"
)]
pub struct Cli {
    /// Configuration file; may be missing if it is the default one.
    #[arg(long, global = true, value_name = "FILE", env = "HOLDFAST_CONFIG")]
    config: Option<PathBuf>,
    /// How data is written.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

/// How data is written to standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent in the foreground until SIGTERM or SIGINT; containers keep running.
    Run,
    /// Make this device known to a control API.
    #[command(visible_alias = "enrol")]
    Enroll(Enroll),
    /// Show what runs and how far the device is; needs neither a server nor a running agent.
    Status,
    /// Show what the agent would do next and what it holds back; changes nothing.
    Plan,
    /// Ask the registries whether they have newer images than those that run; needs no server.
    ///
    /// Only what can be compared for certain is called an update. An image that is pinned by digest
    /// never has one.
    #[command(
        after_help = "Exit codes: 0 no updates, 1 failed or not known of every container, 2 there are updates."
    )]
    Scan,
    /// Show what a service's container wrote.
    Logs(Logs),
    /// Ask the server for the target, and try again what failed, without waiting.
    UpdateNow(UpdateNow),
    /// Keep updates from beginning; what runs goes on. Survives a restart of the agent.
    #[command(after_help = "Services take locks themselves with a file; see docs/agent.md.")]
    Lock(Lock),
    /// End a lock that was taken with `lock`.
    Unlock(Unlock),
    /// Let nothing be updated or deployed until `resume`; what runs goes on.
    Pause {
        /// What for.
        #[arg(long)]
        reason: Option<String>,
    },
    /// End a pause.
    Resume,
    /// Examine this device: what the agent needs, and what to do where it is missing.
    #[command(
        after_help = "Exit codes: 0 nothing is wrong (there may be warnings), 1 something is."
    )]
    Doctor {
        /// The findings as JSON, as with `--output json`.
        #[arg(long)]
        json: bool,
    },
    /// Write what helps others to help you into an archive; no secrets.
    SupportBundle {
        /// The archive to write, a .tar.gz.
        file: PathBuf,
    },
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the configuration file and the environment, and show what is in force.
    Check,
}

#[derive(Debug, Args)]
struct Enroll {
    /// Enrolment key, given out by an operator. Other users of this machine see what stands on a command
    /// line: a script gives the variable or a file.
    #[arg(
        long,
        env = "HOLDFAST_ENROLMENT_KEY",
        hide_env_values = true,
        required_unless_present = "key_file"
    )]
    key: Option<String>,
    /// File with the enrolment key.
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    key_file: Option<PathBuf>,
    /// Address of the control API; `api.url` of the configuration when absent.
    #[arg(long, value_name = "URL")]
    api: Option<String>,
    /// Name of this device; `device.name`, then the host's name when absent.
    #[arg(long)]
    name: Option<String>,
    /// Label of this device, beside those of the configuration; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct Logs {
    /// The service, NAME or APP/NAME.
    service: String,
    /// Go on with what is written from now on.
    #[arg(long, short)]
    follow: bool,
    /// At most so many lines of what was written before; all when absent.
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<u32>,
}

#[derive(Debug, Args)]
struct UpdateNow {
    /// Begin in spite of locks and update windows, once: until all is done, for an hour at most.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Lock {
    /// Only this service, APP/NAME; the whole device when absent.
    #[arg(value_parser = service)]
    service: Option<ServiceKey>,
    /// Who holds it; only the same owner can renew it.
    #[arg(long)]
    owner: Option<String>,
    /// How long it holds, such as 15m; until `unlock` when absent.
    #[arg(long, value_name = "DURATION")]
    ttl: Option<Period>,
    /// What for.
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Debug, Args)]
struct Unlock {
    /// Only this service, APP/NAME; the whole device when absent.
    #[arg(value_parser = service)]
    service: Option<ServiceKey>,
}

fn service(text: &str) -> Result<ServiceKey, String> {
    crate::local_api::service_key(text).ok_or_else(|| "write APP/NAME".to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("write KEY=VALUE".to_owned()),
    }
}

/// Does what the arguments say; gives the exit code. Errors that are no configuration's come back.
pub async fn main(
    cli: Cli,
    launched: &Launched,
    out: &mut dyn Write,
    talk: &mut dyn Write,
) -> anyhow::Result<u8> {
    let config = cli.config_file();
    let settings = match settings(&cli) {
        Ok(settings) => settings,
        Err(error) => return wrong_configuration(&error, talk),
    };
    // Two pieces of work behind one pointer: the service, which runs for months, has none of the commands in memory.
    let work: LocalBoxFuture<'_, anyhow::Result<u8>> = match cli.command {
        Command::Run => Box::pin(serve(&settings, launched, talk)),
        command => Box::pin(obey(command, &settings, (&config, cli.output), out, talk)),
    };
    work.await
}

/// Runs the service until it is asked to end.
async fn serve(
    settings: &Settings,
    launched: &Launched,
    talk: &mut dyn Write,
) -> anyhow::Result<u8> {
    let policy = match Policy::load(settings.policy.file.as_deref()) {
        Ok(policy) => policy,
        Err(error) => return wrong_configuration(&error, talk),
    };
    telemetry::start(&settings.log);
    let ran = Box::pin(crate::run::run(settings, &policy, launched)).await?;
    Ok(match ran {
        Ran::ToItsEnd => EXIT_OK,
        Ran::ToMakePlace => EXIT_MAKES_PLACE,
    })
}

/// Does what is done in a moment.
async fn obey(
    command: Command,
    settings: &Settings,
    (config, output): (&Path, Output),
    out: &mut dyn Write,
    talk: &mut dyn Write,
) -> anyhow::Result<u8> {
    match command {
        // Not a matter of a moment: see `serve`.
        Command::Run => {}
        Command::Enroll(arguments) => {
            enroll::enroll(settings, arguments, output, out, talk).await?;
        }
        Command::Status => show::status(settings, output, out).await?,
        Command::Plan => show::plan(settings, output, out).await?,
        Command::Scan => return scan::scan(settings, output, out, talk).await,
        Command::Logs(arguments) => logs::logs(settings, &arguments, out, talk).await?,
        Command::UpdateNow(arguments) => {
            let order = Order::update_now(arguments.force);
            order::give(settings, order, output, out, talk).await?;
        }
        Command::Lock(arguments) => {
            order::give(settings, Order::lock(arguments), output, out, talk).await?;
        }
        Command::Unlock(Unlock { service }) => {
            let order = Order::unlock(service.as_ref());
            order::give(settings, order, output, out, talk).await?;
        }
        Command::Pause { reason } => {
            order::give(settings, Order::pause(reason.as_deref()), output, out, talk).await?;
        }
        Command::Resume => {
            order::give(settings, Order::resume(), output, out, talk).await?;
        }
        Command::Doctor { json } => {
            let output = if json { Output::Json } else { output };
            return doctor::doctor(settings, config, output, out).await;
        }
        Command::SupportBundle { file } => bundle::write(settings, config, &file, talk).await?,
        Command::Config(ConfigCommand::Check) => {
            if let Err(error) = Policy::load(settings.policy.file.as_deref()) {
                return wrong_configuration(&error, talk);
            }
            match output {
                Output::Table => write!(out, "{}", settings.to_yaml())?,
                Output::Json => json(out, settings)?,
            }
            writeln!(talk, "the configuration is valid")?;
        }
    }
    Ok(EXIT_OK)
}

fn wrong_configuration(error: &dyn std::error::Error, talk: &mut dyn Write) -> anyhow::Result<u8> {
    for line in crate::fault::chain(error).lines() {
        writeln!(talk, "holdfast-agent: {line}")?;
    }
    Ok(EXIT_CONFIG)
}

impl Cli {
    /// Starts the program of the agent that is to run, if that is another one: then this does not return. Only
    /// `run` has others.
    pub fn launch(&self) -> Launched {
        match self.command {
            Command::Run => launch(&Settings::state_dir(&self.config_file(), &environment())),
            _ => Launched::directly(),
        }
    }

    fn config_file(&self) -> PathBuf {
        let named = self.config.clone();
        named.unwrap_or_else(|| PathBuf::from(DEFAULT_PATH))
    }
}

fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok()))
        .collect()
}

fn settings(cli: &Cli) -> Result<Settings, ConfigError> {
    Settings::load(&cli.config_file(), cli.config.is_some(), &environment())
}

fn json<T: serde::Serialize>(out: &mut dyn Write, value: &T) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
}

/// A reference with its digest, if it has one, cut to what people compare.
fn short_image(image: &str) -> String {
    let end = image
        .find("@sha256:")
        .map_or(image.len(), |at| at + "@sha256:".len() + 12);
    image.chars().take(end).collect()
}

/// Writes rows in columns; the last column is as wide as it likes.
fn table(out: &mut dyn Write, rows: &[Vec<String>]) -> std::io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_make_sense() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        let cli = Cli::parse_from([
            "holdfast-agent",
            "enroll",
            "--key",
            "k",
            "--label",
            "site=berlin",
            "--output",
            "json",
        ]);
        assert_eq!(cli.output, Output::Json);
        assert!(matches!(cli.command, Command::Enroll(Enroll { labels, .. }) if labels.len() == 1));
        assert!(
            Cli::try_parse_from(["holdfast-agent", "enroll", "--key", "k", "--label", "x"])
                .is_err()
        );
        if std::env::var_os("HOLDFAST_ENROLMENT_KEY").is_none() {
            assert!(Cli::try_parse_from(["holdfast-agent", "enroll"]).is_err());
            let from_file = ["holdfast-agent", "enroll", "--key-file", "f"];
            assert!(Cli::try_parse_from(from_file).is_ok());
        }
        let both = ["holdfast-agent", "enroll", "--key", "k", "--key-file", "f"];
        assert!(Cli::try_parse_from(both).is_err());
    }

    #[test]
    fn columns_line_up() {
        let mut out = Vec::new();
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect();
        table(&mut out, &[row(&["A", "LONG"]), row(&["bcd", "e"])]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "A    LONG\nbcd  e\n");
    }
}
