//! Owns the pulls that run beside the other steps: few at a time, each image once.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use holdfast_plan::{Observed, PullReason, Step};
use holdfast_proto::id::ServiceKey;
use tokio::sync::oneshot;

use super::Rules;
use crate::clock::Clock;
use crate::disk;
use crate::engine::{Engine, EngineInfo};
use crate::execute::pull::{Pull, PullError, PullLogins};
use crate::fetch::transport::Transport;
use crate::journal::IntentId;

/// Side by side at most: more only share one device's line and disk.
const MAX_PULLS: usize = 2;

/// A pull that ended.
pub(super) struct Done {
    pub(super) image: String,
    /// What was free on its disk when it began.
    pub(super) free_before: Option<u64>,
    pub(super) outcome: Result<(), PullError>,
}

/// What a running pull was begun for.
pub(super) struct Begun {
    pub(super) intent: IntentId,
    pub(super) key: ServiceKey,
    pub(super) why: PullReason,
}

/// Dropped, it ends its pull.
type GivenUp = oneshot::Sender<Infallible>;

/// The running pulls.
#[derive(Default)]
pub(super) struct Pulls<'a> {
    running: FuturesUnordered<Pin<Box<dyn Future<Output = Option<Done>> + 'a>>>,
    begun: BTreeMap<String, (Begun, GivenUp)>,
}

impl<'a> Pulls<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.begun.is_empty()
    }

    /// Whether this image may be pulled now: it is not being pulled, and few others are.
    pub(super) fn has_room_for(&self, image: &str) -> bool {
        self.begun.len() < MAX_PULLS && !self.begun.contains_key(image)
    }

    /// The images that are being pulled.
    pub(super) fn images(&self) -> impl Iterator<Item = &String> {
        self.begun.keys()
    }

    pub(super) fn begin<E: Engine, C: Clock>(
        &mut self,
        engine: &'a E,
        clock: &'a C,
        logins: &'a dyn PullLogins,
        transport: Option<&'a Transport<'a, C>>,
        (pull, begun): (Pull, Begun),
    ) {
        let (wanted, given_up) = oneshot::channel();
        self.begun.insert(pull.image.clone(), (begun, wanted));
        let room = pull
            .floor
            .as_ref()
            .and_then(|(folder, _)| disk::free(folder));
        let free_before = room.map(|free| free.bytes);
        self.running.push(Box::pin(async move {
            let outcome = tokio::select! {
                biased;
                _ = given_up => return None,
                outcome = pull.run(engine, clock, logins, transport) => outcome,
            };
            Some(Done {
                image: pull.image,
                free_before,
                outcome,
            })
        }));
    }

    /// What a pull that ended was begun for.
    pub(super) fn take(&mut self, image: &str) -> Option<Begun> {
        self.begun.remove(image).map(|(begun, _)| begun)
    }

    /// The next pull that ends by itself; none when none is left.
    pub(super) async fn next(&mut self) -> Option<Done> {
        while let Some(ended) = self.running.next().await {
            if ended.is_some() {
                return ended;
            }
        }
        None
    }

    /// Gives up the pulls of images that nothing needs any more; gives what they were begun for.
    pub(super) fn give_up(&mut self, is_needed: impl Fn(&String) -> bool) -> Vec<Begun> {
        let over = self.begun.extract_if(.., |image, _| !is_needed(image));
        over.map(|(_, (begun, _))| begun).collect()
    }

    /// Drops every pull, which closes its connection; gives what they were begun for.
    pub(super) fn abort(&mut self) -> Vec<Begun> {
        self.running.clear();
        let all = std::mem::take(&mut self.begun).into_values();
        all.map(|(begun, _)| begun).collect()
    }
}

/// The pull that a step asks for and what for, if it asks for one.
pub(super) fn of(
    step: &Step,
    observed: &Observed,
    info: Option<&EngineInfo>,
    rules: &Rules,
) -> Option<(Pull, PullReason)> {
    let info = info?;
    let Step::Pull {
        image,
        expected,
        platform,
        keep,
        why,
        ..
    } = step
    else {
        return None;
    };
    let pull = Pull {
        image: image.clone(),
        expected: expected.clone(),
        platform: platform.clone(),
        device: observed.platform.clone(),
        store: info.store,
        keep: keep.clone(),
        floor: observed
            .disk
            .map(|disk| (PathBuf::from(&info.root), disk.floor_bytes)),
        no_progress_ms: rules.no_progress_ms,
        login: false,
        seed: 0,
    };
    Some((pull, *why))
}
