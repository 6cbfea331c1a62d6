//! Owns the PostgreSQL side of the seam: a bounded pool, and the listener for other replicas.
//!
//! Refuses weaker isolation than serialisable for writes: both databases must behave alike.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{IsNull, ToSql, Type, private::BytesMut, to_sql_checked};
use postgres::{Client, Config, IsolationLevel, NoTls, Statement, Transaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::db::{CHANNEL, Driver, EVENTS_CHANNEL, Row, StoreError, Tx, Value};
use super::{Access, Announcer, Attempt, Change, Opening, conclude, migrate};
use crate::retry;

/// Connections of one replica: PostgreSQL's default allows a hundred for all of them together.
const CONNECTIONS: usize = 8;
/// How long a request queues for a connection before it is told to come back.
const QUEUE_WAIT: Duration = Duration::from_secs(10);
/// How long a connection attempt may take.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// After so long without a word the server's machine is asked whether it is still there, and again a few times: a
/// primary that vanished closes nothing, and its connections must not keep the pool for hours.
const SILENCE: Duration = Duration::from_secs(30);
/// Between those questions, and how many of them.
const ASK_EVERY: Duration = Duration::from_secs(10);
const ASK_TIMES: u32 = 3;
/// How long the server may work on one statement: a hung disk must not hold the pool for ever.
const STATEMENT_LIMIT: &str = "-c statement_timeout=10s -c idle_in_transaction_session_timeout=30s";
/// What a transaction that met a conflict waits in: whoever writes history holds a weaker lock on it.
const QUEUE: &str = "lock table history_head in share row exclusive mode";
/// How often the listener looks whether it should stop.
const LISTEN_TURN: Duration = Duration::from_millis(500);

struct Connected {
    client: Client,
    prepared: HashMap<&'static str, Statement>,
}

pub(super) struct Database {
    config: Config,
    idle: Mutex<Vec<Connected>>,
    turn: Arc<Semaphore>,
    listener: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Postgres(…)")
    }
}

impl Database {
    pub(super) fn open(
        url: &str,
        opening: Opening,
        announcer: Announcer,
    ) -> Result<Self, StoreError> {
        let mut config: Config = url.parse()?;
        config.connect_timeout(CONNECT_WAIT);
        config.application_name("holdfast-api");
        config.keepalives_idle(SILENCE);
        config.keepalives_interval(ASK_EVERY);
        config.keepalives_retries(ASK_TIMES);
        config.tcp_user_timeout(SILENCE + ASK_EVERY * ASK_TIMES);
        let options = config.get_options().unwrap_or_default();
        config.options(format!("{options} {STATEMENT_LIMIT}").trim());
        let mut client = config.connect(NoTls)?;
        match opening {
            Opening::Serve => migrate::postgres(&mut client)?,
            Opening::Look => migrate::judge_postgres(&mut client)?.must_be_current()?,
        }
        let listener = listen(&config, announcer)?;
        Ok(Self {
            config,
            idle: Mutex::new(vec![Connected {
                client,
                prepared: HashMap::new(),
            }]),
            turn: Arc::new(Semaphore::new(CONNECTIONS)),
            listener: Some(listener),
        })
    }

