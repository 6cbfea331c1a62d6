//! Owns how a version travels over a fleet: which devices go when, what counts as success and as failure, and
//! what comes next.
//!
//! Everything here is a function of what is known and of the time that is given; whoever runs it stores each
//! decision before the next one is asked for.

pub mod batches;
pub mod judge;
pub mod state;
pub mod tick;
