//! Owns one look at the engine, in the planner's words. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_plan::{Container, ContainerState, History, ImagePresence, Observed};
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::ConfigDigest;
use holdfast_proto::target::TargetState;

use crate::engine::{
    Engine, EngineContainer, EngineError, EngineImage, EngineInfo, ImageStore, labels,
};

/// When each running container was first seen in its present start, on the monotonic clock.
#[derive(Debug, Default)]
pub struct FirstSeen(BTreeMap<String, (String, u64)>);

impl FirstSeen {
    /// Notes what is seen now and forgets what is gone; gives the time each start has lasted.
    fn note(&mut self, containers: &[EngineContainer], now_ms: u64) -> BTreeMap<String, u64> {
        let mut lasting = BTreeMap::new();
        let mut kept = BTreeMap::new();
        for container in containers {
            if container.state != ContainerState::Running {
                continue;
            }
            let since = match self.0.remove(&container.id) {
                Some((start, since)) if start == container.started_at => since,
                Some(_) | None => now_ms,
            };
            kept.insert(container.id.clone(), (container.started_at.clone(), since));
            lasting.insert(container.id.clone(), now_ms.saturating_sub(since));
        }
        self.0 = kept;
        lasting
    }
}

/// What a look is about.
pub struct Subject<'a> {
    /// The device.
    pub device: &'a DeviceId,
    /// The engine's account of itself.
    pub info: &'a EngineInfo,
    /// The target: its images are looked for.
    pub target: &'a TargetState,
    /// What is remembered: the images of last good specs are looked for too.
    pub history: &'a History,
}

/// Looks once.
pub async fn observe<E: Engine>(
    engine: &E,
    subject: &Subject<'_>,
    first_seen: &mut FirstSeen,
    now_ms: u64,
) -> Result<Observed, EngineError> {
    let found = engine.containers(subject.device).await?;
    let running_for = first_seen.note(&found, now_ms);
    let mut images = BTreeMap::new();
    for pinned in wanted_images(subject.target, subject.history) {
        let image = engine.image(&pinned).await?;
        images.insert(pinned, presence(subject.info.store, image));
    }
    let containers = found
        .into_iter()
        .filter_map(|found| {
            let lasting = running_for.get(&found.id).copied();
            own(found, lasting)
        })
        .collect();
    Ok(Observed {
        device: *subject.device,
        platform: subject.info.platform.clone(),
        containers,
        images,
    })
}

fn wanted_images(target: &TargetState, history: &History) -> BTreeSet<String> {
    let current = target
        .services()
        .filter_map(|(_, service)| service.pinned_image());
    let last_good = history
        .services
        .values()
        .filter_map(|history| history.last_good.as_ref())
        .filter_map(holdfast_proto::target::ServiceTarget::pinned_image);
    current.chain(last_good).collect()
}

/// An image in the planner's words: the configuration is known where the image id is its digest.
pub fn presence(store: ImageStore, image: Option<EngineImage>) -> ImagePresence {
    match image {
        None => ImagePresence::Absent,
        Some(image) => ImagePresence::Present {
            config: match store {
                ImageStore::Classic => image.ids.first().copied().map(ConfigDigest),
                ImageStore::Containerd => None,
            },
            platform: image.platform,
        },
    }
}

fn own(found: EngineContainer, running_for_ms: Option<u64>) -> Option<Container> {
    let Some(own) = labels::read(&found.labels) else {
        tracing::warn!(
            container.name = %found.name,
            "a container carries this device's label but names no service; it is left alone"
        );
        return None;
    };
    Some(Container {
        id: found.id,
        name: found.name,
        key: own.key,
        generation: own.generation,
        spec_hash: own.identity.spec_hash,
        config_digest: own.identity.config_digest,
        image: own.image,
        state: found.state,
        health: found.health,
        restart_count: found.restart_count,
        oom_killed: found.oom_killed,
        restart: found.restart,
        wanted_restart: own.wanted_restart,
        running_for_ms,
    })
}

#[cfg(test)]
mod tests {
    use holdfast_proto::spec::RestartPolicy;

    use super::*;

    fn container(started_at: &str, state: ContainerState) -> EngineContainer {
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
        }
    }

    #[test]
    fn a_start_lasts_until_the_container_starts_again() {
        let mut seen = FirstSeen::default();
        let mut lasting = |start: &str, state, now_ms| {
            seen.note(&[container(start, state)], now_ms)
                .get("c1")
                .copied()
        };
        let running = ContainerState::Running;
        assert_eq!(lasting("one", running, 1_000), Some(0));
        assert_eq!(lasting("one", running, 6_000), Some(5_000));
        assert_eq!(lasting("two", running, 7_000), Some(0));
        assert_eq!(
            lasting("two", ContainerState::Exited { code: 1 }, 8_000),
            None
        );
        assert_eq!(lasting("two", running, 9_000), Some(0));
    }

    #[test]
    fn an_image_id_is_a_configuration_on_the_classic_store_only() {
        let image = EngineImage {
            ids: vec![holdfast_proto::image::Digest::of(b"x")],
            platform: "linux/amd64".parse().unwrap(),
        };
        let config = |store| match presence(store, Some(image.clone())) {
            ImagePresence::Present { config, .. } => config,
            ImagePresence::Absent => panic!("it is there"),
        };
        assert_eq!(
            config(ImageStore::Classic),
            Some(ConfigDigest(image.ids[0]))
        );
        assert_eq!(config(ImageStore::Containerd), None);
    }
}
