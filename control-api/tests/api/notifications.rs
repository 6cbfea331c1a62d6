//! Facts about notifications: who is told, how often, and what never leaves.

mod mail;
mod reach;
mod sending;

use std::time::Duration;

use holdfast_api::clock;
use holdfast_api::config::Settings;
use holdfast_api::tasks::notify;
use holdfast_proto::time::Timestamp;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::Api;
use crate::support::receiver::Receiver;

crate::on_both_databases![
    a_channel_is_made_shown_changed_and_forgotten,
    what_cannot_work_is_refused_by_member,
    secrets_stay_only_where_they_were_given_for,
];

pub const CHANNELS: &str = "/api/v1/notifications/channels";
pub const SIGNING: &str = "canary-signing-key-0123456789";

/// A control API that may send to receivers on this machine, and does not wait long for them.
pub async fn start(place: Place) -> Api {
    start_with(place, |settings| settings).await
}

pub async fn start_with(place: Place, adjust: impl FnOnce(Settings) -> Settings) -> Api {
    // A second one in this process changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Api::start_with(place, |mut settings| {
        settings.notifications.private_hosts = vec!["127.0.0.1".into(), "localhost".into()];
        settings.notifications.timeout = Duration::from_secs(2);
        adjust(settings)
    })
    .await
}

/// A channel that posts signed messages about devices to a receiver.
pub fn webhook(receiver: &Receiver) -> Value {
    json!({
        "name": "ops", "type": "webhook", "events": ["device.*"],
        "url": receiver.url("/hook/canary-path"), "secret": SIGNING,
    })
}

/// Makes a channel; its path.
pub async fn make(api: &Api, body: Value) -> String {
    let made = api.post(CHANNELS, &api.admin, body).await.expect(201);
    format!("{CHANNELS}/{}", made.json()["id"])
}

pub async fn deliveries(api: &Api, channel: &str) -> Vec<Value> {
    let page = api.get(&format!("{channel}/deliveries"), &api.admin).await;
    let page = page.expect(200).json();
    page["items"].as_array().unwrap().clone()
}

/// Does what is due, so many milliseconds from now.
pub async fn later(api: &Api, wait_ms: i64) -> Timestamp {
    let now = clock::now().plus_ms(wait_ms);
    assert!(
        notify::run_once(&api.app, now).await.unwrap(),
        "nobody else does it"
    );
    now
}

async fn a_channel_is_made_shown_changed_and_forgotten(place: Place) {
    let api = start(place).await;
    let body = json!({
        "name": "ops", "type": "slack", "events": ["image.rollout_*"], "least_severity": "warning",
        "fleet": "shops", "title": "{{kind}}", "url": "https://hooks.slack.com/services/canary-path",
    });
    let made = api
        .post(CHANNELS, &api.admin, body.clone())
        .await
        .expect(201);
    let shown = made.json();
    assert_eq!(shown["destination"], "hooks.slack.com");
    assert_eq!(shown["most_per_minute"], 20);
    assert_eq!(
        shown["secrets"],
        json!({ "url": true, "secret": false, "token": false, "password": false })
    );
    let refused = api
        .post(CHANNELS, &api.admin, body.clone())
        .await
        .expect(409);
    assert_eq!(refused.code(), "known_channel");
    let path = format!("{CHANNELS}/{}", shown["id"]);
    // Without the address: it stays.
    let body = json!({ "name": "alerts", "type": "slack", "events": ["*"], "enabled": false });
    let changed = api
        .call("PUT", &path, &api.admin, Some(body))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&changed["name"], &changed["enabled"]),
        (&json!("alerts"), &json!(false))
    );
    assert_eq!(changed["destination"], "hooks.slack.com");
    assert_eq!(changed["secrets"]["url"], true);
    assert_eq!(changed["title"], json!(null));
    assert_eq!(api.get(&path, &api.admin).await.expect(200).json(), changed);
    let all = api.get(CHANNELS, &api.admin).await.expect(200).json();
    assert_eq!(all["items"], json!([changed]));
    assert_eq!(deliveries(&api, &path).await, Vec::<Value>::new());
    let operator = api.token("operator").await;
    for (method, path) in [("GET", CHANNELS), ("DELETE", &path)] {
        api.call(method, path, &operator, None).await.expect(403);
    }
    api.call("DELETE", &path, &api.admin, None)
        .await
        .expect(204);
    api.get(&path, &api.admin).await.expect(404);
    api.get(&format!("{path}/deliveries"), &api.admin)
        .await
        .expect(404);
    let audit = api.get("/api/v1/audit?limit=200", &api.admin).await;
    let audit = audit.expect(200).json();
    let rows = audit["items"].as_array().unwrap();
    let of_channels = rows
        .iter()
        .filter(|row| row["subject_kind"] == "notification_channel");
    let actions: Vec<_> = of_channels
        .map(|row| row["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        [
            "notification_channel.remove",
            "notification_channel.change",
            "notification_channel.create"
        ]
    );
    let events = api
        .get("/api/v1/events?limit=200", &api.admin)
        .await
        .expect(200)
        .json();
    for seen in [shown, changed, audit.clone(), events] {
        assert!(!seen.to_string().contains("canary"), "{seen}");
    }
}

