//! Owns what operators call.

pub mod credentials;
pub mod devices;
pub mod enrolment_keys;
pub mod history;
pub mod images;
pub mod targets;
pub mod tokens;
pub mod updates;
