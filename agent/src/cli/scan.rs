//! Owns `holdfast-agent scan`: the update report as a table or JSON, and its exit code.

use std::io::Write;

use holdfast_proto::updates::{UpdateFinding, UpdateReport};

use super::{EXIT_FAILED, EXIT_OK, EXIT_UPDATES, Output, json, table};
use crate::config::Settings;
use crate::engine::Engine as _;
use crate::engine::docker::DockerEngine;
use crate::scan as report;

pub(super) async fn scan(
    settings: &Settings,
    output: Output,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let engine = DockerEngine::looking(&settings.docker.socket);
    let info = engine.describe().await?;
    let registries = holdfast_registry::Client::new(holdfast_registry::Settings {
        user_agent: concat!("holdfast-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
        // The engine here pulls from these very places; whoever asks may open its socket.
        reach: holdfast_registry::Reach::Anywhere,
        ..holdfast_registry::Settings::default()
    })?;
    let here = report::Here {
        store: info.store,
        platform: info.platform,
    };
    let reports = report::scan(engine.running().await?, &here, &registries).await;
    match output {
        Output::Table => show(&reports, out)?,
        Output::Json => json(out, &reports)?,
    }
    Ok(exit_code(&reports))
}

fn exit_code(reports: &[UpdateReport]) -> u8 {
    let any = |wanted| reports.iter().any(|report| report.has_update == wanted);
    if any(Some(true)) {
        EXIT_UPDATES
    } else if any(None) {
        EXIT_FAILED
    } else {
        EXIT_OK
    }
}

fn show(reports: &[UpdateReport], out: &mut dyn Write) -> std::io::Result<()> {
    if reports.is_empty() {
        return writeln!(out, "no container runs");
    }
    let mut rows = vec![
        ["CONTAINER", "IMAGE", "RUNS", "REGISTRY", "UPDATE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for report in reports {
        let update = match (report.status, &report.error) {
            (UpdateFinding::UpToDate, _) => "no".to_owned(),
            (UpdateFinding::UpdateAvailable, _) => "yes".to_owned(),
            (UpdateFinding::Pinned, _) => "no: pinned by digest".to_owned(),
            (UpdateFinding::Unknown, Some(error)) => format!("not known: {error}"),
            (UpdateFinding::Unknown, None) => "not known".to_owned(),
        };
        rows.push(vec![
            report.container_name.clone(),
            super::short_image(&report.image_reference),
            short(report.running_digest.as_deref()),
            short(report.registry_digest.as_deref()),
            update,
        ]);
    }
    table(out, &rows)
}

/// Enough of a digest to compare by eye.
fn short(digest: Option<&str>) -> String {
    let hex = digest.and_then(|digest| digest.split_once(':'));
    hex.map_or_else(|| "-".to_owned(), |(_, hex)| hex.chars().take(12).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(has_update: Option<bool>) -> UpdateReport {
        UpdateReport {
            container_name: "web".to_owned(),
            container_id: "c".to_owned(),
            image_reference: "web:1".to_owned(),
            platform: None,
            running_digest: Some(format!("sha256:{}", "a".repeat(64))),
            registry_digest: None,
            has_update,
            tag: None,
            is_manifest_list: None,
            state: "running".to_owned(),
            status: match has_update {
                Some(true) => UpdateFinding::UpdateAvailable,
                Some(false) => UpdateFinding::UpToDate,
                None => UpdateFinding::Unknown,
            },
            error: has_update.is_none().then(|| "401".to_owned()),
            change: None,
            candidates: Vec::new(),
        }
    }

    #[test]
    fn updates_count_before_what_is_not_known() {
        let code = |found: &[Option<bool>]| {
            exit_code(&found.iter().copied().map(report).collect::<Vec<_>>())
        };
        assert_eq!(code(&[]), 0);
        assert_eq!(code(&[Some(false)]), 0);
        assert_eq!(code(&[Some(false), None]), 1);
        assert_eq!(code(&[None, Some(true)]), 2);
    }

    #[test]
    fn the_table_says_why_it_is_not_known() {
        let mut out = Vec::new();
        show(&[report(Some(true)), report(None)], &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "CONTAINER  IMAGE  RUNS          REGISTRY  UPDATE\n\
             web        web:1  aaaaaaaaaaaa  -         yes\n\
             web        web:1  aaaaaaaaaaaa  -         not known: 401\n"
        );
    }
}
