//! Owns how long a client may take to say what it wants.
//!
//! A new connection must send a whole request head within ten seconds, and so must an old one once
//! it has begun to; between requests it may be silent for as long as hyper's idle limit says. hyper alone has
//! one limit for both, which would cut either slow attackers or sleeping devices wrongly. A client that takes
//! nothing of its answer is dropped too.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a request head may take.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long a client may take nothing of an answer: a slow line takes some bytes in this time.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

const HEAD: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;

/// What a connection is doing, shared between its stream and its service.
#[derive(Debug, Clone, Default)]
pub(super) struct Patience(Arc<AtomicU8>);

impl Patience {
    /// A request head has arrived; its body and answer have limits of their own.
    pub(super) fn busy(&self) {
        self.0.store(BUSY, Ordering::Relaxed);
    }

    /// An answer is on its way; the next request may take its time to begin.
    pub(super) fn idle(&self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }
}

/// A stream that gives up when a request head takes too long.
pub(super) struct Patient<S> {
    stream: S,
    patience: Patience,
    deadline: Option<Pin<Box<Sleep>>>,
    write_deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, patience: Patience) -> Self {
        Self {
            stream,
            patience,
            deadline: None,
            write_deadline: None,
        }
    }

    /// Lets a write that goes on pass, and one that stands still until its time is over.
    fn judge_write(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.write_deadline = None;
            return written;
        }
        let is_late = self
            .write_deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + WRITE_LIMIT)))
            .as_mut()
            .poll(cx)
            .is_ready();
        if is_late {
            Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
        } else {
            Poll::Pending
        }
    }

    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        if self.patience.0.load(Ordering::Relaxed) != HEAD {
            self.deadline = None;
            return false;
        }
        self.deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + HEAD_LIMIT)))
            .as_mut()
            .poll(cx)
            .is_ready()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            // The first bytes after an answer begin the next head.
            let _ =
                self.patience
                    .0
                    .compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed);
        }
        if self.is_late(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge_write(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.judge_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn c13_a_client_that_never_sends_a_byte_is_dropped_after_ten_seconds() {
        let (_client, server) = duplex(64);
        let mut stream = Patient::new(server, Patience::default());
        let begun = Instant::now();
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn c13_a_head_that_trickles_in_is_dropped_ten_seconds_after_it_began() {
        let (mut client, server) = duplex(64);
        let patience = Patience::default();
        let mut stream = Patient::new(server, patience.clone());
        patience.idle();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_mins(1)).await;
            loop {
                client.write_u8(b'x').await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let begun = Instant::now();
        let error = loop {
            if let Err(error) = stream.read_u8().await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 70);
    }

    #[tokio::test(start_paused = true)]
    async fn c13_a_client_that_takes_nothing_is_dropped_and_a_slow_one_is_not() {
        let (mut client, server) = duplex(64);
        let mut stream = Patient::new(server, Patience::default());
        let reader = tokio::spawn(async move {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                client.read_u8().await.unwrap();
            }
            client
        });
        let begun = Instant::now();
        stream.write_all(&[b'x'; 164]).await.unwrap();
        let _client = reader.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 2_000);
        let error = stream.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 2_030);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_at_work_or_at_rest_is_left_alone() {
        let (mut client, server) = duplex(64);
        let patience = Patience::default();
        let mut stream = Patient::new(server, patience.clone());
        patience.busy();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(100)).await;
            client.write_u8(b'x').await.unwrap();
        });
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }
}
