//! Owns the sandbox image as an archive that engines load: a tar file with one layer.
//!
//! Refuses anything that differs from one making to the next: no times, no names of the machine.

use holdfast_proto::image::{Digest, Platform};
use serde_json::json;

use super::{IMAGE, NoProgram, PROGRAM_PATH, program};

/// Tar files consist of blocks of this size (POSIX.1, "ustar Interchange Format").
const BLOCK: usize = 512;
/// Nobody: the program needs no rights at all.
pub(crate) const USER: u32 = 65_534;

/// The image in the form of `docker save`: manifest, configuration, layer.
pub(crate) fn image(platform: &Platform) -> Result<Vec<u8>, NoProgram> {
    let path = PROGRAM_PATH.trim_start_matches('/');
    let layer = tar(&[(path, 0o555, &program(platform)?)]);
    let user = format!("{USER}:{USER}");
    let config = json!({
        "architecture": platform.architecture,
        "variant": platform.variant.as_deref().unwrap_or_default(),
        "os": platform.os,
        "created": "1970-01-01T00:00:00Z",
        // It ignores every other signal, as process 1 does: stopping it takes no time.
        "config": { "Entrypoint": [PROGRAM_PATH], "User": user, "StopSignal": "SIGKILL" },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "holdfast-agent" }],
    })
    .to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest = json!([{
        "Config": config_name, "RepoTags": [IMAGE], "Layers": ["layer.tar"],
    }])
    .to_string();
    Ok(tar(&[
        (&config_name, 0o444, config.as_bytes()),
        ("layer.tar", 0o444, &layer),
        ("manifest.json", 0o444, manifest.as_bytes()),
    ]))
}

/// A tar file of plain files that belong to root and are as old as time.
fn tar(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, content) in files {
        archive.extend(header(name, *mode, content.len()));
        archive.extend(*content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    // Two empty blocks are the end.
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

/// Numbers are octal text; each field's place and width are ustar's.
fn header(name: &str, mode: u32, size: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000"); // owner
    put(116, b"0000000"); // group
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000"); // time
    put(148, b"        "); // checksum: spaces while it is counted
    put(156, b"0"); // a plain file
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}
