//! Owns an engine in memory for fast tests: what dockerd was measured to do, on a clock of the test's.
//!
//! A model, not an engine: it runs nothing. `tests/tests/conformance.rs` asks it and a real engine the
//! same, so that it cannot drift. Not part of the agent as shipped (cargo feature `fake`).

mod calls;
mod controls;
mod daemon;
mod images;
mod launch;
mod make;
mod world;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use tokio::sync::Notify;

use super::{EngineContainer, EngineError, Operation};
use crate::clock::Clock;

use daemon::Answer;
use world::{Daemon, World};

pub use calls::changes;
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

/// What a test lets happen at a call.
pub type Disturbance<C> = Box<dyn FnOnce(&FakeEngine<C>)>;

/// When something happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The engine has not got it yet.
    Before,
    /// The engine did it and has not answered yet.
    After,
}

/// Sees every call that may change something, the containers before it and after it.
pub type Observer = Box<dyn Fn(&Call, &[EngineContainer], &[EngineContainer])>;

/// An engine in memory.
pub struct FakeEngine<C> {
    clock: C,
    world: RefCell<World>,
    calls: RefCell<Vec<Call>>,
    changing: Cell<usize>,
    disturbances: RefCell<BTreeMap<(usize, Moment), Disturbance<C>>>,
    observer: RefCell<Option<Observer>>,
    /// Told when the agent died at a call.
    pub died: Notify,
    changed: Notify,
    events_are_lost: Cell<bool>,
    agent_dies: Cell<bool>,
    answer_is_lost: Cell<bool>,
}

impl<C: Clock> FakeEngine<C> {
    /// An engine with nothing in it. `seed` decides what a real one leaves to chance.
    pub fn new(clock: C, seed: u64) -> Self {
        Self {
            clock,
            world: RefCell::new(World::new(seed)),
            calls: RefCell::default(),
            changing: Cell::new(0),
            disturbances: RefCell::default(),
            observer: RefCell::new(None),
            died: Notify::new(),
            changed: Notify::new(),
            events_are_lost: Cell::new(false),
            agent_dies: Cell::new(false),
            answer_is_lost: Cell::new(false),
        }
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.borrow().clone()
    }

    /// How many calls were made so far.
    pub fn count(&self) -> usize {
        self.calls.borrow().len()
    }

    /// How many of them change something.
    pub fn changes(&self) -> usize {
        self.changing.get()
    }

    /// Lets something happen at the `number`-th call from the first.
    pub fn disturb(&self, number: usize, moment: Moment, what: Disturbance<C>) {
        self.disturbances
            .borrow_mut()
            .insert((number, moment), what);
    }

    /// Forgets what was to happen and has not happened yet.
    pub fn calm_down(&self) {
        self.disturbances.borrow_mut().clear();
    }

    /// Inside a disturbance: the agent dies in this call, which never returns.
    pub fn kill_agent(&self) {
        self.agent_dies.set(true);
    }

    /// Inside a disturbance after the effect: the engine did it, and answers 500.
    pub fn lose_answer(&self) {
        self.answer_is_lost.set(true);
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
        let number = self.count() + 1;
        self.calls.borrow_mut().push(call.clone());
        let changes = usize::from(calls::changes(operation));
        self.changing.set(self.changing.get() + changes);
        self.clock.sleep_ms(CALL_MS).await;
        self.disturbed(operation, (number, Moment::Before)).await?;
        self.answers(operation).await?;
        let answer = self.effect(&call, effect);
        self.disturbed(operation, (number, Moment::After)).await?;
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
        let observer = observer.as_ref().filter(|_| calls::changes(call.operation));
        let (before, answer, after) = self.by_hand(|world, now_ms| {
            let before = observer.map(|_| world.described(now_ms));
            let answer = effect(world, now_ms);
            let after = observer.map(|_| world.described(now_ms));
            (before, answer, after)
        });
        if let Some(((before, after), observer)) = before.zip(after).zip(observer) {
            observer(call, &before, &after);
        }
        answer
    }

    async fn disturbed(
        &self,
        operation: Operation,
        at: (usize, Moment),
    ) -> Result<(), EngineError> {
        let what = self.disturbances.borrow_mut().remove(&at);
        if let Some(what) = what {
            what(self);
        }
        if self.agent_dies.take() {
            self.died.notify_one();
            std::future::pending::<()>().await;
        }
        if self.answer_is_lost.take() {
            return Err(EngineError::Refused {
                operation,
                status: 500,
                message: "the answer was lost".to_owned(),
            });
        }
        Ok(())
    }

    /// Whether the engine's program answers, in the time that the agent waits for it.
    async fn answers(&self, operation: Operation) -> Result<(), EngineError> {
        self.answers_now(operation)?;
        let Daemon::Hung(until_ms) = self.world.borrow().daemon else {
            return Ok(());
        };
        let timeout_ms = calls::timeout_ms(operation);
        let left_ms = until_ms.map(|at| at.saturating_sub(self.clock.monotonic_ms()));
        if let Some(left_ms) = left_ms.filter(|left_ms| *left_ms < timeout_ms) {
            self.clock.sleep_ms(left_ms).await;
            return self.answers_now(operation);
        }
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
            Daemon::Up | Daemon::Hung(_) => Ok(()),
            Daemon::Gone(_) => Err(EngineError::Unreachable {
                operation,
                source: "connection refused".into(),
            }),
        }
    }
}
