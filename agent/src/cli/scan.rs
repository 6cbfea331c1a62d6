//! Owns `holdfast-agent scan`: whose logins count, the update report as a table or JSON, its exit code.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use holdfast_proto::image::Reference;
use holdfast_proto::updates::{UpdateFinding, UpdateReport};
use holdfast_registry::{Keychains, Now, RegistrySettings};

use super::{EXIT_FAILED, EXIT_OK, EXIT_UPDATES, Output, json, table};
use crate::clock::{Clock as _, SystemClock};
use crate::config::Settings;
use crate::engine::Engine as _;
use crate::engine::docker::DockerEngine;
use crate::engine::docker::survey::{RunningContainer, Ways};
use crate::fetch::registries::{CERTIFICATES, USER_AGENT, proxies, told};
use crate::scan as report;

pub(super) async fn scan(
    settings: &Settings,
    output: Output,
    out: &mut dyn Write,
    talk: &mut dyn Write,
) -> anyhow::Result<u8> {
    let engine = DockerEngine::looking(&settings.docker.socket);
    let info = engine.describe().await?;
    let running = engine.running().await?;
    let ways = engine.ways().await?;
    let registries = holdfast_registry::Client::new(holdfast_registry::Settings {
        registries: registries(&running, &ways, Path::new(CERTIFICATES)),
        proxies: proxies(&ways, |name| std::env::var(name).ok()),
        user_agent: USER_AGENT.to_owned(),
        // The engine here pulls from these very places; whoever asks may open its socket.
        reach: holdfast_registry::Reach::Anywhere,
        keychain: Some(Arc::new(keychains(talk)?)),
        ..holdfast_registry::Settings::default()
    })?;
    let here = report::Here {
        store: info.store,
        platform: info.platform,
    };
    let reports = report::scan(running, &here, &registries).await;
    match output {
        Output::Table => show(&reports, out)?,
        Output::Json => json(out, &reports)?,
    }
    Ok(exit_code(&reports))
}

/// The logins of whoever asks: those of the environment, of `docker login` and of the clouds it names.
fn keychains(talk: &mut dyn Write) -> std::io::Result<Keychains> {
    let clock = SystemClock::start();
    let now: Now = Arc::new(move || clock.now());
    let (found, faults) = Keychains::of_environment(|name| std::env::var(name).ok(), &now);
    // What needs no login can be asked without one.
    for error in faults {
        writeln!(talk, "no logins: {}", crate::fault::chain(&error))?;
    }
    Ok(found)
}

