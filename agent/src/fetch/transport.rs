//! Owns images on their way into the engine: the registry on loopback while there are pulls, and which blob is
//! fetched next.
//!
//! Refuses to fetch what the engine does not ask for, and to let one registry that stands still hold up the
//! others: the engine shares layers between pulls, and so does this.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use holdfast_plan::UNPACKED_PER_FETCHED;
use holdfast_proto::current::PullReport;
use holdfast_proto::image::{Digest, Repository};
use holdfast_proto::time::Timestamp;
use holdfast_registry::{Client, Identity, RegistryError, RetryAdvice};

use super::allowance::Allowance;
use super::download::{Download, DownloadError};
use super::endpoint::Endpoint;
use super::patience::{Failure, MAX_WAIT_MS};
use super::room::{Blob, Entered, Pulling, Room, Shelf};
use super::source::{BlobSource, Registry, Wanted};
use super::spool::Spool;
use crate::clock::Clock;
use crate::engine::EngineError;
use crate::fault::chain;

/// Connections of the engine served at a time; more wait. It fetches three layers of an image at once, and
/// asks for documents.
const MAX_CONNECTIONS: usize = 16;
/// Downloads at a time: one, and others beside those that stand still.
const MAX_DOWNLOADS: usize = 4;
/// A download from which nothing came for so long stands still: another may begin beside it.
const STILL_MS: u64 = 2_000;
/// An engine that asked for nothing for so long and is not done is stuck: the largest layers are unpacked in
/// minutes, also on slow cards. Docker tells its own progress and is judged by that much sooner; Podman says
/// nothing until the image is there.
const STUCK_MS: u64 = 60 * 60 * 1_000;
/// What is fetched lies here twice, and unpacked, see [`UNPACKED_PER_FETCHED`].
const NEEDED_PER_FETCHED: u64 = 2 + UNPACKED_PER_FETCHED;
/// So often it is looked whether one stands still.
const LOOK_MS: u64 = 500;

/// What all pulls of this agent share.
pub struct Transport<'a, C> {
    /// Knows how registries are asked.
    pub registries: &'a dyn Registries,
    /// Where blobs are while they come.
    pub spool: &'a Spool,
    /// Who else may have a blob, the nearest first; asked before the registry.
    pub neighbours: &'a [Box<dyn BlobSource>],
    /// Whether blobs stay in the spool for neighbours when the image is there, as long as there is room.
    pub keeps: bool,
    /// How much of the line they may use.
    pub allowance: RefCell<Allowance>,
    /// Time.
    pub clock: &'a C,
    /// Is told now and then how far they are.
    pub tell: &'a dyn Fn(Vec<PullReport>),
    /// What is going on.
    pub room: Room,
}

/// Knows how a registry is asked: its mirrors, its certificates, whether it speaks TLS, whose logins count.
pub trait Registries {
    /// A client for a registry. Each pull has its own: what it knows is as new as the pull, and takes no
    /// memory between two.
    fn client<'a>(&'a self, registry: &'a str)
    -> LocalBoxFuture<'a, Result<Client, RegistryError>>;
}

/// An image to bring.
#[derive(Clone, Debug)]
pub struct Job {
    /// Where it is.
    pub repository: Repository,
    /// The manifest of this device's platform.
    pub manifest: Digest,
    /// Whose credentials count; the configured ones without.
    pub who: Option<Identity>,
    /// The caller's randomness.
    pub seed: u64,
    /// An engine that was told to pull and asks for nothing for so long stands still.
    pub no_progress_ms: u64,
    /// Bytes that must stay free on the disk.
    pub floor_bytes: u64,
}

