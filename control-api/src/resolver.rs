//! Owns turning references into what is known of their images, and writing down what was learnt.
//!
//! The seam is [`Ask`]: one question to one registry. Refuses to forget a digest because a registry is
//! away, and to ask twice for one image with one login while an answer is fresh.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use holdfast_domain::refresh::{Rhythm, after_failure};
use holdfast_domain::resolution::{Failure, Key, Known, NOT_FOUND, learn};
use holdfast_domain::scope::Scope;
use holdfast_domain::sighting::Sighting;
use holdfast_proto::image::{Digest, Platform, Reference, ResolvedImage};
use holdfast_proto::time::Timestamp;
use holdfast_proto::updates::TagCandidate;
use holdfast_registry::{Identity, PullAccess};
use serde_json::json;

use crate::clock;
use crate::logins::Login;
use crate::secret::{self, Secret};
use crate::store::events::{self, NewEvent};
use crate::store::resolutions::{self, Resolution};
use crate::store::{StoreError, Tx, tag_history};
use crate::telemetry::Metrics;

/// Questions to registries at once: enough to hide their latency, too few to be a storm.
const QUESTIONS_AT_ONCE: usize = 8;
/// How long one question may take, all its requests together, while a person waits.
const QUESTION_LIMIT: Duration = Duration::from_secs(20);
/// How long a list of tags may take, with what the newest of them offer.
const TAGS_LIMIT: Duration = Duration::from_secs(45);
/// For how long a failure is the answer without asking again; never longer than answers are.
const FAILURE_TTL: Duration = Duration::from_secs(15);
/// Images whose last answer is kept at hand; the store has them all.
const KEPT_AT_HAND: usize = 4_096;

/// A registry's answer.
pub type Answer = Result<ResolvedImage, Failure>;

/// One question to one registry.
#[derive(Debug, Clone, Copy)]
pub struct Inquiry<'a> {
    /// What is asked for.
    pub reference: &'a Reference,
    /// What it meant when it was last asked for; the registry is asked only for a change.
    pub known: Option<&'a ResolvedImage>,
    /// Whose credentials to use; the configured ones without.
    pub who: Option<&'a Identity>,
}

/// Asks registries.
pub trait Ask: Send + Sync + std::fmt::Debug {
    /// What the reference points at now.
    fn ask<'a>(&'a self, inquiry: Inquiry<'a>) -> BoxFuture<'a, Answer>;

    /// How a device can pull this image, asked with these credentials or the configured ones.
    fn pull_access<'a>(
        &'a self,
        reference: &'a Reference,
        who: Option<&'a Identity>,
    ) -> BoxFuture<'a, Result<PullAccess, Failure>>;

    /// Newer tags of the same kind as the reference's, the newest first.
    fn newer_tags<'a>(
        &'a self,
        reference: &'a Reference,
        platform: &'a Platform,
        who: Option<&'a Identity>,
    ) -> BoxFuture<'a, Result<Vec<TagCandidate>, Failure>>;

    /// Whether there are configured credentials for a registry.
    fn has_login(&self, registry: &str) -> bool;

    /// The configured credentials that devices may be given, if they may.
    fn hand_out(&self, registry: &str) -> Option<(String, Secret)>;
}

/// An image, and with whose credentials it is asked for.
pub type Asked = (Key, Scope);

/// What is to be found out.
#[derive(Debug, Clone)]
pub struct Question {
    /// The reference, in any spelling.
    pub reference: Reference,
    /// Who asks.
    pub login: Login,
    /// What this login found out before.
    pub own: Option<Known>,
    /// What the reference meant when anybody was last told.
    pub image: Option<ResolvedImage>,
    /// For so many seconds an answer is taken for good; the server's setting counts without.
    pub ttl_s: Option<u32>,
}

