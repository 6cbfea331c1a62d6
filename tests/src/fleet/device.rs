//! One simulated device: its machine, what it heard and said, and the switches that a test turns.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use holdfast_proto::current::CurrentState;
use holdfast_proto::image::ConfigDigest;
use holdfast_proto::target::TargetState;
use tokio::sync::{Notify, watch};

use super::Troubled;
use super::draw::Draw;
use super::machine::{Machine, Nature, Refused};
use crate::clock::unix_millis;

/// Reports that a device can send again: enough to be older than anything that a rollout still waits for.
const REPORTS_KEPT: usize = 32;

/// How it sends its reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Each once, in order.
    Orderly,
    /// Each twice.
    Twice,
    /// After each one, an earlier one again.
    Shuffled,
    /// Not at all.
    Silent,
}

/// What is drawn for each device.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// From a target to the end of its trial.
    pub takes_ms: i64,
    /// What its pauses are drawn from.
    pub seed: u64,
}

#[derive(Debug)]
struct Inner {
    machine: Machine,
    manner: Manner,
    draw: Draw,
    told: BTreeSet<ConfigDigest>,
    sent: VecDeque<CurrentState>,
    /// Reports to send again, whatever is newer.
    again: VecDeque<CurrentState>,
    wrongs: Vec<String>,
    older: Vec<String>,
    is_disowned: bool,
}

/// The device.
#[derive(Debug)]
pub struct Device {
    /// Its id.
    pub uuid: String,
    /// Its number in the fleet.
    pub number: usize,
    token: String,
    troubled: Troubled,
    inner: Mutex<Inner>,
    online: watch::Sender<bool>,
    /// Something is to be told.
    pub(super) tell: Notify,
}

impl Device {
    pub(super) fn new(
        uuid: String,
        token: String,
        number: usize,
        habits: Habits,
        troubled: Troubled,
    ) -> Self {
        let machine = Machine::new(format!("journal-{uuid}"), Nature::Good, habits.takes_ms);
        Self {
            uuid,
            number,
            token,
            troubled,
            inner: Mutex::new(Inner {
                machine,
                manner: Manner::Orderly,
                draw: Draw::new(habits.seed),
                told: BTreeSet::new(),
                sent: VecDeque::new(),
                again: VecDeque::new(),
                wrongs: Vec::new(),
                older: Vec::new(),
                is_disowned: false,
            }),
            online: watch::Sender::new(true),
            tell: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it does with troubled versions from now on.
    pub fn set_nature(&self, nature: Nature) {
        self.inner().machine.nature = nature;
    }

    /// How long its trials take from now on.
    pub fn set_takes_ms(&self, takes_ms: i64) {
        self.inner().machine.takes_ms = takes_ms;
    }

    /// How wrong its own clock is from now on.
    pub fn set_clock_off_ms(&self, off_ms: i64) {
        self.inner().machine.clock_off_ms = off_ms;
    }

    /// How it sends reports from now on.
    pub fn set_manner(&self, manner: Manner) {
        self.inner().manner = manner;
    }

    /// Whether it reaches the API from now on.
    pub fn set_online(&self, is_online: bool) {
        self.online.send_replace(is_online);
        self.tell.notify_one();
    }

    /// Sends the oldest report that is kept once more.
    pub fn replay(&self) {
        let mut inner = self.inner();
        let oldest = inner.sent.front().cloned();
        inner.again.extend(oldest);
        drop(inner);
        self.tell.notify_one();
    }

    /// Whether this version serves on it.
    pub fn runs(&self, content: ConfigDigest) -> bool {
        self.inner().machine.runs().contains(&content)
    }

    /// Whether it was ever told to run this version.
    pub fn was_told(&self, content: ConfigDigest) -> bool {
        self.inner().told.contains(&content)
    }

    /// The generation that it accepted last.
    pub fn generation(&self) -> u64 {
        self.inner().machine.generation()
    }

    /// Whether the API does not know it any more.
    pub fn is_disowned(&self) -> bool {
        self.inner().is_disowned
    }

    /// What no API may do; with one API only, older generations than before are among it.
    pub fn wrongs(&self, is_one_api: bool) -> Vec<String> {
        let inner = self.inner();
        let older = inner.older.iter().filter(|_| is_one_api);
        let wrongs = inner.wrongs.iter().chain(older);
        wrongs
            .map(|wrong| format!("{}: {wrong}", self.uuid))
            .collect()
    }

    pub(super) fn token(&self) -> &str {
        &self.token
    }

    pub(super) fn online(&self) -> watch::Receiver<bool> {
        self.online.subscribe()
    }

    pub(super) fn etag(&self) -> Option<String> {
        self.inner().machine.etag()
    }

    pub(super) fn disown(&self) {
        self.inner().is_disowned = true;
    }

    /// Takes a target as it came; says whether it did.
    pub(super) fn hear(&self, etag: &str, body: &[u8]) -> bool {
        let mut inner = self.inner();
        let heard = match TargetState::parse(body) {
            Err(errors) => {
                let wrong = format!("a target that no device takes: {errors:?}");
                inner.wrongs.push(wrong);
                return false;
            }
            Ok(target) => {
                let pins = target
                    .services()
                    .filter_map(|(_, service)| service.pin.clone());
                let contents = pins.filter_map(|pin| Some(pin.expected?.config_digest));
                inner.told.extend(contents);
                inner.machine.accept(etag, &target, unix_millis())
            }
        };
        match heard {
            Ok(()) => {}
            Err(refused @ Refused::Older { .. }) => inner.older.push(refused.to_string()),
            Err(refused @ Refused::TwoContents { .. }) => inner.wrongs.push(refused.to_string()),
        }
        drop(inner);
        self.tell.notify_one();
        heard.is_ok()
    }

    /// Does what is due.
    pub(super) fn step(&self) -> bool {
        let troubled = self.troubled.clone();
        let is_troubled = move |content| troubled.has(content);
        self.inner().machine.step(&is_troubled, unix_millis())
    }

    /// When there is something to do by itself.
    pub(super) fn due_in_ms(&self) -> Option<u64> {
        let now_ms = unix_millis();
        let due = self.inner().machine.next_due(now_ms)?;
        u64::try_from(due - now_ms).ok()
    }

    /// A span of about this length, so that devices do not march in step.
    pub(super) fn about_ms(&self, span_ms: u64) -> u64 {
        self.inner()
            .draw
            .between(span_ms / 2, span_ms + span_ms / 2)
    }

    /// What is to be sent now, in this order.
    pub(super) fn reports(&self) -> Vec<CurrentState> {
        let troubled = self.troubled.clone();
        let is_troubled = move |content| troubled.has(content);
        let mut inner = self.inner();
        let mut all = Vec::new();
        if inner.manner != Manner::Silent {
            let newest = inner.machine.report(&is_troubled, unix_millis());
            all.push(newest.clone());
            match inner.manner {
                Manner::Twice => all.push(newest.clone()),
                Manner::Shuffled => {
                    let most = u64::try_from(inner.sent.len()).unwrap_or(0);
                    let at = usize::try_from(inner.draw.between(0, most)).unwrap_or(0);
                    all.extend(inner.sent.get(at).cloned());
                }
                Manner::Orderly | Manner::Silent => {}
            }
            inner.sent.push_back(newest);
            if inner.sent.len() > REPORTS_KEPT {
                inner.sent.pop_front();
            }
        }
        all.extend(std::mem::take(&mut inner.again));
        all
    }
}
