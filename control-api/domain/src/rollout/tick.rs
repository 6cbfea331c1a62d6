//! Owns what comes next in a rollout: one decision at a time, from everything that is known.
//!
//! Refuses to open a batch before the one before it proved itself, to count silence as success, and to wait for
//! ever.

use std::collections::BTreeMap;

use holdfast_proto::id::DeviceId;
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::judge::Sight;
use super::state::{Event, State};

/// A device must be heard of once more after its soak, or after its time; its reports come about once a minute.
const SILENCE_MS: i64 = 10 * 60_000;

/// What a policy says of pace and of failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own in a policy"
)]
pub struct Rules {
    /// A device that says after so long that it is not healthy failed, and is lost if it is not heard of.
    pub health_timeout_ms: i64,
    /// For so long a device stays healthy before it counts.
    pub soak_ms: i64,
    /// More failures than so many of a hundred devices of a batch end it.
    pub max_failure_percent: u8,
    /// Fewer failures than so many end nothing, unless the batch is smaller.
    pub min_failures: usize,
    /// So many of a hundred devices of a batch must be verified before the next one; at least one device.
    pub min_success_percent: u8,
    /// Whether failures bring devices back, or leave the decision to people.
    pub auto_rollback: bool,
    /// Whether somebody has to approve each batch after the first.
    pub approve_batches: bool,
    /// Whether somebody has to start it.
    pub manual_start: bool,
    /// Whether devices that are offline when their batch opens are left out; they catch up when they come back.
    pub skip_offline: bool,
    /// At most so many devices with the same value of a label are unavailable.
    pub budget: Option<Budget>,
    /// Paused, or not started, for so long it is over.
    pub abandon_ms: i64,
}

/// At most so many devices of a group are unavailable at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Devices with the same value of this label are a group; those without it are one, too.
    pub label: String,
    /// How many of a group.
    pub most: usize,
}

/// How a device stands to the rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "standing")]
pub enum Standing {
    /// Its turn has not come.
    Waiting,
    /// It runs this content already.
    Unchanged,
    /// It was offline at its turn, and catches up.
    Skipped,
    /// It was told to run the new version.
    Updating {
        /// Since when.
        since: Timestamp,
        /// Since which report it is healthy.
        healthy_since: Option<Timestamp>,
    },
    /// It was healthy for the soak.
    Verified,
    /// It rejected the version, or did not become healthy in time.
    Failed,
    /// It is to try again, and was told to run what it ran before: an agent tries what it rejected only after that.
    Readying {
        /// Since when.
        since: Timestamp,
    },
    /// Nothing was heard of it in time.
    Lost,
    /// It was taken from the fleet, or somebody gave it another target.
    Gone,
    /// It was told to go back.
    Returning {
        /// Since when.
        since: Timestamp,
    },
    /// It is back.
    Returned,
    /// It did not come back in time.
    NotReturned,
    /// The version has nothing for its platform.
    Unsupported,
}

impl Standing {
    /// Its name in tables and on the wire.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Unchanged => "unchanged",
            Self::Skipped => "skipped",
            Self::Updating { .. } => "updating",
            Self::Verified => "verified",
            Self::Failed => "failed",
            Self::Readying { .. } => "readying",
            Self::Lost => "lost",
            Self::Gone => "gone",
            Self::Returning { .. } => "returning",
            Self::Returned => "returned",
            Self::NotReturned => "not_returned",
            Self::Unsupported => "unsupported",
        }
    }

    /// Whether the device was told something and has not answered for good: it is looked at again.
    pub const fn is_open(&self) -> bool {
        matches!(
            self,
            Self::Waiting
                | Self::Skipped
                | Self::Updating { .. }
                | Self::Lost
                | Self::Readying { .. }
                | Self::Returning { .. }
        )
    }

    /// Whether it was given the new version and was not given another one since.
    pub fn was_touched(&self) -> bool {
        matches!(
            self,
            Self::Updating { .. }
                | Self::Verified
                | Self::Failed
                | Self::Lost
                | Self::Readying { .. }
        )
    }

    /// Whether it was given the new version and has not proved itself with it.
    pub fn is_exposed(&self) -> bool {
        matches!(self, Self::Updating { .. } | Self::Lost)
    }

    /// Whether it takes part: it counts in what its batch has to reach.
    fn takes_part(&self) -> bool {
        self.was_touched() || *self == Self::Waiting
    }
}

