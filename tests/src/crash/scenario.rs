//! What a device is doing when something dies: where it begins, what sets it off, how it must end.

use serde_json::{Value, json};

use crate::images::Image;
use crate::site::{service, target};

/// The one service's name.
pub const SERVICE: &str = "web";

/// A journey of one device with one web service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scenario {
    /// The first deployment on an empty device.
    First,
    /// One version after another.
    Swap,
    /// The same, judged by the image's own health check.
    HealthySwap,
    /// A version whose entrypoint does not exist.
    BrokenEntrypoint,
    /// A version whose health check never passes.
    NeverHealthy,
    /// A version that ends by itself.
    CrashLoop,
    /// The container was removed by somebody.
    Lost,
    /// The service leaves the target.
    Removal,
    /// One version after another without a sandbox: the ports move with the container.
    PlainSwap,
    /// Old and new run side by side until the new one has passed.
    HandOver,
    /// The same with a version that never gets healthy.
    FailedHandOver,
    /// The old container stops before the download.
    KillFirst,
    /// The same with a version that ends by itself.
    FailedKillFirst,
    /// The old container and its image go before the download.
    DeleteFirst,
}

/// How the service is reached and updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A published port, everything else as by default: with a sandbox, download before kill.
    Published,
    /// A published port without a sandbox.
    Plain,
    /// Reached by its name only, updated by hand-over.
    HandOver,
    /// A published port, kill before download.
    KillFirst,
    /// A published port, delete before download.
    DeleteFirst,
}

/// Where a scenario begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Nothing of ours on the device.
    Empty,
    /// A good version serves.
    Serving,
    /// A good version serves, and the target names it.
    Converged,
}

/// What sets it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The target names a new image of [`Scenario::image`].
    Deploy,
    /// The service's container is removed by force.
    Lose,
    /// The target becomes empty.
    Clear,
}

impl Scenario {
    /// All of them, in the order of the page.
    pub const ALL: [Self; 14] = [
        Self::First,
        Self::Swap,
        Self::HealthySwap,
        Self::BrokenEntrypoint,
        Self::NeverHealthy,
        Self::CrashLoop,
        Self::Lost,
        Self::Removal,
        Self::PlainSwap,
        Self::HandOver,
        Self::FailedHandOver,
        Self::KillFirst,
        Self::FailedKillFirst,
        Self::DeleteFirst,
    ];

