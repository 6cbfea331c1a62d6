//! Owns the agent's calls on the model: each as `docker.rs` makes it, with the same look after a failure.

use std::collections::HashMap;

use holdfast_plan::{Amounts, ContainerState, NetworkKey};
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::Platform;
use holdfast_proto::spec::RestartPolicy;

use super::images::Pulling;
use super::world::{Container, Network, World};
use super::{FakeEngine, make};
use crate::clock::Clock;
use crate::engine::member::Sink;
use crate::engine::{
    Engine, EngineAttachment, EngineContainer, EngineError, EngineImage, EngineInfo, EngineNetwork,
    Executed, Fetch, ImageStore, NewContainer, NewSandbox, Operation, ReadError, StoredImage,
    known, labels, sandbox,
};

/// As `docker.rs` waits: reading is quick, changing may take a minute.
const READ_MS: u64 = 10_000;
const CHANGE_MS: u64 = 60_000;
const REMOVAL_LOOKS: u32 = 40;
const REMOVAL_PAUSE_MS: u64 = 250;
/// The size that every image of the model has.
const IMAGE_BYTES: u64 = 2_000_000;

/// How long the agent waits for a call's answer.
pub(super) fn timeout_ms(operation: Operation) -> u64 {
    match operation {
        Operation::Describe
        | Operation::List
        | Operation::Inspect
        | Operation::ReadFile
        | Operation::InspectImage
        | Operation::ListNetworks
        | Operation::ListImages
        | Operation::Logs
        | Operation::Pull
        | Operation::Watch => READ_MS,
        Operation::Create
        | Operation::SetRestart
        | Operation::Start
        | Operation::Stop
        | Operation::Unpause
        | Operation::Remove
        | Operation::Rename
        | Operation::SetAmounts
        | Operation::CreateNetwork
        | Operation::RemoveNetwork
        | Operation::Connect
        | Operation::Disconnect
        | Operation::LoadImage
        | Operation::Tag
        | Operation::RemoveImage
        | Operation::Exec => CHANGE_MS,
    }
}

/// Whether a call changes the engine.
pub fn changes(operation: Operation) -> bool {
    match operation {
        Operation::Describe
        | Operation::List
        | Operation::Inspect
        | Operation::ReadFile
        | Operation::InspectImage
        | Operation::ListNetworks
        | Operation::ListImages
        | Operation::Exec
        | Operation::Logs
        | Operation::Watch => false,
        Operation::Pull
        | Operation::Create
        | Operation::SetRestart
        | Operation::Start
        | Operation::Stop
        | Operation::Unpause
        | Operation::Remove
        | Operation::Rename
        | Operation::SetAmounts
        | Operation::CreateNetwork
        | Operation::RemoveNetwork
        | Operation::Connect
        | Operation::Disconnect
        | Operation::LoadImage
        | Operation::Tag
        | Operation::RemoveImage => true,
    }
}

fn described(id: &str, container: &Container, now_ms: u64) -> EngineContainer {
    let (health, probe_error) = container.health(now_ms);
    let attached = container.attachments.iter().map(|(name, attachment)| {
        let attachment = EngineAttachment {
            network_id: attachment.network_id.clone(),
            aliases: attachment.aliases.clone(),
            address: None,
        };
        (name.clone(), attachment)
    });
    EngineContainer {
        id: id.to_owned(),
        name: container.name.clone(),
        labels: container.labels.clone(),
        state: container.state,
        health,
        restart_count: container.restart_count,
        oom_killed: container.out_of_memory,
        restart: container.restart,
        started_at: container.started_at.clone(),
        start_error: container.start_error.clone(),
        addresses: Vec::new(),
        probe_error,
        image_id: container.image.parse().ok(),
        shares: container.shares.clone(),
        networks: attached.collect(),
        published: container.published.clone(),
        amounts: container.amounts,
    }
}

impl World {
    pub(super) fn described(&self, now_ms: u64) -> Vec<EngineContainer> {
        let containers = self.containers.iter();
        containers
            .map(|(id, container)| described(id, container, now_ms))
            .collect()
    }
}

/// A container's connection to a network that is given by its name or its id.
fn attachment<'c>(
    found: &'c EngineContainer,
    network: &str,
) -> Option<(&'c str, &'c EngineAttachment)> {
    let mut networks = found.networks.iter();
    let found =
        networks.find(|(name, attachment)| *name == network || attachment.network_id == network)?;
    Some((found.0.as_str(), found.1))
}

fn absent_is_fine(outcome: Result<(), EngineError>) -> Result<(), EngineError> {
    match outcome {
        Err(EngineError::Refused { status: 404, .. }) => Ok(()),
        other => other,
    }
}

