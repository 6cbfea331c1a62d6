//! A Podman of the lab behind its Docker-compatible socket, with stores of its own.
//!
//! One at a time on a machine: two would fight over bridges and addresses. What a killed test left
//! behind, the next start removes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::docker::Docker;
use crate::process::{Process, Program};
use crate::registry::Registry;
use crate::wait::try_wait_for;
use crate::{apt, place};

const ANSWERS_WITHIN: Duration = Duration::from_mins(1);

/// A running Podman service.
#[derive(Debug)]
pub struct Podman {
    service: Process,
    folder: PathBuf,
    docker: Docker,
    _alone: File,
}

impl Podman {
    /// Starts one that may pull from this registry without TLS.
    pub async fn start(registry: &Registry) -> anyhow::Result<Self> {
        apt::require(&["podman", "netavark", "aardvark-dns"])?;
        let alone = place::lock("podman")?;
        let folder = place::folder("podman")?;
        let registries = format!(
            "[[registry]]\nlocation = \"{}\"\ninsecure = true\n",
            registry.host()
        );
        fs::write(folder.join("registries.conf"), registries)?;
        // Its own default limits cannot be set where CAP_SYS_RESOURCE is missing.
        let settings = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
                        [network]\nnetwork_backend = \"netavark\"\n";
        fs::write(folder.join("containers.conf"), settings)?;
        reset(&folder);
        let socket = folder.join("podman.sock");
        let listen = format!("unix://{}", socket.display());
        let mut program = Program::new("podman", options(&folder));
        program
            .args
            .extend(["system", "service", "--time=0", &listen].map(str::to_owned));
        program.env = environment(&folder);
        let service = Process::start("podman", program, &folder.join("log"))?;
        let podman = Self {
            docker: Docker::at(&socket),
            service,
            folder,
            _alone: alone,
        };
        let ping = async || podman.docker.ping().await;
        try_wait_for("podman to answer /_ping", ANSWERS_WITHIN, ping)
            .await
            .with_context(|| podman.service.tail())?;
        Ok(podman)
    }

    /// Its Docker-compatible socket.
    pub fn socket(&self) -> &Path {
        self.docker.socket()
    }

    /// Asks it, for assertions.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.service.kill9();
        reset(&self.folder);
    }
}

fn options(folder: &Path) -> Vec<String> {
    let at = |name: &str| folder.join(name).display().to_string();
    [
        ("--root", at("root")),
        ("--runroot", at("run")),
        ("--network-config-dir", at("networks")),
        ("--storage-driver", "overlay".to_owned()),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .collect()
}

fn environment(folder: &Path) -> Vec<(String, String)> {
    let at = |name: &str| folder.join(name).display().to_string();
    vec![
        ("CONTAINERS_CONF".to_owned(), at("containers.conf")),
        (
            "CONTAINERS_REGISTRIES_CONF".to_owned(),
            at("registries.conf"),
        ),
    ]
}

/// Removes every container, network, volume and image of it; what fails is left to the next start.
fn reset(folder: &Path) {
    // Twice: a container whose network another one uses goes only after that one.
    let rm = &["rm", "--all", "--force", "--time=0"][..];
    for words in [
        rm,
        rm,
        &["network", "prune", "--force"],
        &["volume", "prune", "--force"],
        &["rmi", "--all", "--force"],
    ] {
        let mut command = Command::new("podman");
        command
            .args(options(folder))
            .args(words)
            .envs(environment(folder));
        let _ = apt::run(&mut command);
    }
}
