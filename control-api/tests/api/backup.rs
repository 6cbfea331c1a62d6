//! Facts about backups of a SQLite store, and about coming back from one.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use holdfast_api::store::audit::{self, Actor, NewEntry};
use holdfast_api::store::backup::{BackupError, backup};
use holdfast_api::store::devices::{self, Enrolment};
use holdfast_api::store::events::{self, NewEvent};
use holdfast_api::store::lock::Lock;
use holdfast_api::store::restore::restore;
use holdfast_api::store::{Location, Store, StoreError};
use holdfast_api::{clock, params};
use holdfast_domain::chain::Verdict;
use holdfast_proto::id::DeviceId;
use holdfast_proto::time::Timestamp;
use serde_json::json;

use crate::support::Place;
use crate::support::api::{Api, report, wait_for};

const NOW: Timestamp = Timestamp::from_millis(1_795_239_600_123);

fn database(place: &Place) -> PathBuf {
    place.dir.path().join("holdfast.db")
}

/// Ends a server in memory, so that nothing has its database open.
fn end(api: Api) -> Place {
    let Api {
        place, app, router, ..
    } = api;
    drop((app, router));
    place
}

async fn count_devices(file: &Path) -> u64 {
    let store = Store::open(Location::Sqlite(file.to_owned()))
        .await
        .unwrap();
    store.read(devices::count).await.unwrap()
}

async fn enrol(store: &Store, n: u32) -> Result<(), StoreError> {
    store
        .transact(move |tx| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            let uuid = DeviceId::from_random(bytes);
            let enrolment = Enrolment {
                uuid,
                name: format!("Box {n}"),
                labels: [].into(),
                platform: "linux/amd64".parse().unwrap(),
                agent_version: "1".into(),
                token_hash: format!("hash {n}"),
            };
            devices::enrol(tx, &enrolment, NOW)?;
            let actor = Actor {
                kind: "device",
                name: n.to_string(),
                request_id: "r".into(),
            };
            let entry = NewEntry {
                action: "device.enrol",
                subject_kind: "device",
                subject: uuid.to_string(),
                before: None,
                after: None,
            };
            audit::append(tx, &actor, &entry, NOW)?;
            let event = NewEvent {
                kind: "device.enrolled",
                device: Some(uuid),
                subject: None,
                detail: json!({ "text": "x".repeat(2_000) }),
                delivery: None,
            };
            events::record(tx, &event, NOW).map(|_| ())
        })
        .await
}

#[tokio::test]
async fn c06_a_backup_while_the_server_writes_is_one_moment() {
    let place = Place::sqlite();
    let store = Store::open(place.location.clone()).await.unwrap();
    let done = Arc::new(AtomicU32::new(0));
    let (stop, mut stopping) = tokio::sync::watch::channel(false);
    let writer = tokio::spawn({
        let (store, done) = (store.clone(), Arc::clone(&done));
        async move {
            while !*stopping.borrow_and_update() {
                let n = done.load(Ordering::Relaxed);
                enrol(&store, n).await.unwrap();
                done.store(n + 1, Ordering::Relaxed);
            }
        }
    });
    wait_for("there is something to copy", || async {
        done.load(Ordering::Relaxed) > 50
    })
    .await;
    let mut copies = Vec::new();
    let before = done.load(Ordering::Relaxed);
    for n in 0..5 {
        let (from, to) = (database(&place), place.dir.path().join(format!("{n}.db")));
        copies.push(to.clone());
        let made = tokio::task::spawn_blocking(move || backup(&from, &to));
        let made = made.await.unwrap().unwrap();
        assert!(made.devices >= i64::from(before));
    }
    let during = done.load(Ordering::Relaxed) - before;
    stop.send(true).unwrap();
    writer.await.unwrap();
    assert!(during > 0, "writers waited for the backups");
    for copy in copies {
        let mode = std::fs::metadata(&copy).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let store = Store::open(Location::Sqlite(copy)).await.unwrap();
        let ((verdict, rows), devices, events) = store
            .read(|tx| {
                let events = tx.query_opt("select count(*) from events", params![])?;
                Ok::<_, StoreError>((
                    audit::verify(tx)?,
                    devices::count(tx)?,
                    events.unwrap().count(0)?,
                ))
            })
            .await
            .unwrap();
        assert!(matches!(verdict, Verdict::Whole(_)));
        assert_eq!((rows, events), (devices, devices));
    }
    let files = std::fs::read_dir(place.dir.path()).unwrap();
    let partial = files.filter(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".partial")
    });
    assert_eq!(partial.count(), 0);
}

