//! Owns what devices call.

pub mod enrol;
pub mod poll;
pub mod report;
