//! Fault C16: every route that takes a document or a parameter is sent wrong ones, made from the OpenAPI document.
//!
//! An answer is a success or a problem of the sender's; never a fault of the server's, on either database.

use std::collections::BTreeMap;

use axum::body::Body;
use http::{Method, Request, header};
use serde_json::{Map, Value, json};

use crate::support::Place;
use crate::support::api::{Api, Device, document, target};

crate::on_both_databases![
    c16_wrong_documents_are_the_senders_problem_on_every_route,
    c16_wrong_parameters_are_the_senders_problem_on_every_route,
];

/// Below this the example of a schema ends: recursive ones would not.
const DEEPEST: usize = 8;
/// Stands for a text in an example, and is replaced by what JSON texts cannot be made of here.
const MARK: &str = "mark-of-the-test";

/// What is put in the place of each part of a document.
fn wrongs() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(""),
        json!("a\u{0}b"),
        json!("\u{7f}\u{202e}\u{fffe}\u{10ffff}"),
        json!("'; drop table devices; --"),
        json!("x".repeat(5_000)),
        json!([]),
        json!([[[]]]),
        json!({}),
        json!({"a\u{0}b": "c"}),
        json!({"": {"": null}}),
    ]
}

/// What is put in the place of a marked text, as bytes.
const RAW: [&[u8]; 8] = [
    br#""\ud800""#,
    br#""\udc00\ud800""#,
    b"\"\xff\xfe\"",
    b"\"\x00\"",
    b"NaN",
    b"1e999",
    b"99999999999999999999999999999999",
    br#"1,"zz":2,"zz":3"#,
];

/// A document that fits the schema, as far as types go.
fn example(schema: &Value, depth: usize) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        let at = reference.strip_prefix('#').unwrap();
        return example(document().pointer(at).unwrap(), depth);
    }
    if let Some(first) = schema["enum"].as_array().and_then(|all| all.first()) {
        return first.clone();
    }
    for many in ["oneOf", "anyOf", "allOf"] {
        if let Some(first) = schema[many].as_array().and_then(|all| all.first()) {
            return example(first, depth);
        }
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds[0].as_str(),
        kind => kind.as_str(),
    };
    match kind {
        Some("object") => {
            let mut members = Map::new();
            if depth < DEEPEST {
                for (name, member) in schema["properties"].as_object().into_iter().flatten() {
                    members.insert(name.clone(), example(member, depth + 1));
                }
                if schema["additionalProperties"].is_object() {
                    let member = example(&schema["additionalProperties"], depth + 1);
                    members.insert("1".to_owned(), member);
                }
            }
            members.into()
        }
        Some("array") if depth < DEEPEST => json!([example(&schema["items"], depth + 1)]),
        Some("array") => json!([]),
        Some("integer" | "number") => json!(1),
        Some("boolean") => json!(false),
        _ => json!(MARK),
    }
}

