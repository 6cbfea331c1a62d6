//! The service spec as a list of facts.

use super::*;
use crate::problem::{Pointer, parse_json};

/// One service with every field the contract names, in the forms people write.
const EVERYTHING: &str = r#"
image: nginx:1.27
command: nginx -g 'daemon off;'
entrypoint: ["/docker-entrypoint.sh"]
environment: [A=1, "B=two words"]
ports: ["80:80", "127.0.0.1:8443:443/tcp", 9000]
volumes: ["data:/data", "/etc/app:/etc/app:ro", {type: tmpfs, target: /scratch}]
tmpfs: /run
networks: {front: {aliases: [web]}, back: null}
restart: unless-stopped
healthcheck: {test: ["CMD", "true"], interval: 10s, timeout: 2s, retries: 3, start_period: 1m, start_interval: 1s}
depends_on: {db: {condition: service_healthy}}
devices: ["/dev/ttyUSB0", "/dev/a:/dev/b:r"]
privileged: false
cap_add: [NET_ADMIN]
cap_drop: [ALL]
user: 1000
working_dir: /srv
hostname: web
extra_hosts: ["db.local:10.0.0.1", "gw=host-gateway"]
dns: 1.1.1.1
labels: {com.example.team: web}
logging: {driver: json-file, options: {max-size: 10m, max-file: 3}}
ulimits: {nofile: {soft: 1024, hard: 2048}, nproc: 100}
sysctls: {net.core.somaxconn: 1024}
security_opt: ["no-new-privileges:true"]
read_only: true
init: true
stop_signal: SIGINT
stop_grace_period: 1m30s
mem_limit: 64m
cpus: 0.5
pids_limit: 100
deploy: {resources: {reservations: {memory: 32m, cpus: "0.1"}}}
shm_size: 64m
group_add: [video, 44]
userns_mode: host
pid: host
ipc: private
runtime: runc
secrets: [{source: key, target: /run/secrets/key, mode: 256, content: s3cret}]
configs: [{source: app.conf, content: "a=1"}]
x-holdfast:
  strategy: kill-then-download
  sandbox: false
  soak: 30s
  probe: {http: {port: 8080, path: /health}, interval: 2s}
  windows: [{days: [sat, sun], start: "22:00", end: "04:00", timezone: Europe/Berlin}]
  priority: 10
x-note: anything
"#;

fn everything() -> ServiceSpec {
    serde_yaml::from_str(EVERYTHING).unwrap()
}

fn errors(json: &str) -> Vec<String> {
    match parse_json::<ServiceSpec>(json.as_bytes()) {
        Ok(spec) => {
            let mut errors = Vec::new();
            spec.check(&Pointer::default(), &mut errors);
            errors.iter().map(ToString::to_string).collect()
        }
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn every_field_of_the_contract_is_read_and_valid() {
    let spec = everything();
    let mut errors = Vec::new();
    spec.check(&Pointer::default(), &mut errors);
    assert_eq!(errors, []);
    assert_eq!(
        spec.command.as_ref().unwrap().0,
        ["nginx", "-g", "daemon off;"]
    );
    assert_eq!(spec.user.as_deref(), Some("1000"));
    assert_eq!(spec.restart, Some(RestartPolicy::UnlessStopped));
    assert_eq!(spec.stop_grace_period.unwrap().as_millis(), 90_000);
    assert_eq!(spec.mem_limit, Some(ByteSize(64 << 20)));
    assert_eq!(spec.networks.len(), 2);
}

#[test]
fn the_canonical_form_reads_back_as_itself() {
    let once = serde_json::to_string(&everything()).unwrap();
    let again: ServiceSpec = serde_json::from_str(&once).unwrap();
    assert_eq!(again, everything());
    assert_eq!(serde_json::to_string(&again).unwrap(), once);
}

#[test]
fn the_list_of_fields_is_the_struct() {
    let written = serde_json::to_value(everything()).unwrap();
    let written = written.as_object().unwrap();
    let unset = ["network_mode", "privileged"];
    for (name, what) in FIELDS {
        let refused = what.starts_with("not accepted");
        assert_eq!(
            written.contains_key(name),
            !refused && !unset.contains(&name),
            "{name} in the test's service"
        );
    }
    for name in written.keys().filter(|name| *name != "x-note") {
        assert!(
            FIELDS.iter().any(|(known, _)| known == name),
            "{name} in FIELDS"
        );
    }
}

#[test]
fn an_unsupported_field_is_named_never_dropped() {
    assert_eq!(errors(r#"{"x-any":{"a":1}}"#), Vec::<String>::new());
    assert!(errors(r#"{"prots":["80:80"]}"#)[0].starts_with("/prots: unknown field"));
    assert!(errors(r#"{"build":"."}"#)[0].starts_with("/build: `build` is not accepted"));
    assert!(
        errors(r#"{"deploy":{"replicas":2}}"#)[0].starts_with("/deploy/replicas: unknown field")
    );
}

#[test]
fn a_fault_names_its_field() {
    for (json, pointer) in [
        (r#"{"ports":["80:80","99999:1"]}"#, "/ports/1"),
        (r#"{"restart":"sometimes"}"#, "/restart"),
        (r#"{"mem_limit":"lots"}"#, "/mem_limit"),
        (r#"{"environment":{"A":null}}"#, "/environment"),
        (r#"{"privileged":"yes"}"#, "/privileged"),
        (r#"{"volumes":["./x:/x"]}"#, "/volumes/0"),
        (r#"{"healthcheck":{"test":["RUN"]}}"#, "/healthcheck/test"),
        (
            r#"{"ulimits":{"nofile":{"soft":2,"hard":1}}}"#,
            "/ulimits/nofile",
        ),
        (
            r#"{"labels":{"io.holdfast.device":"x"}}"#,
            "/labels/io.holdfast.device",
        ),
        (r#"{"ports":["80:80","80:81"]}"#, "/ports/1"),
        (r#"{"network_mode":"host","ports":["80:80"]}"#, "/ports"),
        (r#"{"network_mode":"container:x"}"#, "/network_mode"),
        (r#"{"pids_limit":0}"#, "/pids_limit"),
        (r#"{"mem_limit":"1k"}"#, "/mem_limit"),
        (r#"{"working_dir":"x"}"#, "/working_dir"),
        (r#"{"secrets":["name"]}"#, "/secrets/0"),
        (r#"{"volumes":["a1:/x","b1:/x"]}"#, "/volumes/1"),
    ] {
        let found = errors(json);
        assert!(
            found
                .iter()
                .any(|error| error.starts_with(&format!("{pointer}: "))),
            "{json}: {found:?}"
        );
    }
}
