//! Owns the agent's update of itself: two slots beside the installed program, a trial, and the way back.
//!
//! A release is an image that the target names. Its program is taken out, proved and written into the slot that
//! does not run; the launcher starts it with a deadline that the kernel holds, and only a program that has
//! looked at the engine and heard from the control API makes itself permanent.

pub mod launch;
pub mod launcher;
pub mod minisign;
pub mod release;
pub mod slots;
mod take;
mod trial;

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use holdfast_plan::{AgentWait, RunningAgent};
use holdfast_proto::target::Identity;
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use self::launcher::Launched;
use self::minisign::PublicKey;
use self::slots::{Came, FOLDER, Outcome, Place, Slots, Trial, Unreached};

pub use take::TakeError;
pub(crate) use take::holder;

/// A key that this very build trusts, given to the compiler.
const BUILT_IN: Option<&str> = option_env!("HOLDFAST_RELEASE_KEY");
/// A release that reached nobody is tried again after so long each time, then given up: what is away may be
/// back, and each try is a pause in which nobody looks after the containers.
const PAUSES_MS: [u64; 3] = [60_000, 600_000, 3_600_000];
/// Where the launcher could not write down what becomes of a release, none is tried for so long: the disk is mended
/// by hand, and each try would end as the one before it.
const UNWRITTEN_MS: u64 = 600_000;
/// How long a release on trial may take to look at the engine and to hear from the control API, in
/// milliseconds: less than the kernel gives it, so that it can say what it lacked.
const PROOF_MS: u64 = 30_000;

/// What the agent says of itself on its device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentStatus {
    /// Where the program is that runs.
    pub place: Place,
    /// The pinned image that it came from; none if it was installed with the machine.
    pub image: Option<String>,
    /// Whether it has yet to prove itself.
    pub on_trial: bool,
    /// What came of the last update.
    pub last: Option<Outcome>,
}

/// The agent's programs, and what this one may do about them.
#[derive(Debug)]
pub struct SelfUpdate {
    folder: PathBuf,
    launched: Launched,
    keys: Vec<PublicKey>,
    slots: RefCell<Slots>,
    /// Why what is remembered could not be read, if it could not.
    damaged: Option<String>,
    /// Whether this program has yet to prove itself.
    on_trial: Cell<bool>,
    /// Whether this program has written down that another one is to be tried.
    begun: Cell<bool>,
    /// Not before this time (monotonic) what reached nobody is tried again.
    again_ms: u64,
}

impl SelfUpdate {
    /// Of the program that was launched so; `keys` were checked with the settings.
    pub fn open(state_dir: &Path, launched: &Launched, keys: &[String], now: Timestamp) -> Self {
        let folder = state_dir.join(FOLDER);
        let (slots, damaged) = match Slots::read(&folder) {
            Ok(slots) => (slots, None),
            Err(why) => (Slots::default(), Some(why)),
        };
        let is_own_trial = |trial: &Trial| trial.place == launched.place && trial.begun.is_some();
        let on_trial = slots.trial.as_ref().is_some_and(is_own_trial);
        let again_ms = slots
            .unreached
            .as_ref()
            .map_or(0, |unreached| pause_left_ms(unreached, now));
        let keys = BUILT_IN.into_iter().chain(keys.iter().map(String::as_str));
        Self {
            folder,
            launched: launched.clone(),
            keys: keys.filter_map(|key| PublicKey::parse(key).ok()).collect(),
            slots: RefCell::new(slots),
            damaged,
            on_trial: Cell::new(on_trial),
            begun: Cell::new(false),
            again_ms,
        }
    }

    /// What is wrong with the agent's programs, if something is: for people.
    pub fn complaint(&self) -> Option<&str> {
        self.damaged.as_deref().or(self.launched.note.as_deref())
    }

    /// Whether this program has yet to prove itself: it changes nothing until then.
    pub fn is_on_trial(&self) -> bool {
        self.on_trial.get()
    }

