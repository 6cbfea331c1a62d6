//! Owns what happens with a push: judged by what people approved, written down, and begun if it may run.
//!
//! Refuses to believe a push: it is a hint that a tag may mean something else by now. What is rolled out is what the
//! registry says when the rollout begins.

use std::time::Duration;

use holdfast_domain::approval::{self, Internal, KnownTag, Refusal, TargetRule, Verdict};
use holdfast_domain::resolution::Key;
use holdfast_domain::webhook::Push;
use holdfast_proto::image::{Digest, Repository};
use holdfast_proto::time::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, broadcast};

use crate::config::Settings;
use crate::images::{self as notes, TagChange};
use crate::secret::Secret;
use crate::store::approvals::{self, New};
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::db::{StoreError, Tx};
use crate::store::deliveries::{self, Outcome};
use crate::store::events::{self, NewEvent};
use crate::store::images::{self, AboutTag, Image, Tag};

/// The source of a push that had waited for an approval.
pub const APPROVAL: &str = "approval";
/// The source of a push that nobody told of: its registry was asked, and said something else than before.
pub const REFRESH: &str = "refresh";
/// The name of the secret that is configured without one.
const DEFAULT_SECRET: &str = "default";
/// Ended deliveries that a waiting request may lag behind before it reads its own again.
const ENDED_BACKLOG: usize = 256;
/// Bodies that are read before their sender is known, because only the body can tell: each may take 256 KiB.
const UNPROVEN_AT_ONCE: usize = 32;

/// What pushes are judged by, and who is told of them.
#[derive(Debug)]
pub struct Pushes {
    /// What webhooks must bring one of, with their names.
    pub secrets: Vec<(String, Secret)>,
    /// Images that need nobody's approval.
    pub internal: Vec<Internal>,
    /// Whether two different people have to approve an image.
    pub two_person: bool,
    /// Whether targets that people set are judged, too.
    pub targets: TargetRule,
    /// How long the answer to a webhook waits for its outcome.
    pub answer_within: Duration,
    /// Wakes the task that works on deliveries.
    pub deliver_soon: Notify,
    /// Tells which deliveries somebody stopped working on.
    pub ended: broadcast::Sender<i64>,
    /// Who may read a body before its sender is known.
    pub unproven: Semaphore,
}

impl Pushes {
    /// By these settings.
    pub fn new(settings: &Settings) -> Self {
        let unnamed = settings.webhook_secret.iter();
        let unnamed = unnamed.map(|secret| (DEFAULT_SECRET.to_owned(), secret.clone()));
        let named = settings.pushes.secrets.iter();
        let named = named.map(|(name, secret)| (name.clone(), secret.clone()));
        Self {
            secrets: unnamed.chain(named).collect(),
            internal: settings.pushes.internal.clone(),
            two_person: settings.pushes.two_person,
            targets: settings.pushes.targets,
            answer_within: settings.pushes.answer_within,
            deliver_soon: Notify::new(),
            ended: broadcast::channel(ENDED_BACKLOG).0,
            unproven: Semaphore::new(UNPROVEN_AT_ONCE),
        }
    }
}

/// Where a push comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The number of its delivery.
    pub delivery: i64,
    /// A vendor, [`APPROVAL`] or [`REFRESH`].
    pub source: &'a str,
    /// Who to name in the audit log.
    pub actor: &'a Actor,
}

/// What is known of a push.
#[derive(Debug, Clone)]
pub struct Judged {
    /// Whether it may run.
    pub verdict: Verdict,
    /// The image, if it is known.
    pub image: Option<Image>,
    /// The tag, if it is known.
    pub tag: Option<Tag>,
}

/// Judges a push, and changes nothing.
pub fn look(
    tx: &mut Tx<'_>,
    internal: &[Internal],
    repository: &Repository,
    tag: &str,
) -> Result<Judged, StoreError> {
    let image = images::named(tx, repository)?;
    let known = match &image {
        Some(image) => images::tag_named(tx, image.id, tag)?,
        None => None,
    };
    let verdict = approval::judge(
        repository,
        internal,
        image.as_ref().map(|image| image.approval),
        known.as_ref().map(|tag| KnownTag {
            is_deprecated: tag.is_deprecated,
        }),
    );
    Ok(Judged {
        verdict,
        image,
        tag: known,
    })
}

