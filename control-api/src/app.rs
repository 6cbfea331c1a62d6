//! Owns what every handler shares; refuses global state.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_domain::refresh::Rhythm;
use holdfast_domain::retention::Retention;
use holdfast_proto::id::DeviceId;
use tokio::sync::{Mutex, Notify, watch};

use crate::config::Install;
use crate::limits::Limits;
use crate::live::Live;
use crate::logins::Logins;
use crate::notify::Courier;
use crate::places::Places;
use crate::pushes::Pushes;
use crate::resolver::Resolver;
use crate::store::Store;
use crate::telemetry::Metrics;

/// What handlers and tasks share.
#[derive(Debug)]
pub struct App {
    /// What is remembered.
    pub store: Store,
    /// What polls are answered from.
    pub live: Live,
    /// How references become digests.
    pub resolver: Resolver,
    /// How often references are asked for again.
    pub rhythm: Rhythm,
    /// Whose credentials count where.
    pub logins: Logins,
    /// How often devices may ask for pull tokens.
    pub pull_limits: Limits<DeviceId>,
    /// How often devices may report.
    pub report_limits: Limits<DeviceId>,
    /// Who follows events, by their token.
    pub streams: Places<i64>,
    /// Held by whoever verifies the audit log: that reads all of it.
    pub verifying: Mutex<()>,
    /// How long history is kept.
    pub retention: Retention,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Seconds between two polls of a device.
    pub poll_interval_s: u32,
    /// Wakes the monitor of rollouts.
    pub rollouts_soon: Notify,
    /// What pushes are judged by.
    pub pushes: Pushes,
    /// How notifications leave.
    pub courier: Courier,
    /// Wakes the task that asks registries again.
    pub resolve_soon: Notify,
    /// Turns true when the program is asked to end.
    pub stopping: watch::Receiver<bool>,
    /// What machines install the agent from.
    pub install: Install,
    /// The OpenAPI document as bytes.
    pub openapi: Bytes,
}

/// How handlers hold it.
pub type Shared = Arc<App>;
