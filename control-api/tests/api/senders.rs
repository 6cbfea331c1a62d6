//! Facts about who may send webhooks, and where their secrets do not show.

use ring::hmac;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Api, WEBHOOK_SECRET};
use crate::support::logs::Logs;
use crate::support::pushes::{Receiver, SECOND_SECRET, every_vendor, generic, send};

const HUB: &str = "/api/v1/webhooks/docker-registry";

fn signed(secret: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, body);
    let hex = tag.as_ref().iter().map(|byte| format!("{byte:02x}"));
    hex.collect()
}

#[tokio::test]
async fn c43_whoever_cannot_prove_itself_is_refused_alike_before_a_byte_is_understood() {
    let hooks = Receiver::start(Place::sqlite()).await;
    let (_, body, _) = every_vendor().swap_remove(1);
    let body = body.to_string().into_bytes();
    let other = signed("not-the-webhook-secret", &body);
    let right = signed(WEBHOOK_SECRET, &body);
    let of_other_body = signed(WEBHOOK_SECRET, b"{}");
    let sha = |hex: &str| format!("sha256={hex}");
    let (other, of_other_body) = (sha(&other), sha(&of_other_body));
    let (other, of_other_body) = (other.as_str(), of_other_body.as_str());
    let cut = sha(&right[..63]);
    let (cut, right) = (cut.as_str(), right.as_str());
    let bearer = format!("Bearer {WEBHOOK_SECRET}");
    let bearer = bearer.as_str();
    let path = "/api/v1/webhooks/github";
    let wrong: Vec<(String, Vec<(&str, &str)>)> = vec![
        (path.into(), vec![]),
        (path.into(), vec![("x-hub-signature-256", other)]),
        (path.into(), vec![("x-hub-signature-256", of_other_body)]),
        (path.into(), vec![("x-hub-signature-256", cut)]),
        (path.into(), vec![("x-hub-signature-256", right)]),
        (path.into(), vec![("x-hub-signature", "sha1=00")]),
        // A signature has to be right, whatever else is.
        (
            path.into(),
            vec![("x-hub-signature-256", other), ("authorization", bearer)],
        ),
        (path.into(), vec![("authorization", "Bearer ")]),
        (path.into(), vec![("x-gitlab-token", &WEBHOOK_SECRET[1..])]),
        (
            path.into(),
            vec![
                ("x-gitlab-token", WEBHOOK_SECRET),
                ("x-gitlab-token", WEBHOOK_SECRET),
            ],
        ),
        (path.into(), vec![("x-jfrog-event-auth", &right[1..])]),
        (format!("{path}/wrong-wrong-wrong-wrong"), vec![]),
        (format!("{path}/{}", &SECOND_SECRET[1..]), vec![]),
        ("/api/v1/webhooks/nobody".into(), vec![]),
        ("/api/v1/webhooks/nobody/wrong-wrong-wrong".into(), vec![]),
        (HUB.into(), vec![]),
    ];
    let events = hooks.event_count().await;
    let mut answers = Vec::new();
    for (path, headers) in &wrong {
        for body in [body.clone(), b"{".to_vec()] {
            let answer = send(&hooks.api, path, headers, body).await.expect(401);
            let mut problem = answer.json();
            problem["instance"] = Value::Null;
            problem["request_id"] = Value::Null;
            answers.push(problem);
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "one refusal for everything: {answers:#?}");
    assert_eq!(hooks.event_count().await, events);
    assert_eq!(hooks.deliveries().await, Vec::<Value>::new());
}

#[tokio::test]
async fn c43_every_vendors_form_is_refused_unsigned_and_wrongly_signed() {
    let hooks = Receiver::start(Place::sqlite()).await;
    for (vendor, body, image) in every_vendor() {
        // It would be acted on, if it were proven.
        hooks.image(image, "approved").await;
        let body = body.to_string().into_bytes();
        let wrong = signed("not-the-webhook-secret", &body);
        let of_other = signed(WEBHOOK_SECRET, b"{}");
        let ways = [
            vec![],
            vec![("x-hub-signature-256", format!("sha256={wrong}"))],
            vec![("x-hub-signature-256", format!("sha256={of_other}"))],
            vec![("x-jfrog-event-auth", wrong)],
            vec![("x-jfrog-event-auth", of_other)],
            vec![("x-gitlab-token", "not-the-webhook-secret".to_owned())],
            vec![("x-holdfast-secret", WEBHOOK_SECRET.to_uppercase())],
            vec![("authorization", "Bearer not-the-webhook-secret".to_owned())],
        ];
        for way in ways {
            let headers: Vec<_> = way
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            for path in [
                vendor,
                "docker-registry",
                "docker-registry/wrong-wrong-wrong",
            ] {
                let path = format!("/api/v1/webhooks/{path}");
                let answer = send(&hooks.api, &path, &headers, body.clone()).await;
                answer.expect(401);
            }
        }
    }
    assert_eq!(hooks.deliveries().await, Vec::<Value>::new());
    let received = hooks.events("image.webhook_received").await;
    assert_eq!(received, Vec::<Value>::new());
}

#[tokio::test]
async fn a_secret_is_taken_wherever_its_sender_can_put_it_and_its_name_is_shown() {
    let hooks = Receiver::start(Place::sqlite()).await;
    let mut expected = Vec::new();
    for (n, secret, name) in [(0, WEBHOOK_SECRET, "default"), (1, SECOND_SECRET, "second")] {
        let bearer = format!("Bearer {secret}");
        let headers: Vec<Vec<(&str, String)>> = vec![
            vec![("authorization", bearer)],
            vec![("authorization", secret.into())],
            vec![("x-holdfast-secret", secret.into())],
            vec![("x-gitlab-token", secret.into())],
            vec![("x-jfrog-event-auth", secret.into())],
            vec![],
        ];
        for (m, headers) in headers.iter().enumerate() {
            let headers: Vec<_> = headers
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            let path = if headers.is_empty() {
                format!("{HUB}/{secret}")
            } else {
                HUB.to_owned()
            };
            let body = generic("iotistic/agent", &format!("{n}.{m}")).to_string();
            send(&hooks.api, &path, &headers, body.into())
                .await
                .expect(200);
            expected.push(name);
        }
        for header in ["x-hub-signature-256", "x-jfrog-event-auth"] {
            let body = generic("iotistic/agent", &format!("{n}-{header}")).to_string();
            let hex = signed(secret, body.as_bytes());
            let value = if header == "x-hub-signature-256" {
                format!("sha256={hex}")
            } else {
                hex
            };
            send(&hooks.api, HUB, &[(header, &value)], body.into())
                .await
                .expect(200);
            expected.push(name);
        }
    }
    let mut all = hooks.deliveries().await;
    all.reverse();
    let names: Vec<_> = all
        .iter()
        .map(|one| one["secret"].as_str().unwrap())
        .collect();
    assert_eq!(names, expected);
    let body = generic("acme/new", "1").to_string();
    let headers = [("x-holdfast-secret", SECOND_SECRET)];
    send(&hooks.api, HUB, &headers, body.into())
        .await
        .expect(403);
    let audit = hooks.items("/api/v1/audit").await;
    assert_eq!(audit[0]["action"], "approval.ask");
    assert_eq!(audit[0]["actor"], "generic (secret second)");
    // A signed body has the same bounds as any other.
    let large = vec![b' '; 262_145];
    let signature = format!("sha256={}", signed(WEBHOOK_SECRET, &large));
    let headers = [("x-hub-signature-256", signature.as_str())];
    send(&hooks.api, HUB, &headers, large).await.expect(413);
    let form = b"payload=1".to_vec();
    let signature = format!("sha256={}", signed(WEBHOOK_SECRET, &form));
    let headers = [
        ("x-hub-signature-256", signature.as_str()),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    send(&hooks.api, HUB, &headers, form).await.expect(415);
}

#[tokio::test]
async fn without_a_configured_secret_no_webhook_is_taken() {
    let api = Api::start_with(Place::sqlite(), |mut settings| {
        settings.webhook_secret = None;
        settings
    })
    .await;
    let body = generic("a", "1").to_string();
    for secret in ["", WEBHOOK_SECRET, "default"] {
        let headers = [("x-holdfast-secret", secret)];
        send(&api, HUB, &headers, body.clone().into())
            .await
            .expect(401);
    }
}

#[tokio::test]
async fn a_secret_in_a_path_is_in_no_log_and_no_answer() {
    let (logs, _guard) = Logs::keep();
    let hooks = Receiver::start(Place::sqlite()).await;
    let body = json!({ "docker_url": "quay.io/acme/web", "updated_tags": ["v1"] }).to_string();
    let mut answers = Vec::new();
    for (path, status) in [
        (format!("/api/v1/webhooks/quay/{WEBHOOK_SECRET}"), 200),
        (format!("/api/v1/webhooks/generic/{WEBHOOK_SECRET}"), 422),
        (format!("/api/v1/webhooks/nobody/{WEBHOOK_SECRET}"), 404),
        // Paths that lead nowhere, by which somebody might try.
        (format!("/api/v1/webhooks/quay/{WEBHOOK_SECRET}/"), 404),
        (format!("/v1/webhooks/quay/{WEBHOOK_SECRET}"), 404),
    ] {
        let answer = send(&hooks.api, &path, &[], body.clone().into())
            .await
            .expect(status);
        answers.push(String::from_utf8(answer.bytes).unwrap());
    }
    for path in [
        "/api/v1/webhooks/deliveries",
        "/api/v1/events",
        "/api/v1/audit",
    ] {
        answers.push(hooks.get(path).await.to_string());
    }
    answers.push(logs.text());
    let log = answers.last().unwrap();
    assert!(log.contains("/api/v1/webhooks/{vendor}/{secret}"), "{log}");
    assert!(log.contains("/api/v1/webhooks/quay/…"), "{log}");
    for text in &answers {
        assert!(!text.contains(WEBHOOK_SECRET), "{text}");
    }
}
