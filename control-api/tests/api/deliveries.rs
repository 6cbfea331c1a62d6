//! Facts about webhook deliveries: stored once, worked on until they end, shown, bounded.

use holdfast_api::clock;
use holdfast_api::store::deliveries::{self, Claim, New, State};
use holdfast_api::store::{StoreError, Tx};
use holdfast_api::tasks::deliver;
use serde_json::json;

use crate::support::Place;
use crate::support::api::{Api, WEBHOOK_SECRET};
use crate::support::pushes::{Receiver, docker_hub, generic, rules};

crate::on_both_databases![
    what_a_dead_worker_left_open_is_taken_again,
    what_no_worker_survives_is_given_up,
    an_answer_does_not_wait_for_the_work,
    a_delivery_is_shown_without_its_body_and_acted_on_once_more,
    the_same_body_is_another_push_a_minute_later,
    bodies_and_deliveries_are_bounded,
];

const MINUTE_MS: i64 = 60_000;

/// A delivery of a push that may run, as the handler stores it.
fn new(key: &str) -> New {
    New {
        vendor: "generic",
        key: key.to_owned(),
        same_since: None,
        body: generic("iotistic/agent", "1").to_string(),
        secret: Some("default".into()),
        request_id: "r".into(),
        again_of: None,
        record: None,
    }
}

async fn what_a_dead_worker_left_open_is_taken_again(place: Place) {
    let api = Api::start_with(place, rules).await;
    let now = clock::now();
    let until = now.plus_ms(5 * MINUTE_MS);
    let store = &api.app.store;
    let (id, _) = store
        .transact(move |tx| deliveries::insert(tx, &new("k"), now))
        .await
        .unwrap();
    let taken = store
        .transact(move |tx| deliveries::claim(tx, now, until))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((taken.id, taken.attempts), (id, 1));
    // It is the dead one's until its claim is over.
    assert_eq!(deliver::run_once(&api.app, now).await.unwrap(), 0);
    assert_eq!(deliver::run_once(&api.app, until).await.unwrap(), 1);
    let path = format!("/api/v1/webhooks/deliveries/{id}");
    let found = api.get(&path, &api.admin).await.expect(200).json();
    assert_eq!(
        (&found["state"], &found["attempts"]),
        (&json!("done"), &json!(2))
    );
    assert_eq!(found["outcomes"][0]["verdict"], "internal");
    // Whoever wakes up late writes nothing.
    let late = Claim { id, attempt: 1 };
    let record = taken.record.unwrap_or_default();
    let ended = store.transact(move |tx| {
        let noted = deliveries::note(tx, late, &record)?;
        let ended = deliveries::end(tx, late, State::Failed, &record, now)?;
        Ok::<_, StoreError>(noted || ended)
    });
    assert!(!ended.await.unwrap());
    assert_eq!(api.get(&path, &api.admin).await.expect(200).json(), found);
}

async fn what_no_worker_survives_is_given_up(place: Place) {
    let api = Api::start_with(place, rules).await;
    let now = clock::now();
    let store = &api.app.store;
    let (id, _) = store
        .transact(move |tx| deliveries::insert(tx, &new("k"), now))
        .await
        .unwrap();
    for attempt in 1..=deliveries::MOST_ATTEMPTS {
        let taken = store
            .transact(move |tx| deliveries::claim(tx, now, now))
            .await;
        assert_eq!(taken.unwrap().unwrap().attempts, attempt);
    }
    assert_eq!(deliver::run_once(&api.app, now).await.unwrap(), 0);
    let path = format!("/api/v1/webhooks/deliveries/{id}");
    let found = api.get(&path, &api.admin).await.expect(200).json();
    assert_eq!(found["state"], "failed");
    assert!(
        found["reason"].as_str().unwrap().contains("5 attempts"),
        "{found}"
    );
    let failed = api
        .get("/api/v1/webhooks/deliveries?state=failed", &api.admin)
        .await;
    assert_eq!(failed.json()["items"], json!([found]));
}

async fn an_answer_does_not_wait_for_the_work(place: Place) {
    // Nobody works here.
    let api = Api::start_with(place, rules).await;
    let body = generic("iotistic/agent", "1");
    let path = "/api/v1/webhooks/generic";
    let answer = api
        .post(path, WEBHOOK_SECRET, body.clone())
        .await
        .expect(202)
        .json();
    assert_eq!(
        (&answer["state"], &answer["outcomes"]),
        (&json!("open"), &json!([]))
    );
    assert_eq!(deliver::run_once(&api.app, clock::now()).await.unwrap(), 1);
    let again = api
        .post(path, WEBHOOK_SECRET, body)
        .await
        .expect(200)
        .json();
    assert_eq!(again["delivery"], answer["delivery"]);
    assert_eq!(again["outcomes"][0]["verdict"], "internal");
}

