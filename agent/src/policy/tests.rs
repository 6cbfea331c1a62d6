//! Facts about the policy file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Policy, String> {
    Policy::parse(Path::new("policy.yaml"), text).map_err(|error| error.to_string())
}

#[test]
fn faults_name_the_key_and_what_to_write() {
    for (text, expected) in [
        (
            "",
            "policy.yaml: registries: write where images may come from",
        ),
        (
            "registries: [x, 'https://y']",
            "registries[1]: `https://y` is no registry",
        ),
        (
            "{registries: [x], privilege: true}",
            "unknown field `privilege`",
        ),
        ("{registries: [x], privileged: please}", "privileged: "),
        (
            "{registries: [x], bind_mounts: [{path: /a, write: true}]}",
            "bind_mounts[0].write: unknown field `write`",
        ),
        (
            "{registries: [x], bind_mounts: [{path: data}]}",
            "bind_mounts[0].path: `data` is no absolute path",
        ),
        (
            "{registries: [x], bind_mounts: [{path: /a, read_only: false, below: true}]}",
            "bind_mounts[0].below: what lies below a writable path cannot be allowed",
        ),
        (
            "{registries: [x], bind_mounts: [{path: /a, read_only: false}, {path: /a/b}]}",
            "bind_mounts: /a/b overlaps with /a,",
        ),
        (
            "{registries: [x], bind_mounts: [{path: /a, below: true}, {path: /a/b, read_only: false}]}",
            "bind_mounts: /a overlaps with /a/b,",
        ),
        (
            "{registries: [x], bind_mounts: [{path: /var, below: true}]}",
            "bind_mounts: /var overlaps with /var/lib/docker,",
        ),
        (
            "{registries: [x], devices: [ttyUSB0]}",
            "devices[0]: `ttyUSB0` is no device file",
        ),
        (
            "{registries: [x], capabilities: ['NET*']}",
            "capabilities[0]: `NET*` is no capability",
        ),
        (
            "{registries: [x], sysctls: ['net.*']}",
            "sysctls[0]: `net.*` is no name",
        ),
        (
            "{registries: [x], ceilings: {memory: lots}}",
            "ceilings.memory: ",
        ),
        (
            "{registries: [x], ceilings: {disk: 1g}}",
            "unknown field `disk`",
        ),
        (
            "{registries: [x], ports: {range: 9-1}}",
            "ports.range: `9-1` is no range",
        ),
        (
            "{registries: [x], ports: {range: 0-1}}",
            "ports.range: `0-1` is no range",
        ),
        (
            "{registries: [x], ports: {host_ips: [lo]}}",
            "ports.host_ips[0]: ",
        ),
        ("[1", "the policy policy.yaml is not valid YAML"),
        ("[1]", "policy.yaml: "),
    ] {
        let fault = parse(text).expect_err(text);
        assert!(fault.contains(expected), "{text}: {fault}");
    }
}

#[test]
fn every_fault_is_named_at_once() {
    let faults = parse("{devices: [x], capabilities: ['*'], ports: {range: x}}").unwrap_err();
    assert_eq!(faults.lines().count(), 4, "{faults}");
}

#[test]
fn the_example_that_is_shipped_is_a_policy() {
    let text = include_str!("../../../systemd/policy.example.yaml");
    let policy = parse(text).unwrap();
    let rules = policy.rules().unwrap();
    assert!(!rules.privileged && !rules.host_network);
    assert!(rules.bind_mounts.is_empty() && rules.devices.is_empty());
}

#[test]
fn only_the_default_file_may_be_missing() {
    assert!(Policy::load(Some(Path::new("/no/such/policy.yaml"))).is_err());
    // What this machine has at the default place is its owner's; where nothing is, nothing is restricted.
    if !Path::new(DEFAULT_PATH).exists() {
        assert!(Policy::load(None).unwrap().rules().is_none());
    }
}

#[test]
fn a_file_that_others_can_write_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.yaml");
    std::fs::write(&path, "no: policy").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let fault = Policy::load(Some(&path)).unwrap_err();
    assert!(matches!(fault, PolicyError::NotRoots { .. }), "{fault}");
}
