//! Owns what must survive a power cut: the target, each service's history, open intents (SQLite).
//!
//! Refuses to be written in steady state: a converged device writes nothing. What can be observed
//! (containers, images) is never kept here.
//!
//! Without a file that can be used it lives in memory: what runs goes on and reports go out, and no intent
//! can be written, so that nothing is changed.

mod schema;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use holdfast_plan::{Attempts, ServiceHistory};
use holdfast_proto::id::ServiceKey;
use holdfast_proto::target::Identity;
use holdfast_proto::time::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use crate::fault::chain;

/// Report numbers are taken in blocks: one write for so many reports.
const SEQUENCE_BLOCK: u64 = 4_096;

/// The journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file could not be opened.
    #[error("cannot open the journal {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A damaged file could not be moved away.
    #[error("cannot move the damaged journal {} aside", path.display())]
    MoveAside {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It was written by a newer agent.
    #[error(
        "the journal has format {found}, written by a newer agent; this one knows {known}: install the newer \
         one again, or move journal.db away to begin anew from what the engine runs"
    )]
    Newer {
        /// The file's format.
        found: i64,
        /// The newest format this agent knows.
        known: i64,
    },
    /// There is none on the disk.
    #[error("cannot write the journal: {why}")]
    InMemory {
        /// Why not.
        why: String,
    },
    /// It could not be read.
    #[error("cannot read the journal")]
    Read(#[source] rusqlite::Error),
    /// It could not be written: nothing may be changed on the device then.
    #[error("cannot write the journal")]
    Write(#[source] rusqlite::Error),
}

impl JournalError {
    /// Whether the file itself is damaged: opened again, it is moved aside and begun anew.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Open { source, .. } | Self::Read(source) | Self::Write(source) => {
                schema::is_damage(source)
            }
            Self::MoveAside { .. } | Self::Newer { .. } | Self::InMemory { .. } => false,
        }
    }
}

/// A target as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTarget {
    /// The exact bytes.
    pub body: Vec<u8>,
    /// Their entity tag.
    pub etag: Option<String>,
    /// Their generation.
    pub generation: u64,
    /// When they came.
    pub received_at: Timestamp,
}

/// What the agent is about to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The service.
    pub key: ServiceKey,
    /// The step in words.
    pub step: String,
    /// The spec that the step tries out, if it does.
    pub candidate: Option<Identity>,
}

/// Names an intent until its outcome is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntentId(i64);

/// What a step changes in the history of its service.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Nothing.
    None,
    /// It becomes this.
    Set(Box<ServiceHistory>),
    /// It is forgotten.
    Forget,
    /// An image is pulled for it: the agent may remove it one day.
    Own(String),
    /// An image is removed, or is somebody else's: the agent never removes it.
    Disown(String),
}

/// The agent's memory on disk.
pub struct Journal {
    db: Connection,
    /// Next report number, and the first one of the next block.
    sequence: std::cell::Cell<(u64, u64)>,
    /// The name under which reports are counted in memory, while they cannot be counted on the disk.
    stand_in: std::cell::RefCell<Option<(String, u64)>>,
    /// Why it is in memory only, if it is.
    in_memory: Option<String>,
    /// Whether the file was found damaged while it was in use.
    damaged: std::cell::Cell<bool>,
}

/// A journal and what was found wrong with its predecessor.
pub struct Opened {
    /// The journal, ready for use.
    pub journal: Journal,
    /// Where a damaged predecessor was moved, if there was one.
    pub moved_aside: Option<PathBuf>,
}

