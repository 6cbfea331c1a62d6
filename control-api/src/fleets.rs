//! Owns which release a device follows: its fleet's, the one it is kept at, or none while its own target counts.
//!
//! Refuses to give a device what its platform cannot run, and to ask a registry: releases are frozen. A device
//! that leaves a fleet keeps what it runs until somebody says otherwise.

pub mod release;

use std::collections::BTreeMap;

use holdfast_domain::scope::FLEET_LABEL;
use holdfast_domain::target::{self, UNSUPPORTED};
use holdfast_proto::id::AppId;
use holdfast_proto::target::{App, TargetInput};
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde_json::json;

use crate::http::problem::Refusal;
use crate::logins::{self, Logins};
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::devices::{self, Device};
use crate::store::events::{self, NewEvent};
use crate::store::fleets::{self as stored, Settings};
use crate::store::releases::{self, Release};
use crate::store::{StoreError, Tx, targets};
use crate::targeting;

/// Longest name of a fleet, in characters: the value of a label.
pub const LONGEST_NAME: usize = 256;
/// The target of a device that runs nothing.
const NOTHING: &str = r#"{"apps":{}}"#;

/// What came of a device's following.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    /// It has the release by this generation.
    Told(u64),
    /// There is nothing for it to follow, or its own target counts.
    Nothing,
    /// The release has nothing for its platform: it keeps what it runs.
    Unfit,
}

/// Whether a text can be a fleet's name.
pub fn is_name(name: &str) -> bool {
    !name.trim().is_empty()
        && name.chars().count() <= LONGEST_NAME
        && !name.chars().any(char::is_control)
}

/// Makes the fleet that a device or a key names, if it is not there.
pub fn ensure(
    tx: &mut Tx<'_>,
    name: &str,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), StoreError> {
    // Labels may hold what names no fleet; such a device is in none.
    if !is_name(name) || stored::insert(tx, name, Settings::default(), now)?.is_none() {
        return Ok(());
    }
    let detail = json!({"description": "", "policy": null});
    note(
        tx,
        actor,
        ("fleet.create", "fleet.created"),
        name,
        (None, Some(detail)),
        now,
    )
}

/// Writes down what happened to a fleet.
pub fn note(
    tx: &mut Tx<'_>,
    actor: &Actor,
    (action, kind): (&str, &str),
    name: &str,
    (before, after): (Option<serde_json::Value>, Option<serde_json::Value>),
    now: Timestamp,
) -> Result<(), StoreError> {
    let detail = after.clone().or_else(|| before.clone()).unwrap_or_default();
    let entry = NewEntry {
        action,
        subject_kind: "fleet",
        subject: name.to_owned(),
        before,
        after,
    };
    audit::append(tx, actor, &entry, now)?;
    events::record(tx, &NewEvent::about(kind, name, detail), now)?;
    Ok(())
}

fn note_device(
    tx: &mut Tx<'_>,
    actor: &Actor,
    (action, kind): (&str, &str),
    device: &Device,
    (before, after): (serde_json::Value, serde_json::Value),
    now: Timestamp,
) -> Result<(), StoreError> {
    let entry = NewEntry {
        action,
        subject_kind: "device",
        subject: device.uuid.to_string(),
        before: Some(before),
        after: Some(after.clone()),
    };
    audit::append(tx, actor, &entry, now)?;
    let event = NewEvent {
        kind,
        device: Some(device.uuid),
        subject: None,
        detail: after,
        delivery: None,
    };
    events::record(tx, &event, now)?;
    Ok(())
}

/// The devices that a rollout of a fleet's release is for: those in it without a target of their own, and not
/// kept at one release.
///
/// # Errors
/// When the store cannot be read.
pub fn members(tx: &mut Tx<'_>, fleet: &str) -> Result<Vec<Device>, StoreError> {
    devices::followers(tx, fleet)
}

/// What people asked for, as JSON, and the apps of one device.
pub type ForDevice = (String, BTreeMap<AppId, App>);