/// Judges a push and writes down what follows: the tag that is new, the question to be asked, the events.
pub fn judge(
    tx: &mut Tx<'_>,
    internal: &[Internal],
    push: &Push,
    origin: &Origin<'_>,
    now: Timestamp,
) -> Result<Outcome, StoreError> {
    let judged = look(tx, internal, &push.repository, &push.tag)?;
    let verdict = judged.verdict;
    // A push that had waited was received long ago, and what was found out never was.
    if ![APPROVAL, REFRESH].contains(&origin.source) {
        tell(tx, "image.webhook_received", push, origin, json!({}), now)?;
    }
    let action_required = match verdict {
        Verdict::Internal | Verdict::Approved { adds_tag: false } => None,
        Verdict::Approved { adds_tag: true } => {
            if let Some(image) = &judged.image {
                add_tag(tx, image, &push.tag, origin.actor, now)?;
            }
            None
        }
        Verdict::Unknown => {
            let id = ask(tx, push, (origin.source, origin.actor), now)?;
            Some(format!(
                "decide request {id}: POST /api/v1/approval-requests/{id}/approve or /reject"
            ))
        }
        Verdict::Refused(refusal) => Some(action(refusal, &judged)),
    };
    let reason = verdict.why(&push.repository, &push.tag);
    let kind = if verdict.may_run() {
        "image.webhook_approved"
    } else {
        "image.webhook_rejected"
    };
    let detail = json!({"verdict": verdict.word(), "reason": reason});
    tell(tx, kind, push, origin, detail, now)?;
    Ok(Outcome {
        image: push.repository.familiar(),
        tag: push.tag.clone(),
        verdict: verdict.word().to_owned(),
        rollout: None,
        reason,
        error: verdict.error().map(str::to_owned),
        action_required,
    })
}

/// What a person can do about a refusal.
pub fn action(refusal: Refusal, judged: &Judged) -> String {
    let image = judged.image.as_ref().map_or(0, |image| image.id);
    let tag = judged.tag.as_ref().map_or(0, |tag| tag.id);
    match refusal {
        Refusal::Pending | Refusal::Rejected => {
            format!("if it is to run, approve it: PUT /api/v1/images/{image}")
        }
        Refusal::TagDeprecated => format!(
            "push another tag, or take the deprecation back: PUT /api/v1/images/{image}/tags/{tag}"
        ),
    }
}

/// Adds a tag that nobody chose: it may run, and is not recommended.
pub fn add_tag(
    tx: &mut Tx<'_>,
    image: &Image,
    tag: &str,
    by: &Actor,
    now: Timestamp,
) -> Result<(), StoreError> {
    let about = AboutTag::default();
    if images::insert_tag(tx, image.id, tag, &about, None, now)?.is_some() {
        let change = TagChange {
            image,
            tag,
            before: None,
            after: Some(&about),
        };
        notes::note_tag(tx, by, &change, now)?;
    }
    Ok(())
}

/// A push in the generic form, to be told again later.
pub fn generic(repository: &Repository, tag: &str, digest: Option<&Digest>) -> Value {
    let mut push = json!({ "image": repository.to_string(), "tag": tag });
    if let Some(digest) = digest {
        push["digest"] = json!(digest);
    }
    push
}

/// Has tags that moved treated as pushed, in the transaction that learnt of it: no crash loses one.
pub fn hint(tx: &mut Tx<'_>, moved: &[(Key, Digest)], now: Timestamp) -> Result<(), StoreError> {
    for (key, digest) in moved {
        let Some(reference) = key.reference() else {
            continue;
        };
        let push = generic(reference.repository(), &key.selector, Some(digest));
        let new = deliveries::New {
            vendor: REFRESH,
            key: format!("{REFRESH} {key} {digest} {}", now.as_millis()),
            same_since: None,
            body: push.to_string(),
            secret: None,
            request_id: REFRESH.to_owned(),
            again_of: None,
            record: None,
        };
        deliveries::insert(tx, &new, now)?;
    }
    Ok(())
}

/// Asks people whether an image may run; answers the question's number.
pub fn ask(
    tx: &mut Tx<'_>,
    push: &Push,
    (source, by): (&str, &Actor),
    now: Timestamp,
) -> Result<i64, StoreError> {
    let waits = generic(&push.repository, &push.tag, push.digest.as_ref());
    let new = New {
        repository: &push.repository,
        tag: &push.tag,
        digest: push.digest.as_ref(),
        source,
        push: &waits,
    };
    let (id, times) = approvals::ask(tx, &new, now)?;
    let about = json!({"image": push.repository.to_string(), "tag": push.tag,
                       "digest": push.digest, "times": times});
    let entry = NewEntry {
        action: "approval.ask",
        subject_kind: "approval_request",
        subject: id.to_string(),
        before: None,
        after: Some(about.clone()),
    };
    audit::append(tx, by, &entry, now)?;
    events::record(
        tx,
        &NewEvent::about(
            "image.approval_requested",
            &push.repository.to_string(),
            json!({"request": id, "tag": push.tag, "times": times}),
        ),
        now,
    )?;
    Ok(id)
}

/// Records an event about a push.
pub fn tell(
    tx: &mut Tx<'_>,
    kind: &str,
    push: &Push,
    origin: &Origin<'_>,
    mut detail: Value,
    now: Timestamp,
) -> Result<(), StoreError> {
    detail["delivery"] = json!(origin.delivery);
    detail["source"] = json!(origin.source);
    if let Some(digest) = &push.digest {
        // Theirs, not ours: nobody asked the registry yet.
        detail["claimed_digest"] = json!(digest);
    }
    let subject = format!("{}:{}", push.repository, push.tag);
    events::record(tx, &NewEvent::about(kind, &subject, detail), now)?;
    Ok(())
}
