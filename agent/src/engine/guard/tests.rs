//! Facts about what the policy lets through to the engine (fault table A40, threats T1 and T2).

use std::path::Path;

use bollard::models::ContainerCreateBody;
use holdfast_proto::image::Platform;
use holdfast_proto::target::TargetState;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Nothing is listed but where images may come from.
const STRICT: &str = "registries: [docker.io]";

fn policy(text: &str) -> Policy {
    Policy::parse(Path::new("policy.yaml"), text).unwrap_or_else(|fault| panic!("{text}: {fault}"))
}

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const DEVICE: &str = "00000000-0000-4000-8000-000000000001";

/// A target with one service `web` of app `1001`.
fn target(config: &Value) -> TargetState {
    let image = format!("web@{DIGEST}");
    let mut config = config.clone();
    config["image"] = json!(image);
    let target = json!({
        "uuid": DEVICE, "generation": 7,
        "apps": { "1001": { "appId": 1001, "appName": "App", "services": [{
            "serviceId": 1, "serviceName": "web", "imageName": image, "config": config,
            "pin": {
                "reference": "web:1", "registry": "docker.io", "repository": "library/web",
                "indexDigest": DIGEST, "platform": { "os": "linux", "architecture": "amd64" },
                "expected": { "manifestDigest": DIGEST, "configDigest": DIGEST, "sizeBytes": 1 },
                "resolvedAt": "2026-01-01T00:00:00.000Z",
                "resolution": { "status": "resolved", "at": "2026-01-01T00:00:00.000Z" }
            }
        }] } }
    });
    TargetState::parse(target.to_string().as_bytes())
        .unwrap_or_else(|fault| panic!("{config}: {fault:?}"))
}

const RUNTIME_DIR: &str = "/run/holdfast";

fn body_of(config: &Value) -> ContainerCreateBody {
    let target = target(config);
    let (key, service) = target.services().next().unwrap();
    let around = convert::Surroundings {
        api_version: convert::NEWEST_API,
        runtime_dir: Path::new(RUNTIME_DIR),
        shares_hostname: true,
    };
    let new = NewContainer {
        device: &DEVICE.parse().unwrap(),
        key: &key,
        name: "web-1001-g7",
        generation: 7,
        service,
        network: NewNetwork::Own(&[]),
    };
    convert::create_body(&new, around).unwrap()
}

/// The body of a plain service with one member set, named by its path.
fn body_with(path: &str, value: &Value) -> ContainerCreateBody {
    let mut body = serde_json::to_value(body_of(&json!({}))).unwrap();
    let mut member = &mut body;
    for part in path.split('.') {
        member = &mut member[part];
    }
    *member = value.clone();
    let patched: ContainerCreateBody = serde_json::from_value(body.clone()).unwrap();
    // A name that bollard does not know would make a test that tests nothing.
    let read = serde_json::to_value(&patched).unwrap();
    let mut found = &read;
    for part in path.split('.') {
        found = &found[part];
    }
    assert!(!found.is_null(), "{path} is no field of a create call");
    patched
}

fn judge(policy: &Policy, body: &ContainerCreateBody) -> Result<(), Refusal> {
    container(policy, body, &Ours::default())
}

