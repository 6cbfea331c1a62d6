//! Owns storing and removing credentials for registries: each with its audit row, its event, and everything of the
//! registry asked for again. Refuses to write down anything that is secret.

use holdfast_domain::scope::Scope;
use holdfast_proto::id::DeviceId;
use holdfast_proto::time::Timestamp;
use serde_json::{Value, json};

use crate::store::audit::{self, Actor, NewEntry};
use crate::store::credentials::{self as stored, New, Stored};
use crate::store::events::{self, NewEvent};
use crate::store::{StoreError, Tx, resolutions};

/// Who changes credentials, and what of them may be written down.
#[derive(Debug, Clone, Copy)]
pub struct By<'a> {
    /// Who.
    pub actor: &'a Actor,
    /// Whether the audit log may name the user of a password; else it tells that there is a login, and no more.
    pub names_user: bool,
    /// When.
    pub now: Timestamp,
}

/// A scope as a fleet or a device; neither for everybody's.
pub fn split(scope: &Scope) -> (Option<String>, Option<DeviceId>) {
    match scope {
        Scope::Registry => (None, None),
        Scope::Fleet(name) => (Some(name.clone()), None),
        Scope::Device(uuid) => (None, Some(*uuid)),
    }
}

/// What the audit log may know of credentials.
fn about(scope: &Scope, kind: &str, username: Option<&str>, hand_out: bool) -> Value {
    let (fleet, device) = split(scope);
    json!({"fleet": fleet, "device": device, "kind": kind, "username": username,
           "hand_out": hand_out})
}

fn about_stored(stored: &Stored, names_user: bool) -> Value {
    let username = stored.username.as_deref().filter(|_| names_user);
    about(&stored.scope, &stored.kind, username, stored.hand_out)
}

/// Stores credentials, in place of those that the same devices had; `device_row` is the row of a device's own.
///
/// # Errors
/// When the store cannot do it; then nothing is stored.
pub fn set(
    tx: &mut Tx<'_>,
    new: &New,
    device_row: Option<i64>,
    by: By<'_>,
) -> Result<(), StoreError> {
    let before = stored::find(tx, &new.registry, &new.scope)?;
    stored::put(tx, new, device_row, by.now)?;
    let username = new.username.as_deref().filter(|_| by.names_user);
    let entry = NewEntry {
        action: "registry_credentials.set",
        subject_kind: "registry",
        subject: new.registry.clone(),
        before: before.map(|before| about_stored(&before, by.names_user)),
        after: Some(about(&new.scope, new.kind, username, new.hand_out)),
    };
    audit::append(tx, by.actor, &entry, by.now)?;
    let kind = "registry.credentials_set";
    changed(tx, kind, &new.registry, &new.scope, by.now)
}

/// Removes credentials; says whether there were any.
///
/// # Errors
/// When the store cannot do it; then nothing is removed.
pub fn remove(
    tx: &mut Tx<'_>,
    registry: &str,
    scope: &Scope,
    by: By<'_>,
) -> Result<bool, StoreError> {
    let Some(before) = stored::find(tx, registry, scope)? else {
        return Ok(false);
    };
    stored::remove(tx, registry, scope)?;
    let entry = NewEntry {
        action: "registry_credentials.remove",
        subject_kind: "registry",
        subject: registry.to_owned(),
        before: Some(about_stored(&before, by.names_user)),
        after: None,
    };
    audit::append(tx, by.actor, &entry, by.now)?;
    changed(tx, "registry.credentials_removed", registry, scope, by.now)?;
    Ok(true)
}

/// Records the event, and has everything of the registry asked for again.
fn changed(
    tx: &mut Tx<'_>,
    kind: &str,
    registry: &str,
    scope: &Scope,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (fleet, device) = split(scope);
    let event = NewEvent {
        kind,
        device,
        subject: Some(registry),
        detail: json!({"fleet": fleet}),
        delivery: None,
    };
    events::record(tx, &event, now)?;
    resolutions::adopt(tx, Some(registry), now)?;
    resolutions::hurry_registry(tx, registry, now)?;
    Ok(())
}
