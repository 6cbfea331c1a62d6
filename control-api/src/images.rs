//! Owns writing down what is decided about images and their tags: the audit row and the event, always both.

use holdfast_proto::image::written_registry;
use holdfast_proto::time::Timestamp;
use serde_json::{Value, json};

use crate::store::audit::{self, Actor, NewEntry};
use crate::store::db::{StoreError, Tx};
use crate::store::events::{self, NewEvent};
use crate::store::images::{AboutTag, Image, approval_name};

/// The image's canonical name: what audit rows and events call it.
pub fn subject(image: &Image) -> String {
    format!("{}/{}", written_registry(&image.registry), image.repository)
}

/// Notes a change of an image: `image.add`, `image.change` or `image.remove`.
pub fn note(
    tx: &mut Tx<'_>,
    by: &Actor,
    action: &str,
    image: &Image,
    before: Option<&Image>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let about = |image: &Image| {
        json!({"category": image.category, "description": image.description,
               "is_official": image.is_official, "approval": approval_name(image.approval)})
    };
    let name = subject(image);
    let entry = NewEntry {
        action,
        subject_kind: "image",
        subject: name.clone(),
        before: before.map(about),
        after: (action != "image.remove").then(|| about(image)),
    };
    audit::append(tx, by, &entry, now)?;
    let kind = match action {
        "image.add" => "image.registry.added",
        "image.remove" => "image.registry.removed",
        _ => "image.registry.changed",
    };
    events::record(
        tx,
        &NewEvent::about(
            kind,
            &name,
            json!({"approval": approval_name(image.approval)}),
        ),
        now,
    )?;
    Ok(())
}

/// A change of a tag.
#[derive(Debug, Clone, Copy)]
pub struct TagChange<'a> {
    /// Whose tag.
    pub image: &'a Image,
    /// Its text.
    pub tag: &'a str,
    /// How it was; none when it is new.
    pub before: Option<&'a AboutTag>,
    /// How it is; none when it is forgotten.
    pub after: Option<&'a AboutTag>,
}

/// Notes a change of a tag.
pub fn note_tag(
    tx: &mut Tx<'_>,
    by: &Actor,
    change: &TagChange<'_>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (action, kind) = match (change.before, change.after) {
        (None, _) => ("image.tag.add", "image.tag.added"),
        (Some(_), Some(_)) => ("image.tag.change", "image.tag.changed"),
        (Some(_), None) => ("image.tag.remove", "image.tag.removed"),
    };
    let about = |about: &AboutTag| -> Value {
        json!({"tag": change.tag, "is_recommended": about.is_recommended,
               "is_deprecated": about.is_deprecated, "architecture": about.architecture})
    };
    let name = subject(change.image);
    let entry = NewEntry {
        action,
        subject_kind: "image",
        subject: name.clone(),
        before: change.before.map(about),
        after: change.after.map(about),
    };
    audit::append(tx, by, &entry, now)?;
    let tagged = format!("{name}:{}", change.tag);
    events::record(
        tx,
        &NewEvent::about(kind, &tagged, change.after.map_or_else(|| json!({}), about)),
        now,
    )?;
    Ok(())
}
