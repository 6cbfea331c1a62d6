//! Owns time and randomness: the only file that asks the system for either; decides nothing by them.

use std::future::Future;

use holdfast_proto::time::Timestamp;

/// No device's clock can rightly show less: the day that this agent's source is from, or its build's
/// `SOURCE_DATE_EPOCH`. Devices without a battery boot in 1970 until the network tells them better.
pub const EARLIEST: Timestamp = Timestamp::from_millis(match option_env!("SOURCE_DATE_EPOCH") {
    Some(text) => match i64::from_str_radix(text, 10) {
        Ok(seconds) if seconds * 1_000 > SOURCE_DAY_MS => seconds * 1_000,
        Ok(_) | Err(_) => SOURCE_DAY_MS,
    },
    None => SOURCE_DAY_MS,
});
/// 2026-11-21, moved on with each release.
const SOURCE_DAY_MS: i64 = 1_795_219_200_000;

/// Whether a clock that shows `now` may be right.
pub fn is_plausible(now: Timestamp) -> bool {
    now >= EARLIEST
}

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
