//! Owns looking at what the device must reach: names, the control API, the registries of its target.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use holdfast_proto::image::Reference;
use holdfast_registry::RegistryError;

use super::Check;
use crate::config::Settings;
use crate::control::client::{Client, Origin};
use crate::control::poll;
use crate::engine::docker::DockerEngine;
use crate::enrolment::Enrolment;
use crate::fault::chain;
use crate::fetch::registries::Told;
use crate::fetch::transport::Registries as _;
use crate::journal::Journal;

/// Looking up a name: a resolver that needs longer is as good as none.
const DNS_LIMIT: Duration = Duration::from_secs(10);
/// Asking a registry with a login costs it three answers.
const REGISTRY_LIMIT: Duration = Duration::from_secs(20);
/// Registries that are asked; a target seldom names more than two.
const MOST_REGISTRIES: usize = 8;
/// Whether names are looked up by the program alone, without the system's name services.
const IS_STATIC: bool = cfg!(target_env = "musl");

/// The `Date` of an answer of the control API, if one comes.
pub(super) async fn date(settings: &Settings, origin: Option<&Origin>) -> Option<String> {
    let client = Client::new(origin?.clone(), settings.api.ca_file.as_deref()).ok()?;
    client.date().await
}

/// Whether the server's name leads somewhere.
pub(super) async fn dns(origin: Option<&Origin>) -> Check {
    let name = "DNS";
    let Some((host, port)) = origin.and_then(Origin::host_and_port) else {
        return Check::warning(name, "no server to look up: this device is not enrolled");
    };
    let lookup = tokio::net::lookup_host((host.as_str(), port));
    let found = match tokio::time::timeout(DNS_LIMIT, lookup).await {
        Ok(Ok(mut addresses)) => match addresses.next() {
            Some(address) => return Check::ok(name, format!("{host} is {}", address.ip())),
            None => format!("{host} has no address"),
        },
        Ok(Err(error)) => format!("{host} cannot be looked up: {error}"),
        Err(_) => format!("no answer about {host} within {} s", DNS_LIMIT.as_secs()),
    };
    Check::wrong(name, found).advice(dns_advice(&host, IS_STATIC))
}

/// What helps where a name cannot be looked up.
fn dns_advice(host: &str, is_static: bool) -> &'static str {
    let last = host.trim_end_matches('.').rsplit('.').next();
    let is_multicast = last.is_some_and(|last| last.eq_ignore_ascii_case("local"));
    match (is_multicast, is_static) {
        (true, true) => {
            "this is the static program, which asks DNS servers alone and knows no `.local` names: \
             write the address into /etc/hosts, use a name in DNS, or install the package for this \
             machine with glibc"
        }
        (true, false) => {
            "names in `.local` need multicast DNS: install libnss-mdns (`apt-get install libnss-mdns`), \
             or write the address into /etc/hosts"
        }
        (false, _) => "see /etc/resolv.conf and the network; what runs goes on without it",
    }
}

/// Asks for the target as the agent does: the way, the certificate and the token in one.
pub(super) async fn server(settings: &Settings, enrolment: Option<&Enrolment>) -> Check {
    let name = "control API";
    let Some(enrolment) = enrolment else {
        return Check::warning(name, "not asked: this device is not enrolled");
    };
    let asked = async {
        let origin = Origin::parse(&enrolment.api_url)?;
        let client = Client::new(origin, settings.api.ca_file.as_deref());
        let client = client.map_err(|error| chain(&error))?;
        let answer = client
            .state(&enrolment.uuid, &enrolment.token, None, 0)
            .await;
        answer.map_err(|error| chain(&error))
    };
    match asked.await {
        Ok(_) => Check::ok(name, format!("{} knows this device", enrolment.api_url)),
        Err(error) => Check::wrong(name, error).advice(
            "what runs goes on; look at address, certificate (api.ca_file), clock and enrolment",
        ),
    }
}

/// Asks every registry of the device's target for one image of it, as the agent would.
pub(super) async fn registries(
    settings: &Settings,
    enrolment: Option<&Enrolment>,
    engine: &DockerEngine,
) -> Check {
    let name = "registries";
    let images = enrolment.map(|enrolment| images(settings, enrolment));
    let images = images.unwrap_or_default();
    if images.is_empty() {
        return Check::ok(name, "no image of a registry is wanted yet");
    }
    let told = Told {
        engine,
        settings: &settings.pull,
    };
    let ask = |(registry, image): (String, Reference)| {
        let told = &told;
        async move {
            let asked = async { told.client(&registry).await?.resolve(&image).await };
            let outcome = tokio::time::timeout(REGISTRY_LIMIT, asked).await;
            let outcome = outcome.unwrap_or_else(|_| {
                Err(RegistryError::TimedOut {
                    registry: registry.clone(),
                })
            });
            (registry, outcome.map(drop))
        }
    };
    let answers: Vec<(String, Result<(), RegistryError>)> = futures_util::stream::iter(images)
        .map(ask)
        .buffered(MOST_REGISTRIES)
        .collect()
        .await;
    judge(name, &answers)
}

