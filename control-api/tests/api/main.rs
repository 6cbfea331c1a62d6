//! Facts about the control API: its store on both databases, its surface through the real router.

#![expect(
    unreachable_pub,
    reason = "nothing is reachable from outside a test program; `pub` marks what modules share"
)]
#![expect(
    clippy::unwrap_used,
    reason = "clippy allows it in test functions, but not in what they share"
)]

mod approvals;
mod audit_chain;
mod auth;
mod backup;
mod bodies;
mod catalog;
mod compose;
mod contract;
mod deliveries;
mod enrolment;
mod faults_input;
mod faults_store;
mod faults_wire;
mod fleets;
mod generations;
mod history;
mod image_updates;
mod install;
mod notifications;
mod policies;
mod polls;
mod program;
mod pull_logins;
mod registries;
mod releases;
mod reports;
mod retention;
mod rollouts;
mod senders;
mod store;
mod stream;
mod support;
mod tags;
mod targets;
mod updates;
mod webhooks;
