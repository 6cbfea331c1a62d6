//! Facts about the questions whether images may run: asked by pushes and people, decided once.

use std::collections::BTreeSet;

use holdfast_api::store::images;
use holdfast_proto::image::Repository;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Answer, wait_for};
use crate::support::pushes::{HEX, Receiver};
use crate::support::registry::digest;

crate::on_both_databases![
    an_approval_sets_the_push_free_that_waited,
    a_rejected_image_is_not_asked_for_again,
    an_image_has_one_open_question_however_many_ask,
    c45_two_approvers_at_once_decide_once,
    c45_whoever_may_not_decide_decides_nothing,
    two_people_are_needed_where_that_is_configured,
    c46_an_approval_is_for_the_content_that_was_seen,
    many_are_decided_each_by_itself,
    a_person_may_ask_before_anybody_pushes,
    a_decision_about_the_image_closes_its_question,
];

const REQUESTS: &str = "/api/v1/approval-requests";

async fn say(hooks: &Receiver, token: &str, id: &Value, action: &str, body: Value) -> Answer {
    let path = format!("{REQUESTS}/{id}/{action}");
    hooks.api.post(&path, token, body).await
}

/// Pushes an image that nobody knows; answers the number of the question.
async fn asked(hooks: &Receiver, image: &str, tag: &str) -> Value {
    hooks.told(image, tag).await.expect(403);
    let open = hooks.items(&format!("{REQUESTS}?state=open")).await;
    let mut about = open.into_iter().filter(|one| one["image"] == image);
    about.next().unwrap()["id"].clone()
}

async fn settled(hooks: &Receiver, count: usize) {
    let condition = async || hooks.events("image.webhook_settled").await.len() == count;
    wait_for("the pushes that had waited went on", condition).await;
}

async fn an_approval_sets_the_push_free_that_waited(place: Place) {
    let hooks = Receiver::start(place).await;
    let admin = hooks.api.admin.clone();
    let refused = hooks.told("acme/web", "1").await.expect(403).json();
    assert_eq!(refused["error"], "Image not approved");
    assert_eq!(
        refused["message"],
        "acme/web is not among the images that may run"
    );
    let open = hooks.items(REQUESTS).await;
    let [one] = open.as_slice() else {
        panic!("one question expected: {open:?}");
    };
    assert_eq!(
        (&one["image"], &one["tag"], &one["source"]),
        (&json!("acme/web"), &json!("1"), &json!("generic"))
    );
    let action = refused["action_required"].as_str().unwrap();
    assert!(
        action.contains(&format!("{REQUESTS}/{}/approve", one["id"])),
        "{action}"
    );

    let note = json!({ "note": "ours" });
    let decided = say(&hooks, &admin, &one["id"], "approve", note)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&decided["state"], &decided["note"]),
        (&json!("approved"), &json!("ours"))
    );
    assert_eq!(decided["decided_by"], "first start (token 1)");
    settled(&hooks, 1).await;
    let path = format!("/api/v1/webhooks/deliveries/{}", decided["delivery"]);
    let delivery = hooks.get(&path).await;
    assert_eq!(
        (&delivery["vendor"], &delivery["secret"]),
        (&json!("approval"), &Value::Null)
    );
    assert_eq!(delivery["outcomes"][0]["verdict"], "approved");
    // The image is known by it, and the tag.
    let found = hooks.items("/api/v1/images?search=acme").await;
    assert_eq!(found[0]["approval_status"], "approved");
    let image = hooks
        .get(&format!("/api/v1/images/{}", found[0]["id"]))
        .await;
    assert_eq!(image["tags"][0]["tag"], "1");
    assert_eq!(image["tags"][0]["is_recommended"], false);
    hooks.told("acme/web", "2").await.expect(200);
    // The push was received once.
    let of_first = hooks.events("image.webhook_received").await;
    let of_first = of_first
        .iter()
        .filter(|one| one["subject"] == "docker.io/acme/web:1");
    assert_eq!(of_first.count(), 1);
    let audit = hooks
        .items(&format!("/api/v1/audit?subject={}", one["id"]))
        .await;
    let actions: Vec<_> = audit
        .iter()
        .map(|row| row["action"].as_str().unwrap())
        .collect();
    assert!(
        actions.starts_with(&["approval.approve", "approval.ask"]),
        "{actions:?}"
    );
}

