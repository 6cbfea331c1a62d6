//! Facts about channels: what they want, and what is refused when they are written.

use holdfast_proto::notification::ChannelKind::{Email, Ntfy, Slack, Webhook};
use serde_json::json;

use super::super::tests::notice;
use super::*;

const SECRET: &str = "0123456789abcdef";

fn settings(kind: ChannelKind) -> Settings {
    let mail = MailSettings {
        host: "smtp.example.org".into(),
        port: 587,
        security: MailSecurity::Starttls,
        username: None,
        from: "holdfast@example.org".into(),
        to: vec!["ops@example.org".into()],
    };
    Settings {
        name: "ops".into(),
        kind,
        enabled: true,
        events: vec!["*".into()],
        least_severity: Severity::Info,
        fleet: None,
        title: None,
        text: None,
        most_per_minute: 20,
        destination: String::new(),
        mail: (kind == Email).then_some(mail),
    }
}

fn secrets(kind: ChannelKind) -> Secrets<'static> {
    Secrets {
        url: (kind != Email).then_some("https://hooks.example/x"),
        secret: (kind == Webhook).then_some(SECRET),
        ..Secrets::default()
    }
}

fn pointers(settings: Settings, secrets: Secrets<'_>) -> Vec<String> {
    let errors = settings.judged(secrets).err().unwrap_or_default();
    errors.into_iter().map(|error| error.pointer).collect()
}

#[test]
fn each_kind_needs_no_more_than_where_it_goes() {
    for kind in ChannelKind::ALL {
        let judged = settings(kind).judged(secrets(kind)).unwrap();
        let expected = if kind == Email {
            "smtp.example.org:587"
        } else {
            "hooks.example"
        };
        assert_eq!(judged.destination, expected);
    }
}

fn mail(settings: &mut Settings) -> &mut MailSettings {
    settings.mail.as_mut().unwrap()
}

#[test]
fn what_is_wrong_is_named_by_member() {
    let change = |kind: ChannelKind, change: fn(&mut Settings)| {
        let mut changed = settings(kind);
        change(&mut changed);
        pointers(changed, secrets(kind))
    };
    let none: [&str; 0] = [];
    assert_eq!(change(Slack, |_| ()), none);
    assert_eq!(change(Slack, |it| it.name = " ".into()), ["/name"]);
    assert_eq!(change(Slack, |it| it.events.clear()), ["/events"]);
    assert_eq!(
        change(Slack, |it| it.events = vec!["a.b".into(), "a b".into()]),
        ["/events/1"]
    );
    assert_eq!(
        change(Slack, |it| it.events = vec!["a.*".into(), "a.*".into()]),
        ["/events/1"]
    );
    assert_eq!(
        change(Slack, |it| it.events = vec!["notification.*".into()]),
        ["/events/0"]
    );
    assert_eq!(
        change(Slack, |it| it.fleet = Some(String::new())),
        ["/fleet"]
    );
    assert_eq!(
        change(Slack, |it| it.most_per_minute = 0),
        ["/most_per_minute"]
    );
    assert_eq!(
        change(Slack, |it| it.most_per_minute = 61),
        ["/most_per_minute"]
    );
    assert_eq!(
        change(Slack, |it| it.title = Some("a\nb".into())),
        ["/title"]
    );
    assert_eq!(
        change(Slack, |it| it.text = Some("{{who}}".into())),
        ["/text"]
    );
    assert_eq!(change(Email, |it| it.mail = None), ["/mail"]);
    assert_eq!(
        change(Email, |it| mail(it).host = "a b".into()),
        ["/mail/host"]
    );
    assert_eq!(change(Email, |it| mail(it).port = 0), ["/mail/port"]);
    assert_eq!(
        change(Email, |it| mail(it).security = MailSecurity::None),
        ["/mail/security"]
    );
    assert_eq!(
        change(Email, |it| {
            mail(it).security = MailSecurity::None;
            mail(it).host = "127.0.0.1".into();
        }),
        none
    );
    assert_eq!(
        change(Email, |it| mail(it).username = Some("me".into())),
        ["/mail/password"]
    );
    assert_eq!(
        change(Email, |it| mail(it).from = "me".into()),
        ["/mail/from"]
    );
    assert_eq!(change(Email, |it| mail(it).to.clear()), ["/mail/to"]);
    assert_eq!(
        change(Email, |it| mail(it).to.push("a@b\r\nBcc: c@d".into())),
        ["/mail/to/1"]
    );
}

