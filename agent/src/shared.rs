//! Owns what the loops of one agent show each other: the target, the view of the device, wake-ups.
//!
//! Every slot holds the newest value only: nothing queues, so nothing grows.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use holdfast_proto::current::{AppReport, EngineReport, HoldReport, PullReport, UpdateStatus};
use holdfast_proto::id::AppId;
use holdfast_proto::image::Platform;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;
use tokio::sync::Notify;

use crate::status::PlannedStep;

/// While images come, so often their progress is told: a person watches, and a report is a kilobyte.
const PULLS_TOLD_MS: u64 = 10_000;

/// Notice: the journal cannot be written, so nothing is changed and no new target is used.
pub const JOURNAL_UNWRITABLE: &str = "journal_unwritable";

/// Notice: the engine fetches images by itself although the agent should.
pub const FETCHED_BY_ENGINE: &str = "fetched_by_engine";

/// A target that was accepted and is on the disk.
#[derive(Debug, PartialEq)]
pub struct Accepted {
    /// The target.
    pub target: TargetState,
    /// Its entity tag.
    pub etag: Option<String>,
}

/// What the reconcile loop saw and decided last.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Generation of the target it is about.
    pub generation: u64,
    /// Entity tag of that target.
    pub etag: Option<String>,
    /// How far the device is.
    pub status: UpdateStatus,
    /// The services as the engine runs them.
    pub apps: BTreeMap<AppId, AppReport>,
    /// The next steps.
    pub steps: Vec<PlannedStep>,
    /// What is not done and why.
    pub holds: Vec<HoldReport>,
    /// When a hold may end by time alone.
    pub look_again: Option<Timestamp>,
    /// The engine's account of itself.
    pub engine: Option<EngineReport>,
    /// The device's platform and where its engine keeps images, once the engine told.
    pub machine: Option<(Platform, PathBuf)>,
}

impl View {
    /// The view before anything was looked at.
    pub fn unknown() -> Self {
        Self {
            generation: 0,
            etag: None,
            status: UpdateStatus::NoTarget,
            apps: BTreeMap::new(),
            steps: Vec::new(),
            holds: Vec::new(),
            look_again: None,
            engine: None,
            machine: None,
        }
    }

    /// Whether a reader of reports would see a difference: times inside texts do not count.
    pub fn differs_from(&self, other: &Self) -> bool {
        let holds = |view: &Self| -> Vec<(String, Option<String>)> {
            let of = |hold: &HoldReport| (hold.code.clone(), hold.service.clone());
            view.holds.iter().map(of).collect()
        };
        self.generation != other.generation
            || self.etag != other.etag
            || self.status != other.status
            || self.apps != other.apps
            || self.steps != other.steps
            || self.engine != other.engine
            || holds(self) != holds(other)
    }
}

/// What the loops share.
pub struct Shared {
    target: RefCell<Option<Rc<Accepted>>>,
    view: RefCell<Rc<View>>,
    notices: RefCell<BTreeMap<&'static str, String>>,
    pulls: RefCell<Vec<PullReport>>,
    pulls_told_ms: Cell<u64>,
    sight_lost: Cell<bool>,
    /// Whether the engine was looked at once.
    looked: Cell<bool>,
    /// Whether the server's last answer was a good one.
    hears: Cell<bool>,
    /// Whether somebody wants the server asked, and it has not answered since.
    asked: Cell<bool>,
    hurried: Cell<bool>,
    /// Wakes the reconcile loop.
    pub reconcile: Notify,
    /// Wakes the report loop.
    pub report: Notify,
    /// Wakes the poll loop.
    pub poll: Notify,
}

impl Shared {
    /// Begins with the target from the disk, if there is one.
    pub fn new(target: Option<Accepted>) -> Self {
        Self {
            target: RefCell::new(target.map(Rc::new)),
            view: RefCell::new(Rc::new(View::unknown())),
            notices: RefCell::default(),
            pulls: RefCell::default(),
            pulls_told_ms: Cell::default(),
            sight_lost: Cell::new(false),
            looked: Cell::new(false),
            hears: Cell::new(false),
            asked: Cell::new(false),
            hurried: Cell::new(false),
            reconcile: Notify::new(),
            report: Notify::new(),
            poll: Notify::new(),
        }
    }