#[tokio::test]
async fn a_device_that_was_told_more_since_the_backup_accepts_what_comes_next() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    api.set(&device, "nginx:1").await.expect(200);
    let path = device.path("/current-state");
    let copy = api.place.dir.path().join("copy.db");
    backup(&database(&api.place), &copy).unwrap();
    for version in ["v2", "v3", "v4"] {
        api.registry.push("nginx:1", version, &["linux/amd64"]);
        api.set(&device, "nginx:1").await.expect(200);
    }
    let told = Some(report(1, 4));
    api.call("PUT", &path, &device.token, told)
        .await
        .expect(204);
    api.enrol().await;

    let place = end(api);
    let restored = restore(&database(&place), &copy, NOW).unwrap();
    assert_eq!(restored.content.devices, 1);
    let api = Api::start(place).await;
    api.app.live.reload(&api.app.store).await.unwrap();
    let polled = api.poll(&device, &[]).await.expect(200).json();
    assert_eq!(polled["generation"], 1);
    let told = Some(report(2, 4));
    api.call("PUT", &path, &device.token, told)
        .await
        .expect(204);
    // What the device refuses as older than it has is lifted above it, and so is what comes next.
    let polled = api.poll(&device, &[]).await.expect(200).json();
    assert_eq!(polled["generation"], 5);
    api.registry.push("nginx:1", "v5", &["linux/amd64"]);
    let set = api.set(&device, "nginx:1").await.expect(200).json();
    assert_eq!(set["generation"], 6);

    // That there was a restore is in the log, and whoever follows events takes no number for one they know.
    let rows = api.get("/api/v1/audit?subject=store", &api.admin).await;
    assert_eq!(rows.json()["items"][0]["action"], "store.restore");
    let listed = api
        .get("/api/v1/events?kind=store.restored", &api.admin)
        .await;
    let event = listed.json()["items"][0].clone();
    assert!(event["id"].as_i64() > Some(1_000_000), "{event}");
    let verdict = api.get("/api/v1/audit/verify", &api.admin).await.json();
    assert_eq!(verdict["unbroken"], true);
}

#[tokio::test]
async fn a_file_that_is_there_is_not_overwritten() {
    let api = Api::start(Place::sqlite()).await;
    let taken = api.place.dir.path().join("taken.db");
    std::fs::write(&taken, "mine").unwrap();
    let refused = backup(&database(&api.place), &taken).unwrap_err();
    assert!(matches!(refused, BackupError::Exists(_)), "{refused}");
    assert_eq!(std::fs::read(&taken).unwrap(), b"mine");
    let nothing = api.place.dir.path().join("nothing.db");
    let refused = backup(&nothing, &api.place.dir.path().join("new.db")).unwrap_err();
    assert!(matches!(
        refused,
        BackupError::Store {
            source: StoreError::Missing(_),
            ..
        }
    ));
    assert!(!nothing.exists() && !api.place.dir.path().join("new.db").exists());
}

