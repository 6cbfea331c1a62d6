//! Owns how rollouts begin: which policy and which devices, what the tag means, whether that may run, and who goes
//! when. Refuses a second rollout of a tag in one scope: a newer one takes the place of the one that is there.

mod plan;
mod record;

use std::collections::BTreeMap;

use holdfast_domain::resolution::{Key, Known};
use holdfast_proto::image::{Reference, Repository, ResolvedImage};

pub use plan::Plan;
use plan::{chosen, plan, plan_release, policy_of_release};
use record::{approve, insert, make_way, supersede};

use super::facts::may_not_run;
use crate::app::App;
use crate::clock;
use crate::resolver::{self, Freshness, Question};
use crate::store::audit::Actor;
use crate::store::db::StoreError;
use crate::store::devices;
use crate::store::rollouts as stored;

/// A tag that was pushed, or that means something else by now.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// Of which image.
    pub repository: Repository,
    /// Which.
    pub tag: String,
    /// Who says so: a vendor, `refresh`, `approval`.
    pub source: String,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// A rollout with this number.
    Rollout(i64),
    /// Nothing, and why.
    Nothing(String),
    /// Nothing yet, and why: its registry did not say what the tag means.
    Later(String),
}

/// A rollout to be begun.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The tag.
    pub key: Key,
    /// The policy; the one that is for the tag without.
    pub policy: Option<i64>,
    /// Only devices with these labels, beside what the policy says.
    pub selector: BTreeMap<String, String>,
    /// Only devices of this fleet.
    pub fleet: Option<String>,
    /// Who begins it.
    pub actor: Actor,
    /// Whether a person wants it, who may repeat what was rolled back, and needs no policy.
    pub is_ordered: bool,
}

/// Why nothing is begun.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// There is nothing to do.
    #[error("{0}")]
    Nothing(String),
    /// The image may not run.
    #[error("{0}")]
    NotApproved(String),
    /// What the tag means is not known.
    #[error("{0}")]
    Unresolved(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn nothing(why: impl Into<String>) -> Halt {
    Halt::Nothing(why.into())
}

/// Begins what a push asks for, if there is a policy for it.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn by_push(app: &App, pushed: &Pushed) -> Result<Begun, StoreError> {
    let wanted = Wanted {
        key: Key {
            registry: pushed.repository.registry().to_owned(),
            repository: pushed.repository.path().to_owned(),
            selector: pushed.tag.clone(),
        },
        policy: None,
        selector: BTreeMap::new(),
        fleet: None,
        actor: Actor {
            kind: "webhook",
            name: pushed.source.clone(),
            request_id: "push".to_owned(),
        },
        is_ordered: false,
    };
    match begin(app, &wanted).await {
        Ok(id) => Ok(Begun::Rollout(id)),
        Err(Halt::Nothing(why) | Halt::NotApproved(why)) => Ok(Begun::Nothing(why)),
        Err(Halt::Unresolved(why)) => Ok(Begun::Later(why)),
        Err(Halt::Store(error)) => Err(error),
    }
}

/// A release to be rolled out.
#[derive(Debug, Clone)]
pub struct ByRelease<'a> {
    /// Of which fleet.
    pub fleet: &'a str,
    /// Its number in the table.
    pub release_id: i64,
    /// Its number in the fleet.
    pub number: i64,
    /// The policy; batches of a tenth without.
    pub policy: Option<i64>,
    /// Who begins it.
    pub created_by: &'a str,
}

