//! Owns whether a target may name its images: the rules for pushes, where they are to hold for targets, too.
//!
//! Refuses a target whole when one of its images may not run; whoever may overrule that is written down.

use holdfast_domain::approval::{Internal, TargetRule};
use holdfast_proto::image::Reference;
use holdfast_proto::time::Timestamp;
use serde_json::json;

use crate::http::problem::Refusal;
use crate::pushes::{self, Pushes};
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::db::{StoreError, Tx};
use crate::store::images;

/// What targets are judged by.
#[derive(Debug, Clone)]
pub struct Rules {
    rule: TargetRule,
    internal: Vec<Internal>,
}

impl Rules {
    /// As configured.
    pub fn of(pushes: &Pushes) -> Self {
        Self {
            rule: pushes.targets,
            internal: pushes.internal.clone(),
        }
    }
}

/// Who sets a target of what, and whether they know that images in it may not run.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// `device` or `fleet`.
    pub kind: &'static str,
    /// Which.
    pub subject: &'a str,
    /// Whether they want it all the same.
    pub overrules: bool,
    /// Who.
    pub actor: &'a Actor,
}

/// Refuses a target that names an image which may not run, as far as the configuration wants that.
///
/// # Errors
/// 403 that names the first such image, and what to do; the store's own.
pub fn check(
    tx: &mut Tx<'_>,
    rules: &Rules,
    references: &[Reference],
    asked: Asked<'_>,
    now: Timestamp,
) -> Result<(), Refusal> {
    if rules.rule == TargetRule::Open {
        return Ok(());
    }
    let mut refused = Vec::new();
    for reference in references {
        if let Some(why) = why_not(tx, rules, reference)? {
            refused.push((reference.to_string(), why));
        }
    }
    let Some((_, (error, message))) = refused.first() else {
        return Ok(());
    };
    let may_overrule = rules.rule == TargetRule::Overrule;
    if !(may_overrule && asked.overrules) {
        let action = if may_overrule {
            "approve it: POST /api/v1/images; or set the target with ?overrule_approval=true, which is written down"
        } else {
            "approve it: POST /api/v1/images"
        };
        return Err(Refusal::image(error, message, Some(action)));
    }
    let images: Vec<&str> = refused.iter().map(|(image, _)| image.as_str()).collect();
    let entry = NewEntry {
        action: "approval.overrule",
        subject_kind: asked.kind,
        subject: asked.subject.to_owned(),
        before: None,
        after: Some(json!({ "images": images })),
    };
    audit::append(tx, asked.actor, &entry, now)?;
    Ok(())
}

/// What is wrong with an image, in short and in words.
fn why_not(
    tx: &mut Tx<'_>,
    rules: &Rules,
    reference: &Reference,
) -> Result<Option<(&'static str, String)>, StoreError> {
    let repository = reference.repository();
    let tag = reference.tag_or_latest();
    let judged = pushes::look(tx, &rules.internal, repository, tag)?;
    if let Some(error) = judged.verdict.error() {
        let why = judged.verdict.why(repository, tag).unwrap_or_default();
        return Ok(Some((error, why)));
    }
    // A digest that somebody wrote counts by itself: the tag beside it says nothing.
    if let (Some(digest), Some(image)) = (reference.digest(), &judged.image)
        && !images::is_digest_approved(tx, image.id, digest)?
    {
        let name = repository.familiar();
        let why = format!("{name} may run, {} of it was not approved", digest.short());
        return Ok(Some(("Image not approved", why)));
    }
    Ok(None)
}
