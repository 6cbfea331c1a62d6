//! Programs of other processors, run by qemu: by name, and by the kernel for whole roots.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::{apt, place};

/// Where the kernel keeps which program runs files of which kind.
const KERNEL: &str = "/proc/sys/fs/binfmt_misc";
/// What Debian says to the kernel about it.
const DEBIAN: &str = "/usr/lib/binfmt.d/qemu-aarch64.conf";

/// Has the kernel run aarch64 programs by qemu, also in other roots. As installing qemu does on a machine whose
/// systemd runs, it stays so until the machine is started again.
pub fn enable() -> anyhow::Result<()> {
    apt::require(&["qemu-aarch64-static"])?;
    let _lock = place::lock("binfmt")?;
    let registered = Path::new(KERNEL).join("qemu-aarch64");
    if registered.exists() {
        return Ok(());
    }
    if !Path::new(KERNEL).join("register").exists() {
        apt::run(Command::new("mount").args(["-t", "binfmt_misc", "binfmt_misc", KERNEL]))?;
    }
    let line = fs::read_to_string(DEBIAN).with_context(|| format!("read {DEBIAN}"))?;
    // `F`, the kernel opens qemu now and keeps it: another root does not have it.
    ensure!(
        line.trim_end()
            .rsplit(':')
            .next()
            .is_some_and(|flags| flags.contains('F')),
        "{DEBIAN}: {line}"
    );
    fs::write(Path::new(KERNEL).join("register"), line.trim_end())
        .context("tell the kernel about qemu-aarch64")
}

/// A program that runs `binary` below qemu, as if it were the binary itself.
///
/// A script, so that whoever starts programs needs not know; it lies in `folder`.
pub fn wrapper(folder: &Path, words: &[String], binary: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let program = words.first().context("an emulator")?;
    apt::require(&[program])?;
    let script = folder.join("holdfast-agent");
    let text = format!(
        "#!/bin/sh\nexec {} {} \"$@\"\n",
        words.join(" "),
        binary.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}
