//! Owns what the model answers to each call on containers and networks, as dockerd does.
//!
//! Statuses were measured on 20.10; the conformance script compares them with a real engine.

use holdfast_plan::{Amounts, ContainerState};
use holdfast_proto::spec::RestartPolicy;

use super::world::{Attachment, Container, Network, World};
use crate::engine::Executed;

/// The least memory that an engine accepts as a limit.
const MIN_MEMORY: u64 = 6 << 20;

/// The engine says no.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) message: String,
}

pub(super) type Answer<T> = Result<T, Refusal>;

pub(super) fn refuse<T>(status: u16, message: impl Into<String>) -> Answer<T> {
    Err(Refusal {
        status,
        message: message.into(),
    })
}

impl World {
    /// A container by id or name.
    pub(super) fn find(&self, word: &str) -> Option<String> {
        let named = |(_, container): &(&String, &Container)| container.name == word;
        let found = self.containers.get_key_value(word);
        let found = found.or_else(|| self.containers.iter().find(named));
        found.map(|(id, _)| id.clone())
    }

    pub(super) fn container(&mut self, word: &str) -> Answer<(String, &mut Container)> {
        let Some(id) = self.find(word) else {
            return refuse(404, format!("No such container: {word}"));
        };
        match self.containers.get_mut(&id) {
            Some(container) => Ok((id, container)),
            None => refuse(404, format!("No such container: {word}")),
        }
    }

    fn network(&self, word: &str) -> Option<(String, String)> {
        let mut networks = self.networks.iter();
        let found = networks.find(|(id, network)| *id == word || network.name == word)?;
        Some((found.0.clone(), found.1.name.clone()))
    }

    fn needs_disk(&self) -> Answer<()> {
        if self.disk_is_full {
            return refuse(500, "no space left on device");
        }
        Ok(())
    }

    fn name_is_free(&self, name: &str) -> Answer<()> {
        if self.containers.values().any(|other| other.name == name) {
            let text = format!("Conflict. The container name \"/{name}\" is already in use");
            return refuse(409, text);
        }
        Ok(())
    }

    /// Makes a container as `new` describes it, from a stored image.
    pub(super) fn create(&mut self, image: &str, mut new: Container) -> Answer<String> {
        acceptable(new.amounts)?;
        let Some((id, found)) = self.stored(image) else {
            return refuse(404, format!("No such image: {image}"));
        };
        new.image = id;
        new.behaviour = found.behaviour.clone();
        if new.check_is_off {
            new.behaviour.check = None;
        }
        self.name_is_free(&new.name)?;
        self.needs_disk()?;
        let id = self.new_id();
        self.containers.insert(id.clone(), new);
        Ok(id)
    }

    pub(super) fn set_restart(&mut self, id: &str, policy: RestartPolicy) -> Answer<()> {
        let (id, _) = self.container(id)?;
        self.needs_disk()?;
        self.container(&id)?.1.restart = policy;
        Ok(())
    }

    pub(super) fn set_amounts(&mut self, id: &str, amounts: Amounts) -> Answer<()> {
        acceptable(amounts)?;
        let (id, _) = self.container(id)?;
        self.needs_disk()?;
        self.container(&id)?.1.amounts = amounts;
        Ok(())
    }

    pub(super) fn rename(&mut self, id: &str, name: &str) -> Answer<()> {
        let (id, container) = self.container(id)?;
        if container.name == name {
            return refuse(
                400,
                "Renaming a container with the same name as its current name",
            );
        }
        self.name_is_free(name)?;
        self.needs_disk()?;
        name.clone_into(&mut self.container(&id)?.1.name);
        Ok(())
    }

    pub(super) fn start(&mut self, id: &str, now_ms: u64) -> Answer<()> {
        let disk_is_full = self.disk_is_full;
        let (id, container) = self.container(id)?;
        match container.state {
            ContainerState::Running | ContainerState::Restarting => return Ok(()),
            ContainerState::Paused => return refuse(409, "cannot start a paused container"),
            ContainerState::Removing | ContainerState::Dead => {
                return refuse(409, "container is marked for removal and cannot be started");
            }
            ContainerState::Created | ContainerState::Exited { .. } => {}
        }
        container.forget_restarts();
        if disk_is_full && !container.ever_started {
            // The first start of a container writes files of its own (measured by the conformance script).
            "no space left on device".clone_into(&mut container.start_error);
            return refuse(500, "no space left on device");
        }
        if let Err(no) = self.launch(&id, now_ms) {
            return refuse(no.status, no.message);
        }
        if disk_is_full {
            // It runs; only the engine's note of it could not be written (measured: M10).
            return refuse(500, "no space left on device");
        }
        Ok(())
    }

