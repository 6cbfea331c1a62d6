//! Facts about what devices were told before, and the way back.

use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Api, report};
use crate::support::registry::digest;

crate::on_both_databases![
    a_device_goes_back_to_what_it_verified_last,
    a_word_without_what_it_speaks_of_makes_no_way_back,
    two_generations_are_compared_without_their_values,
    the_history_is_bounded_and_keeps_what_was_verified,
];

/// A report that the service runs this content, behind its gate.
fn runs(sequence: u64, generation: u64, content: &str) -> Value {
    let mut report = report(sequence, generation);
    let content = digest(&format!("config {content} linux/amd64"));
    let service = json!({ "state": "running", "verified": true, "configDigest": content });
    report["apps"] = json!({ "1001": { "services": { "nginx": service } } });
    report
}

async fn a_word_without_what_it_speaks_of_makes_no_way_back(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let (back, path) = (
        device.path("/target-state/rollback"),
        device.path("/current-state"),
    );
    for content in ["v1", "v2"] {
        api.registry.push("nginx:1", content, &["linux/amd64"]);
        api.set(&device, "nginx:1").await.expect(200);
    }
    let mut on_trial = runs(3, 1, "v1");
    on_trial["apps"]["1001"]["services"]["nginx"]["verified"] = json!(false);
    // Each of them says `converged`.
    for lie in [report(1, 1), runs(2, 1, "v0"), on_trial] {
        api.call("PUT", &path, &device.token, Some(lie))
            .await
            .expect(204);
        let refused = api.post(&back, &api.admin, json!({})).await.expect(409);
        assert_eq!(refused.code(), "nothing_to_go_back_to");
    }
    let truth = runs(4, 1, "v1");
    api.call("PUT", &path, &device.token, Some(truth))
        .await
        .expect(204);
    api.post(&back, &api.admin, json!({})).await.expect(200);
}

async fn a_device_goes_back_to_what_it_verified_last(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let back = device.path("/target-state/rollback");
    let refused = api.post(&back, &api.admin, json!({})).await.expect(409);
    assert_eq!(refused.code(), "nothing_to_go_back_to");
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    let verified = runs(1, 1, "v1");
    let path = device.path("/current-state");
    api.call("PUT", &path, &device.token, Some(verified))
        .await
        .expect(204);
    api.registry.push("nginx:1", "v2", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    let mut failing = report(2, 2);
    failing["status"] = json!("holding");
    api.call("PUT", &path, &device.token, Some(failing))
        .await
        .expect(204);

    let gone = api
        .post(&back, &api.admin, json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(gone["generation"], 3);
    let polled = api.poll(&device, &[]).await.expect(200).json();
    assert_eq!(polled["generation"], 3);
    let service = &polled["apps"]["1001"]["services"][0];
    assert_eq!(service["imageName"], format!("nginx@{}", digest("v1")));

    let history = api
        .get(&device.path("/target-state/history"), &api.admin)
        .await;
    let history = history.expect(200).json();
    let told: Vec<_> = history["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["generation"].clone(),
                one["cause"].clone(),
                one["verified_at"].is_null(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (json!(3), json!("back:1"), true),
            (json!(2), json!("set"), true),
            (json!(1), json!("set"), false),
        ]
    );
    // Forward again, by number.
    let forward = json!({ "generation": 2 });
    let gone = api
        .post(&back, &api.admin, forward)
        .await
        .expect(200)
        .json();
    assert_eq!(gone["generation"], 4);
    api.post(&back, &api.admin, json!({ "generation": 99 }))
        .await
        .expect(409);
    let viewer = api.token("viewer").await;
    api.post(&back, &viewer, json!({})).await.expect(403);
}

async fn two_generations_are_compared_without_their_values(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    for password in ["first-secret", "second-secret"] {
        let body = json!({ "apps": { "1001": { "appId": 1001, "appName": "a", "services": [
            { "serviceId": 1, "serviceName": "web", "imageName": "nginx:1",
              "config": { "environment": { "PASSWORD": password } } },
        ] } } });
        api.post(&device.path("/target-state"), &api.admin, body)
            .await
            .expect(200);
    }
    let path = device.path("/target-state/differences?from=1&to=2");
    let answer = api.get(&path, &api.admin).await.expect(200).json();
    assert_eq!(
        answer["differences"],
        json!([{
            "service": "1001/web", "change": "changed", "fields": ["environment"],
            "image_before": format!("nginx@{}", digest("v1")),
            "image_after": format!("nginx@{}", digest("v1")),
        }])
    );
    assert!(!answer.to_string().contains("secret"));
    let path = device.path("/target-state/differences?from=1&to=9");
    api.get(&path, &api.admin).await.expect(404);
}

async fn the_history_is_bounded_and_keeps_what_was_verified(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.registry.push("nginx:2", "v2", &["linux/amd64"]);
    for n in 1..=60 {
        let tag = if n % 2 == 0 { "nginx:2" } else { "nginx:1" };
        api.set(&device, tag).await.expect(200);
        if n == 3 {
            let verified = runs(1, 3, "v1");
            let path = device.path("/current-state");
            api.call("PUT", &path, &device.token, Some(verified))
                .await
                .expect(204);
        }
    }
    let path = device.path("/target-state/history?limit=200");
    let history = api.get(&path, &api.admin).await.expect(200).json();
    let told = history["items"].as_array().unwrap();
    assert_eq!(told.len(), 51);
    assert_eq!(told[0]["generation"], 60);
    assert_eq!(told[50]["generation"], 3);
}
