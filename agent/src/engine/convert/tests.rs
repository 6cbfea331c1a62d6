//! Facts about the translation into create calls.

use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::target::{ServiceTarget, TargetState};
use serde_json::{Value, json};

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn service(config: &Value) -> ServiceTarget {
    let mut config = config.clone();
    config["image"] = json!(format!("web@{DIGEST}"));
    let target = json!({
        "uuid": "00000000-0000-4000-8000-000000000001",
        "generation": 7,
        "apps": { "1001": { "appId": 1001, "appName": "App", "services": [{
            "serviceId": 1, "serviceName": "web", "imageName": format!("web@{DIGEST}"),
            "config": config,
            "pin": {
                "reference": "web:1", "registry": "docker.io", "repository": "library/web",
                "indexDigest": DIGEST,
                "expected": { "manifestDigest": DIGEST, "configDigest": DIGEST, "sizeBytes": 1 },
                "platform": { "os": "linux", "architecture": "amd64" },
                "resolvedAt": "2026-01-01T00:00:00.000Z",
                "resolution": { "status": "resolved", "at": "2026-01-01T00:00:00.000Z" }
            }
        }] } }
    });
    let target = TargetState::parse(target.to_string().as_bytes()).unwrap();
    target.services().next().unwrap().1.clone()
}

fn key() -> ServiceKey {
    ServiceKey {
        app: "1001".parse().unwrap(),
        service: "web".parse().unwrap(),
    }
}

/// What an engine of 2020 with Docker's API gets.
const AROUND: (usize, usize) = (1, 41);

fn body_with(
    config: &Value,
    network: NewNetwork<'_>,
    api_version: (usize, usize),
) -> Result<Value, Unsupported> {
    let service = service(config);
    let new = NewContainer {
        device: &DeviceId::from_random([1; 16]),
        key: &key(),
        name: "web-1001-g7",
        generation: 7,
        service: &service,
        network,
    };
    let around = Surroundings {
        api_version,
        runtime_dir: Path::new("/run/holdfast"),
    };
    Ok(serde_json::to_value(create_body(&new, around)?).unwrap())
}

fn body(config: &Value) -> Result<Value, Unsupported> {
    body_with(config, NewNetwork::Own(&[]), AROUND)
}

/// The engine's fields that differ from those of an empty spec.
fn host(config: &Value) -> Value {
    let mut host = body(config).unwrap()["HostConfig"].take();
    let plain = body(&json!({})).unwrap()["HostConfig"].take();
    let members = host.as_object_mut().unwrap();
    members.retain(|name, value| plain.get(name) != Some(value));
    host
}

#[test]
fn a_candidate_never_restarts_by_itself_and_says_what_it_gets_later() {
    let body = body(&json!({ "restart": "always", "labels": { "team": "blue" } })).unwrap();
    assert_eq!(body["HostConfig"]["RestartPolicy"]["Name"], "no");
    assert_eq!(body["Labels"][labels::RESTART], "always");
    assert_eq!(body["Labels"][labels::GENERATION], "7");
    assert_eq!(body["Labels"][labels::IMAGE], format!("web@{DIGEST}"));
    assert_eq!(body["Labels"]["team"], "blue");
    assert_eq!(body["Image"], format!("web@{DIGEST}"));
}

#[test]
fn labels_read_back_as_they_were_written() {
    let body = body(&json!({ "restart": "on-failure:3", "init": true })).unwrap();
    let labels: HashMap<String, String> = serde_json::from_value(body["Labels"].clone()).unwrap();
    let own = labels::read(&labels).unwrap();
    assert_eq!(own.key.to_string(), "1001/web");
    assert_eq!(own.generation, 7);
    assert_eq!(own.wanted_restart, RestartPolicy::OnFailure(Some(3)));
    assert!(own.identity.matches(&service(
        &json!({ "init": true, "restart": "on-failure:3" })
    )));
    assert!(labels::belongs_to(&labels, &DeviceId::from_random([1; 16])));
    assert!(!labels::belongs_to(
        &labels,
        &DeviceId::from_random([2; 16])
    ));
}

