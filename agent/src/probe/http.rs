//! Owns one question over plain HTTP: a GET whose status says whether a container is well.
//!
//! Refuses to follow a redirect (its status is the answer) and to read the answer's body at all.

use std::net::SocketAddr;

use holdfast_proto::spec::HttpProbe;
use http_body_util::Empty;
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::fault::chain;

/// An answer's head that is larger than this is no answer to a probe.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Asks at one address; the fault says what was answered instead.
pub(super) async fn get(address: SocketAddr, probe: &HttpProbe) -> Result<(), String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    let status = exchange(stream, address, &probe.path)
        .await
        .map_err(|error| chain(&error))?;
    let well = match probe.status {
        Some(wanted) => status == wanted,
        None => (200..400).contains(&status),
    };
    if well {
        Ok(())
    } else {
        Err(format!("answered {status}"))
    }
}

async fn exchange(
    stream: TcpStream,
    address: SocketAddr,
    path: &str,
) -> Result<u16, ExchangeError> {
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(
            USER_AGENT,
            concat!("holdfast-agent/", env!("CARGO_PKG_VERSION")),
        )
        .header(CONNECTION, "close")
        .body(Empty::<&[u8]>::new())
        .map_err(ExchangeError::Request)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(ExchangeError::Answer)?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    // The connection does the work, and may end before the answer is looked at.
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    };
    let answer = answer.map_err(ExchangeError::Answer)?;
    Ok(answer.status().as_u16())
}

#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    #[error("cannot be asked")]
    Request(#[source] hyper::http::Error),
    #[error("gave no answer in HTTP")]
    Answer(#[source] hyper::Error),
}
