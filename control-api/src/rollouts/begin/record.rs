//! Owns writing a rollout down that begins, in the place of the one before it.

use holdfast_domain::resolution::Key;
use holdfast_domain::rollout::state::{Event, State};
use holdfast_domain::rollout::tick::Standing;
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::{Digest, ResolvedImage};
use holdfast_proto::time::Timestamp;
use serde_json::json;

use super::super::effects;
use super::plan::Plan;
use super::{Halt, Wanted, nothing};
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::db::Tx;
use crate::store::images;
use crate::store::rollouts::members::{self, Member};
use crate::store::rollouts::{self as stored, Content, New};

/// Ends the rollout that has the place, or finds that nothing new is to be done.
pub(super) fn make_way(
    tx: &mut Tx<'_>,
    wanted: &Wanted,
    plan: &Plan,
    digest: &Digest,
    now: Timestamp,
) -> Result<(), Halt> {
    let newest = stored::newest_of(tx, &plan.scope, &wanted.key)?;
    let newest = match newest {
        Some(id) => stored::find(tx, id)?,
        None => None,
    };
    if let Some(newest) = newest
        && let Content::Image(image) = &newest.content
        && image.top.digest() == digest
    {
        let id = newest.id;
        match newest.state {
            State::Pending | State::Running | State::Paused => {
                return Err(nothing(format!("rollout {id} carries it already")));
            }
            State::RollingBack => {
                return Err(nothing(format!(
                    "rollout {id} of this digest is being rolled back"
                )));
            }
            State::RolledBack | State::Failed | State::Cancelled if !wanted.is_ordered => {
                let why = format!("rollout {id} of this digest did not succeed: begin it by hand");
                return Err(nothing(why));
            }
            _ => {}
        }
    }
    let active = stored::active_of(tx, &plan.scope, &wanted.key)?;
    supersede(
        tx,
        active,
        "a newer version of the tag takes its place",
        &wanted.actor,
        now,
    )
}

pub(super) fn supersede(
    tx: &mut Tx<'_>,
    active: Option<i64>,
    why: &str,
    by: &Actor,
    now: Timestamp,
) -> Result<(), Halt> {
    let active = match active {
        Some(id) => stored::find(tx, id)?,
        None => None,
    };
    if let Some(active) = active {
        effects::turn(tx, &active, (Event::Supersede, why), by, now)?;
    }
    Ok(())
}

/// What an approved tag means now may run from now on, whatever the tag means later.
pub(super) fn approve(
    tx: &mut Tx<'_>,
    wanted: &Wanted,
    image: &ResolvedImage,
    now: Timestamp,
) -> Result<(), Halt> {
    let (tag, digest) = (&wanted.key.selector, image.top.digest());
    if let Some(known) = images::named(tx, &image.repository)? {
        let by = known.decided_by.as_deref().unwrap_or(&wanted.actor.name);
        images::approve_digest(tx, known.id, digest, Some(tag), by, now)?;
        images::see(tx, known.id, tag, digest, now)?;
    }
    Ok(())
}

pub(super) fn insert(
    tx: &mut Tx<'_>,
    (key, by, is_ordered): (&Key, &Actor, bool),
    plan: &Plan,
    now: Timestamp,
) -> Result<i64, Halt> {
    let reason = if plan.policy.rules.manual_start {
        "somebody has to start it"
    } else {
        "its time has not come"
    };
    let new = New {
        scope: &plan.scope,
        registry: &key.registry,
        repository: &key.repository,
        tag: &key.selector,
        content: &plan.content,
        previous_digest: plan.previous.as_ref(),
        policy_id: plan.policy_id,
        rules: &plan.policy.rules,
        windows: &plan.policy.input.windows,
        reason,
        is_ordered,
        created_by: &by.name,
    };
    let id = stored::insert(tx, &new, now)?;
    let id = id.ok_or_else(|| nothing("another rollout of it began meanwhile"))?;
    add_members(tx, id, plan, now)?;
    let found = stored::find(tx, id)?.ok_or_else(|| nothing("it is gone"))?;
    let devices: usize = plan.batches.iter().map(Vec::len).sum();
    let digest = match &plan.content {
        Content::Image(image) => Some(image.top.digest().to_string()),
        Content::Release(_) => None,
    };
    let detail = json!({
        "digest": digest, "previous_digest": plan.previous.map(|digest| digest.to_string()),
        "batches": plan.batches.len(), "devices": devices, "unchanged": plan.unchanged.len(),
        "unsupported": plan.unsupported.len(), "policy": &plan.policy.input.name,
    });
    let entry = NewEntry {
        action: "rollout.created",
        subject_kind: "rollout",
        subject: id.to_string(),
        before: None,
        after: Some(json!({ "subject": found.subject(), "about": &detail })),
    };
    audit::append(tx, by, &entry, now)?;
    effects::tell(tx, &found, "image.rollout_created", detail, now)?;
    Ok(id)
}

fn add_members(tx: &mut Tx<'_>, id: i64, plan: &Plan, now: Timestamp) -> Result<(), Halt> {
    let member = |device: DeviceId, batch: usize, standing: Standing, detail: &str| Member {
        device,
        batch,
        standing,
        group: plan.groups.get(&device).cloned().flatten(),
        generation: None,
        back_to: None,
        detail: detail.to_owned(),
        changed_at: now,
    };
    for (batch, devices) in plan.batches.iter().enumerate() {
        for device in devices {
            let new = member(*device, batch, Standing::Waiting, "its turn has not come");
            members::add(tx, id, &new)?;
        }
    }
    for device in &plan.unchanged {
        let new = member(
            *device,
            0,
            Standing::Unchanged,
            "it runs this content already",
        );
        members::add(tx, id, &new)?;
    }
    for device in &plan.unsupported {
        let why = "the version has nothing for its platform";
        members::add(tx, id, &member(*device, 0, Standing::Unsupported, why))?;
    }
    Ok(())
}
