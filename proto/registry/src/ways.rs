//! Owns the HTTP clients: one for each set of trusted certificates, directly and by way of a proxy.
//!
//! Refuses to follow a redirect by itself: a login must not go along to another host.

use std::collections::HashMap;

use crate::error::RegistryError;
use crate::filter::Filter;
use crate::settings::Settings;

/// The clients.
#[derive(Debug)]
pub(crate) struct Ways {
    common: Way,
    /// For registries with certificates of their own.
    special: HashMap<String, Way>,
}

#[derive(Debug)]
struct Way {
    direct: reqwest::Client,
    /// None when there is no proxy.
    proxied: Option<reqwest::Client>,
}

impl Ways {
    pub(crate) fn new(settings: &Settings, filter: &Filter) -> Result<Self, RegistryError> {
        let failed = |error: reqwest::Error| RegistryError::Client {
            reason: error.to_string(),
        };
        let mut special = HashMap::new();
        for (registry, entry) in &settings.registries {
            if let Some(pem) = &entry.ca_pem {
                let way = Way::new(settings, filter, Some(pem)).map_err(failed)?;
                special.insert(registry.clone(), way);
            }
        }
        Ok(Self {
            common: Way::new(settings, filter, None).map_err(failed)?,
            special,
        })
    }

    /// The way to a registry and to whomever it sends us: certificates of its own count for all of them.
    pub(crate) fn to(&self, registry: &str, by_proxy: bool) -> &reqwest::Client {
        let way = self.special.get(registry).unwrap_or(&self.common);
        match &way.proxied {
            Some(proxied) if by_proxy => proxied,
            Some(_) | None => &way.direct,
        }
    }
}

impl Way {
    fn new(settings: &Settings, filter: &Filter, ca_pem: Option<&[u8]>) -> reqwest::Result<Self> {
        let certificates = match ca_pem {
            Some(pem) => reqwest::Certificate::from_pem_bundle(pem)?,
            None => Vec::new(),
        };
        let builder = || {
            reqwest::Client::builder()
                .user_agent(settings.user_agent.clone())
                .connect_timeout(settings.timeouts.connect)
                .timeout(settings.timeouts.request)
                .dns_resolver(filter.clone())
                .redirect(reqwest::redirect::Policy::none())
                .tls_certs_merge(certificates.clone())
                .no_proxy()
        };
        let proxied = if settings.proxies.is_any() {
            Some(settings.proxies.used_by(builder())?.build()?)
        } else {
            None
        };
        Ok(Self {
            direct: builder().build()?,
            proxied,
        })
    }
}
