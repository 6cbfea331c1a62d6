//! Owns the proof of a release: a look at the engine and an answer of the control API, within a bound.

use super::{PROOF_MS, SelfUpdate};
use crate::clock::Clock;
use crate::reserve::Reserve;
use crate::shared::Shared;

/// How often is asked whether both have happened.
const LOOK_MS: u64 = 100;
/// A confirmed program that ran so long works, also while the engine is away.
const LIVES_MS: u64 = 60_000;

impl SelfUpdate {
    /// Proves this program, then waits for ever; ends only when it is to make place for the one before it.
    pub async fn prove<C: Clock>(&self, shared: &Shared, clock: &C, reserve: &Reserve) {
        while self.is_on_trial() {
            let late = clock.monotonic_ms() >= PROOF_MS;
            let (looks, hears) = (shared.has_looked(), shared.hears());
            if looks && hears {
                match self.confirm(clock.now()) {
                    Ok(()) => {
                        tracing::info!("this agent proved itself and stays");
                        shared.reconcile.notify_one();
                        shared.report.notify_one();
                        break;
                    }
                    // Its deadline decides if that does not help.
                    Err(error) => {
                        tracing::error!(%error, "that this agent proved itself cannot be written down");
                        reserve.give_up();
                    }
                }
            } else if late {
                let reason = match (looks, hears) {
                    (false, false) => "it reached neither the engine nor the control API",
                    (false, true) => "it did not reach the container engine",
                    (true, _) => "it did not hear from the control API",
                };
                tracing::error!("this agent makes place for the one before it: {reason}");
                match self.give_back(reason, clock.now()) {
                    Ok(()) => return self.make_place(),
                    Err(error) => {
                        tracing::error!(%error, "that this agent reached nobody cannot be written down");
                        reserve.give_up();
                    }
                }
            }
            clock.sleep_ms(LOOK_MS).await;
        }
        while self.counts_starts() {
            if (shared.has_looked() || clock.monotonic_ms() >= LIVES_MS)
                && let Err(error) = self.note_good_start()
            {
                tracing::warn!(%error, "that this agent works cannot be written down");
                clock.sleep_ms(LIVES_MS).await;
            }
            clock.sleep_ms(LOOK_MS).await;
        }
        std::future::pending::<()>().await;
    }

    fn make_place(&self) {
        self.on_trial.set(false);
        self.begun.set(true);
    }

    fn counts_starts(&self) -> bool {
        let slots = self.slots.borrow();
        let current = slots.current.as_ref();
        current.is_some_and(|current| current.place == self.launched.place && current.starts > 0)
    }
}
