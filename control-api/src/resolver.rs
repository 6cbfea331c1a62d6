//! Owns turning the references of a target into what is known of their images.
//!
//! The seam is [`Ask`]: one question to one registry. Refuses to forget a digest because a registry
//! is away, and to ask twice for one image.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use holdfast_domain::resolution::{Key, Known, learn};
use holdfast_domain::target::KnownImages;
use holdfast_proto::image::{Reference, ResolvedImage};
use holdfast_proto::time::Timestamp;

use crate::retry;
use crate::store::resolutions::{self, Resolution};
use crate::store::{StoreError, Tx};

/// Questions to registries at once: enough to hide their latency, too few to be a storm.
const QUESTIONS_AT_ONCE: usize = 8;
/// How long one question may take, all its requests together, while a person waits.
const QUESTION_LIMIT: Duration = Duration::from_secs(20);

/// A registry's answer; the error is its reason in words.
pub type Answer = Result<ResolvedImage, String>;

/// One question to one registry.
pub trait Ask: Send + Sync + std::fmt::Debug {
    /// What the reference points at now.
    fn ask<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;
}

/// Asks registries for the references of a target, each once, some at a time.
#[derive(Debug, Clone)]
pub struct Resolver {
    registries: Arc<dyn Ask>,
}

impl Resolver {
    /// A resolver that asks these registries.
    pub fn new(registries: Arc<dyn Ask>) -> Self {
        Self { registries }
    }

    /// Answers for all the images that `references` ask for.
    pub async fn answers(&self, references: &[Reference]) -> BTreeMap<Key, Answer> {
        let wanted: BTreeMap<Key, Reference> = references
            .iter()
            .map(|reference| (Key::of(reference), reference.clone()))
            .collect();
        futures_util::stream::iter(wanted)
            .map(|(key, reference)| {
                let registries = Arc::clone(&self.registries);
                async move { (key, question(&*registries, &reference).await) }
            })
            .buffer_unordered(QUESTIONS_AT_ONCE)
            .collect()
            .await
    }
}

async fn question(registries: &dyn Ask, reference: &Reference) -> Answer {
    match tokio::time::timeout(QUESTION_LIMIT, registries.ask(reference)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!(
            "{} did not answer within {} s",
            reference.repository().registry(),
            QUESTION_LIMIT.as_secs()
        )),
    }
}

/// Records answers in the store and says what is known now.
pub fn record(
    tx: &mut Tx<'_>,
    answers: &BTreeMap<Key, Answer>,
    now: Timestamp,
) -> Result<KnownImages, StoreError> {
    let mut known = KnownImages::new();
    for (key, answer) in answers {
        let before = resolutions::find(tx, key)?;
        let attempts = match (answer, &before) {
            (Ok(_), _) => 0,
            (Err(_), Some(before)) => before.attempts.saturating_add(1),
            (Err(_), None) => 1,
        };
        let after: Known = learn(before.as_ref().map(|it| &it.known), answer.clone(), now);
        let wait = i64::try_from(retry::unresolved_reference(attempts).as_millis());
        resolutions::put(
            tx,
            &Resolution {
                key: key.clone(),
                known: after.clone(),
                attempts,
                next_attempt_at: answer
                    .is_err()
                    .then(|| now.plus_ms(wait.unwrap_or(i64::MAX))),
            },
        )?;
        known.insert(key.clone(), after);
    }
    Ok(known)
}

/// What is known of these images without asking anybody.
pub fn recall(tx: &mut Tx<'_>, references: &[Reference]) -> Result<KnownImages, StoreError> {
    let mut known = KnownImages::new();
    for reference in references {
        let key = Key::of(reference);
        if let Some(resolution) = resolutions::find(tx, &key)? {
            known.insert(key, resolution.known);
        }
    }
    Ok(known)
}
