//! Owns why updates may not begin now; when windows are open is the protocol's to say.

use holdfast_proto::time::Timestamp;
pub use holdfast_proto::window::opening::{Opening, ZonedWindow, opening};

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
    /// The code of a service whose update window is closed.
    pub const WINDOW: &'static str = "window";
    /// The code of a device whose clock cannot be right, so that no window can be judged.
    pub const CLOCK: &'static str = "clock";
    /// The code of a service that somebody holds an update lock on.
    pub const LOCKED: &'static str = "locked";
    /// The code of a device that its owner paused.
    pub const PAUSED: &'static str = "paused";

    /// Whether the device's owner wants nothing new at all, not even a first deployment.
    pub fn is_pause(&self) -> bool {
        self.code == Self::PAUSED
    }
}
