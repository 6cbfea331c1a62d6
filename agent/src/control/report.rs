//! Owns telling the current state: on change, and as a heartbeat. Only the newest state is ever sent.

use holdfast_proto::current::{CurrentState, SystemReport};

use super::client::{Again, Client, ClientError};
use crate::clock::{Clock, Randomness};
use crate::enrolment::Enrolment;
use crate::fault::chain;
use crate::journal::Journal;
use crate::retry::{Backoff, jittered_ms};
use crate::shared::Shared;
use crate::system::Machine;

/// Changes within this time go into one report.
const SETTLE_MS: u64 = 200;
/// Failures are retried from about a second up to two minutes apart.
const RETRY_MIN_MS: u64 = 1_000;
const RETRY_MAX_MS: u64 = 120_000;

/// The loop that tells.
pub struct Reporter<'a, C, R> {
    /// The connection.
    pub client: &'a Client,
    /// Who tells.
    pub enrolment: &'a Enrolment,
    /// Where the report's number comes from.
    pub journal: &'a Journal,
    /// What is told.
    pub shared: &'a Shared,
    /// Time.
    pub clock: &'a C,
    /// Randomness.
    pub random: &'a R,
    /// Time between two reports when nothing changes.
    pub heartbeat_ms: u64,
}

impl<C: Clock, R: Randomness> Reporter<'_, C, R> {
    /// Tells again and again; ends only by being dropped.
    pub async fn run(&self) {
        let mut backoff = Backoff::new(RETRY_MIN_MS, RETRY_MAX_MS, self.random.number());
        let mut machine = None;
        let mut pause_ms = self.heartbeat_ms;
        loop {
            // While the server is away changes wait with the rest: the newest state is sent later.
            if backoff.failures() > 0 {
                self.clock.sleep_ms(pause_ms).await;
            } else {
                tokio::select! {
                    () = self.shared.report.notified() => {}
                    () = self.clock.sleep_ms(pause_ms) => {}
                }
                self.clock.sleep_ms(SETTLE_MS).await;
            }
            pause_ms = match self.once(&mut machine).await {
                Ok(()) => {
                    backoff.reset();
                    jittered_ms(self.heartbeat_ms, self.random.number())
                }
                Err(error) => after(&error, &mut backoff),
            };
        }
    }

    /// Tells once.
    pub async fn once(&self, machine: &mut Option<Machine>) -> Result<(), ClientError> {
        let number = self
            .journal
            .next_sequence()
            .and_then(|sequence| Ok((sequence, self.journal.name()?)));
        let Ok((sequence, journal)) = number else {
            // Without a number that only grows a report could hide a newer one.
            tracing::error!("the journal gives no report number; nothing is reported");
            return Ok(());
        };
        let state = self.state(sequence, journal, machine);
        let Enrolment { uuid, token, .. } = self.enrolment;
        self.client.report(uuid, token, &state).await
    }

    fn state(&self, sequence: u64, journal: String, machine: &mut Option<Machine>) -> CurrentState {
        let view = self.shared.view();
        let system: Option<SystemReport> = view.machine.as_ref().and_then(|(platform, root)| {
            if machine.is_none() {
                *machine = Machine::new(root);
            }
            machine.as_mut().map(|machine| machine.read(platform))
        });
        let mut holds = view.holds.clone();
        holds.extend(self.shared.notices());
        CurrentState {
            sequence,
            journal,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: view.generation,
            target_etag: view.etag.clone(),
            status: view.status,
            apps: view.apps.clone(),
            steps: view.steps.iter().map(|step| step.text.clone()).collect(),
            holds,
            pulls: self.shared.pulls(),
            system,
            engine: view.engine.clone(),
        }
    }
}

fn after(error: &ClientError, backoff: &mut Backoff) -> u64 {
    let own = backoff.next_ms();
    let pause_ms = match error.retry() {
        Again::AfterMs(asked) => asked.max(own),
        Again::Never => own.max(RETRY_MAX_MS / 2),
        Again::Later => own,
    };
    if backoff.failures() == 1 {
        tracing::warn!(error = %chain(error), retry_ms = pause_ms, "reporting failed");
    }
    pause_ms
}
