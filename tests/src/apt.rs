//! Debian packages the lab needs: installed when missing, under one lock for the whole machine.
//!
//! It refuses quietly to go without: a missing package that cannot be installed is an error that
//! says what to run. It never adds an architecture or a source to the machine's own apt settings.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::place;

/// Programs the lab runs, and the Debian package that brings each.
const BRINGS: &[(&str, &str)] = &[
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("docker-registry", "docker-registry"),
    ("setpriv", "util-linux"),
    ("flock", "util-linux"),
    ("initdb", "postgresql"),
    ("postgres", "postgresql"),
    ("psql", "postgresql-client"),
    ("pg_basebackup", "postgresql-client"),
    ("dpkg-deb", "dpkg"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("strace", "strace"),
    ("debootstrap", "debootstrap"),
    ("prlimit", "util-linux"),
    ("sqlite3", "sqlite3"),
    ("faketime", "faketime"),
    ("docker-compose", "docker-compose"),
    ("qemu-aarch64-static", "qemu-user-static"),
    ("qemu-arm-static", "qemu-user-static"),
    ("podman", "podman"),
    ("netavark", "netavark"),
    ("aardvark-dns", "aardvark-dns"),
    ("minisign", "minisign"),
    ("openssl", "openssl"),
    ("shellcheck", "shellcheck"),
    ("systemctl", "systemd"),
    ("systemd-analyze", "systemd"),
    ("busybox", "busybox"),
    ("curl", "curl"),
    ("wget", "wget"),
];

/// Makes sure that these programs are there, and says where each one is.
pub fn require(programs: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    if let Some(all) = programs.iter().map(|program| find(program)).collect() {
        return Ok(all);
    }
    let _lock = place::lock("apt")?;
    let mut packages = Vec::new();
    for program in programs.iter().filter(|program| find(program).is_none()) {
        let Some((_, package)) = BRINGS.iter().find(|(name, _)| name == program) else {
            bail!("{program} is missing, and the lab does not know which package brings it");
        };
        packages.push(*package);
    }
    if !packages.is_empty() {
        install(&packages)?;
    }
    let look = |program: &&str| {
        find(program).with_context(|| format!("{program} is still missing after installing it"))
    };
    programs.iter().map(look).collect()
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    let say = format!(
        "the lab needs {0}: run as root `apt-get install --no-install-recommends {0}`",
        packages.join(" ")
    );
    ensure!(rustix::process::getuid().is_root(), "{say}");
    ensure!(find("apt-get").is_some(), "no apt-get here; {say}");
    let mut command = Command::new("apt-get");
    command
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages)
        // Nothing of this may start by itself: the lab runs its own.
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1");
    if run(&mut command).is_ok() {
        return Ok(());
    }
    run(Command::new("apt-get").arg("update"))?;
    run(&mut command).context(say).map(drop)
}

/// Where a program is: on the path, in the system folders, or in a `PostgreSQL` version's folder.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let system = ["/usr/sbin", "/sbin", "/usr/local/bin", "/usr/lib/podman"];
    folders.extend(system.map(PathBuf::from));
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    folders
        .into_iter()
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Runs a program to its end; its error output is the error.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Unpacks a Debian package of any architecture into a cached folder, without installing it.
///
/// apt works on lists of its own below the lab's folder, so that the machine's settings stay.
pub fn unpacked(package: &str, architecture: &str) -> anyhow::Result<PathBuf> {
    let target = place::folder("packages")?.join(format!("{package}-{architecture}"));
    if target.exists() {
        return Ok(target);
    }
    let _lock = place::lock("apt-download")?;
    if target.exists() {
        return Ok(target);
    }
    ensure!(
        find("apt-get").is_some(),
        "no apt-get here to fetch {package}:{architecture}"
    );
    let work = tempfile::tempdir_in(place::folder("packages")?)?;
    let state = place::folder("apt")?;
    std::fs::create_dir_all(state.join("state/lists/partial"))?;
    std::fs::create_dir_all(state.join("cache/archives/partial"))?;
    let name = format!("{package}:{architecture}");
    if run(apt(&state).current_dir(&work).args(["download", &name])).is_err() {
        // One unreachable index is no failure: the download below is what counts.
        let update = run(apt(&state).arg("update"));
        run(apt(&state).current_dir(&work).args(["download", &name]))
            .with_context(|| format!("fetch {name} (apt-get update: {update:?})"))?;
    }
    let deb = std::fs::read_dir(&work)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .with_context(|| format!("apt-get download {name} left no file"))?;
    let files = work.path().join("files");
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&files))?;
    std::fs::rename(&files, &target)?;
    Ok(target)
}

fn apt(state: &Path) -> Command {
    let mut command = Command::new("apt-get");
    let state = state.display();
    let mut option = |value: String| {
        command.args(["-o", &value]);
    };
    option(format!("Dir::State={state}/state"));
    option("Dir::State::status=/var/lib/dpkg/status".to_owned());
    option(format!("Dir::Cache={state}/cache"));
    option("Acquire::Languages=none".to_owned());
    option("APT::Sandbox::User=root".to_owned());
    for architecture in ["amd64", "arm64", "armhf"] {
        option(format!("APT::Architectures::={architecture}"));
    }
    command
}
