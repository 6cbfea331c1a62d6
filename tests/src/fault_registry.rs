//! A server that answers whatever a test wants, byte by byte, and remembers every byte that it was sent.
//!
//! It stands for a registry that misbehaves, and for hosts that must never learn a credential: what
//! reached it is judged by what came out of its socket, not by what a client says it sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A head longer than this is no request of ours.
const HEAD_MAX_BYTES: usize = 64 << 10;

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Every line of it.
    pub text: String,
}

impl Head {
    /// A header's value.
    pub fn header(&self, wanted: &str) -> Option<&str> {
        let mut lines = self.text.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
        Some(value.trim())
    }
}

/// What to do with a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// These bytes, then the end of the connection.
    Bytes(Vec<u8>),
    /// These bytes, then nothing, until the server ends.
    Hang(Vec<u8>),
}

impl Reply {
    /// A whole answer with its right length.
    pub fn whole(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        Self::Bytes(answer(status, headers, body.as_ref(), body.as_ref().len()))
    }

    /// An answer that ends before its body is whole.
    pub fn cut(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let whole = body.as_ref().len();
        let sent = &body.as_ref()[..whole / 2];
        Self::Bytes(answer(status, headers, sent, whole))
    }
}

fn answer(status: u16, headers: &[(&str, &str)], body: &[u8], length: usize) -> Vec<u8> {
    let headers = headers.iter();
    let lines: Vec<String> = headers
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let head = format!(
        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n{}\r\n",
        lines.concat()
    );
    [head.as_bytes(), body].concat()
}

type Handler = dyn Fn(&Head) -> Reply + Send + Sync;

/// A running server; dropping it ends it and its connections.
#[derive(Debug)]
pub struct FaultRegistry {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    heads: Arc<Mutex<Vec<Head>>>,
    task: JoinHandle<()>,
}

impl FaultRegistry {
    /// Serves on a free loopback port.
    pub async fn start(
        handler: impl Fn(&Head) -> Reply + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        Self::start_at("127.0.0.1", handler).await
    }

    /// Serves on a free port of an address of this machine: `127.0.0.2` is another host to a client.
    pub async fn start_at(
        address: &str,
        handler: impl Fn(&Head) -> Reply + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let (heard, heads) = (Arc::default(), Arc::default());
        let (all, each) = (Arc::clone(&heard), Arc::clone(&heads));
        let handler: Arc<Handler> = Arc::new(handler);
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, all, each) =
                    (Arc::clone(&handler), Arc::clone(&all), Arc::clone(&each));
                running.spawn(async move {
                    // A client that goes away in the middle is the client's business.
                    let _ = serve(stream, &*handler, &all, &each).await;
                });
                while running.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            heard,
            heads,
            task,
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every byte that clients sent so far.
    pub fn heard(&self) -> String {
        String::from_utf8_lossy(&guard(&self.heard)).into_owned()
    }

    /// The head of every request so far.
    pub fn heads(&self) -> Vec<Head> {
        guard(&self.heads).clone()
    }
}

impl Drop for FaultRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    handler: &Handler,
    all: &Mutex<Vec<u8>>,
    each: &Mutex<Vec<Head>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 4_096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut buffer).await?;
        guard(all).extend_from_slice(&buffer[..read]);
        head.extend_from_slice(&buffer[..read]);
        if read == 0 || head.len() > HEAD_MAX_BYTES {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.split(' ');
    let head = Head {
        method: words.next().unwrap_or_default().to_owned(),
        target: words.next().unwrap_or_default().to_owned(),
        text: text.clone(),
    };
    guard(each).push(head.clone());
    match handler(&head) {
        Reply::Bytes(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await
        }
        Reply::Hang(bytes) => {
            stream.write_all(&bytes).await?;
            loop {
                let read = stream.read(&mut buffer).await?;
                if read == 0 {
                    return Ok(());
                }
                guard(all).extend_from_slice(&buffer[..read]);
            }
        }
    }
}

fn guard<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