/// What the engine was told about the registries of these containers.
fn registries(
    running: &[RunningContainer],
    ways: &Ways,
    folder: &Path,
) -> BTreeMap<String, RegistrySettings> {
    let mut found = BTreeMap::new();
    for container in running {
        let Ok(reference) = container.reference.parse::<Reference>() else {
            continue;
        };
        let registry = reference.repository().registry();
        if found.contains_key(registry) {
            continue;
        }
        // What a tag means only the registry itself knows at once.
        let mirrors = Vec::new();
        let special = RegistrySettings {
            mirrors,
            ..told(registry, ways, folder)
        };
        if special != RegistrySettings::default() {
            found.insert(registry.to_owned(), special);
        }
    }
    found
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
        [
            "CONTAINER",
            "IMAGE",
            "PLATFORM",
            "RUNS",
            "REGISTRY",
            "UPDATE",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for report in reports {
        let platform = report.platform.as_ref();
        rows.push(vec![
            report.container_name.clone(),
            super::short_image(&report.image_reference),
            platform.map_or_else(|| "-".to_owned(), ToString::to_string),
            short(report.running_digest.as_deref()),
            short(report.registry_digest.as_deref()),
            update(report),
        ]);
    }
    table(out, &rows)
}

/// What would change, in words: `yes nginx 1.26.1 → 1.26.3 https://…`.
fn update(report: &UpdateReport) -> String {
    let name = report.image_reference.parse::<Reference>().ok();
    let name = name.as_ref().map_or("", |name| name.familiar_name());
    let mut words = vec![match (report.status, &report.error) {
        (UpdateFinding::UpToDate, _) => "no".to_owned(),
        (UpdateFinding::UpdateAvailable, _) => "yes".to_owned(),
        (UpdateFinding::Pinned, _) => "no: pinned by digest".to_owned(),
        (UpdateFinding::Unknown, Some(error)) => format!("not known: {error}"),
        (UpdateFinding::Unknown, None) => "not known".to_owned(),
    }];
    if let Some(change) = &report.change {
        words.extend(match (&change.from, &change.to) {
            (Some(from), Some(to)) if from == to => Some(format!("{name} {to}, built again")),
            (Some(from), Some(to)) => Some(format!("{name} {from} → {to}")),
            (None, Some(to)) => Some(format!("{name} → {to}")),
            (Some(_) | None, None) => None,
        });
        words.extend(change.release_url.clone());
    }
    if let Some(newest) = report.candidates.first() {
        let tag = report.tag.as_deref().unwrap_or_default();
        words.push(format!("(newer tag: {name} {tag} → {})", newest.tag));
        words.extend(newest.release_url.clone());
    }
    words.join(" ")
}

/// Enough of a digest to compare by eye.
fn short(digest: Option<&str>) -> String {
    let hex = digest.and_then(|digest| digest.split_once(':'));
    hex.map_or_else(|| "-".to_owned(), |(_, hex)| hex.chars().take(12).collect())
}

#[cfg(test)]
mod tests {
    use holdfast_proto::updates::{Availability, Change, TagCandidate};

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

    fn table_of(reports: &[UpdateReport]) -> String {
        let mut out = Vec::new();
        show(reports, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_says_why_it_is_not_known() {
        assert_eq!(
            table_of(&[report(Some(true)), report(None)]),
            "CONTAINER  IMAGE  PLATFORM  RUNS          REGISTRY  UPDATE\n\
             web        web:1  -         aaaaaaaaaaaa  -         yes\n\
             web        web:1  -         aaaaaaaaaaaa  -         not known: 401\n"
        );
    }

    #[test]
    fn the_table_names_what_would_change() {
        let link = Some("https://github.com/o/r/releases/tag/1.26.3".to_owned());
        let mut moved = report(Some(true));
        moved.image_reference = "nginx:1.26".to_owned();
        moved.change = Some(Change {
            from: Some("1.26.1".to_owned()),
            to: Some("1.26.3".to_owned()),
            release_url: link.clone(),
        });
        let mut newer = report(Some(false));
        newer.image_reference = "nginx:1.26.1".to_owned();
        newer.tag = Some("1.26.1".to_owned());
        newer.candidates = vec![TagCandidate {
            tag: "1.26.3".to_owned(),
            is_latest: true,
            release_url: link,
            platform_available: Availability::Yes,
        }];
        let table = table_of(&[moved, newer]);
        let lines: Vec<&str> = table.lines().collect();
        let link = "https://github.com/o/r/releases/tag/1.26.3";
        assert!(
            lines[1].ends_with(&format!("yes nginx 1.26.1 → 1.26.3 {link}")),
            "{table}"
        );
        assert!(
            lines[2].ends_with(&format!("no (newer tag: nginx 1.26.1 → 1.26.3) {link}")),
            "{table}"
        );
    }

    #[test]
    fn a_registry_is_asked_as_the_engine_was_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let of = folder.path().join("reg.example:5000");
        std::fs::create_dir(&of).unwrap();
        std::fs::write(of.join("ca.crt"), "pem").unwrap();
        std::fs::write(of.join("client.key"), "secret").unwrap();
        let container = |reference: &str| RunningContainer {
            id: String::new(),
            name: String::new(),
            reference: reference.to_owned(),
            state: String::new(),
            is_sandbox: false,
            image: None,
        };
        let running = [
            "reg.example:5000/a:1",
            "10.1.2.3:5000/a:1",
            "other.example/a:1",
            "sha256:0",
        ];
        let ways = Ways {
            insecure: ["10.1.2.3:5000", "unused.example"]
                .map(str::to_owned)
                .to_vec(),
            ..Ways::default()
        };
        let found = registries(&running.map(container), &ways, folder.path());
        let known: Vec<_> = found
            .iter()
            .map(|(name, of)| (name.as_str(), of.plain_http, of.ca_pem.as_deref()))
            .collect();
        assert_eq!(
            known,
            [
                ("10.1.2.3:5000", true, None),
                ("reg.example:5000", false, Some(&b"pem"[..])),
            ]
        );
    }
}
