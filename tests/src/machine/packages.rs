//! Debian packages as they are shipped, from a folder, and the same under another version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::root::Architecture;
use crate::apt;

/// A folder with what `make package` made.
#[derive(Debug, Clone)]
pub struct Packages {
    folder: PathBuf,
}

impl Packages {
    /// Those in a folder.
    pub fn at(folder: &Path) -> anyhow::Result<Self> {
        ensure!(
            folder.is_dir(),
            "{} is no folder; `make package` makes it",
            folder.display()
        );
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The one package of this program for this architecture.
    pub fn deb(&self, program: &str, architecture: Architecture) -> anyhow::Result<PathBuf> {
        let (begins, ends) = (
            format!("{program}_"),
            format!("_{}.deb", architecture.word()),
        );
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.starts_with(&begins) && name.ends_with(&ends) {
                found.push(path);
            }
        }
        ensure!(found.len() < 2, "several packages of {program}: {found:?}");
        found
            .pop()
            .with_context(|| format!("no {begins}…{ends} in {}", self.folder.display()))
    }
}

/// A package's version.
pub fn version(deb: &Path) -> anyhow::Result<String> {
    let field = apt::run(
        Command::new("dpkg-deb")
            .arg("--field")
            .arg(deb)
            .arg("Version"),
    )?;
    Ok(field.trim().to_owned())
}

/// The same package as a later version, in `folder`: all that an upgrade does, it does with the same program.
pub fn later(deb: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let work = tempfile::tempdir_in(folder)?;
    let tree = work.path().join("tree");
    apt::run(
        Command::new("dpkg-deb")
            .arg("--raw-extract")
            .arg(deb)
            .arg(&tree),
    )?;
    let control = tree.join("DEBIAN/control");
    let old = format!("Version: {}", version(deb)?);
    let new = format!("{old}+later");
    let text = fs::read_to_string(&control)?;
    ensure!(text.contains(&old), "{text}");
    fs::write(&control, text.replace(&old, &new))?;
    let later = folder.join(deb.file_stem().context("a file has a name")?);
    let later = later.with_extension("later.deb");
    apt::run(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zgzip", "-z1", "--build"])
            .arg(&tree)
            .arg(&later),
    )?;
    Ok(later)
}
