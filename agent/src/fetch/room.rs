//! Owns what is going on between the engine and the registries: the pulls, the blobs of all of them, what the engine
//! asked for, and what it may be given.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use holdfast_proto::current::PullReport;
use holdfast_proto::image::Digest;
use holdfast_registry::{Client, Contents};
use tokio::sync::{Notify, watch};

use super::download::{DownloadError, Progress};
use super::endpoint::{Document, Endpoint, Offer, Span};
use super::feed::{Answer, Feed};
use super::patience::Patience;
use super::spool::Spool;
use super::transport::Job;

/// A rate over less time than this says nothing.
const RATE_MS: u64 = 3_000;

/// What is going on now.
#[derive(Default)]
pub struct Room {
    pub(super) state: RefCell<State>,
    /// A pull came or went, or the engine asked for a blob.
    pub(super) changed: Notify,
    /// Why the engine could not be given the last image.
    pub(super) unreached: RefCell<Option<String>>,
    /// Which registries are not asked now.
    pub(super) patience: RefCell<Patience>,
    /// Whether no neighbour is asked for blobs.
    asks_nobody: bool,
}

#[derive(Default)]
pub(super) struct State {
    /// Open while there are pulls.
    pub(super) endpoint: Option<Rc<Endpoint>>,
    /// The oldest first.
    pub(super) pulls: Vec<Rc<Pulling>>,
    /// Of all pulls together.
    pub(super) blobs: BTreeMap<Digest, Rc<Blob>>,
    /// What the engine asked for and is not whole, in that order.
    pub(super) queue: Vec<Digest>,
}

/// One pull.
pub(super) struct Pulling {
    pub(super) job: Job,
    pub(super) client: Client,
    pub(super) document: Document,
    pub(super) pieces: BTreeMap<Digest, u64>,
    /// When it was looked at first, and what was there then.
    begun: Cell<Option<(u64, u64)>>,
    /// Why it cannot be, once that is known.
    pub(super) failed: watch::Sender<Option<Arc<DownloadError>>>,
}

/// A blob of some pull.
pub(super) struct Blob {
    pub(super) size: u64,
    pub(super) progress: watch::Sender<Progress>,
    /// Whether a neighbour waits for it: it does not stand in line then.
    pub(super) is_awaited: Cell<bool>,
    was_asked: Cell<bool>,
    delivered: Rc<Cell<bool>>,
}

impl Blob {
    fn new(size: u64) -> Rc<Self> {
        Rc::new(Self {
            size,
            progress: watch::Sender::new(Progress::Growing(0)),
            is_awaited: Cell::default(),
            was_asked: Cell::default(),
            delivered: Rc::default(),
        })
    }
}

impl State {
    /// The pulls of images with this blob. The newest first: an older one's registry may be what stands still.
    pub(super) fn that_have(&self, digest: &Digest) -> impl Iterator<Item = &Rc<Pulling>> {
        let newest_first = self.pulls.iter().rev();
        newest_first.filter(|pull| pull.pieces.contains_key(digest))
    }
}

impl Room {
    /// An empty one of a device that asks neighbours for blobs, or none.
    pub fn new(asks_nobody: bool) -> Self {
        Self {
            asks_nobody,
            ..Self::default()
        }
    }

    pub(super) fn enter(&self, pulling: &Rc<Pulling>) {
        let mut state = self.state.borrow_mut();
        for (digest, size) in &pulling.pieces {
            let blob = state
                .blobs
                .entry(*digest)
                .or_insert_with(|| Blob::new(*size));
            if matches!(*blob.progress.borrow(), Progress::Failed(_)) {
                *blob = Blob::new(*size);
            }
        }
        state.pulls.push(Rc::clone(pulling));
        drop(state);
        self.changed.notify_one();
    }

