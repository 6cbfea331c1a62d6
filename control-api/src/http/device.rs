//! Owns what devices call.

pub mod enrol;
pub mod poll;
pub mod pull_login;
pub mod report;
