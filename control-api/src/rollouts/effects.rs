//! Owns what a decision changes: targets, standings, states, with their events and audit rows.

use holdfast_domain::image_updates::takes_push;
use holdfast_domain::resolution::{Key, Known};
use holdfast_domain::rollout::state::{self, Event, State};
use holdfast_domain::rollout::tick::Standing;
use holdfast_domain::target;
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::ResolvedImage;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;
use serde_json::json;

use super::monitor;
use crate::logins::{self, Logins};
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::db::{StoreError, Tx};
use crate::store::devices::{self, Device};
use crate::store::events::{self, NewEvent};
use crate::store::generations::{self, Generation};
use crate::store::releases;
use crate::store::rollouts::members::{self, Member};
use crate::store::rollouts::{self as stored, Content, Stored};
use crate::store::targets;
use crate::{fleets, targeting};

/// Devices of a rollout to which the same is done.
pub(super) struct Batch<'a> {
    pub(super) rollout: &'a Stored,
    pub(super) members: &'a [Member],
    pub(super) now: Timestamp,
}

impl Batch<'_> {
    fn member(&self, device: DeviceId) -> Option<&Member> {
        self.members.iter().find(|member| member.device == device)
    }

    fn note(
        &self,
        tx: &mut Tx<'_>,
        device: DeviceId,
        standing: Standing,
        why: &str,
    ) -> Result<(), StoreError> {
        let noted = (device, standing, why);
        note(tx, self.rollout.id, self.members, noted, self.now)
    }

    /// Notes that a device was told the new version, and what was verified on it before.
    fn updating(
        &self,
        tx: &mut Tx<'_>,
        device: DeviceId,
        (generation, back_to): (u64, Option<Generation>),
    ) -> Result<(), StoreError> {
        let standing = Standing::Updating {
            since: self.now,
            healthy_since: None,
        };
        let back_to = back_to.map(|told| told.generation);
        self.told(tx, device, (generation, back_to), standing)
    }

    /// Notes what a device was told.
    fn told(
        &self,
        tx: &mut Tx<'_>,
        device: DeviceId,
        (generation, back_to): (u64, Option<u64>),
        standing: Standing,
    ) -> Result<(), StoreError> {
        let Some(member) = self.member(device) else {
            return Ok(());
        };
        let changed = Member {
            standing,
            generation: Some(generation),
            back_to,
            detail: format!("it was told generation {generation}"),
            changed_at: self.now,
            ..member.clone()
        };
        members::note(tx, self.rollout.id, &changed)?;
        let happened = ("told", changed.detail.as_str());
        members::log(tx, self.rollout.id, Some(device), happened, self.now)
    }
}

/// Notes how a device stands, and writes it down.
pub(super) fn note(
    tx: &mut Tx<'_>,
    id: i64,
    members: &[Member],
    (device, standing, why): (DeviceId, Standing, &str),
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(member) = members.iter().find(|member| member.device == device) else {
        return Ok(());
    };
    let changed = Member {
        standing,
        detail: why.to_owned(),
        changed_at: now,
        ..member.clone()
    };
    members::note(tx, id, &changed)?;
    let word = changed.standing.word();
    members::log(tx, id, Some(device), (word, why), now)?;
    let kind = match changed.standing {
        Standing::Verified => "device.update_succeeded",
        Standing::Failed => "device.update_failed",
        Standing::Returned => "device.rolled_back",
        _ => return Ok(()),
    };
    let event = NewEvent {
        kind,
        device: Some(device),
        subject: None,
        detail: json!({ "rollout": id, "why": why }),
        delivery: None,
    };
    events::record(tx, &event, now)?;
    Ok(())
}

/// Opens the next batch; no device is touched by that.
pub(super) fn open(tx: &mut Tx<'_>, found: &Stored, now: Timestamp) -> Result<(), StoreError> {
    if !stored::open(tx, found.id, found.opened, now)? {
        return Ok(());
    }
    if found.opened > 0 {
        tell(
            tx,
            found,
            "image.rollout_batch_completed",
            json!({ "batch": found.opened }),
            now,
        )?;
    }
    let batch = found.opened + 1;
    members::log(
        tx,
        found.id,
        None,
        ("batch_opened", &batch.to_string()),
        now,
    )?;
    let entry = NewEntry {
        action: "rollout.batch_opened",
        subject_kind: "rollout",
        subject: found.id.to_string(),
        before: Some(json!({ "opened": found.opened })),
        after: Some(json!({ "opened": batch })),
    };
    audit::append(tx, &monitor(), &entry, now)?;
    tell(
        tx,
        found,
        "image.rollout_batch_started",
        json!({ "batch": batch }),
        now,
    )
}

