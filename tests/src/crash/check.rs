//! The invariants of the fault tables, as far as one device on one engine can break them.
//!
//! Pure: what was seen goes in, what was violated comes out. So a test can show that each check fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Value, json};

use super::state::{Container, Snapshot};
use super::watch::Seen;
use crate::tap::Call;

/// How often a rejected spec may be started (I13).
pub const MAX_ATTEMPTS: usize = 3;

/// Something that must not happen, happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The invariant: `I1` to `I14`; `lab` when the lab itself failed and so nothing was shown.
    pub rule: String,
    /// What was seen.
    pub evidence: String,
}

impl Violation {
    /// A violation with its evidence.
    pub fn new(rule: impl Into<String>, evidence: impl Into<String>) -> Self {
        Self {
            rule: rule.into(),
            evidence: evidence.into(),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({ "rule": self.rule, "evidence": self.evidence })
    }

    pub(super) fn from_json(value: &Value) -> Option<Self> {
        Some(Self {
            rule: value["rule"].as_str()?.to_owned(),
            evidence: value["evidence"].as_str()?.to_owned(),
        })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.evidence)
    }
}

/// What may be and must be on the device while a scenario goes on.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// The generation of the target.
    pub generation: u64,
    /// The image that the target names.
    pub target: Option<String>,
    /// The image that passed its gate before, and must stay until its successor has.
    pub last_good: Option<String>,
    /// Whether the old container goes on until the new one is created.
    pub replaces: bool,
    /// Whether two containers of a service may run at once (hand-over).
    pub both_may_run: bool,
    /// Whether the engine has started again and no agent has acted since: a container that has its
    /// restart policy and is down all the same was not stopped by the agent.
    pub engine_restarted: bool,
    /// Images that an accepted target named and that may run now.
    pub allowed: BTreeSet<String>,
    /// The image that fails its gate.
    pub fails: Option<String>,
}

/// What must hold at every moment: at the crash, when the engine is back, and at the end.
pub fn always(snapshot: &Snapshot, bounds: &Bounds) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |rule, what: String| {
        let evidence = format!("{what}; the device: {}", snapshot.lines());
        found.push(Violation::new(rule, evidence));
    };
    let mut services: BTreeMap<&str, Vec<&Container>> = BTreeMap::new();
    for one in snapshot.own() {
        services.entry(&one.service).or_default().push(one);
    }
    for (service, all) in services {
        let most = if bounds.both_may_run { 2 } else { 1 };
        if all.iter().filter(|one| one.runs()).count() > most {
            report("I1", format!("more than {most} of {service} run"));
        }
        if all.iter().filter(|one| one.comes_back()).count() > 1 {
            report("I2", format!("two of {service} have a restart policy"));
        }
        for one in all {
            if !bounds.allowed.contains(&one.image) {
                report(
                    "I5",
                    format!("{} is from an image no target named", one.name),
                );
            }
            if one.generation > bounds.generation {
                report("I6", format!("{} is ahead of the target", one.name));
            }
        }
    }
    if let Some(good) = &bounds.last_good {
        let of = |image: &str| snapshot.own().filter(|one| one.image == image).count();
        if of(good) == 0 && !snapshot.has_image(good) {
            report(
                "I4",
                "no container and no image of the last good".to_owned(),
            );
        }
        let serves = snapshot.own().any(|one| {
            let untouched = bounds.engine_restarted && one.comes_back();
            one.image == *good && (one.runs() || untouched)
        });
        if let Some(target) = bounds
            .target
            .as_ref()
            .filter(|_| bounds.replaces && !serves)
            && (of(target) == 0 || !snapshot.has_image(target))
        {
            report(
                "I3",
                "the old one is down and its successor is not made".to_owned(),
            );
        }
    }
    found
}

/// What the engine's events told of the time between two looks.
pub fn between(seen: &Seen, bounds: &Bounds) -> Vec<Violation> {
    let mut found = Vec::new();
    if !bounds.both_may_run {
        let doubles = seen.doubles.iter();
        found.extend(doubles.map(|double| Violation::new("I1", double)));
    }
    let starts = |image: &String| seen.starts.get(image).copied().unwrap_or(0);
    if let Some(times) = bounds.fails.as_ref().map(starts)
        && times > MAX_ATTEMPTS
    {
        let evidence = format!("the failing image was started {times} times");
        found.push(Violation::new("I13", evidence));
    }
    found
}

/// What a mutating call must have left on the disk before it was made.
pub fn intent_first(open_intents: u64, call: &str) -> Vec<Violation> {
    let evidence = format!("{call} was called without an intent in the journal");
    let missing = (open_intents == 0).then(|| Violation::new("I11", evidence));
    missing.into_iter().collect()
}

/// The end must be the same as without the crash.
pub fn same_end(expected: &[String], found: &[String], open_intents: u64) -> Vec<Violation> {
    let mut violations = Vec::new();
    if expected != found {
        let missing = expected.iter().filter(|line| !found.contains(line));
        let extra = found.iter().filter(|line| !expected.contains(line));
        let lines = missing
            .map(|line| format!("- {line}"))
            .chain(extra.map(|line| format!("+ {line}")));
        let evidence = lines.collect::<Vec<_>>().join(" ");
        violations.push(Violation::new("I7", format!("another end: {evidence}")));
    }
    if open_intents > 0 {
        let evidence = format!("{open_intents} intents are open at the end");
        violations.push(Violation::new("I7", evidence));
    }
    violations
}

/// A device that is where it must be leaves the engine alone.
pub fn quiet(mutations: &[Call]) -> Vec<Violation> {
    let calls: Vec<String> = mutations
        .iter()
        .map(|call| format!("{} {}", call.method, call.path))
        .collect();
    let busy = (!calls.is_empty()).then(|| Violation::new("I8", calls.join(", ")));
    busy.into_iter().collect()
}

/// What is not Holdfast's stays as it was, and so do a service's volumes.
pub fn untouched(rule: &str, before: &Value, after: &Value) -> Vec<Violation> {
    let mut found = Vec::new();
    differences("", before, after, &mut found);
    let violation = |evidence: String| Violation::new(rule, evidence);
    found.into_iter().map(violation).collect()
}

fn differences(path: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let (a, b) = (a.get(key), b.get(key));
                let path = format!("{path}/{key}");
                differences(
                    &path,
                    a.unwrap_or(&Value::Null),
                    b.unwrap_or(&Value::Null),
                    found,
                );
            }
        }
        (before, after) if before != after => found.push(format!("{path}: {before} → {after}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