/// A device of the rollout, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Which.
    pub id: DeviceId,
    /// The batch that it goes with, from 0.
    pub batch: usize,
    /// How it stands.
    pub standing: Standing,
    /// What its last report says of what it was told last.
    pub sight: Sight,
    /// When that report came.
    pub reported_at: Option<Timestamp>,
    /// Whether it was heard of lately.
    pub is_online: bool,
    /// Whether its own window lets it be touched now; looked at while its batch is open.
    pub window: Window,
    /// Its group in the budget.
    pub group: Option<String>,
}

/// A rollout, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Where it is.
    pub state: State,
    /// Since when.
    pub since: Timestamp,
    /// What its policy said when it was made.
    pub rules: Rules,
    /// Its devices.
    pub devices: Vec<Device>,
    /// When anything changed last: a decision was carried out, a device noted.
    pub progressed_at: Timestamp,
    /// How many batches were opened.
    pub opened: usize,
    /// Batches that may be opened: more than were approved may not.
    pub approved: usize,
    /// Whether devices may be touched now; until when not, if that is known.
    pub window: Window,
    /// In other rollouts, so many devices of each group are unavailable.
    pub unavailable: BTreeMap<Option<String>, usize>,
    /// Why no further device may be given the version: its approval was taken back, or a newer one took its place.
    pub forbidden: Option<String>,
}

/// Whether devices may be touched now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// They may.
    Open,
    /// They may not before this moment; none if there is no such moment.
    Closed(Option<Timestamp>),
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// These devices stand otherwise than before, and why.
    Note(Vec<(DeviceId, Standing, String)>),
    /// The next batch is opened; no device is touched by that.
    OpenBatch,
    /// These devices are given the new version.
    Update(Vec<DeviceId>),
    /// These devices are given what was verified on them before.
    Return(Vec<DeviceId>),
    /// The rollout's state changes, and why.
    Turn(Event, String),
    /// Nothing before this moment, unless something is reported or somebody decides; and what is waited for.
    Wait(Option<Timestamp>, String),
}

/// Decides.
pub fn decide(rollout: &Rollout, now: Timestamp) -> Decision {
    let noted = notes(rollout, now);
    if !noted.is_empty() {
        return Decision::Note(noted);
    }
    match rollout.state {
        State::Pending => pending(rollout, now),
        State::Running => running(rollout, now),
        State::Paused => abandoned(rollout, now).unwrap_or_else(|until| {
            Decision::Wait(Some(until), "somebody has to decide".to_owned())
        }),
        State::RollingBack => returning(rollout),
        State::Succeeded => catch_up(rollout, now),
        State::RolledBack | State::Failed | State::Cancelled | State::Superseded => {
            Decision::Wait(None, "it is over".to_owned())
        }
    }
}

/// What changed with devices that were told something.
fn notes(rollout: &Rollout, now: Timestamp) -> Vec<(DeviceId, Standing, String)> {
    let devices = rollout.devices.iter();
    let changed = devices.filter_map(|device| {
        let (standing, why) = match &device.standing {
            Standing::Updating {
                since,
                healthy_since,
            } => updating(device, *since, *healthy_since, &rollout.rules, now),
            Standing::Lost => found_again(device),
            Standing::Returning { since } => coming_back(device, *since, &rollout.rules, now),
            Standing::Readying { since } => getting_ready(device, *since, &rollout.rules, now),
            other => (other.clone(), String::new()),
        };
        (standing != device.standing).then_some((device.id, standing, why))
    });
    changed.collect()
}

