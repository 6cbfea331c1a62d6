//! Owns the agent's own transport: what the engine pulls comes from here, not from a registry.

pub mod allowance;
pub mod download;
pub mod endpoint;
pub mod feed;
pub mod pace;
mod patience;
pub mod peer;
pub mod registries;
pub mod room;
pub mod share;
pub mod source;
pub mod spool;
pub mod transport;
