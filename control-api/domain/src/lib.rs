//! Owns the pure decisions of the control API; refuses to do I/O or to ask what time it is.

pub mod approval;
pub mod chain;
pub mod difference;
pub mod image_updates;
pub mod notification;
pub mod pattern;
pub mod policy;
pub mod presence;
pub mod principal;
pub mod refresh;
pub mod release;
pub mod resolution;
pub mod retention;
pub mod rollout;
pub mod scope;
pub mod sighting;
pub mod target;
pub mod updates;
pub mod voices;
pub mod webhook;
