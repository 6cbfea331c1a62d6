//! Facts about lists, events and the audit log.

use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::Api;

crate::on_both_databases![
    pages_follow_each_other_without_gap_or_overlap,
    every_change_leaves_one_audit_row_and_its_event,
];

async fn walk(api: &Api, path: &str) -> Vec<Value> {
    let mut items = Vec::new();
    let mut cursor = String::new();
    loop {
        let joint = if path.contains('?') { '&' } else { '?' };
        let page = api
            .get(&format!("{path}{joint}limit=2{cursor}"), &api.admin)
            .await
            .expect(200)
            .json();
        items.extend(page["items"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

async fn pages_follow_each_other_without_gap_or_overlap(place: Place) {
    let api = Api::start(place).await;
    let mut enrolled = Vec::new();
    for _ in 0..5 {
        enrolled.push(api.enrol().await.uuid);
    }
    let listed: Vec<String> = walk(&api, "/api/v1/devices?label=site&name=x")
        .await
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(listed.is_empty());
    let listed: Vec<String> = walk(&api, "/api/v1/devices")
        .await
        .iter()
        .map(|device| device["uuid"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(listed, enrolled);
    let mut events: Vec<i64> = walk(&api, "/api/v1/events")
        .await
        .iter()
        .map(|event| event["id"].as_i64().unwrap())
        .collect();
    let count = events.len();
    assert!(events.is_sorted_by(|newer, older| newer > older));
    events.dedup();
    assert_eq!(events.len(), count);
    // A key and a device each.
    assert_eq!(count, 10);
    assert_eq!(walk(&api, "/api/v1/enrolment-keys").await.len(), 5);
    let of_one = walk(&api, &format!("/api/v1/events?device={}", enrolled[2])).await;
    assert_eq!(of_one.len(), 1);
}

async fn every_change_leaves_one_audit_row_and_its_event(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let patch = Some(json!({"name": "new", "labels": {"site": "a"}}));
    for _ in 0..2 {
        // The second time nothing changes, so nothing is written down.
        let changed = api
            .call("PATCH", &device.path(""), &api.admin, patch.clone())
            .await
            .expect(200);
        assert_eq!(changed.json()["name"], "new");
    }
    api.call("DELETE", &device.path(""), &api.admin, None)
        .await
        .expect(204);
    let rows = walk(&api, &format!("/api/v1/audit?subject={}", device.uuid)).await;
    let actions: Vec<&str> = rows
        .iter()
        .map(|row| row["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["device.remove", "device.change", "device.enrol"]);
    assert_eq!(rows[1]["before"]["name"], "box");
    assert_eq!(rows[1]["after"]["name"], "new");
    assert_eq!(rows[1]["actor_kind"], "operator");
    assert!(rows[1]["actor"].as_str().unwrap().contains("first start"));
    assert!(!rows[1]["request_id"].as_str().unwrap().is_empty());
    let events = walk(&api, &format!("/api/v1/events?device={}", device.uuid)).await;
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| event["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["device.removed", "device.changed", "device.enrolled"]
    );
}
