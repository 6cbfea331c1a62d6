//! Owns rollouts: how they begin, how each decision of the domain is carried out under the monitor's lease, and what
//! people may order.
//!
//! Refuses to decide: what comes next is `holdfast_domain::rollout`'s to say. Between two decisions nothing is
//! remembered but what is stored, so that any replica goes on where another one died.

pub mod begin;
mod effects;
pub mod facts;
pub mod orders;
pub mod step;

use holdfast_domain::rollout::tick::Window;
use holdfast_proto::time::Timestamp;
use holdfast_proto::window::opening::{Opening, ZonedWindow, opening};
use holdfast_proto::window::{UpdateWindow, ZoneName};
use jiff::tz::{TimeZone, TimeZoneDatabase};

use crate::store::audit::Actor;

/// Whoever decides for nobody: the monitor.
pub fn monitor() -> Actor {
    Actor {
        kind: "system",
        name: "rollouts".to_owned(),
        request_id: "monitor".to_owned(),
    }
}

/// The zone of a name: as the system knows it, else as this program was built with.
pub fn zone(name: &ZoneName) -> Option<TimeZone> {
    let name = name.as_str();
    let known = TimeZone::get(name).or_else(|_| TimeZoneDatabase::bundled().get(name));
    known.ok()
}

/// Whether these windows let devices be touched now. A zone that is not known any more opens nothing.
pub fn window(windows: &[UpdateWindow], now: Timestamp) -> Window {
    let zoned = windows.iter().filter_map(|window| {
        let zone = zone(&window.timezone)?;
        let window = window.clone();
        Some(ZonedWindow { window, zone })
    });
    let zoned: Vec<_> = zoned.collect();
    if zoned.is_empty() && !windows.is_empty() {
        return Window::Closed(None);
    }
    match opening(&zoned, now, true) {
        Opening::Open => Window::Open,
        Opening::Closed { until } => Window::Closed(until),
        Opening::WaitingForClock => Window::Closed(None),
    }
}
