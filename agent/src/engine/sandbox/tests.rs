//! Facts about the sandbox program and its image.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use holdfast_proto::image::Digest;

use super::*;

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

#[test]
fn the_programs_are_what_their_headers_say() {
    for (text, size, class, machine) in [
        ("linux/amd64", 64 + 56 + 9, 2, 62_u16),
        ("linux/arm64", 64 + 56 + 28, 2, 183),
        ("linux/arm/v6", 52 + 32 + 12, 1, 40),
    ] {
        let file = program(&platform(text)).unwrap();
        assert_eq!(file.len(), size, "{text}");
        assert_eq!(&file[..5], [0x7f, b'E', b'L', b'F', class], "{text}");
        assert_eq!(file[18..20], machine.to_le_bytes(), "{text}");
    }
}

#[test]
fn a_processor_without_a_program_is_named() {
    let error = program(&platform("linux/riscv64")).unwrap_err();
    assert!(error.to_string().contains("linux/riscv64"), "{error}");
}

#[test]
fn the_same_processor_gets_the_same_image() {
    let image_of = |text: &str| Digest::of(&image(&platform(text)).unwrap());
    assert_eq!(image_of("linux/arm64"), image_of("linux/arm64"));
    assert_ne!(image_of("linux/arm/v7"), image_of("linux/arm64"));
}

#[test]
fn the_archive_is_a_tar_file_that_tar_reads() {
    let mut child = Command::new("tar")
        .args(["-t", "-v", "--numeric-owner"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let archive = image(&platform("linux/amd64")).unwrap();
    child.stdin.take().unwrap().write_all(&archive).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let listing = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    assert_eq!(names.len(), 3, "{listing}");
    assert_eq!(names[0].len(), 64 + ".json".len(), "{listing}");
    assert_eq!(names[1..], ["layer.tar", "manifest.json"]);
    assert!(
        listing
            .lines()
            .all(|line| line.starts_with("-r--r--r-- 0/0")),
        "{listing}"
    );
}

/// Runs the file for the machine that tests run on; the others run in the lab's tests.
#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn the_program_of_this_machine_waits_and_takes_no_processor_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pause");
    let here = Platform::new("linux", std::env::consts::ARCH, None);
    std::fs::write(&path, program(&here).unwrap()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o500)).unwrap();
    let mut child = Command::new(&path).spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    // The field after the name in brackets is the state: S once it sleeps in its system call.
    let deadline = std::process::Command::new("timeout")
        .args(["10", "sh", "-c"])
        .arg(format!("until grep -q ') S ' {stat}; do :; done"))
        .status()
        .unwrap();
    let ended = child.try_wait().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(deadline.success(), "it never slept");
    assert_eq!(ended, None);
}
