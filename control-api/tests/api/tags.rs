//! Facts about tags of images that may run, and about whom a policy would be for.

use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Api, Device};

crate::on_both_databases![
    a_tag_is_added_changed_shown_and_forgotten,
    a_deprecated_tag_names_the_devices_still_on_it,
    what_is_no_tag_is_refused_by_field,
    a_policy_is_shown_before_there_is_one,
    c47_a_pattern_costs_no_more_than_it_is_long,
];

async fn image(api: &Api, name: &str) -> String {
    let body = json!({ "image_name": name });
    let made = api
        .post("/api/v1/images", &api.admin, body)
        .await
        .expect(201);
    format!("/api/v1/images/{}", made.json()["id"])
}

async fn a_tag_is_added_changed_shown_and_forgotten(place: Place) {
    let api = Api::start(place).await;
    let path = image(&api, "redis").await;
    let tags = format!("{path}/tags");
    let body = json!({ "tag": "7.2", "is_recommended": true, "architecture": "arm/v7" });
    let added = api
        .post(&tags, &api.admin, body.clone())
        .await
        .expect(201)
        .json();
    assert_eq!(
        (&added["tag"], &added["is_recommended"]),
        (&json!("7.2"), &json!(true))
    );
    assert_eq!(added["devices_still_on_it"], Value::Null);
    let refused = api.post(&tags, &api.admin, body).await.expect(409);
    assert_eq!(refused.code(), "known_tag");
    api.post(&tags, &api.admin, json!({ "tag": "8" }))
        .await
        .expect(201);
    // Those that people are to choose come first, then the newest.
    let shown = api.get(&path, &api.admin).await.expect(200).json();
    let names: Vec<_> = shown["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| &tag["tag"])
        .collect();
    assert_eq!(names, ["7.2", "8"]);
    let one = format!("{tags}/{}", added["id"]);
    let body = json!({ "tag": "7.2", "is_recommended": false, "architecture": "" });
    let changed = api
        .call("PUT", &one, &api.admin, Some(body))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&changed["is_recommended"], &changed["architecture"]),
        (&json!(false), &Value::Null)
    );
    // What is left out stays, and what changes nothing is not written down.
    api.call("PUT", &one, &api.admin, Some(json!({})))
        .await
        .expect(200);
    let page = api
        .get(&format!("{tags}?limit=1"), &api.admin)
        .await
        .expect(200)
        .json();
    assert_eq!(page["items"][0]["tag"], "7.2");
    let next = page["next_cursor"].as_str().unwrap();
    let page = api
        .get(&format!("{tags}?limit=1&cursor={next}"), &api.admin)
        .await;
    assert_eq!(page.expect(200).json()["items"][0]["tag"], "8");
    let operator = api.token("operator").await;
    api.call("DELETE", &one, &operator, None).await.expect(403);
    api.call("DELETE", &one, &api.admin, None).await.expect(204);
    api.call("DELETE", &one, &api.admin, None).await.expect(404);
    // A tag is its image's alone.
    let other = image(&api, "postgres").await;
    let stray = format!("{other}/tags/2");
    api.call("PUT", &stray, &api.admin, Some(json!({})))
        .await
        .expect(404);
    let audit = "/api/v1/audit?subject=docker.io%2Flibrary%2Fredis";
    let audit = api.get(audit, &api.admin).await.expect(200).json();
    let rows = audit["items"].as_array().unwrap();
    let actions: Vec<_> = rows
        .iter()
        .map(|row| row["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        [
            "image.tag.remove",
            "image.tag.change",
            "image.tag.add",
            "image.tag.add",
            "image.add"
        ]
    );
    assert_eq!(rows[1]["before"]["is_recommended"], true);
}

/// A device with this name and labels that is to run these images.
async fn device(api: &Api, name: &str, labels: Value, images: &[&str]) -> Device {
    let device = api.enrol().await;
    let body = json!({ "name": name, "labels": labels });
    api.call("PATCH", &device.path(""), &api.admin, Some(body))
        .await
        .expect(200);
    let services: Vec<Value> = images
        .iter()
        .enumerate()
        .map(|(n, image)| json!({ "serviceId": n, "serviceName": format!("s{n}"), "imageName": image }))
        .collect();
    for image in images {
        api.registry.push(image, image, &["linux/amd64"]);
    }
    let target = json!({ "apps": { "1": { "appId": 1, "appName": "a", "services": services } } });
    let path = device.path("/target-state");
    api.post(&path, &api.admin, target).await.expect(200);
    device
}

async fn a_deprecated_tag_names_the_devices_still_on_it(place: Place) {
    let api = Api::start(place).await;
    for (name, images) in [
        ("north", &["redis:7", "nginx:1"][..]),
        ("south", &["docker.io/library/redis:7"]),
        ("west", &["redis:8"]),
        ("east", &["reg.example/redis:7"]),
    ] {
        device(&api, name, json!({}), images).await;
    }
    let path = image(&api, "redis").await;
    let tags = format!("{path}/tags");
    let added = api
        .post(&tags, &api.admin, json!({ "tag": "7" }))
        .await
        .expect(201)
        .json();
    let one = format!("{tags}/{}", added["id"]);
    let body = json!({ "is_deprecated": true });
    let changed = api
        .call("PUT", &one, &api.admin, Some(body))
        .await
        .expect(200)
        .json();
    assert_eq!(
        changed["devices_still_on_it"],
        json!({ "count": 2, "names": ["north", "south"] })
    );
    let body = json!({ "is_deprecated": false });
    let changed = api
        .call("PUT", &one, &api.admin, Some(body))
        .await
        .expect(200)
        .json();
    assert_eq!(changed["devices_still_on_it"], Value::Null);
}

