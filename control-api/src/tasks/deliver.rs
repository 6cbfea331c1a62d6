//! Owns working on webhook deliveries: judged in one transaction, then each rollout begun that follows.
//!
//! Whoever takes a delivery has it for a bounded time, also against other replicas; what a worker left open when it
//! died is found and taken again. Refuses to judge a delivery twice: what was decided is stored before anything
//! follows from it.

use std::time::Duration;

use holdfast_domain::webhook::{Push, Vendor};
use holdfast_proto::problem::FieldError;
use holdfast_proto::time::Timestamp;
use serde_json::json;
use tokio::task::JoinSet;

use crate::app::{App, Shared};
use crate::clock;
use crate::pushes::{self, APPROVAL, Origin, REFRESH};
use crate::rollouts::begin::{self, Begun, Pushed};
use crate::store::StoreError;
use crate::store::audit::Actor;
use crate::store::db::Tx;
use crate::store::deliveries::{self, Claim, Delivery, MOST_ATTEMPTS, Outcome, Record, State};
use crate::telemetry::chain;

/// The longest sleep: another replica may have died over a delivery.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Deliveries worked on at once: one that waits for its registry does not hold the others up.
const AT_ONCE: usize = 8;
/// How long the work on one delivery may take: some slow registries fit.
const WORK_LIMIT: Duration = Duration::from_mins(4);
/// For so long a delivery is whoever's took it: longer than the work may take.
const CLAIM_MS: i64 = 5 * 60 * 1_000;
/// The first wait after a failure; each further one is twice as long.
const FIRST_WAIT_MS: i64 = 5_000;
/// How long open work may take to end after the program was asked to.
const DRAIN: Duration = Duration::from_secs(5);

pub(super) async fn run(app: Shared) {
    let mut stopping = app.stopping.clone();
    let mut working = JoinSet::new();
    loop {
        fill(&app, &mut working).await;
        tokio::select! {
            () = app.pushes.deliver_soon.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => tidy(&app).await,
            Some(_) = working.join_next() => {}
            _ = stopping.changed() => break,
        }
    }
    // What does not end in time is taken again after the next start.
    let all = async { while working.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, all).await;
}

/// Takes what is due, as much as may be worked on at once.
async fn fill(app: &Shared, working: &mut JoinSet<()>) {
    while working.len() < AT_ONCE {
        match take(app, clock::now()).await {
            Ok(Some(taken)) => {
                let app = app.clone();
                working.spawn(async move { work(&app, taken).await });
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "could not look for webhook deliveries"
                );
                return;
            }
        }
    }
}

async fn take(app: &App, now: Timestamp) -> Result<Option<Delivery>, StoreError> {
    let until = now.plus_ms(CLAIM_MS);
    app.store
        .transact(move |tx| deliveries::claim(tx, now, until))
        .await
}

/// Works on everything that is due at `now`, one after the other; answers how much that was.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn run_once(app: &App, now: Timestamp) -> Result<usize, StoreError> {
    give_up(app, now).await?;
    let mut count = 0;
    while let Some(taken) = take(app, now).await? {
        work(app, taken).await;
        count += 1;
    }
    Ok(count)
}

/// Gives up what no worker survives, and forgets what is too old.
async fn tidy(app: &App) {
    let now = clock::now();
    let trimmed = async {
        give_up(app, now).await?;
        app.store.transact(deliveries::trim).await
    };
    if let Err(error) = trimmed.await {
        tracing::warn!(error = chain(&error), "could not tidy webhook deliveries");
    }
}

async fn give_up(app: &App, now: Timestamp) -> Result<(), StoreError> {
    // Seldom anything: a write transaction is not begun for it.
    let any = app
        .store
        .read(move |tx| deliveries::abandoned(tx, now))
        .await?;
    for delivery in any {
        let (id, attempt) = (delivery.id, delivery.attempts);
        let why = "whoever worked on it died, each time";
        fail(app, Claim { id, attempt }, why).await?;
    }
    Ok(())
}

