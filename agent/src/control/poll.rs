//! Owns asking for the target: accepted whole, kept on the disk, then announced; or refused whole.
//!
//! Refuses another device's target, an older generation, and everything it cannot understand; the
//! accepted target stays in force then.

use holdfast_proto::hash;
use holdfast_proto::id::DeviceId;
use holdfast_proto::problem::FieldError;
use holdfast_proto::target::TargetState;

use super::client::{Again, Answer, Client, ClientError, StateAnswer};
use crate::clock::{Clock, Randomness};
use crate::enrolment::Enrolment;
use crate::fault::{chain, foreign};
use crate::journal::{Journal, JournalError, StoredTarget};
use crate::retry::{Backoff, jittered_ms};
use crate::shared::{Accepted, JOURNAL_UNWRITABLE, Shared};

/// Failures are retried from about a second up to five minutes apart.
const RETRY_MIN_MS: u64 = 1_000;
const RETRY_MAX_MS: u64 = 300_000;
/// How often the target is asked for whatever its tag: a stuck cache must not freeze a device.
const WHOLE_INTERVAL_MS: u64 = 6 * 3_600_000;
/// After a new target the next question follows soon.
const ACCEPTED_PAUSE_MS: u64 = 500;
/// How many wrong fields of a refused target are named.
const MAX_FAULTS: usize = 5;

/// Notice: the newest target cannot be used.
const TARGET_REFUSED: &str = "target_refused";
/// Notice: the server does not know this device's token.
const UNAUTHORISED: &str = "unauthorised";

/// Why a target is not used.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not a target state.
    #[error("the target cannot be used: {}", listed(_0))]
    Invalid(Vec<FieldError>),
    /// It is for another device.
    #[error("the target is for device {0}")]
    OtherDevice(DeviceId),
    /// A newer one was accepted before.
    #[error("the target has generation {got}, but generation {have} was accepted before")]
    Older {
        /// Its generation.
        got: u64,
        /// The accepted one.
        have: u64,
    },
}

fn listed(faults: &[FieldError]) -> String {
    let named: Vec<String> = faults
        .iter()
        .take(MAX_FAULTS)
        .map(|fault| foreign(&fault.to_string()))
        .collect();
    named.join("; ")
}

/// Reads a target as a device must: whole, its own, and not older than what was accepted.
pub fn judge(
    body: &[u8],
    device: &DeviceId,
    accepted: Option<u64>,
) -> Result<TargetState, Refusal> {
    let target = TargetState::parse(body).map_err(Refusal::Invalid)?;
    if target.uuid != *device {
        return Err(Refusal::OtherDevice(target.uuid));
    }
    match accepted {
        Some(have) if target.generation < have => Err(Refusal::Older {
            got: target.generation,
            have,
        }),
        Some(_) | None => Ok(target),
    }
}

/// The target kept on the disk, if it can still be understood.
pub fn stored(journal: &Journal, device: &DeviceId) -> Result<Option<Accepted>, JournalError> {
    let Some(stored) = journal.target()? else {
        return Ok(None);
    };
    match judge(&stored.body, device, None) {
        Ok(target) => Ok(Some(Accepted {
            target,
            etag: stored.etag,
        })),
        Err(refusal) => {
            tracing::warn!(error = %refusal, "the stored target cannot be used");
            Ok(None)
        }
    }
}

/// The loop that asks.
pub struct Poller<'a, C, R> {
    /// The connection.
    pub client: &'a Client,
    /// Who asks.
    pub enrolment: &'a Enrolment,
    /// Where targets are kept.
    pub journal: &'a Journal,
    /// What is announced to.
    pub shared: &'a Shared,
    /// Time.
    pub clock: &'a C,
    /// Randomness.
    pub random: &'a R,
    /// Time between two questions, if a person set it.
    pub interval_ms: Option<u64>,
    /// Whether the first question is for the whole document, which a server answers without holding it back.
    pub in_a_hurry: bool,
}

