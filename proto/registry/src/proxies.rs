//! Owns which hosts are asked by way of a proxy: what the environment of a program says.
//!
//! Refuses to take this machine's own addresses to a proxy, as other programs do.

use std::fmt;
use std::sync::Arc;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{ClientBuilder, Proxy, Url};

use crate::settings::is_loopback;

/// The proxies of an environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`; small letters, too).
#[derive(Clone)]
pub struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    matcher: Arc<Matcher>,
}

impl Proxies {
    /// Those of this process.
    pub fn environment() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Those of any environment; a value that is no address counts as none.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| {
            let found = variable(name).or_else(|| variable(&name.to_ascii_lowercase()));
            found.unwrap_or_default()
        };
        // A web server hands a header `Proxy` to the programs that it runs under this very name.
        let http = if variable("REQUEST_METHOD").is_some() {
            String::new()
        } else {
            get("HTTP_PROXY")
        };
        let (https, all) = (get("HTTPS_PROXY"), get("ALL_PROXY"));
        let address = |own: &str| {
            let text = if own.is_empty() { &all } else { own };
            let with_scheme = format!("http://{text}");
            let text = if text.contains("://") {
                text
            } else {
                &with_scheme
            };
            text.parse::<Url>().ok().filter(Url::has_host)
        };
        Self {
            http: address(&http),
            https: address(&https),
            matcher: Arc::new(
                Matcher::builder()
                    .http(&http)
                    .https(&https)
                    .all(&all)
                    .no(get("NO_PROXY"))
                    .build(),
            ),
        }
    }

    /// The hosts of the proxies themselves.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        let both = [&self.http, &self.https];
        both.into_iter().flatten().filter_map(Url::host_str)
    }

    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.http.is_some() || self.https.is_some()
    }

    /// Whether a proxy is asked for this address.
    pub(crate) fn takes(&self, url: &Url) -> bool {
        let uri = url.as_str().parse();
        self.is_any()
            && !is_loopback(url.host_str().unwrap_or_default())
            && uri.is_ok_and(|uri| self.matcher.intercept(&uri).is_some())
    }

    /// A client that asks the proxies for everything.
    pub(crate) fn used_by(&self, mut builder: ClientBuilder) -> reqwest::Result<ClientBuilder> {
        if let Some(http) = &self.http {
            builder = builder.proxy(Proxy::http(http.clone())?);
        }
        if let Some(https) = &self.https {
            builder = builder.proxy(Proxy::https(https.clone())?);
        }
        Ok(builder)
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An address of a proxy may hold a login.
        f.debug_list().entries(self.hosts()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::read(|wanted| {
            let found = variables.iter().find(|(name, _)| *name == wanted)?;
            Some(found.1.to_owned())
        })
    }

    #[test]
    fn the_environment_says_who_is_asked_by_way_of_a_proxy() {
        let some = proxies(&[
            ("HTTPS_PROXY", "http://user:hunter2@proxy.lan:3128"),
            ("no_proxy", "reg.lan,10.0.0.0/8"),
        ]);
        for (url, expected) in [
            ("https://ghcr.io/v2/", true),
            ("http://ghcr.io/v2/", false),
            ("https://reg.lan/v2/", false),
            ("https://10.1.2.3/v2/", false),
            ("https://127.0.0.1:5000/v2/", false),
            ("https://localhost:5000/v2/", false),
        ] {
            assert_eq!(some.takes(&url.parse().unwrap()), expected, "{url}");
        }
        assert_eq!(some.hosts().collect::<Vec<_>>(), ["proxy.lan"]);
        assert!(!format!("{some:?}").contains("hunter2"));
        let all = proxies(&[("ALL_PROXY", "10.0.0.1:3128")]);
        assert!(all.takes(&"http://ghcr.io/v2/".parse().unwrap()));
        assert!(!proxies(&[]).is_any());
        let in_cgi = [
            ("REQUEST_METHOD", "GET"),
            ("HTTP_PROXY", "http://evil.example"),
        ];
        assert!(!proxies(&in_cgi).is_any());
    }
}