/// What a request may carry, and the line of a policy that allows it; none where none does.
fn corpus() -> Vec<(&'static str, Value, Option<&'static str>)> {
    let bind = |source: &str| json!([{ "Type": "bind", "Source": source, "Target": "/x" }]);
    let bind_ro = |source: &str| json!([{ "Type": "bind", "Source": source, "Target": "/x", "ReadOnly": true }]);
    let driver = |options: Value| {
        json!([{ "Type": "volume", "Source": "v", "Target": "/x",
            "VolumeOptions": { "DriverConfig": options } }])
    };
    let sock = Some("bind_mounts: [{path: /run/docker.sock, read_only: false}]");
    let sock_ro = Some("bind_mounts: [{path: /var/run/docker.sock}]");
    let root = Some("bind_mounts: [{path: /, read_only: false}]");
    let etc = Some("bind_mounts: [{path: /etc, read_only: false}]");
    vec![
        // Rights.
        (
            "HostConfig.Privileged",
            json!(true),
            Some("privileged: true"),
        ),
        (
            "HostConfig.CapAdd",
            json!(["SYS_ADMIN"]),
            Some("capabilities: [SYS_ADMIN]"),
        ),
        (
            "HostConfig.CapAdd",
            json!(["CAP_SYS_ADMIN"]),
            Some("capabilities: [sys_admin]"),
        ),
        (
            "HostConfig.CapAdd",
            json!(["cap_sys_admin"]),
            Some("capabilities: [CAP_SYS_ADMIN]"),
        ),
        (
            "HostConfig.CapAdd",
            json!(["ALL"]),
            Some("capabilities: [ALL]"),
        ),
        (
            "HostConfig.CapAdd",
            json!(["all"]),
            Some("capabilities: [all]"),
        ),
        (
            "HostConfig.SecurityOpt",
            json!(["seccomp=unconfined"]),
            Some("security_opt: ['seccomp=unconfined']"),
        ),
        (
            "HostConfig.SecurityOpt",
            json!(["seccomp:unconfined"]),
            Some("security_opt: ['seccomp=unconfined']"),
        ),
        (
            "HostConfig.SecurityOpt",
            json!(["apparmor=unconfined"]),
            Some("security_opt: ['apparmor:unconfined']"),
        ),
        (
            "HostConfig.SecurityOpt",
            json!(["label=disable"]),
            Some("security_opt: ['label=disable']"),
        ),
        (
            "HostConfig.SecurityOpt",
            json!(["label:type:unconfined_t"]),
            Some("security_opt: ['label:type:unconfined_t']"),
        ),
        (
            "HostConfig.SecurityOpt",
            json!(["systempaths=unconfined"]),
            Some("security_opt: ['systempaths=unconfined']"),
        ),
        (
            "HostConfig.SecurityOpt",
            json!(["no-new-privileges=false"]),
            Some("security_opt: ['no-new-privileges=false']"),
        ),
        (
            "HostConfig.SecurityOpt",
            json!(["no-new-privileges", "seccomp={}"]),
            Some("security_opt: ['seccomp={}']"),
        ),
        (
            "HostConfig.Sysctls",
            json!({ "kernel.msgmax": "1" }),
            Some("sysctls: [kernel.msgmax]"),
        ),
        (
            "HostConfig.Sysctls",
            json!({ "net/ipv4/ip_forward": "1" }),
            Some("sysctls: [net/ipv4/ip_forward]"),
        ),
        (
            "HostConfig.Runtime",
            json!("runc"),
            Some("runtimes: [runc]"),
        ),
        (
            "HostConfig.Ulimits",
            json!([{ "Name": "memlock", "Soft": -1, "Hard": -1 }]),
            Some("ulimits: [memlock]"),
        ),
        (
            "HostConfig.LogConfig",
            json!({ "Type": "syslog", "Config": {} }),
            Some("log_drivers: [syslog]"),
        ),
        // Namespaces.
        (
            "HostConfig.NetworkMode",
            json!("host"),
            Some("host_network: true"),
        ),
        ("HostConfig.NetworkMode", json!("container:stranger"), None),
        ("HostConfig.NetworkMode", json!("stranger"), None),
        ("HostConfig.NetworkMode", json!("ns:/proc/1/ns/net"), None),
        ("HostConfig.PidMode", json!("host"), Some("host_pid: true")),
        ("HostConfig.PidMode", json!("container:stranger"), None),
        ("HostConfig.PidMode", json!("ns:/proc/1/ns/pid"), None),
        ("HostConfig.IpcMode", json!("host"), Some("host_ipc: true")),
        ("HostConfig.IpcMode", json!("container:stranger"), None),
        (
            "HostConfig.UsernsMode",
            json!("host"),
            Some("host_userns: true"),
        ),
        ("HostConfig.UsernsMode", json!("container:stranger"), None),
        ("HostConfig.UTSMode", json!("host"), None),
        ("HostConfig.CgroupnsMode", json!("host"), None),
        ("HostConfig.Cgroup", json!("container:stranger"), None),
        (
            "NetworkingConfig",
            json!({ "EndpointsConfig": { "host": {} } }),
            Some("host_network: true"),
        ),
        (
            "NetworkingConfig",
            json!({ "EndpointsConfig": { "stranger": {} } }),
            None,
        ),
        (
            "NetworkingConfig",
            json!({ "EndpointsConfig": { "bridge": { "DriverOpts": { "a": "b" } } } }),
            None,
        ),
        (
            "NetworkingConfig",
            json!({ "EndpointsConfig": { "bridge": { "MacAddress": "02:42:ac:11:00:02" } } }),
            None,
        ),
        (
            "NetworkingConfig",
            json!({ "EndpointsConfig": { "bridge": { "Links": ["stranger"] } } }),
            None,
        ),
        // The device's files, in each of the engine's spellings.
        ("HostConfig.Binds", json!(["/var/run/docker.sock:/s"]), sock),
        (
            "HostConfig.Binds",
            json!(["/run/docker.sock:/s:ro"]),
            sock_ro,
        ),
        (
            "HostConfig.Binds",
            json!(["/var/lib/../run/docker.sock:/s"]),
            sock,
        ),
        (
            "HostConfig.Binds",
            json!(["//run//docker.sock:/s:rw"]),
            sock,
        ),
        (
            "HostConfig.Binds",
            json!(["/./run/./docker.sock:/s:rw,rprivate"]),
            sock,
        ),
        ("HostConfig.Binds", json!(["/:/host"]), root),
        ("HostConfig.Binds", json!(["/..:/host:rshared"]), root),
        ("HostConfig.Binds", json!(["/etc:/x"]), etc),
        ("HostConfig.Binds", json!(["/etc:/x:z"]), None),
        ("HostConfig.Binds", json!(["fine:/x", "/etc:/y"]), etc),
        ("HostConfig.Binds", json!(["../etc:/x"]), None),
        ("HostConfig.Binds", json!(["/a:/b:/c:ro"]), None),
        ("HostConfig.Binds", json!(["/x"]), None),
        ("HostConfig.Mounts", bind("/var/run/docker.sock"), sock),
        (
            "HostConfig.Mounts",
            bind_ro("/var/run/../run/docker.sock"),
            sock_ro,
        ),
        ("HostConfig.Mounts", bind("/"), root),
        ("HostConfig.Mounts", bind("/etc/"), etc),
        ("HostConfig.Mounts", bind(""), None),
        (
            "HostConfig.Mounts",
            json!([{ "Type": "bind", "Source": "/etc", "Target": "/x",
            "VolumeOptions": {} }]),
            None,
        ),
        (
            "HostConfig.Mounts",
            json!([{ "Type": "bind", "Source": "/etc", "Target": "/x",
            "BindOptions": { "NonRecursive": true } }]),
            None,
        ),
        (
            "HostConfig.Mounts",
            json!([{ "Type": "volume", "Source": "/etc", "Target": "/x" }]),
            None,
        ),
        (
            "HostConfig.Mounts",
            driver(
                json!({ "Name": "local", "Options": { "type": "none", "o": "bind", "device": "/etc" } }),
            ),
            None,
        ),
        (
            "HostConfig.Mounts",
            driver(json!({ "Options": { "type": "nfs", "o": "addr=10.0.0.1", "device": ":/" } })),
            None,
        ),
        (
            "HostConfig.Mounts",
            driver(json!({ "Name": "vieux/sshfs" })),
            None,
        ),
        (
            "HostConfig.Mounts",
            json!([{ "Type": "volume", "Source": "v", "Target": "/x",
            "VolumeOptions": { "Subpath": "../.." } }]),
            None,
        ),
        (
            "HostConfig.Mounts",
            json!([{ "Type": "npipe", "Source": "x", "Target": "/x" }]),
            None,
        ),
        (
            "HostConfig.Mounts",
            json!([{ "Type": "image", "Source": "x", "Target": "/x" }]),
            None,
        ),
        (
            "HostConfig.Mounts",
            json!([{ "Type": "cluster", "Source": "x", "Target": "/x" }]),
            None,
        ),
        (
            "HostConfig.Mounts",
            json!([{ "Type": "tmpfs", "Source": "/etc", "Target": "/x" }]),
            None,
        ),
        (
            "HostConfig.Mounts",
            json!([{ "Source": "/etc", "Target": "/x" }]),
            None,
        ),
        ("HostConfig.VolumesFrom", json!(["stranger"]), None),
        ("HostConfig.VolumeDriver", json!("vieux/sshfs"), None),
        (
            "HostConfig.Devices",
            json!([{ "PathOnHost": "/dev/sda", "PathInContainer": "/dev/x", "CgroupPermissions": "rwm" }]),
            Some("devices: [/dev/sda]"),
        ),
        (
            "HostConfig.Devices",
            json!([{ "PathOnHost": "/dev/../dev//sda" }]),
            Some("devices: ['/dev/sd*']"),
        ),
        (
            "HostConfig.Devices",
            json!([{ "PathInContainer": "/dev/x" }]),
            None,
        ),
        ("HostConfig.DeviceCgroupRules", json!(["a *:* rwm"]), None),
        (
            "HostConfig.DeviceRequests",
            json!([{ "Count": -1, "Capabilities": [["gpu"]] }]),
            None,
        ),
        // What uncovers, escapes or outlives.
        ("HostConfig.MaskedPaths", json!([]), None),
        ("HostConfig.ReadonlyPaths", json!([]), None),
        ("HostConfig.CgroupParent", json!("/"), None),
        ("HostConfig.OomScoreAdj", json!(-1000), None),
        ("HostConfig.OomKillDisable", json!(true), None),
        ("HostConfig.CpuRealtimeRuntime", json!(950_000), None),
        ("HostConfig.CpuShares", json!(262_144), None),
        ("HostConfig.MemorySwap", json!(-1), None),
        ("HostConfig.StorageOpt", json!({ "size": "1T" }), None),
        ("HostConfig.ContainerIDFile", json!("/etc/passwd"), None),
        ("HostConfig.AutoRemove", json!(true), None),
        ("HostConfig.PublishAllPorts", json!(true), None),
        ("HostConfig.Links", json!(["stranger:x"]), None),
        (
            "HostConfig.Annotations",
            json!({ "run.oci.keep_original_groups": "1" }),
            None,
        ),
        ("HostConfig.Isolation", json!("hyperv"), None),
        ("Volumes", json!({ "/x": {} }), None),
        ("OpenStdin", json!(true), None),
        (
            "Image",
            json!(format!("ghcr.io/team/app@{DIGEST}")),
            Some("registries: [docker.io, ghcr.io/team]"),
        ),
        (
            "Image",
            json!(format!("docker.io.evil.example/library/web@{DIGEST}")),
            Some("registries: ['*']"),
        ),
        ("Image", json!("..."), None),
    ]
}

