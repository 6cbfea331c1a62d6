//! Owns by what a delivery is known again: the sender's own name for it, where there is one.
//!
//! Refuses to make one up: what has none is known by its body, which is the caller's to do.

use serde_json::Value;

use super::{Vendor, text};

/// Any sender may name its delivery in this header (IETF draft "The Idempotency-Key HTTP Header Field").
const ANY: &str = "idempotency-key";

/// The sender's name for a delivery; `header` answers a header by its name in lower case.
pub fn identity<'a>(
    vendor: Vendor,
    header: impl Fn(&str) -> Option<&'a str>,
    body: &Value,
) -> Option<String> {
    let named = |name: &str| header(name).map(str::to_owned).filter(|id| !id.is_empty());
    let inside = |pointer: &str| text(body, pointer).map(str::to_owned);
    named(ANY).or_else(|| match vendor {
        Vendor::Github => named("x-github-delivery"),
        Vendor::Harbor => named("ce-id").or_else(|| inside("/id")),
        Vendor::Distribution => events(body),
        Vendor::Acr | Vendor::Ecr => inside("/id"),
        Vendor::Gar => inside("/message/messageId").or_else(|| inside("/message/message_id")),
        Vendor::DockerHub | Vendor::Quay | Vendor::Jfrog | Vendor::Generic => None,
    })
}

/// The ids of all events with what they are about: two registries may give out the same id.
fn events(body: &Value) -> Option<String> {
    let events = body.get("events")?.as_array()?;
    let known = |event: &Value| {
        let part = |pointer: &str| text(event, pointer).unwrap_or_default();
        text(event, "/id").map(|id| {
            [
                id,
                part("/request/host"),
                part("/target/repository"),
                part("/target/tag"),
            ]
            .join(" ")
        })
    };
    // An event without an id cannot be told from another one like it.
    let all = events.iter().map(known).collect::<Option<Vec<_>>>()?;
    (!all.is_empty()).then(|| all.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id(vendor: Vendor, header: Option<(&str, &'static str)>, body: &Value) -> Option<String> {
        let found = |name: &str| header.filter(|(known, _)| *known == name).map(|(_, id)| id);
        identity(vendor, found, body)
    }

    #[test]
    fn every_vendor_names_a_delivery_in_its_own_place() {
        let event = json!({ "id": "e1", "target": { "repository": "a", "tag": "1" }, "request": { "host": "h" } });
        for (vendor, header, body, expected) in [
            (
                Vendor::Github,
                Some(("x-github-delivery", "g")),
                json!({}),
                Some("g"),
            ),
            (Vendor::Github, None, json!({ "id": "no" }), None),
            (Vendor::Harbor, Some(("ce-id", "c")), json!({}), Some("c")),
            (Vendor::Harbor, None, json!({ "id": "h" }), Some("h")),
            (Vendor::Acr, None, json!({ "id": "a" }), Some("a")),
            (Vendor::Ecr, None, json!({ "id": "e" }), Some("e")),
            (
                Vendor::Gar,
                None,
                json!({ "message": { "messageId": "m" } }),
                Some("m"),
            ),
            (
                Vendor::Distribution,
                None,
                json!({ "events": [event] }),
                Some("e1 h a 1"),
            ),
            (
                Vendor::Distribution,
                None,
                json!({ "events": [event, {}] }),
                None,
            ),
            (Vendor::Distribution, None, json!({ "events": [] }), None),
            (Vendor::DockerHub, None, json!({ "id": "no" }), None),
            (
                Vendor::Generic,
                Some(("idempotency-key", "k")),
                json!({}),
                Some("k"),
            ),
            (
                Vendor::Generic,
                Some(("idempotency-key", "")),
                json!({}),
                None,
            ),
        ] {
            assert_eq!(
                id(vendor, header, &body).as_deref(),
                expected,
                "{vendor:?} {body}"
            );
        }
    }
}