async fn fail(app: &App, claim: Claim, why: &str) -> Result<(), StoreError> {
    let (now, why) = (clock::now(), why.to_owned());
    let failed = app
        .store
        .transact(move |tx| {
            let found = deliveries::find(tx, claim.id)?;
            let mut record = found.and_then(|found| found.record).unwrap_or_default();
            record.reason = Some(format!("given up after {MOST_ATTEMPTS} attempts: {why}"));
            deliveries::end(tx, claim, State::Failed, &record, now)
        })
        .await?;
    if failed {
        tracing::error!(
            webhook.delivery = claim.id,
            "gave up a webhook delivery: it may be delivered again by hand"
        );
    }
    Ok(())
}

async fn work(app: &App, taken: Delivery) {
    let claim = Claim {
        id: taken.id,
        attempt: taken.attempts,
    };
    let carried = tokio::time::timeout(WORK_LIMIT, carry_out(app, &taken, claim)).await;
    let failed = match carried {
        Ok(Ok(Carried::Out)) => Ok(()),
        Ok(Ok(Carried::Later(why))) => put_off(app, claim, &why).await,
        Ok(Err(error)) => {
            tracing::warn!(
                webhook.delivery = claim.id,
                attempt = claim.attempt,
                error = chain(&error),
                "could not work on a webhook delivery"
            );
            put_off(app, claim, "the store could not do it").await
        }
        Err(_) => put_off(app, claim, "it took too long").await,
    };
    if let Err(error) = failed {
        // The claim ends by itself.
        tracing::warn!(
            webhook.delivery = claim.id,
            error = chain(&error),
            "could not put a webhook delivery off"
        );
    }
    // Nobody may be waiting.
    let _ = app.pushes.ended.send(claim.id);
}

async fn put_off(app: &App, claim: Claim, why: &str) -> Result<(), StoreError> {
    if claim.attempt >= MOST_ATTEMPTS {
        return fail(app, claim, why).await;
    }
    let doublings = u32::try_from(claim.attempt - 1).unwrap_or(0);
    let not_before = clock::now().plus_ms(FIRST_WAIT_MS << doublings.min(8));
    app.store
        .transact(move |tx| deliveries::release(tx, claim, not_before))
        .await
}

/// How far a delivery came.
enum Carried {
    /// To its end, or somebody else has it.
    Out,
    /// Not to its end: why it has to be tried again.
    Later(String),
}

/// Judges the pushes of a delivery, unless that was done before, and begins what follows.
async fn carry_out(app: &App, taken: &Delivery, claim: Claim) -> Result<Carried, StoreError> {
    let (delivery, internal) = (taken.clone(), app.pushes.internal.clone());
    let now = clock::now();
    let judged = app
        .store
        .transact(move |tx| {
            if let Some(record) = &delivery.record {
                return Ok(Some(record.clone()));
            }
            let record = judge(tx, &delivery, &internal, now)?;
            Ok::<_, StoreError>(deliveries::note(tx, claim, &record)?.then_some(record))
        })
        .await?;
    let Some(mut record) = judged else {
        return Ok(Carried::Out);
    };
    let mut later = None;
    for position in 0..record.outcomes.len() {
        if record.outcomes[position].waits() {
            let outcome = &mut record.outcomes[position];
            if let Some(why) = begin(app, outcome, &taken.vendor).await? {
                later = Some(why);
                continue;
            }
            let (outcome, so_far) = (record.outcomes[position].clone(), record.clone());
            let (delivery, now) = (taken.clone(), clock::now());
            let is_ours = app
                .store
                .transact(move |tx| {
                    // Noted at once: whoever takes over does not begin it again.
                    let is_ours = deliveries::note(tx, claim, &so_far)?;
                    if is_ours {
                        settle(tx, &delivery, &outcome, now)?;
                    }
                    Ok::<_, StoreError>(is_ours)
                })
                .await?;
            if !is_ours {
                return Ok(Carried::Out);
            }
        }
    }
    if let Some(why) = later {
        return Ok(Carried::Later(why));
    }
    let now = clock::now();
    app.store
        .transact(move |tx| deliveries::end(tx, claim, State::Done, &record, now))
        .await?;
    Ok(Carried::Out)
}

