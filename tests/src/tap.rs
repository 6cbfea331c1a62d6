//! A proxy between an agent and its engine that records calls and acts at a chosen one.
//!
//! It passes everything through unharmed: streams, chunked bodies, upgraded connections. It changes
//! nothing unless a rule says so, and a rule acts once, or as often as it says.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::place;
use crate::process::kill9;
use crate::wait::try_wait_for;

type Body = BoxBody<Bytes, hyper::Error>;

/// A call that passed, or was about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// HTTP method.
    pub method: Method,
    /// Path without the version in front.
    pub path: String,
    /// Query, as written.
    pub query: String,
    /// What the engine answered; `None` while it has not.
    pub status: Option<StatusCode>,
    /// The login for a registry that came along (`X-Registry-Auth`), in base64.
    pub registry_auth: Option<String>,
}

impl Call {
    /// Whether it may change something in the engine.
    pub fn mutates(&self) -> bool {
        self.method != Method::GET && self.method != Method::HEAD
    }
}

/// When a rule acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before the engine sees the request.
    BeforeRequest,
    /// After the engine answered, before the client sees anything of it.
    AfterResponse,
    /// After the whole body of the answer came (a pull is done), before the client sees anything.
    AfterBody,
}

/// What a rule does.
#[derive(Clone)]
pub enum Action {
    /// Only says that the moment came.
    Notify,
    /// Kills a process as a power cut would, and lets nothing more through on this call.
    Kill9(u32),
    /// Holds the call until [`EngineTap::release`].
    Stall,
    /// Ends the client's connection without an answer.
    Reset,
    /// Answers with this status; after the response, the engine did what was asked all the same.
    Answer(StatusCode),
    /// As [`Action::Answer`], with the engine's kind of message.
    Refuse(StatusCode, &'static str),
    /// Runs anything, and goes on when it is done.
    Run(Arc<dyn Fn(&Call) + Send + Sync>),
}

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Notify => f.write_str("Notify"),
            Self::Kill9(pid) => write!(f, "Kill9({pid})"),
            Self::Stall => f.write_str("Stall"),
            Self::Reset => f.write_str("Reset"),
            Self::Answer(status) => write!(f, "Answer({status})"),
            Self::Refuse(status, message) => write!(f, "Refuse({status}, {message})"),
            Self::Run(_) => f.write_str("Run"),
        }
    }
}

/// Which call a rule waits for.
#[derive(Debug, Clone)]
pub struct Rule {
    which: Which,
    nth: usize,
    times: usize,
    when: When,
    action: Action,
}

#[derive(Debug, Clone)]
enum Which {
    Path { method: String, pattern: String },
    Mutation,
}

impl Rule {
    /// A method and a path; `*` stands for one part: `POST /containers/*/start`.
    pub fn on(call: &str) -> Self {
        let (method, pattern) = call.split_once(' ').unwrap_or(("GET", call));
        Self::of(Which::Path {
            method: method.to_owned(),
            pattern: pattern.to_owned(),
        })
    }

    /// Any call that may change something.
    pub fn on_mutation() -> Self {
        Self::of(Which::Mutation)
    }

    fn of(which: Which) -> Self {
        Self {
            which,
            nth: 1,
            times: 1,
            when: When::BeforeRequest,
            action: Action::Notify,
        }
    }

    /// The `nth` such call from now on, counted from 1.
    #[must_use]
    pub fn nth(mut self, nth: usize) -> Self {
        self.nth = nth;
        self
    }

    /// How many such calls in a row it acts on; one, unless told.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// When to act.
    #[must_use]
    pub fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }

    /// What to do.
    #[must_use]
    pub fn then(mut self, action: Action) -> Self {
        self.action = action;
        self
    }

    fn fits(&self, call: &Call) -> bool {
        match &self.which {
            Which::Mutation => call.mutates(),
            Which::Path { method, pattern } => {
                let (mut want, mut have) = (pattern.split('/'), call.path.split('/'));
                let same = loop {
                    match (want.next(), have.next()) {
                        (None, None) => break true,
                        (Some(want), Some(have)) if want == "*" || want == have => {}
                        (Some(_) | None, Some(_) | None) => break false,
                    }
                };
                same && *method == call.method.as_str()
            }
        }
    }
}

