//! Owns whether updates may begin: joins the owner's orders, update locks and update windows.
//!
//! Only beginnings are held: what runs goes on, is restarted and, on trial, judged.

use std::cell::RefCell;
use std::collections::BTreeMap;

use holdfast_plan::{Closed, Opening, ServiceHistory, ZonedWindow, opening};
use holdfast_proto::id::ServiceKey;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;
use holdfast_proto::window::UpdateWindow;

use crate::clock;
use crate::config::UpdateSettings;
use crate::lease::{Held, LeaseFiles};
use crate::orders::Orders;
use crate::zones::zone;

/// Says which services may not be updated now.
#[derive(Debug)]
pub struct Permission {
    orders: Orders,
    windows: Vec<UpdateWindow>,
    files: RefCell<LeaseFiles>,
}

impl Permission {
    /// Judges by these settings and orders.
    pub fn new(settings: &UpdateSettings, orders: Orders) -> Self {
        Self {
            orders,
            windows: settings.windows.clone(),
            files: RefCell::new(LeaseFiles::new(&settings.lock_dir)),
        }
    }

    /// The owner's orders.
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Services of which nothing may begin now: of the target, and of those that left it.
    pub fn closed(
        &self,
        target: &TargetState,
        histories: &BTreeMap<ServiceKey, ServiceHistory>,
        now: Timestamp,
        now_ms: u64,
    ) -> BTreeMap<ServiceKey, Closed> {
        let known = histories.keys().map(|key| (key.clone(), &[][..]));
        let wanted = target.services();
        let wanted = wanted.map(|(key, service)| (key, service.config.windows()));
        self.closed_of(&known.chain(wanted).collect(), now, now_ms)
    }

    fn closed_of(
        &self,
        services: &BTreeMap<ServiceKey, &[UpdateWindow]>,
        now: Timestamp,
        now_ms: u64,
    ) -> BTreeMap<ServiceKey, Closed> {
        let every = |closed: &Closed| {
            let each = |key: &ServiceKey| (key.clone(), closed.clone());
            services.keys().map(each).collect()
        };
        if let Some(pause) = self.orders.paused() {
            let reason = pause.reason.map(|reason| format!(": {reason}"));
            return every(&Closed {
                code: Closed::PAUSED,
                detail: format!("paused on the device{}", reason.unwrap_or_default()),
                until: None,
            });
        }
        // Looked at even when forced: a lease's time begins when it is first seen.
        let files = self.files.borrow_mut().look(services.keys(), now_ms);
        if self.orders.is_forced(now_ms) {
            return BTreeMap::new();
        }
        let device = files.device.or_else(|| self.orders.held(None, now_ms));
        if let Some(held) = device {
            return every(&locked(&held, "the device is ", now));
        }
        let device = closed_by(&self.windows, now);
        let judge = |(key, windows): (&ServiceKey, &&[UpdateWindow])| {
            let file = files.services.get(key).cloned();
            let lock = file.or_else(|| self.orders.held(Some(key), now_ms));
            let lock = lock.map(|held| locked(&held, "", now));
            let closed = lock.or_else(|| later(device.clone(), closed_by(windows, now)))?;
            Some((key.clone(), closed))
        };
        services.iter().filter_map(judge).collect()
    }
}

fn locked(held: &Held, what: &str, now: Timestamp) -> Closed {
    let until = held
        .left_ms
        .map(|left_ms| now.plus_ms(i64::try_from(left_ms).unwrap_or(i64::MAX)));
    Closed {
        code: Closed::LOCKED,
        detail: format!("{what}{held}"),
        until,
    }
}

/// Both windows must be open: the one that opens later is the one to wait for.
fn later(one: Option<Closed>, other: Option<Closed>) -> Option<Closed> {
    match (one, other) {
        (Some(one), Some(other)) if other.until > one.until => Some(other),
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}

/// Why these windows let nothing begin now; none when they do.
fn closed_by(windows: &[UpdateWindow], now: Timestamp) -> Option<Closed> {
    let mut zoned = Vec::with_capacity(windows.len());
    for window in windows {
        let Some(zone) = zone(&window.timezone) else {
            return Some(Closed {
                code: Closed::WINDOW,
                detail: format!("this device knows no time zone {}", window.timezone),
                until: None,
            });
        };
        zoned.push(ZonedWindow {
            window: window.clone(),
            zone,
        });
    }
    match opening(&zoned, now, clock::is_plausible(now)) {
        Opening::Open => None,
        Opening::WaitingForClock => Some(Closed {
            code: Closed::CLOCK,
            detail: format!("waiting for a plausible clock, it shows {now}"),
            until: None,
        }),
        Opening::Closed { until } => {
            let opens = until.map(|until| format!(", opens {until}"));
            let words: Vec<String> = windows.iter().map(ToString::to_string).collect();
            Some(Closed {
                code: Closed::WINDOW,
                detail: format!(
                    "outside the update window{} ({})",
                    opens.unwrap_or_default(),
                    words.join("; ")
                ),
                until,
            })
        }
    }
}

#[cfg(test)]
mod tests;
