//! Facts about webhooks of registries: what arrives, who may send it, and what becomes of it.

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Answer, Api, WEBHOOK_SECRET, wait_for};
use crate::support::pushes::{Receiver, distribution, docker_hub, every_vendor, generic, send};
use crate::support::registry::digest;

crate::on_both_databases![
    pushes_of_tagged_manifests_are_recorded_once,
    every_row_of_the_table_holds_in_every_form,
    every_vendor_is_understood_by_name_and_by_form,
    what_cannot_be_read_is_told_in_the_senders_terms,
    c41_a_delivery_that_comes_a_thousand_times_is_one_rollout,
    what_every_vendor_may_get_wrong_is_told_and_begins_nothing,
    c42_a_delivery_that_is_replayed_changes_nothing,
    c44_a_name_that_looks_like_ours_needs_an_approval,
    a_test_changes_nothing,
];

const PATH: &str = "/api/v1/webhooks/distribution";

fn event(id: &str, action: &str, kind: &str, tag: Option<&str>) -> Value {
    let mut event = json!({"id": id, "timestamp": "2026-01-01T00:00:00Z", "action": action,
        "target": {"mediaType": kind, "repository": "demo/web", "digest": "sha256:00", "size": 1},
        "request": {"id": "r", "host": "127.0.0.1:5000", "method": "PUT"}});
    if let Some(tag) = tag {
        event["target"]["tag"] = tag.into();
    }
    event
}

/// What became of the only push of a delivery.
fn outcome(answer: &Answer) -> Value {
    let body = answer.json();
    let [one] = body["outcomes"].as_array().unwrap().as_slice() else {
        panic!("one outcome expected: {body}");
    };
    one.clone()
}

async fn pushes_of_tagged_manifests_are_recorded_once(place: Place) {
    let hooks = Receiver::start(place).await;
    let index = "application/vnd.oci.image.index.v1+json";
    let envelope = json!({"events": [
        event("1", "push", index, Some("1")),
        event("2", "push", "application/vnd.docker.distribution.manifest.v2+json", None),
        event("3", "push", "application/octet-stream", Some("1")),
        event("4", "pull", index, Some("1")),
        event("1", "push", index, Some("1")),
    ]});
    for _ in 0..2 {
        hooks.push("distribution", &envelope).await.expect(200);
    }
    let recorded = hooks.events("image.webhook_received").await;
    let [one] = recorded.as_slice() else {
        panic!("one event expected: {recorded:?}");
    };
    assert_eq!(one["subject"], "127.0.0.1:5000/demo/web:1");
}

/// A form, in which an image of Docker Hub is pushed; whether refusals are told by the status.
struct Form {
    vendor: &'static str,
    refuses: bool,
    body: fn(image: &str, tag: &str, run: u32) -> Value,
}

impl Form {
    /// Pushes, and answers the verdict, the refusal's name and whether the rollout was asked for.
    async fn push(
        &self,
        hooks: &Receiver,
        (image, tag): (&str, &str),
        run: u32,
    ) -> (String, Value, Value) {
        let answer = hooks.push(self.vendor, &(self.body)(image, tag, run)).await;
        if answer.status == 403 {
            assert!(self.refuses);
            let problem = answer.json();
            assert_eq!(problem["message"], problem["detail"]);
            assert!(problem["action_required"].is_string(), "{problem}");
            return ("refused".into(), problem["error"].clone(), Value::Null);
        }
        let outcome = outcome(&answer.expect(200));
        let error = outcome.get("error").cloned().unwrap_or_default();
        assert!(error.is_null() || !self.refuses, "{outcome}");
        let verdict = outcome["verdict"].as_str().unwrap().to_owned();
        (verdict, error, outcome["reason"].clone())
    }

    /// The same in one word: refused with this name, or this verdict.
    async fn verdict(&self, hooks: &Receiver, image: &str, tag: &str, run: u32) -> String {
        let (verdict, error, reason) = self.push(hooks, (image, tag), run).await;
        assert!(reason.is_string() || verdict == "refused", "{verdict}");
        error.as_str().map_or(verdict, str::to_owned)
    }
}

