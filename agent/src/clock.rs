//! Owns time and randomness: the only file that asks the system for either; decides nothing by them.

use std::future::Future;

use holdfast_proto::time::Timestamp;

/// The present, as the loops see it.
pub trait Clock {
    /// Wall time: for reports and people; it may jump, and a device without a battery boots in 1970.
    fn now(&self) -> Timestamp;

    /// Milliseconds on a clock that only goes forward: for every duration.
    fn monotonic_ms(&self) -> u64;

    /// Waits.
    fn sleep_ms(&self, duration_ms: u64) -> impl Future<Output = ()>;
}

/// Unpredictable numbers, as the loops see them.
pub trait Randomness {
    /// Sixteen random bytes.
    fn bytes(&self) -> [u8; 16];

    /// A random number of 64 bits.
    fn number(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    origin: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic time begins now.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn start() -> Self {
        Self {
            origin: std::time::Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let millis = since.map_or(0, |since| since.as_millis());
        Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn sleep_ms(&self, duration_ms: u64) {
        tokio::time::sleep(std::time::Duration::from_millis(duration_ms)).await;
    }
}

/// The machine's randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandomness;

impl Randomness for SystemRandomness {
    fn bytes(&self) -> [u8; 16] {
        use ring::rand::SecureRandom as _;
        let mut bytes = [0; 16];
        ring::rand::SystemRandom::new()
            .fill(&mut bytes)
            .expect("the kernel's random numbers are available on every supported device");
        bytes
    }
}