#[tokio::test]
async fn what_is_no_good_backup_is_refused_and_the_database_stays() {
    let api = Api::start(Place::sqlite()).await;
    for _ in 0..50 {
        api.enrol().await;
    }
    let dir = api.place.dir.path().to_owned();
    let good = dir.join("good.db");
    backup(&database(&api.place), &good).unwrap();
    let place = end(api);
    let bytes = std::fs::read(&good).unwrap();
    let newer = dir.join("newer.db");
    std::fs::copy(&good, &newer).unwrap();
    let store = Store::open(Location::Sqlite(newer.clone())).await.unwrap();
    store
        .transact(|tx| {
            tx.execute(
                "insert into schema_migrations (version, name, checksum, applied_at)
                 values (999, 'x', 'x', 1)",
                params![],
            )
        })
        .await
        .unwrap();
    drop(store);
    let mut torn = bytes.clone();
    torn.truncate(bytes.len() / 2);
    let mut flipped = bytes.clone();
    // The second half of the tree, page by page.
    for page in flipped.chunks_mut(4_096).skip(2) {
        page[..8].fill(0xff);
    }
    for (name, content) in [
        ("text.db", b"not a database".repeat(1_000)),
        ("empty.db", Vec::new()),
        ("torn.db", torn),
        ("flipped.db", flipped),
        ("newer.db", std::fs::read(&newer).unwrap()),
    ] {
        let file = dir.join(name);
        std::fs::write(&file, content).unwrap();
        let refused = restore(&database(&place), &file, NOW).unwrap_err();
        assert!(refused.to_string().contains(name), "{refused}");
        assert_eq!(count_devices(&database(&place)).await, 50, "{name}");
    }
    let absent = restore(&database(&place), &dir.join("absent.db"), NOW);
    assert!(absent.is_err());
}

fn program(place: &Place, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast-api"));
    command
        .args(words)
        .env("HOLDFAST_API_DATA_DIR", place.dir.path())
        .env("HOLDFAST_API_LISTEN", "127.0.0.1:0");
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A server of its own process, ended with the test.
struct Served(std::process::Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn under_a_running_server_there_is_a_backup_but_no_restore_and_no_second_server() {
    let place = Place::sqlite();
    let served = program(&place, &["serve"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Served)
        .unwrap();
    wait_for("the server works", || async {
        place.dir.path().join("admin-token").exists()
    })
    .await;
    let copy = place.dir.path().join("copy.db");
    let copy = copy.to_str().unwrap();
    let made = program(&place, &["backup", copy]).output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
    assert!(String::from_utf8_lossy(&made.stdout).starts_with("0 devices"));
    for words in [&["restore", copy][..], &["serve"]] {
        let refused = program(&place, words).output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            said(&refused).contains("stop it first"),
            "{}",
            said(&refused)
        );
    }
    drop(served);
    let restored = program(&place, &["restore", copy]).output().unwrap();
    assert!(restored.status.success(), "{}", said(&restored));
}

#[tokio::test]
async fn c08_a_damaged_database_is_refused_left_alone_and_replaced_by_a_restore() {
    let api = Api::start(Place::sqlite()).await;
    for _ in 0..20 {
        api.enrol().await;
    }
    let copy = api.place.dir.path().join("copy.db");
    backup(&database(&api.place), &copy).unwrap();
    let place = end(api);
    // Everything is in the one file once nobody has it open.
    assert!(!place.dir.path().join("holdfast.db-wal").exists());
    let mut bytes = std::fs::read(database(&place)).unwrap();
    for page in bytes.chunks_mut(4_096).skip(3) {
        page.reverse();
    }
    std::fs::write(database(&place), &bytes).unwrap();
    let refused = program(&place, &["serve"]).output().unwrap();
    // A person has to act: systemd does not try again.
    assert_eq!(refused.status.code(), Some(78));
    let told = said(&refused);
    assert!(
        told.contains("damaged") && told.contains("holdfast-api restore"),
        "{told}"
    );
    assert_eq!(std::fs::read(database(&place)).unwrap(), bytes);

    let restored = restore(&database(&place), &copy, NOW).unwrap();
    let kept = restored.kept.unwrap();
    assert!(kept.ends_with("holdfast.db.before-20261121T054000123Z"));
    assert_eq!(std::fs::read(kept).unwrap(), bytes);
    assert_eq!(count_devices(&database(&place)).await, 20);
}

#[tokio::test]
async fn c08_an_empty_file_is_no_empty_fleet() {
    let place = Place::sqlite();
    std::fs::write(database(&place), "").unwrap();
    let refused = Store::open(place.location.clone()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Damaged(_)), "{refused}");
    // Nor is a journal whose database is gone.
    std::fs::remove_file(database(&place)).unwrap();
    std::fs::write(place.dir.path().join("holdfast.db-wal"), "x").unwrap();
    let refused = Store::open(place.location.clone()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Damaged(_)), "{refused}");
    assert!(!database(&place).exists());
    let refused = Store::look(Location::Sqlite(place.dir.path().join("none.db"))).await;
    assert!(matches!(refused.unwrap_err(), StoreError::Missing(_)));
}

