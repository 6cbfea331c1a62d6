//! Owns talking to OCI registries: what a reference points at, for every platform, proven by hashes.
//!
//! Refuses to trust a digest that it did not compute or that a header contradicts, to send a
//! credential to a host it was not issued for, and to read without a bound.

mod auth;
mod cache;
mod client;
mod error;
mod guard;
mod manifest;
mod resolve;
mod settings;

pub use client::Client;
pub use error::{RegistryError, RetryAdvice};
pub use resolve::Resolved;
pub use settings::{Credentials, Exchange, Observer, RegistrySettings, Secret, Settings, Timeouts};
