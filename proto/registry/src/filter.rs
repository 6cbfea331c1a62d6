//! Owns which addresses are connected to, judged on the address itself at the moment of the connection:
//! a name that means another address a moment later gains nothing.
//!
//! Refuses addresses of clouds' metadata services always, and addresses of private networks unless the
//! host and port that led there were configured or the owner of this machine is the one who asks. A proxy
//! is no way around that.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Url, dns};

use crate::addresses::{Zone, zone};
use crate::proxies::Proxies;
use crate::settings::{Lookup, Mirror, Reach, Settings, host_of, port_of};

/// An address was refused. It names the host, which the asker knows, and not the address, which may be
/// news to them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{host}` is not at an address that may be asked: {why}")]
pub(crate) struct AddressRefused {
    host: String,
    why: &'static str,
}

/// Who may be connected to.
#[derive(Clone)]
pub(crate) struct Filter {
    reach: Reach,
    proxies: Proxies,
    lookup: Lookup,
    /// Hosts that the configuration names, with their ports; any port where it names none.
    known: Arc<BTreeMap<String, BTreeSet<Option<u16>>>>,
    /// Registries that the configuration names: they may send to other ports of their own host.
    registries: Arc<BTreeSet<String>>,
    /// Names at whose connections the port is not known any more: those above, and the proxies.
    lenient: Arc<BTreeSet<String>>,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("reach", &self.reach)
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl Filter {
    pub(crate) fn new(settings: &Settings) -> Self {
        let mut known: BTreeMap<String, BTreeSet<Option<u16>>> = BTreeMap::new();
        let mut add = |authority: &str, ports: &[Option<u16>]| {
            let host = host_of(authority).to_ascii_lowercase();
            known.entry(host).or_default().extend(ports);
        };
        // A registry without a port has the ports of HTTPS and HTTP.
        let of_registry = |authority: &str| match port_of(authority) {
            Some(port) => vec![Some(port)],
            None => vec![Some(443), Some(80)],
        };
        for (name, registry) in &settings.registries {
            add(name, &of_registry(name));
            for mirror in registry.mirrors.iter().map(Mirror::authority) {
                add(mirror, &of_registry(mirror));
            }
            for host in registry.realm_hosts.iter().chain(&registry.private_hosts) {
                add(host, &[port_of(host)]);
            }
        }
        let proxies = settings.proxies.hosts().map(str::to_ascii_lowercase);
        let lenient = known.keys().cloned().chain(proxies).collect();
        let mirrors = settings.registries.values().flat_map(|registry| {
            let mirrors = registry.mirrors.iter();
            mirrors.map(|mirror| mirror.authority().to_owned())
        });
        let registries = settings.registries.keys().cloned().chain(mirrors).collect();
        Self {
            reach: settings.reach,
            proxies: settings.proxies.clone(),
            lookup: settings.lookup.clone(),
            known: Arc::new(known),
            registries: Arc::new(registries),
            lenient: Arc::new(lenient),
        }
    }

    /// Whether a proxy is asked for this address.
    pub(crate) fn by_proxy(&self, url: &Url) -> bool {
        self.proxies.takes(url)
    }

    /// Whether the configuration names a host, for a registry's business.
    pub(crate) fn is_known(&self, registry: &str, host: &str, port: Option<u16>) -> bool {
        let of_registry = host_of(registry) == host && self.registries.contains(registry);
        let ports = self.known.get(host);
        of_registry || ports.is_some_and(|ports| ports.contains(&None) || ports.contains(&port))
    }

    fn judge(&self, host: &str, address: IpAddr, is_known: bool) -> Result<(), AddressRefused> {
        match (zone(address), self.reach) {
            (Zone::Forbidden, _) => Err(refused(
                host,
                "nothing that may be asked has such an address",
            )),
            (Zone::Private, Reach::Configured) if !is_known => Err(refused(
                host,
                "it is in a private network, and not configured",
            )),
            (Zone::Public | Zone::Private, Reach::Configured | Reach::Anywhere) => Ok(()),
        }
    }

    /// Judges what no connection will judge: an address that is written in the URL itself, a port, and a
    /// name that a proxy looks up instead of us.
    pub(crate) async fn check(&self, registry: &str, url: &Url) -> Result<(), AddressRefused> {
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let host = host.trim_matches(['[', ']']).trim_end_matches('.');
        let is_known = self.is_known(registry, host, url.port_or_known_default());
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.judge(host, address, is_known);
        }
        let by_proxy = self.by_proxy(url);
        if !by_proxy && (is_known || !self.lenient.contains(host)) {
            return Ok(());
        }
        // Over HTTPS a certificate proves who was reached, whatever the proxy takes the name for.
        if by_proxy && !is_known && url.scheme() != "https" {
            return Err(refused(
                host,
                "it is not configured, and a proxy could take it for any host",
            ));
        }
        match (self.lookup)(host.to_owned()).await {
            Ok(found) => found
                .into_iter()
                .try_for_each(|address| self.judge(host, address, is_known)),
            Err(_) if by_proxy && !is_known && self.reach == Reach::Configured => Err(refused(
                host,
                "only the proxy knows its address, and it is not configured",
            )),
            // The proxy may know it; without one, connecting will fail and say why.
            Err(_) => Ok(()),
        }
    }

