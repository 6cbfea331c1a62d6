//! Owns what the agent itself has seen of containers: since when they run and are healthy, and whether
//! it saw them run at all. On the monotonic clock; time in which the engine was away does not count.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_plan::{ContainerState, Health, ProbeState};

use crate::engine::{EngineContainer, StoredImage};

/// So long a list of images is good enough: nothing that a swap waits for depends on it, and listing them
/// between the stop of the old container and the start of the new one would cost time.
const IMAGES_MS: u64 = 10_000;

/// What was seen of one start of a container.
#[derive(Debug)]
struct Seen {
    /// The engine's name of that start.
    start: String,
    since_ms: u64,
    healthy_since_ms: Option<u64>,
}

/// What was seen of all containers.
#[derive(Debug, Default)]
pub struct Memory {
    seen: BTreeMap<String, Seen>,
    witnessed: BTreeSet<String>,
    /// The engine's images, and when they were listed.
    images: Option<(Vec<StoredImage>, u64)>,
    last_look_ms: u64,
    lost_sight: bool,
}

impl Memory {
    /// Notes what is seen now and forgets what is gone.
    pub fn note(
        &mut self,
        containers: &[EngineContainer],
        probes: &BTreeMap<String, ProbeState>,
        now_ms: u64,
    ) {
        let blind_ms = if std::mem::take(&mut self.lost_sight) {
            now_ms.saturating_sub(self.last_look_ms)
        } else {
            0
        };
        self.last_look_ms = now_ms;
        let mut seen = BTreeMap::new();
        for container in containers {
            if container.state.is_up() {
                self.witnessed.insert(container.id.clone());
            }
            if container.state != ContainerState::Running {
                continue;
            }
            let before = self.seen.remove(&container.id);
            let before = before.filter(|before| before.start == container.started_at);
            let probe = probes.get(&container.id);
            let healthy = match container.health {
                Some(Health::Healthy) => true,
                // Without a check of the engine's, the agent's own probe alone speaks.
                None => probe.is_some(),
                Some(Health::Starting | Health::Unhealthy) => false,
            } && probe.is_none_or(|probe| probe.passed);
            let shift = |since_ms: u64| since_ms.saturating_add(blind_ms);
            let since_ms = before.as_ref().map_or(now_ms, |seen| shift(seen.since_ms));
            let healthy_since_ms = healthy.then(|| {
                let since = before.as_ref().and_then(|seen| seen.healthy_since_ms);
                since.map_or(now_ms, shift)
            });
            let entry = Seen {
                start: container.started_at.clone(),
                since_ms,
                healthy_since_ms,
            };
            seen.insert(container.id.clone(), entry);
        }
        self.seen = seen;
        self.witnessed
            .retain(|id| containers.iter().any(|container| container.id == *id));
    }

    /// The engine's images as they were listed a moment ago; none if that is too long ago.
    pub fn images(&self, now_ms: u64) -> Option<&[StoredImage]> {
        let (images, at_ms) = self.images.as_ref()?;
        (now_ms.saturating_sub(*at_ms) < IMAGES_MS).then_some(images.as_slice())
    }

    /// Notes what the engine stores now.
    pub fn note_images(&mut self, images: Vec<StoredImage>, now_ms: u64) {
        self.images = Some((images, now_ms));
    }

    /// The agent changed something about images: they are listed anew.
    pub fn forget_images(&mut self) {
        self.images = None;
    }

    /// The agent itself started this container: how it ends from now on counts.
    pub fn began(&mut self, id: &str) {
        self.witnessed.insert(id.to_owned());
    }

    /// The engine was away, or may have been: what ended meanwhile may have been ended by it.
    pub fn lose_sight(&mut self) {
        self.lost_sight = true;
        self.witnessed.clear();
        self.images = None;
    }

    /// How long this container has run in its present start.
    pub fn running_for(&self, id: &str) -> Option<u64> {
        let seen = self.seen.get(id)?;
        Some(self.last_look_ms.saturating_sub(seen.since_ms))
    }