async fn a_rejected_image_is_not_asked_for_again(place: Place) {
    let hooks = Receiver::start(place).await;
    let admin = hooks.api.admin.clone();
    let id = asked(&hooks, "acme/web", "1").await;
    let decided = say(&hooks, &admin, &id, "reject", json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&decided["state"], &decided["delivery"]),
        (&json!("rejected"), &Value::Null)
    );
    let refused = hooks.told("acme/web", "2").await.expect(403).json();
    assert_eq!(refused["message"], "acme/web was rejected");
    assert_eq!(hooks.items(REQUESTS).await.len(), 1);
    for action in ["approve", "reject"] {
        let late = say(&hooks, &admin, &id, action, json!({}))
            .await
            .expect(409);
        assert_eq!(late.code(), "decided");
    }
    assert_eq!(
        hooks.events("image.webhook_settled").await,
        Vec::<Value>::new()
    );
    let unknown = json!(99);
    say(&hooks, &admin, &unknown, "approve", json!({}))
        .await
        .expect(404);
    let note = json!({ "note": "x".repeat(1_001) });
    let long = say(&hooks, &admin, &id, "approve", note).await.expect(422);
    assert_eq!(long.pointers(), ["/note"]);
    let extra = say(&hooks, &admin, &id, "approve", json!({ "notes": 1 }))
        .await
        .expect(422);
    assert_eq!(extra.pointers(), ["/notes"]);
    hooks
        .api
        .get(&format!("{REQUESTS}?state=maybe"), &admin)
        .await
        .expect(422);
}

async fn an_image_has_one_open_question_however_many_ask(place: Place) {
    let hooks = Receiver::start(place).await;
    let tags: Vec<String> = (0..30).map(|n| format!("v{n}")).collect();
    let told = tags.iter().map(|tag| hooks.told("acme/web", tag));
    let answers = futures_util::future::join_all(told).await;
    // 202: it took longer than an answer waits.
    assert!(
        answers
            .iter()
            .all(|one| matches!(one.status.as_u16(), 202 | 403))
    );
    let all = async || hooks.events("image.webhook_rejected").await.len() == 30;
    wait_for("all are judged", all).await;
    let open = hooks.items(REQUESTS).await;
    assert_eq!(open.len(), 1, "{open:?}");
    assert_eq!(open[0]["times"], 30);
    assert!(tags.contains(&open[0]["tag"].as_str().unwrap().to_owned()));
}

async fn c45_two_approvers_at_once_decide_once(place: Place) {
    let hooks = Receiver::start(place).await;
    let (admin, other) = (hooks.api.admin.clone(), hooks.api.token("admin").await);
    for round in 0..5 {
        let image = format!("acme/web{round}");
        let id = asked(&hooks, &image, "1").await;
        let words = (0..20).map(|n| {
            let token = if n % 2 == 0 { &admin } else { &other };
            let action = if n % 3 == 0 { "reject" } else { "approve" };
            say(&hooks, token, &id, action, json!({}))
        });
        let answers = futures_util::future::join_all(words).await;
        let decided: Vec<_> = answers.iter().filter(|one| one.status == 200).collect();
        assert_eq!(decided.len(), 1, "{answers:?}");
        for late in answers.iter().filter(|one| one.status != 200) {
            assert!(matches!(late.status.as_u16(), 409 | 503), "{late:?}");
        }
        // What was decided is what holds.
        let state = decided[0].json()["state"].clone();
        let found = hooks.items(&format!("/api/v1/images?search={image}")).await;
        assert_eq!(found[0]["approval_status"], state);
        let freed = hooks.items("/api/v1/webhooks/deliveries?limit=200").await;
        let freed = freed.iter().filter(|one| {
            one["vendor"] == "approval" && one["delivery"] == decided[0].json()["delivery"]
        });
        assert_eq!(freed.count(), usize::from(state == "approved"));
    }
}

async fn c45_whoever_may_not_decide_decides_nothing(place: Place) {
    let hooks = Receiver::start(place).await;
    let id = asked(&hooks, "acme/web", "1").await;
    let device = hooks.api.enrol().await.token;
    let wrong = [
        (String::new(), 401),
        (crate::support::api::WEBHOOK_SECRET.to_owned(), 401),
        (device, 404),
        (hooks.api.token("viewer").await, 403),
        (hooks.api.token("operator").await, 403),
    ];
    for (token, status) in wrong {
        for action in ["approve", "reject"] {
            say(&hooks, &token, &id, action, json!({}))
                .await
                .expect(status);
        }
        let many = json!({ "ids": [id], "action": "approve" });
        let path = format!("{REQUESTS}/bulk");
        hooks.api.post(&path, &token, many).await.expect(status);
    }
    let found = hooks.get(&format!("{REQUESTS}/{id}")).await;
    assert_eq!(found["state"], "open");
}

