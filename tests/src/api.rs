//! The real control API, started for a test, and a small client for its operator calls.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binaries;
use crate::place::Port;
use crate::process::{Process, Program};
use crate::registry::Registry;
use crate::wait::try_wait_for;

/// From start to `/readyz`: migrations on a busy machine included.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// Longer than any single call of a test takes, long polls included.
const CALL_ENDS_WITHIN: Duration = Duration::from_mins(2);

/// The lab's HTTP client: no proxy, no redirects followed.
///
/// # Panics
/// When the client cannot be built, which nothing outside this process can cause.
pub fn client() -> reqwest::Client {
    static CLIENT: OnceLock<()> = OnceLock::new();
    CLIENT.get_or_init(|| {
        // An error means that somebody installed one before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    // Not shared: a connection belongs to the runtime of the test that opened it.
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(CALL_ENDS_WITHIN)
        .build()
        .expect("a client without special settings can be built")
}

/// What a control API should be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A `PostgreSQL` URL; without one, `SQLite` in the data folder.
    pub database: Option<String>,
    /// Registries it may reach over plain HTTP, with a login where needed.
    pub registries: Vec<Value>,
    /// More settings, laid over the file's top level.
    pub settings: Value,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// An admin token that works already: a second replica on one database writes none of its own.
    pub token: Option<String>,
}

impl Options {
    /// Lets the API reach this registry over plain HTTP, with a login when given.
    #[must_use]
    pub fn registry(mut self, registry: &Registry, login: Option<(&str, &str)>) -> Self {
        let mut entry = json!({ "host": registry.host(), "plain_http": true });
        if let Some((username, password)) = login {
            entry["username"] = json!(username);
            entry["password"] = json!(password);
        }
        self.registries.push(entry);
        self
    }

    /// Sets a top-level setting.
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.settings[key] = value;
        self
    }
}

/// A running control API; dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Api {
    port: Port,
    process: Process,
    folder: TempDir,
    data: PathBuf,
    token: String,
    client: reqwest::Client,
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// The body as it came.
    pub body: Vec<u8>,
    /// The body as JSON; null when it is not.
    pub json: Value,
}

impl Answer {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// This answer, if its status is a good one.
    pub fn good(self) -> anyhow::Result<Self> {
        ensure!(
            self.status.is_success(),
            "{}: {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        Ok(self)
    }
}

impl Api {
    /// Starts it and waits until it is ready.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        Self::start_on(Port::take()?, options).await
    }

    /// As [`Api::start`], on a port that was taken before to tell others of it.
    pub async fn start_on(port: Port, options: Options) -> anyhow::Result<Self> {
        let file = binaries::api()?;
        let folder = crate::place::temporary("api")?;
        // Elsewhere for tests of what becomes of its disk.
        let elsewhere = options.settings.get("data_dir").and_then(Value::as_str);
        let data = elsewhere.map_or_else(|| folder.path().join("data"), PathBuf::from);
        fs::create_dir_all(&data)?;
        let mut config = json!({
            "listen": port.address(), "data_dir": data,
            "log": { "format": "json", "level": "debug" }, "registries": options.registries,
        });
        if let Some(url) = options.database {
            config["database"] = json!(url);
        }
        for (key, value) in options.settings.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        // Every JSON document is a YAML document.
        let path = folder.path().join("api.yaml");
        fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
        let args = ["serve", "--config", &path.display().to_string()].map(str::to_owned);
        let mut program = Program::new(file, args);
        program.env = options.env;
        let process = Process::start("holdfast-api", program, &folder.path().join("log"))?;
        let mut api = Self {
            port,
            process,
            folder,
            data: data.clone(),
            token: String::new(),
            client: client(),
        };
        api.ready().await?;
        if let Some(token) = options.token {
            api.token = token;
            return Ok(api);
        }
        let token = data.join("admin-token");
        let read = fs::read_to_string(&token);
        let read = read.with_context(|| format!("read {}", token.display()))?;
        read.trim().clone_into(&mut api.token);
        Ok(api)
    }

    /// Waits for `/readyz`; fails at once when the program ended.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.url());
        let ready = try_wait_for(
            "holdfast-api to be ready",
            READY_WITHIN,
            async || match self.process.ended() {
                Some(status) => Ok(Err(status)),
                None => match self.client.get(&url).send().await {
                    Ok(answer) if answer.status().is_success() => Ok(Ok(())),
                    Ok(answer) => Err(answer.status().to_string()),
                    Err(error) => Err(error.to_string()),
                },
            },
        );
        match ready.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => {
                anyhow::bail!("holdfast-api ended with {status}:\n{}", self.process.tail())
            }
            Err(error) => anyhow::bail!("{error}; its log:\n{}", self.process.tail()),
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.port.address())
    }

    /// `127.0.0.1:PORT`, for a tap in front of it.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// The admin token it wrote at its first start.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// Its settings file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("api.yaml")
    }

    /// Everything it printed.
    pub fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The program itself: its log, `kill9`, `restart` (then [`Api::ready`]).
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A call below `/api/v1` as admin; any status is an answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        self.call_as(Some(&self.token), method, path, &[], body)
            .await
    }

    /// A call with any token and any headers. A path outside `/api/v1` begins with `//`.
    pub async fn call_as(
        &self,
        token: Option<&str>,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let url = match path.strip_prefix("//") {
            Some(path) => format!("{}/{path}", self.url()),
            None => format!("{}/api/v1{path}", self.url()),
        };
        let mut request = self.client.request(method, url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let headers = response.headers().clone();
        let body = response.bytes().await?.to_vec();
        let json = serde_json::from_slice(&body).unwrap_or_default();
        Ok(Answer {
            status,
            headers,
            body,
            json,
        })
    }

    /// As [`Api::call_as`], again as long as it asks for that: 503, as several that write the same row get.
    pub async fn call_patiently(
        &self,
        token: &str,
        method: Method,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<Answer> {
        try_wait_for("an answer that is not 503", READY_WITHIN, async || {
            let method = method.clone();
            let answer = self.call_as(Some(token), method, path, &[], Some(body));
            match answer.await {
                Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => {
                    Err(String::from_utf8_lossy(&answer.body).into_owned())
                }
                other => Ok(other),
            }
        })
        .await?
    }

    /// GET as admin.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.call(Method::GET, path, None).await
    }

    /// POST as admin.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// PUT as admin.
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// Runs a command of the program with the same settings file, and answers what it printed.
    pub async fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        run(&binaries::api()?, &self.config_file(), words).await
    }
}

/// Runs a command of one of our programs, with `--config FILE` behind it, to its end.
pub(crate) async fn run(file: &Path, config: &Path, words: &[&str]) -> anyhow::Result<String> {
    let mut command = std::process::Command::new(file);
    command.args(words).arg("--config").arg(config);
    tokio::task::spawn_blocking(move || crate::apt::run(&mut command)).await?
}
