//! Owns logins as `docker login` keeps them: in `config.json`, or with a credential helper that it names.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::{DEFAULT_REGISTRY, Keychain, KeychainError, canonical};
use crate::settings::{Credentials, Secret};

/// A file of logins is small; a larger one is something else.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// A helper may ask a cloud or an agent for keys; one that takes longer waits for a person.
const HELPER_LIMIT: Duration = Duration::from_secs(15);
/// Longest answer of a helper that is read.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// The user name with which helpers say that the secret is a refresh token.
const TOKEN_USER: &str = "<token>";
/// What helpers know Docker Hub by.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    /// It cannot be read.
    #[error("cannot read the docker configuration {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what docker writes. The content is not repeated: it holds passwords.
    #[error("the docker configuration is not understood at line {line}, column {column}")]
    Format {
        /// Line of the error.
        line: usize,
        /// Column of the error.
        column: usize,
    },
    /// An entry is damaged.
    #[error("the login for {registry} is not user:password in base64")]
    Entry {
        /// The registry of the entry.
        registry: String,
    },
    /// A helper's name would leave the programs that are meant.
    #[error("`{0}` is no name of a credential helper")]
    Helper(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Written {
    auths: BTreeMap<String, WrittenLogin>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WrittenLogin {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// What a helper answers (docker-credential-helpers, "get").
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Docker's `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DockerConfig {
    logins: BTreeMap<String, Credentials>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

impl DockerConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// Says what is wrong with it, and never what is in it.
    pub fn load(path: &Path) -> Result<Self, DockerConfigError> {
        let failed = |source| DockerConfigError::Read {
            path: path.display().to_string(),
            source,
        };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > MAX_FILE_BYTES {
            return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
        }
        Self::parse(&std::fs::read(path).map_err(failed)?)
    }

    /// Reads the file's content.
    ///
    /// # Errors
    /// As [`DockerConfig::load`].
    pub fn parse(text: &[u8]) -> Result<Self, DockerConfigError> {
        let written: Written =
            serde_json::from_slice(text).map_err(|error| DockerConfigError::Format {
                line: error.line(),
                column: error.column(),
            })?;
        let helper = |name: String| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.chars().all(plain) {
                Ok(name)
            } else {
                Err(DockerConfigError::Helper(name.chars().take(80).collect()))
            }
        };
        let mut logins = BTreeMap::new();
        for (key, login) in written.auths {
            let Some(registry) = registry_of(&key) else {
                continue;
            };
            let Ok(found) = login.read() else {
                return Err(DockerConfigError::Entry { registry });
            };
            // With a store, docker leaves empty entries behind.
            logins.extend(found.map(|found| (registry, found)));
        }
        let helpers = written.cred_helpers.into_iter();
        let helpers = helpers.map(|(key, name)| Ok((canonical(&key), helper(name)?)));
        Ok(Self {
            logins,
            helpers: helpers.collect::<Result<_, _>>()?,
            store: match written.creds_store {
                name if name.is_empty() => None,
                name => Some(helper(name)?),
            },
        })
    }

    /// Docker's order: the registry's own helper, the store, then what the file itself holds.
    async fn look_up(&self, registry: &str) -> Result<Option<Credentials>, KeychainError> {
        let helper = self.helpers.get(registry).or(self.store.as_ref());
        if let Some(name) = helper
            && let Some(found) = ask(name, registry).await?
        {
            return Ok(Some(found));
        }
        Ok(self.logins.get(registry).cloned())
    }
}

impl Keychain for DockerConfig {
    fn may_know(&self, registry: &str) -> bool {
        let by_name = self.logins.contains_key(registry) || self.helpers.contains_key(registry);
        by_name || self.store.is_some()
    }

    fn find<'a>(
        &'a self,
        registry: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credentials>, KeychainError>> {
        Box::pin(self.look_up(registry))
    }
}

/// The registry that a key names. Docker writes no path but `/v1/`; what else is there holds tokens of
/// docker's own account (`/v1/access-token`) or logins for parts of a registry.
fn registry_of(key: &str) -> Option<String> {
    let bare = key.split_once("://").map_or(key, |(_, bare)| bare);
    let path = bare.split_once('/').map_or("", |(_, path)| path);
    matches!(path.trim_end_matches('/'), "" | "v1" | "v2").then(|| canonical(key))
}

impl WrittenLogin {
    fn read(self) -> Result<Option<Credentials>, ()> {
        if !self.registrytoken.is_empty() {
            let token = Secret::new(self.registrytoken);
            return Ok(Some(Credentials::Bearer { token }));
        }
        if !self.identitytoken.is_empty() {
            let token = Secret::new(self.identitytoken);
            return Ok(Some(Credentials::Identity { token }));
        }
        let (username, password) = if self.auth.is_empty() {
            (self.username, self.password)
        } else {
            let text = BASE64_STANDARD.decode(self.auth.trim()).map_err(|_| ())?;
            let text = String::from_utf8(text).map_err(|_| ())?;
            let (username, password) = text.split_once(':').ok_or(())?;
            // Docker for Windows ended passwords with a zero.
            let password = password.trim_end_matches('\0');
            (username.to_owned(), password.to_owned())
        };
        Ok((!username.is_empty()).then(|| Credentials::Password {
            username,
            password: Secret::new(password),
        }))
    }
}

/// Asks `docker-credential-NAME` for a registry's login; `None` when it has none.
async fn ask(name: &str, registry: &str) -> Result<Option<Credentials>, KeychainError> {
    ask_at(&format!("docker-credential-{name}"), registry).await
}

async fn ask_at(program: &str, registry: &str) -> Result<Option<Credentials>, KeychainError> {
    let failed = |why: String| KeychainError {
        keychain: program.to_owned(),
        why,
    };
    let key = if registry == DEFAULT_REGISTRY {
        HUB_KEY
    } else {
        registry
    };
    let talk = async {
        let mut child = Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // One that does not read its input has no use for it.
            let _ = input.write_all(key.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(output) = child.stdout.take() {
            output
                .take(MAX_ANSWER_BYTES)
                .read_to_end(&mut answer)
                .await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, answer))
    };
    let (status, answer) = match tokio::time::timeout(HELPER_LIMIT, talk).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => {
            return Err(failed(format!(
                "no answer within {} s",
                HELPER_LIMIT.as_secs()
            )));
        }
    };
    if !status.success() {
        // Helpers say so on their standard output, and end with an error.
        let said = String::from_utf8_lossy(&answer);
        return if said.contains("credentials not found") {
            Ok(None)
        } else {
            Err(failed(format!("it ended with {status}")))
        };
    }
    let answer: HelperAnswer = serde_json::from_slice(&answer)
        .map_err(|_| failed("its answer is not understood".to_owned()))?;
    let secret = Secret::new(answer.secret);
    Ok(Some(if answer.username == TOKEN_USER {
        Credentials::Identity { token: secret }
    } else {
        Credentials::Password {
            username: answer.username,
            password: secret,
        }
    }))
}

#[cfg(test)]
mod tests;