/// The pointers to every part of a document.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(items) => {
            for (position, item) in items.iter().enumerate() {
                places(item, &format!("{at}/{position}"), found);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                places(member, &format!("{at}/{name}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Every wrong document that is made of a good one.
fn bodies(good: &Value) -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = [
        &b""[..],
        b"{",
        b"null",
        b"\"\"",
        b"[]",
        b"{}",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b"{} {}",
        br#"{"":{}}"#,
    ]
    .map(<[u8]>::to_vec)
    .into();
    bodies.push(good.to_string().into_bytes());
    let text = good.to_string();
    if let Some(inside) = text.strip_prefix('{') {
        // Every member twice.
        bodies.push(format!("{{{},{inside}", inside.trim_end_matches('}')).into_bytes());
    }
    let mut all = Vec::new();
    places(good, "", &mut all);
    for place in all {
        for wrong in wrongs() {
            let mut body = good.clone();
            *body.pointer_mut(&place).unwrap() = wrong;
            bodies.push(body.to_string().into_bytes());
        }
        for raw in RAW {
            let mut body = good.clone();
            *body.pointer_mut(&place).unwrap() = json!("raw-of-the-test");
            bodies.push(replace(&body.to_string(), "\"raw-of-the-test\"", raw));
        }
        let mut body = good.clone();
        if let Some(members) = body.pointer_mut(&place).and_then(Value::as_object_mut) {
            members.insert("unknown".to_owned(), json!("x"));
            bodies.push(body.to_string().into_bytes());
        }
    }
    bodies
}

fn replace(text: &str, mark: &str, raw: &[u8]) -> Vec<u8> {
    let (before, after) = text.split_once(mark).unwrap();
    [before.as_bytes(), raw, after.as_bytes()].concat()
}

/// A server in which the paths of the document lead to something.
struct World {
    api: Api,
    device: Device,
    key: String,
}

impl World {
    async fn make(place: Place) -> Self {
        let api = Api::start(place).await;
        let device = api.enrol().await;
        let key = api.key(json!({})).await;
        api.registry.push("nginx:1", "v1", &["linux/amd64"]);
        api.set(&device, "nginx:1").await.expect(200);
        for (path, body) in [
            ("/fleets", json!({"name": "roofs"})),
            ("/images", json!({"image_name": "nginx"})),
            (
                "/policies",
                json!({"name": "p", "image_pattern": "redis:*"}),
            ),
        ] {
            let path = format!("/api/v1{path}");
            api.post(&path, &api.admin, body).await.expect(201);
        }
        let release = "/api/v1/fleets/roofs/target-state";
        let made = api.call("PUT", release, &api.admin, Some(target("nginx:1")));
        assert!(made.await.status.is_success());
        let tag = json!({"tag": "1"});
        api.post("/api/v1/images/1/tags", &api.admin, tag)
            .await
            .expect(201);
        Self { api, device, key }
    }

    /// A path of the document with parts that exist.
    fn path(&self, pattern: &str) -> String {
        let parts = BTreeMap::from([
            ("{uuid}", &*self.device.uuid),
            ("{name}", "roofs"),
            ("{host}", "ghcr.io"),
            ("{order}", "pause"),
            ("{vendor}", "harbor"),
            ("{secret}", crate::support::api::WEBHOOK_SECRET),
        ]);
        let parts = pattern.split('/').map(|part| {
            let known = parts.get(part).copied();
            known.unwrap_or(if part.starts_with('{') { "1" } else { part })
        });
        parts.collect::<Vec<_>>().join("/")
    }

    /// Who may ask for this.
    fn token(&self, pattern: &str, method: &str) -> &str {
        match (pattern.rsplit('/').next().unwrap_or_default(), method) {
            ("enroll", _) => &self.key,
            ("current-state", "put") | ("state" | "pull-tokens", _) => &self.device.token,
            _ if pattern.starts_with("/api/v1/webhooks/")
                && !pattern.contains("deliveries")
                && !pattern.ends_with("/test") =>
            {
                crate::support::api::WEBHOOK_SECRET
            }
            _ => &self.api.admin,
        }
    }
}

fn operations() -> Vec<(String, String, &'static Value)> {
    let paths = document()["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        let of_path = item.as_object().unwrap().iter();
        of_path.map(move |(method, operation)| (path.clone(), method.clone(), operation))
    });
    all.collect()
}

async fn c16_wrong_documents_are_the_senders_problem_on_every_route(place: Place) {
    let world = World::make(place).await;
    let (mut routes, mut refused) = (0, 0);
    for (pattern, method, operation) in operations() {
        let content = &operation["requestBody"]["content"];
        let Some((kind, media)) = content.as_object().and_then(|all| all.iter().next()) else {
            continue;
        };
        routes += 1;
        let good = match kind.as_str() {
            "application/json" if media["schema"].as_object().unwrap().is_empty() => {
                json!({"image": "nginx", "tag": "1", "digest": MARK})
            }
            "application/json" => example(&media["schema"], 0),
            _ => json!({"services": {"web": {"image": "nginx:1", "ports": ["80:80"]}}}),
        };
        let path = world.path(&pattern);
        for body in bodies(&good) {
            let shown = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
            let request = Request::builder()
                .method(Method::from_bytes(method.to_uppercase().as_bytes()).unwrap())
                .uri(&path)
                .header(
                    header::AUTHORIZATION,
                    format!("Bearer {}", world.token(&pattern, &method)),
                )
                .header(header::CONTENT_TYPE, kind);
            // The client checks that refusals are problems, and that the document knows the answer.
            let answer = world
                .api
                .send(request.body(Body::from(body)).unwrap())
                .await;
            let status = answer.status.as_u16();
            assert!(status < 500, "{method} {path} {status}: {shown}");
            assert!(status != 401, "{method} {path}: not asked as the right one");
            refused += usize::from(status >= 400);
        }
    }
    assert!(routes > 30, "{routes} routes take a document");
    assert!(refused > 100 * routes / 2, "only {refused} were refused");
}

/// Values of a parameter, as they stand in a request's first line.
const VALUES: [&str; 18] = [
    "",
    "0",
    "-1",
    "1.5",
    "99999999999999999999",
    "9223372036854775807",
    "%00",
    "a%00b",
    "%ff%fe",
    "%ed%a0%80",
    "%f4%90%80%80",
    "%27;drop%20table%20devices;--",
    "%25_%5c",
    "%e2%80%ae%f0%9f%92%a9",
    "%2e%2e%2f%2e%2e",
    "NaN",
    "true",
    "x=y",
];

async fn c16_wrong_parameters_are_the_senders_problem_on_every_route(place: Place) {
    let world = World::make(place).await;
    let mut asked = 0;
    for (pattern, method, operation) in operations() {
        // What only reads: nothing that a wrong value happens to name is lost. Streams do not end.
        if method != "get" || pattern.ends_with("/stream") {
            continue;
        }
        let token = world.token(&pattern, &method);
        let long = "x".repeat(3_000);
        for value in VALUES.into_iter().chain([long.as_str()]) {
            let mut paths = Vec::new();
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let name = parameter["name"].as_str().unwrap();
                match parameter["in"].as_str() {
                    Some("query") => {
                        let path = world.path(&pattern);
                        paths.push(format!("{path}?{name}={value}"));
                        paths.push(format!("{path}?{name}={value}&{name}={value}"));
                    }
                    Some("path") if !value.is_empty() => {
                        let part = format!("{{{name}}}");
                        paths.push(world.path(&pattern.replace(&part, value)));
                    }
                    _ => {}
                }
            }
            for path in paths {
                asked += 1;
                let answer = world.api.get(&path, token).await;
                let status = answer.status.as_u16();
                assert!(status < 500, "{path} {status}");
            }
        }
    }
    assert!(asked > 500, "only {asked} were asked");
}
