//! Owns the command line: arguments, exit codes, where data and talk go.
//!
//! Data goes to standard output, talk to standard error. Exit codes: 0 done, 1 failed, 2 wrong
//! arguments, 78 wrong configuration (`EX_CONFIG` of sysexits.h).

mod enroll;
mod show;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{ConfigError, DEFAULT_PATH, Settings};
use crate::policy::Policy;
use crate::telemetry;

/// Done.
pub const EXIT_OK: u8 = 0;
/// Failed.
pub const EXIT_FAILED: u8 = 1;
/// Wrong configuration.
pub const EXIT_CONFIG: u8 = 78;

/// Keeps this device on exactly the container images its operator chose.
#[derive(Debug, Parser)]
#[command(
    name = "holdfast-agent",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 78 wrong configuration.\n\n\
        Examples:\n  holdfast-agent enroll --key KEY --api https://holdfast.example\n  \
        holdfast-agent run\n  holdfast-agent status --output json\n  \
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
    /// Enrolment key, given out by an operator.
    #[arg(long, env = "HOLDFAST_ENROLMENT_KEY", hide_env_values = true)]
    key: String,
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

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("write KEY=VALUE".to_owned()),
    }
}

/// Does what the arguments say; gives the exit code. Errors that are no configuration's come back.
pub async fn main(cli: Cli, out: &mut dyn Write, talk: &mut dyn Write) -> anyhow::Result<u8> {
    let settings = match settings(&cli) {
        Ok(settings) => settings,
        Err(error) => return wrong_configuration(&error, talk),
    };
    let policy = match cli.command {
        Command::Run | Command::Config(ConfigCommand::Check) => {
            match Policy::load(settings.policy.file.as_deref()) {
                Ok(policy) => policy,
                Err(error) => return wrong_configuration(&error, talk),
            }
        }
        // These make nothing, and people who may not read the policy run them.
        Command::Enroll(_) | Command::Status | Command::Plan => Policy::unrestricted(),
    };
    match cli.command {
        Command::Run => {
            telemetry::start(&settings.log);
            Box::pin(crate::run::run(&settings, &policy)).await?;
        }
        Command::Enroll(arguments) => {
            enroll::enroll(&settings, arguments, cli.output, out, talk).await?;
        }
        Command::Status => show::status(&settings, cli.output, out).await?,
        Command::Plan => show::plan(&settings, cli.output, out).await?,
        Command::Config(ConfigCommand::Check) => {
            match cli.output {
                Output::Table => write!(out, "{}", settings.to_yaml())?,
                Output::Json => json(out, &settings)?,
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

fn settings(cli: &Cli) -> Result<Settings, ConfigError> {
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok()))
        .collect();
    let path = cli
        .config
        .clone()
        .unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    Settings::load(&path, cli.config.is_some(), &environment)
}

fn json<T: serde::Serialize>(out: &mut dyn Write, value: &T) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
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
        assert!(Cli::try_parse_from(["holdfast-agent", "enroll"]).is_err());
    }

    #[test]
    fn columns_line_up() {
        let mut out = Vec::new();
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect();
        table(&mut out, &[row(&["A", "LONG"]), row(&["bcd", "e"])]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "A    LONG\nbcd  e\n");
    }
}
