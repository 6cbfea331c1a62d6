//! Facts about the store, each on SQLite and on PostgreSQL.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_api::params;
use holdfast_api::store::audit::{self, Actor, NewEntry};
use holdfast_api::store::devices::{self, Enrolment, Filter};
use holdfast_api::store::enrolment_keys::{self as keys, NewKey};
use holdfast_api::store::events::{self, NewEvent};
use holdfast_api::store::reports::{self, Report};
use holdfast_api::store::resolutions::{self, Due, Key, Resolution};
use holdfast_api::store::targets::{self, Named, Target};
use holdfast_api::store::{Change, Store, StoreError, Tx, credentials, tag_history};
use holdfast_api::vault::Sealed;
use holdfast_domain::resolution::{Failure, learn};
use holdfast_domain::scope::Scope;
use holdfast_domain::voices::Verdict;
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::{
    ConfigDigest, Digest, IndexDigest, ManifestDigest, PlatformImage, Reference, ResolvedImage,
    TopDigest,
};
use holdfast_proto::time::Timestamp;
use serde_json::json;

use crate::support::Place;
use crate::support::api::wait_for;

crate::on_both_databases![
    a_failed_transaction_leaves_nothing_behind,
    parameters_bind_by_number_whatever_their_order,
    a_read_cannot_write,
    concurrent_increments_are_all_counted,
    a_key_of_n_uses_is_used_n_times_by_parallel_enrolments,
    an_expired_key_is_not_used,
    a_target_never_goes_back_a_generation,
    an_older_report_does_not_replace_a_newer_one,
    a_resolution_reads_back_as_it_was_stored,
    only_resolutions_that_a_target_names_fall_due,
    a_shorter_interval_holds_at_once,
    the_most_special_credentials_count_for_each_reference,
    a_history_keeps_periods_and_forgets_the_oldest,
    lists_page_by_key_and_filter,
    wildcards_in_a_search_mean_themselves,
    a_removed_device_takes_everything_with_it,
    a_delivery_is_recorded_once,
    audit_rows_come_back_newest_first,
    an_announcement_arrives_after_commit_and_only_then,
    opening_a_migrated_store_again_changes_nothing,
    c12_a_store_migrated_by_another_program_is_refused,
];

async fn open(place: &Place) -> Store {
    Store::open(place.location.clone()).await.unwrap()
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn uuid(n: u8) -> DeviceId {
    DeviceId::from_random([n; 16])
}

fn enrolment(n: u8) -> Enrolment {
    Enrolment {
        uuid: uuid(n),
        name: format!("Box {n}"),
        labels: BTreeMap::from([("site".to_owned(), format!("s{}", n % 2))]),
        platform: if n.is_multiple_of(2) {
            "linux/amd64"
        } else {
            "linux/arm64"
        }
        .parse()
        .unwrap(),
        agent_version: "1".into(),
        token_hash: format!("hash {n}"),
    }
}

async fn enrol(store: &Store, n: u8) -> i64 {
    store
        .transact(move |tx| devices::enrol(tx, &enrolment(n), at(1)))
        .await
        .unwrap()
}

fn key(reference: &str) -> Key {
    Key::of(&reference.parse::<Reference>().unwrap())
}

fn target(generation: u64) -> Target {
    Target {
        input: "{}".into(),
        body: format!("body {generation}"),
        etag: format!("\"{generation}\""),
        generation,
        changed_at: at(5),
    }
}

async fn set(store: &Store, row: i64, generation: u64, images: &[&str]) -> bool {
    let named = |image: &&str| Named {
        key: key(image),
        waits: false,
    };
    let keys: Vec<Named> = images.iter().map(named).collect();
    store
        .transact(move |tx| targets::set(tx, row, &target(generation), &keys))
        .await
        .unwrap()
}

/// Devices whose target names this repository.
fn naming(tx: &mut Tx<'_>, repository: &str) -> Result<Vec<(i64, DeviceId)>, StoreError> {
    tx.query(
        "select d.id, d.uuid from target_references r join devices d on d.id = r.device_id
         where r.repository = $1 order by d.id",
        params![repository],
    )?
    .iter()
    .map(|row| Ok((row.int(0)?, row.parsed(1)?)))
    .collect()
}

async fn a_failed_transaction_leaves_nothing_behind(place: Place) {
    let store = open(&place).await;
    let outcome: Result<(), StoreError> = store
        .transact(|tx| {
            devices::enrol(tx, &enrolment(1), at(1))?;
            tx.announce(uuid(1))?;
            Err(StoreError::Interrupted)
        })
        .await;
    assert!(outcome.is_err());
    assert_eq!(store.read(devices::count).await.unwrap(), 0);
}

async fn parameters_bind_by_number_whatever_their_order(place: Place) {
    let store = open(&place).await;
    let row = store
        .read(|tx: &mut Tx<'_>| {
            tx.query_opt(
                "select cast($2 as text), cast($1 as bigint), cast($3 as text), cast($2 as text)",
                params![7_i64, "two", None::<&str>],
            )
        })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.text(0).unwrap(), "two");
    assert_eq!(row.int(1).unwrap(), 7);
    assert_eq!(row.opt_text(2).unwrap(), None);
    assert_eq!(row.text(3).unwrap(), "two");
    assert!(row.int(0).is_err(), "a text is not a number");
}

