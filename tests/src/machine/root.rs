//! Debian roots that machines boot from: made once by `debootstrap`, kept as a tar file, imported into an engine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::{Machine, emulation};
use crate::docker::Docker;
use crate::layers::sha256;
use crate::{apt, place};

/// What the lab is built and tested on; programs built here run in it.
const SUITE: &str = "bookworm";
/// Beside the smallest system: what a device has that is installed by hand. `ca-certificates` brings `openssl`.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,ca-certificates,procps,curl";
/// Debian's own address for "whichever mirror is near"; apt's settings of this machine count when they name another.
const MIRROR: &str = "http://deb.debian.org/debian";

/// What an emulated systemd cannot do: hand out credentials (`mount` with flags that qemu-user does not know) and make
/// network namespaces. Debian's own units that want that go without; ours are told in `owner`.
const WITHOUT_CREDENTIALS: [&str; 3] = [
    "systemd-sysusers.service",
    "systemd-tmpfiles-setup.service",
    "systemd-tmpfiles-setup-dev.service",
];
const WITHOUT_NETWORK: &str = "e2scrub_reap.service";

/// A machine's processor, by Debian's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// PCs.
    Amd64,
    /// Raspberry Pi 3 and newer with a 64-bit system.
    Arm64,
}

impl Architecture {
    /// Debian's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Whether this machine runs its programs itself.
    pub fn is_native(self) -> bool {
        let own = if cfg!(target_arch = "aarch64") {
            Self::Arm64
        } else {
            Self::Amd64
        };
        self == own
    }
}

/// A root in the lab's cache.
#[derive(Debug)]
pub struct Root {
    architecture: Architecture,
    key: String,
    tar: PathBuf,
}

impl Root {
    /// The root of this architecture, made when it is not in the cache.
    pub fn of(architecture: Architecture) -> anyhow::Result<Self> {
        let word = architecture.word();
        let recipe = format!("{SUITE} {word} {PACKAGES}");
        let hash = sha256(recipe.as_bytes());
        let key = format!("{SUITE}-{word}-{}", hash.get(7..19).unwrap_or_default());
        let tar = Machine::cache()?.join(format!("{key}.tar"));
        if !architecture.is_native() {
            emulation::enable()?;
        }
        let root = Self {
            architecture,
            key,
            tar,
        };
        if !root.tar.exists() {
            let _lock = place::lock(&format!("root-{word}"))?;
            if !root.tar.exists() {
                root.make()
                    .with_context(|| format!("make the root {}", root.key))?;
            }
        }
        Ok(root)
    }

    /// Imports it into an engine that does not have it; answers the image's name.
    pub async fn image(&self, docker: &Docker) -> anyhow::Result<String> {
        let name = format!("holdfast-machine:{}", self.key);
        let _lock = tokio::task::spawn_blocking(|| place::lock("root-import")).await??;
        if docker.image(&name).await?.is_none() {
            let tar = self.tar.display().to_string();
            docker.cli(&["import", &tar, &name]).await?;
        }
        Ok(name)
    }

    /// Unpacks it into a folder, which is made.
    pub fn unpack(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir(folder)?;
        let mut tar = Command::new("tar");
        apt::run(tar.arg("-C").arg(folder).arg("-xf").arg(&self.tar)).map(drop)
    }

    fn make(&self) -> anyhow::Result<()> {
        apt::require(&["debootstrap"])?;
        // Not below /tmp's own limits: dpkg writes some 10,000 files with the modes and owners they want.
        let folder = tempfile::tempdir_in(Machine::cache()?)?;
        let root = folder.path().join("root");
        let mut first = Command::new("debootstrap");
        first.args(["--variant=minbase", "--arch", self.architecture.word()]);
        first.arg(format!("--include={PACKAGES}"));
        if !self.architecture.is_native() {
            first.arg("--foreign");
        }
        let log = |error: anyhow::Error| {
            let log = fs::read_to_string(root.join("debootstrap/debootstrap.log"));
            let log = log.unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(10).collect();
            error.context(format!("its log, newest first:\n{}", tail.join("\n")))
        };
        apt::run(first.args([SUITE]).arg(&root).arg(MIRROR)).map_err(log)?;
        if !self.architecture.is_native() {
            let mut second = Command::new("chroot");
            second
                .arg(&root)
                .args(["/debootstrap/debootstrap", "--second-stage"]);
            apt::run(&mut second).map_err(log)?;
            self::adapt(&root)?;
        }
        let mut tidy = Command::new("sh");
        tidy.args([
            "-c",
            "rm -rf \"$1\"/var/cache/apt/archives/*.deb \"$1\"/var/lib/apt/lists/*",
            "sh",
        ]);
        apt::run(tidy.arg(&root))?;
        let new = folder.path().join("tar");
        apt::run(
            Command::new("tar")
                .arg("-C")
                .arg(&root)
                .arg("-cf")
                .arg(&new)
                .arg("."),
        )?;
        // Renaming makes it appear whole.
        Ok(fs::rename(&new, &self.tar)?)
    }
}

/// Lets an emulated systemd start all of its units.
fn adapt(root: &Path) -> anyhow::Result<()> {
    let units = root.join("etc/systemd/system");
    for unit in WITHOUT_CREDENTIALS {
        let folder = units.join(format!("{unit}.d"));
        fs::create_dir_all(&folder)?;
        fs::write(
            folder.join("emulated.conf"),
            "[Service]\nLoadCredential=\nSetCredential=\n",
        )?;
    }
    let network = units.join(WITHOUT_NETWORK);
    if network.symlink_metadata().is_err() {
        std::os::unix::fs::symlink("/dev/null", network)?;
    }
    Ok(())
}
