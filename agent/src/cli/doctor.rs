//! Owns `holdfast-agent doctor`: the examination as a table or JSON, and its exit code.

use std::io::Write;
use std::path::Path;

use super::{EXIT_FAILED, EXIT_OK, Output, json, table};
use crate::clock::SystemClock;
use crate::config::Settings;
use crate::doctor::{Check, Verdict, examine};

pub(super) async fn doctor(
    settings: &Settings,
    config: &Path,
    output: Output,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let checks = examine(settings, config, &SystemClock::start()).await;
    match output {
        Output::Table => show(&checks, out)?,
        Output::Json => json(out, &checks)?,
    }
    let wrong = checks.iter().any(|check| check.verdict == Verdict::Wrong);
    Ok(if wrong { EXIT_FAILED } else { EXIT_OK })
}

/// The table, then what to do.
pub(super) fn show(checks: &[Check], out: &mut dyn Write) -> std::io::Result<()> {
    let rows: Vec<Vec<String>> = checks
        .iter()
        .map(|check| {
            vec![
                check.name.to_owned(),
                check.verdict.word().to_owned(),
                check.found.clone(),
            ]
        })
        .collect();
    table(out, &rows)?;
    for check in checks {
        if let Some(advice) = &check.advice {
            writeln!(out, "\n{}: {advice}", check.name)?;
        }
    }
    Ok(())
}
