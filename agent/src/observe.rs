//! Owns one look at the engine, in the planner's words. Changes nothing.

mod memory;

use std::collections::BTreeMap;

use holdfast_plan::{
    Container, ContainerRef, ContainerState, Disk, History, ImagePresence, Joined, Network,
    NetworkKey, NetworkState, Observed, ProbeState, RunningAgent, Sandbox, ServiceHistory,
    StoredImage, Stranger, canonical,
};
use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::image::{Content, Expected};
use holdfast_proto::target::{ServiceTarget, TargetState};

use crate::engine::{
    self, Engine, EngineContainer, EngineError, EngineImage, EngineInfo, EngineNetwork, ImageStore,
    known, labels,
};

use crate::fault::chain;
use crate::probe::Trial;

pub use memory::Memory;

/// What a look is about.
pub struct Subject<'a> {
    /// The device.
    pub device: &'a DeviceId,
    /// The engine's account of itself.
    pub info: &'a EngineInfo,
    /// The target: its images are looked for.
    pub target: &'a TargetState,
    /// What is remembered: the images of last good specs are looked for too, and containers that the
    /// agent did not make are told apart.
    pub history: &'a History,
    /// Whether every container with this device's labels counts as made by this agent: its journal is
    /// new.
    pub adopts: bool,
    /// What the agent's probes say, by container.
    pub probes: &'a BTreeMap<String, ProbeState>,
    /// What the device's own policy refuses.
    pub refused: &'a BTreeMap<ServiceKey, String>,
    /// The room where the engine keeps images.
    pub disk: Option<Disk>,
    /// The agent itself.
    pub agent: RunningAgent,
}

/// What one look showed.
pub struct Look {
    /// In the planner's words.
    pub observed: Observed,
    /// Containers whose probes the gate waits for.
    pub trials: Vec<Trial>,
}

/// Looks once.
pub async fn observe<E: Engine>(
    engine: &E,
    subject: &Subject<'_>,
    memory: &mut Memory,
    now_ms: u64,
) -> Result<Look, EngineError> {
    let found = engine.containers(subject.device).await?;
    let stored = stored(engine, memory, now_ms).await?;
    let networks = networks(engine.networks(subject.device).await?);
    memory.note(&found, subject.probes, now_ms);
    let store = subject.info.store;
    let wanted = wanted_images(subject.target, subject.history);
    let mut images = BTreeMap::new();
    for (pinned, expected) in &wanted {
        let image = known::find(engine, store, pinned, *expected).await?;
        images.insert(pinned.clone(), presence(store, image));
    }
    let stored = stored.map(|found| named(found, store, &wanted));
    let mut observed = Observed {
        device: *subject.device,
        platform: subject.info.platform.clone(),
        containers: Vec::new(),
        sandboxes: Vec::new(),
        networks,
        strangers: Vec::new(),
        refused: subject.refused.clone(),
        images,
        stored,
        disk: subject.disk,
        agent: subject.agent.clone(),
    };
    let started: BTreeMap<String, (bool, String)> = found
        .iter()
        .map(|found| {
            let start = (found.state.is_up(), started_order(&found.started_at));
            (found.id.clone(), start)
        })
        .collect();
    let mut trials = trials(&found, subject);
    for found in found {
        sort_in(found, subject, &started, memory, &mut observed);
    }
    // A stranger that copied our labels is nobody's candidate.
    trials.retain(|trial| {
        let mut ours = observed.containers.iter();
        ours.any(|container| container.id == trial.id)
    });
    Ok(Look { observed, trials })
}

/// Running containers of specs that have a probe and have not passed their gate here yet.
fn trials(found: &[EngineContainer], subject: &Subject<'_>) -> Vec<Trial> {
    let trial = |container: &EngineContainer| {
        let own = labels::read(&container.labels)?;
        let mut services = subject.target.services();
        let (_, service) =
            services.find(|(key, service)| *key == own.key && own.identity.matches(service))?;
        let history = subject.history.of(&own.key);
        let passed = history.is_some_and(|history| history.trusts(service));
        let probe = service.config.holdfast.as_ref()?.probe.clone()?;
        if passed || container.state != ContainerState::Running || own.sandbox_hash.is_some() {
            return None;
        }
        let mut all = found.iter();
        let lender = all.find(|other| Some(&other.id) == container.shares.as_ref());
        Some(Trial {
            id: container.id.clone(),
            started_at: container.started_at.clone(),
            addresses: lender.unwrap_or(container).addresses.clone(),
            probe,
        })
    };
    found.iter().filter_map(trial).collect()
}