async fn a_delivery_is_shown_without_its_body_and_acted_on_once_more(place: Place) {
    let hooks = Receiver::start(place).await;
    let mut body = docker_hub("acme/web", "1");
    body["canary"] = json!("canary-in-the-body");
    hooks.push("docker_hub", &body).await.expect(403);
    let all = hooks.deliveries().await;
    let first = &all[0];
    assert_eq!(
        (&first["vendor"], &first["secret"]),
        (&json!("docker_hub"), &json!("default"))
    );
    assert_eq!(first["outcomes"][0]["verdict"], "unknown");
    hooks.image("acme/web", "approved").await;
    let path = format!("/api/v1/webhooks/deliveries/{}", first["delivery"]);
    let again = format!("{path}/redeliver");
    let viewer = hooks.api.token("viewer").await;
    hooks
        .api
        .call("POST", &again, &viewer, None)
        .await
        .expect(403);
    let operator = hooks.api.token("operator").await;
    let done = hooks
        .api
        .call("POST", &again, &operator, None)
        .await
        .expect(200);
    assert_eq!(done.json()["outcomes"][0]["verdict"], "approved");
    // Each time it is another one.
    hooks
        .api
        .call("POST", &again, &operator, None)
        .await
        .expect(200);
    let all = hooks.deliveries().await;
    let repeats = all
        .iter()
        .filter(|one| one["again_of"] == first["delivery"]);
    assert_eq!(repeats.count(), 2);
    assert_eq!(hooks.get(&path).await["outcomes"][0]["verdict"], "unknown");
    for path in [
        "/api/v1/webhooks/deliveries",
        "/api/v1/events",
        "/api/v1/audit",
    ] {
        let text = hooks.get(path).await.to_string();
        assert!(
            !text.contains("canary") && !text.contains(WEBHOOK_SECRET),
            "{path}"
        );
    }
    let unknown = "/api/v1/webhooks/deliveries/99/redeliver";
    hooks
        .api
        .call("POST", unknown, &operator, None)
        .await
        .expect(404);
}

async fn the_same_body_is_another_push_a_minute_later(place: Place) {
    let api = Api::start(place).await;
    let now = clock::now();
    let at = async |later_ms: i64| {
        let now = now.plus_ms(later_ms);
        let again = New {
            same_since: Some(now.plus_ms(-MINUTE_MS)),
            ..new("generic body x")
        };
        let insert = move |tx: &mut Tx<'_>| deliveries::insert(tx, &again, now);
        api.app.store.transact(insert).await.unwrap()
    };
    let (first, is_new) = at(0).await;
    assert!(is_new);
    assert_eq!(at(MINUTE_MS).await, (first, false));
    let (second, is_new) = at(MINUTE_MS + 1).await;
    assert!(is_new && second > first);
    assert_eq!(at(MINUTE_MS + 2).await, (second, false));
}

async fn bodies_and_deliveries_are_bounded(place: Place) {
    let api = Api::start(place).await;
    let now = clock::now();
    let count = deliveries::BODIES + 5;
    let (with_body, ends) = api
        .app
        .store
        .transact(move |tx| {
            let mut ids = Vec::new();
            for n in 0..count {
                let done = New {
                    // The oldest one is still open.
                    record: (n > 0).then(Default::default),
                    ..new(&format!("k{n}"))
                };
                ids.push(deliveries::insert(tx, &done, now)?.0);
            }
            deliveries::trim(tx)?;
            let mut with_body = 0;
            for id in &ids {
                with_body += i64::from(deliveries::body(tx, *id)?.is_some());
            }
            let ends = [ids[0], ids[1]];
            let ends = ends.map(|id| deliveries::body(tx, id).map(|body| body.is_some()));
            Ok::<_, StoreError>((with_body, ends.into_iter().collect::<Result<Vec<_>, _>>()?))
        })
        .await
        .unwrap();
    assert_eq!(with_body, deliveries::BODIES + 1);
    assert_eq!(ends, [true, false]);
    let gone = api
        .get(
            "/api/v1/webhooks/deliveries?state=done&limit=200",
            &api.admin,
        )
        .await;
    assert_eq!(
        gone.expect(200).json()["items"].as_array().unwrap().len(),
        200
    );
    let path = "/api/v1/webhooks/deliveries/2/redeliver";
    let refused = api.call("POST", path, &api.admin, None).await.expect(409);
    assert_eq!(refused.code(), "body_gone");
}
