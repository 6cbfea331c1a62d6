//! Facts about who reaches what: every route with every principal.

use holdfast_api::http::{Entry, entries};
use holdfast_domain::principal::Permission;
use serde_json::json;

use crate::support::Place;
use crate::support::api::{Api, Device};

struct Cast {
    device: Device,
    other: Device,
    viewer: String,
    operator: String,
}

async fn cast(api: &Api) -> Cast {
    Cast {
        device: api.enrol().await,
        other: api.enrol().await,
        viewer: api.token("viewer").await,
        operator: api.token("operator").await,
    }
}

/// What each principal may get from a route: in the order anonymous, wrong token, the device, another
/// device, viewer, operator, admin. `None` is "let through": the handler's own answer.
fn expected(permission: Permission) -> [Option<u16>; 7] {
    match permission {
        Permission::Public => [None; 7],
        // The credential is not one of these tokens.
        Permission::OwnCredential => [Some(401); 7],
        Permission::OwnDevice => [
            Some(401),
            Some(401),
            None,
            Some(404),
            Some(403),
            Some(403),
            Some(403),
        ],
        Permission::Read => [Some(401), Some(401), Some(404), Some(404), None, None, None],
        Permission::Operate => [
            Some(401),
            Some(401),
            Some(404),
            Some(404),
            Some(403),
            None,
            None,
        ],
        Permission::Administer => [
            Some(401),
            Some(401),
            Some(404),
            Some(404),
            Some(403),
            Some(403),
            None,
        ],
    }
}

#[tokio::test]
async fn every_route_lets_through_exactly_whom_its_permission_names() {
    let api = Api::start(Place::sqlite()).await;
    let cast = cast(&api).await;
    let wrong = format!("hfo_{}", "0".repeat(64));
    let all = entries();
    assert!(all.len() > 20);
    for Entry {
        method,
        path,
        permission,
    } in all
    {
        if path == "/api/v1/enroll" {
            // A device's own token is a credential here; `enrolment` tells what it opens.
            continue;
        }
        let path = path
            .replace("{uuid}", &cast.device.uuid)
            .replace("{host}", "registry.example")
            .replace("{name}", "nowhere")
            .replace("{number}", "1")
            .replace("{id}", "99999")
            .replace("{tag_id}", "99999")
            .replace("{vendor}", "generic")
            .replace("{file}", "SHA256SUMS")
            .replace("{secret}", "guessed-guessed-guessed");
        let principals = [
            "",
            &wrong,
            &cast.device.token,
            &cast.other.token,
            &cast.viewer,
            &cast.operator,
            &api.admin,
        ];
        for (token, expected) in principals.into_iter().zip(expected(permission)) {
            // A removed device would end the walk: devices are removed elsewhere.
            if method == http::Method::DELETE && path.contains("/devices/") && expected.is_none() {
                continue;
            }
            let body = matches!(method.as_str(), "POST" | "PUT" | "PATCH").then(|| json!([]));
            let answer = api.call(method.as_str(), &path, token, body).await;
            let status = answer.status.as_u16();
            match expected {
                Some(expected) => assert_eq!(status, expected, "{method} {path} {token:.8}"),
                None => assert!(
                    !matches!(status, 401 | 403) && status < 500,
                    "{method} {path} {token:.8}: {status}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn tricks_with_the_token_are_not_let_through() {
    let api = Api::start(Place::sqlite()).await;
    let admin = api.admin.clone();
    let tricks: Vec<Vec<String>> = vec![
        vec![String::new()],
        vec!["Bearer".into()],
        vec!["Bearer ".into()],
        vec![format!("Basic {admin}")],
        vec![admin.clone()],
        vec![format!("Bearer {}", admin.to_uppercase())],
        vec![format!("Bearer {admin}x")],
        vec![format!("Bearer {}", &admin[..admin.len() - 1])],
        vec![format!("Bearer {admin}"), format!("Bearer {admin}")],
        vec![format!("Bearer {}", "hfo_".repeat(10_000))],
    ];
    for headers in tricks {
        let mut request = http::Request::builder()
            .uri("/api/v1/devices")
            .header("x-forwarded-for", "127.0.0.1")
            .header("x-http-method-override", "GET");
        for header in &headers {
            request = request.header("authorization", header);
        }
        let answer = api
            .send(request.body(axum::body::Body::empty()).unwrap())
            .await;
        assert_eq!(answer.status, 401, "{headers:?}");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    for path in [
        "//api/v1/devices",
        "/api/v1/devices/",
        "/api/v1//devices",
        "/api/v1/%64evices/..",
        "/API/v1/devices",
    ] {
        assert_eq!(api.get(path, &admin).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_revoked_or_expired_token_is_dead_at_once() {
    let api = Api::start(Place::sqlite()).await;
    let made = api
        .post(
            "/api/v1/tokens",
            &api.admin,
            json!({"name": "ci", "role": "viewer"}),
        )
        .await
        .expect(201)
        .json();
    let token = made["token"].as_str().unwrap();
    api.get("/api/v1/devices", token).await.expect(200);
    let path = format!("/api/v1/tokens/{}", made["id"]);
    api.call("DELETE", &path, &api.admin, None)
        .await
        .expect(204);
    api.get("/api/v1/devices", token).await.expect(401);
    api.call("DELETE", &path, &api.admin, None)
        .await
        .expect(404);
}

#[tokio::test]
async fn the_last_admin_token_stays() {
    let api = Api::start(Place::sqlite()).await;
    let refused = api
        .call("DELETE", "/api/v1/tokens/1", &api.admin, None)
        .await
        .expect(409);
    assert_eq!(refused.code(), "last_admin");
    api.token("admin").await;
    api.call("DELETE", "/api/v1/tokens/1", &api.admin, None)
        .await
        .expect(204);
    api.get("/api/v1/tokens", &api.admin).await.expect(401);
}

#[tokio::test]
async fn lists_of_tokens_and_keys_never_show_them() {
    let api = Api::start(Place::sqlite()).await;
    let token = api.token("viewer").await;
    let key = api.key(json!({"max_uses": 1})).await;
    for path in [
        "/api/v1/tokens",
        "/api/v1/enrolment-keys",
        "/api/v1/audit",
        "/api/v1/events",
    ] {
        let answer = api.get(path, &api.admin).await.expect(200);
        let text = String::from_utf8(answer.bytes).unwrap();
        assert!(!text.contains(&token) && !text.contains(&key), "{path}");
        assert!(!text.contains(&api.admin), "{path}");
    }
}

#[tokio::test]
async fn a_removed_device_is_locked_out_at_once() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    api.poll(&device, &[]).await.expect(200);
    api.call("DELETE", &device.path(""), &api.admin, None)
        .await
        .expect(204);
    api.poll(&device, &[]).await.expect(401);
    api.get(&device.path(""), &api.admin).await.expect(404);
    api.call("DELETE", &device.path(""), &api.admin, None)
        .await
        .expect(404);
}
