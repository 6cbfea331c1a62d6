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
    /// Every connection ends when so many bytes came over it to the client.
    EndsAfter {
        /// Bytes.
        bytes: u64,
    },
    /// A connection whose client says this is kept and never answered, whatever comes later.
    Mute {
        /// What it says.
        words: &'static str,
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
    muted: AtomicUsize,
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

    /// How many connections were muted so far.
    pub fn muted(&self) -> usize {
        self.counts.muted.load(Ordering::SeqCst)
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
        // What is counted as moved must not lie here: loopback's segments are large, and a part of one waits
        // for the receipt of the last (RFC 896).
        if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
            return;
        }
        let (client_out, client_in) = client.into_split();
        let (server_out, server_in) = server.into_split();
        let (up_bytes, down_bytes) = (&counts.up_bytes, &counts.down_bytes);
        let up = flow(client_out, server_in, mode.clone(), up_bytes, &counts.muted);
        let down = flow(
            server_out,
            client_in,
            mode.clone(),
            down_bytes,
            &counts.muted,
        );
        tokio::pin!(up, down);
        // A quiet end of one direction leaves the other; anything else ends both.
        tokio::select! {
            over = &mut up => if !over { down.await; },
            over = &mut down => if !over { up.await; },
        }
    };
    tokio::select! {
        () = forward => {}
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

/// Moves bytes until there are no more; tells whether the connection is to end at once.
async fn flow(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
    count: &AtomicU64,
    muted: &AtomicUsize,
) -> bool {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut moved = 0;
    loop {
        let Ok(read) = from.read(&mut chunk).await else {
            return true;
        };
        if read == 0 {
            // An error means that the other side is gone already.
            let _ = to.shutdown().await;
            return false;
        }
        let Ok(now) = mode
            .wait_for(|mode| *mode != Mode::Stall)
            .await
            .map(|mode| *mode)
        else {
            return true;
        };
        let mut some = read as u64;
        match now {
            Mode::EndsAfter { bytes } => some = some.min(bytes.saturating_sub(moved)),
            Mode::Mute { words } if says(&chunk[..read], words) => {
                muted.fetch_add(1, Ordering::SeqCst);
                return std::future::pending().await;
            }
            Mode::Open | Mode::Cut | Mode::Stall | Mode::Slow { .. } | Mode::Mute { .. } => {}
        }
        let bytes = &chunk[..usize::try_from(some).unwrap_or(read)];
        if to.write_all(bytes).await.is_err() {
            return true;
        }
        moved += some;
        count.fetch_add(some, Ordering::SeqCst);
        match now {
            Mode::EndsAfter { bytes } if moved >= bytes => return true,
            Mode::Slow { bytes_per_second } => {
                let pause = read as u64 * 1_000_000 / bytes_per_second.max(1);
                tokio::time::sleep(Duration::from_micros(pause)).await;
            }
            Mode::Open | Mode::Cut | Mode::Stall | Mode::EndsAfter { .. } | Mode::Mute { .. } => {}
        }
    }
}

fn says(bytes: &[u8], words: &str) -> bool {
    let words = words.as_bytes();
    bytes.windows(words.len()).any(|window| window == words)
}
