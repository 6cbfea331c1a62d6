//! Takes what others push (registry notifications, outgoing webhooks) and keeps it for the test.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use crate::serve::{Request, Server, answer};
use crate::wait::try_wait_for;

/// A small HTTP endpoint that remembers every request.
#[derive(Debug)]
pub struct Receiver {
    server: Server,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    got: Vec<Request>,
    status: StatusCode,
}

impl Receiver {
    /// Starts on a free loopback port and answers 200 to everything.
    pub async fn start() -> anyhow::Result<Self> {
        let state = State {
            got: Vec::new(),
            status: StatusCode::OK,
        };
        let state = Arc::new(Mutex::new(state));
        let keep = Arc::clone(&state);
        let server = Server::start(move |request| {
            let mut state = keep.lock().unwrap_or_else(PoisonError::into_inner);
            state.got.push(request);
            answer(state.status, &Value::Null)
        })
        .await?;
        Ok(Self { server, state })
    }

    /// Answers everything from now on with this status.
    pub fn answer_with(&self, status: StatusCode) {
        self.state().status = status;
    }

    /// Its address, `http://127.0.0.1:PORT`; any path below it is taken.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Everything it got so far.
    pub fn got(&self) -> Vec<Request> {
        self.state().got.clone()
    }

    /// Waits for a request that fits.
    pub async fn wait_for(
        &self,
        what: &str,
        deadline: Duration,
        fits: impl Fn(&Request) -> bool,
    ) -> anyhow::Result<Request> {
        try_wait_for(what, deadline, async || {
            let got = self.got();
            let count = got.len();
            let found = got.into_iter().find(&fits);
            found.ok_or_else(|| format!("{count} requests, none fits"))
        })
        .await
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
