//! Facts about the forms: every body as it is sent.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_proto::id::DeviceId;
use holdfast_proto::notification::MailSecurity;
use proptest::prelude::*;
use serde_json::json;

use super::super::channel::MailSettings;
use super::super::tests::{AT, notice};
use super::*;

fn settings(kind: ChannelKind) -> Settings {
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
        mail: (kind == ChannelKind::Email).then(|| MailSettings {
            host: "smtp.example.org".into(),
            port: 587,
            security: MailSecurity::Starttls,
            username: None,
            from: "holdfast@example.org".into(),
            to: vec!["ops@example.org".into(), "boss@example.org".into()],
        }),
    }
}

fn write(settings: &Settings, content: &Content) -> String {
    let message = Message {
        settings,
        content,
        delivery: "d1",
        topic: "alerts",
        now: AT.plus_ms(500),
    };
    body(&message).unwrap()
}

fn failed() -> Content {
    let detail = json!({ "reason": "3 of 10 <failed> & *more*" });
    let mut notice = notice("image.rollout_failed", Some("acme/my_web:7"), detail);
    notice.fleet = Some("shops".into());
    Content::Event(notice)
}

fn of(kind: ChannelKind) -> String {
    write(&settings(kind), &failed())
}

#[test]
fn webhook() {
    assert_eq!(
        of(ChannelKind::Webhook),
        concat!(
            r#"{"delivery":"d1","channel":"ops","kind":"image.rollout_failed","severity":"error","#,
            r#""title":"Rollout of acme/my_web:7 failed","text":"3 of 10 <failed> & *more*","#,
            r#""event":{"id":7,"kind":"image.rollout_failed","severity":"error","at":"2026-11-21T05:40:00.123Z","#,
            r#""subject":"acme/my_web:7","device":null,"device_name":null,"fleet":"shops","#,
            r#""detail":{"reason":"3 of 10 <failed> & *more*"}}}"#
        )
    );
}

#[test]
fn ntfy() {
    assert_eq!(
        of(ChannelKind::Ntfy),
        concat!(
            r#"{"topic":"alerts","title":"Rollout of acme/my_web:7 failed","#,
            r#""message":"3 of 10 <failed> & *more*","priority":5,"tags":["rotating_light"]}"#
        )
    );
    let online = Content::Event(notice("device.online", None, json!({})));
    assert_eq!(
        write(&settings(ChannelKind::Ntfy), &online),
        r#"{"topic":"alerts","message":"is back","priority":3,"tags":["information_source"]}"#
    );
}

#[test]
fn slack_reads_no_markup_in_values() {
    assert_eq!(
        of(ChannelKind::Slack),
        concat!(
            r#"{"text":"*Rollout of acme/my_web:7 failed*\n3 of 10 &lt;failed&gt; &amp; *more*","#,
            r#""unfurl_links":false,"unfurl_media":false}"#
        )
    );
    let mention = notice(
        "a.b",
        Some("<!channel> <https://evil.example|bank>"),
        json!({}),
    );
    let body = write(&settings(ChannelKind::Slack), &Content::Event(mention));
    assert!(
        body.contains("&lt;!channel&gt; &lt;https://evil.example|bank&gt;"),
        "{body}"
    );
}

#[test]
fn discord_reads_no_markup_in_values_and_mentions_nobody() {
    assert_eq!(
        of(ChannelKind::Discord),
        concat!(
            r#"{"content":"**Rollout of acme/my\\_web:7 failed**\n3 of 10 \\<failed\\> & \\*more\\*","#,
            r#""allowed_mentions":{"parse":[]}}"#
        )
    );
}

#[test]
fn teams_shows_plain_runs() {
    assert_eq!(
        of(ChannelKind::Teams),
        concat!(
            r#"{"type":"message","attachments":[{"contentType":"application/vnd.microsoft.card.adaptive","#,
            r#""content":{"$schema":"http://adaptivecards.io/schemas/adaptive-card.json","type":"AdaptiveCard","#,
            r#""version":"1.4","body":[{"type":"RichTextBlock","inlines":[{"type":"TextRun","#,
            r#""text":"Rollout of acme/my_web:7 failed","weight":"Bolder"}]},{"type":"RichTextBlock","inlines":"#,
            r#"[{"type":"TextRun","text":"3 of 10 <failed> & *more*"}]}]}}]}"#
        )
    );
}

