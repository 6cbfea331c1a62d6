//! Owns the configuration as people write it, and the checks that turn it into settings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use holdfast_domain::retention::Retention;
use holdfast_registry::MirrorError;

use super::install::{ReleasesInput, install};
use super::pushes::{ApprovalsInput, InternalInput, WebhooksInput, push_rules};
use super::{ConfigError, Fault, Log, LogFormat, Notifications, Registry, Settings, repeated};
use crate::secret::Secret;
use crate::store::Location;

/// Loopback: a control API without TLS in front must not be reachable by accident.
const DEFAULT_LISTEN: &str = "127.0.0.1:8080";
const DEFAULT_DATA_DIR: &str = "/var/lib/holdfast-api";
const DEFAULT_POLL_S: u32 = 30;
const DEFAULT_DIGEST_CACHE_S: u32 = 300;
/// A push is noticed within a quarter of an hour; each image costs its registry four small requests an
/// hour, which count against no pull limit.
const DEFAULT_REFRESH_S: u32 = 900;
/// Less would be a poll of every registry for every image, all the time.
const LEAST_REFRESH_S: u32 = 1;
/// More is no refresh.
const MOST_REFRESH_S: u32 = 7 * 24 * 3_600;
/// The key's file when none is named, beside the database.
const CREDENTIALS_KEY_FILE: &str = "credentials-key";
/// A season: long enough to see how an update went, and what the dashboard shows.
const DEFAULT_EVENTS_DAYS: u32 = 90;
/// A year and a month: what an audit of the year before asks for.
const DEFAULT_AUDIT_DAYS: u32 = 400;
/// Half a year after the end of a rollout.
const DEFAULT_ROLLOUTS_DAYS: u32 = 180;
/// More is meant to be for ever, which is 0.
const MOST_DAYS: u32 = 36_500;
/// A receiver that takes longer keeps the others of its channel waiting.
const MOST_PATIENCE_S: u32 = 60;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    listen: Option<String>,
    data_dir: Option<PathBuf>,
    database: Option<String>,
    database_password_file: Option<PathBuf>,
    public_url: Option<String>,
    #[serde(default)]
    releases: ReleasesInput,
    #[serde(default)]
    log: LogInput,
    #[serde(default)]
    registries: Vec<RegistryInput>,
    #[serde(default)]
    poll: PollInput,
    #[serde(default, deserialize_with = "number")]
    digest_cache_seconds: Option<u32>,
    #[serde(default)]
    refresh: RefreshInput,
    credentials_key_file: Option<PathBuf>,
    #[serde(default)]
    webhooks: WebhooksInput,
    #[serde(default)]
    internal_images: Vec<InternalInput>,
    #[serde(default)]
    approvals: ApprovalsInput,
    #[serde(default)]
    retention: RetentionInput,
    #[serde(default)]
    notifications: NotificationsInput,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetentionInput {
    #[serde(default, rename = "events_days", deserialize_with = "number")]
    events: Option<u32>,
    #[serde(default, rename = "audit_days", deserialize_with = "number")]
    audit: Option<u32>,
    #[serde(default, rename = "rollouts_days", deserialize_with = "number")]
    rollouts: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NotificationsInput {
    #[serde(default)]
    private_hosts: Vec<String>,
    ca_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "number")]
    timeout_seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RefreshInput {
    #[serde(default, deserialize_with = "number")]
    interval_seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogInput {
    format: Option<String>,
    level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PollInput {
    #[serde(default, deserialize_with = "number")]
    interval_seconds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryInput {
    host: String,
    #[serde(default)]
    plain_http: bool,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    #[serde(default)]
    hand_out: bool,
    #[serde(default)]
    realm_hosts: Vec<String>,
    #[serde(default)]
    private_hosts: Vec<String>,
    #[serde(default)]
    mirrors: Vec<String>,
    ca_file: Option<PathBuf>,
}

impl std::fmt::Debug for RegistryInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryInput")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// A number, also when the environment gives it as text.
pub(super) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u32),
        Text(String),
    }
    match Option::<Written>::deserialize(deserializer)
        .map_err(|_| de::Error::custom("must be a whole number that is not negative"))?
    {
        None => Ok(None),
        Some(Written::Number(number)) => Ok(Some(number)),
        Some(Written::Text(text)) => text
            .trim()
            .parse()
            .map(Some)
            .map_err(|_| de::Error::custom("must be a whole number that is not negative")),
    }
}

