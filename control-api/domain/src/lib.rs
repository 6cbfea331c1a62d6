//! Owns the pure decisions of the control API; refuses to do I/O or to ask what time it is.

pub mod presence;
pub mod principal;
pub mod resolution;
pub mod target;