fn updating(
    device: &Device,
    since: Timestamp,
    healthy_since: Option<Timestamp>,
    rules: &Rules,
    now: Timestamp,
) -> (Standing, String) {
    let still = |why: &str| {
        let healthy_since = None;
        let standing = Standing::Updating {
            since,
            healthy_since,
        };
        (standing, why.to_owned())
    };
    match (&device.sight, device.reported_at) {
        (Sight::Elsewhere, _) => (Standing::Gone, "it has another target by now".to_owned()),
        (Sight::Failed(why), _) => (Standing::Failed, why.clone()),
        (Sight::Healthy, Some(reported_at)) => {
            let begun = healthy_since.unwrap_or(reported_at);
            if reported_at.since_ms(begun) >= rules.soak_ms {
                return (Standing::Verified, "it stayed healthy".to_owned());
            }
            if now.since_ms(begun) >= rules.soak_ms.saturating_add(SILENCE_MS) {
                return (
                    Standing::Lost,
                    "it was healthy and is silent since".to_owned(),
                );
            }
            let healthy_since = Some(begun);
            (
                Standing::Updating {
                    since,
                    healthy_since,
                },
                "it is healthy".to_owned(),
            )
        }
        (Sight::OnItsWay(why), reported_at) if now.since_ms(since) >= rules.health_timeout_ms => {
            let ended = since.plus_ms(rules.health_timeout_ms);
            // It says itself, after its time, that it is not there. Before that, nobody can tell it from one that
            // has just gone: whether it is online is known some minutes late.
            let said_so = reported_at.is_some_and(|reported_at| reported_at >= ended);
            let is_late = said_so || now.since_ms(ended) >= SILENCE_MS;
            match (device.is_online, is_late) {
                (true, true) => (Standing::Failed, format!("not healthy in time: {why}")),
                (true, false) => still(why),
                (false, _) => (Standing::Lost, "nothing was heard of it in time".to_owned()),
            }
        }
        (Sight::OnItsWay(why), _) => still(why),
        // A report that came at no time is none.
        (Sight::Healthy, None) => (device.standing.clone(), String::new()),
    }
}

/// One that was lost gets its answer when it comes back.
fn found_again(device: &Device) -> (Standing, String) {
    match &device.sight {
        Sight::Healthy => (
            Standing::Verified,
            "it came back, and is healthy".to_owned(),
        ),
        Sight::Failed(why) => (Standing::Failed, why.clone()),
        Sight::Elsewhere => (Standing::Gone, "it has another target by now".to_owned()),
        Sight::OnItsWay(_) => (Standing::Lost, String::new()),
    }
}

fn coming_back(
    device: &Device,
    since: Timestamp,
    rules: &Rules,
    now: Timestamp,
) -> (Standing, String) {
    match &device.sight {
        Sight::Healthy => (Standing::Returned, "it runs what it ran before".to_owned()),
        Sight::Elsewhere => (Standing::Gone, "it has another target by now".to_owned()),
        Sight::Failed(why) => (Standing::NotReturned, why.clone()),
        Sight::OnItsWay(why) if now.since_ms(since) >= rules.health_timeout_ms => {
            (Standing::NotReturned, format!("not back in time: {why}"))
        }
        Sight::OnItsWay(_) => (Standing::Returning { since }, String::new()),
    }
}

/// One that tries again: its turn comes when it runs what it ran before.
fn getting_ready(
    device: &Device,
    since: Timestamp,
    rules: &Rules,
    now: Timestamp,
) -> (Standing, String) {
    match coming_back(device, since, rules, now) {
        (Standing::Returned, _) => (Standing::Waiting, "it is ready to try again".to_owned()),
        (Standing::NotReturned, why) => (Standing::Failed, why),
        (Standing::Returning { .. }, _) => (device.standing.clone(), String::new()),
        other => other,
    }
}

