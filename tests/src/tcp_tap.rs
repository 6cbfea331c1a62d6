//! A TCP forwarder between two programs, which a test can cut, stall, slow down and mend.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes moved at once: small, so that a stall or cut lands inside a body.
const CHUNK_BYTES: usize = 8 << 10;

/// What happens to connections now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes flow.
    Open,
    /// Open connections end, new ones are closed as soon as they are made.
    Cut,
    /// Connections are taken and kept, but no byte moves.
    Stall,
    /// Bytes flow this slowly in each direction.
    Slow {
        /// Bytes per second.
        bytes_per_second: u64,
    },
}

/// The forwarder; dropping it ends it and its connections.
#[derive(Debug)]
pub struct TcpTap {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
}

impl TcpTap {
    /// Forwards a free loopback port to `to` (`127.0.0.1:PORT`).
    pub async fn start(to: impl Into<String>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let to: Arc<str> = to.into().into();
        let (mode, seen) = watch::channel(Mode::Open);
        let counts = Arc::new(Counts::default());
        let count = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.connections.fetch_add(1, Ordering::SeqCst);
                let (to, seen, count) = (Arc::clone(&to), seen.clone(), Arc::clone(&count));
                running.spawn(connection(stream, to, seen, count));
                while running.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            mode,
            counts,
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

    /// Changes what happens to connections, also to those that are open.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// Bytes moved so far: from the client, and to it.
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.counts.up_bytes.load(Ordering::SeqCst),
            self.counts.down_bytes.load(Ordering::SeqCst),
        )
    }
}

impl Drop for TcpTap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(
    client: TcpStream,
    to: Arc<str>,
    mode: watch::Receiver<Mode>,
    counts: Arc<Counts>,
) {
    let mut cut = mode.clone();
    let forward = async {
        let mut wait = mode.clone();
        // An error means that the tap is gone.
        let flows = wait.wait_for(|mode| *mode != Mode::Stall).await.is_ok();
        if !flows {
            return;
        }
        let Ok(server) = TcpStream::connect(&*to).await else {
            return;
        };
        let (client_out, client_in) = client.into_split();
        let (server_out, server_in) = server.into_split();
        tokio::join!(
            flow(client_out, server_in, mode.clone(), &counts.up_bytes),
            flow(server_out, client_in, mode.clone(), &counts.down_bytes),
        );
    };
    tokio::select! {
        () = forward => {}
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn flow(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
    count: &AtomicU64,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let Ok(read) = from.read(&mut chunk).await else {
            return;
        };
        if read == 0 {
            // An error means that the other side is gone already.
            let _ = to.shutdown().await;
            return;
        }
        let Ok(now) = mode
            .wait_for(|mode| *mode != Mode::Stall)
            .await
            .map(|mode| *mode)
        else {
            return;
        };
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
        count.fetch_add(read as u64, Ordering::SeqCst);
        match now {
            Mode::Slow { bytes_per_second } => {
                let pause = read as u64 * 1_000_000 / bytes_per_second.max(1);
                tokio::time::sleep(Duration::from_micros(pause)).await;
            }
            Mode::Open | Mode::Cut | Mode::Stall => {}
        }
    }
}
