//! Owns `holdfast-agent logs`: finds a service's container and copies what it wrote.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};

use anyhow::Context as _;
use holdfast_proto::id::ServiceKey;

use super::Logs;
use crate::config::Settings;
use crate::engine::docker::DockerEngine;
use crate::engine::docker::survey::LogsError;
use crate::engine::{Engine as _, EngineContainer, labels};
use crate::enrolment::Enrolment;

pub(super) async fn logs(
    settings: &Settings,
    arguments: &Logs,
    out: &mut dyn Write,
    talk: &mut dyn Write,
) -> anyhow::Result<()> {
    let enrolment = Enrolment::load(&settings.state_dir)?;
    let engine = DockerEngine::looking(&settings.docker.socket);
    let containers = engine.containers(&enrolment.uuid).await?;
    let candidates: Vec<Candidate> = containers.iter().filter_map(candidate).collect();
    let container = find(&candidates, &arguments.service)?;
    let Logs { tail, follow, .. } = arguments;
    let copied = engine.copy_logs(container.id, *tail, *follow, out, talk);
    match copied.await {
        // Whoever reads has seen enough.
        Err(LogsError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// A container that may be meant.
#[derive(Clone, Debug)]
struct Candidate<'a> {
    id: &'a str,
    key: ServiceKey,
    generation: u64,
    is_up: bool,
}

fn candidate(container: &EngineContainer) -> Option<Candidate<'_>> {
    let own = labels::read(&container.labels)?;
    Some(Candidate {
        id: &container.id,
        key: own.key,
        generation: own.generation,
        is_up: container.state.is_up(),
    })
}

/// The container of a service: one that is up before one that is not, newer before older.
fn find<'a>(candidates: &'a [Candidate<'a>], wanted: &str) -> anyhow::Result<&'a Candidate<'a>> {
    let (meant, others): (Vec<&Candidate>, Vec<&Candidate>) =
        candidates.iter().partition(|candidate| {
            let key = &candidate.key;
            key.to_string() == wanted || key.service.as_str() == wanted
        });
    let listed = |candidates: &[&Candidate]| {
        let keys: BTreeSet<&ServiceKey> = candidates.iter().map(|found| &found.key).collect();
        let keys: Vec<String> = keys.into_iter().map(ToString::to_string).collect();
        keys
    };
    let apps = listed(&meant);
    anyhow::ensure!(
        apps.len() < 2,
        "{wanted} is a service of several apps, write one of {}",
        apps.join(", ")
    );
    let found = meant
        .into_iter()
        .max_by_key(|candidate| (candidate.is_up, candidate.generation));
    found.with_context(|| {
        let there = listed(&others).join(", ");
        format!("no container of a service {wanted}; there are {there}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate<'a>(id: &'a str, app: &str, service: &str, is_up: bool) -> Candidate<'a> {
        Candidate {
            id,
            key: ServiceKey {
                app: app.parse().unwrap(),
                service: service.parse().unwrap(),
            },
            generation: 1,
            is_up,
        }
    }

    #[test]
    fn the_container_that_is_up_is_meant() {
        let candidates = [
            candidate("new", "1", "web", true),
            candidate("old", "1", "web", false),
            candidate("db", "1", "db", false),
            candidate("other", "2", "db", true),
        ];
        let found = |wanted: &str| find(&candidates, wanted).map(|found| found.id);
        assert_eq!(found("web").unwrap(), "new");
        assert_eq!(found("1/db").unwrap(), "db");
        let ambiguous = found("db").unwrap_err().to_string();
        assert!(ambiguous.contains("write one of 1/db, 2/db"), "{ambiguous}");
        let missing = found("api").unwrap_err().to_string();
        assert!(missing.contains("there are 1/db, 1/web, 2/db"), "{missing}");
    }
}