async fn every_row_of_the_table_holds_in_every_form(place: Place) {
    let hooks = Receiver::start(place).await;
    let forms = [
        Form {
            vendor: "docker_hub",
            refuses: true,
            body: |image, tag, run| {
                let mut body = docker_hub(image, tag);
                body["push_data"]["pushed_at"] = run.into();
                body
            },
        },
        Form {
            vendor: "generic",
            refuses: true,
            body: |image, tag, run| json!({ "image": image, "tag": tag, "run": run }),
        },
        Form {
            vendor: "distribution",
            refuses: false,
            body: |image, tag, run| distribution(&run.to_string(), "docker.io", image, tag),
        },
    ];
    for form in forms {
        let name = |what: &str| format!("{}/{what}", form.vendor);
        let images = hooks.items("/api/v1/images?limit=200").await.len();
        // Ours.
        let own = format!("iotistic/{}", form.vendor);
        assert_eq!(form.verdict(&hooks, &own, "1", 1).await, "internal");
        // Unknown: asked once for an image, counted up.
        let unknown = name("unknown");
        for (tag, times) in [("1", 1), ("2", 2)] {
            let verdict = form.verdict(&hooks, &unknown, tag, 1).await;
            assert_eq!(verdict, "Image not approved");
            let open = hooks.items("/api/v1/approval-requests?state=open").await;
            let about = |one: &&Value| one["image"] == unknown.as_str();
            let [one] = open.iter().filter(about).collect::<Vec<_>>()[..] else {
                panic!("one question expected: {open:?}");
            };
            assert_eq!((&one["times"], &one["tag"]), (&json!(times), &json!(tag)));
        }
        assert_eq!(hooks.items("/api/v1/images?limit=200").await.len(), images);
        // Pending and rejected: nothing is stored.
        for status in ["pending", "rejected"] {
            hooks.image(&name(status), status).await;
            let verdict = form.verdict(&hooks, &name(status), "1", 1).await;
            assert_eq!(verdict, "Image not approved", "{status}");
        }
        let open = hooks.items("/api/v1/approval-requests?state=open").await;
        assert!(open.iter().all(|one| one["image"] != name("pending")));
        // Approved: a new tag is added and not recommended, a known one is as it was.
        let path = hooks.image(&name("web"), "approved").await;
        for run in 1..=2 {
            assert_eq!(
                form.verdict(&hooks, &name("web"), "1", run).await,
                "approved"
            );
        }
        let tags = hooks.get(&path).await["tags"].clone();
        assert_eq!(tags.as_array().unwrap().len(), 1);
        assert_eq!(
            (&tags[0]["tag"], &tags[0]["is_recommended"]),
            (&json!("1"), &json!(false))
        );
        // Deprecated.
        let old = json!({ "tag": "0", "is_deprecated": true });
        let tags = format!("{path}/tags");
        hooks
            .api
            .post(&tags, &hooks.api.admin, old)
            .await
            .expect(201);
        assert_eq!(
            form.verdict(&hooks, &name("web"), "0", 1).await,
            "Tag deprecated"
        );
    }
    // Every push was judged in the log of events, and every rollout asked for that may begin.
    let count = async |kind: &str| hooks.events(kind).await.len();
    assert_eq!(count("image.webhook_received").await, 3 * 8);
    assert_eq!(count("image.webhook_rejected").await, 3 * 5);
    assert_eq!(count("image.webhook_approved").await, 3 * 3);
    assert_eq!(count("image.webhook_settled").await, 3 * 3);
    assert_eq!(count("image.tag.added").await, 3 * 2);
}

