//! Owns what is known of a rollout before a decision: read from the store, judged from reports.
//!
//! Refuses to believe what a device says of itself beyond which content runs.

use std::collections::BTreeMap;

use holdfast_domain::approval::{self, Internal, Refusal, Verdict};
use holdfast_domain::presence::presence;
use holdfast_domain::resolution::Key;
use holdfast_domain::rollout::judge::{Sight, Told, sight};
use holdfast_domain::rollout::tick::{Device, Rollout, Window};
use holdfast_proto::current::CurrentState;
use holdfast_proto::id::ServiceKey;
use holdfast_proto::image::{ConfigDigest, Digest, Repository};
use holdfast_proto::operator::Presence;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;

use crate::logins::Logins;
use crate::store::db::{StoreError, Tx};
use crate::store::images;
use crate::store::rollouts::members::{self as of, Member, Seen};
use crate::store::rollouts::{self as stored, Content, Stored};

/// What the program knows beside the store.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// Whose credentials count where.
    pub logins: &'a Logins,
    /// Images that need nobody's approval.
    pub internal: &'a [Internal],
    /// Seconds between two polls of a device.
    pub poll_interval_s: u32,
    /// The present.
    pub now: Timestamp,
}

/// Everything that a decision is made from.
pub fn gather(
    tx: &mut Tx<'_>,
    found: &Stored,
    members: &[Member],
    around: Circumstances<'_>,
) -> Result<Rollout, StoreError> {
    let seen = of::seen(tx, found.id, found.opened)?;
    let seen: BTreeMap<_, _> = seen.iter().map(|seen| (seen.device, seen)).collect();
    let key = found.key();
    let devices = members
        .iter()
        .map(|member| {
            device(
                member,
                seen.get(&member.device).copied(),
                key.as_ref(),
                around,
            )
        })
        .collect();
    let mut unavailable = BTreeMap::new();
    if let Some(budget) = &found.rules.budget {
        for group in of::unavailable(tx, found.id, &budget.label)? {
            *unavailable.entry(group).or_default() += 1;
        }
    }
    Ok(Rollout {
        state: found.state,
        since: found.since,
        rules: found.rules.clone(),
        devices,
        progressed_at: found.progressed_at,
        opened: found.opened,
        approved: found.approved,
        window: super::window(&found.windows, around.now),
        unavailable,
        forbidden: forbidden(tx, found, around.internal)?,
    })
}

fn device(
    member: &Member,
    seen: Option<&Seen>,
    key: Option<&Key>,
    around: Circumstances<'_>,
) -> Device {
    let blank = Device {
        id: member.device,
        batch: member.batch,
        standing: member.standing.clone(),
        // Of those whose turn has not come nothing is read; who is on its way and not there any more is gone.
        sight: Sight::Elsewhere,
        reported_at: None,
        is_online: false,
        window: Window::Open,
        group: member.group.clone(),
    };
    let Some(seen) = seen else {
        return blank;
    };
    let report = seen.report.as_ref();
    let state = report.and_then(|(body, _)| serde_json::from_str::<CurrentState>(body).ok());
    let sight = match told(member, seen, key) {
        Some(told) => sight(&told, state.as_ref()),
        None => Sight::Elsewhere,
    };
    let online = presence(seen.last_seen_at, around.now, around.poll_interval_s);
    let windows = seen.image_updates.update_window.as_slice();
    Device {
        sight,
        reported_at: report.map(|(_, at)| *at),
        is_online: online == Presence::Online,
        window: super::window(windows, around.now),
        ..blank
    }
}

/// What a device has to run for this rollout; none if it was told something else since.
///
/// Others may change its target meanwhile. As long as that names the same content of this image, the device is still
/// on its way here.
fn told(member: &Member, seen: &Seen, key: Option<&Key>) -> Option<Told> {
    let generation = member.generation?;
    let (current, body) = seen.target.as_ref()?;
    let now = contents(body, key);
    if *current == generation {
        return Some(Told {
            generation,
            services: now,
        });
    }
    let services = contents(seen.told.as_deref()?, key);
    let is_kept = !services.is_empty() && key.is_some() && services == now;
    is_kept.then_some(Told {
        generation: *current,
        services,
    })
}

/// The content of each service of an image, or of all services.
fn contents(body: &str, key: Option<&Key>) -> BTreeMap<ServiceKey, ConfigDigest> {
    let state = serde_json::from_str::<TargetState>(body).ok();
    let services = state.iter().flat_map(TargetState::services);
    let services = services.filter_map(|(service, target)| {
        let pin = target.pin.as_ref()?;
        let is_meant = key.is_none_or(|key| Key::of(&pin.reference) == *key);
        let content = pin.expected.as_ref()?.config_digest;
        is_meant.then_some((service, content))
    });
    services.collect()
}

/// Why no further device may be given the version.
fn forbidden(
    tx: &mut Tx<'_>,
    found: &Stored,
    internal: &[Internal],
) -> Result<Option<String>, StoreError> {
    let (Content::Image(image), Some(key)) = (&found.content, found.key()) else {
        return Ok(None);
    };
    let digest = image.top.digest();
    if let Some(why) = may_not_run(tx, &image.repository, &key.selector, internal, Some(digest))? {
        return Ok(Some(why));
    }
    let newest = stored::newest_of(tx, &found.scope, &key)?;
    let newer = newest.filter(|newest| *newest > found.id && !found.state.is_active());
    Ok(newer.map(|newer| format!("rollout {newer} took its place")))
}

/// Why a tag of an image may not be rolled out, if it may not; with a digest, also whether that content may.
pub fn may_not_run(
    tx: &mut Tx<'_>,
    repository: &Repository,
    tag: &str,
    internal: &[Internal],
    digest: Option<&Digest>,
) -> Result<Option<String>, StoreError> {
    let image = images::named(tx, repository)?;
    let known = match &image {
        Some(image) => images::tag_named(tx, image.id, tag)?,
        None => None,
    };
    let known = known.map(|tag| approval::KnownTag {
        is_deprecated: tag.is_deprecated,
    });
    let approval = image.as_ref().map(|image| image.approval);
    let verdict = approval::judge(repository, internal, approval, known);
    let why = match verdict {
        Verdict::Internal => return Ok(None),
        Verdict::Approved { .. } => {
            let (Some(image), Some(digest)) = (image, digest) else {
                return Ok(None);
            };
            let is_approved = images::is_digest_approved(tx, image.id, digest)?;
            return Ok((!is_approved).then(|| format!("{} is not approved", digest.short())));
        }
        Verdict::Unknown => "nobody approved this image",
        Verdict::Refused(Refusal::Pending) => "nobody has decided about this image yet",
        Verdict::Refused(Refusal::Rejected) => "this image was rejected",
        Verdict::Refused(Refusal::TagDeprecated) => "this tag is deprecated",
    };
    Ok(Some(why.to_owned()))
}
