//! Owns what operators call.

pub mod devices;
pub mod enrolment_keys;
pub mod history;
pub mod targets;
pub mod tokens;