/// Says whether a rule acted.
#[derive(Debug, Clone)]
pub struct Fired(Arc<Mutex<Option<Call>>>);

impl Fired {
    /// The call it acted on.
    pub fn call(&self) -> Option<Call> {
        guard(&self.0).clone()
    }

    /// Waits until it acted.
    pub async fn wait(&self, deadline: Duration) -> anyhow::Result<Call> {
        try_wait_for("the tap's rule to act", deadline, async || self.call()).await
    }
}

#[derive(Debug)]
struct Armed {
    rule: Rule,
    seen: usize,
    fired: Fired,
}

#[derive(Debug)]
struct State {
    engine: PathBuf,
    calls: Mutex<Vec<Call>>,
    rules: Mutex<Vec<Armed>>,
    stalled: watch::Sender<bool>,
}

/// The proxy; dropping it ends it.
#[derive(Debug)]
pub struct EngineTap {
    folder: TempDir,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl EngineTap {
    /// Listens on a socket of its own and forwards to the engine's.
    pub fn start(engine: &Path) -> anyhow::Result<Self> {
        let folder = crate::place::temporary("tap")?;
        let listener = UnixListener::bind(folder.path().join("docker.sock"))?;
        let state = Arc::new(State {
            engine: engine.to_owned(),
            calls: Mutex::default(),
            rules: Mutex::default(),
            stalled: watch::channel(false).0,
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                let service = service_fn(move |request| pass(Arc::clone(&state), request));
                running.spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades(),
                );
                while running.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            folder,
            state,
            task,
        })
    }

    /// The socket to give to the agent.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// Arms a rule; it acts once, or as often as it says.
    pub fn arm(&self, rule: Rule) -> Fired {
        let fired = Fired(Arc::default());
        guard(&self.state.rules).push(Armed {
            rule,
            seen: 0,
            fired: fired.clone(),
        });
        fired
    }

    /// Takes back every rule that has not acted.
    pub fn disarm(&self) {
        guard(&self.state.rules).clear();
    }

    /// Lets every stalled call go on.
    pub fn release(&self) {
        self.state.stalled.send_replace(false);
    }

    /// Every call so far, in the order the requests came.
    pub fn calls(&self) -> Vec<Call> {
        guard(&self.state.calls).clone()
    }

    /// Every call so far that may have changed something.
    pub fn mutations(&self) -> Vec<Call> {
        self.calls().into_iter().filter(Call::mutates).collect()
    }

    /// Forgets the calls so far.
    pub fn forget(&self) {
        guard(&self.state.calls).clear();
    }
}