#[tokio::test]
async fn a_restore_that_broke_off_is_finished_before_a_server_starts() {
    let api = Api::start(Place::sqlite()).await;
    api.enrol().await;
    let copy = api.place.dir.path().join("copy.db");
    backup(&database(&api.place), &copy).unwrap();
    let place = end(api);
    // The moment at which the old one is aside and the new one not yet in its place.
    std::fs::copy(&copy, place.dir.path().join("holdfast.db.restore-ready")).unwrap();
    std::fs::rename(database(&place), place.dir.path().join("old.db")).unwrap();
    let refused = Store::open(place.location.clone()).await.unwrap_err();
    assert!(matches!(refused, StoreError::HalfRestored(_)), "{refused}");
    assert!(!database(&place).exists(), "no empty database in its place");
    let restored = restore(&database(&place), &copy, NOW).unwrap();
    assert_eq!(restored.kept, None);
    assert_eq!(count_devices(&database(&place)).await, 1);
}

#[tokio::test]
async fn a_backup_comes_back_on_a_machine_that_has_nothing_yet() {
    let api = Api::start(Place::sqlite()).await;
    api.enrol().await;
    let copy = api.place.dir.path().join("copy.db");
    backup(&database(&api.place), &copy).unwrap();
    let fresh = api.place.dir.path().join("new/data/holdfast.db");
    let restored = restore(&fresh, &copy, NOW).unwrap();
    assert_eq!((restored.content.devices, restored.kept), (1, None));
    assert_eq!(count_devices(&fresh).await, 1);
}

#[tokio::test]
async fn what_a_restore_put_aside_comes_back_with_what_was_only_in_its_journal() {
    let api = Api::start(Place::sqlite()).await;
    let copy = api.place.dir.path().join("copy.db");
    backup(&database(&api.place), &copy).unwrap();
    api.enrol().await;
    // A power cut: the files as they are while the server has them open.
    let crashed = Place::sqlite();
    for name in ["holdfast.db", "holdfast.db-wal"] {
        let from = api.place.dir.path().join(name);
        std::fs::copy(from, crashed.dir.path().join(name)).unwrap();
    }
    let restored = restore(&database(&crashed), &copy, NOW).unwrap();
    assert_eq!(restored.content.devices, 0);
    let kept = restored.kept.unwrap();
    let back = restore(&database(&crashed), &kept, clock::now()).unwrap();
    assert_eq!(back.content.devices, 1);
    assert_eq!(count_devices(&database(&crashed)).await, 1);
}

#[test]
fn a_lock_is_held_by_one_and_free_when_it_ends() {
    let place = Place::sqlite();
    let held = Lock::take(&database(&place)).unwrap();
    assert!(Lock::take(&database(&place)).is_err());
    drop(held);
    Lock::take(&database(&place)).unwrap();
}

#[test]
fn postgres_has_tools_of_its_own() {
    let place = Place::sqlite();
    for (words, tool) in [
        (["backup", "x"], "pg_dump"),
        (["restore", "x"], "pg_restore"),
    ] {
        let refused = program(&place, &words)
            .env("HOLDFAST_API_DATABASE", "postgres://h/d")
            .output()
            .unwrap();
        assert!(!refused.status.success());
        assert!(said(&refused).contains(tool));
    }
}