/// The registries of the stored target, each with one of its images.
fn images(settings: &Settings, enrolment: &Enrolment) -> BTreeMap<String, Reference> {
    let journal = Journal::open_read_only(&settings.state_dir).ok().flatten();
    let stored = journal.and_then(|journal| poll::stored(&journal, &enrolment.uuid).ok().flatten());
    let mut found = BTreeMap::new();
    for (_, service) in stored.iter().flat_map(|stored| stored.target.services()) {
        let image = service.pinned_image();
        let image = image.as_deref().unwrap_or(&service.image_name);
        if let Ok(image) = image.parse::<Reference>()
            && found.len() < MOST_REGISTRIES
        {
            let registry = image.repository().registry().to_owned();
            found.entry(registry).or_insert(image);
        }
    }
    found
}

fn judge(name: &'static str, answers: &[(String, Result<(), RegistryError>)]) -> Check {
    let mut found = Vec::new();
    let mut advice = None;
    for (registry, answer) in answers {
        match answer {
            // The control API hands logins out for pulls, which are not asked for here.
            Ok(()) | Err(RegistryError::Unauthorized { .. } | RegistryError::Forbidden { .. }) => {
                let login = if answer.is_ok() {
                    ""
                } else {
                    " and wants a login"
                };
                found.push(format!("{registry} answers{login}"));
            }
            Err(error @ RegistryError::RateLimited { .. }) => {
                found.push(chain(error));
                advice = advice.or(Some(
                    "a login has a larger allowance than none: set one at the control API",
                ));
            }
            Err(error @ RegistryError::NotFound { .. }) => {
                found.push(chain(error));
                advice = advice.or(Some(
                    "the target names an image that is gone: what runs goes on, another machine could not pull it",
                ));
            }
            Err(error) => {
                found.push(chain(error));
                advice = Some(
                    "updates wait, what runs goes on; look at the network, at proxies (HTTPS_PROXY) and \
                     certificates (pull.registries in agent.yaml)",
                );
            }
        }
    }
    let found = found.join("; ");
    match advice {
        None => Check::ok(name, found),
        Some(advice) => Check::warning(name, found).advice(advice),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_local_name_needs_what_the_program_was_built_for() {
        assert!(dns_advice("control.local", true).contains("/etc/hosts"));
        assert!(dns_advice("control.Local.", false).contains("libnss-mdns"));
        for is_static in [true, false] {
            assert!(dns_advice("local.example", is_static).contains("resolv.conf"));
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_nowhere_is_wrong() {
        // Reserved for this purpose (RFC 6761): no server anywhere knows it.
        let origin = Origin::parse("https://nobody.invalid").unwrap();
        let check = dns(Some(&origin)).await;
        assert_eq!(check.verdict, Verdict::Wrong);
        assert!(check.found.contains("nobody.invalid"), "{}", check.found);
        let here = Origin::parse("http://127.0.0.1:9").unwrap();
        assert_eq!(dns(Some(&here)).await.verdict, Verdict::Ok);
        assert_eq!(dns(None).await.verdict, Verdict::Warning);
    }

    #[test]
    fn each_registry_is_named_and_the_gravest_advice_counts() {
        let registry = || "r.example".to_owned();
        let answers = |answer| vec![("open.example".to_owned(), Ok(())), (registry(), answer)];
        let verdict = |answer| {
            let check = judge("registries", &answers(answer));
            assert!(check.found.starts_with("open.example answers; "));
            assert!(check.found.contains("r.example"), "{}", check.found);
            assert_eq!(check.advice.is_some(), check.verdict != Verdict::Ok);
            check.verdict
        };
        assert_eq!(verdict(Ok(())), Verdict::Ok);
        let registry_error = RegistryError::Unauthorized {
            registry: registry(),
        };
        assert_eq!(verdict(Err(registry_error)), Verdict::Ok);
        let away = RegistryError::TimedOut {
            registry: registry(),
        };
        assert_eq!(verdict(Err(away)), Verdict::Warning);
        let limited = RegistryError::RateLimited {
            registry: registry(),
            retry_after: None,
        };
        assert_eq!(verdict(Err(limited)), Verdict::Warning);
    }
}