/// What the loop remembers between two questions.
#[derive(Debug, Default)]
pub struct Asked {
    /// Tag of a refused target: it is not sent, and judged, each time.
    refused_etag: Option<String>,
    /// How often the server wants to be asked.
    server_interval_ms: Option<u64>,
}

/// What one question led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Polled {
    /// The target is the accepted one.
    Same,
    /// A new one was accepted.
    Accepted,
    /// A new one was refused.
    Refused,
}

/// A question led to nothing.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    /// The server did not answer as it should.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The target could not be kept, so it is not used.
    #[error("the new target could not be kept and is not used")]
    Journal(#[source] JournalError),
}

impl<C: Clock, R: Randomness> Poller<'_, C, R> {
    /// Asks again and again; ends only by being dropped.
    pub async fn run(&self) {
        let mut backoff = Backoff::new(RETRY_MIN_MS, RETRY_MAX_MS, self.random.number());
        let mut whole_at = self.clock.monotonic_ms() + WHOLE_INTERVAL_MS;
        let mut asked = Asked::default();
        let mut hurries = self.in_a_hurry;
        loop {
            let now = self.clock.monotonic_ms();
            let whole = now >= whole_at || std::mem::take(&mut hurries);
            if whole {
                whole_at = now + WHOLE_INTERVAL_MS;
            }
            let polled = self.once(whole, &mut asked).await;
            self.shared.note_asked();
            let good = matches!(polled, Ok(Polled::Same | Polled::Accepted));
            self.shared.note_heard(good);
            let pause_ms = match polled {
                Ok(polled) => {
                    self.shared.clear_notice(UNAUTHORISED);
                    if backoff.failures() > 0 {
                        tracing::info!(
                            attempt = backoff.failures(),
                            "the control API answers again"
                        );
                    }
                    backoff.reset();
                    let took_ms = self.clock.monotonic_ms().saturating_sub(now);
                    self.pause_ms(&polled, &asked, took_ms)
                }
                Err(error) => self.after(&error, &mut backoff),
            };
            tokio::select! {
                () = self.shared.poll.notified() => {}
                () = self.clock.sleep_ms(pause_ms) => {}
            }
        }
    }

    fn interval_ms(&self, asked: &Asked) -> u64 {
        let enrolled_ms = 1_000 * self.enrolment.poll_interval_seconds.max(1);
        self.interval_ms
            .or(asked.server_interval_ms)
            .unwrap_or(enrolled_ms)
    }

    /// A server that held its answer back has served the interval already.
    fn pause_ms(&self, polled: &Polled, asked: &Asked, took_ms: u64) -> u64 {
        let interval_ms = self.interval_ms(asked);
        let held = took_ms >= interval_ms / 2;
        match polled {
            Polled::Same if held => self.random.number() % (interval_ms / 10).max(1),
            // At once, but a server that changes its mind all the time is not asked all the time.
            Polled::Accepted => ACCEPTED_PAUSE_MS,
            Polled::Same | Polled::Refused => jittered_ms(interval_ms, self.random.number()),
        }
    }

    /// Asks once; `whole` asks for the document whatever its tag.
    pub async fn once(&self, whole: bool, asked: &mut Asked) -> Result<Polled, PollError> {
        let accepted = self.shared.target();
        let etag = asked.refused_etag.as_deref().or_else(|| {
            accepted
                .as_ref()
                .and_then(|accepted| accepted.etag.as_deref())
        });
        let Enrolment { uuid, token, .. } = self.enrolment;
        let etag = etag.filter(|_| !whole);
        let wait_ms = self.interval_ms(asked);
        let answer = self.client.state(uuid, token, etag, wait_ms).await?;
        let Answer {
            state,
            interval_seconds,
        } = answer;
        asked.server_interval_ms = interval_seconds.map(|seconds| seconds.saturating_mul(1_000));
        let StateAnswer::Target { body, etag } = state else {
            tracing::debug!("the target has not changed");
            return Ok(Polled::Same);
        };
        let generation = accepted.as_ref().map(|accepted| accepted.target.generation);
        let target = match judge(&body, uuid, generation) {
            Ok(target) => target,
            Err(refusal) => {
                tracing::error!(
                    error = %refusal,
                    "a target was refused; the accepted one stays in force"
                );
                self.shared.notice(TARGET_REFUSED, &refusal.to_string());
                asked.refused_etag = etag;
                return Ok(Polled::Refused);
            }
        };
        asked.refused_etag = None;
        self.shared.clear_notice(TARGET_REFUSED);
        let fresh = Accepted {
            target,
            // A server without tags gets one made here: it never matches, but tells targets apart.
            etag: Some(etag.unwrap_or_else(|| hash::etag(&body))),
        };
        if accepted.as_deref() == Some(&fresh) {
            return Ok(Polled::Same);
        }
        self.keep(body, &fresh).map_err(|error| {
            let detail = format!("the new target is not used: {}", chain(&error));
            self.shared.notice(JOURNAL_UNWRITABLE, &detail);
            PollError::Journal(error)
        })?;
        self.shared.clear_notice(JOURNAL_UNWRITABLE);
        tracing::info!(
            generation = fresh.target.generation,
            services = fresh.target.services().count(),
            "a new target was accepted"
        );
        self.shared.announce(fresh);
        Ok(Polled::Accepted)
    }

    fn keep(&self, body: Vec<u8>, fresh: &Accepted) -> Result<(), JournalError> {
        self.journal.set_target(&StoredTarget {
            body,
            etag: fresh.etag.clone(),
            generation: fresh.target.generation,
            received_at: self.clock.now(),
        })
    }

    fn after(&self, error: &PollError, backoff: &mut Backoff) -> u64 {
        let own = backoff.next_ms();
        let (unauthorised, pause_ms) = match error {
            PollError::Client(client) => (
                client.is_unauthorised(),
                match client.retry() {
                    Again::AfterMs(asked) => asked.max(own),
                    // Nothing will change soon, but a person may: keep asking, rarely.
                    Again::Never => own.max(RETRY_MAX_MS / 2),
                    Again::Later => own,
                },
            ),
            PollError::Journal(_) => (false, own),
        };
        if unauthorised {
            let detail = "the control API does not accept this device's token: enrol it again";
            self.shared.notice(UNAUTHORISED, detail);
        }
        // The first failure is news, the hundredth is not.
        if backoff.failures() == 1 || unauthorised {
            tracing::warn!(
                error = %chain(error), attempt = backoff.failures(), retry_ms = pause_ms,
                "asking for the target failed; the accepted one stays in force"
            );
        } else {
            tracing::debug!(
                error = %chain(error), attempt = backoff.failures(), retry_ms = pause_ms,
                "asking for the target failed again"
            );
        }
        pause_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceId {
        "00000000-0000-4000-8000-000000000001".parse().unwrap()
    }

    fn body(uuid: &str, generation: u64) -> Vec<u8> {
        format!(r#"{{"uuid":"{uuid}","generation":{generation},"apps":{{}}}}"#).into_bytes()
    }

    #[test]
    fn accepts_the_same_and_newer_generations_only() {
        let own = device().to_string();
        assert!(judge(&body(&own, 3), &device(), None).is_ok());
        assert!(judge(&body(&own, 3), &device(), Some(3)).is_ok());
        assert!(matches!(
            judge(&body(&own, 2), &device(), Some(3)),
            Err(Refusal::Older { got: 2, have: 3 })
        ));
    }

    #[test]
    fn refuses_another_devices_target_and_what_is_no_target() {
        let other = "00000000-0000-4000-8000-000000000002";
        assert!(matches!(
            judge(&body(other, 1), &device(), None),
            Err(Refusal::OtherDevice(_))
        ));
        for nonsense in ["", "<html>", "{}", r#"{"apps":{}}"#] {
            assert!(matches!(
                judge(nonsense.as_bytes(), &device(), None),
                Err(Refusal::Invalid(_))
            ));
        }
    }
}
