//! Owns the work in the background: each task is one loop, woken by a signal or a timer.
//!
//! A task takes no input: whatever woke it, it looks at the store again. Refuses to run twice at
//! once in one process.

mod feed;
mod note_seen;
pub mod refresh_tags;

use tokio::task::JoinSet;

use crate::app::Shared;

/// Starts every task; they end when the program is asked to.
pub fn start(app: &Shared) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(feed::run(app.clone()));
    tasks.spawn(note_seen::run(app.clone()));
    tasks.spawn(refresh_tags::run(app.clone()));
    tasks
}
