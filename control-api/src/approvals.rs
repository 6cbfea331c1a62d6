//! Owns deciding whether an image may run: by its question, or by people who say so without one.
//!
//! A decision, what it changes and the push that it sets free are one transaction. Refuses to decide a question
//! twice, to count one person twice where two must approve, and to approve other content than the approver saw.

use holdfast_domain::approval::{Approval, Quorum, count};
use holdfast_proto::image::Digest;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde_json::json;

use crate::http::problem::Refusal;
use crate::images as notes;
use crate::pushes::{self, APPROVAL};
use crate::store::approvals::{self, Decision, Request, State, state_name};
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::db::{StoreError, Tx};
use crate::store::deliveries;
use crate::store::events::{self, NewEvent};
use crate::store::images::{self, About, Image};

/// What somebody says to a question.
#[derive(Debug, Clone)]
pub struct Word {
    /// Who says it.
    pub by: Actor,
    /// Why.
    pub note: Option<String>,
    /// The content that they saw: another one is not what they decided about.
    pub digest: Option<Digest>,
}

/// How a question is after somebody had their say.
#[derive(Debug, Clone)]
pub struct Decided {
    /// The question.
    pub request: Request,
    /// The delivery of the push that had waited.
    pub delivery: Option<i64>,
}

fn closed(request: &Request) -> Refusal {
    let by = request.decided_by.as_deref().unwrap_or("somebody");
    let how = state_name(request.state);
    Refusal::new(
        StatusCode::CONFLICT,
        "decided",
        format!("request {} was {how} by {by} already", request.id),
    )
}

/// The question, if it is still open and about what its reader saw.
fn pending(tx: &mut Tx<'_>, id: i64, word: &Word) -> Result<Request, Refusal> {
    let request = approvals::find(tx, id)?.ok_or_else(Refusal::not_found)?;
    if request.state != State::Open {
        return Err(closed(&request));
    }
    if word.digest.is_some() && word.digest != request.digest {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "other_content",
            "the request is about other content by now: look at it again",
        ));
    }
    Ok(request)
}

/// Approves: the image may run, its tag is known, and the push that waited is told again.
///
/// Where two people must approve, the first one's word is noted.
pub fn approve(
    tx: &mut Tx<'_>,
    two_person: bool,
    id: i64,
    word: &Word,
    now: Timestamp,
) -> Result<Decided, Refusal> {
    let request = pending(tx, id, word)?;
    let who = &word.by.name;
    let quorum = count(&request.approvals, who, two_person);
    let mut approvals = request.approvals.clone();
    match quorum {
        Quorum::Same => Err(Refusal::new(
            StatusCode::CONFLICT,
            "same_person",
            "you approved this already: somebody else has to approve it, too",
        )),
        Quorum::Waits => {
            approvals.push(who.clone());
            approvals::note_approvals(tx, id, &approvals)?;
            note(tx, &request, (State::Open, word), now)?;
            Ok(Decided {
                request: again(tx, id)?,
                delivery: None,
            })
        }
        Quorum::Reached => {
            approvals.push(who.clone());
            close(tx, &request, (State::Approved, &approvals), word, now)?;
            let image = decide(tx, &request, Approval::Approved, word, now)?;
            if let Some(digest) = &request.digest {
                let tag = Some(request.tag.as_str());
                images::approve_digest(tx, image.id, digest, tag, who, now)?;
            }
            let delivery = set_free(tx, &request, &image, &word.by, now)?;
            Ok(Decided {
                request: again(tx, id)?,
                delivery: Some(delivery),
            })
        }
    }
}

/// Rejects: the image may not run, and nobody is asked about it again.
pub fn reject(tx: &mut Tx<'_>, id: i64, word: &Word, now: Timestamp) -> Result<Decided, Refusal> {
    let request = pending(tx, id, word)?;
    let who = vec![word.by.name.clone()];
    close(tx, &request, (State::Rejected, &who), word, now)?;
    decide(tx, &request, Approval::Rejected, word, now)?;
    Ok(Decided {
        request: again(tx, id)?,
        delivery: None,
    })
}

