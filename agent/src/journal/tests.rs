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
            interruptions: 0,
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

/// A journal that remembers some services, closed.
fn filled(folder: &tempfile::TempDir, services: usize) {
    let journal = open(folder);
    for number in 0..services {
        let mut key = key();
        key.service = format!("web{number}").parse().unwrap();
        let id = journal
            .begin(&intent(None), &Change::None, Timestamp::default())
            .unwrap();
        journal
            .finish(id, &key, &Change::Set(Box::default()))
            .unwrap();
    }
}

fn is_usable(folder: &tempfile::TempDir) -> Opened {
    let opened = Journal::open(folder.path()).unwrap();
    let journal = &opened.journal;
    journal.target().unwrap();
    journal.histories().unwrap();
    journal.pulled().unwrap();
    let id = journal
        .begin(&intent(None), &Change::None, Timestamp::default())
        .unwrap();
    journal.finish(id, &key(), &Change::None).unwrap();
    opened
}

#[test]
fn a_header_of_zeros_is_found_on_opening() {
    let folder = folder();
    filled(&folder, 3);
    let path = folder.path().join("journal.db");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..100].fill(0);
    std::fs::write(&path, bytes).unwrap();
    assert!(is_usable(&folder).moved_aside.is_some());
}

#[test]
fn damage_again_and_again_keeps_one_copy() {
    let folder = folder();
    for _ in 0..3 {
        std::fs::write(folder.path().join("journal.db"), [0x5a; 9_000]).unwrap();
        assert!(is_usable(&folder).moved_aside.is_some());
    }
    let names = std::fs::read_dir(folder.path()).unwrap();
    let damaged = names
        .filter(|entry| entry.as_ref().unwrap().file_name() == "journal.db.damaged")
        .count();
    assert_eq!(damaged, 1);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_log_that_was_cut_off_loses_its_end_and_nothing_before() {
    let folder = folder();
    let journal = open(&folder);
    let target = StoredTarget {
        body: b"{}".to_vec(),
        etag: None,
        generation: 1,
        received_at: Timestamp::default(),
    };
    journal.set_target(&target).unwrap();
    let wal = folder.path().join("journal.db-wal");
    let whole = std::fs::metadata(&wal).unwrap().len();
    let later = StoredTarget {
        generation: 2,
        ..target.clone()
    };
    journal.set_target(&later).unwrap();
    let copy = self::folder();
    for name in ["journal.db", "journal.db-wal"] {
        std::fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
    }
    let cut = std::fs::OpenOptions::new()
        .write(true)
        .open(copy.path().join("journal.db-wal"))
        .unwrap();
    cut.set_len(whole + 100).unwrap();
    assert_eq!(is_usable(&copy).journal.target().unwrap(), Some(target));
}

#[test]
fn a_log_of_another_journal_leaves_one_that_can_be_used() {
    let (one, other) = (folder(), folder());
    filled(&one, 60);
    let open_other = open(&other);
    filled(&other, 5);
    std::fs::copy(
        other.path().join("journal.db-wal"),
        one.path().join("journal.db-wal"),
    )
    .unwrap();
    drop(open_other);
    is_usable(&one);
}

#[test]
fn rows_that_make_no_sense_count_as_never_written() {
    let folder = folder();
    let sql =
        "insert into services values ('../..', 'web', '{}'), ('1', 'web', '{\"lastGood\": 5}');
               insert into pulled values ('web@sha256:0', '', '\n');
               insert into intents (app, service, step, begun_at) values ('', '', '', 0);";
    open(&folder).db.execute_batch(sql).unwrap();
    let journal = open(&folder);
    assert!(journal.histories().unwrap().is_empty());
    assert!(journal.pulled().unwrap().is_empty());
    assert_eq!(journal.take_dead_intents().unwrap(), []);
    is_usable(&folder);
}

#[test]
fn a_journal_of_the_agent_before_is_taken_up_and_can_go_back_to_it() {
    let folder = folder();
    let db = Connection::open(folder.path().join("journal.db")).unwrap();
    db.execute_batch(schema::TABLES).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    let attempts = serde_json::json!({ "attempts": { "identity": identity("a"), "count": 2 } });
    db.execute(
        "insert into services values ('1001', 'web', ?1)",
        [attempts.to_string()],
    )
    .unwrap();
    drop(db);
    let read_only = Journal::open_read_only(folder.path()).unwrap().unwrap();
    assert!(read_only.pulled().unwrap().is_empty());
    let journal = open(&folder);
    let history = &journal.histories().unwrap()[&key()];
    assert_eq!(history.attempts.as_ref().unwrap().count, 2);
    assert_eq!(history.previous, None);
    assert!(!journal.knows_what_was_made().unwrap());
    let format: i64 = journal
        .db
        .query_row("pragma user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(format, 1, "the agent before opens it too");
}

#[test]
fn images_that_were_pulled_are_remembered_until_they_are_given_up() {
    let folder = folder();
    let change = |journal: &Journal, change: Change| {
        let id = journal
            .begin(&intent(None), &change, Timestamp::default())
            .unwrap();
        journal.finish(id, &key(), &Change::None).unwrap();
    };
    let image = "web@sha256:0".to_owned();
    change(&open(&folder), Change::Own(image.clone()));
    change(&open(&folder), Change::Own(image.clone()));
    let expected = BTreeMap::from([(image.clone(), key())]);
    assert_eq!(open(&folder).pulled().unwrap(), expected);
    change(&open(&folder), Change::Disown(image));
    assert!(open(&folder).pulled().unwrap().is_empty());
}

#[test]
fn without_a_file_reports_are_counted_and_nothing_is_begun() {
    let why = JournalError::InMemory {
        why: "read-only file system".to_owned(),
    };
    let journal = Journal::in_memory(&why).unwrap();
    assert!(journal.lacks_a_file().unwrap().contains("read-only"));
    assert_eq!(journal.next_sequence().unwrap(), 1);
    assert_eq!(journal.next_sequence().unwrap(), 2);
    journal.adopt(&BTreeMap::new()).unwrap();
    assert!(journal.knows_what_was_made().unwrap());
    let begun = journal.begin(&intent(None), &Change::None, Timestamp::default());
    assert!(matches!(begun, Err(JournalError::InMemory { .. })));
}

#[test]
fn a_disk_that_cannot_be_written_does_not_silence_reports() {
    let folder = folder();
    let journal = open(&folder);
    let name = journal.name().unwrap();
    let fails = |fails: bool| journal.db.pragma_update(None, "query_only", fails).unwrap();
    fails(true);
    assert_eq!(journal.next_sequence().unwrap(), 1);
    let stand_in = journal.name().unwrap();
    assert_ne!(stand_in, name, "numbers under a name never go back");
    assert_eq!(journal.next_sequence().unwrap(), 2);
    assert_eq!(journal.name().unwrap(), stand_in);
    let begun = journal.begin(&intent(None), &Change::None, Timestamp::default());
    assert!(matches!(begun, Err(JournalError::Write(_))));
    fails(false);
    journal.next_sequence().unwrap();
    assert_eq!(journal.name().unwrap(), name);
}

#[test]
fn reading_writes_nothing() {
    let folder = folder();
    filled(&folder, 5);
    let journal = open(&folder);
    journal.next_sequence().unwrap();
    let files = || {
        let files = std::fs::read_dir(folder.path()).unwrap();
        let mut files: Vec<_> = files
            .map(|entry| {
                let entry = entry.unwrap();
                let meta = entry.metadata().unwrap();
                (entry.file_name(), meta.len(), meta.modified().unwrap())
            })
            // The index of the log is shared memory, not data.
            .filter(|(name, _, _)| name != "journal.db-shm")
            .collect();
        files.sort();
        files
    };
    let before = files();
    for _ in 0..100 {
        journal.target().unwrap();
        journal.histories().unwrap();
        journal.pulled().unwrap();
        journal.take_dead_intents().unwrap();
        journal.next_sequence().unwrap();
        journal.name().unwrap();
    }
    assert_eq!(files(), before);
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
fn what_the_next_agent_added_is_left_as_it_is() {
    let folder = folder();
    let target = StoredTarget {
        body: b"{}".to_vec(),
        etag: None,
        generation: 7,
        received_at: Timestamp::default(),
    };
    open(&folder).set_target(&target).unwrap();
    let path = folder.path().join("journal.db");
    let later = (1 << 16) | 1;
    let db = Connection::open(&path).unwrap();
    db.execute_batch(
        "alter table services add column note text not null default '';
         create table news (id integer primary key, text text not null);
         insert into news (text) values ('kept');",
    )
    .unwrap();
    db.pragma_update(None, "user_version", later).unwrap();
    drop(db);
    let journal = open(&folder);
    assert_eq!(journal.target().unwrap(), Some(target));
    let change = Change::Set(Box::default());
    let id = journal.begin(&intent(None), &change, Timestamp::default());
    journal.finish(id.unwrap(), &key(), &Change::None).unwrap();
    assert_eq!(journal.histories().unwrap().len(), 1);
    drop(journal);
    let db = Connection::open(&path).unwrap();
    let version: i64 = db
        .query_row("pragma user_version", [], |row| row.get(0))
        .unwrap();
    let news: String = db
        .query_row("select text from news", [], |row| row.get(0))
        .unwrap();
    assert_eq!((version, news.as_str()), (later, "kept"));
}

#[test]
fn the_file_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = folder();
    drop(open(&folder));
    let meta = std::fs::metadata(folder.path().join("journal.db")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
}
