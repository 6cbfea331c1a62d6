//! Owns logs and metrics: where they go and what they are called. Refuses secrets in either.

use std::fmt::Write as _;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Whether a text is a level or a list of filter directives.
pub fn is_filter(text: &str) -> bool {
    !text.trim().is_empty() && EnvFilter::try_new(text).is_ok()
}

/// Sends logs to standard error from now on; a second call changes nothing.
pub fn start_logs(log: &Log) {
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let started = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logs were started already");
    }
}

/// An error with its causes, each once, for one log line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegistryLabels {
    registry: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegistryLabel {
    registry: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PullTokenLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotificationLabels {
    channel: &'static str,
    outcome: &'static str,
}

/// Label values a registry name may take: a person could otherwise fill memory with made-up hosts.
const REGISTRIES_SHOWN: usize = 200;

/// What `/metrics` tells.
pub struct Metrics {
    registry: Registry,
    polls: Family<CodeLabel, Counter>,
    requests: Family<RouteLabels, Counter>,
    auth_failures: Counter,
    panics: Counter,
    registry_requests: Family<RegistryLabels, Counter>,
    registry_seconds: Family<RegistryLabel, Histogram>,
    registry_limit: Family<RegistryLabel, Gauge<i64>>,
    registry_remaining: Family<RegistryLabel, Gauge<i64>>,
    registry_cache: Family<CacheLabel, Counter>,
    pull_tokens: Family<PullTokenLabel, Counter>,
    notifications: Family<NotificationLabels, Counter>,
    refresh_lag: Gauge<i64>,
    registries: std::sync::Mutex<std::collections::BTreeSet<String>>,
    devices: Gauge<i64>,
    connections: Gauge<i64>,
    unresolved: Gauge<i64>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("holdfast_api");
        let polls = Family::default();
        registry.register(
            "polls",
            "Answers to polls of devices, by status code",
            polls.clone(),
        );
        let requests = Family::default();
        registry.register(
            "requests",
            "Answers by route and status code",
            requests.clone(),
        );
        let auth_failures = Counter::default();
        registry.register(
            "auth_failures",
            "Requests with a missing, wrong, expired or insufficient token",
            auth_failures.clone(),
        );
        let panics = Counter::default();
        registry.register("panics", "Requests that ended in a panic", panics.clone());
        let registry_requests = Family::default();
        registry.register(
            "registry_requests",
            "Questions to image registries, by registry and answer",
            registry_requests.clone(),
        );
        let registry_seconds = Family::<RegistryLabel, Histogram>::new_with_constructor(|| {
            Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0])
        });
        registry.register_with_unit(
            "registry_request",
            "How long image registries took to answer",
            Unit::Seconds,
            registry_seconds.clone(),
        );
        let registry_limit = Family::default();
        registry.register(
            "registry_rate_limit",
            "Requests that an image registry allows in its window, where it says so",
            registry_limit.clone(),
        );
        let registry_remaining = Family::default();
        registry.register(
            "registry_rate_limit_remaining",
            "Requests that an image registry still allows in its window, where it says so",
            registry_remaining.clone(),
        );
        let registry_cache = Family::default();
        registry.register(
            "registry_cache",
            "Questions about references, by whether a kept answer was the answer",
            registry_cache.clone(),
        );
        let pull_tokens = Family::default();
        registry.register(
            "pull_tokens",
            "Requests of devices for pull tokens, by outcome",
            pull_tokens.clone(),
        );
        let notifications = Family::default();
        registry.register(
            "notifications",
            "Tries to send a notification, by kind of channel and outcome",
            notifications.clone(),
        );
        let refresh_lag = Gauge::default();
        registry.register_with_unit(
            "refresh_lag",
            "How late the reference is that waits longest to be asked for again",
            Unit::Seconds,
            refresh_lag.clone(),
        );
        let devices = Gauge::default();
        registry.register("devices", "Devices enrolled", devices.clone());
        let connections = Gauge::default();
        registry.register("connections", "Open connections", connections.clone());
        let unresolved = Gauge::default();
        registry.register(
            "unresolved_references",
            "References in targets whose registry is asked again in the background",
            unresolved.clone(),
        );
        registry.register(
            "build",
            "Which program this is",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self {
            registry,
            polls,
            requests,
            auth_failures,
            panics,
            registry_requests,
            registry_seconds,
            registry_limit,
            registry_remaining,
            registry_cache,
            pull_tokens,
            notifications,
            refresh_lag,
            registries: std::sync::Mutex::default(),
            devices,
            connections,
            unresolved,
        }
    }
}