/// Closes the open question about an image that people decided about without it; answers the delivery of the push
/// that had waited, when it may run now.
pub fn settle(
    tx: &mut Tx<'_>,
    image: &Image,
    by: &Actor,
    now: Timestamp,
) -> Result<Option<i64>, Refusal> {
    let state = match image.approval {
        Approval::Pending => return Ok(None),
        Approval::Approved => State::Approved,
        Approval::Rejected => State::Rejected,
    };
    let Ok(repository) = notes::subject(image).parse() else {
        return Ok(None);
    };
    let Some(request) = approvals::open(tx, &repository)? else {
        return Ok(None);
    };
    let word = Word {
        by: by.clone(),
        note: None,
        digest: None,
    };
    let who = vec![by.name.clone()];
    close(tx, &request, (state, &who), &word, now)?;
    match state {
        State::Approved => Ok(Some(set_free(tx, &request, image, by, now)?)),
        State::Open | State::Rejected => Ok(None),
    }
}

fn again(tx: &mut Tx<'_>, id: i64) -> Result<Request, Refusal> {
    approvals::find(tx, id)?.ok_or_else(Refusal::internal)
}

fn close(
    tx: &mut Tx<'_>,
    request: &Request,
    (state, who): (State, &[String]),
    word: &Word,
    now: Timestamp,
) -> Result<(), Refusal> {
    let decision = Decision {
        state,
        approvals: who,
        by: &word.by.name,
        note: word.note.as_deref(),
    };
    if !approvals::decide(tx, request.id, &decision, now)? {
        // Somebody else was first.
        return Err(closed(&again(tx, request.id)?));
    }
    Ok(note(tx, request, (state, word), now)?)
}

/// Makes the decision about the image: one that was never known becomes known by it.
fn decide(
    tx: &mut Tx<'_>,
    request: &Request,
    approval: Approval,
    word: &Word,
    now: Timestamp,
) -> Result<Image, Refusal> {
    let (by, repository) = (&word.by, &request.repository);
    let about = About {
        category: String::new(),
        description: String::new(),
        is_official: false,
    };
    let added = images::insert(tx, repository, &about, approval, &by.name, now)?;
    let before = images::named(tx, repository)?.ok_or_else(Refusal::internal)?;
    if added.is_some() {
        notes::note(tx, by, "image.add", &before, None, now)?;
        return Ok(before);
    }
    if before.approval != approval {
        images::decide(tx, before.id, approval, &by.name, now)?;
        if approval != Approval::Approved {
            images::disapprove_digests(tx, before.id)?;
        }
    }
    let image = images::find(tx, before.id)?.ok_or_else(Refusal::internal)?;
    if image != before {
        notes::note(tx, by, "image.change", &image, Some(&before), now)?;
    }
    Ok(image)
}

/// Adds the tag that was asked for, and tells the push again that had waited.
fn set_free(
    tx: &mut Tx<'_>,
    request: &Request,
    image: &Image,
    by: &Actor,
    now: Timestamp,
) -> Result<i64, StoreError> {
    pushes::add_tag(tx, image, &request.tag, by, now)?;
    let new = deliveries::New {
        vendor: APPROVAL,
        key: format!("{APPROVAL} {}", request.id),
        same_since: None,
        body: request.push.to_string(),
        secret: None,
        request_id: by.request_id.clone(),
        again_of: None,
        record: None,
    };
    Ok(deliveries::insert(tx, &new, now)?.0)
}

fn note(
    tx: &mut Tx<'_>,
    request: &Request,
    (state, word): (State, &Word),
    now: Timestamp,
) -> Result<(), StoreError> {
    let (action, kind) = match state {
        State::Open => ("approval.note", "image.approval_noted"),
        State::Approved => ("approval.approve", "image.approval_approved"),
        State::Rejected => ("approval.reject", "image.approval_rejected"),
    };
    let image = request.repository.to_string();
    let entry = NewEntry {
        action,
        subject_kind: "approval_request",
        subject: request.id.to_string(),
        before: Some(json!({"state": state_name(request.state), "approvals": request.approvals})),
        after: Some(
            json!({"state": state_name(state), "image": image, "tag": request.tag,
                           "digest": request.digest, "note": word.note}),
        ),
    };
    audit::append(tx, &word.by, &entry, now)?;
    events::record(
        tx,
        &NewEvent::about(
            kind,
            &image,
            json!({"request": request.id, "tag": request.tag, "by": word.by.name}),
        ),
        now,
    )?;
    Ok(())
}