async fn every_vendor_is_understood_by_name_and_by_form(place: Place) {
    let hooks = Receiver::start(place).await;
    for (vendor, body, image) in every_vendor() {
        hooks.image(image, "approved").await;
        for path in [vendor, "docker-registry"] {
            // The second one is the same delivery, and answered as the first one was.
            let answer = hooks.push(path, &body).await.expect(200);
            let outcome = outcome(&answer);
            assert_eq!(
                (&outcome["image"], &outcome["tag"]),
                (&json!(image), &json!("v1"))
            );
            assert_eq!(outcome["verdict"], "approved");
        }
        // Whoever recorded it and sends it again, signed as it was, hears the same and moves nothing.
        let all = hooks.deliveries().await.len();
        let again = hooks.push(vendor, &body).await.expect(200).json();
        assert_eq!(again["outcomes"][0]["image"], image, "{vendor}");
        assert_eq!(hooks.deliveries().await.len(), all, "{vendor}");
    }
    assert_eq!(hooks.deliveries().await.len(), every_vendor().len());
    let received = hooks.events("image.webhook_received").await;
    assert_eq!(received.len(), every_vendor().len());
    hooks.push("nobody", &json!({})).await.expect(404);
    // Something else that happened is no push, and no failure.
    let ping = json!({ "zen": "Keep it logically awesome.", "hook_id": 1 });
    let headers = [
        ("x-holdfast-secret", WEBHOOK_SECRET),
        ("x-github-event", "ping"),
    ];
    let path = "/api/v1/webhooks/docker-registry";
    let answer = send(&hooks.api, path, &headers, ping.to_string().into()).await;
    let answer = answer.expect(200).json();
    assert_eq!(answer["reason"], "it tells of no push of a tag");
}

async fn what_cannot_be_read_is_told_in_the_senders_terms(place: Place) {
    let hooks = Receiver::start(place).await;
    for (vendor, body, pointer) in [
        (
            "docker_hub",
            json!({ "push_data": {} }),
            "/repository/repo_name",
        ),
        (
            "docker_hub",
            docker_hub("acme/web", "no tag"),
            "/repository/repo_name",
        ),
        ("generic", json!({ "tag": "1" }), "/image"),
        ("generic", json!({ "image": "a", "digest": "x" }), "/digest"),
        (
            "docker-registry",
            json!({ "image": "Not A Name" }),
            "/image",
        ),
        ("docker-registry", json!({ "hello": "world" }), "/image"),
    ] {
        for _ in 0..2 {
            let refused = hooks.push(vendor, &body).await.expect(422);
            assert_eq!(refused.pointers(), [pointer], "{body}");
        }
    }
    // Whoever repeats what gets no 2xx reads it in the body.
    let body =
        json!({ "events": [{ "action": "push", "target": { "tag": "1", "repository": "a" } }] });
    let answer = hooks.push("distribution", &body).await.expect(202).json();
    assert_eq!(answer["fault"]["pointer"], "/events/0/request/host");
    let stored = hooks.deliveries().await;
    assert_eq!(stored[0]["fault"]["pointer"], "/events/0/request/host");
    assert_eq!(stored.len(), 6);
    // What is no JSON at all is nobody's.
    for body in [&b"{"[..], b"", b"\xff\xfe", &b"[".repeat(100_000)] {
        let path = "/api/v1/webhooks/quay";
        let answer = hooks
            .api
            .call_raw("POST", path, WEBHOOK_SECRET, Some(body.to_vec()));
        assert_eq!(answer.await.expect(400).code(), "malformed");
    }
    assert_eq!(hooks.deliveries().await.len(), 6);
    assert_eq!(
        hooks.events("image.webhook_received").await,
        Vec::<Value>::new()
    );
}

