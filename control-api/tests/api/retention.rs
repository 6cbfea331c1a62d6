//! Facts about how long history is kept.

use holdfast_api::store::{Store, StoreError, events, leases};
use holdfast_api::tasks::prune::{self, Removed};
use holdfast_api::{clock, params};
use holdfast_domain::retention::Retention;
use holdfast_proto::time::Timestamp;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::Api;

crate::on_both_databases![
    what_is_too_old_goes_and_the_rest_stays,
    a_pruned_log_is_unbroken_and_says_that_it_was_pruned,
    a_broken_log_is_not_pruned,
    one_program_prunes_at_a_time,
    what_is_kept_for_ever_stays,
];

const DAY_MS: i64 = 24 * 3_600 * 1_000;

async fn start(place: Place) -> Api {
    let retention = Retention {
        events_days: Some(1),
        audit_days: Some(3),
        rollouts_days: Some(5),
    };
    Api::start_with(place, |settings| holdfast_api::config::Settings {
        retention,
        ..settings
    })
    .await
}

fn in_days(days: i64) -> Timestamp {
    clock::now().plus_ms(days * DAY_MS)
}

async fn run(store: &Store, statements: &'static [&'static str]) {
    store
        .transact(move |tx| {
            for sql in statements {
                tx.execute(sql, params![clock::now()])?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
}

async fn count(store: &Store, sql: &'static str) -> i64 {
    let row = store.read(move |tx| tx.query_opt(sql, params![])).await;
    row.unwrap().unwrap().int(0).unwrap()
}

async fn verdict(api: &Api) -> Value {
    let answer = api.get("/api/v1/audit/verify", &api.admin).await;
    answer.expect(200).json()
}

async fn what_is_too_old_goes_and_the_rest_stays(place: Place) {
    let api = start(place).await;
    let store = &api.app.store;
    api.enrol().await;
    run(
        store,
        &[
            "insert into webhook_deliveries (vendor, delivery, body, state, attempts, received_at, done_at)
             values ('generic', 'done', '', 'done', 1, $1, $1)",
            "insert into webhook_deliveries (vendor, delivery, body, state, attempts, received_at)
             values ('generic', 'waits', '', 'waiting', 1, $1)",
            "insert into rollouts (id, scope, registry, repository, tag, image, rules, windows, state, reason,
                opened, approved, created_by, created_at, since, progressed_at, ended_at)
             values (1, 's', 'r', 'i', 't', '', '', '', 'succeeded', '', 0, 0, 'x', $1, $1, $1, $1)",
            "insert into rollouts (id, scope, registry, repository, tag, image, rules, windows, state, reason,
                opened, approved, created_by, created_at, since, progressed_at)
             values (2, 's', 'r', 'i', 't', '', '', '', 'running', '', 0, 0, 'x', $1, $1, $1)",
            "insert into rollout_log (rollout_id, what, detail, at) values (1, 'x', '', $1)",
            "insert into rollout_log (rollout_id, what, detail, at) values (2, 'x', '', $1)",
        ],
    )
    .await;
    let removed = prune::run_once(&api.app, "me", in_days(0)).await.unwrap();
    assert_eq!(removed, Removed::default());
    let removed = prune::run_once(&api.app, "me", in_days(2)).await.unwrap();
    assert_eq!((removed.events, removed.audit), (2, 0));
    let removed = prune::run_once(&api.app, "me", in_days(4)).await.unwrap();
    assert_eq!((removed.audit, removed.deliveries), (3, 0));
    let removed = prune::run_once(&api.app, "me", in_days(6)).await.unwrap();
    assert_eq!((removed.deliveries, removed.rollout_log), (1, 1));
    for (sql, left) in [
        ("select count(*) from events", 0),
        (
            "select count(*) from webhook_deliveries where delivery = 'waits'",
            1,
        ),
        ("select count(*) from rollouts", 2),
        ("select count(*) from rollout_log where rollout_id = 2", 1),
    ] {
        assert_eq!(count(store, sql).await, left, "{sql}");
    }
    // Numbers go on where they were.
    api.enrol().await;
    let listed = api.get("/api/v1/events", &api.admin).await.json();
    assert_eq!(listed["items"][1]["id"], 3);
}

async fn a_pruned_log_is_unbroken_and_says_that_it_was_pruned(place: Place) {
    let api = start(place).await;
    api.enrol().await;
    let before = verdict(&api).await;
    prune::run_once(&api.app, "me", in_days(4)).await.unwrap();
    let told = verdict(&api).await;
    assert_eq!(
        (&told["unbroken"], &told["rows"]),
        (&json!(true), &json!(1))
    );
    let listed = api.get("/api/v1/audit", &api.admin).await.json();
    let row = &listed["items"][0];
    assert_eq!(row["action"], "audit.prune");
    let removed = json!({ "through": 3, "hash": before["last_hash"], "rows": 3 });
    assert_eq!(row["after"], removed);
    api.enrol().await;
    // The row that says so is too old itself by then.
    prune::run_once(&api.app, "me", in_days(8)).await.unwrap();
    let told = verdict(&api).await;
    assert_eq!(
        (&told["unbroken"], &told["rows"]),
        (&json!(true), &json!(1))
    );
    assert_eq!(told["last_id"], 7);
}

async fn a_broken_log_is_not_pruned(place: Place) {
    let api = start(place).await;
    api.enrol().await;
    run(
        &api.app.store,
        &["update audit set actor = 'x' where id = 2 and at <= $1"],
    )
    .await;
    let removed = prune::run_once(&api.app, "me", in_days(4)).await.unwrap();
    assert_eq!(removed.audit, 0);
    let told = verdict(&api).await;
    assert_eq!(told["broken"], json!({ "id": 2, "how": "changed" }));
    assert_eq!(count(&api.app.store, "select count(*) from audit").await, 3);
}

async fn one_program_prunes_at_a_time(place: Place) {
    let api = start(place).await;
    api.enrol().await;
    let store = &api.app.store;
    let lease = store
        .transact(|tx| {
            let now = clock::now();
            leases::take_at(tx, "prune", "another", now, now.plus_ms(60_000))
        })
        .await
        .unwrap()
        .unwrap();
    let removed = prune::run_once(&api.app, "me", in_days(2)).await.unwrap();
    assert_eq!(removed, Removed::default());
    store
        .transact(move |tx| leases::release(tx, &lease))
        .await
        .unwrap();
    let removed = prune::run_once(&api.app, "me", in_days(2)).await.unwrap();
    assert_eq!(removed.events, 2);
    // It leaves the lease for others.
    let removed = prune::run_once(&api.app, "other", in_days(4))
        .await
        .unwrap();
    assert_eq!(removed.audit, 3);
}

async fn what_is_kept_for_ever_stays(place: Place) {
    let api = Api::start(place).await;
    api.enrol().await;
    let removed = prune::run_once(&api.app, "me", in_days(100_000))
        .await
        .unwrap();
    assert_eq!(removed, Removed::default());
}

#[tokio::test]
async fn room_is_given_back_to_the_file_system() {
    let api = start(Place::sqlite()).await;
    let store = &api.app.store;
    store
        .transact(|tx| {
            for _ in 0..2_500 {
                let event = events::NewEvent {
                    kind: "x",
                    device: None,
                    subject: None,
                    detail: json!({ "text": "x".repeat(3_000) }),
                    delivery: None,
                };
                events::record(tx, &event, Timestamp::from_millis(1))?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    let pages = "select page_count from pragma_page_count()";
    let before = count(store, pages).await;
    assert!(before > 1_500);
    prune::run_once(&api.app, "me", in_days(0)).await.unwrap();
    assert!(count(store, pages).await < before / 2);
    let free = "select freelist_count from pragma_freelist_count()";
    assert_eq!(count(store, free).await, 0);
}
