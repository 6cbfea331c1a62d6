//! Owns the health probes of containers on trial: asks each at its own interval, all side by side.
//!
//! For the reconcile loop there are two calls. After each look, [`Prober::watch`] is told every
//! container that is on trial and has a probe; its answers are then in [`Prober::state`], for the
//! planner. While the loop waits, [`Prober::changed`] is one of the things it waits for: it ends
//! when an answer says something new. Dropping that future loses nothing.
//!
//! Refuses to decide: what a state means is the gate's business. Refuses to follow a redirect, to
//! use a proxy, or to read more of an answer than it needs.

mod http;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use holdfast_plan::ProbeState;
use holdfast_proto::spec::{Probe, ProbeAction};
use tokio::net::TcpStream;

use crate::clock::Clock;
use crate::engine::{Engine, EngineError, Executed};
use crate::fault::chain;

/// A running container whose probe the gate waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The engine's id of it.
    pub id: String,
    /// The engine's name of its present start.
    pub started_at: String,
    /// Where it can be reached.
    pub addresses: Vec<IpAddr>,
    /// What it is asked.
    pub probe: Probe,
}

/// What one question showed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Well,
    Failed(String),
    /// It can never be answered.
    CannotRun(String),
    /// The engine was away: that says nothing of the container.
    Unknown,
}

/// One container with the question that is asked of it, or waits for its time.
struct Watched<'a> {
    trial: Rc<Trial>,
    since_ms: u64,
    state: ProbeState,
    asking: Pin<Box<dyn Future<Output = Outcome> + 'a>>,
}

/// The containers on trial with what they answered.
pub struct Prober<'a, E, C> {
    engine: &'a E,
    clock: &'a C,
    watched: BTreeMap<String, Watched<'a>>,
}

impl<'a, E: Engine, C: Clock> Prober<'a, E, C> {
    /// Nothing is on trial yet.
    pub fn new(engine: &'a E, clock: &'a C) -> Self {
        Self {
            engine,
            clock,
            watched: BTreeMap::new(),
        }
    }

    /// Begins to ask what is new, and forgets what is not on trial any more.
    ///
    /// A container that was started again, or has another probe, is asked from the beginning.
    pub fn watch(&mut self, trials: Vec<Trial>) {
        let mut before = std::mem::take(&mut self.watched);
        for trial in trials {
            let known = before.remove(&trial.id).filter(|known| {
                known.trial.started_at == trial.started_at && known.trial.probe == trial.probe
            });
            let trial = Rc::new(trial);
            let watched = match known {
                Some(known) => Watched {
                    trial: trial.clone(),
                    ..known
                },
                None => Watched {
                    trial: trial.clone(),
                    since_ms: self.clock.monotonic_ms(),
                    state: ProbeState::default(),
                    asking: self.question(&trial, 0),
                },
            };
            self.watched.insert(trial.id.clone(), watched);
        }
    }

    /// What a container has answered so far; none if it is not on trial.
    pub fn state(&self, id: &str) -> Option<&ProbeState> {
        self.watched.get(id).map(|watched| &watched.state)
    }

    /// What every container on trial has answered so far.
    pub fn states(&self) -> BTreeMap<String, ProbeState> {
        let state = |(id, watched): (&String, &Watched<'a>)| (id.clone(), watched.state.clone());
        self.watched.iter().map(state).collect()
    }

    /// Ends when an answer changed a state; without anything on trial, never.
    pub async fn changed(&mut self) {
        loop {
            let (id, outcome) = poll_fn(|context| {
                for (id, watched) in &mut self.watched {
                    if let Poll::Ready(outcome) = watched.asking.as_mut().poll(context) {
                        return Poll::Ready((id.clone(), outcome));
                    }
                }
                Poll::Pending
            })
            .await;
            if self.note(&id, outcome) {
                return;
            }
        }
    }

    /// Takes an answer down and plans the next question; whether the state is another now.
    fn note(&mut self, id: &str, outcome: Outcome) -> bool {
        let now_ms = self.clock.monotonic_ms();
        let Some(watched) = self.watched.get(id) else {
            return false;
        };
        let trial = watched.trial.clone();
        let next = self.question(&trial, trial.probe.interval.as_millis());
        let Some(watched) = self.watched.get_mut(id) else {
            return false;
        };
        watched.asking = next;
        let starting =
            now_ms.saturating_sub(watched.since_ms) < trial.probe.start_period.as_millis();
        let after = after(&watched.state, outcome, &trial.probe, starting);
        let changed = after != watched.state;
        watched.state = after;
        changed
    }

    fn question(
        &self,
        trial: &Rc<Trial>,
        wait_ms: u64,
    ) -> Pin<Box<dyn Future<Output = Outcome> + 'a>> {
        let (engine, clock, trial) = (self.engine, self.clock, trial.clone());
        Box::pin(async move {
            if wait_ms > 0 {
                clock.sleep_ms(wait_ms).await;
            }
            ask(engine, clock, &trial).await
        })
    }
}