impl Question {
    /// A question with what the store knows of its answer.
    pub fn prepare(
        tx: &mut Tx<'_>,
        reference: Reference,
        login: Login,
    ) -> Result<Self, StoreError> {
        let key = Key::of(&reference);
        let own = resolutions::find(tx, &key, &login.scope)?;
        let known = resolutions::recall(tx, &key, &login.scope)?;
        Ok(Self {
            reference,
            login,
            own: own.map(|row| row.known),
            image: known.and_then(|known| known.image),
            ttl_s: None,
        })
    }

    /// The same, for somebody who takes answers for good for so many seconds.
    #[must_use]
    pub fn fresh_for(self, ttl_s: Option<u32>) -> Self {
        Self { ttl_s, ..self }
    }
}

/// What was found out.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// When the registry was asked.
    pub at: Timestamp,
    /// What it said.
    pub answer: Answer,
}

/// Whether an answer of before will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// A fresh one will do.
    Cached,
    /// The registry is asked.
    Now,
}

/// Whoever holds the lock asks; the others use what it brings.
type Slot = Arc<tokio::sync::Mutex<Option<Finding>>>;

/// Asks registries for the references of a target, each once, some at a time.
#[derive(Debug)]
pub struct Resolver {
    registries: Arc<dyn Ask>,
    metrics: Arc<Metrics>,
    ttl_ms: i64,
    slots: Mutex<HashMap<(Key, String), Slot>>,
}

impl Resolver {
    /// A resolver that asks these registries and takes answers for good for `ttl`.
    pub fn new(registries: Arc<dyn Ask>, ttl: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            registries,
            metrics,
            ttl_ms: i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX),
            slots: Mutex::default(),
        }
    }

    /// For so many seconds answers are taken for good where nobody says otherwise.
    pub fn ttl_s(&self) -> u32 {
        u32::try_from(self.ttl_ms / 1_000).unwrap_or(u32::MAX)
    }

    /// The registries it asks.
    pub fn registries(&self) -> &dyn Ask {
        &*self.registries
    }

    /// Newer tags of the same kind as the reference's, the newest first.
    ///
    /// # Errors
    /// What the registry said, or that it said nothing in time.
    pub async fn newer_tags(
        &self,
        reference: &Reference,
        platform: &Platform,
        who: Option<&Identity>,
    ) -> Result<Vec<TagCandidate>, Failure> {
        let looked = self.registries.newer_tags(reference, platform, who);
        match tokio::time::timeout(TAGS_LIMIT, looked).await {
            Ok(found) => found,
            Err(_) => Err(late(reference, TAGS_LIMIT)),
        }
    }

    /// Answers for all the images that are asked for.
    pub async fn answers(
        &self,
        questions: Vec<Question>,
        freshness: Freshness,
    ) -> BTreeMap<Asked, Finding> {
        let wanted: BTreeMap<Asked, Question> = questions
            .into_iter()
            .map(|question| {
                let key = Key::of(&question.reference);
                ((key, question.login.scope.clone()), question)
            })
            .collect();
        futures_util::stream::iter(wanted)
            .map(|(asked, question)| async move {
                let finding = self.answer(&asked, &question, freshness).await;
                (asked, finding)
            })
            .buffer_unordered(QUESTIONS_AT_ONCE)
            .collect()
            .await
    }

    async fn answer(&self, (key, _): &Asked, question: &Question, freshness: Freshness) -> Finding {
        let arrived = clock::now();
        let ttl_ms = question.ttl_s.map_or(self.ttl_ms, |s| i64::from(s) * 1_000);
        let who = match &question.login.identity {
            None => None,
            Some(Ok(identity)) => Some(identity),
            Some(Err(failure)) => {
                return Finding {
                    at: arrived,
                    answer: Err(failure.clone()),
                };
            }
        };
        if freshness == Freshness::Cached
            && let Some(finding) = question.own.as_ref().and_then(stored)
            && is_fresh(&finding, ttl_ms, arrived)
        {
            self.metrics.registry_cache(true);
            return finding;
        }
        let slot = self.slot(key, who);
        let waited = slot.try_lock().is_err();
        let mut held = slot.lock().await;
        if let Some(finding) = &*held {
            // What came while we waited is the answer to our question, too.
            let came = waited && finding.at.since_ms(arrived) >= 0;
            let newest = question
                .own
                .as_ref()
                .is_none_or(|known| finding.at.since_ms(known.asked_at) >= 0);
            if came
                || (freshness == Freshness::Cached && newest && is_fresh(finding, ttl_ms, arrived))
            {
                self.metrics.registry_cache(true);
                return finding.clone();
            }
        }
        self.metrics.registry_cache(false);
        let at = clock::now();
        let answer = self
            .inquire(&question.reference, question.image.as_ref(), who)
            .await;
        let finding = Finding { at, answer };
        *held = Some(finding.clone());
        finding
    }

    async fn inquire(
        &self,
        reference: &Reference,
        known: Option<&ResolvedImage>,
        who: Option<&Identity>,
    ) -> Answer {
        let inquiry = Inquiry {
            reference,
            known,
            who,
        };
        match tokio::time::timeout(QUESTION_LIMIT, self.registries.ask(inquiry)).await {
            Ok(answer) => answer,
            Err(_) => Err(late(reference, QUESTION_LIMIT)),
        }
    }

    fn slot(&self, key: &Key, who: Option<&Identity>) -> Slot {
        let who = who.map_or_else(String::new, |who| who.id.clone());
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= KEPT_AT_HAND {
            // What nobody waits for makes room.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        Arc::clone(slots.entry((key.clone(), who)).or_default())
    }
}