#[test]
fn a_release_of_the_agent_is_judged_by_its_registry_alone() {
    let ceilings = "registries: [docker.io]\nceilings: { memory: 64m }";
    let refused = |policy: &str, config: &Value| {
        let target = target(config);
        refusals(
            &self::policy(policy),
            &target.uuid,
            &target,
            Path::new(RUNTIME_DIR),
        )
    };
    let agent = json!({ "x-holdfast": { "agent": true } });
    assert!(refused(ceilings, &agent).is_empty());
    assert_eq!(
        refused(ceilings, &json!({})).len(),
        1,
        "a container needs a limit"
    );
    let elsewhere = "registries: [registry.example]";
    assert_eq!(refused(elsewhere, &agent).len(), 1);
}

#[test]
fn each_spelling_of_a_way_out_is_refused_under_a_strict_policy() {
    let corpus = corpus();
    assert!(corpus.len() >= 60, "{}", corpus.len());
    let policy = policy(STRICT);
    for (path, value, _) in corpus {
        let refused = judge(&policy, &body_with(path, &value));
        let refusal = refused.expect_err(&format!("{path} = {value} was let through"));
        assert!(
            refusal.field.starts_with(path),
            "{path} = {value}: {refusal}"
        );
        assert!(!refusal.why.is_empty());
    }
}

