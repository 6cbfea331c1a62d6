//! Every vendor's form, written here from the lists of its members.

use base64::Engine as _;
use serde_json::json;

use super::*;

const HEX: &str = "35c4a2c15539c6c1e4e5fa4e554dac323ad0107d8eb5c582d6ff386b383b7dce";

fn read(vendor: Vendor, body: &Value) -> Result<Vec<String>, String> {
    let pushes = vendor.pushes(body).map_err(|error| error.to_string())?;
    let word = |push: &Push| {
        let digest = push
            .digest
            .map_or(String::new(), |digest| format!("@{digest}"));
        let Push {
            repository, tag, ..
        } = push;
        format!(
            "{}/{}:{tag}{digest}",
            repository.registry(),
            repository.path()
        )
    };
    Ok(pushes.iter().map(word).collect())
}

/// Detected as its vendor's, and read as these pushes.
fn is(vendor: Vendor, body: &Value, expected: &[&str]) {
    assert_eq!(Vendor::detect(body), Some(vendor), "{body}");
    assert_eq!(read(vendor, body).unwrap(), expected, "{body}");
}

#[test]
fn docker_hub_says_no_digest_and_may_leave_the_namespace_out() {
    for (name, expected) in [
        ("acme/web", "docker.io/acme/web:v2"),
        ("redis", "docker.io/library/redis:v2"),
        ("library/redis", "docker.io/library/redis:v2"),
        // A name that could be taken for a host is none here.
        ("evil.example/web", "docker.io/evil.example/web:v2"),
    ] {
        let body = json!({
            "push_data": { "pushed_at": 1.7e9, "pusher": "x", "tag": "v2" },
            "repository": { "repo_name": name, "comment_count": "0", "is_private": true },
            "callback_url": "http://169.254.169.254/",
        });
        is(Vendor::DockerHub, &body, &[expected]);
    }
}

#[test]
fn github_names_owners_in_capitals_and_manifests_without_a_tag() {
    let body = |tag: &str| {
        json!({
            "action": "published",
            "registry_package": {
                "name": "Web", "namespace": "Acme", "package_type": "CONTAINER",
                "package_version": {
                    "version": format!("sha256:{HEX}"),
                    "container_metadata": { "tag": { "name": tag, "digest": format!("sha256:{HEX}") } },
                    "package_url": "ghcr.io/acme/web:v1",
                },
            },
        })
    };
    let expected = format!("ghcr.io/acme/web:v1@sha256:{HEX}");
    is(Vendor::Github, &body("v1"), &[expected.as_str()]);
    is(Vendor::Github, &body(""), &[]);
    let mut npm = body("v1");
    npm["registry_package"]["package_type"] = json!("npm");
    npm["registry_package"]["package_version"]["package_url"] = json!("https://npm.example");
    is(Vendor::Github, &npm, &[]);
    let mut old = body("v1");
    old["package"] = old["registry_package"].take();
    old.as_object_mut().unwrap().remove("registry_package");
    is(Vendor::Github, &old, &[expected.as_str()]);
}

#[test]
fn distribution_tells_of_blobs_and_pulls_too() {
    let event = |action: &str, media_type: &str, tag: Option<&str>| {
        json!({
            "id": "1", "action": action,
            "target": {
                "mediaType": media_type, "repository": "acme/web", "tag": tag,
                "digest": format!("sha256:{HEX}"),
            },
            "request": { "host": "reg.lan:5000" },
        })
    };
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let body = json!({ "events": [
        event("push", "application/octet-stream", None),
        event("push", manifest, None),
        event("pull", manifest, Some("1")),
        event("push", manifest, Some("1")),
        event("push", "application/vnd.oci.image.index.v1+json", Some("2")),
        event("push", manifest, Some("1")),
    ] });
    let expected = ["1", "2"].map(|tag| format!("reg.lan:5000/acme/web:{tag}@sha256:{HEX}"));
    is(Vendor::Distribution, &body, &[&expected[0], &expected[1]]);
}