async fn what_is_no_tag_is_refused_by_field(place: Place) {
    let api = Api::start(place).await;
    let tags = format!("{}/tags", image(&api, "redis").await);
    for (body, pointer) in [
        (json!({ "tag": "" }), "/tag"),
        (json!({ "tag": "a b" }), "/tag"),
        (json!({ "tag": "a/b" }), "/tag"),
        (json!({ "tag": "x".repeat(129) }), "/tag"),
        (
            json!({ "tag": format!("7@sha256:{}", "0".repeat(64)) }),
            "/tag",
        ),
        (json!({ "tag": "7", "architecture": "" }), "/architecture"),
        (
            json!({ "tag": "7", "architecture": "ARM 64" }),
            "/architecture",
        ),
        (json!({ "tag": "7", "colour": 1 }), "/colour"),
        (
            json!({ "tag": "7", "is_deprecated": "yes" }),
            "/is_deprecated",
        ),
    ] {
        let refused = api.post(&tags, &api.admin, body.clone()).await.expect(422);
        assert_eq!(refused.pointers(), [pointer], "{body}");
    }
    let added = api
        .post(&tags, &api.admin, json!({ "tag": "7" }))
        .await
        .expect(201)
        .json();
    let one = format!("{tags}/{}", added["id"]);
    let other = Some(json!({ "tag": "8" }));
    let refused = api.call("PUT", &one, &api.admin, other).await.expect(422);
    assert_eq!(refused.pointers(), ["/tag"]);
    api.post("/api/v1/images/99/tags", &api.admin, json!({ "tag": "7" }))
        .await
        .expect(404);
    api.call("PUT", &format!("{tags}/x"), &api.admin, Some(json!({})))
        .await
        .expect(400);
}

async fn preview(api: &Api, body: Value) -> Value {
    let path = "/api/v1/policies/preview";
    api.post(path, &api.admin, body).await.expect(200).json()
}

async fn a_policy_is_shown_before_there_is_one(place: Place) {
    let api = Api::start(place).await;
    let north = json!({ "fleet": "north", "ring": "canary" });
    let images = [
        "redis:7",
        "redis-stack:7",
        &format!("redis@{}", crate::support::registry::digest("x")),
    ];
    device(&api, "a", north.clone(), &images[..2]).await;
    device(&api, "b", json!({ "fleet": "north" }), &["redis:7"]).await;
    device(&api, "c", json!({}), &["redis:8", "redis:7"]).await;
    api.enrol().await;
    let tags = format!("{}/tags", image(&api, "redis").await);
    api.post(&tags, &api.admin, json!({ "tag": "6" }))
        .await
        .expect(201);

    let all = preview(&api, json!({ "image_pattern": "redis:*" })).await;
    assert_eq!(
        all["images"],
        json!({ "count": 3, "first": ["redis:6", "redis:7", "redis:8"] })
    );
    let names = |answer: &Value| -> Vec<String> {
        let devices = answer["devices"]["first"].as_array().unwrap();
        devices
            .iter()
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&all), ["a", "b", "c"]);
    assert_eq!(all["devices"]["count"], 3);
    let mut found: Vec<_> = all["devices"]["first"][2]["images"]
        .as_array()
        .unwrap()
        .clone();
    found.sort_by_key(ToString::to_string);
    assert_eq!(found, ["redis:7", "redis:8"]);
    for (body, expected) in [
        (
            json!({ "image_pattern": "redis:7", "fleet": "north" }),
            vec!["a", "b"],
        ),
        (
            json!({ "image_pattern": "redis", "selector": { "ring": "canary" } }),
            vec!["a"],
        ),
        (
            json!({ "image_pattern": "redis", "selector": { "ring": "x" } }),
            vec![],
        ),
        (json!({ "image_pattern": "evil.example/redis" }), vec![]),
        (json!({ "image_pattern": "*" }), vec!["a", "b", "c"]),
    ] {
        assert_eq!(
            names(&preview(&api, body.clone()).await),
            expected,
            "{body}"
        );
    }
    let policies = api
        .get("/api/v1/policies", &api.admin)
        .await
        .expect(200)
        .json();
    assert_eq!(policies["items"], json!([]));
}

async fn c47_a_pattern_costs_no_more_than_it_is_long(place: Place) {
    let api = Api::start(place).await;
    let name = format!("reg.example/{}b", "a".repeat(200));
    device(&api, "a", json!({}), &[&format!("{name}:1")]).await;
    let answer = preview(
        &api,
        json!({ "image_pattern": format!("{}c", "*a".repeat(190)) }),
    );
    let limit = std::time::Duration::from_secs(5);
    let answer = tokio::time::timeout(limit, answer).await.unwrap();
    assert_eq!(answer["devices"]["count"], 0);
    for pattern in ["", "(a+)+$", "a b", &"a".repeat(401)] {
        for path in ["/api/v1/policies/preview", "/api/v1/policies"] {
            let mut body = json!({ "image_pattern": pattern });
            if path.ends_with("policies") {
                body["name"] = json!("p");
            }
            let refused = api.post(path, &api.admin, body).await.expect(422);
            assert_eq!(refused.pointers(), ["/image_pattern"], "{pattern}");
        }
    }
}