    /// Asks a container to end; gives how long that takes.
    pub(super) fn stop(&mut self, id: &str, now_ms: u64) -> Answer<u64> {
        let (_, container) = self.container(id)?;
        if !container.state.is_up() {
            return Ok(0);
        }
        container.stopped_by_hand = true;
        let waits = container
            .behaviour
            .ignores_sigterm
            .then_some(container.grace_ms);
        match (&mut container.process, waits) {
            (Some(process), Some(grace_ms)) => {
                process.killed_at_ms = Some(now_ms + grace_ms);
                container.state = ContainerState::Running;
                self.events += 1;
                Ok(grace_ms)
            }
            (Some(_), None) => {
                container.end(0, now_ms, true);
                self.events += 1;
                Ok(0)
            }
            (None, _) => {
                container.end(1, now_ms, true);
                self.events += 1;
                Ok(0)
            }
        }
    }

    /// Runs a program in a container; gives its exit code.
    pub(super) fn exec(&mut self, id: &str, program: &str) -> Answer<i64> {
        let (_, container) = self.container(id)?;
        match container.state {
            ContainerState::Running => {
                let by_name = match program.rsplit('/').next() {
                    Some("true") => 0,
                    Some("false") => 1,
                    Some(_) | None => Executed::NOT_RUNNABLE,
                };
                Ok(container.behaviour.exec_code.unwrap_or(by_name))
            }
            ContainerState::Paused => refuse(409, "the container is paused"),
            ContainerState::Created
            | ContainerState::Restarting
            | ContainerState::Exited { .. }
            | ContainerState::Removing
            | ContainerState::Dead => refuse(409, "the container is not running"),
        }
    }

    pub(super) fn unpause(&mut self, id: &str) -> Answer<()> {
        let (_, container) = self.container(id)?;
        if container.state != ContainerState::Paused {
            return refuse(500, "the container is not paused");
        }
        container.state = ContainerState::Running;
        self.events += 1;
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &str) -> Answer<()> {
        let (id, container) = self.container(id)?;
        if container.state.is_up() {
            return refuse(409, "You cannot remove a running container");
        }
        if container.state == ContainerState::Removing {
            return refuse(
                409,
                format!("removal of container {id} is already in progress"),
            );
        }
        self.containers.remove(&id);
        self.events += 1;
        Ok(())
    }

    /// Makes a network; names are not unique.
    pub(super) fn create_network(&mut self, network: Network) -> Answer<()> {
        self.needs_disk()?;
        let id = self.new_id();
        self.networks.insert(id, network);
        Ok(())
    }

    pub(super) fn remove_network(&mut self, word: &str) -> Answer<()> {
        let Some((id, name)) = self.network(word) else {
            return refuse(404, format!("network {word} not found"));
        };
        let in_use = self.containers.values().any(|container| {
            container.process.is_some() && container.attachments.contains_key(&name)
        });
        if in_use {
            return refuse(403, format!("network {name} has active endpoints"));
        }
        self.networks.remove(&id);
        Ok(())
    }

    pub(super) fn connect(&mut self, network: &str, id: &str, names: &[String]) -> Answer<()> {
        let found = self.network(network);
        let (id, container) = self.container(id)?;
        let Some((network_id, name)) = found else {
            return refuse(404, format!("network {network} not found"));
        };
        if container.shares.is_some() {
            let text = "container sharing network namespace with another container or host";
            return refuse(
                400,
                format!("{text} cannot be connected to any other network"),
            );
        }
        let runs = container.process.is_some();
        if runs && container.attachments.contains_key(&name) {
            let text = format!("endpoint with name {} already exists", container.name);
            return refuse(403, text);
        }
        let mut attachment = Attachment::new(names);
        if runs {
            attachment.join(&id, network_id);
        }
        container.attachments.insert(name, attachment);
        Ok(())
    }

    pub(super) fn disconnect(&mut self, network: &str, id: &str) -> Answer<()> {
        let name = self
            .network(network)
            .map_or_else(|| network.to_owned(), |(_, name)| name);
        let Some(id) = self.find(id) else {
            return refuse(404, format!("endpoint {id} not found"));
        };
        let (_, container) = self.container(&id)?;
        if container.attachments.remove(&name).is_none() {
            return refuse(500, format!("the container is not connected to {network}"));
        }
        Ok(())
    }
}

fn acceptable(amounts: Amounts) -> Answer<()> {
    if amounts.memory != 0 && amounts.memory < MIN_MEMORY {
        return refuse(400, "Minimum memory limit allowed is 6MB");
    }
    Ok(())
}
