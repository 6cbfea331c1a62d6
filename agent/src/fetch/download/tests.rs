//! One blob from sources that break off, lie, drip or cannot begin in the middle, in virtual time.

use std::cell::{Cell, RefCell};
use std::io::Read as _;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use holdfast_proto::image::Digest;
use holdfast_proto::time::Timestamp;

use super::*;
use crate::fetch::source::Bytestream;

/// Bytes in one piece of a stream.
const PIECE: usize = 10;

#[derive(Default)]
struct Virtual(Cell<u64>);

impl Clock for Virtual {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(0)
    }

    fn monotonic_ms(&self) -> u64 {
        self.0.get()
    }

    async fn sleep_ms(&self, duration_ms: u64) {
        self.0.set(self.0.get() + duration_ms);
    }
}

/// What a source does, and from where it was asked.
#[derive(Clone)]
struct Told {
    name: &'static str,
    bytes: Vec<u8>,
    /// After so many bytes of each stream it breaks off.
    breaks_after: Option<usize>,
    begins_in_the_middle: bool,
    /// Time that each piece takes.
    piece_ms: u64,
    clock: Rc<Virtual>,
    asked: Rc<RefCell<Vec<(&'static str, u64)>>>,
}

impl Told {
    fn error(&self, why: &str) -> SourceError {
        SourceError {
            source_name: self.name.to_owned(),
            why: why.to_owned(),
            retry: RetryAdvice::Later,
            wants_login: false,
            is_general: false,
        }
    }
}

impl BlobSource for Told {
    fn name(&self) -> &str {
        self.name
    }

    fn open<'a>(
        &'a self,
        _: &'a Wanted,
        from: u64,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Bytestream + 'a>, SourceError>> {
        self.asked.borrow_mut().push((self.name, from));
        let at = if self.begins_in_the_middle {
            usize::try_from(from).unwrap()
        } else {
            0
        };
        let stream = Stream {
            told: self.clone(),
            at,
            given: 0,
        };
        std::future::ready(Ok(Box::new(stream) as Box<dyn Bytestream>)).boxed_local()
    }
}

struct Stream {
    told: Told,
    at: usize,
    given: usize,
}

impl Bytestream for Stream {
    fn at(&self) -> u64 {
        self.at as u64
    }

    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        let clock = &self.told.clock;
        clock.0.set(clock.0.get() + self.told.piece_ms);
        if self
            .told
            .breaks_after
            .is_some_and(|most| self.given >= most)
        {
            return std::future::ready(Err(self.told.error("it broke off"))).boxed_local();
        }
        let end = (self.at + PIECE).min(self.told.bytes.len());
        let piece = Bytes::copy_from_slice(&self.told.bytes[self.at..end]);
        self.given += piece.len();
        self.at = end;
        let next = (!piece.is_empty()).then_some(piece);
        std::future::ready(Ok(next)).boxed_local()
    }
}

struct World {
    folder: tempfile::TempDir,
    clock: Rc<Virtual>,
    asked: Rc<RefCell<Vec<(&'static str, u64)>>>,
    blob: Vec<u8>,
}

impl World {
    fn new(size: u8) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            clock: Rc::default(),
            asked: Rc::default(),
            blob: (0..size).collect(),
        }
    }

    fn source(&self, name: &'static str) -> Told {
        Told {
            name,
            bytes: self.blob.clone(),
            breaks_after: None,
            begins_in_the_middle: true,
            piece_ms: 1,
            clock: Rc::clone(&self.clock),
            asked: Rc::clone(&self.asked),
        }
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            digest: Digest::of(&self.blob),
            size: self.blob.len() as u64,
        }
    }

    async fn run(&self, sources: Vec<Told>) -> (Result<(), DownloadError>, Progress) {
        let spool = Spool::open(self.folder.path(), 1_000).unwrap();
        let sources: Vec<&dyn BlobSource> =
            sources.iter().map(|told| told as &dyn BlobSource).collect();
        let wanted = self.wanted();
        let download = Download {
            wanted: &wanted,
            spool: &spool,
            sources: &sources,
            kept: &Vec::new,
            allowance: &RefCell::new(Allowance::open(
                crate::fetch::allowance::Allowed::default(),
                &self.folder.path().join("used"),
            )),
            clock: &*self.clock,
            seed: 1,
        };
        let (tell, hear) = watch::channel(Progress::Growing(0));
        let outcome = download.run(&tell).await;
        let told = hear.borrow().clone();
        (outcome, told)
    }

    async fn comes_from(&self, sources: Vec<Told>) {
        let (outcome, told) = self.run(sources).await;
        outcome.unwrap();
        assert_eq!(told, Progress::Whole);
        let spool = Spool::open(self.folder.path(), 1_000).unwrap();
        let Held::Whole(mut file) = spool.hold(self.wanted().digest, 1).await.unwrap() else {
            panic!("it is not whole");
        };
        let mut found = Vec::new();
        file.read_to_end(&mut found).unwrap();
        assert_eq!(found, self.blob);
    }

    fn asked(&self) -> Vec<(&'static str, u64)> {
        self.asked.borrow().clone()
    }
}

