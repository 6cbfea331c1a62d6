//! Owns what people may order of a rollout: each order in one transaction, as the table of states says.

use holdfast_domain::approval::Internal;
use holdfast_domain::rollout::state::{self, Event, State};
use holdfast_domain::rollout::tick::{Standing, retried};
use holdfast_proto::id::DeviceId;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde_json::json;

use super::effects::{self, Batch, Why};
use super::facts::may_not_run;
use crate::http::problem::Refusal;
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::db::Tx;
use crate::store::rollouts::members::{self, Member};
use crate::store::rollouts::{self as stored, Content, Stored};

/// What may be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Begin, without waiting for a window or a person.
    Start,
    /// Touch no further device.
    Pause,
    /// Go on.
    Resume,
    /// End where it is.
    Cancel,
    /// Try failed and lost devices again.
    Retry,
    /// Bring every touched device back.
    RollBack,
    /// Let the next batch be opened.
    ApproveBatch,
}

impl Order {
    const fn event(self) -> Option<Event> {
        match self {
            Self::Start => Some(Event::Start),
            Self::Pause => Some(Event::Pause),
            Self::Resume => Some(Event::Resume),
            Self::Cancel => Some(Event::Cancel),
            Self::Retry => Some(Event::Retry),
            Self::RollBack => Some(Event::RollBack),
            Self::ApproveBatch => None,
        }
    }

    /// What is said of it where nobody gives a reason.
    const fn words(self) -> &'static str {
        match self {
            Self::Start => "somebody started it",
            Self::Pause => "somebody paused it",
            Self::Resume => "somebody resumed it",
            Self::Cancel => "somebody cancelled it",
            Self::Retry => "somebody had it retried",
            Self::RollBack => "somebody had it rolled back",
            Self::ApproveBatch => "somebody approved the next batch",
        }
    }
}

/// Who orders, and why.
#[derive(Clone, Debug)]
pub struct Ordered {
    /// What.
    pub order: Order,
    /// Why; in words of our own without.
    pub reason: Option<String>,
    /// Who.
    pub actor: Actor,
}

fn conflict(detail: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::CONFLICT, "not_now", detail)
}

/// Carries an order out; answers the devices that have another target now.
///
/// # Errors
/// A conflict that says what is so instead, when the order means nothing in the rollout's state.
pub fn carry_out(
    tx: &mut Tx<'_>,
    id: i64,
    ordered: &Ordered,
    internal: &[Internal],
    now: Timestamp,
) -> Result<Vec<DeviceId>, Refusal> {
    let found = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
    let why = ordered.reason.as_deref().unwrap_or(ordered.order.words());
    let Some(event) = ordered.order.event() else {
        approve_batch(tx, &found, ordered, why, now)?;
        return Ok(Vec::new());
    };
    let to = state::next(found.state, event).map_err(|why| conflict(why.to_string()))?;
    if matches!(to, State::Running) {
        refuse_forbidden(tx, &found, internal)?;
    }
    if to.is_active() && !found.state.is_active() {
        refuse_a_second(tx, &found)?;
    }
    if !effects::turn(tx, &found, (event, why), &ordered.actor, now)? {
        return Err(conflict("it changed meanwhile: look again"));
    }
    if ordered.order == Order::Retry {
        return Ok(retry(tx, &found, now)?);
    }
    Ok(Vec::new())
}

fn refuse_forbidden(tx: &mut Tx<'_>, found: &Stored, internal: &[Internal]) -> Result<(), Refusal> {
    let Content::Image(image) = &found.content else {
        return Ok(());
    };
    let digest = Some(image.top.digest());
    match may_not_run(tx, &image.repository, &found.tag, internal, digest)? {
        Some(why) => Err(conflict(why)),
        None => Ok(()),
    }
}

/// What was over may only go on while no other rollout has its place.
fn refuse_a_second(tx: &mut Tx<'_>, found: &Stored) -> Result<(), Refusal> {
    match stored::holder(tx, found)? {
        Some(other) if other != found.id => Err(conflict(format!(
            "rollout {other} of the same is on its way"
        ))),
        Some(_) | None => Ok(()),
    }
}

fn approve_batch(
    tx: &mut Tx<'_>,
    found: &Stored,
    ordered: &Ordered,
    why: &str,
    now: Timestamp,
) -> Result<(), Refusal> {
    if !found.rules.approve_batches {
        return Err(conflict("its batches need no approval"));
    }
    if found.state != State::Running {
        let no = state::next(found.state, Event::Pause).err();
        let why = no.map_or("it does not run", |no| no.0);
        return Err(conflict(why));
    }
    let batch = found.opened + 1;
    if found.approved >= batch {
        return Err(conflict(format!("batch {batch} is approved already")));
    }
    stored::approve(tx, found.id, batch)?;
    members::log(tx, found.id, None, ("batch_approved", why), now)?;
    let entry = NewEntry {
        action: "rollout.batch_approved",
        subject_kind: "rollout",
        subject: found.id.to_string(),
        before: Some(json!({ "approved": found.approved })),
        after: Some(json!({ "approved": batch, "reason": why })),
    };
    audit::append(tx, &ordered.actor, &entry, now)?;
    Ok(())
}

/// Has devices tried again that failed or were lost.
fn retry(
    tx: &mut Tx<'_>,
    found: &Stored,
    now: Timestamp,
) -> Result<Vec<DeviceId>, crate::store::StoreError> {
    let all = members::all(tx, found.id)?;
    let mut touched = Vec::new();
    for member in &all {
        let stands = (member.batch, &member.standing);
        let Some((batch, standing)) = retried(found.state, found.opened, stands, now) else {
            continue;
        };
        let is_told = matches!(standing, Standing::Readying { .. });
        let again = Member {
            batch,
            standing,
            detail: "it is tried again".to_owned(),
            changed_at: now,
            ..member.clone()
        };
        members::note(tx, found.id, &again)?;
        if is_told {
            let batch = Batch {
                rollout: found,
                members: std::slice::from_ref(&again),
                now,
            };
            effects::go_back(tx, &batch, member.device, Why::Retry)?;
            touched.push(member.device);
        }
    }
    stored::progressed(tx, found.id, now)?;
    Ok(touched)
}
