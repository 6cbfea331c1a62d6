//! The agent: keeps one device on exactly the container images its operator chose.
//!
//! Owns the effects: the container engine, HTTP, the disk, the clock. What to do is decided in
//! `holdfast-plan`, which can do none of these.

pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod disk;
pub mod doctor;
pub mod durable;
mod eager;
pub mod engine;
pub mod enrolment;
pub mod execute;
pub mod fault;
pub mod fetch;
pub mod journal;
pub mod lease;
pub mod local_api;
pub mod lock;
pub mod notify;
pub mod observe;
pub mod orders;
pub mod permission;
pub mod policy;
pub mod probe;
pub mod reconcile;
pub mod reserve;
pub mod retry;
pub mod run;
pub mod scan;
pub mod secrets;
pub mod selfupdate;
pub mod shared;
pub mod status;
pub mod system;
pub mod telemetry;
pub mod zones;
