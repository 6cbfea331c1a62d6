//! Owns what a service's network is made of: the app's networks it joins, and its sandbox.
//!
//! A sandbox is a tiny container that holds a service's network: its addresses, names and published
//! ports. The service's own container runs inside that network, so replacing it leaves the network as
//! it is (measured: a new network endpoint costs clients a second, a new process in an old one 0.1 s).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use holdfast_proto::id::{AppId, ServiceKey, ServiceName};
use holdfast_proto::image::Digest;
use holdfast_proto::spec::{NetworkMode, Port, ServiceSpec, Strategy};
use holdfast_proto::target::TargetState;
use serde::Serialize;

/// The network that a service joins when it names none (Compose spec, "networks").
const DEFAULT_NETWORK: &str = "default";

/// Names one network of one app.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkKey {
    /// The app.
    pub app: AppId,
    /// The network's name in the app.
    pub network: ServiceName,
}

impl std::fmt::Display for NetworkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.app, self.network)
    }
}

/// The app's networks that a service joins, each with the names it has there.
///
/// Empty when it uses another network: the device's, the engine's own bridge, a service's, or none.
pub fn attachments(name: &ServiceName, spec: &ServiceSpec) -> BTreeMap<ServiceName, Vec<String>> {
    if spec.network_mode.is_some() {
        return BTreeMap::new();
    }
    let names = |more: &[String]| {
        let mut names = vec![name.as_str().to_owned()];
        names.extend(more.iter().filter(|alias| *alias != name.as_str()).cloned());
        names
    };
    if spec.networks.is_empty() {
        // The constant is a name; the parse cannot fail.
        return DEFAULT_NETWORK
            .parse()
            .map(|network| BTreeMap::from([(network, names(&[]))]))
            .unwrap_or_default();
    }
    spec.networks
        .iter()
        .map(|(network, attachment)| (network.clone(), names(&attachment.aliases)))
        .collect()
}

/// Every network that the services of a target join.
pub(crate) fn wanted_networks(target: &TargetState) -> BTreeSet<NetworkKey> {
    let of = |(key, service): (ServiceKey, &holdfast_proto::target::ServiceTarget)| {
        let joined = attachments(&service.service_name, &service.config);
        joined.into_keys().map(move |network| NetworkKey {
            app: key.app.clone(),
            network,
        })
    };
    target.services().flat_map(of).collect()
}

/// The network half of a service's container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SandboxSpec {
    /// Ports the device publishes.
    pub ports: Vec<Port>,
    /// The app's networks with the service's names there; empty: the engine's own bridge.
    pub networks: BTreeMap<ServiceName, Vec<String>>,
    /// Host name inside.
    pub hostname: Option<String>,
    /// DNS servers.
    pub dns: Vec<IpAddr>,
    /// More lines of /etc/hosts.
    pub extra_hosts: Vec<String>,
    /// Kernel parameters of the network.
    pub sysctls: BTreeMap<String, String>,
}

impl SandboxSpec {
    /// The sandbox of a service, whether or not it needs one.
    pub fn of(name: &ServiceName, spec: &ServiceSpec) -> Self {
        Self {
            ports: spec.ports.clone(),
            networks: attachments(name, spec),
            hostname: spec.hostname.clone(),
            dns: spec.dns.clone(),
            extra_hosts: spec.extra_hosts.clone(),
            sysctls: spec
                .sysctls
                .iter()
                .filter(|(name, _)| is_of_the_network(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        }
    }

    /// What tells two sandboxes apart; written on the container as a label.
    pub fn hash(&self) -> String {
        // Plain data with text keys, in the order of the fields: JSON can always write it.
        let text = serde_json::to_string(self).unwrap_or_default();
        format!("v1:{}", Digest::of(text.as_bytes()).hex())
    }
}

/// Whether a kernel parameter belongs to the network namespace, and so to the sandbox.
pub fn is_of_the_network(sysctl: &str) -> bool {
    sysctl.starts_with("net.")
}

/// Whether a service gets a sandbox: it publishes ports or lends its network to another service.
pub(crate) fn needs_sandbox(spec: &ServiceSpec, lends: bool) -> bool {
    let own_network = matches!(spec.network_mode, None | Some(NetworkMode::Bridge));
    let wanted = spec
        .holdfast
        .as_ref()
        .and_then(|options| options.sandbox)
        .unwrap_or(true);
    let hand_over = spec.strategy() == Strategy::HandOver;
    own_network && (lends || (wanted && !hand_over && !spec.ports.is_empty()))
}

/// Whether another service of the app uses this service's network.
pub(crate) fn lends_its_network(target: &TargetState, key: &ServiceKey) -> bool {
    target.services().any(|(other, service)| {
        other.app == key.app
            && service.config.network_mode == Some(NetworkMode::Service(key.service.clone()))
    })
}
