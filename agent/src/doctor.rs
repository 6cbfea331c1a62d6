//! Owns the examination of a device: what the agent needs, whether it is there, what to do if not.
//!
//! Changes nothing but a file it makes and removes in the state folder to see whether it can.

mod machine;
mod reach;
mod rights;

use std::path::Path;

use serde::Serialize;

use crate::clock::Clock;
use crate::config::Settings;
use crate::control::client::Origin;
use crate::engine::docker::DockerEngine;
use crate::engine::{Engine as _, EngineInfo};
use crate::enrolment::Enrolment;
use crate::fault::chain;
use crate::local_api::client::{AskError, ask};
use crate::policy::{DEFAULT_PATH as POLICY_PATH, Policy, PolicyError};

/// The oldest engine API that the agent is tested with (Docker 20.10).
const TESTED_API: (u32, u32) = (1, 41);

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The agent works, but something a person may want does not.
    Warning,
    /// The agent cannot do its work.
    Wrong,
}

impl Verdict {
    /// Its word in tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            advice: None,
        }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found)
    }

    fn warning(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warning, found)
    }

    fn wrong(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Wrong, found)
    }

    fn advice(self, advice: impl Into<String>) -> Self {
        Self {
            advice: Some(advice.into()),
            ..self
        }
    }
}

/// Looks at everything, each thing even when an earlier one is wrong. `config` is the settings' file.
pub async fn examine<C: Clock>(settings: &Settings, config: &Path, clock: &C) -> Vec<Check> {
    let enrolment = Enrolment::load(&settings.state_dir);
    let engine = DockerEngine::looking(&settings.docker.socket);
    let (engine_check, info) = self::engine(&engine, &settings.docker.socket).await;
    let mut checks = vec![
        rights::state_folder(&settings.state_dir),
        rights::files(settings, config),
        self::enrolment(&enrolment),
        agent(&settings.local_api.socket).await,
        engine_check,
        rights::engine_socket(&settings.docker.socket, Path::new("/etc/group")),
        policy(Policy::load(settings.policy.file.as_deref())),
        machine::cgroups(Path::new("/")),
        machine::disk(info.as_ref()),
        machine::reserve(settings),
    ];
    let enrolment = enrolment.ok();
    let origin = enrolment
        .as_ref()
        .and_then(|enrolment| Origin::parse(&enrolment.api_url).ok())
        .or_else(|| settings.api.url.clone());
    let date = reach::date(settings, origin.as_ref()).await;
    checks.push(machine::clock(clock.now(), date.as_deref()));
    checks.push(reach::dns(origin.as_ref()).await);
    checks.push(reach::server(settings, enrolment.as_ref()).await);
    checks.push(reach::registries(settings, enrolment.as_ref(), &engine).await);
    checks
}

fn enrolment(enrolment: &Result<Enrolment, crate::enrolment::EnrolmentError>) -> Check {
    let name = "enrolment";
    match enrolment {
        Ok(enrolment) => Check::ok(name, format!("device {}", enrolment.uuid)),
        Err(error) => Check::wrong(name, chain(error))
            .advice("run `holdfast-agent enroll --key-file FILE --api URL` as root"),
    }
}

async fn agent(socket: &Path) -> Check {
    let name = "running agent";
    let shown = socket.display();
    let alive = ask::<serde_json::Value>(socket, hyper::Method::GET, "/livez", None).await;
    match alive {
        Ok(_) => Check::ok(name, format!("answers on {shown}")),
        Err(error @ AskError::Forbidden { .. }) => Check::warning(name, error.to_string()),
        Err(error) => Check::warning(name, chain(&error))
            .advice("`systemctl status holdfast-agent` says why; what runs goes on without it"),
    }
}

async fn engine(engine: &DockerEngine, socket: &Path) -> (Check, Option<EngineInfo>) {
    let name = "container engine";
    let info = match engine.describe().await {
        Ok(info) => info,
        Err(error) => {
            let check = Check::wrong(name, chain(&error)).advice(format!(
                "is the engine running, and may this user open {}? see `systemctl status docker`",
                socket.display()
            ));
            return (check, None);
        }
    };
    let found = format!(
        "{}, API {}, {} store, {}",
        info.version,
        info.api_version,
        info.store.word(),
        info.platform
    );
    let check = match api_version(&info.api_version) {
        Some(version) if version < TESTED_API => {
            let (major, minor) = TESTED_API;
            Check::warning(name, found).advice(format!(
                "older than API {major}.{minor}, the oldest that is tested: upgrade the engine"
            ))
        }
        Some(_) | None => Check::ok(name, found),
    };
    (check, Some(info))
}

fn policy(policy: Result<Policy, PolicyError>) -> Check {
    let name = "policy";
    match policy {
        Ok(policy) if policy.rules().is_some() => Check::ok(name, "targets are held to its rules"),
        Ok(_) => Check::warning(name, "none: a target may ask the engine for anything").advice(
            format!("write {POLICY_PATH} to say what no target may ask for"),
        ),
        Err(error) => Check::wrong(name, chain(&error))
            .advice("the agent does not start with a policy that it cannot trust"),
    }
}

fn api_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions_compare_as_numbers() {
        assert!(api_version("1.9") < Some(TESTED_API));
        assert!(api_version("1.100") > Some(TESTED_API));
        assert_eq!(api_version("none"), None);
    }
}
