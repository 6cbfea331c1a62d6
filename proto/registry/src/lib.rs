//! Owns talking to OCI registries: what a reference points at, for every platform, proven by hashes.
//!
//! Refuses to trust a digest that it did not compute or that a header contradicts, to send a
//! credential to a host it was not issued for, and to read without a bound.

mod about;
mod addresses;
mod answer;
mod auth;
mod blob;
mod cache;
mod candidates;
mod client;
mod contents;
mod documents;
mod error;
mod exchange;
mod filter;
mod guard;
mod keychain;
mod lanes;
mod login;
mod manifest;
mod outward;
mod place;
mod proxies;
mod pull_token;
mod release_link;
mod resolve;
mod settings;
mod tags;
mod ways;

pub use about::About;
pub use blob::{Blob, BlobRequest};
pub use candidates::{MAX_CANDIDATES, MAX_TAGS, candidates, may_have_candidates};
pub use client::Client;
pub use contents::{Contents, Piece};
pub use error::{RegistryError, RetryAdvice};
pub use keychain::{
    Cloud, CloudKeychain, DockerConfig, DockerConfigError, Environment, EnvironmentError, Keychain,
    KeychainError, Keychains, Keys, Now,
};
pub use outward::{Outward, OutwardError, OutwardSettings, Post, Said};
pub use proxies::Proxies;
pub use pull_token::{PullAccess, PullToken};
pub use release_link::release_link;
pub use resolve::Resolved;
pub use settings::{
    Credentials, Exchange, Identity, Lookup, Mirror, MirrorError, Observer, RateLimit, Reach,
    RegistrySettings, Secret, Settings, Timeouts,
};
