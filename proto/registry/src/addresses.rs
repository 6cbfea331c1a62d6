//! Owns which addresses are connected to, judged on the address itself at the moment of the connection:
//! a name that means another address a moment later gains nothing.
//!
//! Refuses addresses of clouds' metadata services always, and addresses of private networks unless the
//! name that led there was configured or the owner of this machine is the one who asks.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Url, dns};

use crate::settings::{Mirror, Reach, Settings, host_of};

/// Where an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zone {
    /// Anybody may have it (IANA special-purpose registries: globally reachable).
    Public,
    /// It means something on this machine or in this network only.
    Private,
    /// Nobody's registry: metadata services, multicast, and forms that hide another address.
    Forbidden,
}

/// Metadata services of clouds, which answer whoever asks with this machine's own credentials.
const METADATA_V4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(100, 100, 100, 200),
];
/// The same at AWS and Google, by IPv6.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

pub(crate) fn zone(address: IpAddr) -> Zone {
    match address {
        IpAddr::V4(address) => zone_v4(address),
        IpAddr::V6(address) => zone_v6(address),
    }
}

fn zone_v4(address: Ipv4Addr) -> Zone {
    let [a, b, c, _] = address.octets();
    if METADATA_V4.contains(&address) || a == 0 || a >= 224 {
        return Zone::Forbidden;
    }
    match (a, b, c) {
        // RFC 1918, loopback, link-local, shared address space (RFC 6598).
        (10 | 127, ..) | (172, 16..=31, _) | (192, 168, _) | (169, 254, _) | (100, 64..=127, _)
        // Protocol assignments, documentation, benchmarks (RFC 6890, RFC 5737, RFC 2544).
        | (192, 0, 0 | 2) | (198, 18 | 19, _) | (198, 51, 100) | (203, 0, 113) => Zone::Private,
        _ => Zone::Public,
    }
}

fn zone_v6(address: Ipv6Addr) -> Zone {
    if let Some(inner) = address.to_ipv4_mapped() {
        return zone_v4(inner);
    }
    if METADATA_V6.contains(&address) || address.is_multicast() || address.is_unspecified() {
        return Zone::Forbidden;
    }
    if address.is_loopback() {
        return Zone::Private;
    }
    match address.segments() {
        // Translation (RFC 6052): the address behind it counts.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => zone_v4(embedded(high, low)),
        // Other ways to hide an IPv4 address: compatible, local translation, Teredo, 6to4.
        [0, 0, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] | [0x2001, 0, ..] | [0x2002, ..] => {
            Zone::Forbidden
        }
        // Unique local, link-local, the site-local of old, discard, documentation.
        [0xfc00..=0xfdff | 0xfe80..=0xfeff, ..]
        | [0x100, 0, 0, 0, ..]
        | [0x2001, 0xdb8, ..]
        | [0x3fff, 0..=0xfff, ..] => Zone::Private,
        // Global unicast is what has been given out of 2000::/3.
        [0x2000..=0x3fff, ..] => Zone::Public,
        _ => Zone::Forbidden,
    }
}

fn embedded(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))
}

/// An address was refused. It names the host, which the asker knows, and not the address, which may be
/// news to them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{host}` is not at an address that may be asked: {why}")]
pub(crate) struct AddressRefused {
    host: String,
    why: &'static str,
}

/// Who may be connected to.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    reach: Reach,
    /// Hosts that the configuration names.
    known: Arc<BTreeSet<String>>,
}

impl Filter {
    pub(crate) fn new(settings: &Settings) -> Self {
        let known = settings
            .registries
            .iter()
            .flat_map(|(name, registry)| {
                let mirrors = registry.mirrors.iter().map(Mirror::authority);
                let realms = registry.realm_hosts.iter().map(String::as_str);
                let stores = registry.private_hosts.iter().map(String::as_str);
                let hosts = mirrors.chain(realms).chain(stores);
                std::iter::once(name.as_str()).chain(hosts)
            })
            .map(|host| host_of(host).to_ascii_lowercase())
            .collect();
        Self {
            reach: settings.reach,
            known: Arc::new(known),
        }
    }

    fn allows(&self, host: &str, address: IpAddr) -> Result<(), AddressRefused> {
        let refuse = |why| {
            Err(AddressRefused {
                host: host.to_owned(),
                why,
            })
        };
        match (zone(address), self.reach) {
            (Zone::Forbidden, _) => refuse("no registry has such an address"),
            (Zone::Private, Reach::Configured) if !self.known.contains(host) => {
                refuse("it is in a private network, and not configured")
            }
            (Zone::Public | Zone::Private, _) => Ok(()),
        }
    }

    /// Judges an address that is written in the URL itself: no resolver ever sees it.
    pub(crate) fn check(&self, url: &Url) -> Result<(), AddressRefused> {
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let bare = host.trim_matches(['[', ']']);
        match bare.parse::<IpAddr>() {
            Ok(address) => self.allows(bare, address),
            Err(_) => Ok(()),
        }
    }