    /// Whether this program is to make place for another one.
    pub fn makes_place(&self) -> bool {
        self.begun.get()
    }

    /// The agent in the planner's words; `hears` says whether the control API answers.
    pub fn running(&self, now: Timestamp, now_ms: u64, hears: bool) -> RunningAgent {
        let slots = self.slots.borrow();
        let mut running = slots.running(self.launched.place);
        if let Some(trial) = slots.trial.as_ref().filter(|_| self.is_on_trial()) {
            running.identity = Some(trial.release.identity);
            running.image = Some(trial.release.image.clone());
            running.on_trial_until = Some(plus(now, PROOF_MS.saturating_sub(now_ms)));
        }
        running.waits = self.waits(&slots, now, now_ms, hears);
        running
    }

    fn waits(&self, slots: &Slots, now: Timestamp, now_ms: u64, hears: bool) -> Option<AgentWait> {
        let left_ms = UNWRITTEN_MS.saturating_sub(now_ms);
        if let Some(why) = self
            .launched
            .note
            .as_ref()
            .filter(|_| self.launched.unwritten)
            && left_ms > 0
        {
            return Some(AgentWait {
                of: None,
                until: Some(plus(now, left_ms)),
                why: why.clone(),
            });
        }
        let left_ms = self.again_ms.saturating_sub(now_ms);
        if let Some(unreached) = slots.unreached.as_ref().filter(|_| left_ms > 0) {
            return Some(AgentWait {
                of: Some(unreached.identity),
                until: Some(plus(now, left_ms)),
                why: format!("its last try ended because {}", unreached.reason),
            });
        }
        (!hears).then(|| AgentWait {
            of: None,
            until: None,
            why: "the control API does not answer: whether another agent works could not be seen"
                .to_owned(),
        })
    }

    /// What the device's owner is shown.
    pub fn status(&self) -> AgentStatus {
        let slots = self.slots.borrow();
        let trial = slots.trial.as_ref().filter(|_| self.is_on_trial());
        let image = trial.map(|trial| trial.release.image.clone());
        AgentStatus {
            place: self.launched.place,
            image: image.or_else(|| slots.running(self.launched.place).image),
            on_trial: self.is_on_trial(),
            last: slots.last.clone(),
        }
    }

    /// What is shown while no agent runs, and what a plan is made with then.
    pub fn asleep(state_dir: &Path) -> (AgentStatus, RunningAgent) {
        let slots = Slots::read(&state_dir.join(FOLDER)).unwrap_or_default();
        let place = slots.current.as_ref().map(|current| current.place);
        let running = slots.running(place.unwrap_or_default());
        let status = AgentStatus {
            place: place.unwrap_or_default(),
            image: running.image.clone(),
            on_trial: false,
            last: slots.last,
        };
        (status, running)
    }

    /// Forgets that a release failed: the target named another one since, and may name this one again.
    pub fn pardon(&self, identity: &Identity) {
        let outcome = self.change(|slots| {
            let failed = slots.failed.as_ref();
            if failed.is_some_and(|failed| failed.identity == *identity) {
                slots.failed = None;
            }
        });
        if let Err(error) = outcome {
            tracing::warn!(%error, "that a release of the agent failed is not forgotten yet");
        }
    }

    /// Writes a change down; nothing, if it is none.
    fn change(&self, change: impl FnOnce(&mut Slots)) -> std::io::Result<()> {
        let mut slots = self.slots.borrow().clone();
        change(&mut slots);
        if slots == *self.slots.borrow() {
            return Ok(());
        }
        slots.write(&self.folder)?;
        *self.slots.borrow_mut() = slots;
        Ok(())
    }

    /// This program was asked to end before it had proved itself: that says nothing of it.
    pub fn end_trial_in_good_order(&self) {
        if !self.is_on_trial() {
            return;
        }
        launcher::disarm();
        let outcome = self.change(|slots| {
            if let Some(trial) = &mut slots.trial {
                trial.begun = None;
            }
        });
        if let Err(error) = outcome {
            tracing::warn!(%error, "the trial of this agent counts as failed: it could not be taken back");
        }
    }

