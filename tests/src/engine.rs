//! Container engines of the lab: one shared private dockerd, and fully private ones to kill.
//!
//! It refuses to touch an engine it did not start, unless `HOLDFAST_LAB_DOCKER` names its socket.
//! An engine lives as long as somebody holds its `users` file locked; a small reaper beside it waits
//! for that lock and then removes everything. A killed test process lets go by dying.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::disk::SmallDisk;
use crate::docker::Docker;
use crate::process::{Signal, kill9};
use crate::wait::try_wait_for;
use crate::{apt, place};

const REAPER: &str = include_str!("engine/reaper.sh");
/// How long an unused shared engine waits for the next test process before it goes.
const LINGER_SECONDS: u32 = 15;
/// A cold start takes about a second; a busy two-core machine ten times that.
const STARTS_WITHIN: Duration = Duration::from_mins(1);
/// A process that was killed is gone soon, on a busy machine too.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// Bridges (and so engines beside another one) that the lab may have on one machine.
const BRIDGES: std::ops::RangeInclusive<u8> = 1..=30;

/// A container engine a test may use.
#[derive(Debug)]
pub struct Engine {
    docker: Docker,
    lab: Option<Daemon>,
}

/// What the lab knows about a dockerd it started.
#[derive(Debug)]
struct Daemon {
    folder: PathBuf,
    args: Vec<String>,
    _users: File,
}

/// What a private engine should be like.
#[derive(Debug, Clone, Default)]
pub struct Private {
    /// A file system of its own for images, containers and volumes.
    pub disk: Option<SmallDisk>,
    /// More arguments of dockerd.
    pub args: Vec<String>,
}

/// How an engine is attached to the machine's network.
#[derive(Debug)]
enum Network {
    /// docker0 and iptables, as on a device.
    Usual,
    /// A bridge of its own and no iptables, so that another engine's rules stay as they are.
    /// Published ports work through docker-proxy.
    Beside { bridge: String },
}

impl Engine {
    /// The engine all tests of this user share; started when it does not run.
    pub async fn shared() -> anyhow::Result<Self> {
        if let Some(socket) = std::env::var_os("HOLDFAST_LAB_DOCKER") {
            let socket = PathBuf::from(socket);
            let docker = Docker::at(&socket);
            docker
                .ping()
                .await
                .with_context(|| format!("no engine at {}", socket.display()))?;
            return Ok(Self { docker, lab: None });
        }
        need_root()?;
        let folder = place::folder("shared")?;
        // In this order: the reaper holds `users` alone while it removes the engine.
        let users = open(&folder, "users")?;
        users.lock_shared()?;
        let _start = place::lock("engine-start")?;
        let docker = Docker::at(&folder.join("docker.sock"));
        let args = if docker.ping().await.is_ok() {
            Vec::new()
        } else {
            sweep_leftovers()?;
            sweep_engine(&folder)?;
            let network = if another_engine_runs()? {
                Network::beside()?
            } else {
                Network::Usual
            };
            start(&folder, &network, Vec::new(), &docker).await?
        };
        watch(&folder, LINGER_SECONDS)?;
        let lab = Some(Daemon {
            folder,
            args,
            _users: users,
        });
        Ok(Self { docker, lab })
    }

    /// An engine that somebody else started and ends.
    pub fn at(socket: &Path) -> Self {
        Self {
            docker: Docker::at(socket),
            lab: None,
        }
    }

    /// An engine for this caller alone, which it may kill and restart.
    pub async fn private() -> anyhow::Result<Self> {
        Self::private_with(Private::default()).await
    }

    /// As [`Engine::private`], with a small disk or more arguments.
    pub async fn private_with(private: Private) -> anyhow::Result<Self> {
        need_root()?;
        let _start = place::lock("engine-start")?;
        sweep_leftovers()?;
        let folder = place::folder(&format!("p-{}", place::unique()))?;
        let users = open(&folder, "users")?;
        users.lock_shared()?;
        let docker = Docker::at(&folder.join("docker.sock"));
        if let Some(disk) = private.disk {
            disk.mount(&folder.join("disk"), &folder.join("data"))?;
        }
        let network = Network::beside()?;
        let args = start(&folder, &network, private.args, &docker).await?;
        watch(&folder, 0)?;
        let lab = Some(Daemon {
            folder,
            args,
            _users: users,
        });
        Ok(Self { docker, lab })
    }

