//! Owns the judgement of networks: which a container joins, which are made, which ports are published.

use std::collections::HashMap;
use std::net::IpAddr;

use bollard::models::{EndpointSettings, NetworkCreateRequest, PortBinding};

use super::{NEVER, Ours, allow, never, other_container, refusal};
use crate::policy::{Policy, Refusal, Rules};

/// Judges a network to make: only a plain bridge of the engine's own choice.
pub fn network(policy: &Policy, request: &NetworkCreateRequest) -> Result<(), Refusal> {
    if policy.rules().is_none() {
        return Ok(());
    }
    let NetworkCreateRequest {
        name: _,
        labels: _,
        internal: _,
        enable_ipv4: _,
        enable_ipv6: _,
        driver,
        scope,
        attachable,
        ingress,
        config_only,
        config_from,
        ipam,
        options,
    } = request;
    never!("":
        scope as "Scope",
        attachable as "Attachable",
        ingress as "Ingress",
        config_only as "ConfigOnly",
        config_from as "ConfigFrom",
        ipam as "IPAM",
        options as "Options",
    );
    allow(
        matches!(driver.as_deref(), None | Some("bridge")),
        "Driver",
        || "a network of an app is a bridge".to_owned(),
    )
}

/// Judges the network that a container uses.
pub(super) fn join(rules: &Rules, mode: &str, field: &str, ours: &Ours<'_>) -> Result<(), Refusal> {
    match mode {
        "" | "default" | "bridge" | "none" => Ok(()),
        "host" => allow(rules.host_network, field, || {
            "it is the device's own".to_owned()
        }),
        network if ours.networks.contains(&network) => Ok(()),
        other => other_container(other, field.to_owned(), ours),
    }
}

/// Judges how a container is attached to a network.
pub(super) fn endpoint(settings: &EndpointSettings, at: &str) -> Result<(), Refusal> {
    let EndpointSettings {
        // Names and addresses within the app's own network.
        aliases: _,
        ipam_config: _,
        links,
        mac_address,
        driver_opts,
        gw_priority,
        network_id,
        endpoint_id,
        gateway,
        ip_address,
        ip_prefix_len,
        ipv6_gateway,
        global_ipv6_address,
        global_ipv6_prefix_len,
        dns_names,
    } = settings;
    let unset = [
        ("Links", links.is_none()),
        ("MacAddress", mac_address.is_none()),
        ("DriverOpts", driver_opts.is_none()),
        ("GwPriority", gw_priority.is_none()),
        ("NetworkID", network_id.is_none()),
        ("EndpointID", endpoint_id.is_none()),
        ("Gateway", gateway.is_none()),
        ("IPAddress", ip_address.is_none()),
        ("IPPrefixLen", ip_prefix_len.is_none()),
        ("IPv6Gateway", ipv6_gateway.is_none()),
        ("GlobalIPv6Address", global_ipv6_address.is_none()),
        ("GlobalIPv6PrefixLen", global_ipv6_prefix_len.is_none()),
        ("DNSNames", dns_names.is_none()),
    ];
    match unset.into_iter().find(|(_, unset)| !unset) {
        Some((name, _)) => Err(refusal(format!("{at}.{name}"), NEVER)),
        None => Ok(()),
    }
}

/// Judges the ports that a container publishes.
pub(super) fn ports(
    rules: &Rules,
    bindings: Option<&HashMap<String, Option<Vec<PortBinding>>>>,
) -> Result<(), Refusal> {
    for (port, bindings) in bindings.into_iter().flatten() {
        let field = format!("HostConfig.PortBindings.{port}");
        for PortBinding { host_ip, host_port } in bindings.iter().flatten() {
            if let Some(allowed) = &rules.ports.host_ips {
                let ip = match host_ip.as_deref() {
                    None | Some("") => None,
                    Some(text) => Some(
                        text.parse::<IpAddr>()
                            .map_err(|_| refusal(&field, "its address is none"))?,
                    ),
                };
                // No address means all of them.
                let everywhere = ip.is_none_or(|ip| ip.is_unspecified());
                let listed = allowed.iter().any(|one| match ip {
                    Some(ip) if !everywhere => one.to_canonical() == ip.to_canonical(),
                    Some(_) | None => one.is_unspecified(),
                });
                allow(listed, &field, || {
                    let ip = ip.map_or("every address".to_owned(), |ip| ip.to_string());
                    format!("{ip} is not listed to publish on")
                })?;
            }
            if let Some(range) = &rules.ports.range {
                let number = host_port
                    .as_deref()
                    .and_then(|text| text.parse::<u16>().ok());
                allow(
                    number.is_some_and(|number| range.contains(&number)),
                    &field,
                    || {
                        let (first, last) = (range.start(), range.end());
                        format!("only ports {first} to {last} may be published, each by its number")
                    },
                )?;
            }
        }
        // An engine takes a port without a binding for one that it may choose.
        let unbound = bindings.as_ref().is_none_or(Vec::is_empty);
        let restricted = rules.ports.host_ips.is_some() || rules.ports.range.is_some();
        allow(!(unbound && restricted), &field, || {
            "it must name an address and a port".to_owned()
        })?;
    }
    Ok(())
}
