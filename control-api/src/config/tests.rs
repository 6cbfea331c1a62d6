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
fn history_is_kept_for_so_many_days_or_for_ever() {
    let settings = load(None, []).unwrap();
    let default = Retention {
        events_days: Some(90),
        audit_days: Some(400),
        rollouts_days: Some(180),
    };
    assert_eq!(settings.retention, default);
    let text = "retention: {events_days: 7, audit_days: 0}";
    let settings = load(Some(file(text).path()), []).unwrap();
    let other = Retention {
        events_days: Some(7),
        audit_days: None,
        ..default
    };
    assert_eq!(settings.retention, other);
    assert_eq!(
        faults("retention: {audit_days: 36501}"),
        ["retention.audit_days"]
    );
    assert_eq!(faults("retention: {days: 1}"), ["retention.days"]);
}

#[test]
fn notifications_leave_as_configured() {
    let read =
        |text: &str| load(Some(file(text).path()), []).map(|settings| settings.notifications);
    assert_eq!(read("{}"), Ok(Notifications::default()));
    let some = read("notifications: {private_hosts: [\"ntfy.lan:8080\"], timeout_seconds: 5}");
    assert_eq!(
        some,
        Ok(Notifications {
            private_hosts: vec!["ntfy.lan:8080".to_owned()],
            timeout: Duration::from_secs(5),
            ..Notifications::default()
        })
    );
    for (text, expected) in [
        (
            "{private_hosts: [\"https://ntfy.lan/\"]}",
            "notifications.private_hosts[0]",
        ),
        ("{timeout_seconds: 0}", "notifications.timeout_seconds"),
        ("{ca_file: /nowhere/ca.pem}", "notifications.ca_file"),
    ] {
        assert_eq!(faults(&format!("notifications: {text}")), [expected]);
    }
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
fn what_pushes_are_judged_by_is_read_into_one_form() {
    let text = "webhooks: {secret: first-first-first, secrets: {next: second-second-second}}\n\
                internal_images: [{namespace: iotistic}, {registry: index.docker.io, namespace: acme/own/},\n\
                {registry: 'Reg.lan:5000', namespace: ours}]\napprovals: {two_person: true}\n";
    let settings = load(Some(file(text).path()), []).unwrap();
    let own: Vec<_> = settings.pushes.internal.iter().collect();
    let own: Vec<_> = own
        .iter()
        .map(|own| (own.registry.as_str(), own.namespace.as_str()))
        .collect();
    assert_eq!(
        own,
        [
            ("docker.io", "iotistic"),
            ("docker.io", "acme/own"),
            ("reg.lan:5000", "ours")
        ]
    );
    assert!(settings.pushes.two_person);
    assert_eq!(settings.pushes.answer_within, Duration::from_secs(2));
    assert_eq!(
        settings.pushes.secrets["next"].expose(),
        "second-second-second"
    );
    assert!(!format!("{settings:?}").contains("second"));
    let by_environment = env(&[("HOLDFAST_API_APPROVALS__TWO_PERSON", "true")]);
    assert!(load(None, by_environment).unwrap().pushes.two_person);
}

#[test]
fn rules_for_pushes_that_cannot_be_meant_are_refused() {
    for (text, path) in [
        ("webhooks: {secrets: {a: short}}", "webhooks.secrets.a"),
        (
            "webhooks: {secrets: {default: long-enough-to-be-one}}",
            "webhooks.secrets.default",
        ),
        (
            "webhooks: {secrets: {'a b': long-enough-to-be-one}}",
            "webhooks.secrets.a b",
        ),
        (
            "internal_images: [{namespace: ''}]",
            "internal_images[0].namespace",
        ),
        (
            "internal_images: [{namespace: /}]",
            "internal_images[0].namespace",
        ),
        (
            "internal_images: [{namespace: Upper}]",
            "internal_images[0].namespace",
        ),
        (
            "internal_images: [{namespace: 'acme:1'}]",
            "internal_images[0].namespace",
        ),
        (
            "internal_images: [{registry: acme, namespace: own}]",
            "internal_images[0].registry",
        ),
        (
            "internal_images: [{registry: 'a.b/c', namespace: own}]",
            "internal_images[0].registry",
        ),
        (
            "webhooks: {answer_within_seconds: 61}",
            "webhooks.answer_within_seconds",
        ),
        ("approvals: {two_person: perhaps}", "approvals.two_person"),
    ] {
        assert_eq!(faults(text), [path], "{text}");
    }
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

#[test]
fn the_databases_password_may_be_in_a_file() {
    let secret = file("p@ss/w?rd&x=1 %\u{e9}\n");
    for (url, mark) in [
        ("postgres://u@h/d", '?'),
        ("postgres://u@h/d?connect_timeout=5", '&'),
    ] {
        let config = file(&format!(
            "database: {url}\ndatabase_password_file: {}\n",
            secret.path().display()
        ));
        let settings = load(Some(config.path()), []).unwrap();
        assert!(!format!("{settings:?}").contains("w%3Frd"));
        let Location::Postgres(whole) = &settings.location else {
            panic!("it is in PostgreSQL");
        };
        assert!(whole.starts_with(&format!("{url}{mark}password=")));
        let read: postgres::Config = whole.parse().unwrap();
        assert_eq!(
            read.get_password(),
            Some("p@ss/w?rd&x=1 %\u{e9}".as_bytes())
        );
        assert_eq!(read.get_dbname(), Some("d"));
    }
    let missing = "database: postgres://u@h/d\ndatabase_password_file: /nowhere\n";
    assert_eq!(faults(missing), ["database_password_file"]);
}

#[test]
fn what_becomes_part_of_the_install_script_holds_nothing_for_a_shell() {
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    let text = format!(
        "public_url: https://holdfast.example/\nreleases: {{dir: /srv/releases, key: {KEY}}}\n"
    );
    let install = load(Some(file(&text).path()), []).unwrap().install;
    assert_eq!(
        install.public_url.as_deref(),
        Some("https://holdfast.example")
    );
    assert_eq!(install.releases, Some(PathBuf::from("/srv/releases")));
    assert_eq!(install.key.as_deref(), Some(KEY));
    for url in [
        "holdfast.example",
        "ftp://holdfast.example",
        "https://",
        "https:///x",
        "\"https://a'b\"",
        "https://a$b",
        "https://a b",
        "https://a`b`",
    ] {
        assert_eq!(
            faults(&format!("public_url: {url}")),
            ["public_url"],
            "{url}"
        );
    }
    for key in ["RW", "x'", &KEY[1..], &KEY.replace('Q', "'")] {
        let text = format!("releases: {{key: \"{key}\"}}");
        assert_eq!(faults(&text), ["releases.key"], "{key}");
    }
    assert_eq!(faults("releases: {dir: releases}"), ["releases.dir"]);
}
