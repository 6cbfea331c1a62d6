//! A visitor of a published port who asks every few milliseconds, each time over a new connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_tests::clock::Stopwatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// How often the client asks.
pub(crate) const EVERY: Duration = Duration::from_millis(5);
/// A request that takes longer counts as failed: people would have given up.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A client that keeps asking, and remembers how long it went without a good answer.
pub(crate) struct Client {
    done: Arc<AtomicBool>,
    task: JoinHandle<Duration>,
}

impl Client {
    /// Starts asking.
    pub(crate) fn start(port: u16) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&done);
        let task = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            let mut last_good = Stopwatch::start();
            let mut ticks = tokio::time::interval(EVERY);
            while !ends.load(Ordering::Relaxed) {
                ticks.tick().await;
                if asks(port).await {
                    longest = longest.max(last_good.elapsed());
                    last_good = Stopwatch::start();
                }
            }
            longest.max(last_good.elapsed())
        });
        Self { done, task }
    }

    /// Ends it: the longest time between two good answers.
    pub(crate) async fn longest_gap(self) -> anyhow::Result<Duration> {
        self.done.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

/// One request over a connection of its own, as a new visitor makes it.
pub(crate) async fn asks(port: u16) -> bool {
    let answer = tokio::time::timeout(ANSWER_WITHIN, async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.ok()?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.ok()?;
        text.starts_with(b"HTTP/1.1 200").then_some(())
    });
    answer.await.is_ok_and(|answer| answer.is_some())
}
