//! Owns giving blobs to neighbours that know the key: those that are here, and those that are on their way.
//!
//! Refuses everything else with the same answer, and to serve more of them than a small line carries.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use holdfast_proto::image::Digest;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::download::Progress;
use super::endpoint::{blob, refuse};
use super::feed::{Answer, Feed};
use super::peer::{BLOBS, PeerKey};
use super::room::Room;
use super::spool::Spool;
use crate::clock::Clock;
use crate::fault::chain;

/// Neighbours served at a time: more would share one line.
const MAX_CONNECTIONS: usize = 4;
/// A whole head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Request line and headers of a neighbour.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// One connection at most: the largest layers pass, and nobody holds a place for ever.
const CONNECTION_LIMIT: Duration = Duration::from_mins(30);
/// An address that cannot be listened on is tried again: it may belong to a network that comes later.
const AGAIN_MS: u64 = 30_000;

/// What neighbours are given.
pub struct Share<'a, C> {
    /// Where to listen.
    pub address: SocketAddr,
    /// What neighbours share.
    pub key: &'a PeerKey,
    /// Where the blobs are.
    pub spool: &'a Spool,
    /// Those that are on their way.
    pub room: &'a Room,
    /// Time.
    pub clock: &'a C,
}

impl<C: Clock> Share<'_, C> {
    /// Serves; ends only by being dropped.
    pub async fn run(&self) -> Infallible {
        let mut was_told = false;
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(error) if was_told => {
                    tracing::debug!(address = %self.address, error = %chain(&error), "still not listening");
                }
                Err(error) => {
                    was_told = true;
                    tracing::warn!(
                        address = %self.address, error = %chain(&error),
                        "neighbours cannot be served yet"
                    );
                }
            }
            self.clock.sleep_ms(AGAIN_MS).await;
        };
        tracing::info!(address = %self.address, "neighbours are served");
        let mut connections = FuturesUnordered::new();
        loop {
            let busy = connections.len();
            tokio::select! {
                accepted = listener.accept(), if busy < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => connections.push(self.converse(stream)),
                    Err(error) => {
                        tracing::warn!(error = %error, "a neighbour's connection could not be taken");
                        self.clock.sleep_ms(AGAIN_MS).await;
                    }
                },
                Some(()) = connections.next(), if busy > 0 => {}
            }
        }
    }

    async fn converse(&self, stream: TcpStream) {
        let service = service_fn(async |request| Ok::<_, Infallible>(self.respond(&request)));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_buf_size(MAX_HEAD_BYTES)
            // There are few places: one that is kept for what may come next is one that another waits for.
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        // A neighbour that goes away or dawdles is nobody's fault here.
        drop(tokio::time::timeout(CONNECTION_LIMIT, connection).await);
    }

    fn respond(&self, request: &Request<Incoming>) -> Response<Answer> {
        let found = self.wanted(request).and_then(|digest| {
            let (size, progress) = match self.spool.whole(digest) {
                Some((_, size)) => (size, watch::channel(Progress::Whole).1),
                None => self.room.on_its_way(&digest)?,
            };
            let open = |span: super::endpoint::Span| {
                let feed = Feed {
                    open: self.spool.reader(digest),
                    progress,
                    size,
                    from: span.start,
                    until: span.end,
                    delivered: std::rc::Rc::default(),
                };
                Some(feed.into_body())
            };
            blob(request.headers(), true, size, open)
        });
        // Whoever does not know the key learns nothing of what is here.
        found.unwrap_or_else(|| refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"))
    }

    fn wanted(&self, request: &Request<Incoming>) -> Option<Digest> {
        let is_get = request.method() == Method::GET;
        let path = request
            .uri()
            .path()
            .strip_prefix(BLOBS)
            .filter(|_| is_get)?;
        let digest: Digest = path.parse().ok()?;
        let proof = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
        self.key.accepts(proof, digest).then_some(digest)
    }
}
