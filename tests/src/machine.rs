//! Machines with systemd: Debian, booted in a container, as a device's owner would have it.
//!
//! A machine shares this machine's network and reaches a lab's engine through its socket. It is removed when it is
//! dropped. What it cannot be here: a kernel of its own, and a disk that loses what nobody asked to be written.

pub mod arms;
pub mod checks;
pub mod emulation;
pub mod owner;
pub mod packages;
pub mod page;
pub mod release;
pub mod root;
pub mod script;
pub mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::engine::Engine;
use crate::place;
use crate::wait::try_wait_for;

use root::{Architecture, Root};

/// A native machine boots in a second; a busy two-core one in ten; an emulated one in a minute or two.
const BOOTS_WITHIN: Duration = Duration::from_mins(5);
/// systemd stops what runs before it goes; no unit of a machine may take longer than its own 90 s.
const GOES_WITHIN: Duration = Duration::from_mins(2);
/// The longest a command in a machine may take: `dpkg` on an emulated one. A caller that waits for less says so.
const COMMAND_ENDS_WITHIN: Duration = Duration::from_mins(5);

/// Where a machine sees its engine's folder: a folder, because an engine that starts again makes a new socket.
const ENGINE: &str = "/srv/engine";
/// Where a machine sees what the test gives it.
const SHARE: &str = "/srv/share";

/// What process 1 is started by: what a kernel does before `init`, and an engine's package at each start.
/// systemd lets mounts spread by itself only where it does not run in a container.
const INIT: &str = "mount --make-rshared / && ln -s /srv/engine/docker.sock /run/docker.sock \
                    && exec /lib/systemd/systemd";

/// A booted machine; dropping it removes it.
#[derive(Debug)]
pub struct Machine {
    host: Engine,
    architecture: Architecture,
    name: String,
    share: TempDir,
}

/// How a command in a machine ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it wrote, both outputs.
    pub said: String,
}

impl Machine {
    /// Boots a Debian of this architecture on the lab's shared engine; `docker.sock` in it is `engine`'s.
    pub async fn boot(architecture: Architecture, engine: &Engine) -> anyhow::Result<Self> {
        let host = Engine::shared().await?;
        let image = Root::of(architecture)?.image(host.docker()).await?;
        let socket = engine
            .socket()
            .parent()
            .context("a socket is in a folder")?;
        let share = place::temporary("machine")?;
        let name = format!("machine-{}", place::unique());
        let mount = |from: &Path, to: &str| format!("{}:{to}", from.display());
        let (engine, share_mount) = (mount(socket, ENGINE), mount(share.path(), SHARE));
        let machine = Self {
            host,
            architecture,
            name,
            share,
        };
        machine
            .docker(
                &[
                    &["run", "--detach", "--tty", "--name", &machine.name][..],
                    // Its own host name; the network is this machine's, so that loopback is what it is to the engine.
                    &["--network", "host", "--hostname", &machine.name],
                    // All that a real one has, but for what this lab's machines themselves lack.
                    &["--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE"],
                    &[
                        "--security-opt",
                        "seccomp=unconfined",
                        "--env",
                        "container=docker",
                    ],
                    &["--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp"],
                    &["--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"],
                    &["--volume", &engine, "--volume", &share_mount],
                    &[&image, "/bin/sh", "-c", INIT],
                ]
                .concat(),
            )
            .await?;
        machine.booted().await?;
        Ok(machine)
    }