#[test]
fn mail() {
    let mail = of(ChannelKind::Email);
    let (head, body) = mail.split_once("\r\n\r\n").unwrap();
    assert_eq!(
        head,
        "Date: Sat, 21 Nov 2026 05:40:00 -0000\r\n\
         From: Holdfast <holdfast@example.org>\r\n\
         To: ops@example.org,\r\n boss@example.org\r\n\
         Subject: [Holdfast] Rollout of acme/my_web:7 failed\r\n\
         Message-ID: <d1@example.org>\r\n\
         Auto-Submitted: auto-generated\r\n\
         MIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\
         Content-Transfer-Encoding: base64"
    );
    assert!(body.ends_with("\r\n") && body.lines().all(|line| line.len() <= 76));
    let text = STANDARD.decode(body.replace("\r\n", "")).unwrap();
    assert_eq!(
        String::from_utf8(text).unwrap(),
        "Rollout of acme/my_web:7 failed\r\n\r\n3 of 10 <failed> & *more*\r\n\r\n-- \r\n\
         Event: image.rollout_failed (error)\r\nNumber: 7\r\nWhen: 2026-11-21T05:40:00.123Z\r\n\
         Subject: acme/my_web:7\r\nFleet: shops\r\n\
         Detail: {\"reason\":\"3 of 10 <failed> & *more*\"}\r\n"
    );
}

#[test]
fn people_write_their_own_words() {
    let mut own = settings(ChannelKind::Slack);
    own.title = Some("{{severity}} <https://wiki.example|runbook>".into());
    own.text = Some("{{device}}:\n{{detail.reason}}".into());
    let Content::Event(mut notice) = failed() else {
        panic!("an event");
    };
    notice.device = Some(DeviceId::from_random([1; 16]));
    notice.device_name = Some("till <3>".into());
    let said = told(&own, &Content::Event(notice));
    // What people wrote is markup, what took the places is not.
    assert_eq!(said.title, "error <https://wiki.example|runbook>");
    assert_eq!(
        said.text,
        "till &lt;3&gt;:\n3 of 10 &lt;failed&gt; &amp; *more*"
    );
}

#[test]
fn a_summary_has_every_form() {
    let summary = Content::Summary(Summary::of([&failed(), &failed()]));
    let webhook = write(&settings(ChannelKind::Webhook), &summary);
    assert!(webhook.starts_with(
        r#"{"delivery":"d1","channel":"ops","kind":"notification.summary","severity":"error","title":"2 more events","#
    ));
    assert!(webhook.ends_with(
        r#""summary":{"kinds":{"image.rollout_failed":2},"first":"2026-11-21T05:40:00.123Z","last":"2026-11-21T05:40:00.123Z","severity":"error"}}"#
    ));
    for kind in ChannelKind::ALL {
        assert!(!write(&settings(kind), &summary).is_empty());
    }
    let discord = write(&settings(ChannelKind::Discord), &summary);
    assert!(
        discord.contains(r"\n2 × image.rollout\\_failed"),
        "{discord}"
    );
}

#[test]
fn what_is_signed_has_the_moment_in_it() {
    assert_eq!(
        to_sign(AT, "{}"),
        (1_795_239_600, "1795239600.{}".to_owned())
    );
}

#[test]
fn a_cut_text_ends_with_whole_escapes() {
    assert_eq!(whole_escapes("a &am…".into()), "a …");
    assert_eq!(whole_escapes("a &lt;…".into()), "a &lt;…");
    assert_eq!(whole_escapes("a \\…".into()), "a …");
    assert_eq!(whole_escapes("a \\\\…".into()), "a \\\\…");
    assert_eq!(whole_escapes("a &am".into()), "a &am");
}

proptest! {
    // Each case is long texts in six forms.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn bodies_are_json_of_a_length_that_is_taken(said in any::<String>(), many in 0_usize..400) {
        let long = said.repeat(many);
        let notice = notice("image.rollout_failed", Some(&long), json!({ "reason": long })).bounded();
        let content = Content::Event(notice);
        for kind in ChannelKind::ALL {
            let mut own = settings(kind);
            own.text = Some("{{subject}}".repeat(150));
            let body = write(&own, &content);
            if kind != ChannelKind::Email {
                let read: Json = serde_json::from_str(&body).unwrap();
                if let Some(content) = read["content"].as_str() {
                    prop_assert!(content.chars().count() <= DISCORD_LIMIT);
                }
                if let Some(message) = read["message"].as_str() {
                    prop_assert!(message.len() <= NTFY_LIMIT);
                }
            }
        }
    }

    #[test]
    fn slack_sees_no_angle_bracket_of_a_value(said in any::<String>()) {
        let notice = notice("a.b", Some(&said), json!({ "reason": said }));
        let mut own = settings(ChannelKind::Slack);
        own.text = Some("{{subject}} {{detail.reason}}".into());
        let told = told(&own, &Content::Event(notice));
        prop_assert!(!told.title.contains(['<', '>']) && !told.text.contains(['<', '>']));
    }
}