/// Gives a device the new version.
pub(super) fn update(
    tx: &mut Tx<'_>,
    batch: &Batch<'_>,
    logins: &Logins,
    uuid: DeviceId,
) -> Result<(), StoreError> {
    let Some(device) = devices::find(tx, uuid)? else {
        return batch.note(tx, uuid, Standing::Gone, "it was taken from the fleet");
    };
    match &batch.rollout.content {
        Content::Image(image) => update_image(tx, batch, &device, image),
        Content::Release(release) => update_release(tx, batch, logins, (&device, *release)),
    }
}

fn update_image(
    tx: &mut Tx<'_>,
    batch: &Batch<'_>,
    device: &Device,
    image: &ResolvedImage,
) -> Result<(), StoreError> {
    let (rollout, now, uuid) = (batch.rollout, batch.now, device.uuid);
    let (Some(key), Some(before)) = (rollout.key(), targets::find(tx, device.id)?) else {
        return batch.note(tx, uuid, Standing::Gone, "it has no target any more");
    };
    // It may have said so since the rollout began.
    let takes = takes_push(&device.effective_updates(), &key.selector);
    if !rollout.is_ordered && !takes {
        let why = "it takes no pushes of this tag by itself any more (imageUpdatePolicy)";
        return batch.note(tx, uuid, Standing::Gone, why);
    }
    let Ok(mut state) = serde_json::from_str::<TargetState>(&before.body) else {
        return batch.note(tx, uuid, Standing::Failed, "its target cannot be read");
    };
    let known = Known {
        image: Some(image.clone()),
        resolved_at: Some(rollout.created_at),
        asked_at: rollout.created_at,
        error: None,
        error_code: None,
        stale_since: None,
    };
    let made = target::repin(&mut state.apps, &key, &known, &device.platform, now);
    if made.is_unsupported {
        let why = "the version has nothing for its platform";
        return batch.note(tx, uuid, Standing::Unsupported, why);
    }
    if made.services.is_empty() {
        let why = "its target does not name the image any more";
        return batch.note(tx, uuid, Standing::Gone, why);
    }
    if !made.is_changed {
        return batch.note(
            tx,
            uuid,
            Standing::Unchanged,
            "it runs this content already",
        );
    }
    let newest = before.generation.saturating_add(1);
    let back_to = generations::last_verified(tx, device.id, newest)?;
    let cause = format!("rollout:{}", rollout.id);
    let (device, by) = ((device, &before), monitor());
    let generation = targeting::give(tx, device, (&before.input, state.apps), (&cause, &by), now)?;
    batch.updating(tx, uuid, (generation, back_to))
}

fn update_release(
    tx: &mut Tx<'_>,
    batch: &Batch<'_>,
    logins: &Logins,
    (device, release): (&Device, i64),
) -> Result<(), StoreError> {
    let uuid = device.uuid;
    if let Some(why) = does_not_follow(tx, batch.rollout, (device, release))? {
        return batch.note(tx, uuid, Standing::Gone, &why);
    }
    let before = targets::find(tx, device.id)?;
    let Some((text, apps)) = fleets::render(tx, logins, release, device)? else {
        return batch.note(
            tx,
            uuid,
            Standing::Gone,
            "the release is gone, or has nothing for its platform",
        );
    };
    let old = before
        .as_ref()
        .and_then(|before| serde_json::from_str::<TargetState>(&before.body).ok());
    if old
        .as_ref()
        .is_some_and(|old| target::same(&old.apps, &apps))
    {
        return batch.note(
            tx,
            uuid,
            Standing::Unchanged,
            "it runs this release already",
        );
    }
    let newest = before.map_or(0, |before| before.generation.saturating_add(1));
    let back_to = generations::last_verified(tx, device.id, newest)?;
    let cause = format!("release:{}", batch.rollout.tag);
    let by = monitor();
    let generation = targeting::lend(tx, device, (&text, apps), (&cause, &by), batch.now)?;
    batch.updating(tx, uuid, (generation, back_to))
}

/// Why a device does not follow its fleet's release any more, if it does not.
fn does_not_follow(
    tx: &mut Tx<'_>,
    rollout: &Stored,
    (device, release): (&Device, i64),
) -> Result<Option<String>, StoreError> {
    let fleet = logins::fleet(device).unwrap_or_default();
    if rollout.scope != format!("fleet:{fleet}") {
        return Ok(Some("it was taken from the fleet".to_owned()));
    }
    if targets::is_own(tx, device.id)? {
        return Ok(Some("it has a target of its own".to_owned()));
    }
    let pinned = releases::pinned(tx, device.id)?;
    let pinned = pinned.filter(|pinned| pinned.release_id != release);
    Ok(pinned.map(|pinned| format!("it is kept at release {}", pinned.number)))
}

/// What a device goes back for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The version is not to run.
    RollBack,
    /// It is to be tried again.
    Retry,
}