#[test]
fn each_that_can_be_listed_is_allowed_when_it_is_and_the_rest_never() {
    let corpus = corpus();
    let lines: Vec<&str> = corpus.iter().filter_map(|(_, _, line)| *line).collect();
    for (path, value, allowing) in &corpus {
        let body = body_with(path, value);
        for line in &lines {
            let text = if line.starts_with("registries") {
                (*line).to_owned()
            } else {
                format!("{STRICT}\n{line}")
            };
            let allowed = judge(&policy(&text), &body).is_ok();
            if Some(*line) == *allowing {
                assert!(allowed, "{path} = {value} is not allowed by {line}");
            } else if allowing.is_none() {
                assert!(!allowed, "{path} = {value} is allowed by {line}");
            }
        }
    }
}

#[test]
fn without_a_policy_file_nothing_is_restricted() {
    for (path, value, _) in corpus() {
        assert_eq!(
            judge(&Policy::unrestricted(), &body_with(path, &value)),
            Ok(())
        );
    }
}

#[test]
fn a_read_only_path_is_not_given_for_writing_and_only_itself_unless_it_says_below() {
    let rules = "registries: ['*']\nbind_mounts: [{path: /etc/app}, {path: /srv/www, below: true}]";
    let policy = policy(rules);
    let allowed =
        |text: &str| judge(&policy, &body_with("HostConfig.Binds", &json!([text]))).is_ok();
    assert!(allowed("/etc/app:/x:ro"));
    assert!(!allowed("/etc/app:/x"));
    assert!(!allowed("/etc/app:/x:rw"));
    assert!(!allowed("/etc/app/sub:/x:ro"));
    assert!(!allowed("/etc/application:/x:ro"));
    assert!(!allowed("/etc:/x:ro"));
    assert!(allowed("/srv/www:/x:ro"));
    assert!(allowed("/srv/www/a/b:/x:ro"));
    assert!(!allowed("/srv/www/a:/x"));
    assert!(!allowed("/srv/www/../secret:/x:ro"));
    assert!(!allowed("/srv/www2:/x:ro"));
}

