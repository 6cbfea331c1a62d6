//! Owns putting the parts together: store, first token, cache, tasks, server. Refuses to start half.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_domain::principal::Role;
use holdfast_domain::refresh::Rhythm;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify, watch};

use crate::app::{App, Shared};
use crate::config::Settings;
use crate::http::device;
use crate::http::operator::stream;
use crate::limits::Limits;
use crate::live::Live;
use crate::logins::Logins;
use crate::notify::{CannotSend, Courier};
use crate::places::Places;
use crate::pushes::Pushes;
use crate::resolver::{Ask, Resolver};
use crate::secret::{self, Kind, NoRandomness, Secret};
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::backup::folder;
use crate::store::lock::{Lock, LockError};
use crate::store::{Location, Store, StoreError, credentials, tokens};
use crate::systemd::Systemd;
use crate::telemetry::Metrics;
use crate::vault::{Vault, VaultError};
use crate::{clock, http, server, tasks};

/// How long tasks may take to end after the last request: a statement, or a registry's answer. A database that
/// does not answer must not keep the program from its end.
const TASKS_END_WITHIN: Duration = Duration::from_secs(10);
/// Where the first admin token is written, inside the data directory.
const ADMIN_TOKEN_FILE: &str = "admin-token";

/// Why the program could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}")]
    DataDir {
        /// Which directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The database file is damaged.
    #[error(
        "the database {path} is damaged and was left as it is: `holdfast-api restore FILE` puts a backup in its place"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How it shows.
        #[source]
        source: StoreError,
    },
    /// Another program works with the database.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The store cannot be opened or read.
    #[error("cannot open the store")]
    Store(#[from] StoreError),
    /// No first token could be made.
    #[error("cannot make the first admin token")]
    Randomness(#[from] NoRandomness),
    /// The first token could not be written down.
    #[error("cannot write the first admin token to {path}")]
    AdminToken {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The key for credentials cannot be used.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Notifications could not leave.
    #[error("cannot send notifications as configured")]
    Notifications(#[from] CannotSend),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which address.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl StartError {
    /// Whether a person has to act before another start can do better.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Store(error) => error.needs_a_person(),
            Self::DataDir { .. }
            | Self::Locked(_)
            | Self::Randomness(_)
            | Self::AdminToken { .. }
            | Self::Vault(_)
            | Self::Notifications(_)
            | Self::Listen { .. } => false,
        }
    }
}

/// Opens the store and fills the cache: everything but the tasks and the server.
///
/// # Errors
/// As [`StartError`] says.
pub async fn assemble(
    settings: &Settings,
    registries: Arc<dyn Ask>,
    metrics: Arc<Metrics>,
    stopping: watch::Receiver<bool>,
) -> Result<Shared, StartError> {
    make_data_dir(settings)?;
    let store = open_store(&settings.location).await?;
    first_admin(&store, &settings.data_dir).await?;
    let vault = vault(settings, &store).await?;
    let app = App {
        store,
        live: Live::default(),
        resolver: Resolver::new(
            Arc::clone(&registries),
            Duration::from_secs(settings.digest_cache_s.into()),
            Arc::clone(&metrics),
        ),
        rhythm: Rhythm {
            interval: settings.refresh_interval,
        },
        logins: Logins::new(vault.clone(), registries),
        streams: Places::new(stream::MOST_STREAMS, stream::MOST_STREAMS_OF_ONE),
        verifying: Mutex::default(),
        retention: settings.retention,
        pull_limits: Limits::new(
            device::pull_login::MOST_REQUESTS,
            device::pull_login::WINDOW,
        ),
        report_limits: Limits::new(device::report::MOST_REPORTS, device::report::WINDOW),
        metrics,
        poll_interval_s: settings.poll_interval_s,
        rollouts_soon: Notify::new(),
        pushes: Pushes::new(settings),
        courier: Courier::new(vault, settings.notifications.clone())?,
        resolve_soon: Notify::new(),
        stopping,
        install: settings.install.clone(),
        openapi: http::document_bytes(),
    };
    Ok(Arc::new(app))
}

/// Runs until `stopping` turns true.
///
/// # Errors
/// As [`StartError`] says; once it serves, it does not fail.
pub async fn run(
    settings: &Settings,
    registries: Arc<dyn Ask>,
    metrics: Arc<Metrics>,
    stopping: watch::Receiver<bool>,
) -> Result<(), StartError> {
    make_data_dir(settings)?;
    let _lock = match &settings.location {
        Location::Sqlite(path) => Some(Lock::take(path)?),
        Location::Postgres(_) => None,
    };
    let app = assemble(settings, registries, Arc::clone(&metrics), stopping.clone()).await?;
    app.courier.check()?;
    let mut running = tasks::start(&app);
    // The feed listens already: nothing that changes from here on is missed.
    app.live.reload(&app.store).await?;
    let listener =
        TcpListener::bind(settings.listen)
            .await
            .map_err(|source| StartError::Listen {
                address: settings.listen,
                source,
            })?;
    let address = listener.local_addr().unwrap_or(settings.listen);
    tracing::info!(
        listen = %address,
        devices = app.live.len(),
        "the control API serves"
    );
    let router = http::router(Arc::clone(&app));
    server::serve(listener, router, metrics, &Systemd::from_env(), stopping).await;
    let ended = async { while running.join_next().await.is_some() {} };
    if tokio::time::timeout(TASKS_END_WITHIN, ended).await.is_err() {
        tracing::warn!("ended with tasks still at work");
    }
    tracing::info!("the control API ended");
    Ok(())
}

fn make_data_dir(settings: &Settings) -> Result<(), StartError> {
    std::fs::create_dir_all(&settings.data_dir).map_err(|source| StartError::DataDir {
        path: settings.data_dir.clone(),
        source,
    })
}

async fn open_store(location: &Location) -> Result<Store, StartError> {
    Store::open(location.clone())
        .await
        .map_err(|error| match (error, location) {
            (source @ StoreError::Damaged(_), Location::Sqlite(path)) => StartError::Damaged {
                path: path.clone(),
                source,
            },
            (other, _) => StartError::Store(other),
        })
}

/// Opens the key that credentials are sealed with, and says when some of them need another one.
async fn vault(settings: &Settings, store: &Store) -> Result<Vault, StartError> {
    let vault = Vault::open(&settings.credentials_key_file)?;
    let key_id = vault.key_id().to_owned();
    let foreign = store
        .read(move |tx| credentials::count_foreign(tx, &key_id))
        .await?;
    if foreign > 0 {
        // Devices are served all the same: digests that are known stay known.
        tracing::error!(
            path = %settings.credentials_key_file.display(), key.id = vault.key_id(),
            credentials = foreign,
            "the key file is not the one that registry credentials in the store were encrypted with: \
             they cannot be used until it is, or until they are set again"
        );
    }
    Ok(vault)
}

/// Makes an admin token when there is none that works, and writes it where only its owner reads.
async fn first_admin(store: &Store, data_dir: &Path) -> Result<(), StartError> {
    let now = clock::now();
    let token = secret::token(Kind::Operator)?;
    let hash = token.hash();
    let path = data_dir.join(ADMIN_TOKEN_FILE);
    // The file is written first: a crash in between leaves a dead token, never a lost one.
    let exists = store
        .read(move |tx| tokens::count_valid(tx, Role::Admin, now))
        .await?
        > 0;
    if exists {
        return Ok(());
    }
    write_secret(&path, &token).map_err(|source| StartError::AdminToken {
        path: path.clone(),
        source,
    })?;
    let made = store
        .transact(move |tx| {
            if tokens::count_valid(tx, Role::Admin, now)? > 0 {
                return Ok(false);
            }
            let id = tokens::insert(tx, "first start", Role::Admin, &hash, now, None)?;
            let actor = Actor {
                kind: "system",
                name: "first start".to_owned(),
                request_id: "first start".to_owned(),
            };
            let entry = NewEntry {
                action: "token.create",
                subject_kind: "token",
                subject: id.to_string(),
                before: None,
                after: Some(json!({"name": "first start", "role": "admin"})),
            };
            audit::append(tx, &actor, &entry, now)?;
            Ok::<_, StoreError>(true)
        })
        .await?;
    if made {
        tracing::info!(path = %path.display(), "wrote the first admin token to a file");
        Ok(())
    } else {
        // Another replica was first: its token is the one that works.
        std::fs::remove_file(&path).map_err(|source| StartError::AdminToken { path, source })
    }
}

fn write_secret(path: &Path, token: &Secret) -> std::io::Result<()> {
    // A file of this name may be there with other permissions: replaced, not reused.
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    writeln!(file, "{}", token.expose())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    // Its name too must outlive a power cut: the store will say that the token was given out.
    std::fs::File::open(folder(path))?.sync_all()
}
