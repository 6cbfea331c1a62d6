//! The agent's program: exit codes, and where data and talk go.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, not only tests themselves"
)]

use std::path::Path;
use std::process::{Command, Output};

fn agent(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast-agent"))
        .args(arguments)
        .env_clear()
        .env("HOLDFAST_STATE_DIR", folder.join("state"))
        .env("HOLDFAST_DOCKER__SOCKET", folder.join("no.sock"))
        .output()
        .unwrap()
}

fn talk(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_wrong_configuration_ends_with_78_and_names_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.yaml");
    std::fs::write(&file, "poll: {interval_seconds: never}").unwrap();
    let output = agent(
        folder.path(),
        &["--config", file.to_str().unwrap(), "config", "check"],
    );
    assert_eq!(output.status.code(), Some(78));
    assert!(
        talk(&output).contains("poll.interval_seconds"),
        "{}",
        talk(&output)
    );
    assert!(output.stdout.is_empty());
}

#[test]
fn a_right_configuration_is_shown_and_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let first = agent(folder.path(), &["config", "check"]);
    assert_eq!(first.status.code(), Some(0), "{}", talk(&first));
    let file = folder.path().join("agent.yaml");
    std::fs::write(&file, &first.stdout).unwrap();
    let again = agent(
        folder.path(),
        &["--config", file.to_str().unwrap(), "config", "check"],
    );
    assert_eq!(again.stdout, first.stdout, "{}", talk(&again));
    let json = agent(folder.path(), &["config", "check", "--output", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["gate"]["stable_seconds"], 10);
}

#[test]
fn a_device_that_is_not_enrolled_is_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["run", "status", "plan"] {
        let output = agent(folder.path(), &[command]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(
            talk(&output).contains("holdfast-agent enroll"),
            "{command}: {}",
            talk(&output)
        );
    }
}

#[test]
fn wrong_arguments_end_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["fly"][..], &["enroll"], &["status", "--output", "xml"]] {
        assert_eq!(agent(folder.path(), arguments).status.code(), Some(2));
    }
    let output = agent(folder.path(), &["enroll", "--key", "k"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(talk(&output).contains("--api URL"), "{}", talk(&output));
}

#[test]
fn an_enrolment_key_never_reaches_the_help_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast-agent"))
        .args(["enroll", "--help"])
        .env("HOLDFAST_ENROLMENT_KEY", "hfk_canary")
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).contains("hfk_canary"));
    let output = agent(
        folder.path(),
        &[
            "enroll",
            "--key",
            "hfk_canary",
            "--api",
            "http://127.0.0.1:1",
        ],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(!talk(&output).contains("hfk_canary"), "{}", talk(&output));
}