/// Who to name in the audit log for what follows from a delivery.
fn actor(delivery: &Delivery) -> Actor {
    let (kind, name) = match &delivery.secret {
        Some(secret) => ("webhook", format!("{} (secret {secret})", delivery.vendor)),
        None => ("system", delivery.vendor.clone()),
    };
    Actor {
        kind,
        name,
        request_id: delivery.request_id.clone(),
    }
}

fn judge(
    tx: &mut Tx<'_>,
    delivery: &Delivery,
    internal: &[holdfast_domain::approval::Internal],
    now: Timestamp,
) -> Result<Record, StoreError> {
    let body = deliveries::body(tx, delivery.id)?.unwrap_or_default();
    let read = match read(&delivery.vendor, &body) {
        Ok(read) => read,
        Err(fault) => {
            return Ok(Record {
                fault: Some(fault),
                ..Record::default()
            });
        }
    };
    let actor = actor(delivery);
    let origin = Origin {
        delivery: delivery.id,
        source: &delivery.vendor,
        actor: &actor,
    };
    let outcomes = read
        .iter()
        .map(|push| pushes::judge(tx, internal, push, &origin, now))
        .collect::<Result<_, _>>()?;
    Ok(Record {
        outcomes,
        ..Record::default()
    })
}

/// Reads what was read before it was stored; rules that were tightened since may refuse it.
fn read(source: &str, body: &str) -> Result<Vec<Push>, FieldError> {
    let wrong = |detail: &str| FieldError {
        pointer: String::new(),
        detail: detail.to_owned(),
    };
    let vendor = if [APPROVAL, REFRESH].contains(&source) {
        Some(Vendor::Generic)
    } else {
        Vendor::named(source)
    };
    let vendor = vendor.ok_or_else(|| wrong("this version does not know its sender"))?;
    let body = serde_json::from_str(body).map_err(|_| wrong("its body is not kept any more"))?;
    vendor.pushes(&body).map_err(|error| FieldError {
        pointer: error.pointer,
        detail: error.detail,
    })
}

/// Begins the rollout that follows from a push; answers why it has to be tried again, if it has to.
async fn begin(
    app: &App,
    outcome: &mut Outcome,
    source: &str,
) -> Result<Option<String>, StoreError> {
    let Ok(repository) = outcome.image.parse() else {
        outcome.reason = Some("its name cannot be read any more".to_owned());
        return Ok(None);
    };
    let pushed = Pushed {
        repository,
        tag: outcome.tag.clone(),
        source: source.to_owned(),
    };
    match begin::by_push(app, &pushed).await? {
        Begun::Rollout(id) => outcome.rollout = Some(id),
        Begun::Nothing(why) => outcome.reason = Some(why),
        Begun::Later(why) => return Ok(Some(why)),
    }
    tracing::info!(
        image.reference = %format_args!("{}:{}", outcome.image, outcome.tag),
        webhook.source = source, rollout.id = outcome.rollout, reason = outcome.reason,
        "carried a push out"
    );
    Ok(None)
}

/// Records what came of a push that may run.
fn settle(
    tx: &mut Tx<'_>,
    delivery: &Delivery,
    outcome: &Outcome,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Ok(repository) = outcome.image.parse() else {
        return Ok(());
    };
    let push = Push {
        repository,
        tag: outcome.tag.clone(),
        digest: None,
    };
    let actor = actor(delivery);
    let origin = Origin {
        delivery: delivery.id,
        source: &delivery.vendor,
        actor: &actor,
    };
    let detail = json!({"rollout": outcome.rollout, "reason": outcome.reason});
    pushes::tell(tx, "image.webhook_settled", &push, &origin, detail, now)
}