async fn what_every_vendor_may_get_wrong_is_told_and_begins_nothing(place: Place) {
    let hooks = Receiver::start(place).await;
    // What is damaged, what is there instead, and where that is told.
    let faults = [
        ("docker_hub", "/push_data/tag", json!(7), ""),
        ("docker_hub", "/repository/repo_name", json!("A b"), ""),
        ("github", "/registry_package/namespace", Value::Null, ""),
        (
            "github",
            "/registry_package/name",
            json!("a b"),
            "/registry_package",
        ),
        ("distribution", "/events", json!({ "0": 1 }), ""),
        (
            "distribution",
            "/events/0/target/repository",
            json!(["a"]),
            "",
        ),
        ("gitlab", "/events/0/request/host", Value::Null, ""),
        ("harbor", "/event_data/resources", json!("x"), ""),
        (
            "harbor",
            "/event_data/resources/0/resource_url",
            Value::Null,
            "",
        ),
        ("quay", "/updated_tags", json!("v1"), ""),
        ("quay", "/updated_tags/0", json!({ "name": "v1" }), ""),
        ("quay", "/docker_url", json!(1), ""),
        ("acr", "/request/host", Value::Null, ""),
        ("acr", "/target/repository", json!("acme/../web"), ""),
        ("ecr", "/account", Value::Null, ""),
        ("ecr", "/detail/repository-name", json!(""), ""),
        ("gar", "/message/data", json!("no base64!"), ""),
        ("gar", "/message/data", json!("bm8ganNvbg=="), ""),
        ("jfrog", "/jpd_origin", Value::Null, ""),
        ("jfrog", "/data/tag", json!("no tag"), "/data/image_name"),
        ("generic", "/image", json!({}), ""),
        ("generic", "/tag", json!("-"), "/image"),
    ];
    for (n, (vendor, at, wrong, told_at)) in faults.iter().enumerate() {
        let mut all = every_vendor().into_iter();
        let (_, mut body, _) = all.find(|(name, ..)| name == vendor).unwrap();
        *body.pointer_mut(at).unwrap() = wrong.clone();
        // What has a name of its own is one delivery, whatever is in it.
        for name in ["/id", "/message/messageId", "/events/0/id"] {
            if let Some(id) = body.pointer_mut(name) {
                *id = json!(format!("delivery-{n}"));
            }
        }
        let told_at = if told_at.is_empty() { at } else { told_at };
        let answer = hooks.push(vendor, &body).await;
        let pointer = match answer.status.as_u16() {
            422 => answer.pointers().swap_remove(0),
            // Whoever would repeat a refusal reads it in the body.
            202 => answer.json()["fault"]["pointer"]
                .as_str()
                .unwrap()
                .to_owned(),
            status => panic!("{vendor} {at}: {status} {answer:?}"),
        };
        assert_eq!(pointer, *told_at, "{vendor} {at}");
    }
    for (name, ..) in every_vendor() {
        assert!(faults.iter().any(|(vendor, ..)| *vendor == name), "{name}");
        for body in [
            json!([]),
            json!("x"),
            Value::Null,
            json!(7),
            json!({ "a": {} }),
        ] {
            let status = hooks.push(name, &body).await.status.as_u16();
            assert!([200, 202, 422].contains(&status), "{name} {body}: {status}");
        }
        let path = format!("/api/v1/webhooks/{name}");
        for body in [&b"{"[..], b"", b"\xff", &b"[".repeat(100_000)] {
            let answer = hooks
                .api
                .call_raw("POST", &path, WEBHOOK_SECRET, Some(body.to_vec()));
            assert_eq!(answer.await.expect(400).code(), "malformed", "{name}");
        }
    }
    let received = hooks.events("image.webhook_received").await;
    assert_eq!(received, Vec::<Value>::new());
    let questions = hooks.items("/api/v1/approval-requests").await;
    assert_eq!(questions, Vec::<Value>::new());
}

