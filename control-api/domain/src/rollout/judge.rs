//! Owns what a device's report says of a rollout: that it is on its way, healthy, failed, or elsewhere.
//!
//! Refuses to believe a word such as "converged": what counts is which content runs, and that the device's own
//! gate let it through.

use std::collections::BTreeMap;

use holdfast_proto::current::{CurrentState, ServiceReport};
use holdfast_proto::id::ServiceKey;
use holdfast_proto::image::ConfigDigest;

/// What a device was told to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The target's generation.
    pub generation: u64,
    /// The content of each service that the rollout is about, for this device's platform.
    pub services: BTreeMap<ServiceKey, ConfigDigest>,
}

/// What a report says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It is on its way; why it is not there yet.
    OnItsWay(String),
    /// It runs what it was told to, and its gate let it through.
    Healthy,
    /// Its gate did not let it through: the device went back by itself.
    Failed(String),
    /// It has a newer target: somebody else decides about it now.
    Elsewhere,
}

/// Longest reason that is kept, in characters: it goes into rows, events and messages, and devices write it.
const LONGEST_WHY: usize = 500;

/// Reads a report; none was received.
pub fn sight(told: &Told, report: Option<&CurrentState>) -> Sight {
    let bound = |why: String| match why.char_indices().nth(LONGEST_WHY) {
        Some((end, _)) => format!("{}…", why.get(..end).unwrap_or_default()),
        None => why,
    };
    match read(told, report) {
        Sight::OnItsWay(why) => Sight::OnItsWay(bound(why)),
        Sight::Failed(why) => Sight::Failed(bound(why)),
        other => other,
    }
}

fn read(told: &Told, report: Option<&CurrentState>) -> Sight {
    let Some(report) = report else {
        return Sight::OnItsWay("it has not reported yet".to_owned());
    };
    if report.generation > told.generation {
        return Sight::Elsewhere;
    }
    if report.generation < told.generation {
        let seen = report.generation;
        return Sight::OnItsWay(format!("it reports generation {seen} still"));
    }
    let services = told.services.iter();
    let sights: Vec<_> = services
        .map(|(key, content)| (key, one(*content, service(report, key))))
        .collect();
    let first = |wanted: fn(&Sight) -> bool| {
        sights
            .iter()
            .find(|(_, sight)| wanted(sight))
            .map(|(key, sight)| (*key, sight.clone()))
    };
    if let Some((key, Sight::Failed(why))) = first(|sight| matches!(sight, Sight::Failed(_))) {
        return Sight::Failed(format!("{key}: {why}"));
    }
    match first(|sight| *sight != Sight::Healthy) {
        Some((key, Sight::OnItsWay(why))) => {
            let held = report.holds.first();
            Sight::OnItsWay(
                held.map_or_else(|| format!("{key}: {why}"), |hold| hold.detail.clone()),
            )
        }
        Some((_, other)) => other,
        None => Sight::Healthy,
    }
}

fn service<'a>(report: &'a CurrentState, key: &ServiceKey) -> Option<&'a ServiceReport> {
    report.apps.get(&key.app)?.services.get(&key.service)
}

fn one(content: ConfigDigest, report: Option<&ServiceReport>) -> Sight {
    let Some(report) = report else {
        return Sight::OnItsWay("it does not exist yet".to_owned());
    };
    if let Some(rejected) = &report.rejected {
        return Sight::Failed(rejected.reason.clone());
    }
    if report.config_digest != Some(content) {
        return Sight::OnItsWay("another version still serves".to_owned());
    }
    if !report.verified {
        return Sight::OnItsWay("it is on trial".to_owned());
    }
    match (report.state.as_str(), report.health.as_deref()) {
        // One that ran to its end passed its gate by that.
        ("running" | "exited", None | Some("healthy")) => Sight::Healthy,
        ("running", Some(health)) => Sight::OnItsWay(format!("it is {health}")),
        (state, _) => Sight::OnItsWay(format!("it is {state}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(name: &str) -> ConfigDigest {
        ConfigDigest(holdfast_proto::image::Digest::of(name.as_bytes()))
    }

    fn told() -> Told {
        let key = ServiceKey {
            app: "1".parse().unwrap(),
            service: "web".parse().unwrap(),
        };
        Told {
            generation: 5,
            services: BTreeMap::from([(key, digest("new"))]),
        }
    }

    fn seen(generation: u64, web: &Value) -> Sight {
        let report = json!({
            "sequence": 1, "agentVersion": "0", "generation": generation, "status": "converged",
            "apps": { "1": { "services": { "web": web } } },
        });
        sight(&told(), Some(&serde_json::from_value(report).unwrap()))
    }

    fn web(content: &str, verified: bool) -> Value {
        json!({ "configDigest": digest(content), "state": "running", "verified": verified })
    }

    fn is_on_its_way(sight: &Sight, why: &str) -> bool {
        matches!(sight, Sight::OnItsWay(words) if words.contains(why))
    }

    #[test]
    fn healthy_is_the_right_content_behind_its_gate() {
        assert_eq!(seen(5, &web("new", true)), Sight::Healthy);
        assert!(is_on_its_way(&seen(5, &web("new", false)), "on trial"));
        assert!(is_on_its_way(
            &seen(5, &web("old", true)),
            "another version"
        ));
        let mut ill = web("new", true);
        ill["health"] = json!("unhealthy");
        assert!(is_on_its_way(&seen(5, &ill), "it is unhealthy"));
        let mut done = web("new", true);
        done["state"] = json!("exited");
        assert_eq!(seen(5, &done), Sight::Healthy);
    }

    #[test]
    fn c22_a_device_that_only_says_so_is_not_believed() {
        // Its word is "converged" each time.
        let nothing =
            json!({ "sequence": 1, "agentVersion": "0", "generation": 5, "status": "converged" });
        let nothing = serde_json::from_value(nothing).unwrap();
        assert!(is_on_its_way(&sight(&told(), Some(&nothing)), "not exist"));
        assert!(is_on_its_way(&seen(4, &web("new", true)), "generation 4"));
        assert!(is_on_its_way(&sight(&told(), None), "not reported"));
    }

    #[test]
    fn c32_a_reason_is_cut_where_it_is_too_long() {
        let mut rejected = web("old", true);
        rejected["rejected"] = json!({
            "image": "web@x", "reason": "ö".repeat(5_000_000), "at": "2026-11-21T00:00:00Z",
        });
        let Sight::Failed(why) = seen(5, &rejected) else {
            panic!("it was rejected");
        };
        assert_eq!(why.chars().count(), LONGEST_WHY + 1);
        let mut ill = web("new", true);
        ill["health"] = json!("<b>".repeat(100_000));
        let Sight::OnItsWay(why) = seen(5, &ill) else {
            panic!("it is ill");
        };
        assert_eq!(why.chars().count(), LONGEST_WHY + 1);
    }

    #[test]
    fn what_a_gate_rejected_failed_and_what_moved_on_is_elsewhere() {
        let mut rejected = web("old", true);
        rejected["rejected"] = json!({
            "image": "web@x", "reason": "its health check failed", "at": "2026-11-21T00:00:00Z",
        });
        assert_eq!(
            seen(5, &rejected),
            Sight::Failed("1/web: its health check failed".to_owned())
        );
        assert_eq!(seen(6, &web("new", true)), Sight::Elsewhere);
    }
}