impl Journal {
    /// Opens the journal of a state folder, or makes it. A damaged one is moved aside first.
    pub fn open(folder: &Path) -> Result<Opened, JournalError> {
        let path = folder.join("journal.db");
        match Self::open_file(&path) {
            Ok(journal) => Ok(Opened {
                journal,
                moved_aside: None,
            }),
            Err(error) if error.is_damage() => {
                let aside =
                    schema::move_aside(&path).map_err(|source| JournalError::MoveAside {
                        path: path.clone(),
                        source,
                    })?;
                Ok(Opened {
                    journal: Self::open_file(&path)?,
                    moved_aside: Some(aside),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// One in memory, for as long as there is none on the disk.
    pub fn in_memory(why: &JournalError) -> Result<Self, JournalError> {
        let db = Connection::open_in_memory().map_err(JournalError::Read)?;
        schema::migrate(&db)?;
        Ok(Self::on(db, Some(chain(why))))
    }

    fn on(db: Connection, in_memory: Option<String>) -> Self {
        Self {
            db,
            sequence: std::cell::Cell::default(),
            stand_in: std::cell::RefCell::default(),
            in_memory,
            damaged: std::cell::Cell::default(),
        }
    }

    /// Whether the file was found damaged while it was in use: opened again, it is begun anew.
    pub fn was_damaged(&self) -> bool {
        self.damaged.get()
    }

    fn failed(&self, source: rusqlite::Error) -> JournalError {
        if schema::is_damage(&source) {
            self.damaged.set(true);
        }
        JournalError::Write(source)
    }

    /// Why it is in memory only, if it is.
    pub fn lacks_a_file(&self) -> Option<&str> {
        self.in_memory.as_deref()
    }

    fn open_file(path: &Path) -> Result<Self, JournalError> {
        let failed = |source| JournalError::Open {
            path: path.to_owned(),
            source,
        };
        schema::make_private(path).map_err(|source| JournalError::MoveAside {
            path: path.to_owned(),
            source,
        })?;
        let db = Connection::open(path).map_err(failed)?;
        schema::prepare(&db).map_err(failed)?;
        schema::migrate(&db)?;
        Ok(Self::on(db, None))
    }

    /// Opens the journal for reading beside a running agent; none if there is no journal.
    pub fn open_read_only(folder: &Path) -> Result<Option<Self>, JournalError> {
        let path = folder.join("journal.db");
        if !path.is_file() {
            return Ok(None);
        }
        let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|source| JournalError::Open { path, source })?;
        schema::read_only(&db).map_err(JournalError::Read)?;
        Ok(Some(Self::on(db, None)))
    }

    /// The target that was accepted last.
    pub fn target(&self) -> Result<Option<StoredTarget>, JournalError> {
        self.db
            .query_row(
                "select body, etag, generation, received_at from target where id = 1",
                [],
                |row| {
                    Ok(StoredTarget {
                        body: row.get(0)?,
                        etag: row.get(1)?,
                        generation: row.get::<_, i64>(2)?.try_into().unwrap_or(0),
                        received_at: Timestamp::from_millis(row.get(3)?),
                    })
                },
            )
            .optional()
            .map_err(JournalError::Read)
    }

    /// Keeps a target: it is on the disk when this returns.
    pub fn set_target(&self, target: &StoredTarget) -> Result<(), JournalError> {
        self.db
            .execute(
                "insert into target (id, body, etag, generation, received_at) values (1, ?1, ?2, ?3, ?4)
                 on conflict (id) do update set body = excluded.body, etag = excluded.etag,
                    generation = excluded.generation, received_at = excluded.received_at",
                params![
                    target.body,
                    target.etag,
                    whole(target.generation),
                    target.received_at.as_millis()
                ],
            )
            .map(drop)
            .map_err(|source| self.failed(source))
    }

    /// What is remembered of each service. Rows that cannot be understood count as never written.
    pub fn histories(&self) -> Result<BTreeMap<ServiceKey, ServiceHistory>, JournalError> {
        let mut statement = self
            .db
            .prepare("select app, service, history from services")
            .map_err(JournalError::Read)?;
        let rows = statement
            .query_map([], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                ))
            })
            .map_err(JournalError::Read)?;
        let mut histories = BTreeMap::new();
        for row in rows {
            let (app, service, json) = row.map_err(JournalError::Read)?;
            let key = app.parse().ok().zip(service.parse().ok());
            let history = kept(&json);
            if let Some(((app, service), history)) = key.zip(history) {
                histories.insert(ServiceKey { app, service }, history);
            } else {
                tracing::warn!(
                    service.name = %service,
                    "a service's history cannot be read and counts as empty"
                );
            }
        }
        Ok(histories)
    }

    /// Writes down what is about to be done, and what it changes by beginning: both or neither.
    ///
    /// No effect may begin before this returned.
    pub fn begin(
        &self,
        intent: &Intent,
        change: &Change,
        now: Timestamp,
    ) -> Result<IntentId, JournalError> {
        if let Some(why) = &self.in_memory {
            return Err(JournalError::InMemory { why: why.clone() });
        }
        let write = || -> rusqlite::Result<i64> {
            let tx = self.db.unchecked_transaction()?;
            tx.execute(
                "insert into intents (app, service, step, candidate, begun_at) values (?1, ?2, ?3, ?4, ?5)",
                params![
                    intent.key.app.as_str(),
                    intent.key.service.as_str(),
                    intent.step,
                    intent.candidate.as_ref().map(json),
                    now.as_millis()
                ],
            )?;
            let id = tx.last_insert_rowid();
            apply(&tx, &intent.key, change)?;
            tx.commit().map(|()| id)
        };
        write().map(IntentId).map_err(|source| self.failed(source))
    }

    /// Writes down that it is done, or failed, and what it changes: both or neither.
    pub fn finish(
        &self,
        intent: IntentId,
        key: &ServiceKey,
        change: &Change,
    ) -> Result<(), JournalError> {
        let write = || -> rusqlite::Result<()> {
            let tx = self.db.unchecked_transaction()?;
            tx.execute("delete from intents where id = ?1", [intent.0])?;
            apply(&tx, key, change)?;
            tx.commit()
        };
        write().map_err(|source| self.failed(source))
    }

    /// Takes the intents that a dead agent left open, and counts its death against what it tried.
    pub fn take_dead_intents(&self) -> Result<Vec<Intent>, JournalError> {
        let dead = self.dead_intents().map_err(JournalError::Read)?;
        if dead.is_empty() {
            return Ok(dead);
        }
        let mut histories = self.histories()?;
        let mut write = || -> rusqlite::Result<()> {
            let tx = self.db.unchecked_transaction()?;
            for intent in &dead {
                let Some(identity) = intent.candidate else {
                    continue;
                };
                let history = histories.entry(intent.key.clone()).or_default();
                let before = history.attempts.as_ref();
                let (count, interruptions) = before
                    .filter(|attempts| attempts.identity == identity)
                    .map_or((0, 0), |attempts| (attempts.count, attempts.interruptions));
                history.attempts = Some(Attempts {
                    identity,
                    count: count.saturating_add(1),
                    interruptions,
                });
                set_history(&tx, &intent.key, history)?;
            }
            tx.execute("delete from intents", [])?;
            tx.commit()
        };
        write().map_err(JournalError::Write)?;
        Ok(dead)
    }

    fn dead_intents(&self) -> rusqlite::Result<Vec<Intent>> {
        let mut statement = self
            .db
            .prepare("select app, service, step, candidate from intents order by id")?;
        let rows = statement.query_map([], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, String>(2)?,
                row.get::<_, Option<String>>(3)?,
            ))
        })?;
        let mut intents = Vec::new();
        for row in rows {
            let (app, service, step, candidate) = row?;
            if let Some((app, service)) = app.parse().ok().zip(service.parse().ok()) {
                intents.push(Intent {
                    key: ServiceKey { app, service },
                    step,
                    candidate: candidate.and_then(|json| kept(&json)),
                });
            }
        }
        Ok(intents)
    }

    /// Whether it knows which containers its agent made. A new or rebuilt one does not.
    pub fn knows_what_was_made(&self) -> Result<bool, JournalError> {
        let read = "select 1 from meta where key = 'adopted'";
        let found = self.db.query_row(read, [], |_| Ok(())).optional();
        found
            .map(|found| found.is_some())
            .map_err(JournalError::Read)
    }

    /// Takes up what was found on the device, by its labels, as made by this agent: all or nothing.
    pub fn adopt(
        &self,
        histories: &BTreeMap<ServiceKey, ServiceHistory>,
    ) -> Result<(), JournalError> {
        let write = || -> rusqlite::Result<()> {
            let tx = self.db.unchecked_transaction()?;
            for (key, history) in histories {
                set_history(&tx, key, history)?;
            }
            tx.execute(
                "insert into meta (key, value) values ('adopted', 1) on conflict (key) do nothing",
                [],
            )?;
            tx.commit()
        };
        write().map_err(JournalError::Write)
    }

    /// The images that this agent pulled, each with the service it was first pulled for.
    pub fn pulled(&self) -> Result<BTreeMap<String, ServiceKey>, JournalError> {
        let read = || -> rusqlite::Result<BTreeMap<String, ServiceKey>> {
            // A journal of an older agent that is only read has no such table.
            let exists = "select 1 from sqlite_master where name = 'pulled'";
            let exists = self.db.query_row(exists, [], |_| Ok(())).optional()?;
            if exists.is_none() {
                return Ok(BTreeMap::new());
            }
            let mut statement = self.db.prepare("select image, app, service from pulled")?;
            let rows = statement.query_map([], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                ))
            })?;
            let mut pulled = BTreeMap::new();
            for row in rows {
                let (image, app, service) = row?;
                // What cannot be understood counts as never written: the image stays for good.
                if let Some((app, service)) = app.parse().ok().zip(service.parse().ok()) {
                    pulled.insert(image, ServiceKey { app, service });
                }
            }
            Ok(pulled)
        };
        read().map_err(JournalError::Read)
    }

    /// A name that no other journal has: a damaged and replaced one counts its reports anew.
    pub fn name(&self) -> Result<String, JournalError> {
        if let Some((name, _)) = self.stand_in.borrow().as_ref() {
            return Ok(name.clone());
        }
        let read = "select value from meta where key = 'name'";
        let number = self.db.query_row(read, [], |row| row.get::<_, i64>(0));
        number
            .map(|number| format!("{number:016x}"))
            .map_err(JournalError::Read)
    }

    /// The next report's number: larger than every one before it under the same name, also after a crash.
    ///
    /// What cannot be counted on the disk is counted in memory, under a name of its own: a device whose disk
    /// fails must be able to say so.
    pub fn next_sequence(&self) -> Result<u64, JournalError> {
        match self.next_on_disk() {
            Ok(next) => {
                self.stand_in.take();
                Ok(next)
            }
            Err(JournalError::Write(_)) => self.next_in_memory(),
            Err(error) => Err(error),
        }
    }

    fn next_in_memory(&self) -> Result<u64, JournalError> {
        let mut stand_in = self.stand_in.borrow_mut();
        let (name, last) = if let Some(known) = stand_in.take() {
            known
        } else {
            let random = "select abs(random() / 2)";
            let number = self.db.query_row(random, [], |row| row.get::<_, i64>(0));
            let number = number.map_err(JournalError::Read)?;
            (format!("{number:016x}"), 0)
        };
        *stand_in = Some((name, last + 1));
        Ok(last + 1)
    }

    fn next_on_disk(&self) -> Result<u64, JournalError> {
        let (mut next, mut end) = self.sequence.get();
        if next >= end {
            let begin: i64 = self
                .db
                .query_row(
                    "insert into meta (key, value) values ('sequence', ?1)
                     on conflict (key) do update set value = value + ?1
                     returning value",
                    [whole(SEQUENCE_BLOCK)],
                    |row| row.get(0),
                )
                .map_err(JournalError::Write)?;
            end = begin.try_into().unwrap_or(u64::MAX);
            next = end.saturating_sub(SEQUENCE_BLOCK) + 1;
            end = end.saturating_add(1);
        }
        self.sequence.set((next + 1, end));
        Ok(next)
    }
}

