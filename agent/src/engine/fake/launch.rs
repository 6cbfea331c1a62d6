//! Owns a start on the model: networks first, then ports, then the program, each with its own refusal.
//!
//! Statuses and what a failed start leaves behind were measured on 20.10 (M8 and the conformance script).

use std::collections::BTreeSet;

use holdfast_plan::{ContainerState, Published};
use holdfast_proto::spec::Protocol;
use holdfast_proto::time::Timestamp;

use super::world::{Container, World};

/// The first port that an engine chooses by itself.
const FIRST_FREE_PORT: u16 = 32_768;

/// Why a start did not happen: the engine's status and words, and the container's exit code.
pub(super) struct NoStart {
    pub(super) status: u16,
    pub(super) message: String,
    code: i64,
}

fn no<T>(status: u16, message: impl Into<String>) -> Result<T, NoStart> {
    Err(NoStart {
        status,
        message: message.into(),
        code: 128,
    })
}

impl World {
    /// Starts a container's process, or says why not.
    pub(super) fn launch(&mut self, id: &str, now_ms: u64) -> Result<(), NoStart> {
        let launched = self.try_to_launch(id);
        self.events += 1;
        // Each start has a time of its own, as an engine's nanoseconds give it.
        let millis = i64::try_from(now_ms).unwrap_or(i64::MAX);
        let time = Timestamp::from_millis(millis).to_string();
        let started_at = format!("{}{:06}Z", time.trim_end_matches('Z'), self.events);
        let Some(container) = self.containers.get_mut(id) else {
            return Ok(());
        };
        match launched {
            Ok(published) => {
                container.published = published;
                container.begin(started_at, now_ms);
                Ok(())
            }
            Err(no) => {
                container.start_error.clone_from(&no.message);
                container.state = match container.state {
                    ContainerState::Exited { code: 0 } | ContainerState::Restarting => {
                        ContainerState::Exited { code: no.code }
                    }
                    other => other,
                };
                Err(no)
            }
        }
    }

    fn try_to_launch(&mut self, id: &str) -> Result<BTreeSet<Published>, NoStart> {
        let Some(container) = self.containers.get(id).cloned() else {
            return no(404, format!("No such container: {id}"));
        };
        self.lender_runs(&container)?;
        self.join_networks(id, &container)?;
        let published = self.free_ports(&container)?;
        if container.behaviour.broken_entrypoint {
            return Err(NoStart {
                status: 400,
                message: "OCI runtime create failed: no such file or directory".to_owned(),
                code: 127,
            });
        }
        Ok(published)
    }

    fn lender_runs(&self, container: &Container) -> Result<(), NoStart> {
        let Some(lender) = &container.shares else {
            return Ok(());
        };
        match self.containers.get(lender).map(|found| found.state) {
            None => no(404, format!("No such container: {lender}")),
            Some(ContainerState::Running | ContainerState::Paused) => Ok(()),
            Some(_) => {
                let text = "cannot join network of a non running container";
                no(409, format!("{text}: {lender}"))
            }
        }
    }

    fn join_networks(&mut self, id: &str, container: &Container) -> Result<(), NoStart> {
        for (name, attachment) in &container.attachments {
            // Once it was connected, only that very network will do.
            let known = &attachment.network_id;
            let mut networks = self.networks.iter();
            let found = networks
                .find(|(id, network)| *id == known || (known.is_empty() && network.name == *name));
            let Some((network_id, _)) = found else {
                return no(404, format!("network {name} not found"));
            };
            if let Some(container) = self.containers.get_mut(id)
                && let Some(attachment) = container.attachments.get_mut(name)
            {
                attachment.join(id, network_id.clone());
            }
        }
        Ok(())
    }

    fn free_ports(&self, container: &Container) -> Result<BTreeSet<Published>, NoStart> {
        let others = self.containers.values().flat_map(|other| &other.published);
        let taken: BTreeSet<(Protocol, u16)> = others
            .map(|published| (published.protocol, published.host))
            .collect();
        let mut all = BTreeSet::new();
        for (target, protocol, wanted) in &container.ports {
            let is_free = |port: &u16| {
                !taken.contains(&(*protocol, *port)) && !self.foreign_ports.contains(port)
            };
            let host = match wanted {
                Some(host) => Some(*host).filter(is_free),
                None => (FIRST_FREE_PORT..=u16::MAX).find(is_free),
            };
            let Some(host) = host else {
                let text = "driver failed programming external connectivity";
                return no(500, format!("{text}: port is already allocated"));
            };
            all.insert(Published {
                target: *target,
                protocol: *protocol,
                host,
            });
        }
        Ok(all)
    }
}
