//! Owns what differs between two targets, in the words of whoever compares them.
//!
//! Refuses to show values of environments: they may be secrets. Names of what changed say enough.

use std::collections::BTreeMap;

use holdfast_proto::id::{AppId, ServiceKey};
use holdfast_proto::target::{App, ServiceTarget};
use serde::Serialize;
use serde_json::Value;

/// One service that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Which service, `app/name`.
    pub service: String,
    /// What happened to it.
    pub change: Change,
    /// The image it had, pinned.
    pub image_before: Option<String>,
    /// The image it has, pinned.
    pub image_after: Option<String>,
    /// Members of its configuration that differ, without the image.
    pub fields: Vec<String>,
}

/// What happened to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It differs.
    Changed,
}

type Apps = BTreeMap<AppId, App>;

/// What differs, by app and service.
pub fn between(before: &Apps, after: &Apps) -> Vec<Difference> {
    let (before, after) = (services(before), services(after));
    let mut found = Vec::new();
    for (key, old) in &before {
        match after.get(key) {
            None => found.push(difference(key, Change::Removed, Some(old), None)),
            Some(new) => {
                let changed = difference(key, Change::Changed, Some(old), Some(new));
                if changed.image_before != changed.image_after || !changed.fields.is_empty() {
                    found.push(changed);
                }
            }
        }
    }
    for (key, new) in after.iter().filter(|(key, _)| !before.contains_key(key)) {
        found.push(difference(key, Change::Added, None, Some(new)));
    }
    found.sort_by(|one, other| one.service.cmp(&other.service));
    found
}

fn services(apps: &Apps) -> BTreeMap<ServiceKey, &ServiceTarget> {
    let mut found = BTreeMap::new();
    for (id, app) in apps {
        for service in &app.services {
            let key = ServiceKey {
                app: id.clone(),
                service: service.service_name.clone(),
            };
            found.insert(key, service);
        }
    }
    found
}

fn difference(
    key: &ServiceKey,
    change: Change,
    before: Option<&&ServiceTarget>,
    after: Option<&&ServiceTarget>,
) -> Difference {
    let image =
        |service: Option<&&ServiceTarget>| service.map(|service| service.image_name.clone());
    let fields = match (before, after) {
        (Some(before), Some(after)) => fields(before, after),
        _ => Vec::new(),
    };
    Difference {
        service: key.to_string(),
        change,
        image_before: image(before),
        image_after: image(after),
        fields,
    }
}

/// The members of two configurations that differ.
fn fields(before: &ServiceTarget, after: &ServiceTarget) -> Vec<String> {
    let members = |service: &ServiceTarget| match serde_json::to_value(&service.config) {
        Ok(Value::Object(members)) => members,
        Ok(_) | Err(_) => serde_json::Map::new(),
    };
    let (before, after) = (members(before), members(after));
    let names = before.keys().chain(after.keys());
    let mut differing: Vec<String> = names
        .filter(|name| *name != "image" && before.get(*name) != after.get(*name))
        .cloned()
        .collect();
    differing.sort();
    differing.dedup();
    differing
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apps(services: &Value) -> Apps {
        let apps = json!({ "1": { "appId": 1, "appName": "a", "services": services } });
        serde_json::from_value(apps).unwrap()
    }

    fn service(name: &str, image: &str, config: &Value) -> Value {
        json!({ "serviceId": name, "serviceName": name, "imageName": image, "config": config })
    }

    #[test]
    fn services_come_go_and_change() {
        let before = apps(&json!([
            service("gone", "a:1", &json!({})),
            service("same", "b:1", &json!({ "ports": ["80:80"] })),
            service(
                "web",
                "c:1",
                &json!({ "ports": ["80:80"], "environment": { "TOKEN": "old" } })
            ),
        ]));
        let after = apps(&json!([
            service("new", "d:1", &json!({})),
            service("same", "b:1", &json!({ "ports": ["80:80"] })),
            service(
                "web",
                "c:2",
                &json!({ "environment": { "TOKEN": "secret" } })
            ),
        ]));
        let found = between(&before, &after);
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.service.as_str(), one.change, one.fields.clone()))
            .collect();
        assert_eq!(
            told,
            [
                ("1/gone", Change::Removed, Vec::new()),
                ("1/new", Change::Added, Vec::new()),
                (
                    "1/web",
                    Change::Changed,
                    vec!["environment".to_owned(), "ports".to_owned()]
                ),
            ]
        );
        assert_eq!(found[2].image_before.as_deref(), Some("c:1"));
        assert_eq!(found[2].image_after.as_deref(), Some("c:2"));
        let words = serde_json::to_string(&found).unwrap();
        assert!(
            !words.contains("secret") && !words.contains("old"),
            "{words}"
        );
        assert_eq!(between(&after, &after), []);
    }
}