/// A release for one device: what people asked for, and the apps with the digests it was frozen with.
///
/// None when the release is gone, or has nothing for the device's platform.
///
/// # Errors
/// When the store cannot be read.
pub fn render(
    tx: &mut Tx<'_>,
    logins: &Logins,
    release_id: i64,
    device: &Device,
) -> Result<Option<ForDevice>, StoreError> {
    let Some(release) = releases::find(tx, release_id)? else {
        return Ok(None);
    };
    let input = read(&release)?;
    let listed = &release.listed;
    let mut rendered = listed
        .pins
        .render(&input, &device.platform, listed.created_at);
    if !rendered.unsupported.is_empty() || !rendered.unresolved.is_empty() {
        return Ok(None);
    }
    let references = target::references(&input);
    let known = targeting::with_login(tx, logins, device, &references)?;
    target::note_logins(&mut rendered.apps, |registry| known.contains(registry));
    Ok(Some((release.input, rendered.apps)))
}

/// What people asked for with a release.
fn read(release: &Release) -> Result<TargetInput, StoreError> {
    // It was checked when it was stored; rules that were tightened since make an old one unreadable.
    TargetInput::parse(release.input.as_bytes()).map_err(|_| StoreError::Column {
        statement: "releases",
        column: 3,
    })
}

/// Notes that the rollout of a release succeeded: from now on it is what late joiners get. Those who came while it
/// was on its way get it now.
///
/// # Errors
/// When the store cannot do it; then nothing is stored.
pub fn completed(
    tx: &mut Tx<'_>,
    logins: &Logins,
    release_id: i64,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(release) = releases::find(tx, release_id)? else {
        return Ok(());
    };
    let actor = Actor {
        kind: "system",
        name: "releases".to_owned(),
        request_id: "release".to_owned(),
    };
    if !release.listed.is_current {
        let before = stored::find(tx, &release.fleet)?.and_then(|fleet| fleet.release);
        stored::set_release(tx, release.fleet_id, release_id, now)?;
        let both = (
            Some(json!({"release": before})),
            Some(json!({"release": release.listed.number})),
        );
        let what = ("release.complete", "release.completed");
        note(tx, &actor, what, &release.fleet, both, now)?;
    }
    for device in devices::latecomers(tx, &release.fleet, release_id)? {
        follow(tx, logins, &device, &actor, now)?;
    }
    Ok(())
}

/// Gives a device the release that it is kept at, or else its fleet's, unless its own target counts.
pub fn follow(
    tx: &mut Tx<'_>,
    logins: &Logins,
    device: &Device,
    actor: &Actor,
    now: Timestamp,
) -> Result<Followed, StoreError> {
    if targets::is_own(tx, device.id)? {
        return Ok(Followed::Nothing);
    }
    let wanted = match releases::pinned(tx, device.id)? {
        Some(pinned) => Some((pinned.release_id, pinned.number)),
        None => match logins::fleet(device) {
            Some(name) => {
                stored::find(tx, name)?.and_then(|fleet| Some((fleet.release_id?, fleet.release?)))
            }
            None => None,
        },
    };
    let Some((release_id, number)) = wanted else {
        return Ok(Followed::Nothing);
    };
    let Some((text, apps)) = render(tx, logins, release_id, device)? else {
        let event = NewEvent {
            kind: "device.release_unfit",
            device: Some(device.uuid),
            subject: logins::fleet(device),
            detail: json!({"release": number, "platform": device.platform.to_string()}),
            delivery: None,
        };
        events::record(tx, &event, now)?;
        return Ok(Followed::Unfit);
    };
    let cause = format!("release:{number}");
    let generation = targeting::lend(tx, device, (&text, apps), (&cause, actor), now)?;
    Ok(Followed::Told(generation))
}

/// Notes that a device came into the fleet that its label names, from another one or none; it gets that fleet's
/// release at once. Nothing happens to a device that stays where it is.
pub fn moved(
    tx: &mut Tx<'_>,
    logins: &Logins,
    device: &Device,
    from: Option<&str>,
    actor: &Actor,
    now: Timestamp,
) -> Result<Followed, StoreError> {
    let to = logins::fleet(device);
    if let Some(name) = to {
        ensure(tx, name, actor, now)?;
    }
    if to == from {
        return Ok(Followed::Nothing);
    }
    // It was kept at a release of the fleet that it left.
    unpin_quietly(tx, device, actor, now)?;
    follow(tx, logins, device, actor, now)
}

fn unpin_quietly(
    tx: &mut Tx<'_>,
    device: &Device,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(pinned) = releases::pinned(tx, device.id)? else {
        return Ok(());
    };
    releases::unpin(tx, device.id)?;
    let what = ("release.unpin", "device.release_unpinned");
    let both = (json!({"release": pinned.number}), json!({"release": null}));
    note_device(tx, actor, what, device, both, now)
}

