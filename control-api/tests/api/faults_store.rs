//! Faults C06 to C20, the store's: a file that others hold, that is damaged, or that a newer program made;
//! panics inside a transaction; history that cannot be written.

use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use holdfast_api::params;
use holdfast_api::store::backup::backup;
use holdfast_api::store::restore::restore;
use holdfast_api::store::{Store, StoreError, Tx, tokens};
use holdfast_domain::principal::Role;
use holdfast_proto::time::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::Place;
use crate::support::api::{Api, Device, report};

const NOW: Timestamp = Timestamp::from_millis(1_795_239_600_123);
/// A read beside a writer that stands still, on a busy machine.
const READS_WITHIN: Duration = Duration::from_secs(3);
/// Two attempts at the lock, and the queue before the second.
const REFUSES_WITHIN: Duration = Duration::from_secs(25);

crate::on_both_databases![
    c12_an_older_program_works_with_the_tables_of_a_newer_one,
    c17_a_panic_in_a_transaction_leaves_nothing_and_the_next_one_works,
    c20_nothing_changes_when_history_cannot_be_written,
];

/// Another program that has the database for itself until it is told to let go.
struct Hold {
    release: mpsc::Sender<()>,
    holds: tokio::task::JoinHandle<Result<(), StoreError>>,
}

impl Hold {
    async fn take(place: &Place) -> Self {
        let other = Store::open(place.location.clone()).await.unwrap();
        let (release, released) = mpsc::channel();
        let (say, mut held) = tokio::sync::mpsc::unbounded_channel();
        let released = Mutex::new(released);
        let holds = tokio::spawn(async move {
            other
                .transact(move |tx| {
                    tx.execute(
                        "update history_head set last_event = last_event where id = 1",
                        params![],
                    )?;
                    let _ = say.send(());
                    let released = released.lock().unwrap_or_else(PoisonError::into_inner);
                    let _ = released.recv();
                    Ok(())
                })
                .await
        });
        held.recv().await.unwrap();
        Self { release, holds }
    }

