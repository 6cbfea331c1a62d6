//! Owns the control API of Holdfast: resolves tags to digests and serves targets to devices.
//!
//! `cli` and `config` start it, `server` accepts connections, `http` is the surface, `targeting` gives devices their
//! targets, `resolver` asks what tags mean, `pushes` and
//! `approvals` judge what may run, `rollouts` brings new versions to fleets, `logins` and `vault` keep
//! credentials for registries, `notify` tells people,
//! `store` remembers, `live` answers polls from memory, `tasks` works in the background.
//! Refuses to talk to devices' engines: that is the agent's part.

pub mod app;
pub mod approvals;
pub mod cli;
pub mod clock;
pub mod config;
pub mod fleets;
pub mod http;
pub mod images;
pub mod limits;
pub mod live;
pub mod logins;
pub mod notify;
pub mod permitted;
pub mod places;
pub mod program;
pub mod pushes;
pub mod registries;
pub mod resolver;
pub mod retry;
pub mod rollouts;
pub mod secret;
pub mod server;
pub mod store;
pub mod systemd;
pub mod targeting;
pub mod tasks;
pub mod telemetry;
pub mod vault;
