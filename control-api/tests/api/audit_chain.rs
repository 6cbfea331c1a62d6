//! Facts about the chain of the audit log: whoever touches a row is found out.

use std::process::Command;

use holdfast_api::params;
use holdfast_api::store::audit::{self, Actor, NewEntry};
use holdfast_api::store::events::{self, NewEvent};
use holdfast_api::store::{Store, StoreError, Tx};
use holdfast_domain::chain::Verdict;
use holdfast_proto::time::Timestamp;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::Api;

crate::on_both_databases![
    a_log_that_nobody_touched_is_unbroken,
    an_edited_row_is_found,
    a_removed_row_is_found,
    swapped_rows_are_found,
    rows_removed_at_the_end_are_found,
    rows_removed_at_the_beginning_are_found_also_when_it_was_moved,
    a_row_that_was_put_before_the_beginning_is_found,
    many_writers_make_one_chain_and_none_is_refused,
    rows_from_before_the_chain_are_chained_when_it_begins,
];

async fn verdict(api: &Api) -> Value {
    let answer = api.get("/api/v1/audit/verify", &api.admin).await;
    answer.expect(200).json()
}

/// Changes at once, far more than there are connections.
const WRITERS: i64 = 200;

/// A log of eleven rows: the first token, and a key and a device five times.
async fn with_rows(place: Place) -> Api {
    let api = Api::start(place).await;
    for _ in 0..5 {
        api.enrol().await;
    }
    let told = verdict(&api).await;
    assert_eq!(
        (&told["unbroken"], &told["rows"]),
        (&json!(true), &json!(11))
    );
    api
}

