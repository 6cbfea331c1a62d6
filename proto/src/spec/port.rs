//! Owns published ports: Compose's short and long forms, ranges, and what conflicts with what.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::values::{excerpt, to_text};

/// The most ports one range may publish: each is a proxy process or rule on the device.
const MAX_RANGE: u32 = 1_000;

/// A transport protocol that an engine can publish.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, the default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            other => Err(format!("`{}` is not tcp, udp or sctp", excerpt(other))),
        }
    }
}

/// One container port, and where the device publishes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// The device address to listen on; none means every address.
    pub host_ip: Option<IpAddr>,
    /// The device's port; none lets the engine choose a free one.
    pub published: Option<u16>,
    /// The container's port.
    pub target: u16,
    /// The protocol of both.
    pub protocol: Protocol,
}

impl Port {
    /// Whether two services could not both have their port on one device.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let addresses_meet = match (self.host_ip, other.host_ip) {
            (Some(one), Some(two)) => one == two || one.is_unspecified() || two.is_unspecified(),
            (None, _) | (_, None) => true,
        };
        addresses_meet
            && self.protocol == other.protocol
            && self.published.is_some()
            && self.published == other.published
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            None => {}
        }
        match (self.published, self.host_ip) {
            (Some(published), _) => write!(f, "{published}:")?,
            (None, Some(_)) => f.write_str(":")?,
            (None, None) => {}
        }
        write!(f, "{}", self.target)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp | Protocol::Sctp => write!(f, "/{}", self.protocol),
        }
    }
}

to_text!(Port);

fn range(text: &str) -> Result<(u16, u16), String> {
    let refuse = || {
        format!(
            "`{}` is not a port from 1 to 65535 or a range of them",
            excerpt(text)
        )
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(refuse)
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last || u32::from(last - first) >= MAX_RANGE {
        return Err(refuse());
    }
    Ok((first, last))
}

/// Reads the short form `[[host_ip:]published:]target[/protocol]`; a range becomes its ports.
fn short(text: &str) -> Result<Vec<Port>, String> {
    let (rest, protocol) = match text.split_once('/') {
        Some((rest, protocol)) => (rest, protocol.parse()?),
        None => (text, Protocol::Tcp),
    };
    let (rest, targets) = match rest.rsplit_once(':') {
        Some((rest, targets)) => (Some(rest), range(targets)?),
        None => (None, range(rest)?),
    };
    let (host_ip, published) = match rest {
        None => (None, ""),
        Some(rest) => match rest.rsplit_once(':') {
            Some((ip, published)) => (Some(address(ip)?), published),
            None => (None, rest),
        },
    };
    let published = if published.is_empty() {
        if rest.is_some() && host_ip.is_none() {
            return Err(format!(
                "`{}` names no port before the colon",
                excerpt(text)
            ));
        }
        None
    } else {
        Some(range(published)?)
    };
    expand(host_ip, published, targets, protocol)
}

fn address(text: &str) -> Result<IpAddr, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse()
        .map_err(|_| format!("`{}` is not an IP address", excerpt(text)))
}

fn expand(
    host_ip: Option<IpAddr>,
    published: Option<(u16, u16)>,
    targets: (u16, u16),
    protocol: Protocol,
) -> Result<Vec<Port>, String> {
    let target_ports = targets.0..=targets.1;
    let Some((first, last)) = published else {
        return Ok(target_ports
            .map(|target| Port {
                host_ip,
                published: None,
                target,
                protocol,
            })
            .collect());
    };
    if last - first != targets.1 - targets.0 {
        return Err("the published range and the container's range differ in length".to_owned());
    }
    Ok((first..=last)
        .zip(target_ports)
        .map(|(published, target)| Port {
            host_ip,
            published: Some(published),
            target,
            protocol,
        })
        .collect())
}

