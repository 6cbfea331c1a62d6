//! Owns what a rollout would be: its policy, its devices, and who goes when. Changes nothing.

use std::collections::BTreeMap;

use holdfast_domain::image_updates::takes_push;
use holdfast_domain::policy::{self, Policy};
use holdfast_domain::resolution::{Key, Known};
use holdfast_domain::rollout::batches::{self, Member as Cut};
use holdfast_domain::scope::FLEET_LABEL;
use holdfast_domain::target;
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::{Digest, Reference, ResolvedImage};
use holdfast_proto::policy::PolicyInput;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;
use serde_json::json;

use super::{Halt, Wanted, nothing};
use crate::fleets;
use crate::logins::Logins;
use crate::store::db::{StoreError, Tx};
use crate::store::rollouts::Content;
use crate::store::rollouts::members::{self as stored, Candidate};
use crate::store::{policies, targets};

/// Policies read at a time.
const PAGE: i64 = 200;
/// The policy of a rollout that a person begins where no policy is for the image.
const DEFAULT: &str = "default";
/// Why a push that may run reaches nobody.
const NOT_BY_ITSELF: &str = "no device that runs it takes pushes of this tag by itself (imageUpdatePolicy): begin it by hand";

/// A rollout as it would be.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Which devices it is for: see [`stored::Stored::scope`].
    pub scope: String,
    /// The policy's number; none of the default.
    pub policy_id: Option<i64>,
    /// The policy.
    pub policy: Policy,
    /// What it carries.
    pub content: Content,
    /// What the tag means on a device of it now.
    pub previous: Option<Digest>,
    /// Who goes when.
    pub batches: Vec<Vec<DeviceId>>,
    /// Devices that run this content already.
    pub unchanged: Vec<DeviceId>,
    /// Devices for whose platform it has nothing.
    pub unsupported: Vec<DeviceId>,
    /// The group of each device in the budget.
    pub groups: BTreeMap<DeviceId, Option<String>>,
}

pub(super) fn chosen(
    tx: &mut Tx<'_>,
    wanted: &Wanted,
) -> Result<(Option<i64>, Policy, Vec<Candidate>), Halt> {
    let (id, policy) = policy_for(tx, wanted)?;
    let mut found = stored::candidates(tx, &wanted.key)?;
    let fleets = [policy.input.fleet.as_ref(), wanted.fleet.as_ref()];
    let has = |candidate: &Candidate, label: &str, value: &String| {
        candidate.labels.get(label) == Some(value)
    };
    found.retain(|candidate| {
        let mut labels = policy.input.selector.iter().chain(&wanted.selector);
        let mut fleets = fleets.into_iter().flatten();
        fleets.all(|fleet| has(candidate, FLEET_LABEL, fleet))
            && labels.all(|(label, value)| has(candidate, label, value))
    });
    if !wanted.is_ordered {
        let many = found.len();
        found.retain(|candidate| takes_push(&candidate.image_updates, &wanted.key.selector));
        if found.is_empty() && many > 0 {
            return Err(nothing(NOT_BY_ITSELF));
        }
    }
    Ok((id, policy, found))
}

fn policy_for(tx: &mut Tx<'_>, wanted: &Wanted) -> Result<(Option<i64>, Policy), Halt> {
    if let Some(id) = wanted.policy {
        let found = policies::find(tx, id)?;
        let found = found.ok_or_else(|| nothing(format!("there is no policy {id}")))?;
        return Ok((Some(id), found.policy));
    }
    let name = format!("{}/{}", wanted.key.registry, wanted.key.repository);
    let reference: Reference = name.parse().map_err(|_| nothing("it is no image"))?;
    let (repository, tag) = (reference.repository(), wanted.key.selector.as_str());
    let all = every_policy(tx)?;
    let every = || all.iter().map(|(id, policy)| (*id, policy));
    if let Some((id, policy)) = policy::choose(every(), repository, tag) {
        return Ok((Some(id), policy.clone()));
    }
    if wanted.is_ordered {
        return Ok((None, default_policy()?));
    }
    let mut disabled = every().filter(|(_, policy)| policy.pattern.matches(repository, tag));
    Err(nothing(disabled.next().map_or_else(
        || "no policy is for it".to_owned(),
        |(_, policy)| format!("the policy {} is disabled", policy.input.name),
    )))
}

fn every_policy(tx: &mut Tx<'_>) -> Result<Vec<(i64, Policy)>, StoreError> {
    let mut all: Vec<(i64, Policy)> = Vec::new();
    loop {
        let after = all.last().map_or(0, |(id, _)| *id);
        let page = policies::list(tx, after, PAGE)?;
        let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
        all.extend(page.into_iter().map(|found| (found.id, found.policy)));
        if is_last {
            return Ok(all);
        }
    }
}

/// Batches of a tenth, with every threshold at its default.
fn default_policy() -> Result<Policy, Halt> {
    let input = json!({ "name": DEFAULT, "image_pattern": "*" });
    let input: Result<PolicyInput, _> = serde_json::from_value(input);
    let policy = input.ok().and_then(|input| Policy::read(input).ok());
    policy.ok_or_else(|| nothing("there is no policy"))
}