async fn a_read_cannot_write(place: Place) {
    let store = open(&place).await;
    let outcome = store
        .read(|tx| devices::enrol(tx, &enrolment(1), at(1)))
        .await;
    assert!(outcome.is_err());
    assert_eq!(store.read(devices::count).await.unwrap(), 0);
}

async fn concurrent_increments_are_all_counted(place: Place) {
    let store = open(&place).await;
    store
        .transact(|tx| {
            keys::insert(
                tx,
                &NewKey {
                    name: "k".into(),
                    hash: "h".into(),
                    labels: BTreeMap::new(),
                    max_uses: None,
                    expires_at: None,
                },
                at(1),
            )
        })
        .await
        .unwrap();
    // Read, then write what was read plus one: only serialisable transactions count right.
    let one = |store: Store| async move {
        store
            .transact(|tx| {
                let used = tx
                    .query_opt(
                        "select used from enrolment_keys where hash = 'h'",
                        params![],
                    )?
                    .unwrap()
                    .int(0)?;
                tx.execute(
                    "update enrolment_keys set used = $1 where hash = 'h'",
                    params![used + 1],
                )?;
                Ok::<_, StoreError>(())
            })
            .await
    };
    let tasks: Vec<_> = (0..6).map(|_| tokio::spawn(one(store.clone()))).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let listed = store.read(|tx| keys::list(tx, 0, 10)).await.unwrap();
    assert_eq!(listed[0].used, 6);
}

async fn a_key_of_n_uses_is_used_n_times_by_parallel_enrolments(place: Place) {
    let store = Arc::new(open(&place).await);
    store
        .transact(|tx| {
            keys::insert(
                tx,
                &NewKey {
                    name: "k".into(),
                    hash: "h".into(),
                    labels: BTreeMap::new(),
                    max_uses: Some(3),
                    expires_at: None,
                },
                at(1),
            )
        })
        .await
        .unwrap();
    let tasks: Vec<_> = (0..12)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.transact(|tx| keys::take(tx, "h", at(2))).await })
        })
        .collect();
    let mut taken = 0;
    for task in tasks {
        // Busy is an honest answer under contention; a fourth use would not be.
        match task.await.unwrap() {
            Ok(found) => taken += usize::from(found.is_some()),
            Err(error) => assert!(error.is_temporary(), "{error}"),
        }
    }
    assert_eq!(taken, 3);
}

async fn an_expired_key_is_not_used(place: Place) {
    let store = open(&place).await;
    let found = store
        .transact(|tx| {
            keys::insert(
                tx,
                &NewKey {
                    name: "k".into(),
                    hash: "h".into(),
                    labels: BTreeMap::new(),
                    max_uses: None,
                    expires_at: Some(at(10)),
                },
                at(1),
            )?;
            Ok::<_, StoreError>((
                keys::take(tx, "h", at(9))?.is_some(),
                keys::take(tx, "h", at(10))?.is_some(),
                keys::take(tx, "other", at(9))?.is_some(),
            ))
        })
        .await
        .unwrap();
    assert_eq!(found, (true, false, false));
}

async fn a_target_never_goes_back_a_generation(place: Place) {
    let store = open(&place).await;
    let row = enrol(&store, 1).await;
    assert!(set(&store, row, 5, &["redis"]).await);
    assert!(!set(&store, row, 5, &["nginx"]).await);
    assert!(!set(&store, row, 4, &["nginx"]).await);
    assert!(set(&store, row, 6, &["nginx"]).await);
    let (found, with_redis, with_nginx) = store
        .read(move |tx| {
            Ok::<_, StoreError>((
                targets::find(tx, row)?,
                naming(tx, "library/redis")?,
                naming(tx, "library/nginx")?,
            ))
        })
        .await
        .unwrap();
    assert_eq!(found, Some(target(6)));
    assert!(with_redis.is_empty());
    assert_eq!(with_nginx, [(row, uuid(1))]);
}