impl<C: Clock> FakeEngine<C> {
    /// After a failure: whether the container is now as it was asked for.
    async fn unless(
        &self,
        outcome: Result<(), EngineError>,
        id: &str,
        as_asked: impl FnOnce(Option<ContainerState>) -> bool,
    ) -> Result<(), EngineError> {
        let Err(failure) = outcome else {
            return Ok(());
        };
        let found = self.container(id).await?;
        if as_asked(found.map(|found| found.state)) {
            Ok(())
        } else {
            Err(failure)
        }
    }

    async fn must_find(
        &self,
        operation: Operation,
        id: &str,
    ) -> Result<EngineContainer, EngineError> {
        let found = self.container(id).await?;
        found.ok_or_else(|| EngineError::Refused {
            operation,
            status: 404,
            message: format!("there is no container {id}"),
        })
    }

    async fn create_sandbox_once(&self, new: &NewSandbox<'_>) -> Result<String, EngineError> {
        let sandbox = make::sandbox(new);
        let asked = sandbox.labels.clone();
        let outcome = self.call(Operation::Create, new.name, |world, _| {
            world.create(sandbox::IMAGE, sandbox)
        });
        self.created(new.name, &asked, outcome.await).await
    }

    /// After a refused creation: whether the container is there all the same, or a stranger's.
    async fn created(
        &self,
        name: &str,
        asked: &HashMap<String, String>,
        outcome: Result<String, EngineError>,
    ) -> Result<String, EngineError> {
        let failure = match outcome {
            Ok(id) => return Ok(id),
            Err(failure) => failure,
        };
        match self.container(name).await? {
            Some(found)
                if asked
                    .iter()
                    .all(|(key, value)| found.labels.get(key) == Some(value)) =>
            {
                Ok(found.id)
            }
            Some(_) => Err(EngineError::ForeignName {
                name: name.to_owned(),
            }),
            None => Err(failure),
        }
    }

    async fn wait_for_removal(&self, id: &str) -> Result<(), EngineError> {
        for _ in 0..REMOVAL_LOOKS {
            if self.container(id).await?.is_none() {
                return Ok(());
            }
            self.clock.sleep_ms(REMOVAL_PAUSE_MS).await;
        }
        Err(EngineError::TimedOut {
            operation: Operation::Remove,
            timeout_ms: u64::from(REMOVAL_LOOKS) * REMOVAL_PAUSE_MS,
        })
    }
}

