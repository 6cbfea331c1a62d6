//! Owns accepting connections: bounded, impatient with silence, ended gracefully.
//!
//! hyper's HTTP/1 builder with small buffers, because ten thousand devices keep a connection each.

mod patience;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;
use tower::ServiceExt as _;

use crate::systemd::Systemd;
use crate::telemetry::Metrics;
use patience::{Patience, Patient};

/// Connections at once: beyond it clients wait in the kernel's queue.
const CONNECTIONS: usize = 16_384;
/// How long a connection may be idle between two requests: longer than devices' poll intervals.
const IDLE_LIMIT: Duration = Duration::from_secs(150);
/// The read buffer grows to this and no further; request heads over it get 431.
const BUFFER: usize = 16 * 1024;
/// Header lines of one request.
const HEADERS: usize = 64;
/// How long open requests may take to end after the program was asked to.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after a failed accept: mostly no file descriptors left, and spinning frees none.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stopping` turns true, then lets open requests end. `systemd` hears of each.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    metrics: Arc<Metrics>,
    systemd: &Systemd,
    mut stopping: watch::Receiver<bool>,
) {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .max_buf_size(BUFFER)
        .max_headers(HEADERS)
        .half_close(false);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut beat = tokio::time::interval(systemd.alive_interval());
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if let Ok(address) = listener.local_addr() {
        systemd.ready(&format!("serves on {address}"));
    }
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = until_stopping(&mut stopping) => break,
            _ = beat.tick() => {
                systemd.alive();
                continue;
            }
        };
        let (stream, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Small answers must not wait for the client's acknowledgement; losing this loses only speed.
        let _ = stream.set_nodelay(true);
        let patience = Patience::default();
        let service = {
            let patience = patience.clone();
            let router = router.clone();
            tower::service_fn(move |request: hyper::Request<Incoming>| {
                patience.busy();
                let patience = patience.clone();
                let answer = router.clone().oneshot(request);
                async move {
                    let response = answer.await;
                    patience.idle();
                    response
                }
            })
        };
        let connection = builder.serve_connection(
            TokioIo::new(Patient::new(stream, patience)),
            TowerToHyperService::new(service),
        );
        let connection = graceful.watch(connection);
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            metrics.connected();
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "a connection ended early");
            }
            metrics.disconnected();
            drop(place);
        });
    }
    systemd.stopping();
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("ended with requests still open");
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn until_stopping(stopping: &mut watch::Receiver<bool>) {
    // A sender that is gone cannot ask any more: the same as asking.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