/// Why an image did not come.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// What it is made of is not known.
    #[error(transparent)]
    Registry(Arc<RegistryError>),
    /// A blob did not come.
    #[error(transparent)]
    Download(Arc<DownloadError>),
    /// The engine failed, though it was given what it asked for.
    #[error(transparent)]
    Engine(Arc<EngineError>),
    /// Its registry could not be used a moment ago, for this image or another.
    #[error("{registry} is left alone for {} s more: {why}", left_ms.div_ceil(1_000))]
    LeftAlone {
        /// The registry.
        registry: String,
        /// For how long.
        left_ms: u64,
        /// What it did.
        why: String,
    },
    /// There is no registry on loopback, the engine never came to it, or what comes cannot be kept: it has to pull by
    /// itself.
    #[error("the engine has to fetch by itself: {0}")]
    Unreached(String),
}

impl From<RegistryError> for TransportError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Arc::new(error))
    }
}

impl TransportError {
    /// Whether the registry wants a login, or another one.
    pub fn wants_login(&self) -> bool {
        match self {
            Self::Registry(error) => matches!(
                **error,
                RegistryError::Unauthorized { .. } | RegistryError::Forbidden { .. }
            ),
            Self::Download(error) => match &**error {
                DownloadError::Sources(error) => error.wants_login,
                DownloadError::Spool(_) | DownloadError::UsedUp { .. } | DownloadError::Nobody => {
                    false
                }
            },
            Self::Engine(_) | Self::LeftAlone { .. } | Self::Unreached(_) => false,
        }
    }

    /// For how long it is of no use to try again; none if nobody says so.
    pub fn wait_ms(&self, now: Timestamp) -> Option<u64> {
        let millis = |wait: Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let asked_for = |advice: RetryAdvice| match advice {
            RetryAdvice::After(wait) => Some(millis(wait)),
            RetryAdvice::Later | RetryAdvice::Never => None,
        };
        let wait_ms = match self {
            Self::Registry(error) => asked_for(error.retry()),
            Self::Download(error) => match &**error {
                DownloadError::Sources(error) => asked_for(error.retry),
                DownloadError::UsedUp { until } => u64::try_from(until.since_ms(now)).ok(),
                DownloadError::Spool(_) | DownloadError::Nobody => None,
            },
            Self::LeftAlone { left_ms, .. } => Some(*left_ms),
            Self::Engine(_) | Self::Unreached(_) => None,
        };
        wait_ms.map(|wait_ms| wait_ms.min(MAX_WAIT_MS))
    }

    /// Whether the registry cannot be used now, for anything.
    fn is_general(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_general(),
            Self::Download(error) => {
                matches!(&**error, DownloadError::Sources(error) if error.is_general)
            }
            Self::Engine(_) | Self::LeftAlone { .. } | Self::Unreached(_) => false,
        }
    }
}

