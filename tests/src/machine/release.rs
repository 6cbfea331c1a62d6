//! A release folder as a server hands it out: files, their checksums, and a signature as minisign writes it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use tempfile::TempDir;

use crate::layers::sha256;
use crate::place;

/// What a signature says of itself; signed along.
const COMMENT: &str = "a release of the lab";

/// A signed folder; removed when dropped.
#[derive(Debug)]
pub struct Release {
    folder: TempDir,
    pair: Ed25519KeyPair,
    number: [u8; 8],
}

impl Release {
    /// With copies of these files, signed by a key of its own.
    pub fn of(files: &[&Path]) -> anyhow::Result<Self> {
        let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        let pair = pair.ok().context("the system gave no key")?;
        let pair = Ed25519KeyPair::from_pkcs8(pair.as_ref())
            .ok()
            .context("a key just made")?;
        let mut number = [0; 8];
        number.copy_from_slice(&place::random()?[..8]);
        let release = Self {
            folder: place::temporary("release")?,
            pair,
            number,
        };
        for file in files {
            let name = file.file_name().context("a file has a name")?;
            fs::copy(file, release.path().join(name))?;
        }
        release.sign()?;
        Ok(release)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The public key, as minisign writes it.
    pub fn key(&self) -> String {
        STANDARD.encode([b"Ed", &self.number[..], self.pair.public_key().as_ref()].concat())
    }

    /// Lists the files that are there now and signs the list, with this release's own key.
    pub fn sign(&self) -> anyhow::Result<()> {
        let mut sums = String::new();
        let mut paths: Vec<_> = fs::read_dir(self.path())?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        for path in paths {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if !name.starts_with("SHA256SUMS") {
                let sum = sha256(&fs::read(&path)?);
                writeln!(sums, "{}  {name}", sum.trim_start_matches("sha256:"))?;
            }
        }
        fs::write(self.path().join("SHA256SUMS"), &sums)?;
        let signature = self.pair.sign(sums.as_bytes());
        let whole = self
            .pair
            .sign(&[signature.as_ref(), COMMENT.as_bytes()].concat());
        let text = format!(
            "untrusted comment: {COMMENT}\n{}\ntrusted comment: {COMMENT}\n{}\n",
            STANDARD.encode([b"Ed", &self.number[..], signature.as_ref()].concat()),
            STANDARD.encode(whole.as_ref())
        );
        Ok(fs::write(self.path().join("SHA256SUMS.minisig"), text)?)
    }
}
