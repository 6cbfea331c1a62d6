//! The lab: everything a journey, demo or bench needs to run Holdfast for real on one machine.
//!
//! It owns a container engine, registries, images, `PostgreSQL`, the two real programs and the taps
//! between them. It refuses to fake what can run, to touch what it did not start, and to leave
//! anything running when its last user is gone.

pub mod agent;
pub mod agent_release;
pub mod alone;
pub mod api;
pub mod apt;
pub mod binaries;
pub mod campaign;
mod certificates;
pub mod clock;
pub mod clouds;
pub mod crash;
pub mod disk;
pub mod docker;
pub mod engine;
pub mod fault_registry;
pub mod fleet;
pub mod http_tap;
pub mod images;
pub mod invariants;
pub mod layers;
pub mod line;
pub mod machine;
pub mod matrix;
pub mod place;
pub mod podman;
pub mod postgres;
pub mod process;
pub mod receiver;
pub mod registry;
pub mod serve;
pub mod serving;
pub mod simulation;
pub mod site;
pub mod tap;
pub mod tcp_tap;
pub mod tls_front;
pub mod token_server;
pub mod wait;
pub mod wall;