/// Begins the rollout of a fleet's release.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn by_release(app: &App, wanted: ByRelease<'_>) -> Result<Begun, StoreError> {
    let (fleet, by) = (wanted.fleet.to_owned(), wanted.created_by.to_owned());
    let (release, number, policy) = (wanted.release_id, wanted.number, wanted.policy);
    let (logins, now) = (app.logins.clone(), clock::now());
    let begun = app
        .store
        .transact(move |tx| {
            let by = Actor {
                kind: "operator",
                name: by.clone(),
                request_id: format!("release {number}"),
            };
            let (policy_id, policy) = policy_of_release(tx, policy)?;
            let plan = plan_release(tx, &logins, (&fleet, release), (policy_id, policy))?;
            let active = stored::active_release(tx, &plan.scope)?;
            supersede(tx, active, "a newer release takes its place", &by, now)?;
            let key = Key {
                registry: String::new(),
                repository: String::new(),
                selector: number.to_string(),
            };
            // Making a release is asking for what it names.
            insert(tx, (&key, &by, true), &plan, now)
        })
        .await;
    match begun {
        Ok(id) => {
            app.rollouts_soon.notify_one();
            Ok(Begun::Rollout(id))
        }
        Err(Halt::Nothing(why) | Halt::NotApproved(why) | Halt::Unresolved(why)) => {
            Ok(Begun::Nothing(why))
        }
        Err(Halt::Store(error)) => Err(error),
    }
}

/// Begins a rollout; answers its number.
///
/// # Errors
/// As [`Halt`] says; then nothing is stored but what the registry said.
pub async fn begin(app: &App, wanted: &Wanted) -> Result<i64, Halt> {
    let image = ask(app, wanted).await?;
    let (wanted, internal) = (wanted.clone(), app.pushes.internal.clone());
    let now = clock::now();
    let id = app
        .store
        .transact(move |tx| {
            let plan = plan(tx, &wanted, image.clone(), now)?;
            let tag = &wanted.key.selector;
            if let Some(why) = may_not_run(tx, &image.repository, tag, &internal, None)? {
                return Err(Halt::NotApproved(why));
            }
            make_way(tx, &wanted, &plan, image.top.digest(), now)?;
            approve(tx, &wanted, &image, now)?;
            let begun = (&wanted.key, &wanted.actor, wanted.is_ordered);
            insert(tx, begun, &plan, now)
        })
        .await?;
    app.rollouts_soon.notify_one();
    Ok(id)
}

/// Says what a rollout would be, and changes nothing.
///
/// # Errors
/// As [`Halt`] says.
pub async fn preview(app: &App, wanted: &Wanted) -> Result<Plan, Halt> {
    let image = ask(app, wanted).await?;
    let wanted = wanted.clone();
    let now = clock::now();
    app.store
        .read(move |tx| plan(tx, &wanted, image.clone(), now))
        .await
}

/// What the tag means now, asked with the login of a device that runs it.
async fn ask(app: &App, wanted: &Wanted) -> Result<ResolvedImage, Halt> {
    let (logins, asked) = (app.logins.clone(), wanted.clone());
    let question = app
        .store
        .read(move |tx| {
            let (_, _, found) = chosen(tx, &asked)?;
            let first = found.first().ok_or_else(|| nothing("no device runs it"))?;
            let device = devices::find(tx, first.device)?;
            let device = device.ok_or_else(|| nothing("no device runs it"))?;
            let reference: Reference = asked
                .key
                .reference()
                .ok_or_else(|| nothing("it is no image"))?;
            let login = logins.of_device(tx, &asked.key.registry, &device)?;
            Ok::<_, Halt>(Question::prepare(tx, reference, login)?)
        })
        .await?;
    let findings = app.resolver.answers(vec![question], Freshness::Now).await;
    let rhythm = app.rhythm;
    let learnt = app
        .store
        .transact(move |tx| resolver::record(tx, &findings, rhythm))
        .await?;
    let known: Option<Known> = learnt.known.into_values().next();
    match known {
        Some(Known {
            image: Some(image),
            error: None,
            ..
        }) => Ok(image),
        // What it meant before is not what was pushed.
        Some(Known { error, .. }) => {
            Err(Halt::Unresolved(error.unwrap_or_else(|| {
                "its registry did not say what the tag means".to_owned()
            })))
        }
        None => Err(Halt::Unresolved("its registry was not asked".to_owned())),
    }
}
