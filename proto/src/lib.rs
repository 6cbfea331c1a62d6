//! Owns the words on the wire that the agent and the control API share; refuses to do I/O.
//!
//! Documents of the HTTP contract, image names and digests, Compose service specs and their hash.
//! State documents (target state, current state, and what is inside) are camelCase, everything
//! else is `snake_case`.

pub mod compose;
pub mod current;
pub mod hash;
pub mod id;
pub mod image;
pub mod image_updates;
pub mod notification;
pub mod operator;
pub mod policy;
pub mod problem;
pub mod pull;
pub mod spec;
pub mod target;
pub mod time;
pub mod updates;
pub mod window;