/// The state after an answer. Failures are counted up to the number that decides, so that a state
/// that cannot become worse wakes nobody.
fn after(before: &ProbeState, outcome: Outcome, probe: &Probe, starting: bool) -> ProbeState {
    let failed = |error: String, cannot_run: Option<String>| ProbeState {
        passed: false,
        failures_in_a_row: if starting {
            0
        } else {
            (before.failures_in_a_row + 1).min(probe.retries)
        },
        last_error: Some(error),
        cannot_run,
    };
    match outcome {
        Outcome::Unknown => before.clone(),
        Outcome::Well => ProbeState {
            passed: true,
            ..ProbeState::default()
        },
        Outcome::Failed(error) => failed(error, None),
        // What is missing at the start may still be put there.
        Outcome::CannotRun(error) if starting => failed(error, None),
        Outcome::CannotRun(error) => failed(error.clone(), Some(error)),
    }
}

/// Asks once.
async fn ask<E: Engine, C: Clock>(engine: &E, clock: &C, trial: &Trial) -> Outcome {
    let timeout_ms = trial.probe.timeout.as_millis();
    let at = |port: u16| {
        let addresses = trial.addresses.iter();
        addresses.map(move |ip| SocketAddr::new(*ip, port))
    };
    let answer = async {
        match &trial.probe.action {
            ProbeAction::Tcp(tcp) => any(at(tcp.port), connect).await,
            ProbeAction::Http(probe) => {
                any(at(probe.port), |address| http::get(address, probe)).await
            }
            ProbeAction::Exec(words) => executed(engine.exec(&trial.id, words, timeout_ms).await),
        }
    };
    // The engine bounds its own part of an exec, and knows best whether it was away.
    if let ProbeAction::Exec(_) = trial.probe.action {
        return answer.await;
    }
    tokio::select! {
        outcome = answer => outcome,
        () = clock.sleep_ms(timeout_ms) => Outcome::Failed(too_slow(timeout_ms)),
    }
}

fn too_slow(timeout_ms: u64) -> String {
    format!("no answer within {timeout_ms} ms")
}

/// Asks at one address after the other until one answers well.
async fn any<F: Future<Output = Result<(), String>>>(
    addresses: impl Iterator<Item = SocketAddr>,
    ask: impl Fn(SocketAddr) -> F,
) -> Outcome {
    let mut fault = "the engine knows no address of the container".to_owned();
    for address in addresses {
        match ask(address).await {
            Ok(()) => return Outcome::Well,
            Err(error) => fault = format!("{address}: {error}"),
        }
    }
    Outcome::Failed(fault)
}

async fn connect(address: SocketAddr) -> Result<(), String> {
    let connected = TcpStream::connect(address).await;
    connected.map(drop).map_err(|error| error.to_string())
}

fn executed(answer: Result<Executed, EngineError>) -> Outcome {
    match answer {
        Ok(Executed { exit_code, output }) => match exit_code {
            Some(0) => Outcome::Well,
            Some(code @ (Executed::NOT_RUNNABLE | Executed::NOT_FOUND)) => {
                Outcome::CannotRun(said(code, &output))
            }
            Some(code) => Outcome::Failed(said(code, &output)),
            None => Outcome::Failed("the program did not end in time".to_owned()),
        },
        Err(error) if error.is_engine_away() => Outcome::Unknown,
        Err(error) => Outcome::Failed(chain(&error)),
    }
}

fn said(code: i64, output: &str) -> String {
    if output.is_empty() {
        format!("exit code {code}")
    } else {
        format!("exit code {code}: {output}")
    }
}

#[cfg(test)]
mod tests;