async fn what_cannot_work_is_refused_by_member(place: Place) {
    let api = start(place).await;
    let slack = |more: Value| {
        let mut body =
            json!({ "name": "c", "type": "slack", "events": ["*"], "url": "https://a.example/x" });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    for (more, pointers) in [
        (json!({ "colour": 1 }), vec!["/colour"]),
        (json!({ "type": "pigeon" }), vec!["/type"]),
        (json!({ "events": [] }), vec!["/events"]),
        (
            json!({ "text": "{{who}}", "title": "{{x" }),
            vec!["/title", "/text"],
        ),
        (json!({ "url": null }), vec!["/url"]),
        (json!({ "url": 7 }), vec!["/url"]),
        (json!({ "url": "http://a.example/x" }), vec!["/url"]),
        (json!({ "url": "http://10.0.0.1/x" }), vec!["/url"]),
        (
            json!({ "type": "webhook", "secret": "short" }),
            vec!["/secret"],
        ),
        (json!({ "type": "email", "url": null }), vec!["/mail"]),
        (
            json!({ "type": "email", "url": null, "mail": { "host": "mail.example", "from": "a@b", "to": ["x"],
                "security": "none", "username": "me", "colour": 1 } }),
            vec!["/mail/colour"],
        ),
        (
            json!({ "type": "email", "url": null, "mail": { "host": "mail.example", "from": "a@b", "to": ["x"],
                "security": "none", "username": "me" } }),
            vec!["/mail/security", "/mail/to/0", "/mail/password"],
        ),
    ] {
        let refused = api
            .post(CHANNELS, &api.admin, slack(more.clone()))
            .await
            .expect(422);
        assert_eq!(refused.pointers(), pointers, "{more}");
    }
    let all = api.get(CHANNELS, &api.admin).await.expect(200).json();
    assert_eq!(all["items"], json!([]), "nothing was stored");
}

async fn secrets_stay_only_where_they_were_given_for(place: Place) {
    let api = start(place).await;
    let ntfy = json!({ "name": "n", "type": "ntfy", "events": ["*"], "url": "https://ntfy.example/alerts",
        "token": "tk_canary" });
    let path = make(&api, ntfy.clone()).await;
    let put = async |body: Value| api.call("PUT", &path, &api.admin, Some(body)).await;
    let mut same_host = ntfy.clone();
    same_host.as_object_mut().unwrap().remove("token");
    same_host["url"] = "https://ntfy.example/others".into();
    let secrets = put(same_host.clone()).await.expect(200).json()["secrets"].clone();
    assert_eq!(
        (&secrets["url"], &secrets["token"]),
        (&json!(true), &json!(true))
    );
    let mut other_host = same_host.clone();
    other_host["url"] = "https://evil.example/alerts".into();
    let secrets = put(other_host).await.expect(200).json()["secrets"].clone();
    assert_eq!(
        (&secrets["url"], &secrets["token"]),
        (&json!(true), &json!(false))
    );
    let mut without = ntfy.clone();
    without["token"] = json!(null);
    let secrets = put(without).await.expect(200).json()["secrets"].clone();
    assert_eq!(secrets["token"], false);
    // A password goes to no other server, and to none without encryption.
    let mail = |host: &str, security: &str, password: Option<&str>| {
        let mut body = json!({ "name": "m", "type": "email", "events": ["*"], "mail": { "host": host,
            "security": security, "username": "me", "from": "a@b.example", "to": ["c@d.example"] } });
        if let Some(password) = password {
            body["mail"]["password"] = password.into();
        }
        body
    };
    let path = make(&api, mail("mail.example", "starttls", Some("canary"))).await;
    let put = async |body: Value| api.call("PUT", &path, &api.admin, Some(body)).await;
    put(mail("mail.example", "starttls", None))
        .await
        .expect(200);
    for moved in [
        mail("evil.example", "starttls", None),
        mail("mail.example", "tls", None),
    ] {
        assert_eq!(put(moved).await.expect(422).pointers(), ["/mail/password"]);
    }
}

/// Signs as a receiver does to compare.
pub fn signature(key: &str, header: &str, body: &str) -> bool {
    let Some((t, v1)) = header.split_once(",v1=") else {
        return false;
    };
    let signed = format!("{}.{body}", t.strip_prefix("t=").unwrap());
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.as_bytes());
    let expected: Vec<u8> = (0..v1.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&v1[at..at + 2], 16).unwrap())
        .collect();
    ring::hmac::verify(&key, signed.as_bytes(), &expected).is_ok()
}