fn pending(rollout: &Rollout, now: Timestamp) -> Decision {
    match (rollout.rules.manual_start, rollout.window) {
        (false, Window::Open) => Decision::Turn(Event::Start, "its time has come".to_owned()),
        (false, Window::Closed(Some(until))) => {
            Decision::Wait(Some(until), "its window is closed".to_owned())
        }
        (true, _) | (false, Window::Closed(None)) => {
            abandoned(rollout, now).unwrap_or_else(|until| {
                Decision::Wait(Some(until), "somebody has to start it".to_owned())
            })
        }
    }
}

/// Nobody can tell when it goes on: people decide after a while.
fn stuck(rollout: &Rollout, until: Option<Timestamp>, why: String, now: Timestamp) -> Decision {
    let patience = rollout.progressed_at.plus_ms(rollout.rules.abandon_ms);
    if now >= patience {
        return Decision::Turn(Event::Pause, why);
    }
    Decision::Wait(
        Some(until.map_or(patience, |until| until.min(patience))),
        why,
    )
}

/// The end of one that nobody decides about; else the moment of that.
fn abandoned(rollout: &Rollout, now: Timestamp) -> Result<Decision, Timestamp> {
    let until = rollout.since.plus_ms(rollout.rules.abandon_ms);
    if now < until {
        return Err(until);
    }
    let why = "nobody decided for too long".to_owned();
    Ok(Decision::Turn(Event::Expire, why))
}

/// How a batch stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    takes_part: usize,
    verified: usize,
    failed: usize,
    lost: usize,
    skipped: usize,
}

impl Count {
    fn of<'a>(devices: impl Iterator<Item = &'a Device>) -> Self {
        let mut count = Self::default();
        for device in devices {
            count.takes_part += usize::from(device.standing.takes_part());
            match device.standing {
                Standing::Verified => count.verified += 1,
                Standing::Failed => count.failed += 1,
                Standing::Lost => count.lost += 1,
                Standing::Skipped => count.skipped += 1,
                _ => {}
            }
        }
        count
    }

    /// What is known of all batches that were opened.
    fn of_opened(rollout: &Rollout) -> Self {
        let devices = rollout.devices.iter();
        Self::of(devices.filter(|device| device.batch < rollout.opened))
    }

    /// Whether so many failed that no further device may be touched.
    fn is_tripped(self, rules: &Rules) -> bool {
        let enough = rules.min_failures.clamp(1, self.takes_part.max(1));
        let most = self.takes_part * usize::from(rules.max_failure_percent);
        self.failed >= enough && self.failed * 100 > most
    }

    /// Whether enough are verified to go on.
    fn is_enough(self, rules: &Rules) -> bool {
        let share = self.takes_part * usize::from(rules.min_success_percent);
        self.verified >= share.div_ceil(100).max(1)
    }
}

fn running(rollout: &Rollout, now: Timestamp) -> Decision {
    let rules = &rollout.rules;
    let Some(current) = rollout.opened.checked_sub(1) else {
        return open_next(rollout, now);
    };
    let of_batch = || {
        let devices = rollout.devices.iter();
        devices.filter(move |device| device.batch == current)
    };
    let count = Count::of(of_batch());
    // Those of earlier batches that were lost and failed when they came back count, too.
    let tripped = [count, Count::of_opened(rollout)];
    if let Some(tripped) = tripped.into_iter().find(|count| count.is_tripped(rules)) {
        let Count {
            failed, takes_part, ..
        } = tripped;
        return give_up(rules, format!("{failed} of {takes_part} devices failed"));
    }
    if let Some(why) = &rollout.forbidden {
        return Decision::Turn(Event::Pause, why.clone());
    }
    let waiting: Vec<_> = of_batch()
        .filter(|device| device.standing == Standing::Waiting)
        .collect();
    if !waiting.is_empty() {
        return admit(rollout, &waiting, now);
    }
    let deadline = of_batch()
        .filter_map(|device| deadline(device, rules, now))
        .min();
    if let Some(deadline) = deadline {
        return Decision::Wait(Some(deadline), "devices are on their way".to_owned());
    }
    let is_untouched = count.takes_part == 0 && count.skipped == 0;
    if is_untouched || count.is_enough(rules) {
        return open_next(rollout, now);
    }
    let Count {
        verified,
        failed,
        lost,
        skipped,
        takes_part,
    } = count;
    let why = format!(
        "{verified} of {takes_part} devices of batch {} are verified, {failed} failed, {lost} are lost, {skipped} were offline",
        current + 1
    );
    if failed > 0 {
        give_up(rules, why)
    } else {
        Decision::Turn(Event::Pause, why)
    }
}