/// One written entry: a short form may stand for a whole range of ports.
struct Entry(Vec<Port>);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde_json::Value;
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Long {
            target: u16,
            published: Option<Value>,
            host_ip: Option<String>,
            #[serde(default)]
            protocol: Protocol,
            mode: Option<String>,
        }
        let ports = match Value::deserialize(deserializer)? {
            Value::String(text) => short(&text),
            Value::Number(number) => short(&number.to_string()),
            value @ Value::Object(_) => {
                let long: Long = serde_json::from_value(value).map_err(de::Error::custom)?;
                // Without a swarm both modes publish on the device itself.
                if long
                    .mode
                    .as_deref()
                    .is_some_and(|mode| !matches!(mode, "host" | "ingress"))
                {
                    return Err(de::Error::custom("mode must be host or ingress"));
                }
                let published = match long.published {
                    None | Some(Value::Null) => Ok(None),
                    Some(Value::String(text)) => range(&text).map(Some),
                    Some(other) => range(&other.to_string()).map(Some),
                };
                let host_ip = long.host_ip.as_deref().map(address).transpose();
                if long.target == 0 {
                    return Err(de::Error::custom("target must be a port from 1 to 65535"));
                }
                published.and_then(|published| {
                    expand(
                        host_ip?,
                        published,
                        (long.target, long.target),
                        long.protocol,
                    )
                })
            }
            Value::Null | Value::Bool(_) | Value::Array(_) => {
                Err("expected a port such as \"8080:80\"".to_owned())
            }
        };
        ports.map(Self).map_err(de::Error::custom)
    }
}

/// Reads a service's list of ports.
pub(super) fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Port>, D::Error> {
    let entries = Vec::<Entry>::deserialize(deserializer)?;
    Ok(entries.into_iter().flat_map(|entry| entry.0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Result<Vec<String>, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        Ok(ports(&mut deserializer)?
            .iter()
            .map(ToString::to_string)
            .collect())
    }

    #[test]
    fn short_long_and_range_forms_become_one_form() {
        for (json, canonical) in [
            (r#"["80:80"]"#, &["80:80"][..]),
            ("[80]", &["80"]),
            (r#"["127.0.0.1:8080:80/udp"]"#, &["127.0.0.1:8080:80/udp"]),
            (r#"["[::1]:8080:80"]"#, &["[::1]:8080:80"]),
            (r#"["127.0.0.1::80"]"#, &["127.0.0.1::80"]),
            (r#"["3000-3001:4000-4001"]"#, &["3000:4000", "3001:4001"]),
            (
                r#"[{"target":80,"published":"8080","host_ip":"0.0.0.0","protocol":"tcp","mode":"host"}]"#,
                &["0.0.0.0:8080:80"],
            ),
            (r#"[{"target":80,"published":8080}]"#, &["8080:80"]),
        ] {
            assert_eq!(written(json).unwrap(), canonical, "{json}");
        }
    }

    #[test]
    fn refuses_what_is_no_port() {
        for json in [
            r#"["0:80"]"#,
            r#"["80:0"]"#,
            r#"["65536"]"#,
            r#"["a:80"]"#,
            r#"["80/icmp"]"#,
            r#"["1-3:1-2"]"#,
            r#"[":80"]"#,
            r#"["999.0.0.1:80:80"]"#,
            r#"["1-65535"]"#,
            "[true]",
            r#"[{"target":80,"publish":1}]"#,
            r#"[{"target":0}]"#,
        ] {
            assert!(written(json).is_err(), "{json}");
        }
    }

    #[test]
    fn ports_conflict_only_where_their_addresses_meet() {
        let port = |text: &str| short(text).unwrap().remove(0);
        assert!(port("80:1").conflicts_with(&port("127.0.0.1:80:2")));
        assert!(port("0.0.0.0:80:1").conflicts_with(&port("127.0.0.1:80:2")));
        assert!(!port("127.0.0.2:80:1").conflicts_with(&port("127.0.0.1:80:2")));
        assert!(!port("80:1").conflicts_with(&port("80:1/udp")));
        assert!(!port("80").conflicts_with(&port("80")));
    }
}