/// Whether a finding is still taken for good, if good ones are for `ttl_ms`.
fn is_fresh(finding: &Finding, ttl_ms: i64, now: Timestamp) -> bool {
    let ttl_ms = match &finding.answer {
        Ok(_) => ttl_ms,
        Err(_) => ttl_ms.min(i64::try_from(FAILURE_TTL.as_millis()).unwrap_or(0)),
    };
    let age_ms = now.since_ms(finding.at);
    (0..ttl_ms).contains(&age_ms)
}

fn late(reference: &Reference, limit: Duration) -> Failure {
    let registry = reference.repository().registry();
    let seconds = limit.as_secs();
    Failure::new(
        "timed_out",
        format!("{registry} did not answer within {seconds} s"),
    )
}

/// The last good answer as the store knows it; another replica may have asked. Failures are asked about
/// again: what the store knows of them may be another login's.
fn stored(known: &Known) -> Option<Finding> {
    match (&known.image, &known.error) {
        (Some(image), None) => Some(Finding {
            at: known.asked_at,
            answer: Ok(image.clone()),
        }),
        (_, Some(_)) | (None, None) => None,
    }
}

/// What findings taught.
#[derive(Debug, Default)]
pub struct Learnt {
    /// What is known now.
    pub known: BTreeMap<Asked, Known>,
    /// Tags that mean another digest than before, with it.
    pub moved: Vec<(Key, Digest)>,
}

/// Writes findings down, with what they tell of their tags, and says what is known now.
pub fn record(
    tx: &mut Tx<'_>,
    findings: &BTreeMap<Asked, Finding>,
    rhythm: Rhythm,
) -> Result<Learnt, StoreError> {
    let mut learnt = Learnt::default();
    for ((key, scope), finding) in findings {
        let (now, moved) = learn_one(tx, key, scope, finding, rhythm)?;
        learnt.known.insert((key.clone(), scope.clone()), now);
        learnt
            .moved
            .extend(moved.map(|digest| (key.clone(), digest)));
    }
    Ok(learnt)
}