    /// The engine's unix socket.
    pub fn socket(&self) -> &Path {
        self.docker.socket()
    }

    /// Asks the engine, for assertions.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Kills dockerd as a crash would. Its containers go on. Only for a private engine.
    pub async fn kill9(&self) -> anyhow::Result<()> {
        let pid = self.daemon()?.pid()?;
        kill9(pid);
        self.gone(pid).await
    }

    /// Kills dockerd, containerd, shims and containers at once and forgets what lived in memory, as a
    /// power cut would. What was not on the disk yet stays there all the same: this kernel has no way
    /// to lose it. Only for a private engine, also for one whose dockerd is dead already.
    pub async fn power_cut(&self) -> anyhow::Result<()> {
        let folder = self.daemon()?.folder.clone();
        let mut cut = Command::new("sh");
        cut.arg(script(&folder)?).arg("cut").arg(&folder);
        tokio::task::spawn_blocking(move || apt::run(&mut cut)).await??;
        Ok(())
    }

    /// The process id of dockerd. Only for a private engine.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.daemon()?.pid()
    }

    /// Stops dockerd without ending it, and waits until none of its threads answers any more: the signal
    /// only asks for that. Only for a private engine.
    pub async fn hang(&self) -> anyhow::Result<()> {
        let pid = self.daemon()?.pid()?;
        send(pid, Signal::STOP)?;
        let stopped = async || threads_are_stopped(pid);
        try_wait_for("every thread to stop", ENDS_WITHIN, stopped).await
    }

    /// Lets dockerd go on after [`Engine::hang`].
    pub fn go_on(&self) -> anyhow::Result<()> {
        send(self.daemon()?.pid()?, Signal::CONT)
    }

    /// Kills containerd, which dockerd starts again. Only for a private engine.
    pub fn kill9_containerd(&self) -> anyhow::Result<()> {
        let file = self.daemon()?.folder.join("exec/containerd/containerd.pid");
        kill9(fs::read_to_string(file)?.trim().parse()?);
        Ok(())
    }

    /// Where it keeps images, containers and volumes. Only for a private engine.
    pub fn data(&self) -> anyhow::Result<PathBuf> {
        Ok(self.daemon()?.folder.join("data"))
    }

    /// Ends dockerd in good order, which stops its containers. Only for a private engine.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let pid = self.daemon()?.pid()?;
        send(pid, Signal::TERM)?;
        self.gone(pid).await
    }

    /// Starts dockerd again after [`Engine::kill9`] or [`Engine::stop`].
    pub async fn start(&self) -> anyhow::Result<()> {
        ensure!(self.docker.ping().await.is_err(), "this engine runs");
        let daemon = self.daemon()?;
        let containerd = daemon.folder.join("exec/containerd/containerd.pid");
        // Killed along with dockerd, and on a busy machine a moment later: a new dockerd must not meet it.
        let dead = async || !is_alive(&containerd);
        let _ = try_wait_for("containerd to end", ENDS_WITHIN, dead).await;
        forget_dead(&daemon.folder.join("docker.pid"))?;
        forget_dead(&containerd)?;
        launch(&daemon.folder, &daemon.args)?;
        if answers(&daemon.folder, &self.docker).await.is_ok() {
            return Ok(());
        }
        // Its unit says `Restart=always`.
        launch(&daemon.folder, &daemon.args)?;
        answers(&daemon.folder, &self.docker).await
    }

    /// Removes every container and network labelled with this device.
    pub async fn sweep(&self, device: &str) -> anyhow::Result<()> {
        self.docker
            .sweep(&format!("io.holdfast.device={device}"))
            .await
    }

    /// The end of dockerd's log, for an error message.
    pub fn log(&self) -> String {
        let log = |lab: &Daemon| fs::read_to_string(lab.folder.join("dockerd.log")).ok();
        self.lab.as_ref().and_then(log).unwrap_or_default()
    }

    fn daemon(&self) -> anyhow::Result<&Daemon> {
        let daemon = self.lab.as_ref().filter(|lab| !lab.args.is_empty());
        daemon
            .filter(|lab| lab.is_private())
            .context("only a private engine may be ended by a test")
    }

    /// Waits until a dockerd that was killed is gone.
    pub async fn gone(&self, pid: u32) -> anyhow::Result<()> {
        let path = PathBuf::from(format!("/proc/{pid}/exe"));
        let gone = async || fs::read_link(&path).is_err();
        try_wait_for("dockerd to end", Duration::from_secs(30), gone).await
    }
}