async fn an_older_report_does_not_replace_a_newer_one(place: Place) {
    let store = open(&place).await;
    let row = enrol(&store, 1).await;
    let report = |sequence: u64, journal: &str| Report {
        sequence,
        journal: journal.to_owned(),
        generation: sequence * 10,
        status: "converged".into(),
        body: format!("{{\"n\":{sequence}}}"),
        received_at: at(1),
    };
    let mut stored = Vec::new();
    // The last one comes from an agent that lost its journal and counts anew.
    for (sequence, journal) in [(2, "a"), (1, "a"), (2, "a"), (3, "a"), (1, "b")] {
        let report = report(sequence, journal);
        stored.push(
            store
                .transact(move |tx| reports::put(tx, row, &report, ""))
                .await
                .unwrap()
                == Verdict::Newer,
        );
    }
    assert_eq!(stored, [true, false, false, true, true]);
    let found = store.read(move |tx| reports::find(tx, row)).await.unwrap();
    assert_eq!(found, Some(report(1, "b")));
}

fn image(top: TopDigest) -> ResolvedImage {
    ResolvedImage {
        repository: "redis".parse::<Reference>().unwrap().repository().clone(),
        top,
        media_type: "application/vnd.oci.image.index.v1+json".into(),
        platforms: vec![PlatformImage {
            platform: "linux/arm/v7".parse().unwrap(),
            manifest_digest: ManifestDigest(Digest::of(b"m")),
            config_digest: ConfigDigest(Digest::of(b"c")),
            size_bytes: 1 << 40,
        }],
    }
}

async fn a_resolution_reads_back_as_it_was_stored(place: Place) {
    let store = open(&place).await;
    let index = image(TopDigest::Index(IndexDigest(Digest::of(b"i"))));
    let single = image(TopDigest::Manifest(ManifestDigest(Digest::of(b"m"))));
    let known = learn(None, Ok(index), at(1));
    for known in [
        known.clone(),
        learn(
            Some(&known),
            Err(Failure::new("unreachable", "away")),
            at(2),
        ),
        learn(None, Err(Failure::new("unreachable", "never")), at(3)),
        learn(None, Ok(single), at(4)),
    ] {
        let stored = Resolution {
            key: key("redis"),
            scope: Scope::Registry,
            known,
            attempts: 3,
            next_attempt_at: Some(at(9)),
        };
        let put = stored.clone();
        let found = store
            .transact(move |tx| {
                resolutions::put(tx, &put)?;
                resolutions::find(tx, &put.key, &put.scope)
            })
            .await
            .unwrap();
        assert_eq!(found, Some(stored));
    }
}

