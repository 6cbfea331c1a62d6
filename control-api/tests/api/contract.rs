//! Facts about the OpenAPI document. That answers keep to it, every other fact checks on its way.

use holdfast_api::http::{document_text, entries};

use crate::support::Place;
use crate::support::api::{Api, document};

#[tokio::test]
async fn the_document_is_served_to_everybody() {
    let api = Api::start(Place::sqlite()).await;
    let served = api.get("/api/v1/openapi.json", "").await.expect(200);
    assert_eq!(&served.json(), document());
}

#[test]
fn the_checked_in_document_is_the_one_that_is_generated() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../proto/openapi/control-api.json"
    );
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        checked_in == document_text(),
        "run: cargo run -p holdfast-api -- openapi > proto/openapi/control-api.json"
    );
}

#[test]
fn every_route_is_in_the_document_with_its_errors() {
    for entry in entries() {
        let operation = &document()["paths"][&entry.path][entry.method.as_str().to_lowercase()];
        assert!(operation.is_object(), "{entry:?}");
        let problem = &operation["responses"]["default"]["content"]["application/problem+json"];
        assert_eq!(problem["schema"]["$ref"], "#/components/schemas/Problem");
    }
}

#[test]
fn every_reference_in_the_document_leads_somewhere() {
    fn walk(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(members) => {
                for (name, member) in members {
                    match member.as_str() {
                        Some(target) if name == "$ref" => found.push(target.to_owned()),
                        _ => walk(member, found),
                    }
                }
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| walk(item, found)),
            _ => {}
        }
    }
    let mut references = Vec::new();
    walk(document(), &mut references);
    assert!(references.len() > 20);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document().pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn the_document_names_this_program_and_no_other() {
    let info = &document()["info"];
    assert_eq!(document()["openapi"], "3.1.0");
    assert_eq!(info["title"], "Holdfast control API");
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert!(info.get("contact").is_none());
}

#[tokio::test]
async fn metrics_count_polls_and_refusals() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    api.poll(&device, &[]).await.expect(200);
    api.poll(&device, &[("if-none-match", "*")])
        .await
        .expect(304);
    api.get("/api/v1/devices", "hfo_wrong").await.expect(401);
    let answer = api.get("/metrics", "").await.expect(200);
    let text = String::from_utf8(answer.bytes).unwrap();
    for line in [
        "holdfast_api_polls_total{code=\"200\"} 1",
        "holdfast_api_polls_total{code=\"304\"} 1",
        "holdfast_api_auth_failures_total 1",
        "holdfast_api_devices 1",
        "holdfast_api_requests_total{route=\"/api/v1/devices\",code=\"401\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains(&device.uuid));
}