impl Metrics {
    /// Counts an answer to a poll.
    pub fn poll(&self, code: u16) {
        self.polls.get_or_create(&CodeLabel { code }).inc();
    }

    /// Counts an answer of any other route; `route` is the pattern, not the path.
    pub fn request(&self, route: &str, code: u16) {
        self.requests
            .get_or_create(&RouteLabels {
                route: route.to_owned(),
                code,
            })
            .inc();
    }

    /// Counts a refused credential.
    pub fn auth_failure(&self) {
        self.auth_failures.inc();
    }

    /// Counts a panic that became a 500.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// The registry's name as a label, while there are not too many.
    fn label(&self, registry: &str) -> RegistryLabel {
        let mut known = self
            .registries
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let registry = if known.contains(registry) || known.len() < REGISTRIES_SHOWN {
            known.insert(registry.to_owned());
            registry.to_owned()
        } else {
            "other".to_owned()
        };
        RegistryLabel { registry }
    }

    /// Counts a question to a registry; `code` is a status code or a word.
    pub fn registry_request(&self, registry: &str, code: &str, took: Duration) {
        let label = self.label(registry);
        let registry = label.registry.clone();
        self.registry_seconds
            .get_or_create(&label)
            .observe(took.as_secs_f64());
        self.registry_requests
            .get_or_create(&RegistryLabels {
                registry,
                code: code.to_owned(),
            })
            .inc();
    }

    /// Sets what a registry says about its limit.
    pub fn registry_limit(&self, registry: &str, limit: u64, remaining: u64) {
        let label = self.label(registry);
        let bounded = |value| i64::try_from(value).unwrap_or(i64::MAX);
        self.registry_limit
            .get_or_create(&label)
            .set(bounded(limit));
        self.registry_remaining
            .get_or_create(&label)
            .set(bounded(remaining));
    }

    /// Counts a question about a reference: whether a kept answer was the answer.
    pub fn registry_cache(&self, hit: bool) {
        let result = if hit { "hit" } else { "miss" };
        self.registry_cache
            .get_or_create(&CacheLabel { result })
            .inc();
    }

    /// Counts a device's request for a pull token.
    pub fn pull_token(&self, outcome: &'static str) {
        self.pull_tokens
            .get_or_create(&PullTokenLabel { outcome })
            .inc();
    }

    /// Counts a try to send a notification.
    pub fn notification(&self, channel: &'static str, outcome: &'static str) {
        self.notifications
            .get_or_create(&NotificationLabels { channel, outcome })
            .inc();
    }

    /// Sets how late the reference is that waits longest.
    pub fn set_refresh_lag(&self, lag_ms: i64) {
        self.refresh_lag.set(lag_ms.max(0) / 1_000);
    }

    /// Sets how many devices there are.
    pub fn set_devices(&self, count: usize) {
        self.devices.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets how many references wait for their registry.
    pub fn set_unresolved(&self, count: u64) {
        self.unresolved
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a connection that opened.
    pub fn connected(&self) {
        self.connections.inc();
    }

    /// Counts a connection that closed.
    pub fn disconnected(&self) {
        self.connections.dec();
    }

    /// The whole in `OpenMetrics` text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            tracing::error!("metrics could not be written");
        }
        text
    }
}
