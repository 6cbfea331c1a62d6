//! Waiting: for a condition, with a deadline, saying at the end what was seen last.
//!
//! It refuses to wait without a deadline and to fail without naming what it waited for.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Pause between two looks: short against anything a test waits for, long against a look's cost.
pub const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What one look found: the thing itself, or a word on what was there instead.
pub trait Seen {
    /// What the caller gets when the wait is over.
    type Thing;
    /// Splits the look into its outcome.
    fn seen(self) -> Result<Self::Thing, String>;
}

impl<T> Seen for Option<T> {
    type Thing = T;
    fn seen(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing yet".to_owned())
    }
}

impl<T, E: Debug> Seen for Result<T, E> {
    type Thing = T;
    fn seen(self) -> Result<T, String> {
        self.map_err(|last| format!("{last:?}"))
    }
}

impl Seen for bool {
    type Thing = ();
    fn seen(self) -> Result<(), String> {
        self.then_some(()).ok_or_else(|| "false".to_owned())
    }
}

/// Looks until `look` finds something; an error names `what` and the last look after `deadline`.
///
/// A single look that hangs is cut off at the deadline too.
pub async fn try_wait_for<S, F, Fut>(
    what: &str,
    deadline: Duration,
    mut look: F,
) -> anyhow::Result<S::Thing>
where
    S: Seen,
    F: FnMut() -> Fut,
    Fut: Future<Output = S>,
{
    let end = Instant::now() + deadline;
    let mut last = "no look came back".to_owned();
    loop {
        match timeout_at(end, look()).await {
            Ok(found) => match found.seen() {
                Ok(thing) => return Ok(thing),
                Err(instead) => last = instead,
            },
            Err(_) => last = format!("the last look hung; before it: {last}"),
        }
        if Instant::now() >= end {
            anyhow::bail!("waited {deadline:?} for {what}; last seen: {last}");
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// As [`try_wait_for`], but a test that waited in vain ends here.
///
/// # Panics
/// When the deadline passes, with what was awaited and the last observation.
#[track_caller]
pub fn wait_for<S, F, Fut>(
    what: &str,
    deadline: Duration,
    look: F,
) -> impl Future<Output = S::Thing>
where
    S: Seen,
    F: FnMut() -> Fut,
    Fut: Future<Output = S>,
{
    let place = std::panic::Location::caller();
    async move {
        match try_wait_for(what, deadline, look).await {
            Ok(thing) => thing,
            Err(error) => panic!("{place}: {error}"),
        }
    }
}
