//! The invariants must be able to fail: rows that hold, and wrongs planted in them one by one.

use holdfast_proto::image::{ConfigDigest, Digest};
use serde_json::json;

use super::rows::{Rules, Told};
use super::*;

const SOAK: i64 = 60_000;

fn content(name: &str) -> ConfigDigest {
    ConfigDigest(Digest::of(name.as_bytes()))
}

fn told(cause: &str, version: &str, at: i64, verified_at: Option<i64>) -> Told {
    let (registry, repository) = ("registry.example".to_owned(), "app".to_owned());
    Told {
        cause: cause.to_owned(),
        at,
        verified_at,
        contents: vec![(registry, repository, content(version))],
    }
}

fn line(rows: &mut Rows, device: Option<&str>, what: &str, at: i64) {
    rows.log.push(Line {
        rollout: 1,
        device: device.map(str::to_owned),
        what: what.to_owned(),
        detail: String::new(),
        at,
    });
}

/// Rollout 1 of four devices in batches of two: the first batch is verified, the second one on its way.
fn right() -> Rows {
    let mut rows = Rows {
        now: 200_000,
        ..Rows::default()
    };
    let rollout = Rollout {
        scope: String::new(),
        image: ["registry.example", "app", "1"].map(str::to_owned).into(),
        digest: Some("sha256:new".to_owned()),
        contents: [content("new")].into(),
        rules: Rules {
            soak_ms: SOAK,
            health_timeout_ms: 60_000,
            min_success_percent: 90,
            budget: None,
            waits_for_people: false,
        },
        state: "running".to_owned(),
        opened: 2,
        since: 2_000,
        ended_at: None,
    };
    rows.rollouts.insert(1, rollout);
    line(&mut rows, None, "batch_opened", 3_000);
    for (device, batch) in [("a", 0), ("b", 0), ("c", 1), ("d", 1)] {
        let uuid = device.to_owned();
        rows.told
            .insert((uuid.clone(), 1), told("set", "old", 500, Some(600)));
        let (standing, at) = if batch == 0 {
            ("verified", 3_000)
        } else {
            ("updating", 100_000)
        };
        if device == "c" {
            line(&mut rows, None, "batch_opened", at);
        }
        line(&mut rows, Some(device), "told", at);
        if batch == 0 {
            line(&mut rows, Some(device), "verified", at + SOAK);
        }
        let verified_at = (batch == 0).then_some(4_000);
        rows.told
            .insert((uuid.clone(), 2), told("rollout:1", "new", at, verified_at));
        rows.targets.insert(uuid.clone(), 2);
        rows.reports
            .insert(uuid.clone(), (if batch == 0 { 2 } else { 1 }, 9));
        rows.members.push(Member {
            rollout: 1,
            device: uuid,
            batch,
            standing: standing.to_owned(),
            group: None,
            generation: Some(2),
            back_to: Some(1),
        });
    }
    // The log is in the order of time.
    rows.log.sort_by_key(|line| line.at);
    rows
}

/// The same, gone wrong: every device was told to go back, and the first two are back.
fn back() -> Rows {
    let mut rows = right();
    rows.rollouts.get_mut(&1).unwrap().state = "rolling_back".to_owned();
    for at in 0..4 {
        let device = rows.members[at].device.clone();
        rows.told
            .insert((device.clone(), 3), told("back:1", "old", 150_000, None));
        rows.targets.insert(device.clone(), 3);
        rows.reports.insert(device, (3, 10));
        rows.members[at].generation = Some(3);
        rows.members[at].standing = if at < 2 { "returned" } else { "returning" }.to_owned();
    }
    rows
}

fn rollout(rows: &mut Rows) -> &mut Rollout {
    rows.rollouts.get_mut(&1).unwrap()
}