    /// The accepted target.
    pub fn target(&self) -> Option<Rc<Accepted>> {
        self.target.borrow().clone()
    }

    /// Announces a target that is on the disk already.
    pub fn announce(&self, accepted: Accepted) {
        *self.target.borrow_mut() = Some(Rc::new(accepted));
        self.reconcile.notify_one();
    }

    /// The newest view.
    pub fn view(&self) -> Rc<View> {
        self.view.borrow().clone()
    }

    /// Publishes a view; a report follows if it differs.
    pub fn publish(&self, view: View) {
        let differs = view.differs_from(&self.view.borrow());
        *self.view.borrow_mut() = Rc::new(view);
        if differs {
            self.report.notify_one();
        }
    }

    /// The engine's events ended: it may have been away, and may have ended containers meanwhile.
    pub fn lose_sight(&self) {
        self.sight_lost.set(true);
        self.reconcile.notify_one();
    }

    /// Whether that happened since it was last asked.
    pub fn take_sight_lost(&self) -> bool {
        self.sight_lost.take()
    }

    /// The engine was looked at, whole.
    pub fn note_look(&self) {
        self.looked.set(true);
    }

    /// Whether it ever was.
    pub fn has_looked(&self) -> bool {
        self.looked.get()
    }

    /// Notes whether the server gave a target that can be used, or said that the accepted one is it.
    pub fn note_heard(&self, hears: bool) {
        if self.hears.replace(hears) != hears {
            self.reconcile.notify_one();
        }
    }

    /// Whether it did the last time it was asked.
    pub fn hears(&self) -> bool {
        self.hears.get()
    }

    /// Somebody wants an update now: the server is asked, and what failed is tried again, at once.
    pub fn hurry(&self) {
        self.asked.set(true);
        self.hurried.set(true);
        self.poll.notify_one();
        self.reconcile.notify_one();
    }

    /// The server was asked, with whatever outcome.
    pub fn note_asked(&self) {
        if self.asked.take() {
            self.reconcile.notify_one();
        }
    }

    /// Whether the server is still to be asked for somebody who wants an update now.
    pub fn is_asking(&self) -> bool {
        self.asked.get()
    }

    /// Whether somebody wanted an update now since this was last asked.
    pub fn take_hurry(&self) -> bool {
        self.hurried.take()
    }

    /// Says something about the agent itself in every report until it is cleared.
    pub fn notice(&self, code: &'static str, detail: &str) {
        let before = self.notices.borrow_mut().insert(code, detail.to_owned());
        if before.as_deref() != Some(detail) {
            self.report.notify_one();
        }
    }

    /// Ends a notice.
    pub fn clear_notice(&self, code: &'static str) {
        if self.notices.borrow_mut().remove(code).is_some() {
            self.report.notify_one();
        }
    }

    /// Notes how far images on their way are. Reports tell it now and then while they come.
    pub fn note_pulls(&self, pulls: Vec<PullReport>, now_ms: u64) {
        let begins_or_ends = pulls.len() != self.pulls.borrow().len();
        self.pulls.replace(pulls);
        if begins_or_ends || now_ms >= self.pulls_told_ms.get().saturating_add(PULLS_TOLD_MS) {
            self.pulls_told_ms.set(now_ms);
            self.report.notify_one();
        }
    }

    /// Images on their way.
    pub fn pulls(&self) -> Vec<PullReport> {
        self.pulls.borrow().clone()
    }

    /// The notices as reports carry them.
    pub fn notices(&self) -> Vec<HoldReport> {
        let notices = self.notices.borrow();
        let report = |(code, detail): (&&str, &String)| HoldReport {
            code: (*code).to_owned(),
            service: None,
            detail: detail.clone(),
        };
        notices.iter().map(report).collect()
    }
}
