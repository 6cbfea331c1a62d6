//! An HTTP proxy between two programs whose answers a test may alter.
//!
//! It forwards every request and shows the honest answer to the test's rule, which gives back what
//! the client gets. Bodies are read whole: nothing here is for streams.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request that came, and the status its client got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// HTTP method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Whether it carried credentials.
    pub authorised: bool,
    /// Whether it asked for changes only (`If-None-Match`).
    pub conditional: bool,
    /// What the client was answered.
    pub status: StatusCode,
}

type Rule = dyn Fn(&Asked, Response<Bytes>) -> Response<Bytes> + Send + Sync;
type Failure = Box<dyn std::error::Error + Send + Sync>;

struct State {
    to: String,
    rule: Mutex<Option<Arc<Rule>>>,
    asked: Mutex<Vec<Asked>>,
}

/// The proxy; dropping it ends it.
pub struct HttpTap {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl HttpTap {
    /// Forwards a free loopback port to `to` (`127.0.0.1:PORT`).
    pub async fn start(to: impl Into<String>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            to: to.into(),
            rule: Mutex::default(),
            asked: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                let service = service_fn(move |request| pass(Arc::clone(&state), request));
                running.spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
                while running.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            state,
            task,
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on `rule` makes the client's answer from the honest one.
    pub fn alter(
        &self,
        rule: impl Fn(&Asked, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) {
        *guard(&self.state.rule) = Some(Arc::new(rule));
    }

    /// From now on answers pass as they are.
    pub fn honest(&self) {
        *guard(&self.state.rule) = None;
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Asked> {
        guard(&self.state.asked).clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        guard(&self.state.asked).clear();
    }
}

impl std::fmt::Debug for HttpTap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HttpTap({} to {})", self.address, self.state.to)
    }
}

impl Drop for HttpTap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer with a body of any kind.
///
/// # Panics
/// When `headers` holds what is no header, which is the test's own mistake.
pub fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).expect("a test's own headers")
}

async fn pass(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let mut asked = Asked {
        method: request.method().clone(),
        path: request.uri().to_string(),
        authorised: request.headers().contains_key(http::header::AUTHORIZATION),
        conditional: request.headers().contains_key(http::header::IF_NONE_MATCH),
        status: StatusCode::BAD_GATEWAY,
    };
    let honest = forward(&state.to, request).await;
    let honest = honest.unwrap_or_else(|error| reply(502, &[], error.to_string()));
    let rule = guard(&state.rule).clone();
    let answer = match rule {
        Some(rule) => rule(&asked, honest),
        None => honest,
    };
    asked.status = answer.status();
    guard(&state.asked).push(asked);
    Ok(answer.map(Full::new))
}

async fn forward(to: &str, request: Request<Incoming>) -> Result<Response<Bytes>, Failure> {
    let stream = TcpStream::connect(to).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(
        parts,
        body.collect().await?.to_bytes(),
    ))
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
