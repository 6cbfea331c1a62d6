//! Facts about the journal.

use holdfast_proto::hash::SpecHash;
use holdfast_proto::image::{ConfigDigest, Digest};
use holdfast_proto::spec::ServiceSpec;

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn open(folder: &tempfile::TempDir) -> Journal {
    Journal::open(folder.path()).unwrap().journal
}

fn key() -> ServiceKey {
    ServiceKey {
        app: "1001".parse().unwrap(),
        service: "web".parse().unwrap(),
    }
}

fn identity(content: &str) -> Identity {
    Identity {
        config_digest: ConfigDigest(Digest::of(content.as_bytes())),
        spec_hash: SpecHash::of(&ServiceSpec::default()),
    }
}

fn intent(candidate: Option<Identity>) -> Intent {
    Intent {
        key: key(),
        step: "start web".to_owned(),
        candidate,
    }
}

#[test]
fn a_target_survives_reopening_and_is_replaced_whole() {
    let folder = folder();
    let target = |generation| StoredTarget {
        body: vec![b'{', 0xff],
        etag: Some(format!("\"{generation}\"")),
        generation,
        received_at: Timestamp::from_millis(5),
    };
    assert_eq!(open(&folder).target().unwrap(), None);
    open(&folder).set_target(&target(1)).unwrap();
    open(&folder).set_target(&target(2)).unwrap();
    assert_eq!(open(&folder).target().unwrap(), Some(target(2)));
    let reader = Journal::open_read_only(folder.path()).unwrap().unwrap();
    assert_eq!(reader.target().unwrap(), Some(target(2)));
    assert!(reader.set_target(&target(3)).is_err());
}

#[test]
fn an_outcome_closes_its_intent_and_changes_the_history_with_it() {
    let folder = folder();
    let journal = open(&folder);
    let history = ServiceHistory {
        attempts: Some(Attempts {
            identity: identity("a"),
            count: 1,
        }),
        ..ServiceHistory::default()
    };
    let id = journal
        .begin(&intent(None), &Change::None, Timestamp::default())
        .unwrap();
    journal
        .finish(id, &key(), &Change::Set(Box::new(history.clone())))
        .unwrap();
    drop(journal);
    let journal = open(&folder);
    assert_eq!(journal.take_dead_intents().unwrap(), []);
    assert_eq!(journal.histories().unwrap()[&key()], history);
    let id = journal
        .begin(&intent(None), &Change::None, Timestamp::default())
        .unwrap();
    journal.finish(id, &key(), &Change::Forget).unwrap();
    assert!(journal.histories().unwrap().is_empty());
}

#[test]
fn a_death_counts_against_the_spec_that_was_tried_and_no_other() {
    let folder = folder();
    for expected in 1..=3 {
        let journal = open(&folder);
        journal
            .begin(
                &intent(Some(identity("a"))),
                &Change::None,
                Timestamp::default(),
            )
            .unwrap();
        drop(journal);
        let journal = open(&folder);
        assert_eq!(journal.take_dead_intents().unwrap().len(), 1);
        let attempts = journal.histories().unwrap()[&key()].attempts.clone();
        assert_eq!(attempts.unwrap().count, expected);
    }
    let journal = open(&folder);
    journal
        .begin(
            &intent(Some(identity("b"))),
            &Change::None,
            Timestamp::default(),
        )
        .unwrap();
    journal
        .begin(&intent(None), &Change::None, Timestamp::default())
        .unwrap();
    assert_eq!(journal.take_dead_intents().unwrap().len(), 2);
    let attempts = journal.histories().unwrap()[&key()].attempts.clone();
    assert_eq!(attempts.unwrap().count, 1);
}

#[test]
fn report_numbers_only_grow_even_after_a_crash() {
    let folder = folder();
    let journal = open(&folder);
    let first: Vec<u64> = (0..3).map(|_| journal.next_sequence().unwrap()).collect();
    assert_eq!(first, [1, 2, 3]);
    drop(journal);
    assert!(open(&folder).next_sequence().unwrap() > 3);
}

#[test]
fn a27_a_damaged_file_is_moved_aside_and_a_fresh_one_made() {
    for damage in [
        &b"this is no database, and it is long enough to be looked at as one by anybody"[..],
        &[0; 8192],
    ] {
        let folder = folder();
        std::fs::write(folder.path().join("journal.db"), damage).unwrap();
        let opened = Journal::open(folder.path()).unwrap();
        let aside = opened.moved_aside.unwrap();
        assert_eq!(std::fs::read(aside).unwrap(), damage);
        assert_eq!(opened.journal.target().unwrap(), None);
    }
}

#[test]
fn a27_damage_inside_the_pages_is_found_on_opening() {
    let folder = folder();
    let journal = open(&folder);
    for number in 0..200 {
        let mut key = key();
        key.service = format!("web{number}").parse().unwrap();
        let id = journal
            .begin(&intent(None), &Change::None, Timestamp::default())
            .unwrap();
        let change = Change::Set(Box::default());
        journal.finish(id, &key, &change).unwrap();
    }
    drop(journal);
    let path = folder.path().join("journal.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let len = bytes.len();
    bytes[4_096..len].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    assert!(Journal::open(folder.path()).unwrap().moved_aside.is_some());
}

#[test]
fn a29_a_newer_format_is_refused_and_left_alone() {
    let folder = folder();
    open(&folder)
        .db
        .pragma_update(None, "user_version", 99)
        .unwrap();
    assert!(matches!(
        Journal::open(folder.path()),
        Err(JournalError::Newer { found: 99, .. })
    ));
}

#[test]
fn the_file_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = folder();
    drop(open(&folder));
    let meta = std::fs::metadata(folder.path().join("journal.db")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
}