    /// Its processor.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Waits until systemd has started all it wants to start; a unit that failed is an error.
    pub async fn booted(&self) -> anyhow::Result<()> {
        let look = async || {
            let state = self.ask("systemctl is-system-running").await;
            match state.map_err(|error| format!("{error:#}"))?.said.trim() {
                "running" => Ok(Ok(())),
                "degraded" => Ok(Err(())),
                other => Err(other.to_owned()),
            }
        };
        match try_wait_for("systemd to say running", BOOTS_WITHIN, look).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(())) => bail!(
                "units failed: {}",
                self.ask("systemctl --failed --no-legend").await?.said
            ),
            Err(error) => Err(error.context(self.last_words().await)),
        }
    }

    /// Runs a shell script as root to its end; any exit code is an answer.
    pub async fn ask(&self, script: &str) -> anyhow::Result<Ran> {
        let limit = COMMAND_ENDS_WITHIN.as_secs().to_string();
        let mut command = tokio::process::Command::new("docker");
        command
            .arg("--host")
            .arg(format!("unix://{}", self.host.socket().display()))
            .args(["exec", &self.name, "timeout", "--kill-after=5", &limit])
            .args(["sh", "-c", script])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        // A little more than the machine's own limit, for an engine that hangs.
        let output = tokio::time::timeout(COMMAND_ENDS_WITHIN * 2, command.output())
            .await
            .with_context(|| format!("`{script}` did not end"))??;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said += &String::from_utf8_lossy(&output.stderr);
        let code = output.status.code().context("docker exec was killed")?;
        Ok(Ran { code, said })
    }

    /// Runs a shell script as root, which must succeed; answers what it wrote.
    pub async fn run(&self, script: &str) -> anyhow::Result<String> {
        let ran = self.ask(script).await?;
        ensure!(
            ran.code == 0,
            "`{script}` ended with {}: {}",
            ran.code,
            ran.said.trim()
        );
        Ok(ran.said)
    }

    /// One property of a unit, as `systemctl show` has it.
    pub async fn property(&self, unit: &str, name: &str) -> anyhow::Result<String> {
        let said = self
            .run(&format!("systemctl show --value --property={name} {unit}"))
            .await?;
        Ok(said.trim().to_owned())
    }

    /// Waits until a property of a unit has this value.
    pub async fn wait_for(
        &self,
        unit: &str,
        name: &str,
        value: &str,
        within: Duration,
    ) -> anyhow::Result<()> {
        let what = format!("{name} of {unit} to be {value}");
        let waited = try_wait_for(&what, within, async || {
            let now = self
                .property(unit, name)
                .await
                .map_err(|error| format!("{error:#}"))?;
            if now == value { Ok(()) } else { Err(now) }
        });
        match waited.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.journal(unit).await)),
        }
    }

    /// The end of a unit's journal, for an error message.
    pub async fn journal(&self, unit: &str) -> String {
        let script = format!("journalctl --no-pager --lines 30 --unit {unit}");
        self.ask(&script)
            .await
            .map_or_else(|error| format!("{error:#}"), |ran| ran.said)
    }

    /// A folder of the test that the machine sees as [`Machine::shared`].
    pub fn share(&self) -> &Path {
        self.share.path()
    }

    /// Puts a file into the shared folder; answers its path in the machine.
    pub fn give(&self, file: &Path) -> anyhow::Result<String> {
        let name = file.file_name().context("a file has a name")?;
        std::fs::copy(file, self.share.path().join(name))
            .with_context(|| format!("copy {}", file.display()))?;
        Ok(self.shared(&name.to_string_lossy()))
    }

    /// The path in the machine of a file in the shared folder.
    pub fn shared(&self, name: &str) -> String {
        format!("{SHARE}/{name}")
    }

    /// Writes a file in the machine, with the folders it needs.
    pub async fn write(&self, path: &str, mode: &str, text: &str) -> anyhow::Result<()> {
        let name = format!("given-{}", place::unique());
        std::fs::write(self.share.path().join(&name), text)?;
        let from = self.shared(&name);
        self.run(&format!("install -D -m {mode} {from} {path}"))
            .await?;
        Ok(std::fs::remove_file(self.share.path().join(&name))?)
    }

    /// Shuts the machine down in good order; [`Machine::start`] starts it again.
    pub async fn shut_down(&self) -> anyhow::Result<()> {
        // The answer may not come any more.
        let _ = self.ask("systemctl reboot").await;
        self.is_gone().await
    }

    /// Takes its power away: nothing in it is told.
    pub async fn cut_power(&self) -> anyhow::Result<()> {
        self.host.docker().kill(&self.name).await?;
        self.is_gone().await
    }

    /// Boots it again, with the disk as it was and an empty `/run`.
    pub async fn start(&self) -> anyhow::Result<()> {
        self.docker(&["start", &self.name]).await?;
        self.booted().await
    }

    async fn is_gone(&self) -> anyhow::Result<()> {
        let gone = async || {
            let found = self.host.docker().container(&self.name).await;
            let found = found.map_err(|error| error.to_string())?;
            let running = found.map_or(Value::Null, |found| found["State"]["Running"].clone());
            if running == false {
                Ok(())
            } else {
                Err(running.to_string())
            }
        };
        try_wait_for("the machine to be off", GOES_WITHIN, gone).await
    }

    async fn docker(&self, words: &[&str]) -> anyhow::Result<String> {
        self.host.docker().cli(words).await
    }

    async fn last_words(&self) -> String {
        let words = self.docker(&["logs", "--tail", "40", &self.name]).await;
        words.unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Where the lab keeps what machines are made of.
    pub(crate) fn cache() -> anyhow::Result<PathBuf> {
        place::folder("machines")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let host = format!("unix://{}", self.host.socket().display());
        let _ = Command::new("docker")
            .args(["--host", &host, "rm", "--force", "--volumes", &self.name])
            .stdin(Stdio::null())
            .output();
    }
}