fn apply(db: &Connection, key: &ServiceKey, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::None => Ok(()),
        Change::Set(history) => set_history(db, key, history),
        Change::Forget => db
            .execute(
                "delete from services where app = ?1 and service = ?2",
                [key.app.as_str(), key.service.as_str()],
            )
            .map(drop),
        Change::Own(image) => db
            .execute(
                "insert into pulled (image, app, service) values (?1, ?2, ?3)
                 on conflict (image) do nothing",
                [image, key.app.as_str(), key.service.as_str()],
            )
            .map(drop),
        Change::Disown(image) => db
            .execute("delete from pulled where image = ?1", [image])
            .map(drop),
    }
}

fn set_history(
    db: &Connection,
    key: &ServiceKey,
    history: &ServiceHistory,
) -> rusqlite::Result<()> {
    db.execute(
        "insert into services (app, service, history) values (?1, ?2, ?3)
         on conflict (app, service) do update set history = excluded.history",
        params![key.app.as_str(), key.service.as_str(), json(history)],
    )
    .map(drop)
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("histories and identities are plain data")
}

/// Reads JSON that the journal keeps; text that it cannot have written is nothing.
///
/// In the way targets are read: reading the same types in a second way makes the program larger by 100 kB.
fn kept<T: serde::de::DeserializeOwned>(json: &str) -> Option<T> {
    let mut text = serde_json::Deserializer::from_slice(json.as_bytes());
    let read = serde_path_to_error::deserialize(&mut text).ok()?;
    text.end().ok()?;
    Some(read)
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
