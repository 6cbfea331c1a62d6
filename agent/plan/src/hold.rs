//! Owns the plan's words for what is not done: why a service is held, and one text for each reason.

use std::fmt;

use holdfast_proto::id::{ServiceKey, ServiceName};
use holdfast_proto::image::Platform;
use holdfast_proto::spec::Condition;
use holdfast_proto::time::Timestamp;

use crate::disk::Shortage;
use crate::observed::ContainerRef;
use crate::step::short_image;

/// A named reason not to act.
#[derive(Clone, Debug, PartialEq)]
pub enum Hold {
    /// The target's spec failed here; the last good one serves, if there is one.
    Rejected {
        /// The service.
        key: ServiceKey,
        /// The rejected image.
        image: String,
        /// Why it was rejected.
        reason: String,
        /// Whether a last good spec serves instead.
        fallback: bool,
    },
    /// A candidate runs and has not proved itself yet.
    Verifying {
        /// The service.
        key: ServiceKey,
        /// The candidate.
        container: ContainerRef,
        /// When the gate decides at the latest.
        until: Timestamp,
    },
    /// The last pull failed.
    PullFailed {
        /// The service.
        key: ServiceKey,
        /// The image.
        image: String,
        /// Why.
        error: String,
        /// When it is tried again.
        until: Timestamp,
    },
    /// The disk has no room for what the update needs.
    NoSpace {
        /// The service.
        key: ServiceKey,
        /// What is missing.
        shortage: Shortage,
    },
    /// An image that a way back needs is gone and cannot be fetched again now; what runs is untouched.
    NoWayBack {
        /// The service.
        key: ServiceKey,
        /// The image.
        image: String,
        /// Why.
        error: String,
        /// When it is tried again, if time alone decides.
        until: Option<Timestamp>,
    },
    /// A step of the service failed.
    StepFailed {
        /// The service.
        key: ServiceKey,
        /// Why.
        error: String,
        /// When it is tried again.
        until: Timestamp,
    },
    /// The reference was never resolved to a digest.
    Unresolved {
        /// The service.
        key: ServiceKey,
        /// The reference.
        image: String,
        /// Why, as the server said it.
        error: String,
    },
    /// The image was made for a platform that this device cannot run.
    UnsupportedPlatform {
        /// The service.
        key: ServiceKey,
        /// The image's platform.
        image: Platform,
        /// The device's platform.
        device: Platform,
    },
    /// The engine holds another image under the pinned name than the target expects.
    WrongImage {
        /// The service.
        key: ServiceKey,
        /// The pinned name.
        image: String,
    },
    /// A service that this one depends on is not there yet.
    Waiting {
        /// The service.
        key: ServiceKey,
        /// What it waits for.
        on: ServiceName,
        /// What must be true of that one.
        condition: Condition,
    },
    /// The service whose network this one uses has none yet.
    NetworkAway {
        /// The service.
        key: ServiceKey,
        /// Whose network.
        of: ServiceName,
    },
    /// The device's own policy refuses it.
    Refused {
        /// The service.
        key: ServiceKey,
        /// Why.
        why: String,
    },
    /// No update may begin now.
    Closed {
        /// The service.
        key: ServiceKey,
        /// Stable name of the reason.
        code: &'static str,
        /// The reason in words.
        detail: String,
    },
    /// A container carries this device's labels although the agent did not make it; it is left alone.
    Stranger {
        /// The service that it claims.
        key: ServiceKey,
        /// The container.
        container: ContainerRef,
    },
    /// The engine is removing a container whose place is needed.
    Removing {
        /// The service.
        key: ServiceKey,
        /// The container.
        container: ContainerRef,
    },
}

