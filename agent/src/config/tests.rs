//! Facts about the settings.

use super::*;

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Settings, String> {
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Settings::parse(Path::new("agent.yaml"), text, &environment).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let settings = parse("", &[]).unwrap();
    assert_eq!(settings.state_dir, Path::new("/var/lib/holdfast"));
    assert_eq!(settings.docker.socket, Path::new("/var/run/docker.sock"));
    assert_eq!(settings.poll.interval_seconds, None);
    assert_eq!(settings.report.heartbeat_seconds, 60);
    assert_eq!(settings.gate.stable_seconds, 10);
    assert_eq!(settings.gate.healthy_timeout_seconds, 120);
    assert_eq!(settings.pull.no_progress_seconds, 60);
    assert_eq!(settings.disk.reserve_mb, 64);
    assert_eq!(settings.updates.windows, []);
    assert_eq!(settings.updates.lock_dir, Path::new("/run/holdfast/locks"));
    assert_eq!(
        settings.local_api.socket,
        Path::new("/run/holdfast/agent.sock")
    );
    assert_eq!(settings.log.level, Level::INFO);
}

#[test]
fn the_launcher_finds_the_state_folder_in_files_that_it_does_not_understand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.yaml");
    let found = |text: &str, environment: &[(String, String)]| {
        std::fs::write(&path, text).unwrap();
        Settings::state_dir(&path, environment)
    };
    let none: [(String, String); 0] = [];
    assert_eq!(found("news: 1\nstate_dir: /x", &none), Path::new("/x"));
    for text in ["", "{", "state_dir: [1]", "- 1"] {
        assert_eq!(found(text, &none), Path::new(DEFAULT_STATE_DIR), "{text}");
    }
    let environment = [("HOLDFAST_STATE_DIR".to_owned(), "/y".to_owned())];
    assert_eq!(found("state_dir: /x", &environment), Path::new("/y"));
    let missing = folder.path().join("none");
    assert_eq!(
        Settings::state_dir(&missing, &none),
        Path::new(DEFAULT_STATE_DIR)
    );
}

#[test]
fn a_key_that_is_none_is_named() {
    let key = "RWS10srXbyuLybZ+d2xI6RJQf7xIdgFKxVG15YOGgtHAWnBzc3GjTZGf";
    let settings = parse(&format!("update: {{keys: ['{key}']}}"), &[]).unwrap();
    assert_eq!(settings.update.keys, [key]);
    let refused = parse(&format!("update: {{keys: ['{key}', 'x']}}"), &[]).unwrap_err();
    assert!(
        refused.starts_with("update.keys[1]: it is not a minisign public key"),
        "{refused}"
    );
}

#[test]
fn the_environment_wins_over_the_file() {
    let file = "api: {url: 'https://one.example'}\nlog: {level: warn}\ngate: {stable_seconds: 3}";
    let settings = parse(
        file,
        &[
            ("HOLDFAST_API__URL", "http://127.0.0.1:8080"),
            ("HOLDFAST_GATE__STABLE_SECONDS", "7"),
            ("HOLDFAST_STATE_DIR", "/tmp/x"),
            ("HOLDFAST_DEVICE__LABELS__SITE", "berlin"),
            ("HOLDFAST_SERVER_TOKEN", "another program's"),
        ],
    )
    .unwrap();
    assert_eq!(
        settings.api.url.unwrap().to_string(),
        "http://127.0.0.1:8080"
    );
    assert_eq!(settings.gate.stable_seconds, 7);
    assert_eq!(settings.log.level, Level::WARN);
    assert_eq!(settings.state_dir, Path::new("/tmp/x"));
    assert_eq!(settings.device.labels["site"], "berlin");
}

#[test]
fn docker_host_counts_unless_the_file_names_a_socket() {
    let host = [("DOCKER_HOST", "unix:///a.sock")];
    assert_eq!(
        parse("", &host).unwrap().docker.socket,
        Path::new("/a.sock")
    );
    let file = "docker: {socket: /b.sock}";
    assert_eq!(
        parse(file, &host).unwrap().docker.socket,
        Path::new("/b.sock")
    );
    let refused = parse("", &[("DOCKER_HOST", "tcp://1.2.3.4:2375")]).unwrap_err();
    assert!(
        refused.starts_with("docker.socket: ") && refused.contains("unix://"),
        "{refused}"
    );
}

#[test]
fn faults_name_the_key_and_what_to_write() {
    for (file, expected) in [
        ("apy: {}", "unknown field `apy`"),
        ("api: {uri: x}", "api"),
        ("poll: {interval_seconds: soon}", "poll.interval_seconds: "),
        (
            "poll: {interval_seconds: 0}",
            "poll.interval_seconds: 0 is out of range, write 1 to 86400 seconds",
        ),
        (
            "log: {format: xml}",
            "log.format: `xml` is unknown, write text, json",
        ),
        ("api: {url: 'ftp://x'}", "api.url: "),
        ("api: {url: 'https://user:pw@x'}", "api.url: "),
        ("state_dir: here", "state_dir: write an absolute path"),
        (
            "local_api: {socket: s}",
            "local_api.socket: write an absolute path",
        ),
        (
            "updates: {windows: [{start: '22:00', end: '25:00', timezone: UTC}]}",
            "updates.windows[0].end: `25:00` is no time of day",
        ),
        (
            "updates: {windows: [{start: '22:00', end: '04:00', timezone: Europe/Berlingo}]}",
            "updates.windows[0].timezone: there is no time zone Europe/Berlingo",
        ),
        (
            "pull: {fetch: nobody}",
            "pull.fetch: `nobody` is unknown, write agent, engine",
        ),
        ("pull: {spool_mb: 0}", "pull.spool_mb: 0 is out of range"),
        (
            "pull: {most_bytes_per_second: 10}",
            "pull.most_bytes_per_second: 10 is too little",
        ),
        (
            "pull: {registries: {reg.example: {mirrors: ['https://m']}}}",
            "pull.registries.reg.example.mirrors[0]: ",
        ),
        (
            "pull: {registries: {reg.example/team: {plain_http: true}}}",
            "pull.registries.reg.example/team: write the registry as references name it",
        ),
        (
            "pull: {credentials_file: config.json}",
            "pull.credentials_file: write an absolute path",
        ),
        ("peers: {ask: ['a:1']}", "peers.key_file: name the file"),
        (
            "peers: {key_file: /k, ask: ['http://a:1']}",
            "peers.ask[0]: `http://a:1` is no host with a port",
        ),
        (
            "peers: {key_file: /k, listen: '7411'}",
            "peers.listen: `7411` is no address with a port",
        ),
        ("policy: {file: x}", "policy.file: write an absolute path"),
        ("api: {ca_file: /no/such}", "api.ca_file: there is no file"),
        ("[1", "agent.yaml is not valid YAML"),
    ] {
        let fault = parse(file, &[]).unwrap_err();
        assert!(fault.contains(expected), "{file}: {fault}");
    }
}

#[test]
fn every_fault_is_named_at_once() {
    let faults = parse(
        "{state_dir: x, gate: {stable_seconds: 0}, log: {level: loud}}",
        &[],
    );
    assert_eq!(faults.unwrap_err().lines().count(), 3);
}

#[test]
fn a_missing_file_is_a_fault_only_when_it_was_named() {
    let missing = Path::new("/no/such/agent.yaml");
    assert!(Settings::load(missing, false, &[]).is_ok());
    assert!(Settings::load(missing, true, &[]).is_err());
}
