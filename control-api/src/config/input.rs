//! Owns the configuration as people write it, and the checks that turn it into settings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use holdfast_registry::MirrorError;

use super::{ConfigError, Fault, Log, LogFormat, Registry, Settings, repeated};
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
/// A webhook secret shorter than this can be guessed.
const LEAST_SECRET: usize = 16;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    listen: Option<String>,
    data_dir: Option<PathBuf>,
    database: Option<String>,
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

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct WebhooksInput {
    secret: Option<String>,
    secret_file: Option<PathBuf>,
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

impl std::fmt::Debug for WebhooksInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhooksInput").finish_non_exhaustive()
    }
}

/// A number, also when the environment gives it as text.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
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
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, path: impl Into<String>, detail: impl Into<String>) {
        self.0.push(Fault {
            path: path.into(),
            detail: detail.into(),
        });
    }

    /// A secret written in place or in a file, not both.
    fn secret(&mut self, path: &str, text: Option<String>, file: Option<&Path>) -> Option<Secret> {
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

    fn within(&mut self, path: &str, value: u32, least: u32, most: u32) -> u32 {
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
            webhook_secret: faults.secret(
                "webhooks.secret",
                self.webhooks.secret,
                self.webhooks.secret_file.as_deref(),
            ),
        };
        if let Some(secret) = &settings.webhook_secret
            && secret.expose().len() < LEAST_SECRET
        {
            faults.add(
                "webhooks.secret",
                format!("must have at least {LEAST_SECRET} characters"),
            );
        }
        if faults.0.is_empty() {
            Ok(settings)
        } else {
            Err(ConfigError(faults.0))
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
            if input.host.is_empty() || input.host.contains(['/', '@', ' ']) {
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
            let ca_pem = input.ca_file.and_then(|file| match std::fs::read(&file) {
                Ok(pem) => Some(pem),
                Err(error) => {
                    let detail = format!("cannot be read from {}: {error}", file.display());
                    faults.add(format!("{path}.ca_file"), detail);
                    None
                }
            });
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
