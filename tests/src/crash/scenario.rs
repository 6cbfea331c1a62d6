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
    pub const ALL: [Self; 8] = [
        Self::First,
        Self::Swap,
        Self::HealthySwap,
        Self::BrokenEntrypoint,
        Self::NeverHealthy,
        Self::CrashLoop,
        Self::Lost,
        Self::Removal,
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
            | Self::Removal => Base::Serving,
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
            | Self::CrashLoop => Trigger::Deploy,
            Self::Lost => Trigger::Lose,
            Self::Removal => Trigger::Clear,
        }
    }

    /// Whether the image that it deploys fails its gate.
    pub fn fails(self) -> bool {
        match self {
            Self::BrokenEntrypoint | Self::NeverHealthy | Self::CrashLoop => true,
            Self::First | Self::Swap | Self::HealthySwap | Self::Lost | Self::Removal => false,
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
            Self::First | Self::Swap | Self::Lost | Self::Removal => {
                Image::web(repository, version)
            }
            Self::HealthySwap => Image::healthy_web(repository, version),
            Self::BrokenEntrypoint => Image::broken_entrypoint(repository),
            Self::NeverHealthy => Image::never_healthy(repository, version),
            Self::CrashLoop => Image::crash_loop(repository, 0),
        };
        image.label("crash.version", version)
    }
}

/// A target with the service from this image, published on a port and with a volume.
pub fn serving(reference: &str, port: u16) -> Value {
    target(&[service(
        SERVICE,
        reference,
        &json!({ "ports": [format!("127.0.0.1:{port}:8080")], "volumes": ["data:/data"] }),
    )])
}

/// A target with nothing.
pub fn nothing() -> Value {
    json!({ "apps": {} })
}