    /// This program has proved itself.
    fn confirm(&self, now: Timestamp) -> std::io::Result<()> {
        self.change(|slots| {
            let Some(trial) = slots.trial.take() else {
                return;
            };
            slots.note(&trial.release, Came::Confirmed, None, now);
            slots.current = Some(slots::Current {
                place: trial.place,
                release: trial.release,
                starts: 0,
            });
            (slots.failed, slots.unreached, slots.superseded) = (None, None, None);
        })?;
        launcher::disarm();
        self.on_trial.set(false);
        Ok(())
    }

    /// This program lives, and did not reach what it has to reach in time.
    fn give_back(&self, reason: &str, now: Timestamp) -> std::io::Result<()> {
        self.change(|slots| {
            let Some(trial) = slots.trial.take() else {
                return;
            };
            let before = slots.unreached.take();
            let before = before.filter(|before| before.identity == trial.release.identity);
            let times = 1 + before.map_or(0, |before| before.times);
            if usize::try_from(times).unwrap_or(usize::MAX) > PAUSES_MS.len() {
                let reason = format!("{reason}, {times} times");
                slots.fail(&trial.release, reason, now);
                return;
            }
            slots.note(&trial.release, Came::Unreached, Some(reason), now);
            slots.unreached = Some(Unreached {
                identity: trial.release.identity,
                times,
                at: now,
                reason: reason.to_owned(),
            });
        })
    }

    /// A confirmed release was seen to work: its starts are counted anew.
    fn note_good_start(&self) -> std::io::Result<()> {
        self.change(|slots| {
            if let Some(current) = &mut slots.current {
                current.starts = 0;
            }
        })
    }
}

/// How much of a pause is left at a start. A wall clock that jumped makes it a whole one at most.
fn pause_left_ms(unreached: &Unreached, now: Timestamp) -> u64 {
    let times = usize::try_from(unreached.times.saturating_sub(1)).unwrap_or(usize::MAX);
    let pause_ms = PAUSES_MS
        .get(times)
        .or(PAUSES_MS.last())
        .copied()
        .unwrap_or(0);
    let since_ms = u64::try_from(now.since_ms(unreached.at)).unwrap_or(0);
    pause_ms.saturating_sub(since_ms)
}