impl Drop for EngineTap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The connection ends here, without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the tap ended this call: {0}")]
struct Ended(&'static str);

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn pass(
    state: Arc<State>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    let mut call = Call {
        method: request.method().clone(),
        path: unversioned(request.uri().path()).to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        status: None,
        registry_auth: request
            .headers()
            .get("x-registry-auth")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned),
    };
    let at = {
        let mut calls = guard(&state.calls);
        calls.push(call.clone());
        calls.len() - 1
    };
    let armed = state.matching(&call);
    if let Some(answer) = state.act(&armed, When::BeforeRequest, &call).await? {
        return Ok(answer);
    }
    let upgrade = request
        .headers()
        .contains_key(http::header::UPGRADE)
        .then(|| hyper::upgrade::on(&mut request));
    let stream = UnixStream::connect(&state.engine).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    // Two engines that choose a subnet at the same moment choose the same, and one of them is cut off: each
    // looks at the routes before the other has made its own.
    let makes_network = call.method == Method::POST && call.path == "/networks/create";
    let turn = if makes_network {
        Some(tokio::task::spawn_blocking(|| place::lock("networks")).await??)
    } else {
        None
    };
    let mut response = sender.send_request(request).await?;
    drop(turn);
    call.status = Some(response.status());
    if let Some(entry) = guard(&state.calls).get_mut(at) {
        entry.status = call.status;
    }
    if let Some(answer) = state.act(&armed, When::AfterResponse, &call).await? {
        return Ok(answer);
    }
    if let (Some(client), StatusCode::SWITCHING_PROTOCOLS) = (upgrade, response.status()) {
        let engine = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(client), Ok(engine)) = tokio::join!(client, engine) {
                let (mut client, mut engine) = (TokioIo::new(client), TokioIo::new(engine));
                // Either side may end at any time; there is nobody to tell.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut engine).await;
            }
        });
    }
    let waits = |rule: &(Rule, Fired)| rule.0.when == When::AfterBody;
    if !armed.iter().any(waits) {
        return Ok(response.map(BodyExt::boxed));
    }
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    if let Some(answer) = state.act(&armed, When::AfterBody, &call).await? {
        return Ok(answer);
    }
    let body = Full::new(body).map_err(|never| match never {});
    Ok(Response::from_parts(parts, body.boxed()))
}

impl State {
    /// Counts the call for every rule it fits, and takes out those whose turn it is.
    fn matching(&self, call: &Call) -> Vec<(Rule, Fired)> {
        let mut rules = guard(&self.rules);
        let mut due = Vec::new();
        rules.retain_mut(|armed| {
            if !armed.rule.fits(call) {
                return true;
            }
            armed.seen += 1;
            if armed.seen >= armed.rule.nth {
                due.push((armed.rule.clone(), armed.fired.clone()));
            }
            armed.seen + 1 < armed.rule.nth.saturating_add(armed.rule.times)
        });
        due
    }

    async fn act(
        &self,
        armed: &[(Rule, Fired)],
        when: When,
        call: &Call,
    ) -> Result<Option<Response<Body>>, Failure> {
        for (rule, fired) in armed.iter().filter(|(rule, _)| rule.when == when) {
            if let Action::Stall = rule.action {
                self.stalled.send_replace(true);
            }
            let say = || *guard(&fired.0) = Some(call.clone());
            match &rule.action {
                Action::Notify => say(),
                Action::Kill9(pid) => {
                    kill9(*pid);
                    say();
                    return Err(Ended("the client was killed").into());
                }
                Action::Stall => {
                    say();
                    let mut stalled = self.stalled.subscribe();
                    // An error means that the tap is gone.
                    let _ = stalled.wait_for(|stalled| !stalled).await;
                }
                Action::Reset => {
                    say();
                    return Err(Ended("reset").into());
                }
                Action::Answer(status) => {
                    say();
                    let body = Empty::new().map_err(|never| match never {});
                    let mut response = Response::new(body.boxed());
                    *response.status_mut() = *status;
                    return Ok(Some(response));
                }
                Action::Refuse(status, message) => {
                    say();
                    let text = serde_json::json!({ "message": message }).to_string();
                    let body = Full::from(text).map_err(|never| match never {});
                    let mut response = Response::new(body.boxed());
                    *response.status_mut() = *status;
                    return Ok(Some(response));
                }
                Action::Run(run) => {
                    run(call);
                    say();
                }
            }
        }
        Ok(None)
    }
}

/// `/v1.41/containers/json` → `/containers/json`.
fn unversioned(path: &str) -> &str {
    let version = path.strip_prefix("/v").and_then(|rest| rest.find('/'));
    match version {
        Some(end) if path[2..2 + end].starts_with(|first: char| first.is_ascii_digit()) => {
            &path[2 + end..]
        }
        Some(_) | None => path,
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