fn learn_one(
    tx: &mut Tx<'_>,
    key: &Key,
    scope: &Scope,
    finding: &Finding,
    rhythm: Rhythm,
) -> Result<(Known, Option<Digest>), StoreError> {
    let Finding { at, answer } = finding;
    let row = resolutions::find(tx, key, scope)?;
    let before = resolutions::recall(tx, key, scope)?;
    if let Some(row) = &row
        && (row.known.asked_at > *at || is_written(&row.known, finding))
    {
        // Somebody asked after us, or this is what is written down already.
        return Ok((before.unwrap_or_else(|| row.known.clone()), None));
    }
    let after = learn(before.as_ref(), answer.clone(), *at);
    let failed_before = row.as_ref().map_or(0, |row| row.attempts);
    let (attempts, next_attempt_at) = match answer {
        Ok(_) if key.is_pinned() => (0, None),
        Ok(_) => (0, rhythm.after_answer(*at, secret::dice())),
        Err(failure) => {
            let attempts = failed_before.saturating_add(1);
            (attempts, Some(after_failure(*at, attempts, failure)))
        }
    };
    resolutions::put(
        tx,
        &Resolution {
            key: key.clone(),
            scope: scope.clone(),
            known: after.clone(),
            attempts,
            next_attempt_at,
        },
    )?;
    let mut moved = None;
    if !key.is_pinned() {
        moved = tell(tx, key, before.as_ref(), &after, *at)?;
    }
    Ok((after, moved))
}

/// Whether a finding, perhaps one that was kept, is what a row says already.
fn is_written(known: &Known, Finding { at, answer }: &Finding) -> bool {
    known.asked_at == *at
        && match answer {
            Ok(image) => known.error.is_none() && known.image.as_ref() == Some(image),
            Err(failure) => known.error_code.as_ref() == Some(&failure.code),
        }
}

/// Tags that move, move back, vanish and return are events; answers what a tag moved to.
fn tell(
    tx: &mut Tx<'_>,
    key: &Key,
    before: Option<&Known>,
    after: &Known,
    now: Timestamp,
) -> Result<Option<Digest>, StoreError> {
    let gone = |known: &Known| known.error_code.as_deref() == Some(NOT_FOUND);
    let was_gone = before.is_some_and(gone);
    let digest = after.image.as_ref().map(|image| *image.top.digest());
    let (kind, detail) = match (&digest, &after.error) {
        (Some(digest), None) => {
            let sighting = tag_history::see(tx, key, digest, now)?;
            tracing::debug!(
                image.reference = %key, image.digest = digest.short(),
                image.is_manifest_list = after.image.as_ref().is_some_and(|image| image.top.index().is_some()),
                image.platforms = platforms(after), "a registry said what a tag means"
            );
            match sighting {
                Sighting::First | Sighting::Same if was_gone => {
                    ("image.tag_returned", json!({"digest": digest.to_string()}))
                }
                Sighting::First | Sighting::Same => return Ok(None),
                Sighting::Moved { from } => (
                    "image.tag_moved",
                    json!({"from": from.to_string(), "to": digest.to_string()}),
                ),
                Sighting::MovedBack { from, last_seen } => (
                    "image.tag_moved_back",
                    json!({"from": from.to_string(), "to": digest.to_string(),
                           "last_seen": last_seen}),
                ),
            }
        }
        (Some(digest), Some(_)) if gone(after) && !was_gone => {
            ("image.tag_vanished", json!({"digest": digest.to_string()}))
        }
        (Some(_), Some(_)) | (None, _) => return Ok(None),
    };
    tracing::info!(image.reference = %key, event = kind, %detail, "a tag is not what it was");
    let subject = key.to_string();
    events::record(tx, &NewEvent::about(kind, &subject, detail), now)?;
    let has_moved = kind.starts_with("image.tag_moved");
    Ok(digest.filter(|_| has_moved))
}

fn platforms(known: &Known) -> String {
    let images = known.image.iter().flat_map(|image| &image.platforms);
    let names: Vec<String> = images.map(|image| image.platform.to_string()).collect();
    names.join(",")
}