#[test]
fn nothing_below_proc_is_below_anything() {
    let policy = policy("registries: ['*']\nbind_mounts: [{path: /proc, below: true}]");
    let allowed =
        |text: &str| judge(&policy, &body_with("HostConfig.Binds", &json!([text]))).is_ok();
    assert!(allowed("/proc:/x:ro"));
    assert!(!allowed("/proc/1/root:/x:ro"));
}

#[test]
fn a_container_may_join_only_what_was_made_for_it() {
    let policy = policy(STRICT);
    let ours = Ours {
        files: None,
        containers: &["c1"],
        networks: &["app-net"],
        own_image: false,
    };
    let allowed =
        |path: &str, value: Value| container(&policy, &body_with(path, &value), &ours).is_ok();
    assert!(allowed("HostConfig.NetworkMode", json!("container:c1")));
    assert!(allowed("HostConfig.NetworkMode", json!("app-net")));
    assert!(allowed("HostConfig.PidMode", json!("container:c1")));
    assert!(!allowed("HostConfig.NetworkMode", json!("container:c2")));
    assert!(!allowed(
        "HostConfig.NetworkMode",
        json!("container:app-net")
    ));
    assert!(!allowed("HostConfig.UsernsMode", json!("container:c1")));
    let attached = json!({ "EndpointsConfig": { "app-net": { "Aliases": ["web"] } } });
    assert!(allowed("NetworkingConfig", attached));
}

#[test]
fn a_ceiling_is_exceeded_by_more_and_by_no_limit_at_all() {
    let policy = policy("registries: ['*']\nceilings: {memory: 64m, cpus: 0.5, pids: 100}");
    let judge = |config: Value| judge(&policy, &body_of(&config)).map_err(|refusal| refusal.field);
    let within = json!({ "mem_limit": "64m", "cpus": 0.5, "pids_limit": 100 });
    assert_eq!(judge(within.clone()), Ok(()));
    for (key, value, field) in [
        ("mem_limit", json!("65m"), "Memory"),
        ("mem_limit", json!(0), "Memory"),
        ("mem_limit", Value::Null, "Memory"),
        ("cpus", json!(0.6), "NanoCpus"),
        ("cpus", Value::Null, "NanoCpus"),
        ("pids_limit", json!(101), "PidsLimit"),
        ("pids_limit", json!(-1), "PidsLimit"),
        ("pids_limit", Value::Null, "PidsLimit"),
    ] {
        let mut config = within.clone();
        config[key] = value;
        if config[key].is_null() {
            config.as_object_mut().unwrap().remove(key);
        }
        assert_eq!(judge(config), Err(format!("HostConfig.{field}")));
    }
}