    /// How long it has been healthy without a break.
    pub fn healthy_for(&self, id: &str) -> Option<u64> {
        let since_ms = self.seen.get(id)?.healthy_since_ms?;
        Some(self.last_look_ms.saturating_sub(since_ms))
    }

    /// Whether the agent saw it run since it last lost sight of the engine.
    pub fn witnessed(&self, id: &str) -> bool {
        self.witnessed.contains(id)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use holdfast_proto::spec::RestartPolicy;

    use super::*;

    pub(in crate::observe) fn container(
        started_at: &str,
        state: ContainerState,
    ) -> EngineContainer {
        EngineContainer {
            id: "c1".to_owned(),
            name: "web".to_owned(),
            labels: std::collections::HashMap::new(),
            state,
            health: None,
            restart_count: 0,
            oom_killed: false,
            restart: RestartPolicy::No,
            started_at: started_at.to_owned(),
            start_error: String::new(),
            addresses: Vec::new(),
            probe_error: None,
            image_id: None,
            shares: None,
            networks: BTreeMap::new(),
            published: BTreeSet::new(),
            amounts: holdfast_plan::Amounts::default(),
        }
    }

    const RUNNING: ContainerState = ContainerState::Running;
    const ENDED: ContainerState = ContainerState::Exited { code: 1 };

    #[test]
    fn a_start_lasts_until_the_container_starts_again() {
        let mut memory = Memory::default();
        let mut lasting = |start: &str, state, now_ms| {
            memory.note(&[container(start, state)], &BTreeMap::new(), now_ms);
            memory.running_for("c1")
        };
        assert_eq!(lasting("one", RUNNING, 1_000), Some(0));
        assert_eq!(lasting("one", RUNNING, 6_000), Some(5_000));
        assert_eq!(lasting("two", RUNNING, 7_000), Some(0));
        assert_eq!(lasting("two", ENDED, 8_000), None);
        assert_eq!(lasting("two", RUNNING, 9_000), Some(0));
    }

    #[test]
    fn time_without_an_engine_does_not_count() {
        let mut memory = Memory::default();
        let look = |memory: &mut Memory, now_ms| {
            memory.note(&[container("one", RUNNING)], &BTreeMap::new(), now_ms);
            memory.running_for("c1")
        };
        look(&mut memory, 1_000);
        assert_eq!(look(&mut memory, 4_000), Some(3_000));
        memory.lose_sight();
        assert_eq!(look(&mut memory, 90_000), Some(3_000));
        assert_eq!(look(&mut memory, 91_000), Some(4_000));
    }

    #[test]
    fn health_counts_from_the_first_healthy_look_without_a_break() {
        let mut memory = Memory::default();
        let mut look = |health, now_ms| {
            let mut found = container("one", RUNNING);
            found.health = Some(health);
            memory.note(&[found], &BTreeMap::new(), now_ms);
            memory.healthy_for("c1")
        };
        assert_eq!(look(Health::Starting, 0), None);
        assert_eq!(look(Health::Healthy, 1_000), Some(0));
        assert_eq!(look(Health::Healthy, 3_000), Some(2_000));
        assert_eq!(look(Health::Starting, 4_000), None);
        assert_eq!(look(Health::Healthy, 5_000), Some(0));
    }

    #[test]
    fn only_an_end_that_was_watched_counts() {
        let mut memory = Memory::default();
        let look = |memory: &mut Memory, state| {
            memory.note(&[container("one", state)], &BTreeMap::new(), 0);
            memory.witnessed("c1")
        };
        assert!(!look(&mut memory, ENDED), "found so at the start");
        assert!(look(&mut memory, RUNNING));
        assert!(look(&mut memory, ENDED), "it ran and ended");
        memory.lose_sight();
        assert!(!look(&mut memory, ENDED), "the engine may have ended it");
        memory.began("c1");
        assert!(
            look(&mut memory, ENDED),
            "started by the agent, ended at once"
        );
    }
}
