//! Owns what operators call.

pub mod approvals;
pub mod catalog;
pub mod credentials;
pub mod deliveries;
pub mod devices;
pub mod enrolment_keys;
pub mod fleets;
pub mod following;
pub mod generations;
pub mod history;
pub mod image_updates;
pub mod images;
pub mod notifications;
pub mod policies;
pub mod previews;
pub mod releases;
pub mod rollouts;
pub mod stream;
pub mod tags;
pub mod targets;
pub mod tokens;
pub mod updates;
