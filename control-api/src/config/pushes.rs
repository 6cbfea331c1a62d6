//! Owns the part of the configuration about pushes: secrets of webhooks, images of one's own, who approves.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_domain::approval::{Internal, TargetRule};
use holdfast_proto::image::Reference;
use serde::{Deserialize, Deserializer, de};

use super::PushRules;
use super::input::{Faults, number};
use crate::secret::Secret;

/// A webhook secret shorter than this can be guessed.
const LEAST_SECRET: usize = 16;
/// One longer than this does not fit into a path beside its vendor for every sender.
const MOST_SECRET: usize = 200;
/// Secrets that count at a time: each costs every delivery one comparison.
const MOST_SECRETS: usize = 32;
/// Senders give up after 5 to 10 seconds.
const DEFAULT_ANSWER_S: u32 = 2;
const MOST_ANSWER_S: u32 = 60;
const DEFAULT_REGISTRY: &str = "docker.io";

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhooksInput {
    secret: Option<String>,
    secret_file: Option<PathBuf>,
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    #[serde(default)]
    secret_files: BTreeMap<String, PathBuf>,
    #[serde(default, deserialize_with = "number")]
    answer_within_seconds: Option<u32>,
}

impl std::fmt::Debug for WebhooksInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhooksInput").finish_non_exhaustive()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InternalInput {
    registry: Option<String>,
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApprovalsInput {
    #[serde(default, deserialize_with = "truth")]
    two_person: bool,
    targets: Option<String>,
}

/// Yes or no, also when the environment gives it as text.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Truth(bool),
        Text(String),
    }
    let wrong = || de::Error::custom("must be true or false");
    match Written::deserialize(deserializer).map_err(|_| wrong())? {
        Written::Truth(truth) => Ok(truth),
        Written::Text(text) => text.trim().parse().map_err(|_| wrong()),
    }
}

/// The secret without a name, and the rules for pushes.
pub(super) fn push_rules(
    webhooks: WebhooksInput,
    internal: Vec<InternalInput>,
    approvals: &ApprovalsInput,
    faults: &mut Faults,
) -> (Option<Secret>, PushRules) {
    let file = webhooks.secret_file.as_deref();
    let unnamed = faults.secret("webhooks.secret", webhooks.secret, file);
    if let Some(secret) = &unnamed {
        check_length("webhooks.secret", secret, faults);
    }
    let mut secrets = BTreeMap::new();
    let written = webhooks.secrets.into_iter();
    let written = written.map(|(name, text)| ("secrets", name, Some(text), None));
    let in_files = webhooks.secret_files.into_iter();
    let in_files = in_files.map(|(name, file)| ("secret_files", name, None, Some(file)));
    for (key, name, text, file) in written.chain(in_files) {
        let path = format!("webhooks.{key}.{name}");
        check_name(&path, &name, faults);
        if let Some(secret) = faults.secret(&path, text, file.as_deref()) {
            check_length(&path, &secret, faults);
            if secrets.insert(name, secret).is_some() {
                faults.add(path, "has a value in webhooks.secrets, too");
            }
        }
    }
    if secrets.len() > MOST_SECRETS {
        let detail = format!("may have at most {MOST_SECRETS} items");
        faults.add("webhooks.secrets", detail);
    }
    let internal = internal
        .into_iter()
        .enumerate()
        .filter_map(|(position, input)| {
            own(&format!("internal_images[{position}]"), &input, faults)
        })
        .collect();
    let answer_s = faults.within(
        "webhooks.answer_within_seconds",
        webhooks.answer_within_seconds.unwrap_or(DEFAULT_ANSWER_S),
        0,
        MOST_ANSWER_S,
    );
    let rules = PushRules {
        answer_within: Duration::from_secs(answer_s.into()),
        secrets,
        internal,
        two_person: approvals.two_person,
        targets: target_rule(approvals.targets.as_deref(), faults),
    };
    (unnamed, rules)
}

fn target_rule(written: Option<&str>, faults: &mut Faults) -> TargetRule {
    match written.map(str::trim) {
        None | Some("open") => TargetRule::Open,
        Some("overrule") => TargetRule::Overrule,
        Some("closed") => TargetRule::Closed,
        Some(_) => {
            faults.add("approvals.targets", "write open, overrule or closed");
            TargetRule::Closed
        }
    }
}

fn check_name(path: &str, name: &str, faults: &mut Faults) {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    // `default` is the one without a name.
    if name.is_empty() || name.len() > 64 || name == "default" || !name.chars().all(is_plain) {
        faults.add(
            path,
            "must be named with 1 to 64 letters, digits, `-`, `_` and `.`, and not `default`",
        );
    }
}

fn check_length(path: &str, secret: &Secret, faults: &mut Faults) {
    if !(LEAST_SECRET..=MOST_SECRET).contains(&secret.expose().len()) {
        let detail = format!("must have {LEAST_SECRET} to {MOST_SECRET} characters");
        faults.add(path, detail);
    }
}

/// The canonical form of what was written: `index.docker.io` is `docker.io`.
fn own(path: &str, input: &InternalInput, faults: &mut Faults) -> Option<Internal> {
    let registry = input.registry.as_deref().unwrap_or(DEFAULT_REGISTRY);
    // A registry without a dot, a colon or `localhost` would be read as a part of the path.
    let is_host = format!("{registry}/x/x")
        .parse::<Reference>()
        .is_ok_and(|reference| reference.repository().path() == "x/x");
    if !is_host || registry.contains('/') {
        faults.add(
            format!("{path}.registry"),
            "must be a host such as registry.example:5000, as references name it",
        );
        return None;
    }
    let namespace = input.namespace.trim_matches('/');
    let example = format!("{registry}/{namespace}/x");
    let parsed = example.parse::<Reference>().ok();
    let canonical = parsed.as_ref().map(Reference::repository);
    let found = canonical
        .and_then(|repository| Some((repository.registry(), repository.path().strip_suffix("/x")?)))
        .filter(|(_, path)| *path == namespace);
    let Some((registry, namespace)) = found else {
        faults.add(
            format!("{path}.namespace"),
            "must be the first parts of images' paths, such as `acme` or `acme/own`",
        );
        return None;
    };
    Some(Internal {
        registry: registry.to_owned(),
        namespace: namespace.to_owned(),
    })
}