    pub(super) async fn permit(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        let turn = Arc::clone(&self.turn).acquire_owned();
        match tokio::time::timeout(QUEUE_WAIT, turn).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(StoreError::Busy(None)),
        }
    }

    pub(super) fn attempt<T, E: From<StoreError>>(
        &self,
        access: Access,
        is_again: bool,
        work: &dyn Fn(&mut Tx<'_>) -> Result<T, E>,
    ) -> Attempt<T, E> {
        let mut connected = match self.take() {
            Ok(connected) => connected,
            Err(error) => return Attempt::Failed(error.into()),
        };
        let attempt = run(&mut connected, access, is_again, work);
        // A panic in `work` drops the connection with its transaction; this line is for the rest.
        if !connected.client.is_closed() {
            self.idle().push(connected);
        }
        attempt
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connected>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Result<Connected, StoreError> {
        loop {
            let Some(connected) = self.idle().pop() else {
                return Ok(Connected {
                    client: self.config.connect(NoTls)?,
                    prepared: HashMap::new(),
                });
            };
            if !connected.client.is_closed() {
                return Ok(connected);
            }
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let idle = std::mem::take(&mut *self.idle());
        let listener = self.listener.take();
        // Closing a connection blocks, which an async thread must not.
        let closing = std::thread::spawn(move || {
            drop(idle);
            if let Some((stop, thread)) = listener {
                drop(stop);
                let _ = thread.join();
            }
        });
        drop(closing);
    }
}

fn run<T, E: From<StoreError>>(
    connected: &mut Connected,
    access: Access,
    is_again: bool,
    work: &dyn Fn(&mut Tx<'_>) -> Result<T, E>,
) -> Attempt<T, E> {
    let builder = connected.client.build_transaction();
    let begun = match access {
        Access::Write => builder.isolation_level(IsolationLevel::Serializable),
        // A snapshot is enough to read, and cannot fail for others' writes.
        Access::Read => builder
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true),
    }
    .start();
    match begun {
        Ok(mut tx) => {
            // Whoever lost to another writer once queues before its snapshot is taken, and cannot lose to
            // one again: many who write at once are served in turn, not refused.
            if is_again
                && access == Access::Write
                && let Err(error) = tx.batch_execute(QUEUE)
            {
                let error = StoreError::from(error);
                return if error.is_conflict() {
                    Attempt::Conflict(error)
                } else {
                    Attempt::Failed(error.into())
                };
            }
            let mut tx = Tx::new(Driver::Postgres {
                tx,
                prepared: &mut connected.prepared,
            });
            let outcome = work(&mut tx);
            conclude(tx, outcome)
        }
        // The server went away while the connection was idle: nothing was done, so try another.
        Err(error) if error.is_closed() => Attempt::Conflict(StoreError::from(error)),
        Err(error) => Attempt::Failed(StoreError::from(error).into()),
    }
}

/// Starts the thread that turns other replicas' notifications into changes.
fn listen(
    config: &Config,
    announcer: Announcer,
) -> Result<(mpsc::Sender<()>, JoinHandle<()>), StoreError> {
    let config = config.clone();
    let (stop, stopped) = mpsc::channel();
    let first = subscribe(&config)?;
    let thread = std::thread::Builder::new()
        .name("store-listener".into())
        .spawn(move || {
            let mut client = Some(first);
            let mut waits = retry::reconnect();
            let lost = AtomicBool::new(false);
            loop {
                if let Some(mut connected) = client.take() {
                    if lost.swap(false, Ordering::Relaxed) {
                        announcer.change(Change::Everything);
                        announcer.new_events();
                        waits = retry::reconnect();
                    }
                    if !forward(&mut connected, &announcer, &stopped) {
                        return;
                    }
                    lost.store(true, Ordering::Relaxed);
                    tracing::warn!("lost the database's change feed, connecting again");
                }
                let wait = waits.next().unwrap_or(CONNECT_WAIT);
                match stopped.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
                client = subscribe(&config).ok();
            }
        })
        .map_err(|_| StoreError::Interrupted)?;
    Ok((stop, thread))
}

fn subscribe(config: &Config) -> Result<Client, StoreError> {
    let mut client = config.connect(NoTls)?;
    client.batch_execute(&format!("listen {CHANNEL}; listen {EVENTS_CHANNEL}"))?;
    Ok(client)
}

/// Forwards until the connection is lost (true) or the store is closed (false).
fn forward(client: &mut Client, announcer: &Announcer, stopped: &mpsc::Receiver<()>) -> bool {
    loop {
        if stopped.try_recv() == Err(mpsc::TryRecvError::Disconnected) {
            return false;
        }
        loop {
            match client.notifications().timeout_iter(LISTEN_TURN).next() {
                Ok(Some(notification)) if notification.channel() == EVENTS_CHANNEL => {
                    announcer.new_events();
                }
                Ok(Some(notification)) => {
                    if let Ok(device) = notification.payload().parse() {
                        announcer.change(Change::Device(device));
                    }
                }
                Ok(None) => break,
                Err(_) => return true,
            }
        }
        if client.is_closed() {
            return true;
        }
    }
}

impl ToSql for Value {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Int(value) => value.to_sql_checked(ty, out),
            Self::Text(value) => value.to_sql_checked(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn prepare(
    tx: &mut Transaction<'_>,
    prepared: &mut HashMap<&'static str, Statement>,
    sql: &'static str,
) -> Result<Statement, StoreError> {
    if let Some(statement) = prepared.get(sql) {
        return Ok(statement.clone());
    }
    let statement = tx.prepare(sql)?;
    prepared.insert(sql, statement.clone());
    Ok(statement)
}

fn borrowed(params: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    params
        .iter()
        .map(|value| value as &(dyn ToSql + Sync))
        .collect()
}

pub(super) fn execute(
    tx: &mut Transaction<'_>,
    prepared: &mut HashMap<&'static str, Statement>,
    sql: &'static str,
    params: &[Value],
) -> Result<u64, StoreError> {
    let statement = prepare(tx, prepared, sql)?;
    Ok(tx.execute(&statement, &borrowed(params))?)
}

pub(super) fn query(
    tx: &mut Transaction<'_>,
    prepared: &mut HashMap<&'static str, Statement>,
    sql: &'static str,
    params: &[Value],
) -> Result<Vec<Row>, StoreError> {
    let statement = prepare(tx, prepared, sql)?;
    tx.query(&statement, &borrowed(params))?
        .iter()
        .map(|row| {
            let values = row
                .columns()
                .iter()
                .enumerate()
                .map(|(column, of)| {
                    value(row, column, of.type_()).ok_or(StoreError::Column {
                        statement: sql,
                        column,
                    })
                })
                .collect::<Result<Vec<_>, _>>()?;
            Ok(Row {
                statement: sql,
                values,
            })
        })
        .collect()
}

fn value(row: &postgres::Row, column: usize, of: &Type) -> Option<Value> {
    if *of == Type::INT8 {
        Some(row.try_get::<_, Option<i64>>(column).ok()?.into())
    } else if *of == Type::TEXT {
        Some(row.try_get::<_, Option<String>>(column).ok()?.into())
    } else {
        None
    }
}