fn give_up(rules: &Rules, why: String) -> Decision {
    let event = if rules.auto_rollback {
        Event::RollBack
    } else {
        Event::Pause
    };
    Decision::Turn(event, why)
}

/// When a device gets its answer, if it is waited for.
fn deadline(device: &Device, rules: &Rules, now: Timestamp) -> Option<Timestamp> {
    match device.standing {
        Standing::Updating {
            healthy_since: Some(begun),
            ..
        } => Some(begun.plus_ms(rules.soak_ms.saturating_add(SILENCE_MS))),
        Standing::Updating { since, .. } => {
            let ended = since.plus_ms(rules.health_timeout_ms);
            // After its time it is heard of once more, or it is not.
            Some(if now < ended {
                ended
            } else {
                ended.plus_ms(SILENCE_MS)
            })
        }
        Standing::Readying { since } => Some(since.plus_ms(rules.health_timeout_ms)),
        _ => None,
    }
}

fn open_next(rollout: &Rollout, now: Timestamp) -> Decision {
    let batches = rollout.devices.iter().map(|device| device.batch + 1).max();
    if rollout.opened >= batches.unwrap_or(0) {
        return Decision::Turn(Event::Complete, "every batch is done".to_owned());
    }
    let needs_leave = rollout.rules.approve_batches && rollout.opened > 0;
    if needs_leave && rollout.opened >= rollout.approved {
        let why = format!("somebody has to approve batch {}", rollout.opened + 1);
        return stuck(rollout, None, why, now);
    }
    match rollout.window {
        Window::Open => Decision::OpenBatch,
        Window::Closed(until) => closed(rollout, until, now),
    }
}

fn closed(rollout: &Rollout, until: Option<Timestamp>, now: Timestamp) -> Decision {
    match until {
        // It opens by itself, however far away that is.
        Some(until) => Decision::Wait(Some(until), "its window is closed".to_owned()),
        None => stuck(rollout, None, "its window never opens".to_owned(), now),
    }
}

/// Gives the new version to devices of the open batch, as many as may be unavailable now.
fn admit(rollout: &Rollout, waiting: &[&Device], now: Timestamp) -> Decision {
    let rules = &rollout.rules;
    let away: Vec<_> = waiting
        .iter()
        .filter(|device| rules.skip_offline && !device.is_online)
        .map(|device| {
            let why = "it was offline at its turn, and catches up".to_owned();
            (device.id, Standing::Skipped, why)
        })
        .collect();
    if !away.is_empty() {
        return Decision::Note(away);
    }
    if let Window::Closed(until) = rollout.window {
        return closed(rollout, until, now);
    }
    let mut ready = waiting
        .iter()
        .filter(|device| device.window == Window::Open)
        .peekable();
    if ready.peek().is_none() {
        return shut_out(rollout, waiting, now);
    }
    let Some(budget) = &rules.budget else {
        return Decision::Update(ready.map(|device| device.id).collect());
    };
    let mut busy = rollout.unavailable.clone();
    let on_their_way = rollout.devices.iter();
    for device in on_their_way.filter(|device| device.standing.is_exposed()) {
        *busy.entry(device.group.clone()).or_default() += 1;
    }
    let may = ready.filter(|device| {
        let busy = busy.entry(device.group.clone()).or_default();
        let fits = *busy < budget.most;
        *busy += usize::from(fits);
        fits
    });
    let may: Vec<_> = may.map(|device| device.id).collect();
    if may.is_empty() {
        let all = rollout.devices.iter();
        let next = all.filter_map(|device| deadline(device, rules, now)).min();
        let why = "too many devices are unavailable for another one".to_owned();
        return stuck(rollout, next, why, now);
    }
    Decision::Update(may)
}