async fn c41_a_delivery_that_comes_a_thousand_times_is_one_rollout(place: Place) {
    const TIMES: usize = 1_000;
    /// Connections that a sender opens side by side.
    const AT_ONCE: usize = 100;
    let hooks = Receiver::start(place).await;
    hooks.image("acme/web", "approved").await;
    let policy = json!({ "name": "all of acme", "image_pattern": "acme/*" });
    let path = "/api/v1/policies";
    let made = hooks.api.post(path, &hooks.api.admin, policy).await;
    made.expect(201);
    let device = hooks.api.enrol().await;
    hooks
        .api
        .registry
        .push("acme/web:1", "v1", &["linux/amd64"]);
    hooks.api.set(&device, "acme/web:1").await.expect(200);
    hooks
        .api
        .registry
        .push("acme/web:1", "v2", &["linux/amd64"]);
    let body = generic("acme/web", "1").to_string();
    let named = [
        ("x-holdfast-secret", WEBHOOK_SECRET),
        ("idempotency-key", "one"),
    ];
    let sent = futures_util::stream::iter(0..TIMES).map(async |n| {
        let is_named = n % 2 == 0;
        let headers = if is_named { &named[..] } else { &named[..1] };
        // Busy is an honest answer under so much at once; a sender comes again.
        loop {
            let path = "/api/v1/webhooks/generic";
            let answer = send(&hooks.api, path, headers, body.clone().into()).await;
            if ![429, 503].contains(&answer.status.as_u16()) {
                assert!([200, 202].contains(&answer.status.as_u16()), "{answer:?}");
                return (is_named, answer.json()["delivery"].as_i64().unwrap());
            }
            tokio::task::yield_now().await;
        }
    });
    let answers: Vec<(bool, i64)> = sent.buffer_unordered(AT_ONCE).collect().await;
    assert_eq!(answers.len(), TIMES);
    let numbers = |wanted: bool| {
        let some = answers.iter().filter(|(is_named, _)| *is_named == wanted);
        let numbers: std::collections::BTreeSet<i64> = some.map(|(_, number)| *number).collect();
        numbers.len()
    };
    assert_eq!(numbers(true), 1, "one delivery by its name");
    // On a slow machine the same body comes again after a minute, which is another delivery.
    assert!((1..5).contains(&numbers(false)), "{}", numbers(false));
    let done = async || {
        let all = hooks.deliveries().await;
        all.iter().all(|one| one["state"] == "done")
    };
    wait_for("all are done", done).await;
    for delivery in hooks.deliveries().await {
        assert_eq!(delivery["attempts"], 1, "{delivery}");
    }
    let rollouts = hooks.items("/api/v1/rollouts").await;
    let [one] = rollouts.as_slice() else {
        panic!("one rollout expected: {rollouts:?}");
    };
    assert_eq!(one["digest"], digest("v2").to_string());
    assert_eq!(hooks.events("image.rollout_created").await.len(), 1);
}

async fn c42_a_delivery_that_is_replayed_changes_nothing(place: Place) {
    let hooks = Receiver::start(place).await;
    let headers = [
        ("x-holdfast-secret", WEBHOOK_SECRET),
        ("x-github-delivery", "d-1"),
    ];
    let (_, body, image) = every_vendor().swap_remove(1);
    let body = body.to_string();
    let path = "/api/v1/webhooks/github";
    let first = send(&hooks.api, path, &headers, body.clone().into()).await;
    let first = first.expect(200).json();
    assert_eq!(first["outcomes"][0]["error"], "Image not approved");
    // Meanwhile it may run; what was captured before is answered as it was then.
    hooks.image(image, "approved").await;
    let settled = async || hooks.events("image.webhook_settled").await.len() == 1;
    wait_for("the push that had waited goes on", settled).await;
    let again = send(&hooks.api, path, &headers, body.into()).await;
    assert_eq!(again.expect(200).json(), first);
    let questions = hooks.items("/api/v1/approval-requests").await;
    assert_eq!(questions[0]["times"], 1);
    assert_eq!(hooks.events("image.webhook_received").await.len(), 1);
    assert_eq!(hooks.events("image.webhook_settled").await.len(), 1);
}

async fn c44_a_name_that_looks_like_ours_needs_an_approval(place: Place) {
    let hooks = Receiver::start(place).await;
    for image in [
        "evil.example/iotistic/agent",
        "evil.example:443/iotistic/agent",
        "iotistic-evil/agent",
        "iotisticagent",
        "library/iotistic",
        "docker.io.evil.example/iotistic/agent",
        "localhost/iotistic/agent",
        "x/iotistic/agent",
        // In capitals it is a host.
        "Iotistic/agent",
    ] {
        let refused = hooks.told(image, "1").await.expect(403);
        assert_eq!(refused.json()["error"], "Image not approved", "{image}");
    }
    // Docker Hub's form names images there, whatever the name looks like.
    let hub = docker_hub("evil.example/iotistic", "1");
    hooks.push("docker_hub", &hub).await.expect(403);
    for image in [
        "iotistic/Agent",
        "iotistic\u{200b}/agent",
        "i\u{3bf}tistic/agent",
        "iotistic/../agent",
    ] {
        hooks.told(image, "1").await.expect(422);
    }
    for image in [
        "iotistic/agent",
        "docker.io/iotistic/agent",
        "index.docker.io/iotistic/a/b",
    ] {
        let answer = hooks.told(image, "1").await.expect(200);
        assert_eq!(outcome(&answer)["verdict"], "internal", "{image}");
    }
}

