//! Owns an engine in memory for fast tests: what dockerd was measured to do, on a clock of the test's.
//!
//! A model, not an engine: it runs nothing. `tests/tests/conformance.rs` asks it and a real engine the
//! same, so that it cannot drift. Not part of the agent as shipped (cargo feature `fake`).

mod calls;
mod controls;
mod daemon;
mod images;
mod make;
mod world;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use tokio::sync::Notify;

use super::{EngineContainer, EngineError, Operation};
use crate::clock::Clock;

use daemon::Answer;
use world::{Daemon, World};

pub use world::{Behaviour, Check, PullFault, Remote};

/// What a call takes when nothing waits: time moves, so that nothing is asked for ever at one moment.
const CALL_MS: u64 = 1;

/// One call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What was asked.
    pub operation: Operation,
    /// Of which container, network or image.
    pub subject: String,
}

/// What a test lets happen at a call, before or after its effect.
pub enum Disturbance<C> {
    /// The agent dies: the call never returns.
    Die,
    /// The engine did it, and answers 500.
    LoseAnswer,
    /// Anything that can be done to the engine.
    Do(Box<dyn FnOnce(&FakeEngine<C>)>),
}

/// Sees every change that a call made: the call, the containers before and after.
pub type Observer = Box<dyn Fn(&Call, &[EngineContainer], &[EngineContainer])>;

/// An engine in memory.
pub struct FakeEngine<C> {
    clock: C,
    world: RefCell<World>,
    calls: RefCell<Vec<Call>>,
    disturbances: RefCell<BTreeMap<(usize, bool), Disturbance<C>>>,
    observer: RefCell<Option<Observer>>,
    /// Told when the agent died at a call.
    pub died: Notify,
    changed: Notify,
    events_are_lost: Cell<bool>,
}

impl<C: Clock> FakeEngine<C> {
    /// An engine with nothing in it. `seed` decides what a real one leaves to chance.
    pub fn new(clock: C, seed: u64) -> Self {
        Self {
            clock,
            world: RefCell::new(World::new(seed)),
            calls: RefCell::default(),
            disturbances: RefCell::default(),
            observer: RefCell::new(None),
            died: Notify::new(),
            changed: Notify::new(),
            events_are_lost: Cell::new(false),
        }
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.borrow().clone()
    }

    /// Lets something happen at the `number`-th call from the first, after its effect or before.
    pub fn disturb(&self, number: usize, after: bool, what: Disturbance<C>) {
        self.disturbances
            .borrow_mut()
            .insert((number, after), what);
    }

    /// Shows every change to a test.
    pub fn observe(&self, observer: Observer) {
        *self.observer.borrow_mut() = Some(observer);
    }

    /// All containers, also strangers', without a call.
    pub fn look(&self) -> Vec<EngineContainer> {
        let now_ms = self.clock.monotonic_ms();
        let mut world = self.world.borrow_mut();
        world.settle(now_ms);
        world.described(now_ms)
    }

    /// Changes the world by a test's hand.
    fn by_hand<T>(&self, change: impl FnOnce(&mut World, u64) -> T) -> T {
        let now_ms = self.clock.monotonic_ms();
        let mut world = self.world.borrow_mut();
        world.settle(now_ms);
        let outcome = change(&mut world, now_ms);
        drop(world);
        self.changed.notify_one();
        outcome
    }

    /// One call: the time it takes, what disturbs it, its effect, its answer.
    async fn call<T>(
        &self,
        operation: Operation,
        subject: &str,
        effect: impl FnOnce(&mut World, u64) -> Answer<T>,
    ) -> Result<T, EngineError> {
        let call = Call {
            operation,
            subject: subject.to_owned(),
        };
        let number = self.calls.borrow().len() + 1;
        self.calls.borrow_mut().push(call.clone());
        self.clock.sleep_ms(CALL_MS).await;
        self.disturbed(operation, number, false).await?;
        self.answers(operation).await?;
        let answer = self.effect(&call, effect);
        self.disturbed(operation, number, true).await?;
        self.answers(operation).await?;
        answer.map_err(|refusal| EngineError::Refused {
            operation,
            status: refusal.status,
            message: refusal.message,
        })
    }

    fn effect<T>(
        &self,
        call: &Call,
        effect: impl FnOnce(&mut World, u64) -> Answer<T>,
    ) -> Answer<T> {
        let observer = self.observer.borrow();
        let (before, answer, after) = self.by_hand(|world, now_ms| {
            let before = observer.as_ref().map(|_| world.described(now_ms));
            let answer = effect(world, now_ms);
            let after = observer.as_ref().map(|_| world.described(now_ms));
            (before, answer, after)
        });
        if let Some(((before, after), observer)) = before.zip(after).zip(observer.as_ref()) {
            observer(call, &before, &after);
        }
        answer
    }

    async fn disturbed(
        &self,
        operation: Operation,
        number: usize,
        after: bool,
    ) -> Result<(), EngineError> {
        let what = self.disturbances.borrow_mut().remove(&(number, after));
        match what {
            None => Ok(()),
            Some(Disturbance::Die) => {
                self.died.notify_one();
                std::future::pending().await
            }
            Some(Disturbance::LoseAnswer) => Err(EngineError::Refused {
                operation,
                status: 500,
                message: "the answer was lost".to_owned(),
            }),
            Some(Disturbance::Do(what)) => {
                what(self);
                Ok(())
            }
        }
    }

    /// Whether the engine's program answers, in the time that the agent waits for it.
    async fn answers(&self, operation: Operation) -> Result<(), EngineError> {
        self.answers_now(operation)?;
        if self.world.borrow().daemon != Daemon::Hung {
            return Ok(());
        }
        let timeout_ms = calls::timeout_ms(operation);
        self.clock.sleep_ms(timeout_ms).await;
        Err(EngineError::TimedOut {
            operation,
            timeout_ms,
        })
    }

    fn answers_now(&self, operation: Operation) -> Result<(), EngineError> {
        let now_ms = self.clock.monotonic_ms();
        let mut world = self.world.borrow_mut();
        world.settle(now_ms);
        match world.daemon {
            Daemon::Up | Daemon::Hung => Ok(()),
            Daemon::Gone(_) => Err(EngineError::Unreachable {
                operation,
                source: "connection refused".into(),
            }),
        }
    }
}