impl Hold {
    /// The service that is held.
    pub fn key(&self) -> &ServiceKey {
        match self {
            Self::Rejected { key, .. }
            | Self::Verifying { key, .. }
            | Self::PullFailed { key, .. }
            | Self::NoSpace { key, .. }
            | Self::NoWayBack { key, .. }
            | Self::StepFailed { key, .. }
            | Self::Unresolved { key, .. }
            | Self::UnsupportedPlatform { key, .. }
            | Self::WrongImage { key, .. }
            | Self::Waiting { key, .. }
            | Self::NetworkAway { key, .. }
            | Self::Refused { key, .. }
            | Self::Closed { key, .. }
            | Self::Stranger { key, .. }
            | Self::Removing { key, .. } => key,
        }
    }

    /// Stable name of the reason, for reports.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rejected { .. } => "rejected",
            Self::Verifying { .. } => "verifying",
            Self::PullFailed { .. } => "pull_failed",
            Self::NoSpace { .. } => "no_space",
            Self::NoWayBack { .. } => "no_way_back",
            Self::StepFailed { .. } => "step_failed",
            Self::Unresolved { .. } => "unresolved",
            Self::UnsupportedPlatform { .. } => "unsupported_platform",
            Self::WrongImage { .. } => "wrong_image",
            Self::Waiting { .. } => "waiting",
            Self::NetworkAway { .. } => "network_away",
            Self::Refused { .. } => "policy",
            Self::Closed { code, .. } => code,
            Self::Stranger { .. } => "stranger",
            Self::Removing { .. } => "removing",
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected {
                key,
                image,
                reason,
                fallback,
            } => {
                let instead = if *fallback {
                    "the last good one serves"
                } else {
                    "nothing to fall back to"
                };
                write!(
                    f,
                    "{key}: {} was rejected: {reason}; {instead}",
                    short_image(image)
                )
            }
            Self::Verifying {
                key,
                container,
                until,
            } => {
                write!(f, "{key}: {container} is on trial until {until}")
            }
            Self::PullFailed {
                key,
                image,
                error,
                until,
            } => {
                write!(
                    f,
                    "{key}: pulling {} failed, again at {until}: {error}",
                    short_image(image)
                )
            }
            Self::NoSpace { key, shortage } => {
                write!(f, "{key}: the disk is too full for the update: {shortage}")
            }
            Self::NoWayBack {
                key,
                image,
                error,
                until,
            } => {
                let again = until.map_or_else(String::new, |at| format!(", again at {at}"));
                let image = short_image(image);
                write!(f, "{key}: the way back {image} is gone{again}: {error}")
            }
            Self::StepFailed { key, error, until } => {
                write!(f, "{key}: a step failed, again at {until}: {error}")
            }
            Self::Unresolved { key, image, error } => {
                write!(f, "{key}: {image} has no digest yet: {error}")
            }
            Self::UnsupportedPlatform { key, image, device } => {
                write!(
                    f,
                    "{key}: the image is for {image}, this device is {device}"
                )
            }
            Self::WrongImage { key, image } => {
                write!(
                    f,
                    "{key}: the engine's {} is not the image that was resolved",
                    short_image(image)
                )
            }
            Self::Waiting { key, on, condition } => {
                let what = match condition {
                    Condition::ServiceStarted => "run",
                    Condition::ServiceHealthy => "be healthy",
                    Condition::ServiceCompletedSuccessfully => "end without an error",
                };
                write!(f, "{key}: waits for {on} to {what}")
            }
            Self::NetworkAway { key, of } => {
                write!(f, "{key}: waits for the network of {of}")
            }
            Self::Refused { key, why } => {
                write!(f, "{key}: this device's policy refuses it: {why}")
            }
            Self::Closed { key, detail, .. } => write!(f, "{key}: no update now: {detail}"),
            Self::Stranger { key, container } => {
                write!(
                    f,
                    "{key}: {container} carries this service's labels but was not made by this agent; \
                     it is left alone"
                )
            }
            Self::Removing { key, container } => {
                write!(f, "{key}: the engine is still removing {container}")
            }
        }
    }
}
