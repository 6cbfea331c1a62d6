//! Facts about the configuration.

use super::*;

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn faults(text: &str) -> Vec<String> {
    load(Some(file(text).path()), []).map_or_else(
        |error| error.0.into_iter().map(|fault| fault.path).collect(),
        |_| Vec::new(),
    )
}

#[test]
fn an_empty_configuration_is_sqlite_on_loopback() {
    let settings = load(None, []).unwrap();
    assert_eq!(settings.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(
        settings.location,
        Location::Sqlite("/var/lib/holdfast-api/holdfast.db".into())
    );
    assert_eq!(settings.poll_interval_s, 30);
    assert_eq!(settings.digest_cache_s, 300);
    assert_eq!(settings.webhook_secret, None);
    assert_eq!(settings.refresh_interval, Some(Duration::from_mins(15)));
    assert_eq!(
        settings.credentials_key_file,
        PathBuf::from("/var/lib/holdfast-api/credentials-key")
    );
}

#[test]
fn tags_are_asked_for_as_often_as_configured_or_never() {
    let interval = |seconds| {
        let text = format!("refresh: {{interval_seconds: {seconds}}}");
        load(Some(file(&text).path()), []).map(|settings| settings.refresh_interval)
    };
    assert_eq!(interval(0), Ok(None));
    assert_eq!(interval(60), Ok(Some(Duration::from_mins(1))));
    let week_and_more = faults("refresh: {interval_seconds: 604801}");
    assert_eq!(week_and_more, ["refresh.interval_seconds"]);
}

#[test]
fn the_environment_overrides_the_file() {
    let file = file("listen: 127.0.0.1:1\nlog: {level: warn, format: json}\n");
    let settings = load(
        Some(file.path()),
        env(&[
            ("HOLDFAST_API_LISTEN", "127.0.0.1:2"),
            ("HOLDFAST_API_LOG__LEVEL", "debug"),
            ("HOLDFAST_API_POLL__INTERVAL_SECONDS", "5"),
            (
                "HOLDFAST_API_REGISTRIES",
                "[{host: 'localhost:5000', plain_http: true}]",
            ),
            ("HOLDFAST_API_CONFIG", "ignored"),
            ("HOLDFAST_API__URL", "the agent's"),
            ("PATH", "/bin"),
        ]),
    )
    .unwrap();
    assert_eq!(settings.listen.port(), 2);
    assert_eq!(settings.log.level, "debug");
    assert_eq!(settings.log.format, LogFormat::Json);
    assert_eq!(settings.poll_interval_s, 5);
    assert!(settings.registries[0].plain_http);
}

#[test]
fn a_fault_names_the_path_of_its_key() {
    assert_eq!(faults("listn: x"), ["listn"]);
    assert_eq!(faults("listen: x"), ["listen"]);
    assert_eq!(faults("log: {format: xml}"), ["log.format"]);
    assert_eq!(faults("log: {level: 'a=b=c'}"), ["log.level"]);
    assert_eq!(
        faults("poll: {interval_seconds: 0}"),
        ["poll.interval_seconds"]
    );
    assert_eq!(
        faults("poll: {interval_seconds: x}"),
        ["poll.interval_seconds"]
    );
    assert_eq!(
        faults("digest_cache_seconds: 3601"),
        ["digest_cache_seconds"]
    );
    assert_eq!(faults("database: mysql://x"), ["database"]);
    assert_eq!(
        faults("registries: [{host: a}, {hots: b}]"),
        ["registries[1].hots"]
    );
    assert_eq!(
        faults("registries: [{host: 'http://a'}]"),
        ["registries[0].host"]
    );
    assert_eq!(
        faults("registries: [{host: a, username: u}]"),
        ["registries[0].password"]
    );
    assert_eq!(faults("registries: [{host: a}, {host: a}]"), ["registries"]);
    assert_eq!(faults("webhooks: {secret: short}"), ["webhooks.secret"]);
}

#[test]
fn every_fault_is_named_at_once() {
    assert_eq!(faults("listen: x\ndatabase: y"), ["listen", "database"]);
}

#[test]
fn secrets_come_from_files_and_never_show() {
    let secret = file("canary-canary-canary\n");
    let config = file(&format!(
        "database: postgres://u:canary@h/d\nwebhooks: {{secret_file: {}}}\n\
         registries: [{{host: a, username: u, password: canary}}]\n",
        secret.path().display()
    ));
    let settings = load(Some(config.path()), []).unwrap();
    assert_eq!(
        settings.webhook_secret.as_ref().map(Secret::expose),
        Some("canary-canary-canary")
    );
    assert!(!format!("{settings:?}").contains("canary"));
}

#[test]
fn a_broken_environment_value_is_not_quoted_in_the_error() {
    let error = load(
        None,
        env(&[("HOLDFAST_API_REGISTRIES", "[{host: a, password: canary")]),
    )
    .unwrap_err();
    assert!(!error.to_string().contains("canary"));
}
