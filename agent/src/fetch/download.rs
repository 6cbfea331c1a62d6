//! Owns bringing one blob into the spool: from its sources in their order, again and again where it broke
//! off, until its bytes are proven.
//!
//! Refuses a source that stays silent, drips, or gave other bytes, and to go on for ever.

use std::cell::RefCell;

use holdfast_proto::image::Digest;
use holdfast_proto::time::Timestamp;
use holdfast_registry::RetryAdvice;
use tokio::sync::watch;

use super::allowance::Allowance;
use super::pace::Pace;
use super::source::{BlobSource, SourceError, Wanted};
use super::spool::{Held, Part, Spool, SpoolError};
use crate::clock::Clock;
use crate::retry::Backoff;

/// Between two rounds through the sources: registries are shared.
const ROUND_MIN_MS: u64 = 1_000;
const ROUND_MAX_MS: u64 = 60_000;
/// Rounds in which not one byte came, after which the pull is given up: its place is free for another, what
/// came stays, and the agent's own back-off goes on.
const MOST_EMPTY_ROUNDS: u32 = 4;

/// How far a blob is, for whoever reads it while it grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes are in the file; the end is not proven yet.
    Growing(u64),
    /// All of it, proven.
    Whole,
    /// It will not come: why, for people.
    Failed(String),
}

/// Why a blob did not come.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Every source failed; the last one said this.
    #[error("no source has it: {0}")]
    Sources(SourceError),
    /// The day's bytes are used up.
    #[error("today's bytes are used up, more come from {until} on")]
    UsedUp {
        /// When more may come.
        until: Timestamp,
    },
    /// There is no source at all.
    #[error("there is nobody to ask")]
    Nobody,
}

/// One blob to bring.
pub struct Download<'a, C> {
    /// Which.
    pub wanted: &'a Wanted,
    /// Where it is kept.
    pub spool: &'a Spool,
    /// What must stay in the spool for others.
    pub kept: &'a dyn Fn() -> Vec<Digest>,
    /// Who may have it, the nearest first.
    pub sources: &'a [&'a dyn BlobSource],
    /// Time.
    pub clock: &'a C,
    /// How much of the line all downloads together may use.
    pub allowance: &'a RefCell<Allowance>,
    /// The caller's randomness.
    pub seed: u64,
}

/// What one source did.
enum Outcome {
    Whole,
    /// Other bytes than those of the digest: it is not asked again.
    Lied(SpoolError),
    /// Other bytes in all, of which it gave the end: who is to blame is not known yet.
    Mixed(SpoolError),
    Failed(SourceError),
}