async fn run(api: &Api, statements: &'static [&'static str]) {
    api.app
        .store
        .transact(move |tx| {
            for sql in statements {
                tx.execute(sql, params![])?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
}

async fn is_broken(api: &Api, id: i64, how: &str) {
    let told = verdict(api).await;
    assert_eq!(told["unbroken"], false);
    assert_eq!(told["broken"], json!({ "id": id, "how": how }));
    assert_eq!(told["last_hash"], Value::Null);
}

async fn a_log_that_nobody_touched_is_unbroken(place: Place) {
    let api = with_rows(place).await;
    let before = verdict(&api).await;
    assert_eq!(before["last_id"], 11);
    api.enrol().await;
    let after = verdict(&api).await;
    assert_eq!(after["last_id"], 13);
    assert_ne!(after["last_hash"], before["last_hash"]);
    assert_eq!(after["broken"], Value::Null);
    let viewer = api.token("viewer").await;
    api.get("/api/v1/audit/verify", &viewer).await.expect(403);
}

async fn an_edited_row_is_found(place: Place) {
    let api = with_rows(place).await;
    run(&api, &["update audit set actor = 'nobody' where id = 4"]).await;
    is_broken(&api, 4, "changed").await;
}

async fn a_removed_row_is_found(place: Place) {
    let api = with_rows(place).await;
    run(&api, &["delete from audit where id = 4"]).await;
    is_broken(&api, 4, "missing").await;
}

async fn swapped_rows_are_found(place: Place) {
    let api = with_rows(place).await;
    run(
        &api,
        &[
            "update audit set id = -1 where id = 4",
            "update audit set id = 4 where id = 6",
            "update audit set id = 6 where id = -1",
        ],
    )
    .await;
    is_broken(&api, 4, "changed").await;
}

async fn rows_removed_at_the_end_are_found(place: Place) {
    let api = with_rows(place).await;
    run(&api, &["delete from audit where id >= 10"]).await;
    is_broken(&api, 10, "missing").await;
}

async fn rows_removed_at_the_beginning_are_found_also_when_it_was_moved(place: Place) {
    let api = with_rows(place).await;
    run(
        &api,
        &["update history_head set audit_pruned = 3,
           audit_pruned_hash = (select hash from audit where id = 3)"],
    )
    .await;
    is_broken(&api, 1, "changed").await;
    run(&api, &["delete from audit where id <= 3"]).await;
    is_broken(&api, 3, "beginning").await;
}

async fn a_row_that_was_put_before_the_beginning_is_found(place: Place) {
    let api = with_rows(place).await;
    run(
        &api,
        &["insert into audit (id, actor_kind, actor, action, subject_kind, subject, request_id, at)
           values (-5, 'operator', 'x', 'x', 'x', 'x', 'x', 1)"],
    )
    .await;
    is_broken(&api, -5, "changed").await;
}

fn change(tx: &mut Tx<'_>, subject: &str) -> Result<(), StoreError> {
    let actor = Actor {
        kind: "operator",
        name: "ci".into(),
        request_id: "r".into(),
    };
    let entry = NewEntry {
        action: "x",
        subject_kind: "device",
        subject: subject.to_owned(),
        before: None,
        after: Some(json!({ "of": subject })),
    };
    audit::append(tx, &actor, &entry, Timestamp::from_millis(1))?;
    let event = NewEvent {
        kind: "x",
        device: None,
        subject: Some(subject),
        detail: json!({}),
        delivery: None,
    };
    events::record(tx, &event, Timestamp::from_millis(1)).map(|_| ())
}

async fn many_writers_make_one_chain_and_none_is_refused(place: Place) {
    // Two replicas; on SQLite two programs would contend for the file, so there it is one.
    let one = Store::open(place.location.clone()).await.unwrap();
    let other = match place.location {
        holdfast_api::store::Location::Postgres(_) => {
            Store::open(place.location.clone()).await.unwrap()
        }
        holdfast_api::store::Location::Sqlite(_) => one.clone(),
    };
    let writers: Vec<_> = (0..WRITERS)
        .map(|n| {
            let store = if n % 2 == 0 {
                one.clone()
            } else {
                other.clone()
            };
            tokio::spawn(async move { store.transact(move |tx| change(tx, &n.to_string())).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    let (verdict, rows) = one.read(audit::verify).await.unwrap();
    assert!(matches!(verdict, Verdict::Whole(last) if last.id == WRITERS));
    assert_eq!(i64::try_from(rows), Ok(WRITERS));
    let events = one
        .read(|tx| events::list_after(tx, None, None, 0, 2 * WRITERS))
        .await
        .unwrap();
    let numbers: Vec<i64> = events.iter().map(|event| event.id).collect();
    assert_eq!(numbers, (1..=WRITERS).collect::<Vec<_>>());
}

async fn rows_from_before_the_chain_are_chained_when_it_begins(place: Place) {
    let api = with_rows(place).await;
    run(
        &api,
        &[
            "drop index webhook_deliveries_by_end",
            "drop index rollouts_by_end",
            "drop table history_head",
            "alter table audit drop column hash",
            "delete from schema_migrations where version = 5",
        ],
    )
    .await;
    let Api {
        place, app, router, ..
    } = api;
    drop((app, router));
    let again = Api::start(place).await;
    let told = verdict(&again).await;
    assert_eq!(
        (&told["unbroken"], &told["rows"]),
        (&json!(true), &json!(11))
    );
    again.enrol().await;
    let told = verdict(&again).await;
    assert_eq!(
        (&told["unbroken"], &told["rows"]),
        (&json!(true), &json!(13))
    );
    // Numbers of events go on, too.
    let newest = again
        .get("/api/v1/events?limit=1", &again.admin)
        .await
        .json();
    assert_eq!(newest["items"][0]["id"], 12);
    run(&again, &["update audit set subject = 'x' where id = 2"]).await;
    is_broken(&again, 2, "changed").await;
}

fn command(api: &Api) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast-api"))
        .args(["audit", "verify"])
        .env("HOLDFAST_API_DATA_DIR", api.place.dir.path())
        .output()
        .unwrap()
}

#[tokio::test]
async fn the_command_says_the_same_while_the_server_runs() {
    let api = with_rows(Place::sqlite()).await;
    let told = verdict(&api).await;
    let output = command(&api);
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("11 rows, unbroken up to row 11"), "{said}");
    assert!(said.contains(told["last_hash"].as_str().unwrap()));
    run(&api, &["update audit set at = 1 where id = 7"]).await;
    let output = command(&api);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("broken at row 7"), "{said}");
}
