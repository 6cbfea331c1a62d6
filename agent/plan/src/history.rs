//! Owns what the agent remembers between looks: what was good, what failed, what to wait for.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::id::ServiceKey;
use holdfast_proto::target::{Identity, ServiceTarget};
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Everything remembered; the agent keeps it in its journal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// By service. A service that nothing happened to has no entry.
    pub services: BTreeMap<ServiceKey, ServiceHistory>,
    /// Failed pulls by pinned image; gone once one succeeds.
    pub pulls: BTreeMap<String, Retry>,
    /// Failed steps by service; gone once one succeeds.
    pub steps: BTreeMap<ServiceKey, Retry>,
    /// Images that the agent pulled, each with the service it was first pulled for. An image that is not
    /// here is somebody else's and is never cleared away.
    pub pulled: BTreeMap<String, ServiceKey>,
    /// Images that are being pulled now.
    pub pulling: BTreeSet<String>,
    /// Images whose pull was cut off because it would have filled the disk, each with the bytes that
    /// were free when it began.
    pub outgrown: BTreeMap<String, u64>,
    /// Names of images that could not be given or taken away.
    pub images: BTreeMap<String, Retry>,
}

/// What happened to one service on this device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceHistory {
    /// The newest spec that passed its health gate here. Boxed, as the next: specs are large, most services have one of
    /// them, and a map sets places aside for more services than it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_good: Option<Box<ServiceTarget>>,
    /// What was last good before that, another spec: its image is kept until the next commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<ServiceTarget>>,
    /// The spec that failed here; not tried again until the target names another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Rejected>,
    /// How often the agent itself died while it worked on one spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Attempts>,
    /// Containers (engine ids) that the agent itself stopped and has not started again since: being
    /// down is no decision of their own. Written down before the stop, dropped after a start.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub interrupted: BTreeSet<String>,
    /// Containers and sandboxes that the agent made, by the name it gave them: the engine's id, or
    /// nothing while the engine has not answered yet. Written down before they are made; a container
    /// that is not here was not made by this agent, whatever its labels say.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub made: BTreeMap<String, String>,
    /// The spec that ran to its end, as a one-shot service should: not run again when somebody tidies
    /// its container away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<Identity>,
}

/// A spec that failed its gate here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejected {
    /// What failed.
    pub identity: Identity,
    /// The pinned image of it, for reports.
    pub image: String,
    /// Why, in words.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Deaths of the agent while it worked on one spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempts {
    /// What it worked on.
    pub identity: Identity,
    /// How often it died.
    pub count: u32,
    /// How often a trial was begun again because the engine ended it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interruptions: u32,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Something that failed and is tried again later.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// How often it failed in a row.
    pub attempts: u32,
    /// Not before this time.
    pub not_before: Timestamp,
    /// Why it last failed, in words.
    pub error: String,
}

impl History {
    /// What is remembered of one service.
    pub fn of(&self, key: &ServiceKey) -> Option<&ServiceHistory> {
        self.services.get(key)
    }
}

impl ServiceHistory {
    /// The ways back: what is last good, and what was before.
    pub fn ways_back(&self) -> impl Iterator<Item = &ServiceTarget> {
        let ways = self.last_good.iter().chain(&self.previous);
        ways.map(|way| &**way)
    }

    /// Writes a spec down as last good; what was good before is still a way back.
    pub fn commit(&mut self, service: &ServiceTarget) {
        let before = self.last_good.replace(Box::new(service.clone()));
        let another = before.filter(|before| before.identity() != service.identity());
        if another.is_some() {
            self.previous = another;
        }
    }

    /// Whether this very spec failed here.
    pub fn rejects(&self, service: &ServiceTarget) -> Option<&Rejected> {
        self.rejected
            .as_ref()
            .filter(|rejected| rejected.identity.matches(service))
    }

    /// Whether this very spec passed its gate here last.
    pub fn trusts(&self, service: &ServiceTarget) -> bool {
        self.last_good.as_ref().is_some_and(|good| {
            service.identity().is_some() && good.identity() == service.identity()
        })
    }

    /// How often the engine ended a trial of this very spec.
    pub fn interruptions(&self, service: &ServiceTarget) -> u32 {
        let attempts = self.attempts.as_ref();
        attempts
            .filter(|attempts| attempts.identity.matches(service))
            .map_or(0, |a| a.interruptions)
    }

    /// The name that the agent gave a container or sandbox; none if it did not make it.
    pub fn name_of(&self, id: &str, name: &str) -> Option<&str> {
        let mut made = self.made.iter();
        made.find(|(given, made)| *made == id || (made.is_empty() && *given == name))
            .map(|(given, _)| given.as_str())
    }

    /// How often the agent died while it worked on this very spec.
    pub fn deaths(&self, service: &ServiceTarget) -> u32 {
        let attempts = self.attempts.as_ref();
        attempts
            .filter(|attempts| attempts.identity.matches(service))
            .map_or(0, |a| a.count)
    }
}