#[test]
fn the_others_say_it_in_their_words() {
    let digest = format!("sha256:{HEX}");
    is(
        Vendor::Harbor,
        &json!({
            "type": "PUSH_ARTIFACT",
            "event_data": {
                "resources": [
                    { "digest": digest, "tag": "v1", "resource_url": "harbor.lan/acme/web:v1" },
                    { "digest": digest, "tag": "", "resource_url": "harbor.lan/acme/web@x" },
                ],
                "repository": { "repo_full_name": "acme/web" },
            },
        }),
        &[&format!("harbor.lan/acme/web:v1@{digest}")],
    );
    is(
        Vendor::Quay,
        &json!({ "docker_url": "quay.io/acme/web", "updated_tags": ["latest", "v1"] }),
        &["quay.io/acme/web:latest", "quay.io/acme/web:v1"],
    );
    is(
        Vendor::Acr,
        &json!({
            "id": "1", "action": "push",
            "target": { "repository": "acme/web", "tag": "v1", "digest": digest },
            "request": { "host": "acme.azurecr.io" },
        }),
        &[&format!("acme.azurecr.io/acme/web:v1@{digest}")],
    );
    is(
        Vendor::Ecr,
        &json!({
            "detail-type": "ECR Image Action", "account": "123456789012", "region": "eu-central-1",
            "detail": {
                "result": "SUCCESS", "action-type": "PUSH", "repository-name": "acme/web",
                "image-digest": digest, "image-tag": "v1",
            },
        }),
        &[&format!(
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com/acme/web:v1@{digest}"
        )],
    );
    let data = json!({
        "action": "INSERT", "digest": format!("europe-docker.pkg.dev/p/r/web@{digest}"),
        "tag": "europe-docker.pkg.dev/p/r/web:v1",
    });
    let data = base64::engine::general_purpose::STANDARD.encode(data.to_string());
    is(
        Vendor::Gar,
        &json!({ "message": { "data": data, "messageId": "1" }, "subscription": "s" }),
        &[&format!("europe-docker.pkg.dev/p/r/web:v1@{digest}")],
    );
    is(
        Vendor::Jfrog,
        &json!({
            "domain": "docker", "event_type": "pushed", "jpd_origin": "https://acme.jfrog.io/artifactory",
            "data": { "repo_key": "docker-local", "image_name": "acme/web", "tag": "v1", "sha256": HEX },
        }),
        &[&format!("acme.jfrog.io/docker-local/acme/web:v1@{digest}")],
    );
    for (body, expected) in [
        (
            json!({ "image": "ghcr.io/o/a:v1" }),
            "ghcr.io/o/a:v1".to_owned(),
        ),
        (
            json!({ "image": "redis", "tag": "7" }),
            "docker.io/library/redis:7".to_owned(),
        ),
        (
            json!({ "image": "redis" }),
            "docker.io/library/redis:latest".to_owned(),
        ),
        (
            json!({ "image": "redis:7", "digest": digest }),
            format!("docker.io/library/redis:7@{digest}"),
        ),
    ] {
        is(Vendor::Generic, &body, &[&expected]);
    }
}

#[test]
fn what_cannot_be_read_says_where() {
    for (vendor, body, at) in [
        (
            Vendor::DockerHub,
            json!({ "push_data": { "tag": "1" } }),
            "/repository/repo_name",
        ),
        (
            Vendor::DockerHub,
            json!({ "push_data": { "tag": 1 }, "repository": { "repo_name": "a/b" } }),
            "/push_data/tag",
        ),
        (
            Vendor::DockerHub,
            json!({ "push_data": { "tag": "a b" }, "repository": { "repo_name": "a/b" } }),
            "/repository/repo_name",
        ),
        (Vendor::Distribution, json!({ "events": {} }), "/events"),
        (
            Vendor::Distribution,
            json!({ "events": [{ "action": "push", "target": { "tag": "1", "repository": "a" } }] }),
            "/events/0/request/host",
        ),
        (
            Vendor::Quay,
            json!({ "docker_url": "quay.io/a/b" }),
            "/updated_tags",
        ),
        (
            Vendor::Gar,
            json!({ "message": { "data": "%" } }),
            "/message/data",
        ),
        (Vendor::Generic, json!({ "image": "UPPER CASE" }), "/image"),
        (
            Vendor::Generic,
            json!({ "image": "a", "digest": "md5:1" }),
            "/digest",
        ),
        (Vendor::Generic, json!([]), "/image"),
        (
            Vendor::Ecr,
            json!({ "detail": { "action-type": "PUSH", "image-tag": "1" } }),
            "/account",
        ),
    ] {
        let error = vendor.pushes(&body).unwrap_err();
        assert_eq!(error.pointer, at, "{body}: {error}");
    }
    assert_eq!(Vendor::detect(&json!({ "hello": "world" })), None);
    assert_eq!(Vendor::named("gitlab"), Some(Vendor::Distribution));
    assert_eq!(Vendor::named("nobody"), None);
}

#[test]
fn something_else_that_happened_is_no_push() {
    for (vendor, body) in [
        (Vendor::Acr, json!({ "action": "ping" })),
        (Vendor::Harbor, json!({ "type": "DELETE_ARTIFACT" })),
        (
            Vendor::Github,
            json!({ "zen": "Keep it logically awesome.", "hook_id": 1 }),
        ),
        (
            Vendor::Ecr,
            json!({ "detail": { "action-type": "DELETE", "image-tag": "1" } }),
        ),
        (Vendor::Jfrog, json!({ "event_type": "deleted" })),
        (Vendor::Distribution, json!({ "events": [] })),
    ] {
        assert_eq!(read(vendor, &body), Ok(Vec::new()), "{body}");
    }
}

#[test]
fn a_vendor_has_one_name_and_is_found_by_each_of_its_own() {
    for (name, vendor) in Vendor::ALL {
        assert_eq!(Vendor::named(name), Some(vendor));
        assert_eq!(Vendor::named(vendor.name()), Some(vendor));
    }
    assert_eq!(Vendor::Distribution.name(), "distribution");
}
