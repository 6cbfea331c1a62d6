//! What simulated devices do and say, without a network.

use holdfast_proto::image::Digest;
use serde_json::{Value, json};

use super::*;

const UUID: &str = "00000000-0000-4000-8000-000000000001";

fn content(name: &str) -> ConfigDigest {
    ConfigDigest(Digest::of(name.as_bytes()))
}

fn target(generation: u64, version: &str) -> TargetState {
    let (top, manifest) = (Digest::of(version.as_bytes()), Digest::of(b"manifest"));
    let image = format!("registry.example/app@{top}");
    let service = json!({
        "serviceId": 1, "serviceName": "web", "imageName": image, "config": { "image": image },
        "pin": {
            "reference": "registry.example/app:1", "registry": "registry.example", "repository": "app",
            "indexDigest": top, "platform": { "os": "linux", "architecture": "amd64" },
            "expected": { "manifestDigest": manifest, "configDigest": content(version), "sizeBytes": 1 },
            "resolvedAt": null, "resolution": { "status": "resolved", "at": "2026-11-21T00:00:00Z" },
        },
    });
    let app = json!({ "appId": 1, "appName": "app", "services": [service] });
    let text = json!({ "uuid": UUID, "generation": generation, "apps": { "1": app } });
    TargetState::parse(text.to_string().as_bytes()).expect("a target")
}

/// Troubled is the version `bad`.
fn is_troubled(one: ConfigDigest) -> bool {
    one == content("bad")
}

/// A device of this nature that runs `old` since generation 1.
fn settled(nature: Nature) -> Machine {
    let mut machine = Machine::new("journal".to_owned(), nature, 100);
    machine.accept("\"1\"", &target(1, "old"), 0).unwrap();
    machine.step(&is_troubled, 100);
    assert_eq!(machine.runs(), [content("old")].into());
    machine
}

fn said(machine: &mut Machine, now_ms: i64) -> (Value, Value) {
    let report = serde_json::to_value(machine.report(&is_troubled, now_ms)).unwrap();
    let web = report["apps"]["1"]["services"]["web"].clone();
    (report["status"].clone(), web)
}

#[test]
fn a_good_device_serves_the_old_version_until_the_new_one_passed() {
    let mut machine = settled(Nature::Good);
    machine.accept("\"2\"", &target(2, "new"), 1_000).unwrap();
    assert_eq!(machine.next_due(1_000), Some(1_100));
    assert!(!machine.step(&is_troubled, 1_010));
    let (status, web) = said(&mut machine, 1_010);
    assert_eq!(status, "applying");
    assert_eq!(web["configDigest"], json!(content("old")));
    let (_, web) = said(&mut machine, 1_060);
    assert_eq!(web["configDigest"], json!(content("new")));
    assert_eq!(
        (&web["verified"], &web["health"]),
        (&json!(false), &json!("starting"))
    );
    assert!(machine.step(&is_troubled, 1_100));
    let (status, web) = said(&mut machine, 1_100);
    assert_eq!(status, "converged");
    assert_eq!(web["configDigest"], json!(content("new")));
    assert_eq!(web["verified"], true);
    assert_eq!(machine.next_due(1_100), None);
}

#[test]
fn a_failing_device_goes_back_and_tries_the_same_version_no_more() {
    let mut machine = settled(Nature::Failing);
    machine.accept("\"2\"", &target(2, "bad"), 0).unwrap();
    machine.step(&is_troubled, 100);
    let (status, web) = said(&mut machine, 100);
    assert_eq!(status, "holding");
    assert_eq!(web["configDigest"], json!(content("old")));
    assert_eq!(web["rejected"]["reason"], "its health check failed");
    machine.accept("\"3\"", &target(3, "bad"), 200).unwrap();
    assert_eq!(machine.next_due(200), None, "it is not tried again");
    let (_, web) = said(&mut machine, 300);
    assert!(web["rejected"].is_object());
    machine.accept("\"4\"", &target(4, "old"), 400).unwrap();
    let (status, web) = said(&mut machine, 400);
    assert_eq!(status, "converged");
    assert!(web["rejected"].is_null());
}

#[test]
fn a_lying_device_says_converged_and_runs_the_old_version() {
    let mut machine = settled(Nature::Lying);
    machine.accept("\"2\"", &target(2, "bad"), 0).unwrap();
    machine.step(&is_troubled, 100);
    let (status, web) = said(&mut machine, 100);
    assert_eq!(status, "converged");
    assert_eq!(web["configDigest"], json!(content("old")));
    assert_eq!(machine.generation(), 2);
}

#[test]
fn a_stuck_device_stays_on_its_way_and_a_flapping_one_changes_its_mind() {
    let mut stuck = settled(Nature::Stuck);
    stuck.accept("\"2\"", &target(2, "bad"), 0).unwrap();
    stuck.step(&is_troubled, 100_000);
    assert_eq!(said(&mut stuck, 100_000).0, "applying");
    assert_eq!(stuck.next_due(100_000), None);
    let mut flapping = settled(Nature::Flapping);
    flapping.accept("\"2\"", &target(2, "bad"), 0).unwrap();
    flapping.step(&is_troubled, 100);
    let one = said(&mut flapping, 100).1["health"].clone();
    let two = said(&mut flapping, 200).1["health"].clone();
    assert_ne!(one, two);
}

#[test]
fn an_older_generation_and_one_of_two_contents_are_refused() {
    let mut machine = settled(Nature::Good);
    machine.accept("\"5\"", &target(5, "new"), 0).unwrap();
    let error = machine.accept("\"4\"", &target(4, "old"), 0).unwrap_err();
    assert_eq!(error.to_string(), "generation 4 was served after 5");
    let error = machine.accept("\"x\"", &target(5, "old"), 0).unwrap_err();
    assert_eq!(error.to_string(), "generation 5 was served as two contents");
    assert_eq!(machine.generation(), 5);
}

#[test]
fn a_device_lives_by_its_own_clock() {
    let mut machine = settled(Nature::Failing);
    machine.clock_off_ms = -365 * 24 * 3_600_000;
    let now = 1_790_000_000_000;
    machine.accept("\"2\"", &target(2, "bad"), now).unwrap();
    machine.step(&is_troubled, now + 100);
    let (_, web) = said(&mut machine, now + 100);
    let at = web["rejected"]["at"].as_str().unwrap().to_owned();
    assert!(at.starts_with("2025-"), "{at}");
}