fn unfit(device: &Device) -> Refusal {
    Refusal::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        UNSUPPORTED,
        format!("the release has nothing for {}", device.platform),
    )
}

/// Keeps a device at a release of its fleet, whatever is rolled out; it gets it at once.
pub fn pin(
    tx: &mut Tx<'_>,
    logins: &Logins,
    device: &Device,
    number: i64,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), Refusal> {
    let conflict = |code: &str, detail: &str| Refusal::new(StatusCode::CONFLICT, code, detail);
    let fleet = logins::fleet(device)
        .ok_or_else(|| conflict("no_fleet", "the device is in no fleet: label it `fleet`"))?;
    if targets::is_own(tx, device.id)? {
        return Err(conflict(
            "own_target",
            "the device has a target of its own, which counts first: clear it (DELETE target-state)",
        ));
    }
    let release = releases::numbered(tx, fleet, number)?.ok_or_else(|| {
        Refusal::invalid_field("/release", format!("fleet {fleet} has no release {number}"))
    })?;
    let before = releases::pinned(tx, device.id)?.map(|pinned| pinned.number);
    if before != Some(number) {
        releases::pin(tx, device.id, release.listed.id, &actor.name, now)?;
        let what = ("release.pin", "device.release_pinned");
        let both = (json!({"release": before}), json!({"release": number}));
        note_device(tx, actor, what, device, both, now)?;
    }
    match follow(tx, logins, device, actor, now)? {
        Followed::Told(_) | Followed::Nothing => Ok(()),
        Followed::Unfit => Err(unfit(device)),
    }
}

/// Lets a device go with its fleet again; it gets the fleet's release at once.
pub fn unpin(
    tx: &mut Tx<'_>,
    logins: &Logins,
    device: &Device,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), Refusal> {
    if releases::pinned(tx, device.id)?.is_none() {
        return Ok(());
    }
    unpin_quietly(tx, device, actor, now)?;
    match follow(tx, logins, device, actor, now)? {
        Followed::Told(_) | Followed::Nothing => Ok(()),
        Followed::Unfit => Err(unfit(device)),
    }
}

/// Notes that a device is given a target of its own, which counts before its fleet's from now on.
pub fn own(
    tx: &mut Tx<'_>,
    device: &Device,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), StoreError> {
    if !targets::set_own(tx, device.id, true)? {
        return Ok(());
    }
    let both = (json!({"own_target": false}), json!({"own_target": true}));
    let what = ("target.own", "device.target_owned");
    note_device(tx, actor, what, device, both, now)
}

/// Ends a device's own target: it gets its fleet's release, or nothing runs on it.
pub fn clear(
    tx: &mut Tx<'_>,
    logins: &Logins,
    device: &Device,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), Refusal> {
    if !targets::is_own(tx, device.id)? {
        return Ok(());
    }
    targets::set_own(tx, device.id, false)?;
    let both = (json!({"own_target": true}), json!({"own_target": false}));
    let what = ("target.clear", "device.target_cleared");
    note_device(tx, actor, what, device, both, now)?;
    match follow(tx, logins, device, actor, now)? {
        Followed::Told(_) => {}
        Followed::Nothing => {
            let nothing = (NOTHING, BTreeMap::new());
            targeting::lend(tx, device, nothing, ("cleared", actor), now)?;
        }
        Followed::Unfit => return Err(unfit(device)),
    }
    Ok(())
}

/// What a device follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Following {
    /// Its fleet, if its label names one.
    pub fleet: Option<String>,
    /// Whether its own target counts, and nothing of the following.
    pub own_target: bool,
    /// The release that it is kept at.
    pub pinned: Option<i64>,
    /// The release that its fleet runs.
    pub fleet_release: Option<i64>,
    /// The generation of its target.
    pub generation: u64,
}

/// What a device follows.
pub fn following(tx: &mut Tx<'_>, device: &Device) -> Result<Following, StoreError> {
    let fleet = match device.labels.get(FLEET_LABEL) {
        Some(name) => stored::find(tx, name)?,
        None => None,
    };
    Ok(Following {
        own_target: targets::is_own(tx, device.id)?,
        pinned: releases::pinned(tx, device.id)?.map(|pinned| pinned.number),
        fleet_release: fleet.as_ref().and_then(|fleet| fleet.release),
        fleet: fleet.map(|fleet| fleet.name),
        generation: targets::find(tx, device.id)?.map_or(0, |target| target.generation),
    })
}
