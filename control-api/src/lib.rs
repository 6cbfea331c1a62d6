//! Owns the control API of Holdfast: resolves tags to digests and serves targets to devices.
//!
//! `cli` and `config` start it, `server` accepts connections, `http` is the surface, `targeting` and
//! `resolver` decide and record, `logins` and `vault` keep credentials for registries, `store` remembers, `live` answers polls from memory, `tasks` works in the
//! background. Refuses to talk to devices' engines: that is the agent's part.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod http;
pub mod limits;
pub mod live;
pub mod logins;
pub mod program;
pub mod registries;
pub mod resolver;
pub mod retry;
pub mod secret;
pub mod server;
pub mod store;
pub mod targeting;
pub mod tasks;
pub mod telemetry;
pub mod vault;
