//! Owns what every handler shares; refuses global state.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_domain::refresh::Rhythm;
use holdfast_proto::id::DeviceId;
use tokio::sync::{Notify, watch};

use crate::limits::Limits;
use crate::live::Live;
use crate::logins::Logins;
use crate::resolver::Resolver;
use crate::secret::Secret;
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
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Seconds between two polls of a device.
    pub poll_interval_s: u32,
    /// What webhooks must bring.
    pub webhook_secret: Option<Secret>,
    /// Wakes the task that asks registries again.
    pub resolve_soon: Notify,
    /// Turns true when the program is asked to end.
    pub stopping: watch::Receiver<bool>,
    /// The OpenAPI document as bytes.
    pub openapi: Bytes,
}

/// How handlers hold it.
pub type Shared = Arc<App>;