#[tokio::test]
async fn what_broke_off_goes_on_where_it_was() {
    let world = World::new(100);
    let mut breaks = world.source("breaks");
    breaks.breaks_after = Some(40);
    world.comes_from(vec![breaks]).await;
    assert_eq!(
        world.asked(),
        [("breaks", 0), ("breaks", 40), ("breaks", 80)]
    );
}

#[tokio::test]
async fn the_next_source_goes_on_where_the_one_before_it_ended() {
    let world = World::new(100);
    let mut near = world.source("near");
    near.breaks_after = Some(30);
    world.comes_from(vec![near, world.source("far")]).await;
    assert_eq!(world.asked(), [("near", 0), ("far", 30)]);
}

#[tokio::test]
async fn a_source_that_cannot_begin_in_the_middle_begins_anew() {
    let world = World::new(50);
    let mut near = world.source("near");
    near.breaks_after = Some(20);
    let mut simple = world.source("simple");
    simple.begins_in_the_middle = false;
    world.comes_from(vec![near, simple]).await;
}

#[tokio::test]
async fn a_liar_is_asked_once() {
    let world = World::new(50);
    let mut liar = world.source("liar");
    liar.bytes[25] ^= 1;
    let mut honest = world.source("honest");
    honest.breaks_after = Some(20);
    world.comes_from(vec![liar, honest]).await;
    let asked = world.asked();
    let lied = asked.iter().filter(|(name, _)| *name == "liar").count();
    assert_eq!(lied, 1, "{asked:?}");
}

#[tokio::test]
async fn a_lie_in_the_middle_costs_the_honest_one_nothing() {
    let world = World::new(50);
    let mut liar = world.source("liar");
    liar.bytes[5] ^= 1;
    liar.breaks_after = Some(20);
    world.comes_from(vec![liar, world.source("honest")]).await;
}

#[tokio::test]
async fn only_liars_are_a_failure_and_leave_nothing() {
    let world = World::new(50);
    let mut liar = world.source("liar");
    liar.bytes[0] ^= 1;
    let (outcome, told) = world.run(vec![liar]).await;
    assert!(matches!(outcome, Err(DownloadError::Sources(_))));
    assert!(matches!(told, Progress::Failed(_)));
    let spool = Spool::open(world.folder.path(), 1_000).unwrap();
    assert_eq!(spool.length(world.wanted().digest), None);
    assert!(spool.whole(world.wanted().digest).is_none());
}

#[tokio::test]
async fn a_drip_is_left_and_silence_is_not_waited_for_without_end() {
    let world = World::new(250);
    let mut drip = world.source("drip");
    drip.piece_ms = 4_000;
    world.comes_from(vec![drip, world.source("quick")]).await;
    assert_eq!(world.asked().last().unwrap().0, "quick");
    let empty = World::new(50);
    let mut dead = empty.source("dead");
    dead.breaks_after = Some(0);
    let (outcome, _) = empty.run(vec![dead]).await;
    assert!(outcome.is_err());
    let rounds = usize::try_from(MOST_EMPTY_ROUNDS).unwrap();
    assert_eq!(empty.asked().len(), rounds);
    let (outcome, _) = empty.run(Vec::new()).await;
    assert!(matches!(outcome, Err(DownloadError::Nobody)));
}