    /// Forgets a pull, and what no other one needs.
    pub(super) fn leave(&self, pulling: &Rc<Pulling>) {
        let mut state = self.state.borrow_mut();
        let State {
            pulls,
            blobs,
            queue,
            endpoint,
        } = &mut *state;
        pulls.retain(|other| !Rc::ptr_eq(other, pulling));
        let needed = |digest: &Digest| pulls.iter().any(|pull| pull.pieces.contains_key(digest));
        blobs.retain(|digest, _| needed(digest));
        queue.retain(needed);
        if pulls.is_empty() {
            *endpoint = None;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// How far the pulls are.
    pub(super) fn reports(&self, now_ms: u64) -> Vec<PullReport> {
        let state = self.state.borrow();
        let here = |digest: &Digest| match state.blobs.get(digest) {
            Some(blob) => match *blob.progress.borrow() {
                Progress::Growing(bytes) => bytes,
                Progress::Whole => blob.size,
                Progress::Failed(_) => 0,
            },
            None => 0,
        };
        let report = |pull: &Rc<Pulling>| {
            let fetched_bytes = pull.pieces.keys().map(here).sum();
            let most_bytes = pull.pieces.values().sum();
            let (begun_ms, begun_bytes) = pull.begun.get().unwrap_or((now_ms, fetched_bytes));
            pull.begun.set(Some((begun_ms, begun_bytes)));
            let took_ms = now_ms.saturating_sub(begun_ms);
            let came = fetched_bytes.saturating_sub(begun_bytes);
            let rate = (took_ms >= RATE_MS).then(|| came.saturating_mul(1_000) / took_ms);
            PullReport {
                image: pull.job.repository.to_string(),
                fetched_bytes,
                most_bytes,
                bytes_per_second: rate,
                seconds_left: rate
                    .filter(|rate| *rate > 0)
                    .map(|rate| most_bytes.saturating_sub(fetched_bytes).div_ceil(rate)),
            }
        };
        state.pulls.iter().map(report).collect()
    }

    /// How many bytes a blob has that is on its way here, and how far it is. Before its first byte it is promised
    /// only where nobody is asked: whoever asks a neighbour that asks back would wait for itself.
    pub(super) fn on_its_way(&self, blob: &Digest) -> Option<(u64, watch::Receiver<Progress>)> {
        let state = self.state.borrow();
        let blob = state.blobs.get(blob)?;
        match *blob.progress.borrow() {
            Progress::Growing(1..) => {}
            Progress::Growing(0) if self.asks_nobody && blob.was_asked.get() => {
                blob.is_awaited.set(true);
                self.changed.notify_one();
            }
            Progress::Growing(0) | Progress::Whole | Progress::Failed(_) => return None,
        }
        Some((blob.size, blob.progress.subscribe()))
    }

    /// What the engine needs of the spool: blobs it asked for and has not read to the end.
    pub(super) fn kept(&self) -> Vec<Digest> {
        let state = self.state.borrow();
        let kept = state.blobs.iter();
        let kept = kept.filter(|(_, blob)| blob.was_asked.get() && !blob.delivered.get());
        kept.map(|(digest, _)| *digest).collect()
    }
}

/// A pull while it lasts.
pub(super) struct Entered<'a> {
    pub(super) room: &'a Room,
    pub(super) pulling: Rc<Pulling>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.room.leave(&self.pulling);
    }
}

impl Pulling {
    pub(super) fn new(job: &Job, client: Client, contents: Contents) -> Self {
        let Contents {
            media_type,
            bytes,
            config,
            layers,
        } = contents;
        let pieces = std::iter::once(config).chain(layers);
        Self {
            job: job.clone(),
            client,
            document: Document { media_type, bytes },
            pieces: pieces.map(|piece| (piece.digest, piece.size)).collect(),
            begun: Cell::default(),
            failed: watch::Sender::new(None),
        }
    }
}

/// What the engine may be given: whatever some pull needs.
pub(super) struct Shelf<'a> {
    pub(super) room: &'a Room,
    pub(super) spool: &'a Spool,
}

impl Offer for Shelf<'_> {
    fn manifest(&self, digest: Digest) -> Option<Document> {
        let state = self.room.state.borrow();
        let mut pulls = state.pulls.iter();
        let pull = pulls.find(|pull| pull.job.manifest == digest)?;
        Some(pull.document.clone())
    }

    fn size(&self, blob: Digest) -> Option<u64> {
        let state = self.room.state.borrow();
        state.blobs.get(&blob).map(|blob| blob.size)
    }

    fn blob(&self, digest: Digest, span: Span) -> Option<Answer> {
        let mut state = self.room.state.borrow_mut();
        let blob = Rc::clone(state.blobs.get(&digest)?);
        if !blob.was_asked.replace(true) {
            state.queue.push(digest);
            self.room.changed.notify_one();
        }
        let feed = Feed {
            open: self.spool.reader(digest),
            progress: blob.progress.subscribe(),
            size: blob.size,
            from: span.start,
            until: span.end,
            delivered: Rc::clone(&blob.delivered),
        };
        Some(feed.into_body())
    }
}