impl<C: Clock> Download<'_, C> {
    /// Brings it, telling how far it is.
    ///
    /// # Errors
    /// As [`DownloadError`] says. What came stays in the spool, except wrong bytes.
    pub async fn run(&self, progress: &watch::Sender<Progress>) -> Result<(), DownloadError> {
        let outcome = self.bring(progress).await;
        progress.send_replace(match &outcome {
            Ok(()) => Progress::Whole,
            Err(error) => Progress::Failed(error.to_string()),
        });
        outcome
    }

    async fn bring(&self, progress: &watch::Sender<Progress>) -> Result<(), DownloadError> {
        let mut backoff = Backoff::new(ROUND_MIN_MS, ROUND_MAX_MS, self.seed);
        // Who is asked, in this order; liars are not.
        let mut order: Vec<&dyn BlobSource> = self.sources.to_vec();
        let mut empty_rounds = 0;
        // Kept from one source to the next: what is there is hashed once.
        let mut part = None;
        loop {
            let mut last = None;
            let mut is_hopeless = true;
            let before = self.length();
            let mut next = 0;
            while let Some(source) = order.get(next).copied() {
                let wrong = |error: SpoolError, retry| SourceError {
                    source_name: source.name().to_owned(),
                    why: error.to_string(),
                    retry,
                    wants_login: false,
                    is_general: false,
                };
                match self.take(source, &mut part, progress).await? {
                    Outcome::Whole => return Ok(()),
                    Outcome::Failed(error) => {
                        self.tell(&error.to_string());
                        is_hopeless &= error.retry == RetryAdvice::Never;
                        last = Some(error);
                        next += 1;
                    }
                    Outcome::Lied(error) => {
                        source.distrust();
                        self.tell(&format!("{} lied: {error}", source.name()));
                        last = Some(wrong(error, RetryAdvice::Never));
                        order.remove(next);
                    }
                    Outcome::Mixed(error) => {
                        // It goes first in the next round, and gives everything itself.
                        self.tell(&format!(
                            "somebody lied, {} or one before: {error}",
                            source.name()
                        ));
                        last = Some(wrong(error, RetryAdvice::Later));
                        order[..=next].rotate_right(1);
                        is_hopeless = false;
                        break;
                    }
                }
            }
            let last = last.ok_or(DownloadError::Nobody)?;
            if self.length() > before {
                empty_rounds = 0;
                backoff.reset();
            } else {
                empty_rounds += 1;
            }
            // Another login is the caller's to find.
            if is_hopeless || last.wants_login || empty_rounds >= MOST_EMPTY_ROUNDS {
                return Err(DownloadError::Sources(last));
            }
            let wait_ms = match last.retry {
                RetryAdvice::After(wait) => u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                RetryAdvice::Later | RetryAdvice::Never => backoff.next_ms(),
            };
            if wait_ms > ROUND_MAX_MS {
                // Others may use the place meanwhile.
                return Err(DownloadError::Sources(last));
            }
            self.clock.sleep_ms(wait_ms).await;
        }
    }

    fn tell(&self, why: &str) {
        tracing::debug!(
            blob = %self.wanted.digest, bytes = self.length(), of = self.wanted.size, error = why,
            "a source gave a blob not, or not to the end"
        );
    }

    fn length(&self) -> u64 {
        self.spool.length(self.wanted.digest).unwrap_or(0)
    }

    /// Takes from one source as long as it gives.
    async fn take(
        &self,
        source: &dyn BlobSource,
        held: &mut Option<Box<Part>>,
        progress: &watch::Sender<Progress>,
    ) -> Result<Outcome, DownloadError> {
        let Wanted { digest, size, .. } = *self.wanted;
        let mut part = match held.take() {
            Some(part) => part,
            None => match self.spool.hold(digest, size).await? {
                Held::Whole(_) => return Ok(Outcome::Whole),
                Held::Part(part) => part,
            },
        };
        self.is_allowed()?;
        let mut kept = (self.kept)();
        kept.push(digest);
        self.spool.make_room(size - part.length(), &kept)?;
        progress.send_replace(Progress::Growing(part.length()));
        let is_all_its_own = part.length() == 0;
        if part.length() < size
            && let Err(error) = self.fill(&mut part, source, progress).await?
        {
            *held = Some(part);
            return Ok(Outcome::Failed(error));
        }
        match part.finish() {
            Ok(_) => Ok(Outcome::Whole),
            Err(error @ SpoolError::OtherBytes { .. }) if is_all_its_own => {
                Ok(Outcome::Lied(error))
            }
            Err(error @ SpoolError::OtherBytes { .. }) => Ok(Outcome::Mixed(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Counts bytes that came; how long to wait before more are taken, in microseconds.
    fn count(&self, now_ms: u64, bytes: u64) -> u64 {
        let at_us = now_ms.saturating_mul(1_000);
        let mut allowance = self.allowance.borrow_mut();
        allowance.take(self.clock.now(), at_us, bytes)
    }

    fn is_allowed(&self) -> Result<(), DownloadError> {
        let used_up = self.allowance.borrow_mut().used_up_until(self.clock.now());
        used_up.map_or(Ok(()), |until| Err(DownloadError::UsedUp { until }))
    }

    async fn fill(
        &self,
        part: &mut Part,
        source: &dyn BlobSource,
        progress: &watch::Sender<Progress>,
    ) -> Result<Result<(), SourceError>, DownloadError> {
        let mut stream = match source.open(self.wanted, part.length()).await {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error)),
        };
        if stream.at() != part.length() {
            // It cannot begin in the middle. What is there is given up: the reader has it already, and
            // is told when the new bytes are as far.
            part.start_over()
                .map_err(|error| self.spool.failed(error))?;
        }
        tracing::debug!(
            blob = %self.wanted.digest, from = part.length(), of = self.wanted.size, source = source.name(),
            "a blob comes"
        );
        let mut pace = Pace::new(self.clock.monotonic_ms());
        loop {
            let bytes = match stream.next().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            };
            part.append(&bytes)
                .map_err(|error| self.spool.failed(error))?;
            progress.send_replace(Progress::Growing(part.length()));
            let now_ms = self.clock.monotonic_ms();
            let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            pace.came(now_ms, count);
            if pace.is_too_slow(now_ms) {
                return Ok(Err(SourceError {
                    source_name: source.name().to_owned(),
                    why: "it is too slow".to_owned(),
                    retry: RetryAdvice::Later,
                    wants_login: false,
                    is_general: true,
                }));
            }
            let wait_us = self.count(now_ms, count);
            if wait_us >= 1_000 {
                self.clock.sleep_ms(wait_us / 1_000).await;
            }
            if part.length() < self.wanted.size {
                self.is_allowed()?;
            }
        }
    }
}

#[cfg(test)]
mod tests;