#[test]
fn the_agents_own_container_needs_no_registry_and_no_limit() {
    let policy = policy("registries: [ghcr.io]\nceilings: {memory: 64m}");
    let own = |path: &str, value: Value| {
        let ours = Ours {
            own_image: true,
            ..Ours::default()
        };
        container(&policy, &body_with(path, &value), &ours).is_ok()
    };
    assert!(own("Image", json!("holdfast/pause:1")));
    assert!(!own("HostConfig.Privileged", json!(true)));
}

#[test]
fn ports_are_published_anywhere_unless_the_policy_says_where() {
    let spec = |port: &str| body_of(&json!({ "ports": [port] }));
    let open = policy(STRICT);
    let narrow = policy("registries: ['*']\nports: {host_ips: [127.0.0.1], range: 8000-8999}");
    let allowed = |policy: &Policy, port: &str| judge(policy, &spec(port)).is_ok();
    for port in ["80:80", "127.0.0.1:8080:80", "80", "[::1]:8080:80"] {
        assert!(allowed(&open, port), "{port}");
    }
    assert!(allowed(&narrow, "127.0.0.1:8080:80"));
    for port in [
        "8080:80",
        "0.0.0.0:8080:80",
        "[::]:8080:80",
        "127.0.0.1:80:80",
        "127.0.0.1::80",
        "127.0.0.2:8080:80",
    ] {
        assert!(!allowed(&narrow, port), "{port}");
    }
    let everywhere = policy("registries: ['*']\nports: {host_ips: [0.0.0.0]}");
    assert!(allowed(&everywhere, "8080:80"));
    assert!(!allowed(&everywhere, "127.0.0.1:8080:80"));
    for bindings in [
        json!({ "80/tcp": null }),
        json!({ "80/tcp": [] }),
        json!({ "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "8000-9000" }] }),
        json!({ "80/tcp": [{ "HostIp": "localhost", "HostPort": "8000" }] }),
    ] {
        let body = body_with("HostConfig.PortBindings", &bindings);
        assert!(judge(&narrow, &body).is_err(), "{bindings}");
    }
}

#[test]
fn only_a_plain_bridge_is_made() {
    let judge = |value: Value| network(&policy(STRICT), &serde_json::from_value(value).unwrap());
    assert_eq!(
        judge(json!({ "Name": "n", "Driver": "bridge", "Labels": { "a": "b" } })),
        Ok(())
    );
    for (key, value) in [
        ("Driver", json!("macvlan")),
        ("Driver", json!("host")),
        (
            "Options",
            json!({ "com.docker.network.bridge.name": "docker0" }),
        ),
        ("IPAM", json!({ "Config": [{ "Subnet": "10.0.0.0/8" }] })),
        ("ConfigFrom", json!({ "Network": "x" })),
        ("Scope", json!("swarm")),
    ] {
        let refused = judge(json!({ "Name": "n", key: value })).unwrap_err();
        assert_eq!(refused.field, key);
    }
}

#[test]
fn a_target_says_of_each_service_why_it_is_held() {
    let refused = |config: Value| {
        let device = DEVICE.parse().unwrap();
        let folder = Path::new(RUNTIME_DIR);
        refusals(&policy(STRICT), &device, &target(&config), folder)
    };
    let found = refused(json!({ "privileged": true }));
    let (key, why) = found.first_key_value().unwrap();
    assert_eq!(key.to_string(), "1001/web");
    assert_eq!(
        why,
        "this device's policy does not allow `HostConfig.Privileged`: \
         it gives a container all rights on the device"
    );
    assert!(refused(json!({ "ports": ["80:80"], "volumes": ["data:/data"] })).is_empty());
}

#[test]
fn an_image_is_judged_before_it_is_fetched() {
    let (policy, platform) = (policy(STRICT), Platform::new("linux", "amd64", None));
    let judge = |policy: &Policy, pinned: &str, from: &str| {
        let asked = Fetch {
            pinned,
            from,
            platform: &platform,
            auth: None,
            no_progress_ms: 1,
        };
        fetch(policy, &asked)
    };
    let allowed = format!("web@{DIGEST}");
    let other = format!("ghcr.io/web@{DIGEST}");
    let transit = format!("127.0.0.1:4711/{}/web@{DIGEST}", "0".repeat(32));
    assert_eq!(judge(&policy, &allowed, &allowed), Ok(()));
    assert_eq!(judge(&policy, &allowed, &transit), Ok(()));
    assert!(judge(&policy, &allowed, &other).is_err());
    assert!(judge(&policy, &other, &other).is_err());
    assert!(judge(&policy, &other, &transit).is_err());
    let free = Policy::unrestricted();
    assert_eq!(judge(&free, "x.example/y", "x.example/y"), Ok(()));
    assert!(judge(&free, &allowed, &other).is_err());
}

/// Specs that a policy of these lines allows, made of any of these parts.
const GENEROUS: &str = "
registries: [docker.io]
bind_mounts: [{path: /etc/app}, {path: /srv/data, read_only: false}]
devices: ['/dev/ttyUSB*']
capabilities: [NET_ADMIN]
sysctls: [net.core.somaxconn]
ulimits: [nofile]
ceilings: {memory: 1g, cpus: 2, pids: 500}
ports: {range: 1024-65535}
";

fn allowed_parts() -> Vec<(&'static str, Value)> {
    vec![
        ("command", json!("sleep 1")),
        ("environment", json!({ "A": "b" })),
        ("ports", json!(["8080:80", "127.0.0.1:8443:443/udp"])),
        (
            "volumes",
            json!(["data:/data", "/etc/app:/etc/app:ro", "/srv/data:/d"]),
        ),
        ("tmpfs", json!(["/run:size=1m"])),
        ("network_mode", json!("none")),
        ("restart", json!("always")),
        ("healthcheck", json!({ "test": "true" })),
        ("devices", json!(["/dev/ttyUSB3:/dev/modem:rw"])),
        ("cap_add", json!(["NET_ADMIN"])),
        ("cap_drop", json!(["ALL"])),
        ("user", json!("1000:1000")),
        ("working_dir", json!("/app")),
        ("hostname", json!("web")),
        ("extra_hosts", json!(["db:10.0.0.2"])),
        ("dns", json!(["1.1.1.1"])),
        ("labels", json!({ "team": "blue" })),
        (
            "logging",
            json!({ "driver": "json-file", "options": { "max-size": "1m" } }),
        ),
        ("ulimits", json!({ "nofile": 1024 })),
        ("sysctls", json!({ "net.core.somaxconn": "512" })),
        ("security_opt", json!(["no-new-privileges:true"])),
        ("read_only", json!(true)),
        ("init", json!(true)),
        ("stop_signal", json!("SIGINT")),
        ("stop_grace_period", json!("3s")),
        ("shm_size", json!("16m")),
        ("group_add", json!(["20"])),
        ("ipc", json!("shareable")),
    ]
}

fn spec_within() -> impl Strategy<Value = Value> {
    let parts = allowed_parts();
    let most = parts.len();
    proptest::sample::subsequence(parts, 0..=most).prop_map(|parts| {
        let mut config = json!({ "mem_limit": "512m", "cpus": 1.5, "pids_limit": 64 });
        for (name, value) in parts {
            config[name] = value;
        }
        // A service without a network of its own publishes nothing.
        if config["network_mode"] == "none" {
            config.as_object_mut().unwrap().remove("ports");
        }
        config
    })
}

proptest! {
    #[test]
    fn what_the_policy_lists_passes_however_it_is_combined(config in spec_within()) {
        prop_assert_eq!(judge(&policy(GENEROUS), &body_of(&config)), Ok(()));
    }

    #[test]
    fn one_forbidden_field_is_enough(
        config in spec_within(),
        (path, value, _) in proptest::sample::select(corpus()),
    ) {
        let mut body = serde_json::to_value(body_of(&config)).unwrap();
        let forbidden = serde_json::to_value(body_with(path, &value)).unwrap();
        let (mut member, mut from) = (&mut body, &forbidden);
        for part in path.split('.') {
            member = &mut member[part];
            from = &from[part];
        }
        *member = from.clone();
        let body: ContainerCreateBody = serde_json::from_value(body).unwrap();
        prop_assert!(judge(&policy(GENEROUS), &body).is_err(), "{} = {}", path, value);
    }
}
