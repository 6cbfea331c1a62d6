//! Owns the work in the background: each task is one loop, woken by a signal or a timer.
//!
//! A task takes no input: whatever woke it, it looks at the store again. Refuses to run twice at
//! once in one process, and to be lost by a panic.

pub mod advance_rollouts;
pub mod deliver;
mod feed;
mod note_seen;
pub mod notify;
pub mod prune;
pub mod refresh_tags;
pub mod watch_presence;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::Shared;
use crate::telemetry::Metrics;

/// Rest of a task that panicked: what it fell over is likely still there, and spinning helps nobody.
const PANIC_PAUSE: Duration = Duration::from_secs(5);

/// Starts every task; they end when the program is asked to.
pub fn start(app: &Shared) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    keep(&mut tasks, app, "advance_rollouts", advance_rollouts::run);
    keep(&mut tasks, app, "deliver", deliver::run);
    keep(&mut tasks, app, "feed", feed::run);
    keep(&mut tasks, app, "note_seen", note_seen::run);
    keep(&mut tasks, app, "notify", notify::run);
    keep(&mut tasks, app, "refresh_tags", refresh_tags::run);
    keep(&mut tasks, app, "watch_presence", watch_presence::run);
    keep(&mut tasks, app, "prune", prune::run);
    tasks
}

fn keep<F>(
    tasks: &mut JoinSet<()>,
    app: &Shared,
    name: &'static str,
    run: impl Fn(Shared) -> F + Send + Sync + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let app = app.clone();
    tasks.spawn(async move {
        let stopping = app.stopping.clone();
        again_after_panics(name, &app.metrics, stopping, || run(app.clone())).await;
    });
}

/// Runs a task to its end, again from its beginning as often as it panics: a program whose cache is not kept
/// true any more, or whose rollouts stand still, looks well from outside.
async fn again_after_panics<F: Future<Output = ()>>(
    name: &str,
    metrics: &Metrics,
    mut stopping: watch::Receiver<bool>,
    run: impl Fn() -> F,
) {
    while AssertUnwindSafe(async { run().await })
        .catch_unwind()
        .await
        .is_err()
    {
        metrics.panicked();
        tracing::error!(task = name, "a task panicked and begins again");
        tokio::select! {
            () = tokio::time::sleep(PANIC_PAUSE) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn c17_a_task_that_panics_begins_again() {
        let (_stop, stopping) = watch::channel(false);
        let metrics = Metrics::default();
        let runs = AtomicU32::new(0);
        again_after_panics("test", &metrics, stopping, || async {
            assert!(runs.fetch_add(1, Ordering::Relaxed) >= 2, "told to panic");
        })
        .await;
        assert_eq!(runs.into_inner(), 3);
        assert!(metrics.text().contains("holdfast_api_panics_total 2"));
    }
}