/// Collects every fault instead of stopping at the first.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, path: impl Into<String>, detail: impl Into<String>) {
        self.0.push(Fault {
            path: path.into(),
            detail: detail.into(),
        });
    }

    /// A secret written in place or in a file, not both.
    pub(super) fn secret(
        &mut self,
        path: &str,
        text: Option<String>,
        file: Option<&Path>,
    ) -> Option<Secret> {
        let text = match (text, file) {
            (None, None) => return None,
            (Some(_), Some(_)) => {
                self.add(path, format!("give either {path} or {path}_file, not both"));
                return None;
            }
            (Some(text), None) => text,
            (None, Some(file)) => match std::fs::read_to_string(file) {
                Ok(text) => text.trim_end_matches(['\r', '\n']).to_owned(),
                Err(error) => {
                    self.add(
                        format!("{path}_file"),
                        format!("cannot read {}: {error}", file.display()),
                    );
                    return None;
                }
            },
        };
        if text.is_empty() {
            self.add(path, "must not be empty");
            return None;
        }
        Some(Secret::new(text))
    }

    /// Certificates in a file.
    fn pem(&mut self, path: &str, file: Option<PathBuf>) -> Option<Vec<u8>> {
        let file = file?;
        let read = std::fs::read(&file);
        let fault = |error| format!("cannot be read from {}: {error}", file.display());
        read.map_err(|error| self.add(path, fault(error))).ok()
    }

    pub(super) fn within(&mut self, path: &str, value: u32, least: u32, most: u32) -> u32 {
        if !(least..=most).contains(&value) {
            self.add(path, format!("must be {least} to {most} seconds"));
        }
        value
    }
}

impl Input {
    pub(super) fn validate(self) -> Result<Settings, ConfigError> {
        let mut faults = Faults::default();
        let listen = self.listen.as_deref().unwrap_or(DEFAULT_LISTEN);
        let listen = listen.parse::<SocketAddr>().unwrap_or_else(|_| {
            faults.add("listen", "must be an address and port such as 0.0.0.0:8080");
            SocketAddr::from(([127, 0, 0, 1], 0))
        });
        let data_dir = self.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into());
        let location = match self.database {
            None => Location::Sqlite(data_dir.join("holdfast.db")),
            Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                let url = with_password(url, self.database_password_file.as_deref(), &mut faults);
                if url.parse::<postgres::Config>().is_err() {
                    faults.add("database", "is not a valid postgres:// address");
                }
                Location::Postgres(url)
            }
            Some(_) => {
                faults.add(
                    "database",
                    "must start with postgres://; leave it out for SQLite in data_dir",
                );
                Location::Sqlite(data_dir.join("holdfast.db"))
            }
        };
        let key_file = data_dir.join(CREDENTIALS_KEY_FILE);
        let (webhook_secret, pushes) = push_rules(
            self.webhooks,
            self.internal_images,
            &self.approvals,
            &mut faults,
        );
        let settings = Settings {
            listen,
            data_dir,
            location,
            log: self.log.validate(&mut faults),
            registries: registries(self.registries, &mut faults),
            poll_interval_s: faults.within(
                "poll.interval_seconds",
                self.poll.interval_seconds.unwrap_or(DEFAULT_POLL_S),
                1,
                3_600,
            ),
            digest_cache_s: faults.within(
                "digest_cache_seconds",
                self.digest_cache_seconds.unwrap_or(DEFAULT_DIGEST_CACHE_S),
                0,
                3_600,
            ),
            refresh_interval: match self.refresh.interval_seconds.unwrap_or(DEFAULT_REFRESH_S) {
                0 => None,
                seconds => {
                    let seconds = faults.within(
                        "refresh.interval_seconds",
                        seconds,
                        LEAST_REFRESH_S,
                        MOST_REFRESH_S,
                    );
                    Some(Duration::from_secs(seconds.into()))
                }
            },
            credentials_key_file: self.credentials_key_file.unwrap_or(key_file),
            webhook_secret,
            pushes,
            retention: self.retention.validate(&mut faults),
            notifications: self.notifications.validate(&mut faults),
            install: install(self.public_url.as_deref(), self.releases, &mut faults),
        };
        if faults.0.is_empty() {
            Ok(settings)
        } else {
            Err(ConfigError(faults.0))
        }
    }
}

