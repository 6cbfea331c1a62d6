//! Owns the conversation with the control API. Refuses to decide anything about containers.

pub mod client;
pub mod poll;
pub mod pull_login;
pub mod report;