async fn a_test_changes_nothing(place: Place) {
    let hooks = Receiver::start(place).await;
    let operator = hooks.api.token("operator").await;
    hooks.image("acme/web", "approved").await;
    let policy = json!({ "name": "all of acme", "image_pattern": "acme/*" });
    hooks
        .api
        .post("/api/v1/policies", &hooks.api.admin, policy)
        .await
        .expect(201);
    let viewer = hooks.api.token("viewer").await;
    let audit = hooks.items("/api/v1/audit").await;
    let events = hooks.event_count().await;
    let test = async |body: Value| {
        let path = "/api/v1/webhooks/test";
        hooks
            .api
            .post(path, &operator, body)
            .await
            .expect(200)
            .json()
    };
    let unknown = test(json!({ "image": "redis", "tag": "7" })).await;
    assert_eq!(unknown["verdict"], "unknown");
    assert_eq!(
        (&unknown["would_ask"], &unknown["error"]),
        (&json!(true), &json!("Image not approved"))
    );
    let known = test(json!({ "image": "docker.io/acme/web:v2" })).await;
    assert_eq!(
        (&known["verdict"], &known["tag"]),
        (&json!("approved"), &json!("v2"))
    );
    assert_eq!(
        (&known["would_add_tag"], &known["policy"]["name"]),
        (&json!(true), &json!("all of acme"))
    );
    assert_eq!(known["reason"], "no device's target names it");
    let own = test(json!({ "image": "iotistic/agent" })).await;
    assert_eq!(
        (&own["verdict"], &own["reason"]),
        (&json!("internal"), &json!("no policy is for it"))
    );
    let path = "/api/v1/webhooks/test";
    let refused = hooks
        .api
        .post(path, &operator, json!({ "image": "a", "digest": "x" }))
        .await;
    assert_eq!(refused.expect(422).pointers(), ["/digest"]);
    hooks
        .api
        .post(path, &viewer, json!({ "image": "a" }))
        .await
        .expect(403);
    assert_eq!(hooks.deliveries().await, Vec::<Value>::new());
    assert_eq!(
        hooks.items("/api/v1/approval-requests").await,
        Vec::<Value>::new()
    );
    assert_eq!(hooks.event_count().await, events);
    assert_eq!(hooks.items("/api/v1/audit").await, audit);
}

#[tokio::test]
async fn a_webhook_without_the_secret_is_refused_before_it_is_read() {
    let api = Api::start(Place::sqlite()).await;
    for token in ["", "wrong", &api.admin, &WEBHOOK_SECRET[1..]] {
        api.call_raw("POST", PATH, token, Some(b"{".to_vec()))
            .await
            .expect(401);
    }
    api.call_raw("POST", PATH, WEBHOOK_SECRET, Some(b"{".to_vec()))
        .await
        .expect(400);
    api.call_raw("POST", PATH, WEBHOOK_SECRET, Some(vec![b' '; 262_145]))
        .await
        .expect(413);
}

#[tokio::test]
async fn the_media_type_of_distribution_is_taken() {
    let api = Api::start(Place::sqlite()).await;
    let headers = [
        ("x-holdfast-secret", WEBHOOK_SECRET),
        (
            "content-type",
            "application/vnd.docker.distribution.events.v1+json",
        ),
    ];
    let body = br#"{"events":[]}"#.to_vec();
    send(&api, PATH, &headers, body).await.expect(200);
}
