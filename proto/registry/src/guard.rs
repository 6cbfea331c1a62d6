//! Owns which hosts may see a credential or send us on: token servers and redirects.

use reqwest::Url;

use crate::error::RegistryError;
use crate::settings::{Settings, host_of, is_loopback};

/// Whether the token server at `realm` may be asked for a token for `registry`.
///
/// Its host must be the registry's own, above or below it in the name tree (Docker Hub's is: its registry
/// is called `docker.io` wherever it is served), or configured; and it must be reached over HTTPS unless the registry itself is plain on that host.
pub(crate) fn check_realm(
    settings: &Settings,
    registry: &str,
    realm: &Url,
) -> Result<(), RegistryError> {
    let refuse = |why: String| {
        Err(RegistryError::RealmRefused {
            registry: registry.to_owned(),
            why,
        })
    };
    let Some(host) = realm
        .host_str()
        .map(|host| host.trim_matches(['[', ']']).to_ascii_lowercase())
    else {
        return refuse("it has no host".to_owned());
    };
    if !realm.username().is_empty() || realm.password().is_some() {
        return refuse("it carries a login".to_owned());
    }
    let own = host_of(registry).to_ascii_lowercase();
    let configured = settings.of(registry).is_some_and(|registry| {
        registry
            .realm_hosts
            .iter()
            .any(|allowed| host_of(allowed).eq_ignore_ascii_case(&host))
    });
    let related = host == own || is_under(&host, &own) || is_under(&own, &host);
    if !configured && !related {
        return refuse(format!(
            "`{host}` is not related to it and not configured in realm_hosts"
        ));
    }
    match realm.scheme() {
        "https" => Ok(()),
        "http" if settings.is_plain(registry) && (host == own || is_loopback(&host)) => Ok(()),
        scheme => refuse(format!(
            "`{scheme}` would show the login to everybody on the way"
        )),
    }
}

/// Whether `host` is a name below `domain`; a top-level domain has nobody below it here.
fn is_under(host: &str, domain: &str) -> bool {
    domain.contains('.')
        && domain.parse::<std::net::IpAddr>().is_err()
        && host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.ends_with('.'))
}

/// Where a redirect leads, and whether the credential may go along.
pub(crate) fn check_redirect(
    registry: &str,
    from: &Url,
    location: &str,
) -> Result<(Url, bool), RegistryError> {
    let refuse = |why: &str| RegistryError::RedirectRefused {
        registry: registry.to_owned(),
        why: why.to_owned(),
    };
    let to = from
        .join(location)
        .map_err(|_| refuse("the address cannot be read"))?;
    match (from.scheme(), to.scheme()) {
        ("https" | "http", "https") | ("http", "http") => {}
        ("https", "http") => return Err(refuse("from HTTPS to HTTP")),
        _ => return Err(refuse("to something that is not HTTP")),
    }
    let same = from.host_str() == to.host_str()
        && from.port_or_known_default() == to.port_or_known_default();
    Ok((to, same))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::RegistrySettings;

    fn allows(registry: &str, realm: &str) -> bool {
        let mut settings = Settings::default();
        settings.registries.insert(
            "odd.example".to_owned(),
            RegistrySettings {
                realm_hosts: vec!["login.elsewhere.example".to_owned()],
                ..RegistrySettings::default()
            },
        );
        check_realm(&settings, registry, &realm.parse().unwrap()).is_ok()
    }

    #[test]
    fn a_login_goes_only_where_the_registry_may_send_it() {
        for (registry, realm) in [
            ("docker.io", "https://auth.docker.io/token"),
            ("ghcr.io", "https://ghcr.io/token"),
            ("quay.io", "https://quay.io/v2/auth"),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            ("reg.example:5000", "https://auth.reg.example/token"),
            ("odd.example", "https://login.elsewhere.example/token"),
            ("127.0.0.1:5000", "http://127.0.0.1:6000/token"),
        ] {
            assert!(allows(registry, realm), "{registry} → {realm}");
        }
        for (registry, realm) in [
            ("ghcr.io", "https://evil.example/token"),
            ("ghcr.io", "http://ghcr.io/token"),
            ("ghcr.io", "https://evilghcr.io/token"),
            ("ghcr.io", "https://ghcr.io.evil.example/token"),
            ("registry.example.com", "https://com/token"),
            ("ghcr.io", "https://auth.docker.io/token"),
            ("ghcr.io", "http://169.254.169.254/latest"),
            ("ghcr.io", "https://user:pw@ghcr.io/token"),
            ("10.0.0.1:5000", "https://0.0.1/token"),
            ("127.0.0.1:5000", "http://169.254.169.254/token"),
        ] {
            assert!(!allows(registry, realm), "{registry} → {realm}");
        }
    }

    #[test]
    fn a_redirect_to_another_host_loses_the_login_and_never_the_encryption() {
        let from: Url = "https://reg.example/v2/a/blobs/x".parse().unwrap();
        let follow = |location: &str| check_redirect("reg.example", &from, location);
        assert!(follow("/other").unwrap().1);
        assert!(!follow("https://cdn.example/x").unwrap().1);
        assert!(!follow("https://reg.example:444/x").unwrap().1);
        assert!(follow("http://reg.example/x").is_err());
        assert!(follow("file:///etc/passwd").is_err());
    }
}