async fn two_people_are_needed_where_that_is_configured(place: Place) {
    let hooks = Receiver::start_with(place, |mut settings| {
        settings.pushes.two_person = true;
        settings
    })
    .await;
    let (one, two) = (hooks.api.admin.clone(), hooks.api.token("admin").await);
    let id = asked(&hooks, "acme/web", "1").await;
    let first = say(&hooks, &one, &id, "approve", json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&first["state"], &first["delivery"]),
        (&json!("open"), &Value::Null)
    );
    assert_eq!(first["approvals"], json!(["first start (token 1)"]));
    let same = say(&hooks, &one, &id, "approve", json!({}))
        .await
        .expect(409);
    assert_eq!(same.code(), "same_person");
    hooks.told("acme/web", "1").await.expect(403);
    let second = say(&hooks, &two, &id, "approve", json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(second["state"], "approved");
    assert_eq!(second["approvals"].as_array().unwrap().len(), 2);
    settled(&hooks, 1).await;
    // One who approves twenty times at once is still one.
    let id = asked(&hooks, "acme/other", "1").await;
    let words = (0..20).map(|_| say(&hooks, &one, &id, "approve", json!({})));
    let answers = futures_util::future::join_all(words).await;
    assert_eq!(
        answers.iter().filter(|answer| answer.status == 200).count(),
        1
    );
    assert_eq!(
        hooks.get(&format!("{REQUESTS}/{id}")).await["state"],
        "open"
    );
    // Nor is there a way around by the image itself.
    let body = json!({ "image_name": "acme/third" });
    let refused = hooks
        .api
        .post("/api/v1/images", &one, body)
        .await
        .expect(409);
    assert_eq!(refused.code(), "two_person");
    let path = hooks.image("acme/third", "pending").await;
    let body = json!({ "approval_status": "approved" });
    let refused = hooks
        .api
        .call("PUT", &path, &one, Some(body))
        .await
        .expect(409);
    assert_eq!(refused.code(), "two_person");
    assert_eq!(hooks.get(&path).await["approval_status"], "pending");
    // To reject, one is enough.
    say(&hooks, &one, &id, "reject", json!({}))
        .await
        .expect(200);
}

async fn c46_an_approval_is_for_the_content_that_was_seen(place: Place) {
    let hooks = Receiver::start_with(place, |mut settings| {
        settings.pushes.two_person = true;
        settings
    })
    .await;
    let (one, two) = (hooks.api.admin.clone(), hooks.api.token("admin").await);
    let push = async |digest: &str| {
        let body = json!({ "image": "acme/web:1", "digest": digest });
        hooks.push("generic", &body).await.expect(403);
    };
    let (seen, other) = (format!("sha256:{HEX}"), digest("other").to_string());
    push(&seen).await;
    let id = hooks.items(REQUESTS).await[0]["id"].clone();
    let word = json!({ "digest": seen });
    say(&hooks, &one, &id, "approve", word.clone())
        .await
        .expect(200);
    // The tag is pushed anew: who approved before did not approve this.
    push(&other).await;
    let now = hooks.get(&format!("{REQUESTS}/{id}")).await;
    assert_eq!(
        (&now["digest"], &now["approvals"]),
        (&json!(other), &json!([]))
    );
    let stale = say(&hooks, &two, &id, "approve", word.clone())
        .await
        .expect(409);
    assert_eq!(stale.code(), "other_content");
    let stale = say(&hooks, &two, &id, "reject", word).await.expect(409);
    assert_eq!(stale.code(), "other_content");
    for token in [&one, &two] {
        say(&hooks, token, &id, "approve", json!({ "digest": other }))
            .await
            .expect(200);
    }
    let approved = hooks
        .api
        .app
        .store
        .read(move |tx| {
            let repository: Repository = "acme/web".parse().unwrap();
            let image = images::named(tx, &repository)?.unwrap();
            let of = [HEX, other.strip_prefix("sha256:").unwrap()].map(|hex| {
                let digest = format!("sha256:{hex}").parse().unwrap();
                images::is_digest_approved(tx, image.id, &digest)
            });
            of.into_iter().collect::<Result<Vec<_>, _>>()
        })
        .await
        .unwrap();
    assert_eq!(approved, [false, true]);
}

