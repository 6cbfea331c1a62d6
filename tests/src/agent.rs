//! The real agent on a test's device: enrolled, run, killed and started again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binaries;
use crate::process::{Process, Program};

/// What an agent should be like.
#[derive(Debug, Clone)]
pub struct Options {
    /// The control API's address as the agent sees it: the API's own, or a tap's.
    pub api: String,
    /// The engine's socket as the agent sees it: the engine's own, or a tap's.
    pub docker: PathBuf,
    /// The settings file's other keys; tests run on short intervals.
    pub settings: Value,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// A folder that is there already for its state; one of its own, unless told.
    pub state: Option<PathBuf>,
    /// Another build of it, such as one for another processor below an emulator.
    pub program: Option<PathBuf>,
}

impl Options {
    /// Short intervals throughout, so that a test waits for the work and not for the clock.
    pub fn new(api: impl Into<String>, docker: &Path) -> Self {
        Self {
            api: api.into(),
            docker: docker.to_owned(),
            settings: json!({
                "poll": { "interval_seconds": 1 },
                "report": { "heartbeat_seconds": 5 },
                "gate": { "stable_seconds": 1, "healthy_timeout_seconds": 15, "soak_seconds": 0 },
                "pull": { "no_progress_seconds": 20 },
                "disk": { "reserve_mb": 8 },
                "log": { "format": "json", "level": "debug" },
            }),
            env: Vec::new(),
            state: None,
            program: None,
        }
    }

    /// Sets one key, as `("gate", "stable_seconds", 5)`.
    #[must_use]
    pub fn set(mut self, part: &str, key: &str, value: impl Into<Value>) -> Self {
        self.settings[part][key] = value.into();
        self
    }
}

/// An enrolled agent; dropping it ends it and forgets its state. Its containers are the engine's.
#[derive(Debug)]
pub struct Agent {
    process: Option<Process>,
    program: Program,
    binary: PathBuf,
    state: PathBuf,
    folder: TempDir,
}

impl Agent {
    /// Enrols a new device with an enrolment key; [`Agent::run`] starts it.
    pub async fn enrol(options: Options, key: &str) -> anyhow::Result<Self> {
        let agent = Self::prepare(options)?;
        agent.command(&["enroll", "--key", key]).await?;
        Ok(agent)
    }

    /// Writes the settings without enrolling.
    pub fn prepare(options: Options) -> anyhow::Result<Self> {
        let folder = crate::place::temporary("agent")?;
        let state = options.state.unwrap_or_else(|| folder.path().join("state"));
        fs::create_dir_all(&state)?;
        let runtime = folder.path().join("run");
        fs::create_dir(&runtime)?;
        let mut config = options.settings;
        config["api"]["url"] = json!(options.api);
        config["state_dir"] = json!(state);
        if config["runtime_dir"].is_null() {
            // Each agent has its own; the lab's folder is on a disk.
            config["runtime_dir"] = json!(folder.path().join("run"));
            config["secrets_on_disk"] = json!(true);
        }
        config["docker"]["socket"] = json!(options.docker);
        config["runtime_dir"] = json!(runtime);
        // The lab's folder is on a disk.
        config["secrets_on_disk"] = json!(true);
        let path = folder.path().join("agent.yaml");
        fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
        let binary = options.program.map_or_else(binaries::agent, Ok)?;
        let words = ["--config", &path.display().to_string(), "run"].map(str::to_owned);
        let mut program = Program::new(&binary, words);
        program.env = options.env;
        Ok(Self {
            process: None,
            program,
            binary,
            state,
            folder,
        })
    }

    /// Starts (or, after [`Agent::kill9`] or [`Agent::stop`], starts again) the agent.
    pub fn run(&mut self) -> anyhow::Result<()> {
        if let Some(process) = &mut self.process {
            return process.restart();
        }
        let log = self.folder.path().join("log");
        let process = Process::start("holdfast-agent", self.program.clone(), &log)?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts it below another program, such as `strace` with its arguments; with none, by itself.
    pub fn run_under(&mut self, under: &[String]) -> anyhow::Result<()> {
        let run = self.program.args.split_off(self.program.args.len() - 3);
        let mut words = under.to_vec();
        if !under.is_empty() {
            // The other program ends with the test; this takes the agent along.
            let along = ["setpriv", "--pdeathsig", "KILL", "--"];
            words.extend(along.map(str::to_owned));
        }
        words.push(self.binary.display().to_string());
        self.program.file = words.remove(0).into();
        words.extend(run);
        self.program.args = words;
        self.process = None;
        self.run()
    }

    /// Kills it as a power cut would.
    pub fn kill9(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill9();
        }
    }

    /// Ends it in good order.
    pub fn stop(&mut self) {
        if let Some(process) = &mut self.process {
            process.stop();
        }
    }

    /// The running (or last) program: pid, log, end.
    pub fn process(&self) -> anyhow::Result<&Process> {
        self.process.as_ref().context("the agent was never started")
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.state.clone()
    }

    /// Its folder for what need not survive a restart of the machine: socket, update locks.
    pub fn runtime(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Its settings file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("agent.yaml")
    }

    /// Runs a command of the agent (`status`, `plan`, …) with the same settings.
    pub async fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        crate::api::run(&self.binary, &self.config_file(), words).await
    }
}
