//! Facts about images that may run.

use serde_json::json;

use crate::support::Place;
use crate::support::api::Api;

crate::on_both_databases![
    an_image_is_one_however_it_is_written,
    images_are_searched_and_counted,
    a_decision_is_written_down,
    what_is_no_image_is_refused_by_field,
];

const IMAGES: &str = "/api/v1/images";

async fn an_image_is_one_however_it_is_written(place: Place) {
    let api = Api::start(place).await;
    let body = json!({ "image_name": "portainer/portainer-ce" });
    let added = api.post(IMAGES, &api.admin, body).await.expect(201).json();
    assert_eq!(added["reference"], "portainer/portainer-ce");
    assert_eq!(added["namespace"], "portainer");
    assert_eq!(added["image_name"], "portainer-ce");
    assert_eq!(added["registry"], "docker.io");
    assert_eq!(added["approval_status"], "approved");
    for same in [
        json!({ "image_name": "portainer-ce", "namespace": "portainer" }),
        json!({ "image_name": "docker.io/portainer/portainer-ce" }),
        json!({ "image_name": "portainer/portainer-ce", "registry": "docker.io" }),
    ] {
        let refused = api.post(IMAGES, &api.admin, same).await.expect(409);
        assert_eq!(refused.code(), "known_image");
    }
    let other = json!({ "image_name": "portainer/portainer-ce", "registry": "ghcr.io" });
    let other = api.post(IMAGES, &api.admin, other).await.expect(201).json();
    assert_eq!(other["reference"], "ghcr.io/portainer/portainer-ce");
}

async fn images_are_searched_and_counted(place: Place) {
    let api = Api::start(place).await;
    for (name, category, status) in [
        ("redis", "database", "approved"),
        ("postgres", "database", "pending"),
        ("acme/100%_web", "web", "approved"),
        ("acme/web", "web", "rejected"),
    ] {
        let name = name.replace("100%_", "x");
        let body = json!({
            "image_name": name, "category": category, "approval_status": status,
            "description": if name == "acme/xweb" { "100% Ours" } else { "" },
        });
        api.post(IMAGES, &api.admin, body).await.expect(201);
    }
    let names = async |query: &str| {
        let page = api.get(&format!("{IMAGES}?{query}"), &api.admin).await;
        let page = page.expect(200).json();
        let items = page["items"].as_array().unwrap().clone();
        let name = |item: &serde_json::Value| item["reference"].as_str().unwrap().to_owned();
        items.iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(names("category=database").await, ["redis", "postgres"]);
    assert_eq!(names("status=approved").await, ["redis", "acme/xweb"]);
    assert_eq!(names("search=ACME").await, ["acme/xweb", "acme/web"]);
    // A percent sign is one, not any text.
    assert_eq!(names("search=100%25").await, ["acme/xweb"]);
    assert_eq!(names("search=1%25O").await, Vec::<String>::new());
    assert_eq!(names("limit=1").await, ["redis"]);
    let counts = api.get("/api/v1/images/categories", &api.admin).await;
    assert_eq!(
        counts.expect(200).json(),
        json!([{ "category": "database", "count": 2 }, { "category": "web", "count": 2 }])
    );
}

async fn a_decision_is_written_down(place: Place) {
    let api = Api::start(place).await;
    let body = json!({ "image_name": "redis", "approval_status": "pending" });
    let added = api.post(IMAGES, &api.admin, body).await.expect(201).json();
    assert_eq!(added["decided_by"], json!(null));
    let path = format!("{IMAGES}/{}", added["id"]);
    let body = json!({ "approval_status": "rejected", "category": "database" });
    let changed = api.call("PUT", &path, &api.admin, Some(body)).await;
    let changed = changed.expect(200).json();
    assert_eq!(changed["approval_status"], "rejected");
    assert!(changed["decided_by"].is_string() && changed["decided_at"].is_string());
    assert_eq!(api.get(&path, &api.admin).await.expect(200).json(), changed);
    let viewer = api.token("viewer").await;
    api.call("DELETE", &path, &viewer, None).await.expect(403);
    api.call("DELETE", &path, &api.admin, None)
        .await
        .expect(204);
    api.get(&path, &api.admin).await.expect(404);
    let audit = "/api/v1/audit?subject=docker.io%2Flibrary%2Fredis";
    let audit = api.get(audit, &api.admin).await.expect(200).json();
    let rows = audit["items"].as_array().unwrap();
    let actions: Vec<_> = rows
        .iter()
        .map(|row| row["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["image.remove", "image.change", "image.add"]);
    assert_eq!(rows[1]["before"]["approval"], "pending");
    assert_eq!(rows[1]["after"]["approval"], "rejected");
}

async fn what_is_no_image_is_refused_by_field(place: Place) {
    let api = Api::start(place).await;
    for (body, pointer) in [
        (json!({ "image_name": "redis:7" }), "/image_name"),
        (json!({ "image_name": "Not a name" }), "/image_name"),
        (
            json!({ "image_name": "a/b", "namespace": "c" }),
            "/namespace",
        ),
        (
            json!({ "image_name": "a", "approval_status": "maybe" }),
            "/approval_status",
        ),
        (
            json!({ "image_name": "a", "category": "x".repeat(101) }),
            "/category",
        ),
        (json!({ "image_name": "a", "colour": 1 }), "/colour"),
    ] {
        let refused = api.post(IMAGES, &api.admin, body.clone()).await.expect(422);
        assert_eq!(refused.pointers(), [pointer], "{body}");
    }
    api.get(&format!("{IMAGES}?status=maybe"), &api.admin)
        .await
        .expect(422);
}
