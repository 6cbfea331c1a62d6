//! Owns where a service's container gets its network from: the engine, its sandbox, or another service's.

use holdfast_proto::id::{ServiceKey, ServiceName};
use holdfast_proto::image::Digest;
use holdfast_proto::spec::{NetworkMode, RestartPolicy};
use holdfast_proto::target::{Identity, ServiceTarget};

use super::View;
use crate::hold::Hold;
use crate::network::{NetworkKey, SandboxSpec, attachments, lends_its_network, needs_sandbox};
use crate::observed::{Container, ContainerState, NetworkState, Sandbox};
use crate::step::{Plan, RemoveReason, Step, StopReason};

/// Where a container's network comes from.
pub(super) enum Link<'a> {
    /// The engine gives it one.
    Own,
    /// This sandbox.
    Of(&'a Sandbox),
    /// A sandbox that must be made first.
    Missing(Box<SandboxSpec>),
    /// The sandbox of this service, which is not there yet.
    NotYet(ServiceName),
}

impl<'a> View<'a> {
    /// Where a container of `service` must get its network from.
    pub(super) fn link(&self, service: &ServiceTarget) -> Link<'a> {
        if let Some(NetworkMode::Service(name)) = &service.config.network_mode {
            let lender = ServiceKey {
                app: self.key.app.clone(),
                service: name.clone(),
            };
            // The one that is up: while the lender's own update is on trial, its users follow it.
            return match self.best_sandbox(&lender, None) {
                Some(sandbox) => Link::Of(sandbox),
                None => Link::NotYet(name.clone()),
            };
        }
        let lends = lends_its_network(self.situation.target, self.key);
        let spec = SandboxSpec::of(&service.service_name, &service.config);
        let sandbox = self.best_sandbox(self.key, Some(&spec.hash()));
        if needs_sandbox(&service.config, lends) {
            return match sandbox {
                Some(sandbox) => Link::Of(sandbox),
                None => Link::Missing(Box::new(spec)),
            };
        }
        // Needing none any more is no reason to replace a container that runs well in one.
        let works = |sandbox: &&Sandbox| {
            sandbox.state.is_up()
                && self.containers.iter().any(|container| {
                    container.is(service)
                        && container.state.is_up()
                        && container.network.shares.as_ref() == Some(&sandbox.id)
                })
        };
        sandbox.filter(works).map_or(Link::Own, Link::Of)
    }

    fn best_sandbox(&self, key: &ServiceKey, hash: Option<&str>) -> Option<&'a Sandbox> {
        let observed = self.situation.observed;
        let usable = |sandbox: &&Sandbox| match sandbox.state {
            ContainerState::Removing | ContainerState::Dead => false,
            ContainerState::Created
            | ContainerState::Running
            | ContainerState::Paused
            | ContainerState::Restarting
            | ContainerState::Exited { .. } => true,
        };
        observed
            .sandboxes
            .iter()
            .filter(|sandbox| sandbox.key == *key && usable(sandbox))
            .filter(|sandbox| hash.is_none_or(|hash| sandbox.hash == hash))
            .max_by_key(|sandbox| {
                let users = observed.containers.iter();
                let used = users
                    .filter(|container| container.network.shares.as_ref() == Some(&sandbox.id))
                    .count();
                (
                    sandbox.state.is_up(),
                    used > 0,
                    sandbox.generation,
                    sandbox.id.as_str(),
                )
            })
    }

    /// The container made from `service` in the right network: the one that is up, else the newest that
    /// can be started.
    pub(super) fn container_of(
        &self,
        service: &ServiceTarget,
        link: &Link<'_>,
    ) -> Option<&'a Container> {
        let fits = |container: &Container| match link {
            Link::Own => container.network.shares.is_none(),
            Link::Of(sandbox) => container.network.shares.as_ref() == Some(&sandbox.id),
            Link::Missing(_) | Link::NotYet(_) => false,
        };
        self.containers
            .iter()
            .filter(|container| container.is(service) && fits(container))
            .max_by_key(|container| {
                let lost = matches!(
                    container.state,
                    ContainerState::Dead | ContainerState::Removing
                );
                (
                    container.state.is_up(),
                    !lost,
                    container.generation,
                    container.id.as_str(),
                )
            })
            .copied()
    }

    /// Whether the network of `container` is up; pushes what brings it up. `candidate` names the spec
    /// that is rejected when its own sandbox cannot start.
    pub(super) fn raise_network(
        &self,
        service: &ServiceTarget,
        container: &Container,
        link: &Link<'_>,
        candidate: Option<Identity>,
        plan: &mut Plan,
    ) -> bool {
        let why = if candidate.is_some() {
            StopReason::Replaced
        } else {
            StopReason::Superfluous
        };
        let Link::Of(sandbox) = link else {
            self.stop_sandboxes(None, why, plan);
            return self.join_networks(service, &container.handle(), &container.network, plan);
        };
        if sandbox.key != *self.key {
            if !sandbox.state.is_up() {
                plan.holds.push(Hold::NetworkAway {
                    key: self.key.clone(),
                    of: sandbox.key.service.clone(),
                });
            }
            return sandbox.state.is_up();
        }
        self.stop_sandboxes(Some(&sandbox.id), why, plan);
        if !self.join_networks(service, &sandbox.handle(), &sandbox.network, plan) {
            return false;
        }
        match sandbox.state {
            ContainerState::Paused => plan.steps.push(Step::Unpause {
                key: self.key.clone(),
                container: sandbox.handle(),
            }),
            ContainerState::Created | ContainerState::Exited { .. } => {
                plan.steps.push(Step::StartSandbox {
                    key: self.key.clone(),
                    container: sandbox.handle(),
                    restart: if candidate.is_some() {
                        RestartPolicy::No
                    } else {
                        RestartPolicy::Always
                    },
                    candidate,
                });
            }
            ContainerState::Restarting => {
                plan.holds.push(Hold::NetworkAway {
                    key: self.key.clone(),
                    of: self.key.service.clone(),
                });
                return false;
            }
            ContainerState::Running | ContainerState::Removing | ContainerState::Dead => {}
        }
        true
    }

    /// Stops this service's other sandboxes: they hold its ports.
    fn stop_sandboxes(&self, kept: Option<&str>, why: StopReason, plan: &mut Plan) {
        for other in self.own_sandboxes() {
            if kept != Some(other.id.as_str()) && other.state.is_up() {
                plan.steps.push(Step::Stop {
                    key: self.key.clone(),
                    container: other.handle(),
                    why,
                });
            }
        }
    }

    /// Connects what holds a service's network to the app's networks where it is not; whether every
    /// network exists.
    pub(super) fn join_networks(
        &self,
        service: &ServiceTarget,
        holder: &crate::observed::ContainerRef,
        state: &NetworkState,
        plan: &mut Plan,
    ) -> bool {
        if state.shares.is_some() {
            return true;
        }
        if self.make_networks(service, plan) {
            return false;
        }
        for (network, aliases) in attachments(&service.service_name, &service.config) {
            let joined = state.joined.get(&network);
            let complete = joined.is_some_and(|joined| {
                !joined.stale && aliases.iter().all(|alias| joined.aliases.contains(alias))
            });
            if !complete {
                plan.steps.push(Step::Connect {
                    key: self.key.clone(),
                    container: holder.clone(),
                    network,
                    aliases,
                    again: joined.is_some(),
                });
            }
        }
        true
    }

    /// Makes the networks that `service` joins and that are missing; whether one was.
    pub(super) fn make_networks(&self, service: &ServiceTarget, plan: &mut Plan) -> bool {
        let before = plan.steps.len();
        for (network, _) in attachments(&service.service_name, &service.config) {
            let wanted = NetworkKey {
                app: self.key.app.clone(),
                network,
            };
            let mut present = self.situation.observed.networks.iter();
            if !present.any(|network| network.key == wanted) {
                plan.steps.push(Step::CreateNetwork {
                    key: self.key.clone(),
                    name: network_name(self.situation, &wanted),
                    network: wanted,
                });
            }
        }
        plan.steps.len() > before
    }

    pub(super) fn own_sandboxes(&self) -> impl Iterator<Item = &'a Sandbox> {
        let sandboxes = self.situation.observed.sandboxes.iter();
        sandboxes.filter(|sandbox| sandbox.key == *self.key)
    }

    /// Clears away this service's sandboxes that nothing uses; `kept` stays.
    pub(super) fn clear_sandboxes(&self, kept: Option<&str>, plan: &mut Plan) {
        let observed = self.situation.observed;
        for sandbox in self.own_sandboxes() {
            let users = &mut observed.containers.iter();
            let used =
                users.any(|container| container.network.shares.as_ref() == Some(&sandbox.id));
            if used || kept == Some(sandbox.id.as_str()) {
                continue;
            }
            match sandbox.state {
                state if state.is_up() => plan.steps.push(Step::Stop {
                    key: self.key.clone(),
                    container: sandbox.handle(),
                    why: StopReason::Superfluous,
                }),
                ContainerState::Removing => {}
                ContainerState::Created
                | ContainerState::Exited { .. }
                | ContainerState::Dead
                | ContainerState::Running
                | ContainerState::Paused
                | ContainerState::Restarting => plan.steps.push(Step::Remove {
                    key: self.key.clone(),
                    container: sandbox.handle(),
                    why: RemoveReason::Unused,
                }),
            }
        }
    }

    /// A name that no container of this device has: unique per device, generation and `content`.
    pub(crate) fn unique_name(&self, middle: &str, content: &str) -> String {
        let ServiceKey { app, service } = self.key;
        let observed = self.situation.observed;
        let generation = self.situation.target.generation;
        let marked = format!("{} {content}", observed.device);
        let mark: String = Digest::of(marked.as_bytes())
            .hex()
            .chars()
            .take(8)
            .collect();
        let name = format!("{service}-{app}{middle}-g{generation}-{mark}");
        let taken = |name: &str| {
            observed.containers.iter().any(|other| other.name == name)
                || observed.sandboxes.iter().any(|other| other.name == name)
                || observed
                    .strangers
                    .iter()
                    .any(|other| other.container.name == name)
        };
        if !taken(&name) {
            return name;
        }
        // One that is being removed, or was made anew: the first free number; one more than there are names is enough.
        let names = observed.containers.len() + observed.sandboxes.len() + observed.strangers.len();
        (2..=names + 2)
            .map(|number| format!("{name}-{number}"))
            .find(|name| !taken(name))
            .unwrap_or(name)
    }
}

/// The engine's name of an app's network: two devices may share an engine, and one app's name.
pub(crate) fn network_name(situation: &crate::Situation<'_>, network: &NetworkKey) -> String {
    let device = situation.observed.device.short();
    format!("{}_{}-{device}", network.app, network.network)
}