/// Gives a device what it verified before. Of its target only what this rollout is about changes.
pub(super) fn go_back(
    tx: &mut Tx<'_>,
    batch: &Batch<'_>,
    uuid: DeviceId,
    why: Why,
) -> Result<(), StoreError> {
    let nowhere = match why {
        Why::RollBack => Standing::NotReturned,
        Why::Retry => Standing::Failed,
    };
    let (Some(member), Some(device)) = (batch.member(uuid), devices::find(tx, uuid)?) else {
        return batch.note(tx, uuid, Standing::Gone, "it was taken from the fleet");
    };
    let told = match member.back_to {
        Some(generation) => generations::find(tx, device.id, generation)?,
        None => None,
    };
    let before = targets::find(tx, device.id)?;
    let (Some(told), Some(before)) = (told, before) else {
        return batch.note(tx, uuid, nowhere, "nothing was ever verified on it");
    };
    let (Ok(old), Ok(now)) = (
        serde_json::from_str::<TargetState>(&told.body),
        serde_json::from_str::<TargetState>(&before.body),
    ) else {
        return batch.note(tx, uuid, nowhere, "what it ran before cannot be read");
    };
    let (text, apps) = match (&batch.rollout.content, batch.rollout.key()) {
        (Content::Image(image), Some(key)) => {
            if !carries(&now, &key, image) {
                let why = "it has another target by now";
                return batch.note(tx, uuid, Standing::Gone, why);
            }
            let mut apps = now.apps;
            if target::repin_as(&mut apps, &key, &old.apps) == 0 {
                let why = "what it ran before does not name the image";
                return batch.note(tx, uuid, nowhere, why);
            }
            (before.input.as_str(), apps)
        }
        _ if member.generation != Some(before.generation) => {
            let why = "it has another target by now";
            return batch.note(tx, uuid, Standing::Gone, why);
        }
        _ => (told.input.as_str(), old.apps),
    };
    let cause = format!("back:{}", told.generation);
    let by = monitor();
    let generation = targeting::give(
        tx,
        (&device, &before),
        (text, apps),
        (&cause, &by),
        batch.now,
    )?;
    let since = batch.now;
    let standing = match why {
        Why::RollBack => Standing::Returning { since },
        Why::Retry => Standing::Readying { since },
    };
    batch.told(tx, uuid, (generation, member.back_to), standing)
}

/// Whether a target names this very content of an image.
fn carries(state: &TargetState, key: &Key, image: &ResolvedImage) -> bool {
    let pins = state
        .services()
        .filter_map(|(_, service)| service.pin.as_ref());
    let mut meant = pins.filter(|pin| Key::of(&pin.reference) == *key);
    meant.any(|pin| pin.pull_digest() == Some(image.top.digest()))
}

/// Changes a rollout's state as its table says, with what that means for others.
pub(super) fn turn(
    tx: &mut Tx<'_>,
    found: &Stored,
    (event, why): (Event, &str),
    by: &Actor,
    now: Timestamp,
) -> Result<bool, StoreError> {
    // The domain decides nothing that its own table does not know; if it did, the rollout stays as it is.
    let Ok(to) = state::next(found.state, event) else {
        return Ok(false);
    };
    if !stored::turn(tx, found.id, (found.state, to), why, now)? {
        return Ok(false);
    }
    members::log(tx, found.id, None, ("turned", why), now)?;
    let word = |state: State| json!({ "state": state });
    let entry = NewEntry {
        action: "rollout.turned",
        subject_kind: "rollout",
        subject: found.id.to_string(),
        before: Some(word(found.state)),
        after: Some(json!({ "state": to, "reason": why })),
    };
    audit::append(tx, by, &entry, now)?;
    if event == Event::Complete && found.opened > 0 {
        let detail = json!({ "batch": found.opened });
        tell(tx, found, "image.rollout_batch_completed", detail, now)?;
    }
    tell(tx, found, kind(event), json!({ "why": why }), now)?;
    Ok(true)
}

const fn kind(event: Event) -> &'static str {
    match event {
        Event::Start => "image.rollout_started",
        Event::Pause => "image.rollout_paused",
        Event::Resume => "image.rollout_resumed",
        Event::Retry => "image.rollout_retried",
        Event::Cancel | Event::Expire => "image.rollout_cancelled",
        Event::RollBack => "image.rollout_rolling_back",
        Event::Supersede => "image.rollout_superseded",
        Event::Complete => "image.rollout_completed",
        Event::AllBack => "image.rollout_rolled_back",
        Event::NotAllBack => "image.rollout_failed",
    }
}

/// Records an event about a rollout.
pub(super) fn tell(
    tx: &mut Tx<'_>,
    found: &Stored,
    kind: &str,
    mut detail: serde_json::Value,
    now: Timestamp,
) -> Result<(), StoreError> {
    detail["rollout"] = json!(found.id);
    let subject = found.subject();
    events::record(tx, &NewEvent::about(kind, &subject, detail), now)?;
    Ok(())
}