#[test]
fn what_is_secret_must_fit_the_kind() {
    let with = |kind: ChannelKind, change: fn(&mut Secrets<'static>)| {
        let mut changed = secrets(kind);
        change(&mut changed);
        pointers(settings(kind), changed)
    };
    assert_eq!(with(Slack, |it| it.url = None), ["/url"]);
    assert_eq!(
        with(Slack, |it| it.url = Some("file:///etc/passwd")),
        ["/url"]
    );
    assert_eq!(
        with(Email, |it| it.url = Some("https://a.example/")),
        ["/url"]
    );
    assert_eq!(
        with(Ntfy, |it| it.url = Some("https://ntfy.example/")),
        ["/url"]
    );
    assert_eq!(with(Webhook, |it| it.secret = None), ["/secret"]);
    assert_eq!(with(Webhook, |it| it.secret = Some("short")), ["/secret"]);
    assert_eq!(with(Slack, |it| it.secret = Some(SECRET)), ["/secret"]);
    assert_eq!(with(Ntfy, |it| it.token = Some("a b")), ["/token"]);
    assert_eq!(with(Slack, |it| it.token = Some("tk_1")), ["/token"]);
    assert_eq!(
        with(Email, |it| it.password = Some("pw")),
        ["/mail/password"]
    );
}

#[test]
fn no_error_quotes_a_secret() {
    let canary = Secrets {
        url: Some("https://user:canary@a.example/canary x"),
        secret: Some("canary"),
        token: Some("canary \n"),
        password: Some("canary"),
    };
    for kind in ChannelKind::ALL {
        let errors = settings(kind).judged(canary).unwrap_err();
        assert!(!format!("{errors:?} {canary:?}").contains("canary"));
    }
}

#[test]
fn a_channel_gets_what_it_wants() {
    let failed = notice("image.rollout_failed", Some("redis:7"), json!({}));
    let created = notice("image.rollout_created", Some("redis:7"), json!({}));
    let wants = |change: fn(&mut Settings), notice: &Notice| {
        let mut changed = settings(Slack);
        change(&mut changed);
        changed.wants(notice)
    };
    assert!(wants(|_| (), &created));
    assert!(!wants(|it| it.enabled = false, &created));
    assert!(wants(
        |it| it.events = vec!["device.*".into(), "image.rollout_*".into()],
        &created
    ));
    assert!(!wants(
        |it| it.events = vec!["image.rollout".into()],
        &created
    ));
    assert!(!wants(|it| it.events = vec!["rollout_*".into()], &created));
    assert!(wants(|it| it.least_severity = Severity::Error, &failed));
    assert!(!wants(|it| it.least_severity = Severity::Warning, &created));
    let mut of_fleet = failed.clone();
    of_fleet.fleet = Some("shops".into());
    assert!(wants(|it| it.fleet = Some("shops".into()), &of_fleet));
    assert!(!wants(|it| it.fleet = Some("shop".into()), &of_fleet));
    assert!(!wants(|it| it.fleet = Some("shops".into()), &failed));
    assert!(!wants(
        |_| (),
        &notice("notification.failed", None, json!({}))
    ));
    assert!(!wants(|_| (), &notice(TEST, None, json!({}))));
}

#[test]
fn secrets_stay_only_where_they_were_given_for() {
    let before = settings(Email).judged(secrets(Email)).unwrap();
    assert!(before.leads_where(&before));
    let mut renamed = before.clone();
    renamed.name = "others".into();
    assert!(renamed.leads_where(&before));
    for change in [
        |it: &mut Settings| it.destination = "evil.example:587".into(),
        |it: &mut Settings| it.kind = Slack,
        |it: &mut Settings| it.mail.as_mut().unwrap().security = MailSecurity::None,
        |it: &mut Settings| it.mail.as_mut().unwrap().username = Some("other".into()),
    ] {
        let mut changed = before.clone();
        change(&mut changed);
        assert!(!changed.leads_where(&before));
    }
}