#[test]
fn a_label_of_a_newer_agent_matches_nothing_and_is_still_ours() {
    let body = body(&json!({})).unwrap();
    let mut labels: HashMap<String, String> =
        serde_json::from_value(body["Labels"].clone()).unwrap();
    labels.insert(labels::SPEC_HASH.to_owned(), "v9:00".to_owned());
    let own = labels::read(&labels).unwrap();
    assert!(!own.identity.matches(&service(&json!({}))));
    labels.remove(labels::SERVICE);
    assert_eq!(labels::read(&labels), None);
}

#[test]
fn published_ports_are_exposed_and_bound() {
    let config = json!({ "ports": ["8080:80", "127.0.0.1:8081:80", "53:53/udp", "90"] });
    let body = body(&config).unwrap();
    let mut exposed: Vec<String> = body["ExposedPorts"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    exposed.sort_unstable();
    assert_eq!(exposed, ["53/udp", "80/tcp", "90/tcp"]);
    let bindings = &body["HostConfig"]["PortBindings"];
    assert_eq!(
        bindings["80/tcp"],
        json!([{ "HostPort": "8080" }, { "HostIp": "127.0.0.1", "HostPort": "8081" }])
    );
    assert_eq!(bindings["53/udp"], json!([{ "HostPort": "53" }]));
    assert_eq!(bindings["90/tcp"], json!([{ "HostPort": "" }]));
}

#[test]
fn volumes_belong_to_their_app_and_missing_paths_are_made() {
    let host = host(&json!({ "volumes": [
        "data:/data:ro", "/etc/app:/etc/app:ro,rslave",
        { "type": "bind", "source": "/srv", "target": "/srv", "read_only": true },
        { "type": "tmpfs", "target": "/run", "tmpfs": { "size": "1m" } },
    ], "tmpfs": ["/tmp:size=1m", "/var/run"] }));
    assert_eq!(host["Binds"], json!(["/etc/app:/etc/app:ro,rslave"]));
    let mounts = host["Mounts"].as_array().unwrap();
    assert_eq!(mounts[0]["Source"], "1001_data");
    assert_eq!(mounts[0]["ReadOnly"], true);
    assert_eq!(mounts[0]["VolumeOptions"]["Labels"][labels::APP], "1001");
    assert_eq!(mounts[1]["Type"], "bind");
    assert_eq!(mounts[2]["TmpfsOptions"]["SizeBytes"], 1 << 20);
    assert_eq!(host["Tmpfs"], json!({ "/tmp": "size=1m", "/var/run": "" }));
}

#[test]
fn limits_are_the_same_in_both_forms() {
    let one = json!({ "mem_limit": "64m", "cpus": 0.5, "pids_limit": 10 });
    let other = json!({ "deploy": { "resources": { "limits": {
        "memory": "64m", "cpus": "0.5", "pids": 10 } } } });
    let expected = json!({ "Memory": 64 << 20, "NanoCpus": 500_000_000, "PidsLimit": 10 });
    assert_eq!(host(&one), expected);
    assert_eq!(host(&other), expected);
    let reserved = json!({ "deploy": { "resources": { "reservations": { "memory": "8m" } } } });
    assert_eq!(host(&reserved), json!({ "MemoryReservation": 8 << 20 }));
}

#[test]
fn health_checks_are_translated_or_switched_off() {
    let check =
        |check: Value| body(&json!({ "healthcheck": check })).unwrap()["Healthcheck"].take();
    assert_eq!(
        check(json!({ "test": "true", "interval": "2s", "timeout": "500ms", "retries": 3 })),
        json!({ "Test": ["CMD-SHELL", "true"], "Interval": 2_000_000_000_u64,
                "Timeout": 500_000_000, "Retries": 3 })
    );
    assert_eq!(
        check(json!({ "disable": true })),
        json!({ "Test": ["NONE"] })
    );
    assert_eq!(
        check(json!({ "start_period": "1m" })),
        json!({ "StartPeriod": 60_000_000_000_u64 })
    );
}

#[test]
fn the_rest_of_a_spec_reaches_the_engine() {
    let config = json!({
        "command": "a 'b c'", "entrypoint": ["/e"], "environment": { "A": "1" }, "user": 1000,
        "working_dir": "/w", "hostname": "h", "stop_signal": "SIGINT", "stop_grace_period": "1500ms",
    });
    let made = body(&config).unwrap();
    for (name, value) in [
        ("Cmd", json!(["a", "b c"])),
        ("Entrypoint", json!(["/e"])),
        ("Env", json!(["A=1"])),
        ("User", json!("1000")),
        ("WorkingDir", json!("/w")),
        ("Hostname", json!("h")),
        ("StopSignal", json!("SIGINT")),
        ("StopTimeout", json!(2)),
    ] {
        assert_eq!(made[name], value, "{name}");
    }
    for (field, value, name, engine) in [
        ("network_mode", json!("host"), "NetworkMode", json!("host")),
        ("privileged", json!(true), "Privileged", json!(true)),
        (
            "cap_add",
            json!(["NET_ADMIN"]),
            "CapAdd",
            json!(["NET_ADMIN"]),
        ),
        ("cap_drop", json!(["ALL"]), "CapDrop", json!(["ALL"])),
        (
            "extra_hosts",
            json!(["a:1.2.3.4"]),
            "ExtraHosts",
            json!(["a:1.2.3.4"]),
        ),
        ("dns", json!("1.1.1.1"), "Dns", json!(["1.1.1.1"])),
        (
            "logging",
            json!({ "driver": "local", "options": { "max-size": "1m" } }),
            "LogConfig",
            json!({ "Type": "local", "Config": { "max-size": "1m" } }),
        ),
        (
            "ulimits",
            json!({ "nofile": 64 }),
            "Ulimits",
            json!([{ "Name": "nofile", "Soft": 64, "Hard": 64 }]),
        ),
        (
            "sysctls",
            json!({ "net.a": 1 }),
            "Sysctls",
            json!({ "net.a": "1" }),
        ),
        (
            "security_opt",
            json!(["no-new-privileges"]),
            "SecurityOpt",
            json!(["no-new-privileges"]),
        ),
        ("read_only", json!(true), "ReadonlyRootfs", json!(true)),
        ("init", json!(false), "Init", json!(false)),
        ("shm_size", json!("1m"), "ShmSize", json!(1 << 20)),
        (
            "group_add",
            json!(["dialout"]),
            "GroupAdd",
            json!(["dialout"]),
        ),
        ("userns_mode", json!("host"), "UsernsMode", json!("host")),
        ("pid", json!("host"), "PidMode", json!("host")),
        ("ipc", json!("private"), "IpcMode", json!("private")),
        ("runtime", json!("runc"), "Runtime", json!("runc")),
        (
            "devices",
            json!(["/dev/a:/dev/b:r"]),
            "Devices",
            json!([{ "PathOnHost": "/dev/a",
            "PathInContainer": "/dev/b", "CgroupPermissions": "r" }]),
        ),
    ] {
        assert_eq!(host(&json!({ field: value }))[name], engine, "{field}");
    }
}

#[test]
fn the_first_network_is_joined_at_once_under_all_names() {
    let networks = [
        (
            "1001_back-x".to_owned(),
            vec!["web".to_owned(), "api".to_owned()],
        ),
        ("1001_front-x".to_owned(), vec!["web".to_owned()]),
    ];
    let body = body_with(&json!({}), NewNetwork::Own(&networks), AROUND).unwrap();
    assert_eq!(body["HostConfig"]["NetworkMode"], "1001_back-x");
    assert_eq!(
        body["NetworkingConfig"]["EndpointsConfig"],
        json!({ "1001_back-x": { "Aliases": ["web", "api"] } })
    );
}

#[test]
fn in_a_shared_network_the_others_settings_count() {
    let config = json!({
        "hostname": "h", "dns": "1.1.1.1", "extra_hosts": ["a:1.2.3.4"], "ports": ["80:80"],
        "sysctls": { "net.core.somaxconn": 1, "kernel.shmmax": 2 },
    });
    let mut shared = body_with(&config, NewNetwork::Shared("c0ffee"), AROUND).unwrap();
    let host = shared["HostConfig"].take();
    assert_eq!(host["NetworkMode"], "container:c0ffee");
    assert_eq!(host["Sysctls"], json!({ "kernel.shmmax": "2" }));
    for (object, names) in [
        (&host, &["Dns", "ExtraHosts", "PortBindings"][..]),
        (&shared, &["Hostname", "ExposedPorts", "NetworkingConfig"]),
    ] {
        for name in names {
            assert_eq!(object.get(name), None, "{name}");
        }
    }
    let own = body(&config).unwrap();
    assert_eq!(own["Hostname"], "h");
    assert_eq!(own["HostConfig"]["Sysctls"].as_object().unwrap().len(), 2);
}

#[test]
fn a_sandbox_holds_the_network_half_and_may_do_nothing() {
    let config = json!({
        "ports": ["8080:80"], "hostname": "h", "dns": "1.1.1.1", "extra_hosts": ["a:1.2.3.4"],
        "sysctls": { "net.core.somaxconn": 1, "kernel.shmmax": 2 },
    });
    let service = service(&config);
    let spec = holdfast_plan::SandboxSpec::of(&service.service_name, &service.config);
    let networks = [("1001_default-x".to_owned(), vec!["web".to_owned()])];
    let new = NewSandbox {
        device: &DeviceId::from_random([1; 16]),
        key: &key(),
        name: "web-1001-net-g7",
        generation: 7,
        spec: &spec,
        networks: &networks,
    };
    let body = serde_json::to_value(sandbox_body(&new)).unwrap();
    assert_eq!(body["Image"], sandbox::IMAGE);
    assert_eq!(body["Hostname"], "h");
    assert_eq!(body["ExposedPorts"], json!({ "80/tcp": {} }));
    assert_eq!(body["Labels"][labels::SANDBOX_HASH], spec.hash());
    let host = &body["HostConfig"];
    for (name, value) in [
        ("RestartPolicy", json!({ "Name": "no" })),
        ("NetworkMode", json!("1001_default-x")),
        (
            "PortBindings",
            json!({ "80/tcp": [{ "HostPort": "8080" }] }),
        ),
        ("Dns", json!(["1.1.1.1"])),
        ("ExtraHosts", json!(["a:1.2.3.4"])),
        ("Sysctls", json!({ "net.core.somaxconn": "1" })),
        ("CapDrop", json!(["ALL"])),
        ("SecurityOpt", json!(["no-new-privileges"])),
        ("ReadonlyRootfs", json!(true)),
        ("LogConfig", json!({ "Type": "none" })),
    ] {
        assert_eq!(host[name], value, "{name}");
    }
    let written: HashMap<String, String> = serde_json::from_value(body["Labels"].clone()).unwrap();
    let own = labels::read(&written).unwrap();
    assert_eq!(own.sandbox_hash, Some(spec.hash()));
    assert_eq!((own.key, own.generation), (key(), 7));
}

#[test]
fn secrets_are_read_only_files_that_no_engine_makes_up() {
    let host = host(&json!({
        "secrets": [{ "source": "key", "content": "hunter2" },
                    { "source": "cert", "target": "/etc/cert", "content": "c" }],
        "configs": [{ "source": "app.conf", "content": "x" }],
    }));
    assert!(!host.to_string().contains("hunter2"));
    assert_eq!(
        host.get("Binds"),
        None,
        "short binds make missing files as folders"
    );
    let mounts = host["Mounts"].as_array().unwrap();
    let targets: Vec<&str> = mounts.iter().filter_map(|m| m["Target"].as_str()).collect();
    assert_eq!(targets, ["/run/secrets/key", "/etc/cert", "/app.conf"]);
    for mount in mounts {
        assert_eq!(
            (&mount["Type"], &mount["ReadOnly"]),
            (&json!("bind"), &json!(true))
        );
        let source = mount["Source"].as_str().unwrap();
        assert!(
            source.starts_with("/run/holdfast/files/1001/web/"),
            "{source}"
        );
    }
}

#[test]
fn resources_change_only_where_they_differ() {
    let now = Amounts {
        memory: 64 << 20,
        pids: 10,
        ..Amounts::default()
    };
    let update = |wanted| serde_json::to_value(amounts_body(now, wanted, 2)).unwrap();
    assert_eq!(update(now), json!({}));
    let more = Amounts {
        memory: 128 << 20,
        ..now
    };
    assert_eq!(
        update(more),
        json!({ "Memory": 128 << 20, "MemorySwap": 256 << 20 })
    );
    let cpus = Amounts {
        nano_cpus: 500_000_000,
        ..now
    };
    assert_eq!(update(cpus), json!({ "NanoCpus": 500_000_000 }));
    let none = update(Amounts::default());
    assert_eq!(none["PidsLimit"], UNLIMITED);
    assert_eq!(none["Memory"], NO_MEMORY_LIMIT);
    let unlimited = amounts_body(cpus, Amounts::default(), 2).nano_cpus;
    assert!(unlimited.is_some_and(|nanos| is_no_cpu_limit(nanos.unsigned_abs())));
}

#[test]
fn a_start_interval_reaches_engines_that_know_it() {
    let config = json!({ "healthcheck": { "start_interval": "1s" } });
    let made = body_with(&config, NewNetwork::Own(&[]), (1, 44)).unwrap();
    assert_eq!(made["Healthcheck"]["StartInterval"], 1_000_000_000);
    let refused = body_with(&config, NewNetwork::Own(&[]), (1, 43)).unwrap_err();
    assert!(refused.to_string().contains("healthcheck.start_interval"));
    assert!(refused.to_string().contains("1.43"), "{refused}");
}

/// A field added to the spec must be applied, or refused here by name: this list is all there is.
#[test]
fn a_field_that_is_not_applied_is_refused_by_name() {
    for (config, field) in [
        (
            json!({ "networks": { "back": { "ipv4_address": "10.0.0.2" } } }),
            "networks.back.ipv4_address",
        ),
        (
            json!({ "network_mode": "service:web2", "hostname": "h" }),
            "hostname",
        ),
        (
            json!({ "network_mode": "service:web2", "sysctls": { "net.a": 1 } }),
            "sysctls",
        ),
        (
            json!({ "healthcheck": { "start_interval": "1s" } }),
            "healthcheck.start_interval",
        ),
        (
            json!({ "deploy": { "resources": { "reservations": { "cpus": 1 } } } }),
            "deploy.resources.reservations",
        ),
    ] {
        let spec: ServiceSpec = serde_json::from_value(config).unwrap();
        let refused = refuse_unapplied(&spec, AROUND).unwrap_err();
        assert!(refused.field.contains(field), "{refused}");
    }
    let mut spec = ServiceSpec::default();
    spec.labels
        .insert("io.holdfast.app".to_owned(), "x".to_owned());
    assert_eq!(refuse_unapplied(&spec, AROUND).unwrap_err().field, "labels");
    let known = holdfast_proto::spec::FIELDS.len();
    assert_eq!(
        known, 46,
        "a field came or went: apply it in convert.rs or refuse it there"
    );
}
