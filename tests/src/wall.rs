//! The wall clock of programs under test, in a test's hand: it runs ahead as far as the test says.
//!
//! The programs are the released ones and know nothing of it: libfaketime answers their questions for the wall
//! clock from a file. Their monotonic clocks, and so their timers, stay as they are. Programs that share a wall
//! see the same time, also when they are started again.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::{apt, clock, place};

/// How often a hurrying clock is moved on: far below anything that a program measures with it.
const MOVES_EVERY: Duration = Duration::from_millis(200);

/// The clock.
#[derive(Debug)]
pub struct Wall {
    folder: TempDir,
    library: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ahead_ms: i64,
    /// Programs that live elsewhere in time, and how far, in milliseconds.
    skews: Vec<i64>,
}

impl Wall {
    /// A clock that shows the present.
    ///
    /// # Errors
    /// When libfaketime is not to be had here.
    pub fn new() -> anyhow::Result<Self> {
        apt::require(&["faketime"])?;
        let machines = ["x86_64-linux-gnu", "aarch64-linux-gnu"];
        let mut paths =
            machines.map(|machine| format!("/usr/lib/{machine}/faketime/libfaketimeMT.so.1"));
        let found = paths
            .iter_mut()
            .find(|path| fs::exists(path).unwrap_or(false));
        let library = std::mem::take(found.context("libfaketime")?);
        Ok(Self {
            folder: place::temporary("wall")?,
            library,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("clock-{number}"))
    }

    /// The environment of a program that lives by this clock, so many milliseconds off.
    ///
    /// # Errors
    /// When the clock's file cannot be written.
    pub fn env(&self, off_ms: i64) -> anyhow::Result<Vec<(String, String)>> {
        let mut state = self.state();
        let number = state.skews.len();
        state.skews.push(off_ms);
        self.write(&state)?;
        let file = self.file(number).display().to_string();
        let env = [
            ("LD_PRELOAD", self.library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_NO_CACHE", "1"),
        ];
        Ok(env
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into())
    }

    /// Moves the clock on.
    ///
    /// # Errors
    /// When the clock's file cannot be written.
    pub fn advance(&self, by: Duration) -> anyhow::Result<()> {
        let mut state = self.state();
        state.ahead_ms += i64::try_from(by.as_millis())?;
        self.write(&state)
    }

    /// Sets the clock back, as a person does, or a machine without a battery.
    ///
    /// # Errors
    /// When the clock's file cannot be written.
    pub fn set_back(&self, by: Duration) -> anyhow::Result<()> {
        let mut state = self.state();
        state.ahead_ms -= i64::try_from(by.as_millis())?;
        self.write(&state)
    }

    /// Whole files in place of whole files: a program never reads half of one.
    fn write(&self, state: &State) -> anyhow::Result<()> {
        for (number, off_ms) in state.skews.iter().enumerate() {
            let all_ms = state.ahead_ms + off_ms;
            let sign = if all_ms < 0 { '-' } else { '+' };
            let (seconds, rest) = (all_ms.unsigned_abs() / 1_000, all_ms.unsigned_abs() % 1_000);
            let fresh = self.folder.path().join("fresh");
            fs::write(&fresh, format!("{sign}{seconds}.{rest:03}\n"))?;
            fs::rename(&fresh, self.file(number))?;
        }
        Ok(())
    }

    /// What the clock shows, in milliseconds since 1970, to whoever is not off.
    pub fn now_ms(&self) -> i64 {
        clock::unix_millis().saturating_add(self.state().ahead_ms)
    }
}

/// A clock that goes faster; dropping this lets it go at its own pace again.
#[derive(Debug)]
pub struct Hurry(JoinHandle<()>);

impl Hurry {
    /// Lets so many of the clock's seconds pass in each second.
    pub fn start(wall: std::sync::Arc<Wall>, times: u32) -> Self {
        Self(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(MOVES_EVERY);
            loop {
                ticks.tick().await;
                // A clock that cannot be moved stands out at once: whoever waits for it says so.
                let _ = wall.advance(MOVES_EVERY * times.saturating_sub(1));
            }
        }))
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What `date` takes for the time, in milliseconds.
    fn shown(env: &[(String, String)]) -> i64 {
        let mut date = Command::new("date");
        date.arg("+%s%3N").envs(env.iter().cloned());
        apt::run(&mut date).unwrap().trim().parse().unwrap()
    }

    #[test]
    fn programs_see_the_time_that_the_test_wants() {
        let wall = Wall::new().unwrap();
        let (right, off) = (wall.env(0).unwrap(), wall.env(-300_000).unwrap());
        let near = |shown: i64, wanted: i64| (shown - wanted).abs() < 5_000;
        assert!(near(shown(&right), clock::unix_millis()));
        assert!(near(shown(&off), clock::unix_millis() - 300_000));
        wall.advance(Duration::from_millis(3_600_500)).unwrap();
        assert!(near(shown(&right), clock::unix_millis() + 3_600_500));
        assert!(near(shown(&off), clock::unix_millis() + 3_300_500));
        assert!(near(wall.now_ms(), clock::unix_millis() + 3_600_500));
        wall.set_back(Duration::from_hours(2)).unwrap();
        assert!(near(shown(&right), clock::unix_millis() - 3_599_500));
    }
}
