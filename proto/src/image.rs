//! Owns how images are named and identified: references, the three kinds of digest, platforms, pins.
//!
//! Refuses to let the kinds of digest mix: an index, a manifest and a config digest have types of their own.

mod digest;
mod pin;
mod platform;
mod reference;
mod same;

pub use digest::{
    ConfigDigest, Digest, DigestError, Hasher, IndexDigest, ManifestDigest, TopDigest,
};
pub use pin::{Expected, Pin, PlatformImage, Resolution, ResolutionStatus, ResolvedImage};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError, Repository, written_registry};
pub use same::{
    Content, Doubt, ImageStore, Pulled, Running, Same, compare, compare_earlier, wanted,
};
