//! The crash matrix: every step of the agent's work × everything that may die in it.
//!
//! A [`point::Point`] says what a device is doing and where which program dies. A [`lane::Lane`] is one
//! device on an engine of its own that goes through points one after another and checks the invariants
//! of the fault tables after each. The points are found by watching undisturbed runs: what the agent
//! says to the engine, and which syscalls it makes. So a new step of the agent is covered by itself,
//! and the agent needs no hooks.

pub mod check;
mod journal;
pub mod lane;
pub mod list;
pub mod matrix;
pub mod page;
#[cfg(test)]
mod planted;
pub mod point;
pub mod run;
pub mod scenario;
pub mod state;
pub mod watch;
mod witness;
