//! Owns networks: making and removing them, and connecting containers.
//!
//! Refuses to trust an engine's word that something is connected already: it may be a remnant, so it
//! looks, and connects anew what is not as it was asked for.

use bollard::models::{NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest};
use holdfast_plan::NetworkKey;
use holdfast_proto::id::DeviceId;

use super::{CHANGE_TIMEOUT, DockerEngine, absent_is_none, answers, get};
use crate::engine::{
    EngineAttachment, EngineContainer, EngineError, EngineNetwork, Operation, convert, guard,
    labels,
};

impl DockerEngine {
    pub(super) async fn list_networks(
        &self,
        filters: &str,
    ) -> Result<Vec<EngineNetwork>, EngineError> {
        let path = format!("/networks?{filters}");
        let found: Vec<answers::Network> = self.get(Operation::ListNetworks, &path).await?;
        Ok(found
            .into_iter()
            .map(|network| EngineNetwork {
                id: network.id.unwrap_or_default(),
                name: network.name.unwrap_or_default(),
                labels: network.labels.unwrap_or_default(),
            })
            .collect())
    }

    /// Every network of this name, the oldest first as engines list them. Names are not unique.
    async fn networks_named(&self, name: &str) -> Result<Vec<EngineNetwork>, EngineError> {
        let mut found = self.list_networks(&get::only("name", name)).await?;
        // Engines take the name for a part of names.
        found.retain(|network| network.name == name);
        Ok(found)
    }

