//! Owns the pure decisions of the control API; refuses to do I/O or to ask what time it is.

pub mod presence;
pub mod principal;
pub mod refresh;
pub mod resolution;
pub mod scope;
pub mod sighting;
pub mod target;
pub mod updates;