async fn only_resolutions_that_a_target_names_fall_due(place: Place) {
    let store = open(&place).await;
    let row = enrol(&store, 1).await;
    set(&store, row, 1, &["redis", "nginx"]).await;
    store
        .transact(|tx| {
            for (name, next) in [("redis", 20), ("nginx", 10), ("unused", 1)] {
                resolutions::put(
                    tx,
                    &Resolution {
                        key: key(name),
                        scope: Scope::Registry,
                        known: learn(None, Err(Failure::new("unreachable", "away")), at(1)),
                        attempts: 1,
                        next_attempt_at: Some(at(next)),
                    },
                )?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    let take = |now| {
        let store = store.clone();
        async move {
            let due = Due {
                now: at(now),
                refresh_before: None,
                limit: 10,
            };
            let taken = store
                .transact(move |tx| resolutions::take_due(tx, due, at(now + 100)))
                .await
                .unwrap();
            taken
                .into_iter()
                .map(|it| it.key.repository)
                .collect::<Vec<_>>()
        }
    };
    let next = || store.read(resolutions::next_due);
    assert_eq!(take(9).await, Vec::<String>::new());
    assert_eq!(next().await.unwrap(), Some(at(10)));
    assert_eq!(take(20).await, ["library/nginx", "library/redis"]);
    // Whoever takes it puts it off for the others, but not for ever.
    assert_eq!(take(20).await, Vec::<String>::new());
    assert_eq!(next().await.unwrap(), Some(at(120)));
    assert_eq!(take(120).await.len(), 2);
}

async fn a_shorter_interval_holds_at_once(place: Place) {
    let store = open(&place).await;
    let row = enrol(&store, 1).await;
    set(&store, row, 1, &["redis"]).await;
    store
        .transact(|tx| {
            let single = image(TopDigest::Manifest(ManifestDigest(Digest::of(b"m"))));
            resolutions::put(
                tx,
                &Resolution {
                    key: key("redis"),
                    scope: Scope::Registry,
                    known: learn(None, Ok(single), at(1_000)),
                    attempts: 0,
                    next_attempt_at: Some(at(9_000)),
                },
            )
        })
        .await
        .unwrap();
    let take = |now, refresh_before: Option<i64>| {
        let store = store.clone();
        async move {
            let due = Due {
                now: at(now),
                refresh_before: refresh_before.map(at),
                limit: 10,
            };
            let taken = store.transact(move |tx| resolutions::take_due(tx, due, at(now + 1)));
            taken.await.unwrap().len()
        }
    };
    assert_eq!(take(8_999, None).await, 0);
    assert_eq!(take(8_999, Some(900)).await, 0);
    // Asked so long ago that the interval must have become shorter.
    assert_eq!(take(8_000, Some(1_001)).await, 1);
    assert_eq!(take(9_000, Some(900)).await, 1);
    let next = store.read(resolutions::next_due).await.unwrap();
    assert_eq!(next, Some(at(9_001)));
}

async fn the_most_special_credentials_count_for_each_reference(place: Place) {
    let store = open(&place).await;
    for n in 1..=3 {
        let row = enrol(&store, n).await;
        set(&store, row, 1, &["reg.example/a:1"]).await;
    }
    let put = |scope: Scope, row: Option<i64>| {
        let store = store.clone();
        async move {
            let new = credentials::New {
                registry: "reg.example".into(),
                scope,
                kind: "password",
                username: Some("u".into()),
                sealed: Sealed {
                    text: "00".into(),
                    key_id: "k".into(),
                },
                hand_out: false,
            };
            store
                .transact(move |tx| credentials::put(tx, &new, row, at(5)))
                .await
                .unwrap();
        }
    };
    let in_fleet = store
        .transact(|tx| {
            let mut device = devices::find(tx, uuid(1))?.unwrap();
            device.labels.insert("fleet".into(), "north".into());
            devices::update(tx, &device)?;
            let mut other = devices::find(tx, uuid(2))?.unwrap();
            other.labels.insert("fleet".into(), "north".into());
            devices::update(tx, &other)?;
            Ok::<_, StoreError>(device.id)
        })
        .await
        .unwrap();
    put(Scope::Fleet("north".into()), None).await;
    put(Scope::Device(uuid(1)), Some(in_fleet)).await;
    let adopted = || {
        let store = store.clone();
        async move {
            store
                .transact(|tx| resolutions::adopt(tx, None, at(7)))
                .await
                .unwrap()
        }
    };
    // The device's own, its fleet's, and those of the rest.
    assert_eq!(adopted().await, 3);
    assert_eq!(adopted().await, 0);
    for (n, scope) in [
        (1, Scope::Device(uuid(1))),
        (2, Scope::Fleet("north".into())),
    ] {
        let found = store
            .read(move |tx| credentials::of_device(tx, "reg.example", uuid(n), Some("north")))
            .await
            .unwrap();
        assert_eq!(found.unwrap().scope, scope);
    }
    // A device that is gone takes its own along.
    store
        .transact(|tx| devices::remove(tx, uuid(1)))
        .await
        .unwrap();
    let left = store
        .read(|tx| credentials::list(tx, None, 0, 10))
        .await
        .unwrap();
    assert_eq!(left.len(), 1);
}

async fn a_history_keeps_periods_and_forgets_the_oldest(place: Place) {
    let store = open(&place).await;
    store
        .transact(|tx| {
            for n in 0..tag_history::KEPT + 20 {
                // Two digests in turn: each time the tag moved back.
                let digest = Digest::of(&[u8::try_from(n % 2).unwrap()]);
                tag_history::see(tx, &key("redis"), &digest, at(10 * n))?;
                tag_history::see(tx, &key("redis"), &digest, at(10 * n + 5))?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    let periods = store
        .read(|tx| tag_history::of(tx, &key("redis")))
        .await
        .unwrap();
    assert_eq!(i64::try_from(periods.len()).unwrap(), tag_history::KEPT);
    let newest = periods[0];
    assert_eq!(newest.last_seen.since_ms(newest.first_seen), 5);
    let rows = store
        .read(|tx| tx.query("select count(*) from tag_history", params![])?[0].int(0))
        .await
        .unwrap();
    assert_eq!(rows, tag_history::KEPT);
}

async fn lists_page_by_key_and_filter(place: Place) {
    let store = open(&place).await;
    for n in 1..=5 {
        let row = enrol(&store, n).await;
        if n > 2 {
            store
                .transact(move |tx| devices::seen(tx, row, at(i64::from(n) * 100)))
                .await
                .unwrap();
        }
    }
    let names = |filter: Filter, after, limit| {
        let store = store.clone();
        async move {
            let found = store
                .read(move |tx| devices::list(tx, &filter, after, limit))
                .await
                .unwrap();
            found.into_iter().map(|it| it.name).collect::<Vec<_>>()
        }
    };
    let all = Filter::default();
    let first = store
        .read(|tx| devices::list(tx, &Filter::default(), 0, 2))
        .await
        .unwrap();
    assert_eq!(names(all.clone(), 0, 2).await, ["Box 1", "Box 2"]);
    assert_eq!(
        names(all, first[1].id, 9).await,
        ["Box 3", "Box 4", "Box 5"]
    );
    for (filter, expected) in [
        (
            Filter {
                search: Some("OX 3".into()),
                ..Filter::default()
            },
            vec!["Box 3"],
        ),
        (
            Filter {
                search: Some(uuid(4).to_string().to_uppercase()),
                ..Filter::default()
            },
            vec!["Box 4"],
        ),
        (
            Filter {
                name: Some("Box 5".into()),
                ..Filter::default()
            },
            vec!["Box 5"],
        ),
        (
            Filter {
                label: Some(("site".into(), Some("s0".into()))),
                ..Filter::default()
            },
            vec!["Box 2", "Box 4"],
        ),
        (
            Filter {
                label: Some(("rack".into(), None)),
                ..Filter::default()
            },
            vec![],
        ),
        (
            Filter {
                platform: Some("linux/arm64".parse().unwrap()),
                ..Filter::default()
            },
            vec!["Box 1", "Box 3", "Box 5"],
        ),
        (
            Filter {
                seen_since: Some(at(400)),
                ..Filter::default()
            },
            vec!["Box 4", "Box 5"],
        ),
        (
            Filter {
                not_seen_since: Some(at(400)),
                ..Filter::default()
            },
            vec!["Box 3"],
        ),
        (
            Filter {
                never_seen: true,
                ..Filter::default()
            },
            vec!["Box 1", "Box 2"],
        ),
    ] {
        assert_eq!(names(filter.clone(), 0, 9).await, expected, "{filter:?}");
    }
}

async fn wildcards_in_a_search_mean_themselves(place: Place) {
    let store = open(&place).await;
    enrol(&store, 1).await;
    for search in ["%", "_", "\\", "' or '1'='1"] {
        let filter = Filter {
            search: Some(search.to_owned()),
            ..Filter::default()
        };
        let found = store
            .read(move |tx| devices::list(tx, &filter, 0, 9))
            .await
            .unwrap();
        assert!(found.is_empty(), "{search}");
    }
}

async fn a_removed_device_takes_everything_with_it(place: Place) {
    let store = open(&place).await;
    let row = enrol(&store, 1).await;
    set(&store, row, 1, &["redis"]).await;
    let left = store
        .transact(move |tx| {
            assert!(devices::remove(tx, uuid(1))?);
            assert!(!devices::remove(tx, uuid(1))?);
            Ok::<_, StoreError>((
                targets::find(tx, row)?.is_some(),
                devices::by_token_hash(tx, "hash 1")?.is_some(),
                naming(tx, "library/redis")?.len(),
            ))
        })
        .await
        .unwrap();
    assert_eq!(left, (false, false, 0));
}

async fn a_delivery_is_recorded_once(place: Place) {
    let store = open(&place).await;
    let recorded = store
        .transact(|tx| {
            let event = |delivery: Option<&'static str>| NewEvent {
                kind: "k",
                device: Some(uuid(1)),
                subject: None,
                detail: json!({"a": 1}),
                delivery,
            };
            Ok::<_, StoreError>([
                events::record(tx, &event(Some("d")), at(1))?,
                events::record(tx, &event(Some("d")), at(2))?,
                events::record(tx, &event(None), at(3))?,
                events::record(tx, &event(None), at(4))?,
            ])
        })
        .await
        .unwrap();
    assert_eq!(recorded, [true, false, true, true]);
    let listed = store
        .read(|tx| events::list(tx, Some("k"), Some(uuid(1)), i64::MAX, 2))
        .await
        .unwrap();
    assert_eq!(
        listed.iter().map(|it| it.at).collect::<Vec<_>>(),
        [at(4), at(3)]
    );
}

async fn audit_rows_come_back_newest_first(place: Place) {
    let store = open(&place).await;
    store
        .transact(|tx| {
            let actor = Actor {
                kind: "operator",
                name: "ci".into(),
                request_id: "r".into(),
            };
            for subject in ["a", "b", "a"] {
                let entry = NewEntry {
                    action: "x",
                    subject_kind: "device",
                    subject: subject.to_owned(),
                    before: None,
                    after: Some(json!({"of": subject})),
                };
                audit::append(tx, &actor, &entry, at(1))?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    let found = store
        .read(|tx| audit::list(tx, Some("a"), i64::MAX, 9))
        .await
        .unwrap();
    assert_eq!(found.len(), 2);
    assert!(found[0].id > found[1].id);
    assert_eq!(found[0].after, Some(json!({"of": "a"})));
    assert_eq!(found[0].before, None);
}

async fn an_announcement_arrives_after_commit_and_only_then(place: Place) {
    let store = open(&place).await;
    let mut changes = store.changes();
    let failed: Result<(), StoreError> = store
        .transact(|tx| {
            tx.announce(uuid(1))?;
            Err(StoreError::Interrupted)
        })
        .await;
    assert!(failed.is_err());
    store.transact(|tx| tx.announce(uuid(2))).await.unwrap();
    assert_eq!(changes.recv().await.unwrap(), Change::Device(uuid(2)));
}

async fn opening_a_migrated_store_again_changes_nothing(place: Place) {
    let store = open(&place).await;
    enrol(&store, 1).await;
    drop(store);
    let again = open(&place).await;
    assert_eq!(again.read(devices::count).await.unwrap(), 1);
}

async fn c12_a_store_migrated_by_another_program_is_refused(place: Place) {
    let store = open(&place).await;
    store
        .transact(|tx| {
            tx.execute("update schema_migrations set checksum = 'other'", params![])
                .map(|_| ())
        })
        .await
        .unwrap();
    drop(store);
    let refused = Store::open(place.location.clone()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Migration { version: 1 }));
}

#[tokio::test]
async fn replicas_on_one_postgres_hear_of_each_others_changes() {
    let place = tokio::task::spawn_blocking(Place::postgres).await.unwrap();
    let one = open(&place).await;
    let other = open(&place).await;
    let mut changes = other.changes();
    one.transact(|tx| tx.announce(uuid(7))).await.unwrap();
    assert_eq!(changes.recv().await.unwrap(), Change::Device(uuid(7)));
}

#[tokio::test]
async fn c12_replicas_that_start_together_migrate_once() {
    let place = tokio::task::spawn_blocking(Place::postgres).await.unwrap();
    let opened: Vec<_> = (0..3)
        .map(|_| tokio::spawn(Store::open(place.location.clone())))
        .collect();
    for store in opened {
        store.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn c11_a_dropped_postgres_connection_is_replaced_and_the_feed_catches_up() {
    let place = tokio::task::spawn_blocking(Place::postgres).await.unwrap();
    let store = open(&place).await;
    let mut changes = store.changes();
    let _ = store
        .transact(|tx| {
            tx.query(
                "select cast(pg_terminate_backend(pid) as text) from pg_stat_activity
                 where datname = current_database() and pid <> pg_backend_pid()",
                params![],
            )
            .map(|_| ())
        })
        .await;
    assert_eq!(changes.recv().await.unwrap(), Change::Everything);
    wait_for("a lost connection is replaced", || async {
        store.read(devices::count).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn c08_a_damaged_sqlite_file_is_refused_and_left_alone() {
    let place = Place::sqlite();
    let file = place.dir.path().join("holdfast.db");
    std::fs::write(&file, vec![b'x'; 8192]).unwrap();
    let refused = Store::open(place.location.clone()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Damaged(_)), "{refused:?}");
    assert_eq!(std::fs::read(&file).unwrap(), vec![b'x'; 8192]);
}
