//! Facts about the control API: its store on both databases, its surface through the real router.

#![expect(
    unreachable_pub,
    reason = "nothing is reachable from outside a test program; `pub` marks what modules share"
)]
#![expect(
    clippy::unwrap_used,
    reason = "clippy allows it in test functions, but not in what they share"
)]

mod auth;
mod bodies;
mod contract;
mod enrolment;
mod history;
mod polls;
mod program;
mod pull_logins;
mod registries;
mod store;
mod support;
mod targets;
mod updates;
mod webhooks;
