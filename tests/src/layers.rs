//! Layers of the lab's images: tar files made the same way every time, compressed and named.
//!
//! The busybox layer of a platform is made once per machine and cached; the rest is small.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, bail};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::{apt, place};

/// The commands an image of the lab has, all served by busybox.
const APPLETS: &[&str] = &[
    "cat", "chmod", "date", "df", "echo", "env", "false", "head", "hostname", "httpd", "id", "ip",
    "kill", "ls", "mkdir", "mount", "nc", "nslookup", "ping", "printenv", "ps", "rm", "sh",
    "sleep", "stat", "tail", "test", "touch", "tr", "true", "uname", "wc", "wget", "whoami",
];

/// A compressed layer with its names.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The gzip-compressed tar file.
    pub bytes: Vec<u8>,
    /// `sha256:…` of [`Layer::bytes`].
    pub digest: String,
    /// `sha256:…` of the tar file itself.
    pub diff_id: String,
}

/// `sha256:…` of bytes.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .fold("sha256:".to_owned(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes everything");
            text
        })
}

/// Debian's name for the machine a platform (`linux/arm/v7`) needs.
fn debian_architecture(platform: &str) -> anyhow::Result<&'static str> {
    Ok(match platform.split('/').nth(1) {
        Some("amd64") => "amd64",
        Some("arm64") => "arm64",
        Some("arm") => "armhf",
        _ => bail!("the lab has no busybox for {platform}"),
    })
}

/// The layer with busybox and its commands for a platform.
pub fn busybox(platform: &str) -> anyhow::Result<Layer> {
    static MADE: OnceLock<Mutex<BTreeMap<&'static str, Layer>>> = OnceLock::new();
    let architecture = debian_architecture(platform)?;
    let made = MADE.get_or_init(Mutex::default);
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(layer) = made.get(architecture) {
        return Ok(layer.clone());
    }
    let cache = place::folder("packages")?.join(format!("layer-{architecture}.tar.gz"));
    let diff = cache.with_extension("diff_id");
    if !diff.exists() {
        let package = apt::unpacked("busybox-static", architecture)?;
        let binary = package.join("bin/busybox");
        let binary = fs::read(&binary).with_context(|| format!("read {}", binary.display()))?;
        let layer = pack(&busybox_tar(&binary)?)?;
        // Renaming makes the last file appear whole, and only after the first.
        for (path, bytes) in [
            (&cache, &layer.bytes[..]),
            (&diff, layer.diff_id.as_bytes()),
        ] {
            let new = path.with_extension(place::unique());
            fs::write(&new, bytes)?;
            fs::rename(&new, path)?;
        }
    }
    let bytes = fs::read(&cache)?;
    let layer = Layer {
        digest: sha256(&bytes),
        diff_id: fs::read_to_string(&diff)?,
        bytes,
    };
    made.insert(architecture, layer.clone());
    Ok(layer)
}

fn busybox_tar(binary: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for folder in ["bin", "etc", "www"] {
        add(&mut tar, folder, tar::EntryType::Directory, 0o755, &[])?;
    }
    add(&mut tar, "tmp", tar::EntryType::Directory, 0o1777, &[])?;
    add(
        &mut tar,
        "bin/busybox",
        tar::EntryType::Regular,
        0o755,
        binary,
    )?;
    for applet in APPLETS {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    let passwd = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    add(
        &mut tar,
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        passwd,
    )?;
    let group = b"root:x:0:\nnogroup:x:65534:\n";
    add(&mut tar, "etc/group", tar::EntryType::Regular, 0o644, group)?;
    Ok(tar.into_inner()?)
}

/// A layer with these files (path without leading slash, mode, content).
pub fn files(files: &BTreeMap<String, (u32, Vec<u8>)>) -> anyhow::Result<Layer> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, (mode, bytes)) in files {
        add(&mut tar, path, tar::EntryType::Regular, *mode, bytes)?;
    }
    pack(&tar.into_inner()?)
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn add(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    bytes: &[u8],
) -> anyhow::Result<()> {
    let mut header = header(kind, mode, bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)?;
    Ok(())
}

fn pack(tar: &[u8]) -> anyhow::Result<Layer> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(tar)?;
    let bytes = gzip.finish()?;
    Ok(Layer {
        digest: sha256(&bytes),
        diff_id: sha256(tar),
        bytes,
    })
}