    /// The addresses of a host for a connection that is made without us, each judged for its port.
    pub(crate) async fn reachable(
        &self,
        registry: &str,
        host: &str,
        port: u16,
    ) -> io::Result<Result<Vec<IpAddr>, AddressRefused>> {
        let is_known = self.is_known(registry, host, Some(port));
        let found = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => (self.lookup)(host.to_owned()).await?,
        };
        let judged = found
            .iter()
            .try_for_each(|address| self.judge(host, *address, is_known));
        Ok(judged.map(|()| found))
    }

    /// One bad address among good ones is a try: none of them is used.
    async fn resolved(self, name: String) -> Result<Addrs, Box<dyn Error + Send + Sync>> {
        let host = name.trim_end_matches('.').to_ascii_lowercase();
        let is_known = self.lenient.contains(&host);
        let found = (self.lookup)(name).await?;
        for address in &found {
            self.judge(&host, *address, is_known)?;
        }
        let found = found.into_iter().map(|address| SocketAddr::new(address, 0));
        Ok(Box::new(found) as dns::Addrs)
    }
}

fn refused(host: &str, why: &'static str) -> AddressRefused {
    AddressRefused {
        host: host.to_owned(),
        why,
    }
}

impl Resolve for Filter {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(self.clone().resolved(name.as_str().to_owned()))
    }
}

/// The machine's own way to look up names.
pub(crate) async fn look_up(host: String) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((host, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
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

    fn filter(reach: Reach, lookup: &'static [(&str, &str)], proxy: Option<&str>) -> Filter {
        let settings = Settings {
            reach,
            proxies: Proxies::read(|name| proxy.filter(|_| name == "ALL_PROXY").map(str::to_owned)),
            lookup: Arc::new(move |host| {
                let found = lookup.iter().find(|(name, _)| *name == host);
                let address = found.and_then(|(_, address)| address.parse().ok());
                let answer = address.map(|address| vec![address]);
                Box::pin(std::future::ready(
                    answer.ok_or(io::ErrorKind::NotFound.into()),
                ))
            }),
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

    async fn check(filter: &Filter, registry: &str, url: &str) -> bool {
        filter.check(registry, &url.parse().unwrap()).await.is_ok()
    }

    #[tokio::test]
    async fn private_networks_are_for_what_was_configured() {
        let names = &[("minio.lan", "10.0.0.6"), ("evil.example", "10.0.0.6")];
        let configured = filter(Reach::Configured, names, None);
        let evil = "evil.example";
        for (registry, url, expected) in [
            ("10.0.0.5:5000", "https://10.0.0.5:5000/v2/", true),
            ("10.0.0.5:22", "https://10.0.0.5:22/v2/", false),
            // Its token server or blob store.
            ("10.0.0.5:5000", "https://10.0.0.5:5001/token", true),
            ("10.0.0.5:5000", "https://minio.lan:9000/", true),
            ("10.0.0.5:5000", "https://minio.lan:22/", false),
            ("minio.lan:22", "https://minio.lan:22/v2/", false),
            ("10.0.0.5:5000", "https://10.0.0.6/", false),
            (evil, "http://127.0.0.1/", false),
            (evil, "http://0x7f.1/", false),
            (evil, "http://2130706433/", false),
            (evil, "http://017700000001/", false),
            (evil, "http://127.1/", false),
            (evil, "http://[::1]/", false),
            (evil, "http://[::ffff:a9fe:a9fe]/", false),
            (evil, "http://169.254.169.254./", false),
            ("ghcr.io", "https://ghcr.io/v2/", true),
        ] {
            assert_eq!(check(&configured, registry, url).await, expected, "{url}");
        }
        // Digits of other scripts, which browsers take for 127.0.0.1, are no address here at all.
        assert!(Url::parse("http://①②⑦.⓪.⓪.①/").is_err());
        for (name, expected) in [("minio.lan", true), ("evil.example", false)] {
            let found = configured.clone().resolved(name.to_owned()).await;
            assert_eq!(found.is_ok(), expected, "{name}");
        }
        let anywhere = filter(Reach::Anywhere, names, None);
        assert!(check(&anywhere, evil, "https://10.0.0.6/").await);
        assert!(anywhere.clone().resolved(evil.to_owned()).await.is_ok());
        for filter in [configured, anywhere] {
            assert!(!check(&filter, evil, "https://169.254.169.254/").await);
        }
    }

    #[tokio::test]
    async fn a_proxy_is_no_way_around() {
        let names = &[
            ("ghcr.io", "1.1.1.1"),
            ("evil.example", "10.0.0.6"),
            ("proxy.lan", "10.0.0.1"),
            ("minio.lan", "10.0.0.6"),
        ];
        let filter = filter(Reach::Configured, names, Some("http://proxy.lan:3128"));
        for (url, expected) in [
            ("https://ghcr.io/v2/", true),
            ("http://ghcr.io/v2/", false),
            ("https://evil.example/", false),
            ("https://only.the.proxy.knows/", false),
            ("https://proxy.lan:3128/v2/", false),
            ("https://10.0.0.6/", false),
            ("https://10.0.0.5:5000/", true),
            ("https://minio.lan:9000/", true),
        ] {
            assert_eq!(check(&filter, "x.example", url).await, expected, "{url}");
        }
        assert!(filter.resolved("proxy.lan".to_owned()).await.is_ok());
    }

    #[tokio::test]
    async fn this_machines_own_names_are_judged_by_what_they_mean() {
        let filter = Filter::new(&Settings::default());
        for name in ["localhost", "LOCALHOST."] {
            assert!(filter.clone().resolved(name.to_owned()).await.is_err());
        }
    }
}