impl RetentionInput {
    fn validate(self, faults: &mut Faults) -> Retention {
        let mut days = |key: &str, value: Option<u32>, default: u32| {
            let days = value.unwrap_or(default);
            if days > MOST_DAYS {
                faults.add(
                    format!("retention.{key}"),
                    format!("must be 1 to {MOST_DAYS} days, or 0 for ever"),
                );
            }
            (days > 0).then_some(days)
        };
        Retention {
            events_days: days("events_days", self.events, DEFAULT_EVENTS_DAYS),
            audit_days: days("audit_days", self.audit, DEFAULT_AUDIT_DAYS),
            rollouts_days: days("rollouts_days", self.rollouts, DEFAULT_ROLLOUTS_DAYS),
        }
    }
}

impl LogInput {
    fn validate(self, faults: &mut Faults) -> Log {
        let format = match self.format.as_deref() {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(_) => {
                faults.add("log.format", "must be text or json");
                LogFormat::Text
            }
        };
        let level = self.level.unwrap_or_else(|| "info".to_owned());
        if !crate::telemetry::is_filter(&level) {
            faults.add(
                "log.level",
                "must be error, warn, info, debug, trace, or directives such as info,hyper=warn",
            );
        }
        Log { format, level }
    }
}

impl NotificationsInput {
    fn validate(self, faults: &mut Faults) -> Notifications {
        let default = Notifications::default();
        for (position, host) in self.private_hosts.iter().enumerate() {
            if !is_host(host) {
                faults.add(
                    format!("notifications.private_hosts[{position}]"),
                    "must be a host such as ntfy.lan or ntfy.lan:8080, without scheme and path",
                );
            }
        }
        let timeout = self.timeout_seconds.map_or(default.timeout, |seconds| {
            let path = "notifications.timeout_seconds";
            Duration::from_secs(faults.within(path, seconds, 1, MOST_PATIENCE_S).into())
        });
        Notifications {
            private_hosts: self.private_hosts,
            ca_pem: faults.pem("notifications.ca_file", self.ca_file),
            timeout,
        }
    }
}

/// The address with the password of a file: whoever may read the address need not know it.
fn with_password(url: String, file: Option<&Path>, faults: &mut Faults) -> String {
    let Some(password) = faults.secret("database_password", None, file) else {
        return url;
    };
    // A byte that stands for something else in an address is written as its number.
    let written: String = password
        .expose()
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect();
    let mark = if url.contains('?') { '&' } else { '?' };
    format!("{url}{mark}password={written}")
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && !text.contains(['/', '@', ' '])
}

fn registries(inputs: Vec<RegistryInput>, faults: &mut Faults) -> Vec<Registry> {
    let hosts: Vec<String> = inputs.iter().map(|input| input.host.clone()).collect();
    for host in repeated(hosts.iter().map(String::as_str)) {
        faults.add("registries", format!("names {host} twice"));
    }
    inputs
        .into_iter()
        .enumerate()
        .map(|(position, input)| {
            let path = format!("registries[{position}]");
            if !is_host(&input.host) {
                faults.add(
                    format!("{path}.host"),
                    "must be a host such as registry.example:5000, without scheme and path",
                );
            }
            let password = faults.secret(
                &format!("{path}.password"),
                input.password,
                input.password_file.as_deref(),
            );
            let credentials = match (input.username, password) {
                (Some(username), Some(password)) => Some((username, password)),
                (None, None) => None,
                (Some(_), None) => {
                    faults.add(format!("{path}.password"), "is missing beside username");
                    None
                }
                (None, Some(_)) => {
                    faults.add(format!("{path}.username"), "is missing beside password");
                    None
                }
            };
            let mut mirrors = Vec::new();
            for (number, text) in input.mirrors.iter().enumerate() {
                match text.parse() {
                    Ok(mirror) => mirrors.push(mirror),
                    Err(error) => faults.add(
                        format!("{path}.mirrors[{number}]"),
                        MirrorError::to_string(&error),
                    ),
                }
            }
            let ca_pem = faults.pem(&format!("{path}.ca_file"), input.ca_file);
            Registry {
                host: input.host,
                plain_http: input.plain_http,
                credentials,
                hand_out: input.hand_out,
                realm_hosts: input.realm_hosts,
                private_hosts: input.private_hosts,
                mirrors,
                ca_pem,
            }
        })
        .collect()
}