impl Daemon {
    fn is_private(&self) -> bool {
        let name = self.folder.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("p-")
    }

    fn pid(&self) -> anyhow::Result<u32> {
        let pid = fs::read_to_string(self.folder.join("docker.pid"))?;
        let pid: u32 = pid.trim().parse()?;
        let line = fs::read(format!("/proc/{pid}/cmdline"))?;
        let ours = self.folder.to_string_lossy();
        ensure!(
            String::from_utf8_lossy(&line).contains(&*ours),
            "process {pid} is not our dockerd"
        );
        Ok(pid)
    }
}

impl Network {
    /// Makes a bridge; making it is also what claims its number on this machine.
    fn beside() -> anyhow::Result<Self> {
        for slot in BRIDGES {
            let bridge = format!("hflab{slot}");
            let made =
                apt::run(Command::new("ip").args(["link", "add", &bridge, "type", "bridge"]));
            if made.is_err() {
                continue;
            }
            let address = format!("10.213.{slot}.1/24");
            apt::run(Command::new("ip").args(["addr", "add", &address, "dev", &bridge]))?;
            apt::run(Command::new("ip").args(["link", "set", &bridge, "up"]))?;
            return Ok(Self::Beside { bridge });
        }
        bail!("no bridge could be made: are all of hflab1 to hflab30 there already?")
    }
}

fn send(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let id = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(id.context("dockerd's process id")?, signal)?;
    Ok(())
}

fn need_root() -> anyhow::Result<()> {
    apt::require(&["dockerd", "docker", "iptables", "ip", "flock", "setpriv"])?;
    ensure!(
        rustix::process::getuid().is_root(),
        "the lab's engine needs root; or set HOLDFAST_LAB_DOCKER to the socket of an engine to use"
    );
    Ok(())
}

fn open(folder: &Path, name: &str) -> anyhow::Result<File> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(folder.join(name));
    Ok(file?)
}

/// Whether a dockerd that is not the lab's runs in our network.
fn another_engine_runs() -> anyhow::Result<bool> {
    let root = place::root()?.join("");
    let root = root.to_string_lossy();
    let network = fs::read_link("/proc/self/ns/net")?;
    let other = |process: PathBuf| {
        let name = fs::read_to_string(process.join("comm")).ok()?;
        let line = fs::read(process.join("cmdline")).ok()?;
        let theirs = name.trim() == "dockerd" && !String::from_utf8_lossy(&line).contains(&*root);
        (theirs && fs::read_link(process.join("ns/net")).ok()? == network).then_some(())
    };
    let mut processes = fs::read_dir("/proc")?.flatten();
    Ok(processes.any(|process| other(process.path()).is_some()))
}

async fn start(
    folder: &Path,
    network: &Network,
    more: Vec<String>,
    docker: &Docker,
) -> anyhow::Result<Vec<String>> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let group = format!("holdfast-lab-{name}-{}", place::unique());
    fs::write(folder.join("cgroup"), &group)?;
    fs::write(folder.join("dockerd.log"), "")?;
    let at = folder.display();
    let mut args = vec![
        format!("--host=unix://{at}/docker.sock"),
        format!("--data-root={at}/data"),
        format!("--exec-root={at}/exec"),
        format!("--pidfile={at}/docker.pid"),
        format!("--cgroup-parent=/{group}"),
        "--exec-opt=native.cgroupdriver=cgroupfs".to_owned(),
        "--shutdown-timeout=3".to_owned(),
    ];
    if let Network::Beside { bridge } = network {
        // No `--default-address-pool` here: with one, dockerd deletes docker0, whosever it is,
        // when it starts a second time on the same data.
        fs::write(folder.join("bridge"), bridge)?;
        args.push(format!("--bridge={bridge}"));
        args.push("--iptables=false".to_owned());
    }
    args.extend(more);
    launch(folder, &args)?;
    answers(folder, docker).await?;
    Ok(args)
}

