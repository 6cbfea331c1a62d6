//! The agent's program: exit codes, and where data and talk go.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, not only tests themselves"
)]

use std::path::Path;
use std::process::{Command, Output};

use holdfast_agent::journal::{Change, Intent, Journal, StoredTarget};
use holdfast_plan::ServiceHistory;
use holdfast_proto::id::ServiceKey;
use holdfast_proto::time::Timestamp;

fn agent(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast-agent"))
        .args(arguments)
        .env_clear()
        .env("HOLDFAST_STATE_DIR", folder.join("state"))
        .env("HOLDFAST_DOCKER__SOCKET", folder.join("no.sock"))
        .env("HOLDFAST_LOCAL_API__SOCKET", folder.join("agent.sock"))
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

#[test]
fn orders_without_a_running_agent_say_how_to_start_it() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["pause"][..],
        &["resume"],
        &["lock", "1/web", "--ttl", "1m"],
        &["unlock"],
        &["update-now", "--force"],
    ] {
        let output = agent(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = talk(&output);
        assert!(
            said.contains("systemctl start holdfast-agent"),
            "{arguments:?}: {said}"
        );
    }
    for arguments in [&["lock", "web"][..], &["lock", "--ttl", "soon"]] {
        assert_eq!(agent(folder.path(), arguments).status.code(), Some(2));
    }
}

#[test]
fn doctor_names_what_is_wrong_and_what_to_do_and_ends_with_1() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("state")).unwrap();
    let output = agent(folder.path(), &["doctor", "--output", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", talk(&output));
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdict = |name: &str| {
        let check = checks.as_array().unwrap().iter();
        let mut check = check.filter(|check| check["name"] == name);
        let check = check.next().unwrap_or_else(|| panic!("no {name}"));
        let advised = check["advice"].is_string();
        (check["verdict"].as_str().unwrap().to_owned(), advised)
    };
    assert_eq!(verdict("state folder"), ("ok".to_owned(), false));
    assert_eq!(verdict("enrolment"), ("wrong".to_owned(), true));
    assert_eq!(verdict("container engine"), ("wrong".to_owned(), true));
    assert_eq!(verdict("running agent"), ("warning".to_owned(), true));
    assert_eq!(verdict("clock"), ("ok".to_owned(), false));
    let table = agent(folder.path(), &["doctor"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.contains("\nenrolment: run `holdfast-agent enroll"),
        "{table}"
    );
}

#[test]
fn a_support_bundle_tells_much_and_no_secret() {
    const TOKEN: &str = "hfd_canary_token";
    const VALUE: &str = "canary-environment-value";
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let uuid = "00000000-0000-4000-8000-000000000001";
    let enrolment = serde_json::json!({
        "uuid": uuid, "token": TOKEN, "api_url": "http://127.0.0.1:1/", "poll_interval_seconds": 30
    });
    std::fs::write(state.join("enrolment.json"), enrolment.to_string()).unwrap();
    let service = serde_json::json!({
        "serviceId": 1, "serviceName": "web", "imageName": "web:1",
        "config": { "environment": { "PASSWORD": VALUE }, "labels": { "secret": VALUE },
            "command": ["serve", VALUE] }
    });
    let target = serde_json::json!({
        "uuid": uuid, "generation": 7,
        "apps": { "1": { "appId": 1, "appName": "a", "services": [service] } }
    });
    let now = Timestamp::from_millis(1_800_000_000_000);
    let journal = Journal::open(&state).unwrap().journal;
    journal
        .set_target(&StoredTarget {
            body: target.to_string().into_bytes(),
            etag: None,
            generation: 7,
            received_at: now,
        })
        .unwrap();
    let key = ServiceKey {
        app: "1".parse().unwrap(),
        service: "web".parse().unwrap(),
    };
    let history = ServiceHistory {
        last_good: Some(serde_json::from_value(service).unwrap()),
        ..ServiceHistory::default()
    };
    let intent = Intent {
        key: key.clone(),
        step: "commit".to_owned(),
        candidate: None,
    };
    let intent = journal.begin(&intent, &Change::None, now).unwrap();
    journal
        .finish(intent, &key, &Change::Set(Box::new(history)))
        .unwrap();
    drop(journal);

    let file = folder.path().join("support.tar.gz");
    let output = agent(folder.path(), &["support-bundle", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", talk(&output));
    let mut unpacked = Vec::new();
    let packed = std::fs::read(&file).unwrap();
    std::io::Read::read_to_end(
        &mut flate2::read::GzDecoder::new(packed.as_slice()),
        &mut unpacked,
    )
    .unwrap();
    let text = String::from_utf8_lossy(&unpacked);
    for told in [
        "about.json",
        "config.json",
        "doctor.json",
        "engine.json",
        "plan.json",
        "status.json",
        "journal.json",
        "\"generation\": 7",
        "\"image\": \"web:1\"",
        uuid,
    ] {
        assert!(text.contains(told), "{told}");
    }
    for secret in [TOKEN, VALUE] {
        assert!(!text.contains(secret), "{secret}");
    }
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