/// Puts a container where it belongs: services, sandboxes, strangers.
fn sort_in(
    found: EngineContainer,
    subject: &Subject<'_>,
    started: &BTreeMap<String, (bool, String)>,
    memory: &Memory,
    observed: &mut Observed,
) {
    let Some(own) = labels::read(&found.labels) else {
        tracing::warn!(
            container.name = %found.name,
            "a container carries this device's label but names no service; it is left alone"
        );
        return;
    };
    let history = subject.history.of(&own.key);
    let made = history.is_some_and(|history| history.name_of(&found.id, &found.name).is_some());
    if !made && !subject.adopts {
        observed.strangers.push(Stranger {
            key: own.key,
            container: ContainerRef {
                id: found.id,
                name: found.name,
            },
        });
        return;
    }
    let network = network_state(&found, started, &own.key, &observed.networks);
    if let Some(hash) = own.sandbox_hash {
        observed.sandboxes.push(Sandbox {
            id: found.id,
            name: found.name,
            key: own.key,
            generation: own.generation,
            hash,
            state: found.state,
            restart: found.restart,
            network,
        });
        return;
    }
    observed.containers.push(Container {
        running_for_ms: memory.running_for(&found.id),
        healthy_for_ms: memory.healthy_for(&found.id),
        witnessed: memory.witnessed(&found.id),
        probe: subject.probes.get(&found.id).cloned(),
        probe_error: found.probe_error,
        network,
        amounts: found.amounts,
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
    });
}

fn network_state(
    found: &EngineContainer,
    started: &BTreeMap<String, (bool, String)>,
    key: &ServiceKey,
    networks: &[Network],
) -> NetworkState {
    let stale = found
        .shares
        .as_ref()
        .and_then(|lender| started.get(lender))
        .is_some_and(|(up, since)| *up && *since > started_order(&found.started_at));
    let joined = found.networks.iter().filter_map(|(name, attachment)| {
        let same_name = || networks.iter().filter(|network| network.name == *name);
        let by_id = same_name().find(|network| network.id == attachment.network_id);
        let network = by_id.or_else(|| same_name().next())?;
        (network.key.app == key.app).then(|| {
            let joined = Joined {
                aliases: attachment.aliases.clone(),
                stale: !attachment.network_id.is_empty() && by_id.is_none(),
            };
            (network.key.network.clone(), joined)
        })
    });
    NetworkState {
        shares: found.shares.clone(),
        stale: stale && found.state.is_up(),
        joined: joined.collect(),
        published: found.published.clone(),
    }
}

/// An engine's time in a form that compares as text: engines write fractions without trailing zeros.
fn started_order(time: &str) -> String {
    let (seconds, rest) = time.split_at_checked(19).unwrap_or((time, ""));
    let fraction = rest.strip_prefix('.').unwrap_or("");
    let digits: String = fraction.chars().take_while(char::is_ascii_digit).collect();
    format!("{seconds}.{digits:0<9}")
}

fn networks(found: Vec<EngineNetwork>) -> Vec<Network> {
    let own = |network: EngineNetwork| {
        let label = |name: &str| network.labels.get(name);
        let key = NetworkKey {
            app: label(labels::APP)?.parse().ok()?,
            network: label(labels::NETWORK)?.parse().ok()?,
        };
        Some(Network {
            id: network.id,
            name: network.name,
            key,
        })
    };
    found.into_iter().filter_map(own).collect()
}