    async fn end(self) {
        self.release.send(()).unwrap();
        self.holds.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c06_behind_another_programs_lock_reads_go_on_and_writers_are_told_when_to_come_back() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    let etag = api
        .poll(&device, &[])
        .await
        .expect(200)
        .header("etag")
        .to_owned();
    let hold = Hold::take(&api.place).await;
    let name = json!({"name": "new"});
    let begun = Instant::now();
    let writes = join_all((0..20).map(|_| async {
        let (path, body) = (device.path(""), Some(name.clone()));
        let answer = api.call("PATCH", &path, &api.admin, body).await.expect(503);
        assert_eq!(answer.code(), "busy");
        assert!(!answer.header("retry-after").is_empty());
        assert!(begun.elapsed() < REFUSES_WITHIN, "{:?}", begun.elapsed());
    }));
    let reads = async {
        for _ in 0..50 {
            let begun = Instant::now();
            let shown = api.get(&device.path(""), &api.admin).await.expect(200);
            assert_eq!(shown.json()["name"], "box");
            api.poll(&device, &[("if-none-match", &etag)])
                .await
                .expect(304);
            assert!(begun.elapsed() < READS_WITHIN, "{:?}", begun.elapsed());
        }
    };
    tokio::join!(writes, reads);
    hold.end().await;
    api.call("PATCH", &device.path(""), &api.admin, Some(name))
        .await
        .expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn c06_a_write_waits_for_a_lock_that_is_held_for_a_moment() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    let hold = Hold::take(&api.place).await;
    let name = Some(json!({"name": "new"}));
    let path = device.path("");
    let write = api.call("PATCH", &path, &api.admin, name);
    tokio::pin!(write);
    let early = tokio::time::timeout(Duration::from_millis(500), &mut write).await;
    assert!(early.is_err(), "it was answered behind the lock");
    let (answer, ()) = tokio::join!(write, hold.end());
    answer.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn c08_damage_that_shows_while_it_runs_ends_writing_until_a_restore() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    for _ in 0..20 {
        api.enrol().await;
    }
    let etag = api
        .poll(&device, &[])
        .await
        .expect(200)
        .header("etag")
        .to_owned();
    let (file, copy) = (
        api.place.dir.path().join("holdfast.db"),
        api.place.dir.path().join("copy.db"),
    );
    backup(&file, &copy).unwrap();
    // Everything goes into the one file when nobody has it open any more.
    let Api {
        place, app, router, ..
    } = api;
    drop((app, router));
    let api = Api::start_with(place, |settings| settings).await;
    api.app.live.reload(&api.app.store).await.unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    for page in bytes.chunks_mut(4_096).skip(1) {
        page.fill(0xff);
    }
    std::fs::write(&file, &bytes).unwrap();

    // Every connection looks into the file for what it has not read yet.
    let shown = api.get("/api/v1/devices", &api.admin).await.expect(503);
    assert_eq!(shown.code(), "database_damaged");
    let key = json!({"name": "a"});
    for _ in 0..3 {
        let refused = api.post("/api/v1/enrolment-keys", &api.admin, key.clone());
        assert_eq!(refused.await.expect(503).code(), "database_damaged");
        let path = device.path("/current-state");
        let refused = api.call("PUT", &path, &device.token, Some(report(1, 0)));
        assert_eq!(refused.await.expect(503).code(), "database_damaged");
    }
    let ready = api.get("/readyz", "").await.expect(503);
    assert_eq!(ready.code(), "database_damaged");
    // Devices know no more and no less than before.
    api.poll(&device, &[("if-none-match", &etag)])
        .await
        .expect(304);

    let Api {
        place, app, router, ..
    } = api;
    drop((app, router));
    let refused = Store::open(place.location.clone()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Damaged(_)), "{refused:?}");
    let restored = restore(&file, &copy, NOW).unwrap();
    assert_eq!(restored.content.devices, 21);
    let api = Api::start(place).await;
    api.get("/readyz", "").await.expect(200);
    api.post("/api/v1/enrolment-keys", &api.admin, key)
        .await
        .expect(201);
}

async fn c12_an_older_program_works_with_the_tables_of_a_newer_one(place: Place) {
    let store = Store::open(place.location.clone()).await.unwrap();
    // Migrations only add, so that one version back may still serve while replicas are replaced.
    store
        .transact(|tx| {
            tx.execute(
                "insert into schema_migrations (version, name, checksum, applied_at)
                 values (9999, 'of the future', 'x', 0)",
                params![],
            )?;
            tx.execute("alter table devices add column colour text", params![])?;
            tx.execute("create table colours (name text primary key)", params![])
        })
        .await
        .unwrap();
    drop(store);
    let api = Api::start(place).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    api.poll(&device, &[]).await.expect(200);
    let path = device.path("/current-state");
    api.call("PUT", &path, &device.token, Some(report(1, 1)))
        .await
        .expect(204);
    let listed = api.get("/api/v1/devices", &api.admin).await.expect(200);
    assert_eq!(listed.json()["items"].as_array().unwrap().len(), 1);
}

fn token(tx: &mut Tx<'_>, hash: &str) -> Result<i64, StoreError> {
    tokens::insert(tx, "made by a test", Role::Viewer, hash, NOW, None)
}

async fn c17_a_panic_in_a_transaction_leaves_nothing_and_the_next_one_works(place: Place) {
    let store = Store::open(place.location.clone()).await.unwrap();
    // More often than there are connections.
    for n in 0..20 {
        let hash = format!("hash {n}");
        let doomed: Result<i64, StoreError> = store
            .transact(move |tx| {
                token(tx, &hash)?;
                panic!("told to panic")
            })
            .await;
        assert!(doomed.unwrap_err().is_temporary());
        let doomed: Result<i64, StoreError> = store.read(|_| panic!("told to panic")).await;
        assert!(doomed.unwrap_err().is_temporary());
    }
    store.transact(|tx| token(tx, "kept")).await.unwrap();
    let counted: Result<u64, StoreError> = store
        .read(|tx| {
            let row = tx.query_opt("select count(*) from tokens", params![])?;
            row.ok_or(StoreError::Interrupted)?.count(0)
        })
        .await;
    assert_eq!(counted.unwrap(), 1);
}