    async fn lookup(self, name: String) -> Result<Addrs, Box<dyn Error + Send + Sync>> {
        let host = name.trim_end_matches('.').to_ascii_lowercase();
        let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
        let mut allowed = Vec::new();
        let mut refused = None;
        for address in found {
            match self.allows(&host, address.ip()) {
                Ok(()) => allowed.push(address),
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            // One bad address among good ones is a try: none of them is used.
            Some(error) => Err(error.into()),
            None => Ok(Box::new(allowed.into_iter()) as dns::Addrs),
        }
    }
}

impl Resolve for Filter {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(self.clone().lookup(name.as_str().to_owned()))
    }
}

/// The refusal inside a transport failure.
pub(crate) fn refusal(error: &reqwest::Error) -> Option<&AddressRefused> {
    let mut cause: Option<&dyn Error> = error.source();
    while let Some(inner) = cause {
        if let Some(found) = inner.downcast_ref() {
            return Some(found);
        }
        cause = inner.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::RegistrySettings;

    #[test]
    fn every_form_of_an_address_is_seen_through() {
        for (text, expected) in [
            ("1.1.1.1", Zone::Public),
            ("100.63.255.255", Zone::Public),
            ("172.32.0.1", Zone::Public),
            ("2606:4700::1111", Zone::Public),
            ("64:ff9b::101:101", Zone::Public),
            ("127.8.8.8", Zone::Private),
            ("10.0.0.1", Zone::Private),
            ("172.31.255.255", Zone::Private),
            ("192.168.0.1", Zone::Private),
            ("100.64.0.1", Zone::Private),
            ("169.254.1.1", Zone::Private),
            ("198.18.0.1", Zone::Private),
            ("::1", Zone::Private),
            ("::ffff:10.0.0.1", Zone::Private),
            ("64:ff9b::a00:1", Zone::Private),
            ("fd12::1", Zone::Private),
            ("fe80::1", Zone::Private),
            ("fec0::1", Zone::Private),
            ("169.254.169.254", Zone::Forbidden),
            ("169.254.170.2", Zone::Forbidden),
            ("100.100.100.200", Zone::Forbidden),
            ("::ffff:169.254.169.254", Zone::Forbidden),
            ("64:ff9b::a9fe:a9fe", Zone::Forbidden),
            ("fd00:ec2::254", Zone::Forbidden),
            ("0.0.0.0", Zone::Forbidden),
            ("0.1.2.3", Zone::Forbidden),
            ("224.0.0.1", Zone::Forbidden),
            ("240.0.0.1", Zone::Forbidden),
            ("255.255.255.255", Zone::Forbidden),
            ("::", Zone::Forbidden),
            ("::7f00:1", Zone::Forbidden),
            ("2002:7f00:1::", Zone::Forbidden),
            ("2001:0:1::1", Zone::Forbidden),
            ("64:ff9b:1::a00:1", Zone::Forbidden),
            ("ff02::1", Zone::Forbidden),
            ("4000::1", Zone::Forbidden),
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(zone(address), expected, "{text}");
        }
    }

    fn filter(reach: Reach) -> Filter {
        let settings = Settings {
            reach,
            registries: [(
                "10.0.0.5:5000".to_owned(),
                RegistrySettings {
                    private_hosts: vec!["minio.lan:9000".to_owned()],
                    ..RegistrySettings::default()
                },
            )]
            .into(),
            ..Settings::default()
        };
        Filter::new(&settings)
    }

    #[test]
    fn private_networks_are_for_what_was_configured() {
        let configured = filter(Reach::Configured);
        let private: IpAddr = "10.0.0.5".parse().unwrap();
        assert!(configured.allows("10.0.0.5", private).is_ok());
        assert!(configured.allows("minio.lan", private).is_ok());
        assert!(configured.allows("evil.example", private).is_err());
        assert!(
            filter(Reach::Anywhere)
                .allows("evil.example", private)
                .is_ok()
        );
        let metadata: IpAddr = "169.254.169.254".parse().unwrap();
        for filter in [configured, filter(Reach::Anywhere)] {
            assert!(filter.allows("10.0.0.5", metadata).is_err());
        }
    }

    #[test]
    fn an_address_in_a_url_is_judged_however_it_is_written() {
        let filter = filter(Reach::Configured);
        for text in [
            "http://127.0.0.1/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://017700000001/",
            "http://127.1/",
            "http://[::1]/",
            "http://[::ffff:a9fe:a9fe]/",
            "http://169.254.169.254./",
            "http://①②⑦.⓪.⓪.①/",
        ] {
            let url: Url = text.parse().unwrap();
            assert!(filter.check(&url).is_err(), "{text}");
        }
        assert!(
            filter
                .check(&"https://10.0.0.5:5000/v2/".parse().unwrap())
                .is_ok()
        );
        assert!(
            filter
                .check(&"https://ghcr.io/v2/".parse().unwrap())
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_name_is_judged_by_what_it_means() {
        let configured = filter(Reach::Configured);
        assert!(
            configured
                .clone()
                .lookup("localhost".to_owned())
                .await
                .is_err()
        );
        assert!(configured.lookup("LOCALHOST.".to_owned()).await.is_err());
        let anywhere = filter(Reach::Anywhere);
        let found: Vec<std::net::SocketAddr> = anywhere
            .lookup("localhost".to_owned())
            .await
            .unwrap()
            .collect();
        assert!(!found.is_empty());
    }
}
