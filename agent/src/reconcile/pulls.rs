//! Owns the pulls that run beside the other steps: few at a time, each image once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;

use futures_util::stream::FuturesUnordered;
use holdfast_plan::{Observed, Step};
use holdfast_proto::id::ServiceKey;

use super::Rules;
use crate::clock::Clock;
use crate::disk;
use crate::engine::{Engine, EngineInfo};
use crate::execute::pull::{Pull, PullError};
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

/// The running pulls.
#[derive(Default)]
pub(super) struct Pulls<'a> {
    pub(super) running: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + 'a>>>,
    begun: BTreeMap<String, (IntentId, ServiceKey)>,
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
        pull: Pull,
        intent: IntentId,
        key: ServiceKey,
    ) {
        self.begun.insert(pull.image.clone(), (intent, key));
        let room = pull
            .floor
            .as_ref()
            .and_then(|(folder, _)| disk::free(folder));
        let free_before = room.map(|free| free.bytes);
        self.running.push(Box::pin(async move {
            let outcome = pull.run(engine, clock).await;
            Done {
                image: pull.image,
                free_before,
                outcome,
            }
        }));
    }

    /// The intent of a pull that ended.
    pub(super) fn take(&mut self, image: &str) -> Option<(IntentId, ServiceKey)> {
        self.begun.remove(image)
    }

    /// Drops every pull, which closes its connection; gives their intents.
    pub(super) fn abort(&mut self) -> Vec<(IntentId, ServiceKey)> {
        self.running.clear();
        std::mem::take(&mut self.begun).into_values().collect()
    }
}

/// The pull that a step asks for, if it asks for one.
pub(super) fn of(
    step: &Step,
    observed: &Observed,
    info: Option<&EngineInfo>,
    rules: &Rules,
) -> Option<Pull> {
    let info = info?;
    let Step::Pull {
        image,
        expected,
        platform,
        keep,
        ..
    } = step
    else {
        return None;
    };
    Some(Pull {
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
    })
}