fn plus(now: Timestamp, ms: u64) -> Timestamp {
    now.plus_ms(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// Bytes in hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::slots::tests::release;
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_219_200_000);

    fn on_trial() -> (tempfile::TempDir, SelfUpdate) {
        let folder = tempfile::tempdir().unwrap();
        let slots = Slots {
            trial: Some(Trial {
                place: Place::A,
                release: release("2"),
                tries: 1,
                begun: Some(launcher::moment()),
            }),
            ..Slots::default()
        };
        std::fs::create_dir(folder.path().join(FOLDER)).unwrap();
        slots.write(&folder.path().join(FOLDER)).unwrap();
        let agent = open(&folder, Place::A, NOW);
        (folder, agent)
    }

    fn open(folder: &tempfile::TempDir, place: Place, now: Timestamp) -> SelfUpdate {
        let launched = Launched {
            place,
            ..Launched::directly()
        };
        SelfUpdate::open(folder.path(), &launched, &[], now)
    }

    #[test]
    fn a_confirmed_release_is_what_runs_from_now_on() {
        let (folder, agent) = on_trial();
        assert!(agent.is_on_trial());
        let running = agent.running(NOW, 5_000, true);
        assert_eq!(running.identity, Some(release("2").identity));
        assert_eq!(running.on_trial_until, Some(NOW.plus_ms(25_000)));
        agent.confirm(NOW).unwrap();
        for agent in [agent, open(&folder, Place::A, NOW)] {
            let running = agent.running(NOW, 5_000, true);
            assert_eq!(running.identity, Some(release("2").identity));
            assert_eq!(running.on_trial_until, None);
            assert_eq!(agent.status().last.unwrap().came, Came::Confirmed);
        }
        let other = open(&folder, Place::Package, NOW).running(NOW, 0, true);
        assert_eq!(other.identity, None, "the installed program is no release");
    }

    #[test]
    fn what_reached_nobody_is_tried_again_later_and_later_and_then_given_up() {
        let (folder, agent) = on_trial();
        let trial = agent.slots.borrow().trial.clone();
        let mut agent = agent;
        for pause_ms in PAUSES_MS {
            agent.give_back("it heard nothing", NOW).unwrap();
            let old = open(&folder, Place::Package, NOW.plus_ms(10));
            let wait = old.running(NOW, 0, true).waits.unwrap();
            assert_eq!(wait.of, Some(release("2").identity));
            let left = i64::try_from(pause_ms).unwrap() - 10;
            assert_eq!(wait.until, Some(NOW.plus_ms(left)));
            assert_eq!(old.running(NOW, pause_ms, true).waits, None);
            assert_eq!(old.running(NOW, 0, true).failed, None);
            // Its next trial.
            let again = |slots: &mut Slots| slots.trial.clone_from(&trial);
            old.change(again).unwrap();
            agent = open(&folder, Place::A, NOW);
        }
        agent.give_back("it heard nothing", NOW).unwrap();
        let old = open(&folder, Place::Package, NOW).running(NOW, 0, true);
        assert_eq!(old.waits, None);
        let failed = old.failed.unwrap();
        assert_eq!(failed.reason, "it heard nothing, 4 times");
    }

    #[test]
    fn a_clock_that_jumped_makes_no_pause_longer() {
        let (folder, agent) = on_trial();
        agent.give_back("it heard nothing", NOW).unwrap();
        for jump_ms in [-1_000_000_000_000, 0] {
            let old = open(&folder, Place::Package, NOW.plus_ms(jump_ms));
            assert_eq!(old.running(NOW, PAUSES_MS[0], true).waits, None);
            assert!(old.running(NOW, 0, true).waits.is_some());
        }
    }

    #[test]
    fn a_trial_that_was_ended_in_good_order_is_begun_again() {
        let (folder, agent) = on_trial();
        agent.end_trial_in_good_order();
        let slots = Slots::read(&folder.path().join(FOLDER)).unwrap();
        let trial = slots.trial.unwrap();
        assert_eq!((trial.begun, trial.tries), (None, 1));
        assert_eq!(slots.failed, None);
    }

    #[test]
    fn without_the_control_api_nothing_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let agent = open(&folder, Place::Package, NOW);
        assert!(agent.running(NOW, 0, false).waits.is_some());
        assert_eq!(agent.running(NOW, 0, true), RunningAgent::default());
    }

    #[test]
    fn where_nothing_could_be_written_down_no_release_is_tried_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let launched = |unwritten| Launched {
            note: Some("the disk is full".to_owned()),
            unwritten,
            ..Launched::directly()
        };
        let open = |unwritten| SelfUpdate::open(folder.path(), &launched(unwritten), &[], NOW);
        let wait = open(true).running(NOW, 1_000, true).waits.unwrap();
        assert_eq!(wait.until, Some(NOW.plus_ms(599_000)));
        assert_eq!(wait.why, "the disk is full");
        assert_eq!(open(true).running(NOW, UNWRITTEN_MS, true).waits, None);
        let other = open(false);
        assert_eq!(other.running(NOW, 0, true).waits, None);
        assert_eq!(other.complaint(), Some("the disk is full"));
    }

    #[test]
    fn a_damaged_file_is_told_and_the_installed_program_runs() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(FOLDER)).unwrap();
        std::fs::write(folder.path().join(FOLDER).join("state.json"), "{").unwrap();
        let agent = open(&folder, Place::Package, NOW);
        assert!(agent.complaint().unwrap().contains("state.json"));
        assert_eq!(agent.running(NOW, 0, true), RunningAgent::default());
    }
}