    pub(super) async fn make_network(
        &self,
        device: &DeviceId,
        key: &NetworkKey,
        name: &str,
    ) -> Result<(), EngineError> {
        let labels = labels::write_network(device, key);
        let is_ours = |network: &EngineNetwork| {
            let mut written = labels.iter();
            written.all(|(name, value)| network.labels.get(name) == Some(value))
        };
        let before = self.networks_named(name).await?;
        if !before.is_empty() {
            return owned_by_us(&before, name, is_ours);
        }
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            labels: Some(labels.clone()),
            ..NetworkCreateRequest::default()
        };
        guard::network(&self.policy, &request)?;
        let outcome = self
            .call(
                Operation::CreateNetwork,
                CHANGE_TIMEOUT,
                |docker| async move { docker.create_network(request).await },
            )
            .await;
        match outcome {
            Ok(created) => {
                // Engines allow two networks of one name. An earlier call whose answer was lost may
                // have ended in the meantime: the one just made goes, the other may be in use.
                let found = self.networks_named(name).await?;
                if found.len() > 1 {
                    self.delete_network(&created.id).await?;
                }
                Ok(())
            }
            // The answer may have been lost after the work was done.
            Err(failure) => match self.networks_named(name).await?.as_slice() {
                [] => Err(failure),
                found => owned_by_us(found, name, is_ours),
            },
        }
    }

    pub(super) async fn delete_network(&self, id: &str) -> Result<(), EngineError> {
        let outcome = self
            .call(
                Operation::RemoveNetwork,
                CHANGE_TIMEOUT,
                |docker| async move { docker.remove_network(id).await },
            )
            .await;
        absent_is_none(outcome).map(drop)
    }

    pub(super) async fn connect_to(
        &self,
        network: &str,
        container: &str,
        aliases: &[String],
    ) -> Result<(), EngineError> {
        let found = self.must_find(Operation::Connect, container).await?;
        if let Some((name, attachment)) = attachment(&found, network) {
            if self.is_as_asked(name, attachment, aliases).await? {
                return Ok(());
            }
            self.disconnect_from(network, container).await?;
        }
        let first = self.connect_once(network, container, aliases).await;
        let Err(failure) = first else {
            return Ok(());
        };
        if failure.is_engine_away() || !speaks_of_an_endpoint(&failure) {
            return Err(failure);
        }
        // A remnant of an earlier connection holds the container's name there.
        self.disconnect_once(network, container).await.ok();
        self.connect_once(network, container, aliases).await
    }

    /// Whether it is connected to the network of that name that exists now, with these names.
    async fn is_as_asked(
        &self,
        name: &str,
        attachment: &EngineAttachment,
        aliases: &[String],
    ) -> Result<bool, EngineError> {
        if !aliases
            .iter()
            .all(|alias| attachment.aliases.contains(alias))
        {
            return Ok(false);
        }
        let exists = self.networks_named(name).await?;
        let exists = exists.iter().any(|found| found.id == attachment.network_id);
        Ok(exists || attachment.network_id.is_empty())
    }

    async fn connect_once(
        &self,
        network: &str,
        container: &str,
        aliases: &[String],
    ) -> Result<(), EngineError> {
        let request = NetworkConnectRequest {
            container: container.to_owned(),
            endpoint_config: Some(convert::endpoint(aliases)),
        };
        self.call(Operation::Connect, CHANGE_TIMEOUT, |docker| async move {
            docker.connect_network(network, request).await
        })
        .await
    }

    /// Connects a container that is not running to all its networks again, with the names it has: what
    /// an engine that was killed left of an earlier connection is in the way otherwise.
    pub(super) async fn connect_anew(&self, found: &EngineContainer) -> Result<(), EngineError> {
        for (network, attachment) in &found.networks {
            let aliases: Vec<String> = attachment.aliases.iter().cloned().collect();
            self.disconnect_from(network, &found.id).await?;
            self.connect_once(network, &found.id, &aliases).await?;
        }
        Ok(())
    }

    pub(super) async fn disconnect_from(
        &self,
        network: &str,
        container: &str,
    ) -> Result<(), EngineError> {
        let Err(failure) = self.disconnect_once(network, container).await else {
            return Ok(());
        };
        if failure.is_engine_away() {
            return Err(failure);
        }
        // A container remembers networks by name, also those that are gone and have no id any more.
        let Some(found) = self.look(container).await? else {
            return Ok(());
        };
        match attachment(&found, network) {
            None => Ok(()),
            Some((name, _)) if name == network => Err(failure),
            Some((name, _)) => self.disconnect_once(name, container).await,
        }
    }

    async fn disconnect_once(&self, network: &str, container: &str) -> Result<(), EngineError> {
        let request = NetworkDisconnectRequest {
            container: container.to_owned(),
            force: Some(true),
        };
        self.call(Operation::Disconnect, CHANGE_TIMEOUT, |docker| async move {
            docker.disconnect_network(network, request).await
        })
        .await
    }
}

/// A container's connection to a network that is given by its name or its id.
fn attachment<'c>(
    found: &'c EngineContainer,
    network: &str,
) -> Option<(&'c str, &'c EngineAttachment)> {
    let mut networks = found.networks.iter();
    networks
        .find(|(name, attachment)| *name == network || attachment.network_id == network)
        .map(|(name, attachment)| (name.as_str(), attachment))
}

fn owned_by_us(
    found: &[EngineNetwork],
    name: &str,
    is_ours: impl Fn(&EngineNetwork) -> bool,
) -> Result<(), EngineError> {
    if found.iter().any(is_ours) {
        return Ok(());
    }
    Err(EngineError::ForeignName {
        name: name.to_owned(),
    })
}

/// Whether an engine says that a container's place in a network is taken.
pub(super) fn speaks_of_an_endpoint(failure: &EngineError) -> bool {
    match failure {
        EngineError::Refused { message, .. } => {
            message.contains("endpoint") && message.contains("already exists")
        }
        EngineError::TimedOut { .. }
        | EngineError::Unreachable { .. }
        | EngineError::PullBroke { .. }
        | EngineError::PullStalled { .. }
        | EngineError::ForeignName { .. }
        | EngineError::Unsupported(_)
        | EngineError::Forbidden(_)
        | EngineError::Files(_)
        | EngineError::Program(_)
        | EngineError::Nonsense { .. } => false,
    }
}