impl<C: Clock> Engine for FakeEngine<C> {
    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        self.call(Operation::Describe, "", |_, _| Ok(())).await?;
        Ok(EngineInfo {
            id: "fake".to_owned(),
            version: "20.10.24".to_owned(),
            api_version: "1.41".to_owned(),
            store: ImageStore::Classic,
            platform: Platform::new("linux", "amd64", None),
            // It keeps nothing on a disk, so that no disk of the machine counts.
            root: String::new(),
        })
    }

    async fn containers(&self, device: &DeviceId) -> Result<Vec<EngineContainer>, EngineError> {
        let all = self.call(Operation::List, "", |world, now_ms| {
            Ok(world.described(now_ms))
        });
        let mut all = all.await?;
        all.retain(|found| labels::belongs_to(&found.labels, device));
        Ok(all)
    }

    async fn container(&self, id: &str) -> Result<Option<EngineContainer>, EngineError> {
        self.call(Operation::Inspect, id, |world, now_ms| {
            let found = world.find(id);
            let found = found.and_then(|id| Some((world.containers.get(&id)?, id)));
            Ok(found.map(|(container, id)| described(&id, container, now_ms)))
        })
        .await
    }

    async fn image(&self, pinned: &str) -> Result<Option<EngineImage>, EngineError> {
        self.call(Operation::InspectImage, pinned, |world, _| {
            Ok(world.stored(pinned).map(|(id, image)| EngineImage {
                ids: id.parse().into_iter().collect(),
                platform: image.platform.clone(),
            }))
        })
        .await
    }

    async fn pull(&self, fetch: &Fetch<'_>) -> Result<(), EngineError> {
        let Fetch {
            pinned,
            no_progress_ms,
            ..
        } = *fetch;
        let begun = self.call(Operation::Pull, pinned, |world, _| world.begin_pull(pinned));
        match begun.await? {
            Pulling::Done(wait_ms) => {
                self.clock.sleep_ms(wait_ms).await;
                self.answers(Operation::Pull).await?;
                self.by_hand(|world, _| world.end_pull(pinned));
                Ok(())
            }
            Pulling::Breaks => Err(EngineError::PullBroke {
                message: "unexpected EOF".to_owned(),
            }),
            Pulling::Stalls { wedges } => {
                // From the moment that the layer was asked for, whoever gives the pull up (measured: M2).
                self.by_hand(|world, _| world.wedged.extend(wedges));
                self.clock.sleep_ms(no_progress_ms).await;
                Err(EngineError::PullStalled { no_progress_ms })
            }
        }
    }

    async fn create(&self, new: &NewContainer<'_>) -> Result<String, EngineError> {
        let container = make::service(new)?;
        let asked = container.labels.clone();
        let image = known::name_for(self, new).await?;
        let outcome = self.call(Operation::Create, new.name, |world, _| {
            world.create(&image, container)
        });
        self.created(new.name, &asked, outcome.await).await
    }

    async fn create_sandbox(&self, new: &NewSandbox<'_>) -> Result<String, EngineError> {
        let first = self.create_sandbox_once(new).await;
        let Err(EngineError::Refused { status: 404, .. }) = &first else {
            return first;
        };
        if self.image(sandbox::IMAGE).await?.is_some() {
            return first;
        }
        let load = self.call(Operation::LoadImage, sandbox::IMAGE, |world, _| {
            world.load_sandbox_image();
            Ok(())
        });
        load.await?;
        self.create_sandbox_once(new).await
    }

    async fn set_restart(&self, id: &str, policy: RestartPolicy) -> Result<(), EngineError> {
        self.call(Operation::SetRestart, id, |world, _| {
            world.set_restart(id, policy)
        })
        .await
    }

    async fn start(&self, id: &str) -> Result<(), EngineError> {
        let outcome = self
            .call(Operation::Start, id, |world, now_ms| {
                world.start(id, now_ms)
            })
            .await;
        let runs = |found: Option<ContainerState>| found.is_some_and(ContainerState::is_up);
        self.unless(outcome, id, runs).await
    }

    async fn stop(&self, id: &str) -> Result<(), EngineError> {
        if self.container(id).await?.is_none() {
            return Ok(());
        }
        let asked = self
            .call(Operation::Stop, id, |world, now_ms| world.stop(id, now_ms))
            .await;
        let outcome = match asked {
            Ok(wait_ms) => {
                self.clock.sleep_ms(wait_ms).await;
                self.answers(Operation::Stop).await
            }
            Err(failure) => Err(failure),
        };
        let ended = |found: Option<ContainerState>| !found.is_some_and(ContainerState::is_up);
        self.unless(outcome, id, ended).await
    }

    async fn unpause(&self, id: &str) -> Result<(), EngineError> {
        let outcome = self.call(Operation::Unpause, id, |world, _| world.unpause(id));
        let outcome = outcome.await;
        let moves = |found| found != Some(ContainerState::Paused);
        self.unless(outcome, id, moves).await
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let outcome = self.call(Operation::Remove, id, |world, _| world.remove(id));
        match outcome.await {
            Err(EngineError::Refused {
                status: 409,
                message,
                ..
            }) if message.contains("in progress") => self.wait_for_removal(id).await,
            other => absent_is_fine(other),
        }
    }

    async fn rename(&self, id: &str, name: &str) -> Result<(), EngineError> {
        let outcome = self.call(Operation::Rename, id, |world, _| world.rename(id, name));
        let Err(failure) = outcome.await else {
            return Ok(());
        };
        match self.container(name).await? {
            Some(found) if found.id == id => Ok(()),
            Some(_) => Err(EngineError::ForeignName {
                name: name.to_owned(),
            }),
            None => Err(failure),
        }
    }

    async fn set_amounts(&self, id: &str, amounts: Amounts) -> Result<(), EngineError> {
        self.must_find(Operation::SetAmounts, id).await?;
        self.call(Operation::SetAmounts, id, |world, _| {
            world.set_amounts(id, amounts)
        })
        .await
    }

    async fn networks(&self, device: &DeviceId) -> Result<Vec<EngineNetwork>, EngineError> {
        let listed = self.call(Operation::ListNetworks, "", |world, _| {
            let networks = world.networks.iter();
            let described = |(id, network): (&String, &Network)| EngineNetwork {
                id: id.clone(),
                name: network.name.clone(),
                labels: network.labels.clone(),
            };
            Ok(networks.map(described).collect::<Vec<_>>())
        });
        let mut networks = listed.await?;
        networks.retain(|network| labels::belongs_to(&network.labels, device));
        Ok(networks)
    }

    async fn create_network(
        &self,
        device: &DeviceId,
        key: &NetworkKey,
        name: &str,
    ) -> Result<(), EngineError> {
        let labels = labels::write_network(device, key);
        let listed = self.call(Operation::ListNetworks, name, |world, _| {
            let named = world
                .networks
                .values()
                .filter(|network| network.name == name);
            Ok(named
                .map(|network| network.labels.clone())
                .collect::<Vec<_>>())
        });
        let before = listed.await?;
        if before.contains(&labels) {
            return Ok(());
        }
        if !before.is_empty() {
            return Err(EngineError::ForeignName {
                name: name.to_owned(),
            });
        }
        let network = Network {
            name: name.to_owned(),
            labels: labels.clone(),
        };
        let outcome = self
            .call(Operation::CreateNetwork, name, |world, _| {
                world.create_network(network)
            })
            .await;
        let Err(failure) = outcome else {
            return Ok(());
        };
        let known = self.networks(device).await?;
        let is_asked = |found: &EngineNetwork| found.name == name && found.labels == labels;
        if known.iter().any(is_asked) {
            Ok(())
        } else {
            Err(failure)
        }
    }

    async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        let outcome = self.call(Operation::RemoveNetwork, id, |world, _| {
            world.remove_network(id)
        });
        absent_is_fine(outcome.await)
    }

    async fn connect(
        &self,
        network: &str,
        container: &str,
        aliases: &[String],
    ) -> Result<(), EngineError> {
        let found = self.must_find(Operation::Connect, container).await?;
        if let Some((name, attachment)) = attachment(&found, network) {
            let named = aliases
                .iter()
                .all(|alias| attachment.aliases.contains(alias));
            let exists = self.call(Operation::ListNetworks, name, |world, _| {
                let mut networks = world.networks.keys();
                Ok(networks.any(|id| *id == attachment.network_id))
            });
            if named && (exists.await? || attachment.network_id.is_empty()) {
                return Ok(());
            }
            self.disconnect(network, container).await?;
        }
        self.call(Operation::Connect, container, |world, _| {
            world.connect(network, container, aliases)
        })
        .await
    }

    async fn disconnect(&self, network: &str, container: &str) -> Result<(), EngineError> {
        let once = |network: String| {
            self.call(Operation::Disconnect, container, move |world, _| {
                world.disconnect(&network, container)
            })
        };
        let Err(failure) = once(network.to_owned()).await else {
            return Ok(());
        };
        if failure.is_engine_away() {
            return Err(failure);
        }
        let Some(found) = self.container(container).await? else {
            return Ok(());
        };
        match attachment(&found, network) {
            None => Ok(()),
            Some((name, _)) if name == network => Err(failure),
            Some((name, _)) => once(name.to_owned()).await,
        }
    }

    async fn images(&self) -> Result<Vec<StoredImage>, EngineError> {
        self.call(Operation::ListImages, "", |world, _| {
            let images = world.images.iter();
            let stored = images.map(|(id, image)| StoredImage {
                id: id.clone(),
                tags: image.tags.iter().cloned().collect(),
                digests: image.digests.iter().cloned().collect(),
                size_bytes: IMAGE_BYTES,
            });
            Ok(stored.collect())
        })
        .await
    }

    async fn tag(&self, image: &str, name: &str) -> Result<(), EngineError> {
        self.call(Operation::Tag, image, |world, _| world.tag(image, name))
            .await
    }

    async fn remove_image(&self, image: &str) -> Result<(), EngineError> {
        let outcome = self.call(Operation::RemoveImage, image, |world, _| {
            world.remove_image(image, false)
        });
        absent_is_fine(outcome.await)
    }

    async fn read_file(
        &self,
        id: &str,
        _path: &str,
        _most_bytes: u64,
        _take: Sink<'_>,
    ) -> Result<(), ReadError> {
        // Images of the model hold no files.
        let found = self.call(Operation::ReadFile, id, |world, _| {
            world.container(id).map(|_| ())
        });
        found.await?;
        Err(ReadError::NotThere)
    }

    async fn exec(
        &self,
        id: &str,
        words: &[String],
        _timeout_ms: u64,
    ) -> Result<Executed, EngineError> {
        let ended = self.call(Operation::Exec, id, |world, _| {
            world.exec(id, words.first().map_or("", String::as_str))
        });
        Ok(Executed {
            exit_code: Some(ended.await?),
            output: String::new(),
        })
    }

    async fn watch(&self, _device: &DeviceId, nudge: impl Fn()) -> Result<(), EngineError> {
        self.call(Operation::Watch, "", |_, _| Ok(())).await?;
        let mut seen = self.world.borrow().events;
        loop {
            let next = self.world.borrow().next();
            let now_ms = self.clock.monotonic_ms();
            let wait_ms = next.map_or(READ_MS, |(at, _)| at.saturating_sub(now_ms));
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.clock.sleep_ms(wait_ms) => {}
            }
            self.answers_now(Operation::Watch)?;
            let events = std::mem::replace(&mut seen, self.world.borrow().events);
            if events != seen && !self.events_are_lost.get() {
                nudge();
            }
        }
    }
}
