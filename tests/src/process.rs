//! A program the lab started: its log, its end, and nobody else's.
//!
//! Every program is started through one thread that lives as long as this process, with the kernel
//! told to end it when that thread dies; so nothing outlives a test that was killed. Signals go
//! through a pidfd, so they can never reach a stranger that got the same id.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
pub use rustix::process::Signal;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::wait::try_wait_for;

/// Log lines kept in memory: an agent's whole test at debug level; the file has all of them.
const LINES_KEPT: usize = 20_000;
/// How long a program may take to obey SIGTERM before it is killed.
const OBEYS_WITHIN: Duration = Duration::from_secs(5);

/// What to start, and how.
#[derive(Debug, Clone)]
pub struct Program {
    /// The file to run.
    pub file: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment variables set for it; the lab's own environment is passed on.
    pub env: Vec<(String, String)>,
    /// Its working folder.
    pub folder: Option<PathBuf>,
    /// The user it runs as.
    pub user: Option<String>,
}

impl Program {
    /// A program with arguments.
    pub fn new<A: Into<String>>(
        file: impl Into<PathBuf>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            file: file.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            folder: None,
            user: None,
        }
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        if let Some(user) = &self.user {
            command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
        }
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.file);
        command.args(&self.args).envs(self.env.iter().cloned());
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }
}

/// A running (or ended) program of the lab. Dropping it ends the program.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: Program,
    log: Arc<Log>,
    life: Life,
}

#[derive(Debug)]
struct Life {
    pid: u32,
    handle: Option<std::os::fd::OwnedFd>,
    ended: Arc<(Mutex<Option<ExitStatus>>, Condvar)>,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    file: File,
    lines: VecDeque<String>,
    dropped: usize,
}

impl Process {
    /// Starts a program; both its outputs go to `log_file` and to a ring of lines in memory.
    pub fn start(name: &str, program: Program, log_file: &Path) -> anyhow::Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log_file)
            .with_context(|| format!("open the log {}", log_file.display()))?;
        let kept = Kept {
            file,
            lines: VecDeque::new(),
            dropped: 0,
        };
        let log = Arc::new(Log {
            path: log_file.to_owned(),
            kept: Mutex::new(kept),
        });
        let life = Life::begin(name, &program, &log)?;
        Ok(Self {
            name: name.to_owned(),
            program,
            log,
            life,
        })
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.life.pid
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        *guard(&self.life.ended.0)
    }

    /// Kills it at once, as a power cut would, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.life.signal(Signal::KILL);
        self.life.wait(OBEYS_WITHIN);
    }

    /// Asks it to end; kills it when it does not within a few seconds.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        self.life.signal(Signal::TERM);
        if self.life.wait(OBEYS_WITHIN).is_none() {
            self.kill9();
        }
        self.ended()
    }

    /// Sends any signal.
    pub fn signal(&self, signal: Signal) {
        self.life.signal(signal);
    }

    /// Starts the same program again, ending it first when it still runs. The log goes on.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        if self.ended().is_none() {
            self.stop();
        }
        self.life = Life::begin(&self.name, &self.program, &self.log)?;
        Ok(())
    }

    /// Waits until the program has ended by itself.
    pub async fn wait_for_end(&self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        try_wait_for(&what, deadline, async || self.ended()).await
    }

    /// The log so far, as kept in memory.
    pub fn lines(&self) -> Vec<String> {
        guard(&self.log.kept).lines.iter().cloned().collect()
    }

    /// How many lines were written so far: a mark for [`Process::lines_since`].
    pub fn mark(&self) -> usize {
        let kept = guard(&self.log.kept);
        kept.dropped + kept.lines.len()
    }

    /// The lines written after a mark.
    pub fn lines_since(&self, mark: usize) -> Vec<String> {
        let kept = guard(&self.log.kept);
        let skip = mark.saturating_sub(kept.dropped);
        kept.lines.iter().skip(skip).cloned().collect()
    }

    /// Waits for a line that contains every one of the `parts`; fails early when the program ended.
    pub async fn wait_for_log(&self, parts: &[&str], deadline: Duration) -> anyhow::Result<String> {
        self.wait_for_log_since(0, parts, deadline).await
    }

    /// As [`Process::wait_for_log`], for lines after a mark.
    pub async fn wait_for_log_since(
        &self,
        mark: usize,
        parts: &[&str],
        deadline: Duration,
    ) -> anyhow::Result<String> {
        let what = format!("{} to log {parts:?}", self.name);
        let found = try_wait_for(&what, deadline, async || {
            let ended = self.ended();
            let line = self
                .lines_since(mark)
                .into_iter()
                .find(|line| parts.iter().all(|part| line.contains(part)));
            match (line, ended) {
                (Some(line), _) => Some(Ok(line)),
                (None, Some(status)) => Some(Err(status)),
                (None, None) => None,
            }
        })
        .await;
        match found {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(status)) => {
                anyhow::bail!("{} ended with {status}:\n{}", self.name, self.tail())
            }
            Err(error) => anyhow::bail!("{error}; its log:\n{}", self.tail()),
        }
    }

    /// The last lines of the log, for an error message.
    pub fn tail(&self) -> String {
        let lines = self.lines();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The file with the whole log.
    pub fn log_file(&self) -> &Path {
        &self.log.path
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.stop();
        }
    }
}

impl Life {
    fn begin(name: &str, program: &Program, log: &Arc<Log>) -> anyhow::Result<Self> {
        let mut command = program.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(command).with_context(|| format!("start {name}"))?;
        let pid = child.id();
        let handle = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(out) = child.stdout.take() {
            log.follow(out);
        }
        if let Some(err) = child.stderr.take() {
            log.follow(err);
        }
        let ended = Arc::new((Mutex::new(None), Condvar::new()));
        let tell = Arc::clone(&ended);
        std::thread::spawn(move || {
            if let Ok(status) = child.wait() {
                *guard(&tell.0) = Some(status);
                tell.1.notify_all();
            }
        });
        Ok(Self { pid, handle, ended })
    }

    fn signal(&self, signal: Signal) {
        if let Some(handle) = &self.handle {
            // An error means that it is gone already, which is what the caller wants anyway.
            let _ = pidfd_send_signal(handle, signal);
        }
    }

    fn wait(&self, deadline: Duration) -> Option<ExitStatus> {
        let ended = guard(&self.ended.0);
        let waited = self
            .ended
            .1
            .wait_timeout_while(ended, deadline, |status| status.is_none());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Log {
    fn follow(self: &Arc<Self>, pipe: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                let mut kept = guard(&log.kept);
                // A full disk must not stop the program under test by blocking its pipe.
                let _ = writeln!(kept.file, "{text}");
                kept.lines.push_back(text);
                if kept.lines.len() > LINES_KEPT {
                    kept.lines.pop_front();
                    kept.dropped += 1;
                }
            }
        });
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Order = (Command, Sender<std::io::Result<Child>>);

/// Starts a child from the one thread that lives as long as this process.
///
/// The kernel sends the death signal when the *thread* that forked ends, so a pool's thread would
/// take its children along whenever the pool shrinks.
fn spawn(command: Command) -> anyhow::Result<Child> {
    static ORDERS: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                // The asker waits for the answer, so it is there.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, child) = channel();
    guard(orders)
        .send((command, answer))
        .ok()
        .context("the spawning thread is gone")?;
    Ok(child.recv().context("the spawning thread is gone")??)
}

/// Kills a process by its id, as a power cut would. For programs the caller started.
pub fn kill9(pid: u32) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}