    /// Its name on the command line and on the page.
    pub fn word(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Swap => "swap",
            Self::HealthySwap => "healthy-swap",
            Self::BrokenEntrypoint => "broken-entrypoint",
            Self::NeverHealthy => "never-healthy",
            Self::CrashLoop => "crash-loop",
            Self::Lost => "lost",
            Self::Removal => "removal",
            Self::PlainSwap => "plain-swap",
            Self::HandOver => "hand-over",
            Self::FailedHandOver => "failed-hand-over",
            Self::KillFirst => "kill-first",
            Self::FailedKillFirst => "failed-kill-first",
            Self::DeleteFirst => "delete-first",
        }
    }

    /// What it is, for the page.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::First => "the first deployment on an empty device",
            Self::Swap => "one version of a published web service after another",
            Self::HealthySwap => "the same, judged by the image's health check",
            Self::BrokenEntrypoint => "a version whose entrypoint does not exist, and the way back",
            Self::NeverHealthy => "a version that never gets healthy, and the way back",
            Self::CrashLoop => "a version that ends by itself, and the way back",
            Self::Lost => "the container was removed by somebody and is made anew",
            Self::Removal => "the service leaves the target",
            Self::PlainSwap => "one version after another without a sandbox",
            Self::HandOver => "both versions run until the new one has passed",
            Self::FailedHandOver => "the same with a version that never gets healthy",
            Self::KillFirst => "kill-then-download",
            Self::FailedKillFirst => {
                "the same with a version that ends by itself, and the way back"
            }
            Self::DeleteFirst => "delete-then-download",
        }
    }

    /// Where it begins.
    pub fn base(self) -> Base {
        match self {
            Self::First => Base::Empty,
            Self::Lost => Base::Converged,
            Self::Swap
            | Self::HealthySwap
            | Self::BrokenEntrypoint
            | Self::NeverHealthy
            | Self::CrashLoop
            | Self::Removal
            | Self::PlainSwap
            | Self::HandOver
            | Self::FailedHandOver
            | Self::KillFirst
            | Self::FailedKillFirst
            | Self::DeleteFirst => Base::Serving,
        }
    }

    /// What sets it off.
    pub fn trigger(self) -> Trigger {
        match self {
            Self::First
            | Self::Swap
            | Self::HealthySwap
            | Self::BrokenEntrypoint
            | Self::NeverHealthy
            | Self::CrashLoop
            | Self::PlainSwap
            | Self::HandOver
            | Self::FailedHandOver
            | Self::KillFirst
            | Self::FailedKillFirst
            | Self::DeleteFirst => Trigger::Deploy,
            Self::Lost => Trigger::Lose,
            Self::Removal => Trigger::Clear,
        }
    }

    /// Whether the image that it deploys fails its gate.
    pub fn fails(self) -> bool {
        match self {
            Self::BrokenEntrypoint
            | Self::NeverHealthy
            | Self::CrashLoop
            | Self::FailedHandOver
            | Self::FailedKillFirst => true,
            Self::First
            | Self::Swap
            | Self::HealthySwap
            | Self::Lost
            | Self::Removal
            | Self::PlainSwap
            | Self::HandOver
            | Self::KillFirst
            | Self::DeleteFirst => false,
        }
    }

    /// How its service is reached and updated.
    pub fn style(self) -> Style {
        match self {
            Self::First
            | Self::Swap
            | Self::HealthySwap
            | Self::BrokenEntrypoint
            | Self::NeverHealthy
            | Self::CrashLoop
            | Self::Lost
            | Self::Removal => Style::Published,
            Self::PlainSwap => Style::Plain,
            Self::HandOver | Self::FailedHandOver => Style::HandOver,
            Self::KillFirst | Self::FailedKillFirst => Style::KillFirst,
            Self::DeleteFirst => Style::DeleteFirst,
        }
    }

    /// The device's status in its last report, and what it holds.
    pub fn ends_as(self) -> (&'static str, &'static [&'static str]) {
        if self.fails() {
            ("holding", &["rejected"])
        } else {
            ("converged", &[])
        }
    }

    /// The image that it deploys; `version` makes it unlike any other.
    pub fn image(self, repository: &str, version: &str) -> Image {
        let image = match self {
            Self::First
            | Self::Swap
            | Self::Lost
            | Self::Removal
            | Self::PlainSwap
            | Self::HandOver
            | Self::KillFirst
            | Self::DeleteFirst => Image::web(repository, version),
            Self::HealthySwap => Image::healthy_web(repository, version),
            Self::BrokenEntrypoint => Image::broken_entrypoint(repository),
            Self::NeverHealthy | Self::FailedHandOver => Image::never_healthy(repository, version),
            Self::CrashLoop | Self::FailedKillFirst => Image::crash_loop(repository, 0),
        };
        image.label("crash.version", version)
    }
}

impl Style {
    /// Whether the old container goes on until the new one is made (I3).
    pub fn makes_first(self) -> bool {
        match self {
            Self::Published | Self::Plain | Self::HandOver => true,
            Self::KillFirst | Self::DeleteFirst => false,
        }
    }

    /// Whether the last good one stays until its successor has passed (I4).
    pub fn keeps_the_last_good(self) -> bool {
        match self {
            Self::Published | Self::Plain | Self::HandOver | Self::KillFirst => true,
            Self::DeleteFirst => false,
        }
    }

    /// A target with the service from this image, with a volume and, by style, on a port.
    pub fn target(self, reference: &str, port: u16) -> Value {
        let mut config = json!({ "volumes": ["data:/data"] });
        let options = match self {
            Self::Published => None,
            Self::Plain => Some(json!({ "sandbox": false })),
            Self::HandOver => Some(json!({ "strategy": "hand-over" })),
            Self::KillFirst => Some(json!({ "strategy": "kill-then-download" })),
            Self::DeleteFirst => Some(json!({ "strategy": "delete-then-download" })),
        };
        if let Some(options) = options {
            config["x-holdfast"] = options;
        }
        if self != Self::HandOver {
            config["ports"] = json!([format!("127.0.0.1:{port}:8080")]);
        }
        target(&[service(SERVICE, reference, &config)])
    }
}

/// A target with nothing.
pub fn nothing() -> Value {
    json!({ "apps": {} })
}