/// The engine's images, looked at again after a while or when the agent changed them.
///
/// An engine that cannot list them still runs containers: nothing is then decided about images.
async fn stored<E: Engine>(
    engine: &E,
    memory: &mut Memory,
    now_ms: u64,
) -> Result<Option<Vec<engine::StoredImage>>, EngineError> {
    if let Some(known) = memory.images(now_ms) {
        return Ok(Some(known.to_vec()));
    }
    match engine.images().await {
        Ok(images) => {
            memory.note_images(images.clone(), now_ms);
            Ok(Some(images))
        }
        Err(error) if error.is_engine_away() => Err(error),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "the engine does not list its images");
            Ok(None)
        }
    }
}

/// Pinned images, and what is known of their content.
pub type Wanted<'a> = BTreeMap<String, Option<&'a Expected>>;

/// The images that a target or a way back names, and what is known of their content.
pub fn wanted_images<'a>(target: &'a TargetState, history: &'a History) -> Wanted<'a> {
    let current = target.services().map(|(_, service)| service);
    let good = history
        .services
        .values()
        .flat_map(ServiceHistory::ways_back);
    let image = |service: &'a ServiceTarget| {
        let pin = service.pin.as_ref()?;
        Some((service.pinned_image()?, pin.expected.as_ref()))
    };
    current.chain(good).filter_map(image).collect()
}

/// What the engine stores in the planner's words: an image has the name of whatever wants its content,
/// whichever way it came.
fn named(
    found: Vec<engine::StoredImage>,
    store: ImageStore,
    wanted: &Wanted<'_>,
) -> Vec<StoredImage> {
    let names = |id: &str| {
        let has_id = |expected: &Expected| known::id(store, expected) == id;
        let wanted = wanted.iter();
        let same = wanted.filter(move |(_, expected)| expected.is_some_and(has_id));
        same.map(|(pinned, _)| canonical(pinned))
            .collect::<Vec<_>>()
    };
    let image = |found: engine::StoredImage| StoredImage {
        digests: found
            .digests
            .iter()
            .map(|name| canonical(name))
            .chain(names(&found.id))
            .collect(),
        tags: found.tags.into_iter().collect(),
        size_bytes: found.size_bytes,
    };
    found.into_iter().map(image).collect()
}

/// An image in the planner's words: the configuration is known where the image id is its digest.
pub fn presence(store: ImageStore, image: Option<EngineImage>) -> ImagePresence {
    match image {
        None => ImagePresence::Absent,
        Some(image) => ImagePresence::Present {
            config: Content::of_ids(store, &image.ids).and_then(|content| content.config()),
            platform: image.platform,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_compare_whatever_zeros_the_engine_left_out() {
        let order = |one: &str, two: &str| started_order(one).cmp(&started_order(two));
        let less = std::cmp::Ordering::Less;
        let at = |fraction: &str| format!("2026-11-21T09:05:51{fraction}Z");
        assert_eq!(order(&at(".12"), &at(".123")), less);
        assert_eq!(order(&at(""), &at(".000000001")), less);
        assert_eq!(order(&at(".9"), "2026-11-21T09:05:52Z"), less);
        assert_eq!(order("", &at("")), less);
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
            Some(holdfast_proto::image::ConfigDigest(image.ids[0]))
        );
        assert_eq!(config(ImageStore::Containerd), None);
    }

    #[test]
    fn a_connection_to_a_network_that_was_made_anew_is_stale() {
        let key = ServiceKey {
            app: "1".parse().unwrap(),
            service: "web".parse().unwrap(),
        };
        let network = |id: &str| Network {
            id: id.to_owned(),
            name: "1_default-x".to_owned(),
            key: NetworkKey {
                app: "1".parse().unwrap(),
                network: "default".parse().unwrap(),
            },
        };
        let mut found = memory::tests::container("one", ContainerState::Running);
        let attachment = crate::engine::EngineAttachment {
            network_id: "old".to_owned(),
            ..crate::engine::EngineAttachment::default()
        };
        found.networks.insert("1_default-x".to_owned(), attachment);
        let joined = |networks: &[Network]| {
            network_state(&found, &BTreeMap::new(), &key, networks)
                .joined
                .values()
                .map(|joined| joined.stale)
                .collect::<Vec<_>>()
        };
        assert_eq!(joined(&[network("old")]), [false]);
        assert_eq!(joined(&[network("new")]), [true]);
        assert_eq!(joined(&[]), [] as [bool; 0]);
    }
}