pub(super) fn plan(
    tx: &mut Tx<'_>,
    wanted: &Wanted,
    image: ResolvedImage,
    now: Timestamp,
) -> Result<Plan, Halt> {
    let (policy_id, policy, candidates) = chosen(tx, wanted)?;
    let known = Known {
        image: Some(image.clone()),
        resolved_at: Some(now),
        asked_at: now,
        error: None,
        error_code: None,
        stale_since: None,
    };
    let budget = policy.rules.budget.as_ref();
    let (mut members, mut unchanged, mut unsupported) = (Vec::new(), Vec::new(), Vec::new());
    let (mut groups, mut previous) = (BTreeMap::new(), None);
    for candidate in candidates {
        let Ok(mut state) = serde_json::from_str::<TargetState>(&candidate.body) else {
            continue;
        };
        let before = state.services().find_map(|(_, service)| {
            let pin = service.pin.as_ref()?;
            let is_meant = Key::of(&pin.reference) == wanted.key;
            pin.pull_digest().copied().filter(|_| is_meant)
        });
        let platform = &candidate.platform;
        let made = target::repin(&mut state.apps, &wanted.key, &known, platform, now);
        if made.is_unsupported {
            unsupported.push(candidate.device);
        } else if made.is_changed {
            previous = previous.or(before);
            let group = budget.and_then(|budget| candidate.labels.get(&budget.label).cloned());
            groups.insert(candidate.device, group);
            members.push(Cut {
                device: candidate.device,
                labels: candidate.labels,
            });
        } else {
            unchanged.push(candidate.device);
        }
    }
    if members.is_empty() {
        return Err(nothing(match (unchanged.len(), unsupported.len()) {
            (0, 0) => "no device runs it".to_owned(),
            (0, _) => "it has nothing for the platform of any device".to_owned(),
            (_, _) => "every device runs this digest already".to_owned(),
        }));
    }
    let batches = batches::cut(seed(image.top.digest()), &members, &policy.shape);
    let batches = batches.map_err(|error| nothing(error.to_string()))?;
    let fleet = policy.input.fleet.as_ref().or(wanted.fleet.as_ref());
    let scope = fleet.map_or_else(String::new, |fleet| scope_of(fleet));
    Ok(Plan {
        scope,
        policy_id,
        policy,
        content: Content::Image(image),
        previous,
        batches,
        unchanged,
        unsupported,
        groups,
    })
}

fn scope_of(fleet: &str) -> String {
    format!("fleet:{fleet}")
}

/// The same content is cut alike: a preview shows what will be.
fn seed(digest: &Digest) -> u64 {
    let hex = digest.hex();
    u64::from_str_radix(hex.get(..16).unwrap_or("0"), 16).unwrap_or_default()
}

/// The policy of a release's rollout: the one that is named, or batches of a tenth.
pub(super) fn policy_of_release(
    tx: &mut Tx<'_>,
    wanted: Option<i64>,
) -> Result<(Option<i64>, Policy), Halt> {
    let Some(id) = wanted else {
        return Ok((None, default_policy()?));
    };
    let found = policies::find(tx, id)?;
    let found = found.ok_or_else(|| nothing(format!("there is no policy {id}")))?;
    Ok((Some(id), found.policy))
}

pub(super) fn plan_release(
    tx: &mut Tx<'_>,
    logins: &Logins,
    (fleet, release): (&str, i64),
    (policy_id, policy): (Option<i64>, Policy),
) -> Result<Plan, Halt> {
    let budget = policy.rules.budget.as_ref();
    let (mut members, mut unchanged, mut groups) = (Vec::new(), Vec::new(), BTreeMap::new());
    for device in fleets::members(tx, fleet)? {
        let mut selector = policy.input.selector.iter();
        if !selector.all(|(label, value)| device.labels.get(label) == Some(value)) {
            continue;
        }
        let Some((_, apps)) = fleets::render(tx, logins, release, &device)? else {
            continue;
        };
        let before = targets::find(tx, device.id)?;
        let before = before.and_then(|old| serde_json::from_str::<TargetState>(&old.body).ok());
        if before.is_some_and(|before| target::same(&before.apps, &apps)) {
            unchanged.push(device.uuid);
            continue;
        }
        let group = budget.and_then(|budget| device.labels.get(&budget.label).cloned());
        groups.insert(device.uuid, group);
        members.push(Cut {
            device: device.uuid,
            labels: device.labels,
        });
    }
    if members.is_empty() {
        return Err(nothing(if unchanged.is_empty() {
            "no device of the fleet follows its releases"
        } else {
            "every device runs this release already"
        }));
    }
    let seed = u64::try_from(release).unwrap_or_default();
    let batches = batches::cut(seed, &members, &policy.shape);
    let batches = batches.map_err(|error| nothing(error.to_string()))?;
    Ok(Plan {
        scope: scope_of(fleet),
        policy_id,
        policy,
        content: Content::Release(release),
        previous: None,
        batches,
        unchanged,
        unsupported: Vec::new(),
        groups,
    })
}