/// Whoever is to be told has a window of its own that is closed: the first that opens is waited for.
fn shut_out(rollout: &Rollout, waiting: &[&Device], now: Timestamp) -> Decision {
    let opens = waiting.iter().filter_map(|device| match device.window {
        Window::Closed(until) => until,
        Window::Open => None,
    });
    let Some(opens) = opens.min() else {
        let why = "the windows of its devices never open".to_owned();
        return stuck(rollout, None, why, now);
    };
    let all = rollout.devices.iter();
    let answers = all.filter_map(|device| deadline(device, &rollout.rules, now));
    let until = answers.min().map_or(opens, |answer| answer.min(opens));
    Decision::Wait(
        Some(until),
        "the windows of its devices are closed".to_owned(),
    )
}

/// The newest batch goes back first; the next when it is back, or its time is over.
fn returning(rollout: &Rollout) -> Decision {
    let all = || rollout.devices.iter();
    let on_their_way = all().filter_map(|device| match device.standing {
        Standing::Returning { since } => Some(since.plus_ms(rollout.rules.health_timeout_ms)),
        _ => None,
    });
    if let Some(deadline) = on_their_way.min() {
        return Decision::Wait(Some(deadline), "devices are on their way back".to_owned());
    }
    let touched = all().filter(|device| device.standing.was_touched());
    if let Some(batch) = touched.map(|device| device.batch).max() {
        let of_batch = all().filter(|device| device.batch == batch);
        let go = of_batch.filter(|device| device.standing.was_touched());
        return Decision::Return(go.map(|device| device.id).collect());
    }
    let away = all().filter(|device| device.standing == Standing::NotReturned);
    match away.count() {
        0 => Decision::Turn(Event::AllBack, "every device is back".to_owned()),
        many => Decision::Turn(Event::NotAllBack, format!("{many} devices are not back")),
    }
}

/// Those that were offline at their turn get what the others have, as many at a time as the largest batch has.
fn catch_up(rollout: &Rollout, now: Timestamp) -> Decision {
    let over = || Decision::Wait(None, "it is over".to_owned());
    if rollout.forbidden.is_some() || rollout.window != Window::Open {
        return over();
    }
    let mut sizes = BTreeMap::<usize, usize>::new();
    for device in &rollout.devices {
        *sizes.entry(device.batch).or_default() += 1;
    }
    let most = sizes.into_values().max().unwrap_or(0);
    let devices = || rollout.devices.iter();
    let on_their_way =
        devices().filter(|device| matches!(device.standing, Standing::Updating { .. }));
    let room = most.saturating_sub(on_their_way.count());
    let may = |device: &&Device| device.is_online && device.window == Window::Open;
    let back = devices().filter(|device| device.standing == Standing::Skipped && may(device));
    let go: Vec<_> = back.take(room).map(|device| device.id).collect();
    if !go.is_empty() {
        return Decision::Update(go);
    }
    let next = devices().filter_map(|device| deadline(device, &rollout.rules, now));
    next.min().map_or_else(over, |next| {
        Decision::Wait(Some(next), "devices catch up".to_owned())
    })
}

/// How a device stands that is to be tried again, and the batch it goes with; none if there is nothing to try.
pub fn retried(
    state: State,
    opened: usize,
    (batch, standing): (usize, &Standing),
    now: Timestamp,
) -> Option<(usize, Standing)> {
    let last = opened.saturating_sub(1);
    match (state, standing) {
        // Devices were to go back and did not: they are told again.
        (State::Failed, Standing::NotReturned) => Some((batch, Standing::Failed)),
        (State::Failed, _) => None,
        (_, Standing::Failed) => Some((last, Standing::Readying { since: now })),
        (_, Standing::Lost) => {
            let since = now;
            let healthy_since = None;
            Some((
                last,
                Standing::Updating {
                    since,
                    healthy_since,
                },
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