/// The invariant that is broken, and how.
type Wrong = (&'static str, fn(&mut Rows));

/// Each wrong is found, by the invariant that it breaks.
fn finds(of: fn() -> Rows, wrongs: &[Wrong]) {
    assert_eq!(judge(None, &of()), Ok(()));
    for (number, (invariant, plant)) in wrongs.iter().enumerate() {
        let mut rows = of();
        plant(&mut rows);
        let found = judge(Some(&of()), &rows).expect_err("a wrong was planted");
        assert!(found.starts_with(invariant), "wrong {number}: {found}");
    }
}

#[test]
fn a_device_that_was_touched_before_its_turn_is_found() {
    finds(
        right,
        &[
            ("I15", |rows| rows.members[3].batch = 2),
            ("I15", |rows| {
                rows.members[2].standing = "skipped".to_owned();
            }),
            ("I15", |rows| {
                rows.members[1].standing = "updating".to_owned();
            }),
            ("I15", |rows| {
                rows.members[2].standing = "waiting".to_owned();
            }),
            ("I15", |rows| {
                rows.members.retain(|member| member.device != "d");
            }),
            ("I15", |rows| rollout(rows).rules.budget = Some(1)),
            ("I15", |rows| {
                rollout(rows).state = "succeeded".to_owned();
                rows.members[0].standing = "updating".to_owned();
            }),
            ("I15", |rows| rollout(rows).opened = 1),
        ],
    );
    let mut within = right();
    rollout(&mut within).rules.budget = Some(2);
    assert_eq!(i15(&within), Ok(()));
}

#[test]
fn a_batch_that_was_opened_too_early_is_found() {
    finds(
        right,
        &[
            ("I16", |rows| {
                rows.log.retain(|line| line.what != "batch_opened");
            }),
            ("I16", |rows| {
                rows.log.retain(|line| line.what != "verified");
            }),
            ("I16", |rows| {
                let mut verified = rows.log.iter_mut().filter(|line| line.what == "verified");
                verified.next().unwrap().what = "failed".to_owned();
            }),
            ("I16", |rows| {
                let mut verified = rows.log.iter_mut().filter(|line| line.what == "verified");
                verified.next().unwrap().at = 3_000 + SOAK - 1;
            }),
        ],
    );
    // With half of them needed, one of two is enough; what was lost served no soak.
    let mut half = right();
    rollout(&mut half).rules.min_success_percent = 50;
    let mut verified = half.log.iter_mut().filter(|line| line.what == "verified");
    verified.next().unwrap().what = "lost".to_owned();
    assert_eq!(i16(&half), Ok(()));
    // A batch in which nobody had to do anything opens the next one.
    let mut unchanged = right();
    unchanged
        .log
        .retain(|line| line.what != "told" || line.at > 3_000);
    for line in unchanged
        .log
        .iter_mut()
        .filter(|line| line.what == "verified")
    {
        line.what = "unchanged".to_owned();
    }
    assert_eq!(i16(&unchanged), Ok(()));
}

#[test]
fn a_device_that_enters_twice_or_moves_is_found() {
    finds(
        right,
        &[
            ("I17", |rows| {
                let given = told("rollout:1", "new", 120_000, None);
                rows.told.insert(("a".to_owned(), 3), given);
            }),
            ("I17", |rows| {
                rows.members.retain(|member| member.device != "a");
                rows.told
                    .retain(|(device, generation), _| device != "a" || *generation == 1);
            }),
            ("I17", |rows| {
                let mut late = rows.members[0].clone();
                late.device = "e".to_owned();
                late.batch = 5;
                late.standing = "gone".to_owned();
                rows.members.push(late);
            }),
        ],
    );
    let (was, mut moved) = (right(), right());
    moved.members[0].batch = 1;
    assert!(
        i17(&was, &moved)
            .unwrap_err()
            .starts_with("I17: a of batch 0")
    );
    moved.retried.insert(1);
    assert_eq!(i17(&was, &moved), Ok(()));
    let mut closed = right();
    rollout(&mut closed).opened = 1;
    assert!(
        i17(&was, &closed)
            .unwrap_err()
            .contains("had 2 batches open and has 1")
    );
}

#[test]
fn two_rollouts_of_an_image_and_one_without_an_end_are_found() {
    finds(
        right,
        &[
            ("I18", |rows| {
                let mut other = rollout(rows).clone();
                other.opened = 0;
                rows.rollouts.insert(2, other);
            }),
            ("I18", |rows| rollout(rows).state = "succeeded".to_owned()),
            ("I18", |rows| rollout(rows).ended_at = Some(5)),
            ("I18", |rows| {
                rows.now += 2 * (60_000 + SOAK + SILENCE_MS) + SLACK_MS;
            }),
        ],
    );
    let mut waits = right();
    waits.now += 1_000_000_000;
    rollout(&mut waits).rules.waits_for_people = true;
    assert_eq!(i18(&waits), Ok(()));
    let mut elsewhere = right();
    let mut other = rollout(&mut elsewhere).clone();
    other.opened = 0;
    other.scope = "fleet:other".to_owned();
    elsewhere.rollouts.insert(2, other);
    assert_eq!(i18(&elsewhere), Ok(()));
}

#[test]
fn a_way_back_to_what_was_never_verified_is_found() {
    let first = ("a".to_owned(), 1);
    assert!(back().told.contains_key(&first));
    finds(
        back,
        &[
            ("I19", |rows| {
                rows.told.get_mut(&("a".to_owned(), 1)).unwrap().verified_at = None;
            }),
            ("I19", |rows| {
                rows.told.remove(&("a".to_owned(), 1));
            }),
            ("I19", |rows| rows.members[0].back_to = None),
            ("I19", |rows| {
                let given = rows.told.remove(&("a".to_owned(), 2)).unwrap();
                rows.told
                    .insert(("a".to_owned(), 2), told("set", "x", 700, Some(800)));
                rows.told.insert(("a".to_owned(), 3), given);
                rows.told
                    .insert(("a".to_owned(), 4), told("back:1", "old", 150_000, None));
                rows.members[0].generation = Some(4);
                rows.reports.insert("a".to_owned(), (4, 11));
            }),
            ("I19", |rows| {
                rows.told
                    .get_mut(&("a".to_owned(), 3))
                    .unwrap()
                    .contents
                    .clear();
            }),
            ("I19", |rows| {
                rows.told.get_mut(&("a".to_owned(), 3)).unwrap().cause = "set".to_owned();
            }),
        ],
    );
}

#[test]
fn other_content_than_what_was_decided_is_found() {
    let place = || ("registry.example".to_owned(), "app".to_owned());
    finds(
        right,
        &[
            ("I20", |rows| {
                rows.told.get_mut(&("a".to_owned(), 2)).unwrap().contents =
                    told("", "other", 0, None).contents;
            }),
            ("I20", |rows| {
                rows.told
                    .get_mut(&("a".to_owned(), 2))
                    .unwrap()
                    .contents
                    .clear();
            }),
            ("I20", |rows| {
                rollout(rows).digest = Some("sha256:newer".to_owned());
            }),
        ],
    );
    // A batch is opened between two looks, and in both of them people do not want it.
    let decide = |mut rows: Rows, decision: &str, digest: &str| {
        let contents = BTreeSet::from([digest.to_owned()]);
        rows.images.insert(place(), (decision.to_owned(), contents));
        rows
    };
    let mut was = right();
    rollout(&mut was).opened = 1;
    let found =
        |before: &Rows, now: &Rows| i20_stays(before, now).map_err(|wrong| wrong[..4].to_owned());
    for (decision, digest, wanted) in [
        ("approved", "sha256:new", Ok(())),
        ("rejected", "sha256:new", Err("I20:".to_owned())),
        ("approved", "sha256:other", Err("I20:".to_owned())),
    ] {
        let now = decide(right(), decision, digest);
        let before = decide(was.clone(), decision, digest);
        assert_eq!(found(&before, &now), wanted, "{decision} {digest}");
        assert_eq!(found(&now, &now), Ok(()), "nothing was opened");
        // It was approved when it was opened.
        let before = decide(was.clone(), "approved", "sha256:new");
        assert_eq!(found(&before, &now), Ok(()));
    }
}

#[test]
fn a_device_that_counts_without_its_own_report_is_found() {
    finds(
        right,
        &[
            ("I25", |rows| {
                rows.reports.insert("a".to_owned(), (1, 9));
            }),
            ("I25", |rows| {
                rows.reports.remove("a");
            }),
            ("I25", |rows| rows.members[0].generation = None),
        ],
    );
    let mut deleted = right();
    deleted.reports.remove("a");
    deleted.targets.remove("a");
    assert_eq!(i25(&deleted), Ok(()));
}

#[test]
fn counters_that_are_no_recount_are_found() {
    let batch = |word: &str| json!({ "batch": 1, "counts": { word: 2, "lost": 0 } });
    let shown = json!({
        "counts": { "verified": 2, "updating": 2, "failed": 0 },
        "batches": [batch("verified"), batch("updating")],
    });
    assert_eq!(i25_counts(&right(), 1, &shown), Ok(()));
    for (pointer, wrong) in [
        ("/counts/verified", 3),
        ("/counts/failed", 1),
        ("/batches/1/counts/updating", 1),
    ] {
        let mut shown = shown.clone();
        *shown.pointer_mut(pointer).unwrap() = json!(wrong);
        let found = i25_counts(&right(), 1, &shown).unwrap_err();
        assert!(found.starts_with("I25"), "{pointer}: {found}");
    }
}