/// Removes the pid file of a process that is gone.
///
/// Killed, it may stay a zombie for long where process 1 does not collect strangers, and dockerd
/// takes a zombie for a running program. On a device process 1 collects at once.
fn forget_dead(pid_file: &Path) -> anyhow::Result<()> {
    if pid_file.exists() && !is_alive(pid_file) {
        fs::remove_file(pid_file)?;
    }
    Ok(())
}

/// Whether every thread of a process is in state T (proc(5)).
fn threads_are_stopped(pid: u32) -> anyhow::Result<()> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        // The name before it is in brackets and may contain anything.
        let (_, state) = stat.rsplit_once(") ").context("a line of stat")?;
        ensure!(state.starts_with('T'), "{stat}");
    }
    Ok(())
}

fn is_alive(pid_file: &Path) -> bool {
    let pid = fs::read_to_string(pid_file).unwrap_or_default();
    // A zombie has no program any more.
    !pid.trim().is_empty() && fs::read_link(format!("/proc/{}/exe", pid.trim())).is_ok()
}

fn launch(folder: &Path, args: &[String]) -> anyhow::Result<()> {
    let log = open(folder, "dockerd.log")?;
    let mut command = Command::new("setsid");
    command
        .args(["--fork", "dockerd"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let status = command.status().context("start dockerd")?;
    ensure!(status.success(), "starting dockerd failed: {status}");
    Ok(())
}

async fn answers(folder: &Path, docker: &Docker) -> anyhow::Result<()> {
    let ping = async || docker.ping().await;
    let ready = try_wait_for("dockerd to answer /_ping", STARTS_WITHIN, ping).await;
    ready.with_context(|| {
        let log = fs::read_to_string(folder.join("dockerd.log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(15).collect();
        format!("dockerd's last words, newest first:\n{}", tail.join("\n"))
    })
}

/// Makes sure that a reaper waits for the engine's last user.
fn watch(folder: &Path, linger_seconds: u32) -> anyhow::Result<()> {
    let script = script(folder)?;
    let log = open(folder, "reaper.log")?;
    let status = Command::new("setsid")
        .args(["--fork", "sh"])
        .arg(script)
        .arg("watch")
        .arg(folder)
        .arg(linger_seconds.to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()?;
    ensure!(status.success(), "starting the reaper failed: {status}");
    Ok(())
}

fn sweep_engine(folder: &Path) -> anyhow::Result<()> {
    apt::run(
        Command::new("sh")
            .arg(script(folder)?)
            .arg("sweep")
            .arg(folder),
    )?;
    Ok(())
}

/// Puts the script in place by renaming: a shell may be reading the old one line by line.
fn script(folder: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.join("reaper.sh");
    let new = folder.join(format!("reaper-{}", place::unique()));
    fs::write(&new, REAPER)?;
    fs::rename(&new, &path)?;
    Ok(path)
}

/// Removes private engines whose owner and whose reaper are both gone.
fn sweep_leftovers() -> anyhow::Result<()> {
    for entry in fs::read_dir(place::root()?)?.flatten() {
        let folder = entry.path();
        if !entry.file_name().to_string_lossy().starts_with("p-") {
            continue;
        }
        let users = open(&folder, "users")?;
        let watched = open(&folder, "reaper")?;
        if users.try_lock().is_ok() && watched.try_lock().is_ok() {
            sweep_engine(&folder)?;
            fs::remove_dir_all(&folder)?;
        }
    }
    Ok(())
}

/// Ends the shared engine now, when nobody uses it; says whether it did.
pub fn stop_shared() -> anyhow::Result<bool> {
    let folder = place::folder("shared")?;
    let users = open(&folder, "users")?;
    if users.try_lock().is_err() {
        return Ok(false);
    }
    sweep_engine(&folder)?;
    Ok(true)
}
