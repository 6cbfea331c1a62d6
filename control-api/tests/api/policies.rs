//! Facts about update policies.

use serde_json::json;

use crate::support::Place;
use crate::support::api::Api;

crate::on_both_databases![
    a_policy_is_made_shown_changed_and_forgotten,
    c48_what_cannot_be_carried_out_is_refused_by_member,
];

const POLICIES: &str = "/api/v1/policies";

async fn a_policy_is_made_shown_changed_and_forgotten(place: Place) {
    let api = Api::start(place).await;
    let body = json!({ "name": "careful", "image_pattern": "redis:*" });
    let made = api
        .post(POLICIES, &api.admin, body.clone())
        .await
        .expect(201)
        .json();
    assert_eq!(made["policy"]["update_strategy"], "staged");
    assert_eq!(made["policy"]["max_failure_rate"], 10);
    assert_eq!(made["policy"]["auto_rollback"], true);
    let refused = api.post(POLICIES, &api.admin, body).await.expect(409);
    assert_eq!(refused.code(), "known_policy");
    let path = format!("{POLICIES}/{}", made["id"]);
    let body = json!({
        "name": "careful", "image_pattern": "redis:7*", "update_strategy": "canary",
        "stages": [{ "selector": { "ring": "canary" } }, { "percent": 10 }],
        "windows": [{ "days": ["sat", "sun"], "start": "22:00", "end": "04:00", "timezone": "Europe/Berlin" }],
        "disruption_budget": { "label": "site", "most": 1 },
    });
    let changed = api
        .call("PUT", &path, &api.admin, Some(body))
        .await
        .expect(200)
        .json();
    assert_eq!(changed["policy"]["stages"][0]["selector"]["ring"], "canary");
    assert_eq!(api.get(&path, &api.admin).await.expect(200).json(), changed);
    let all = api.get(POLICIES, &api.admin).await.expect(200).json();
    assert_eq!(all["items"], json!([changed]));
    let operator = api.token("operator").await;
    api.call("DELETE", &path, &operator, None).await.expect(403);
    api.call("DELETE", &path, &api.admin, None)
        .await
        .expect(204);
    api.get(&path, &api.admin).await.expect(404);
}

async fn c48_what_cannot_be_carried_out_is_refused_by_member(place: Place) {
    let api = Api::start(place).await;
    for (body, pointers) in [
        (
            json!({ "name": "p", "image_pattern": "*", "batch_size": 0, "min_success": 0 }),
            vec!["/batch_size", "/min_success"],
        ),
        (
            json!({ "name": "p", "image_pattern": "*", "max_failure_rate": 50 }),
            vec!["/max_failure_rate"],
        ),
        (
            json!({ "name": "p", "image_pattern": "*", "batch_size": -1 }),
            vec!["/batch_size"],
        ),
        (
            json!({ "name": "p", "image_pattern": "*", "batch_size": 4_294_967_296_u64 }),
            vec!["/batch_size"],
        ),
        (
            json!({ "name": "p", "image_pattern": "*", "batch_percent": 0 }),
            vec!["/batch_percent"],
        ),
        (
            json!({ "name": "p", "image_pattern": "*", "disruption_budget": { "label": "site", "most": 0 } }),
            vec!["/disruption_budget/most"],
        ),
        // Windows that would never open.
        (
            json!({ "name": "p", "image_pattern": "*", "windows": [
                { "days": [], "start": "01:00", "end": "02:00", "timezone": "UTC" }] }),
            vec!["/windows/0/days"],
        ),
        (
            json!({ "name": "p", "image_pattern": "*", "windows": [
                { "start": "01:00", "end": "02:00", "timezone": "Moon/Crater" }] }),
            vec!["/windows/0/timezone"],
        ),
        (
            json!({ "name": "p", "image_pattern": "*", "update_strategy": "scheduled" }),
            vec!["/windows"],
        ),
        (
            json!({ "name": "p", "image_pattern": "*", "require_luck": true }),
            vec!["/require_luck"],
        ),
        (
            json!({ "name": "p", "image_pattern": "*", "stages": [{ "sice": 1 }] }),
            vec!["/stages/0/sice"],
        ),
    ] {
        let refused = api
            .post(POLICIES, &api.admin, body.clone())
            .await
            .expect(422);
        assert_eq!(refused.pointers(), pointers, "{body}");
    }
    let all = api.get(POLICIES, &api.admin).await.expect(200).json();
    assert_eq!(all["items"], json!([]), "nothing was stored");
}