/// Rows of every table that an operator or a device changes.
async fn counts(api: &Api) -> Vec<u64> {
    let counted: Result<Vec<u64>, StoreError> = api
        .app
        .store
        .read(|tx| {
            let mut counts = Vec::new();
            for sql in [
                "select count(*) from devices",
                "select count(*) from device_labels",
                "select count(*) from targets",
                "select count(*) from generations",
                "select count(*) from tokens",
                "select count(*) from enrolment_keys",
                "select count(*) from events",
                "select count(*) from fleets",
                "select count(*) from images",
                "select count(*) from policies",
                "select count(*) from registry_credentials",
                "select count(*) from notification_channels",
                "select last_event from history_head",
            ] {
                let row = tx.query_opt(sql, params![])?;
                counts.push(row.ok_or(StoreError::Interrupted)?.count(0)?);
            }
            Ok(counts)
        })
        .await;
    counted.unwrap()
}

/// A change of each kind: method, path, body.
fn changes(device: &Device) -> Vec<(&'static str, String, Option<Value>)> {
    let at = |path: &str| format!("/api/v1{path}");
    vec![
        (
            "PATCH",
            device.path(""),
            Some(json!({"name": "new", "labels": {"a": "b"}})),
        ),
        (
            "POST",
            device.path("/target-state"),
            Some(crate::support::api::target("nginx:1")),
        ),
        (
            "POST",
            at("/tokens"),
            Some(json!({"name": "a", "role": "viewer"})),
        ),
        ("POST", at("/enrolment-keys"), Some(json!({"name": "b"}))),
        ("POST", at("/fleets"), Some(json!({"name": "roofs"}))),
        ("POST", at("/images"), Some(json!({"image_name": "redis"}))),
        (
            "POST",
            at("/policies"),
            Some(json!({"name": "p", "image_pattern": "redis:*"})),
        ),
        (
            "PUT",
            at("/registries/ghcr.io/credentials"),
            Some(json!({"username": "u", "password": "p"})),
        ),
        (
            "POST",
            at("/notifications/channels"),
            Some(json!({"name": "n", "type": "webhook", "events": ["*"],
                    "url": "https://93.184.216.34/x", "secret": "canary-signing-key-0123456789"})),
        ),
        ("DELETE", at("/enrolment-keys/1"), None),
        ("DELETE", device.path(""), None),
    ]
}

async fn c20_nothing_changes_when_history_cannot_be_written(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let key = api.key(json!({})).await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let move_audit = |sql: &'static str| {
        let store = api.app.store.clone();
        async move {
            let moved: Result<u64, StoreError> =
                store.transact(move |tx| tx.execute(sql, params![])).await;
            moved.unwrap();
        }
    };
    let before = counts(&api).await;
    move_audit("alter table audit rename to audit_away").await;
    for (method, path, body) in changes(&device) {
        let refused = api.call(method, &path, &api.admin, body).await;
        assert!(
            refused.status.is_server_error(),
            "{method} {path}: {:?}",
            refused.status
        );
    }
    let enrolment = json!({"name": "box", "agentVersion": "1.0.0",
        "platform": {"os": "linux", "architecture": "amd64"}});
    let refused = api.post("/api/v1/enroll", &key, enrolment).await;
    assert!(refused.status.is_server_error());
    assert_eq!(counts(&api).await, before);
    let shown = api.get(&device.path(""), &api.admin).await.expect(200);
    assert_eq!(shown.json()["name"], "box");

    move_audit("alter table audit_away rename to audit").await;
    for (method, path, body) in changes(&device) {
        let taken = api.call(method, &path, &api.admin, body).await;
        assert!(
            taken.status.is_success(),
            "{method} {path}: {:?}",
            taken.json()
        );
    }
}
