//! Owns when updates may begin.

use holdfast_proto::time::Timestamp;

/// Why no update of a service may begin now; what runs goes on, and a trial that began is finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Stable name of the reason: `window`, `clock`, `locked` or `paused`.
    pub code: &'static str,
    /// The reason in words.
    pub detail: String,
    /// When it may end by time alone.
    pub until: Option<Timestamp>,
}

impl Closed {
    /// The code of a device that its owner paused.
    pub const PAUSED: &'static str = "paused";

    /// Whether the device's owner wants nothing new at all, not even a first deployment.
    pub fn is_pause(&self) -> bool {
        self.code == Self::PAUSED
    }
}
