//! Where the two real programs are: built once from this workspace, or given by the environment.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, anyhow};

use crate::{apt, place};

/// The folder with `holdfast-agent` and `holdfast-api`.
///
/// `HOLDFAST_BIN_DIR` names one that is used as it is; without it, cargo brings the programs up to
/// date in the target folder this very test runs from.
pub fn folder() -> anyhow::Result<&'static Path> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| find().map_err(|error| format!("{error:#}")));
    match folder {
        Ok(folder) => Ok(folder),
        Err(error) => Err(anyhow!("the programs under test: {error}")),
    }
}

/// The agent.
pub fn agent() -> anyhow::Result<PathBuf> {
    Ok(folder()?.join("holdfast-agent"))
}

/// The control API.
pub fn api() -> anyhow::Result<PathBuf> {
    Ok(folder()?.join("holdfast-api"))
}

fn find() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("HOLDFAST_BIN_DIR") {
        return Ok(PathBuf::from(folder));
    }
    // TARGET/debug/deps/TEST or TARGET/debug/lab
    let exe = std::env::current_exe()?;
    let mut above = exe.ancestors().skip(1);
    let target = above
        .find(|folder| folder.join(".fingerprint").exists())
        .and_then(Path::parent)
        .context("this program is not in a target folder; set HOLDFAST_BIN_DIR")?;
    let _lock = place::lock("cargo-build")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--profile=dev", "--bins"])
        .args(["-p", "holdfast-agent", "-p", "holdfast-api"])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(target);
    apt::run(&mut command)?;
    Ok(target.join("debug"))
}
