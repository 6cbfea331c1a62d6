//! Owns `x-holdfast`: how a service is updated, beside what its container is. None of it re-creates a container.

use serde::{Deserialize, Serialize};

use super::probe::Probe;
use super::values::Period;
use crate::problem::{FieldError, Pointer};
use crate::window::{self, UpdateWindow};

/// In which order the old and the new container of a service stop, download and start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The new image is complete and its container made before the old container stops.
    #[default]
    DownloadThenKill,
    /// The old container stops before the download, for devices short of memory; it comes back if the
    /// download fails.
    KillThenDownload,
    /// The old container and its image go before the download, for devices short of disk: until the
    /// new one has passed there is no way back without the registry.
    DeleteThenDownload,
    /// Both run until the new one has passed its gate; for services that publish no ports.
    HandOver,
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DownloadThenKill => "download-then-kill",
            Self::KillThenDownload => "kill-then-download",
            Self::DeleteThenDownload => "delete-then-download",
            Self::HandOver => "hand-over",
        })
    }
}

/// The most that `priority` can be: enough to order the services of one device.
const MAX_PRIORITY: i32 = 1_000;

/// How a service is updated on a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateOptions {
    /// Whether the image is a release of the agent itself: no container is made of it, the agent replaces
    /// its own program by the one in it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub agent: bool,
    /// In which order old and new stop and start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// With `hand-over`: how long both may run; the new one has failed if it has not passed by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handover_timeout: Option<Period>,
    /// Whether published ports are held by a small container beside the service, so that a swap does
    /// not take the network down; true unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<bool>,
    /// How long a container must stay healthy before it counts as good; the device's own setting
    /// unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soak: Option<Period>,
    /// How the agent itself asks a container on trial whether it is well, beside its `healthcheck`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// When updates may begin; the device's own windows hold as well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<UpdateWindow>,
    /// Services with a higher number are updated first; 0 unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
}

impl UpdateOptions {
    pub(super) fn check(&self, publishes: bool, at: &Pointer, errors: &mut Vec<FieldError>) {
        if self.agent {
            let of_a_container = [
                ("strategy", self.strategy.is_some()),
                ("handover_timeout", self.handover_timeout.is_some()),
                ("sandbox", self.sandbox.is_some()),
                ("soak", self.soak.is_some()),
                ("probe", self.probe.is_some()),
            ];
            for (name, _) in of_a_container.into_iter().filter(|(_, given)| *given) {
                let detail = "the agent's own release runs in no container: leave it out";
                errors.push(at.member(name).error(detail));
            }
        }
        let hand_over = self.strategy == Some(Strategy::HandOver);
        if hand_over && publishes {
            let detail = "hand-over runs two containers at once, and only one can hold the \
                          published ports: reach the service by its name on an app's network";
            errors.push(at.member("strategy").error(detail));
        }
        if self.handover_timeout.is_some() && !hand_over {
            let detail = "only means something with strategy hand-over";
            errors.push(at.member("handover_timeout").error(detail));
        }
        window::check(&self.windows, &at.member("windows"), errors);
        if self
            .priority
            .is_some_and(|priority| priority.abs() > MAX_PRIORITY)
        {
            let detail = format!("write -{MAX_PRIORITY} to {MAX_PRIORITY}");
            errors.push(at.member("priority").error(detail));
        }
    }
}