impl<C: Clock> Transport<'_, C> {
    /// Why the engine pulls by itself, if it had to the last time.
    pub fn unreached(&self) -> Option<String> {
        self.room.unreached.borrow().clone()
    }

    /// Has `pull` called with the name by which the engine finds the image, which is served until then.
    /// [`Transport::run`] does the work meanwhile.
    ///
    /// # Errors
    /// As [`TransportError`] says. What came of the blobs stays in the spool until the image is there.
    pub async fn bring<T>(
        &self,
        job: &Job,
        pull: impl AsyncFnOnce(&str) -> Result<T, EngineError>,
    ) -> Result<T, TransportError> {
        self.is_left_alone(job.repository.registry())?;
        let outcome = self.bring_once(job, pull).await;
        self.note_registry(job, outcome.as_ref().err());
        match &outcome {
            Err(TransportError::Unreached(why)) => {
                self.room.unreached.replace(Some(why.clone()));
            }
            Ok(_) => {
                self.room.unreached.replace(None);
            }
            // They say nothing of whether the engine comes.
            Err(_) => {}
        }
        outcome
    }

    /// Somebody wants it now: only what registries asked for themselves still counts.
    pub fn give_new_chance(&self) {
        let now_ms = self.clock.monotonic_ms();
        self.room.patience.borrow_mut().give_new_chance(now_ms);
    }

    /// Room for the image, which the plan found with what the spool holds counted in.
    fn give_way(&self, job: &Job) -> Result<(), TransportError> {
        let state = self.room.state.borrow();
        let kept: Vec<Digest> = state.blobs.keys().copied().collect();
        let bytes: u64 = state.blobs.values().map(|blob| blob.size).sum();
        let free_bytes = bytes
            .saturating_mul(NEEDED_PER_FETCHED)
            .saturating_add(job.floor_bytes);
        drop(state);
        let given = self.spool.give_way(free_bytes, &kept);
        given.map_err(|error| TransportError::Unreached(chain(&error)))
    }

    fn is_left_alone(&self, registry: &str) -> Result<(), TransportError> {
        let patience = self.room.patience.borrow();
        match patience.left_alone(registry, self.clock.monotonic_ms()) {
            None => Ok(()),
            Some((left_ms, why)) => Err(TransportError::LeftAlone {
                registry: registry.to_owned(),
                left_ms,
                why: why.to_owned(),
            }),
        }
    }

    /// Notes whether a registry could be used, for all that is wanted of it.
    fn note_registry(&self, job: &Job, error: Option<&TransportError>) {
        let registry = job.repository.registry();
        let mut patience = self.room.patience.borrow_mut();
        match error {
            None => patience.works(registry),
            Some(error) if error.is_general() => {
                let failure = Failure {
                    asked_for_ms: error.wait_ms(self.clock.now()).unwrap_or(0),
                    why: error.to_string(),
                    seed: job.seed,
                };
                patience.failed(registry, failure, self.clock.monotonic_ms());
            }
            Some(_) => {}
        }
    }

    async fn bring_once<T>(
        &self,
        job: &Job,
        pull: impl AsyncFnOnce(&str) -> Result<T, EngineError>,
    ) -> Result<T, TransportError> {
        let client = self.registries.client(job.repository.registry()).await?;
        let contents = client.contents(&job.repository, job.manifest, job.who.as_ref());
        let contents = contents.await?;
        let unreached = |error: io::Error| TransportError::Unreached(error.to_string());
        let endpoint = self.endpoint().await.map_err(unreached)?;
        let secret = endpoint.secret().map_err(unreached)?;
        let path = job.repository.path();
        let word = path.rsplit('/').next().unwrap_or(path);
        let name = endpoint.name(&secret, word, job.manifest);
        let entered = Entered {
            room: &self.room,
            pulling: Rc::new(Pulling::new(job, client, contents)),
        };
        self.room.enter(&entered.pulling);
        self.give_way(job)?;
        let mut failed = entered.pulling.failed.subscribe();
        let failed = async move {
            match failed.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(error)) => Arc::clone(error),
                // The pull holds the other end.
                Ok(None) | Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            error = failed => Err(match &*error {
                // A folder that cannot be used, or is too small for a layer, is no reason to go without.
                DownloadError::Spool(why) => TransportError::Unreached(chain(why)),
                DownloadError::Sources(_) | DownloadError::UsedUp { .. } | DownloadError::Nobody => {
                    TransportError::Download(error)
                }
            }),
            error = self.stands_still(&entered.pulling) => Err(error),
            error = self.never_comes(&endpoint, &secret, job.no_progress_ms) => Err(error),
            outcome = pull(&name) => match outcome {
                Ok(done) => {
                    self.forget(&entered.pulling);
                    Ok(done)
                }
                Err(error) if endpoint.was_used(&secret) || error.is_engine_away() => {
                    Err(TransportError::Engine(Arc::new(error)))
                }
                Err(error) => Err(TransportError::Unreached(error.to_string())),
            },
        }
    }

    /// Waits for an engine that was told to pull and did not come.
    async fn never_comes(
        &self,
        endpoint: &Endpoint,
        secret: &str,
        no_progress_ms: u64,
    ) -> TransportError {
        self.clock.sleep_ms(no_progress_ms).await;
        if endpoint.was_used(secret) {
            return std::future::pending().await;
        }
        TransportError::Engine(Arc::new(EngineError::PullStalled { no_progress_ms }))
    }

    /// Waits until the engine has had all it asked for, and does nothing with it.
    async fn stands_still(&self, pulling: &Pulling) -> TransportError {
        let mut still_since_ms = self.clock.monotonic_ms();
        loop {
            self.clock.sleep_ms(STUCK_MS / 60).await;
            let now_ms = self.clock.monotonic_ms();
            let state = self.room.state.borrow();
            if state
                .queue
                .iter()
                .any(|digest| pulling.pieces.contains_key(digest))
            {
                // The download has limits of its own.
                still_since_ms = now_ms;
            }
            if now_ms.saturating_sub(still_since_ms) >= STUCK_MS {
                let no_progress_ms = STUCK_MS;
                return TransportError::Engine(Arc::new(EngineError::PullStalled {
                    no_progress_ms,
                }));
            }
        }
    }

    async fn endpoint(&self) -> io::Result<Rc<Endpoint>> {
        if let Some(open) = &self.room.state.borrow().endpoint {
            return Ok(Rc::clone(open));
        }
        let opened = Rc::new(Endpoint::open().await?);
        let mut state = self.room.state.borrow_mut();
        Ok(Rc::clone(state.endpoint.get_or_insert(opened)))
    }

    /// The engine has the image: what no other pull needs goes from the spool.
    fn forget(&self, pulling: &Rc<Pulling>) {
        if self.keeps {
            return;
        }
        let state = self.room.state.borrow();
        let others = || {
            state
                .pulls
                .iter()
                .filter(|other| !Rc::ptr_eq(other, pulling))
        };
        for digest in pulling.pieces.keys() {
            if !others().any(|other| other.pieces.contains_key(digest)) {
                self.spool.forget(*digest);
            }
        }
    }

    /// Serves the engine and fetches what it asks for; ends only by being dropped.
    pub async fn run(&self) -> Infallible {
        loop {
            let open = self.room.state.borrow().endpoint.clone();
            match open {
                Some(endpoint) => self.serve(&endpoint).await,
                None => self.room.changed.notified().await,
            }
        }
    }

    /// Serves until the last pull is over.
    async fn serve(&self, endpoint: &Rc<Endpoint>) {
        let offer = Shelf {
            room: &self.room,
            spool: self.spool,
        };
        let mut connections = FuturesUnordered::new();
        let mut downloads = Downloads::default();
        let mut told_ms = 0;
        loop {
            {
                let state = self.room.state.borrow();
                let is_open = |open: &Rc<Endpoint>| Rc::ptr_eq(open, endpoint);
                if !state.endpoint.as_ref().is_some_and(is_open) {
                    drop(state);
                    self.allowance.borrow_mut().write();
                    (self.tell)(Vec::new());
                    return;
                }
            }
            self.schedule(&mut downloads);
            let now_ms = self.clock.monotonic_ms();
            if now_ms >= told_ms + LOOK_MS {
                told_ms = now_ms;
                (self.tell)(self.room.reports(now_ms));
            }
            let (busy, fetching) = (connections.len(), !downloads.0.is_empty());
            tokio::select! {
                stream = endpoint.accept(), if busy < MAX_CONNECTIONS => {
                    connections.push(endpoint.converse(stream, &offer));
                }
                Some(()) = connections.next(), if busy > 0 => {}
                (digest, outcome) = downloads.next(), if fetching => self.ended(digest, outcome),
                () = self.room.changed.notified() => {}
                () = self.clock.sleep_ms(LOOK_MS), if fetching => {}
            }
        }
    }

    /// Ends downloads that nobody needs any more or that another pull could help, and begins what may begin.
    fn schedule<'s>(&'s self, downloads: &mut Downloads<'s>) {
        let state = self.room.state.borrow();
        let now_ms = self.clock.monotonic_ms();
        downloads.0.retain(|digest, active| {
            let now: Vec<_> = state.that_have(digest).collect();
            let same = |(one, other): (&&Rc<Pulling>, &Rc<Pulling>)| Rc::ptr_eq(one, other);
            now.len() == active.pulls.len() && now.iter().zip(&active.pulls).all(same)
        });
        for active in downloads.0.values_mut() {
            let length = self.spool.length(active.digest).unwrap_or(0);
            if length != active.length {
                (active.length, active.moved_ms) = (length, now_ms);
            }
        }
        let all_still = |downloads: &Downloads<'_>| {
            let mut active = downloads.0.values();
            active.all(|active| now_ms.saturating_sub(active.moved_ms) >= STILL_MS)
        };
        for digest in &state.queue {
            if downloads.0.len() >= MAX_DOWNLOADS {
                return;
            }
            let Some(blob) = state.blobs.get(digest) else {
                continue;
            };
            if !blob.is_awaited.get() && !all_still(downloads) {
                continue;
            }
            let pulls: Vec<_> = state.that_have(digest).cloned().collect();
            if !downloads.0.contains_key(digest) {
                let active = Active {
                    digest: *digest,
                    pulls: pulls.clone(),
                    length: 0,
                    moved_ms: now_ms,
                    work: Box::pin(self.download(*digest, Rc::clone(blob), pulls)),
                };
                downloads.0.insert(*digest, active);
            }
        }
    }

    async fn download(
        &self,
        digest: Digest,
        blob: Rc<Blob>,
        pulls: Vec<Rc<Pulling>>,
    ) -> Result<(), DownloadError> {
        let registries: Vec<Registry<'_>> = pulls
            .iter()
            .map(|pull| {
                let Job {
                    repository, who, ..
                } = &pull.job;
                Registry::new(repository.clone(), &pull.client, who.clone())
            })
            .collect();
        let mut sources: Vec<&dyn BlobSource> = Vec::new();
        sources.extend(self.neighbours.iter().map(AsRef::as_ref));
        sources.extend(
            registries
                .iter()
                .map(|registry| registry as &dyn BlobSource),
        );
        let download = Download {
            wanted: &Wanted {
                digest,
                size: blob.size,
            },
            spool: self.spool,
            kept: &|| self.room.kept(),
            sources: &sources,
            clock: self.clock,
            allowance: &self.allowance,
            seed: pulls.first().map_or(0, |pull| pull.job.seed),
        };
        download.run(&blob.progress).await
    }

    fn ended(&self, digest: Digest, outcome: Result<(), DownloadError>) {
        let mut state = self.room.state.borrow_mut();
        state.queue.retain(|queued| *queued != digest);
        if let Err(error) = outcome {
            let error = Arc::new(error);
            for pull in state.that_have(&digest) {
                pull.failed.send_replace(Some(Arc::clone(&error)));
            }
        }
    }
}

/// Running downloads.
#[derive(Default)]
struct Downloads<'a>(BTreeMap<Digest, Active<'a>>);

struct Active<'a> {
    digest: Digest,
    /// The pulls that gave it its sources.
    pulls: Vec<Rc<Pulling>>,
    /// How far it was, and since when.
    length: u64,
    moved_ms: u64,
    work: Pin<Box<dyn Future<Output = Result<(), DownloadError>> + 'a>>,
}

impl Downloads<'_> {
    /// The next that ends.
    async fn next(&mut self) -> (Digest, Result<(), DownloadError>) {
        let (digest, outcome) = std::future::poll_fn(|context| {
            for (digest, active) in &mut self.0 {
                if let Poll::Ready(outcome) = active.work.as_mut().poll(context) {
                    return Poll::Ready((*digest, outcome));
                }
            }
            Poll::Pending
        })
        .await;
        self.0.remove(&digest);
        (digest, outcome)
    }
}