async fn many_are_decided_each_by_itself(place: Place) {
    let hooks = Receiver::start(place).await;
    let admin = hooks.api.admin.clone();
    let mut ids = Vec::new();
    for image in ["acme/a", "acme/b", "acme/c"] {
        ids.push(asked(&hooks, image, "1").await);
    }
    say(&hooks, &admin, &ids[1], "reject", json!({}))
        .await
        .expect(200);
    let path = format!("{REQUESTS}/bulk");
    let body =
        json!({ "ids": [ids[0], ids[1], 99, ids[2], ids[2]], "action": "approve", "note": "all" });
    let answer = hooks.api.post(&path, &admin, body).await.expect(200).json();
    let items = answer["items"].as_array().unwrap();
    let statuses: Vec<_> = items
        .iter()
        .map(|one| one["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [200, 409, 404, 200, 409]);
    assert_eq!(items[0]["request"]["note"], "all");
    assert!(
        items[1]["detail"].as_str().unwrap().contains("rejected"),
        "{answer}"
    );
    settled(&hooks, 2).await;
    for (body, pointer) in [
        (json!({ "ids": [], "action": "approve" }), "/ids"),
        (json!({ "ids": vec![1; 101], "action": "approve" }), "/ids"),
        (json!({ "ids": [1], "action": "maybe" }), "/action"),
        (json!({ "ids": ["1"], "action": "approve" }), "/ids/0"),
    ] {
        let refused = hooks.api.post(&path, &admin, body).await.expect(422);
        assert_eq!(refused.pointers(), [pointer]);
    }
}

async fn a_person_may_ask_before_anybody_pushes(place: Place) {
    let hooks = Receiver::start(place).await;
    let operator = hooks.api.token("operator").await;
    let body = json!({ "image": "acme/web:1" });
    let made = hooks
        .api
        .post(REQUESTS, &operator, body.clone())
        .await
        .expect(201)
        .json();
    assert_eq!(
        (&made["source"], &made["tag"]),
        (&json!("operator"), &json!("1"))
    );
    let again = hooks
        .api
        .post(REQUESTS, &operator, body.clone())
        .await
        .expect(201)
        .json();
    assert_eq!((&again["id"], &again["times"]), (&made["id"], &json!(2)));
    let viewer = hooks.api.token("viewer").await;
    hooks
        .api
        .post(REQUESTS, &viewer, body.clone())
        .await
        .expect(403);
    let admin = hooks.api.admin.clone();
    say(&hooks, &admin, &made["id"], "approve", json!({}))
        .await
        .expect(200);
    let known = hooks.api.post(REQUESTS, &operator, body).await.expect(409);
    assert_eq!(known.code(), "approved_already");
    for (body, pointer) in [
        (json!({ "image": "Not A Name" }), "/image"),
        (json!({ "image": "a", "tag": "not a tag" }), "/image"),
        (json!({ "image": "a", "digest": "x" }), "/digest"),
        (json!({ "image": "a", "why": "x" }), "/why"),
    ] {
        let refused = hooks.api.post(REQUESTS, &operator, body).await.expect(422);
        assert_eq!(refused.pointers(), [pointer]);
    }
    // One that was rejected may be asked for again, and approved after all.
    let path = hooks.image("acme/old", "rejected").await;
    let body = json!({ "image": "acme/old:1" });
    let made = hooks
        .api
        .post(REQUESTS, &operator, body)
        .await
        .expect(201)
        .json();
    say(&hooks, &admin, &made["id"], "approve", json!({}))
        .await
        .expect(200);
    assert_eq!(hooks.get(&path).await["approval_status"], "approved");
}

async fn a_decision_about_the_image_closes_its_question(place: Place) {
    let hooks = Receiver::start(place).await;
    let mut ids = BTreeSet::new();
    for (image, status, state) in [
        ("acme/a", "approved", "approved"),
        ("acme/b", "rejected", "rejected"),
        ("acme/c", "pending", "open"),
    ] {
        let id = asked(&hooks, image, "1").await;
        let path = hooks.image(image, status).await;
        let found = hooks.get(&format!("{REQUESTS}/{id}")).await;
        assert_eq!(found["state"], state, "{image}");
        let tags = hooks.get(&path).await["tags"].as_array().unwrap().len();
        assert_eq!(tags, usize::from(status == "approved"), "{image}");
        ids.insert(id.to_string());
    }
    assert_eq!(ids.len(), 3);
    settled(&hooks, 1).await;
    let found = hooks.items("/api/v1/images?search=acme%2Fc").await;
    let path = format!("/api/v1/images/{}", found[0]["id"]);
    let body = json!({ "approval_status": "approved" });
    let admin = hooks.api.admin.clone();
    hooks
        .api
        .call("PUT", &path, &admin, Some(body))
        .await
        .expect(200);
    settled(&hooks, 2).await;
    assert_eq!(
        hooks.items(&format!("{REQUESTS}?state=open")).await,
        Vec::<Value>::new()
    );
}
