//! Facts about mail: handed over whole, with a login, encrypted where it has to be.

use serde_json::{Value, json};

use super::{deliveries, later, make, start, start_with};
use crate::support::Place;
use crate::support::api::Api;
use crate::support::receiver::{MailServer, Manners, certificate};

fn channel(server: &MailServer, host: &str, security: &str) -> Value {
    json!({ "name": "mail", "type": "email", "events": ["device.*"], "mail": {
        "host": host, "port": server.port, "security": security, "username": "me", "password": "canary-pw",
        "from": "holdfast@example.org", "to": ["ops@example.org", "boss@example.org"] } })
}

async fn test(api: &Api, channel: &str) -> Value {
    let answer = api
        .post(&format!("{channel}/test"), &api.admin, json!({}))
        .await;
    answer.expect(200).json()
}

#[tokio::test]
async fn a_mail_is_handed_over_with_a_login() {
    let api = start(Place::sqlite()).await;
    let server = MailServer::start(Manners::default());
    let path = make(&api, channel(&server, "127.0.0.1", "none")).await;
    api.enrol().await;
    later(&api, 0).await;
    let [mail] = server.taken().try_into().unwrap();
    assert!(mail.login.unwrap().starts_with("AUTH PLAIN "));
    assert_eq!(mail.from, "MAIL FROM:<holdfast@example.org>");
    assert_eq!(
        mail.to,
        ["RCPT TO:<ops@example.org>", "RCPT TO:<boss@example.org>"]
    );
    let (head, body) = mail.data.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains("\r\nSubject: [Holdfast] box is a new device\r\n"),
        "{head}"
    );
    assert!(
        head.contains("\r\nTo: ops@example.org,\r\n boss@example.org\r\n"),
        "{head}"
    );
    let [row] = deliveries(&api, &path).await.try_into().unwrap();
    assert_eq!(
        (&row["state"], &row["status"]),
        (&json!("delivered"), &json!(250))
    );
    let name = row["delivery"].as_str().unwrap();
    assert!(
        head.contains(&format!("Message-ID: <{name}@example.org>")),
        "{head}"
    );
    // "box is a new device", at the beginning of a body in base64.
    assert!(body.starts_with("Ym94IGlzIGEgbmV3IGRldmljZQ0K"), "{body}");
}

#[tokio::test]
async fn what_a_server_refuses_is_not_tried_again() {
    let api = start(Place::sqlite()).await;
    let manners = Manners {
        refuses: Some("550 no such user"),
        ..Manners::default()
    };
    let server = MailServer::start(manners);
    let path = make(&api, channel(&server, "127.0.0.1", "none")).await;
    api.enrol().await;
    later(&api, 0).await;
    let [row] = deliveries(&api, &path).await.try_into().unwrap();
    assert_eq!(
        (&row["state"], &row["status"]),
        (&json!("failed"), &json!(550))
    );
    assert!(
        row["error"].as_str().unwrap().contains("no such user"),
        "{row}"
    );
    // Full for now: that may change.
    let manners = Manners {
        refuses: Some("452 mailbox full"),
        ..Manners::default()
    };
    let full = MailServer::start(manners);
    let mut body = channel(&full, "127.0.0.1", "none");
    body["name"] = "full".into();
    let path = make(&api, body).await;
    api.enrol().await;
    later(&api, 0).await;
    let row = deliveries(&api, &path).await.remove(0);
    assert_eq!(
        (&row["state"], &row["status"]),
        (&json!("waiting"), &json!(452))
    );
}

#[tokio::test]
async fn encryption_is_proven_before_a_login_is_shown() {
    let (config, ca) = certificate("localhost");
    let server = MailServer::start(Manners {
        tls: Some(config),
        ..Manners::default()
    });
    let trusting = start_with(Place::sqlite(), |mut settings| {
        settings.notifications.ca_pem = Some(ca);
        settings
    })
    .await;
    let path = make(&trusting, channel(&server, "localhost", "starttls")).await;
    let answer = test(&trusting, &path).await;
    assert_eq!(answer["delivered"], true, "{answer}");
    assert_eq!(answer["said"], "taken as 4711");
    let [mail] = server.taken().try_into().unwrap();
    assert!(mail.encrypted && mail.login.is_some());
    let only_the_start = |lines: Vec<String>| {
        let is_start = |line: &String| line.starts_with("EHLO") || line == "STARTTLS";
        assert!(lines.iter().all(is_start), "{lines:?}");
    };
    only_the_start(server.clear());
    // Nobody vouches for the certificate.
    let api = start(Place::sqlite()).await;
    let path = make(&api, channel(&server, "localhost", "starttls")).await;
    let answer = test(&api, &path).await;
    assert_eq!(answer["delivered"], false);
    assert!(
        answer["error"].as_str().unwrap().contains("certificate"),
        "{answer}"
    );
    // The certificate is another host's.
    let mut body = channel(&server, "127.0.0.1", "starttls");
    body["name"] = "other".into();
    let path = make(&trusting, body).await;
    assert_eq!(test(&trusting, &path).await["delivered"], false);
    // It offers no encryption: nothing is said to it.
    let plain = MailServer::start(Manners::default());
    let mut body = channel(&plain, "localhost", "starttls");
    body["name"] = "plain".into();
    let path = make(&trusting, body).await;
    assert_eq!(test(&trusting, &path).await["delivered"], false);
    only_the_start(plain.clear());
    assert_eq!(server.taken().len() + plain.taken().len(), 1);
}

#[tokio::test]
async fn mail_goes_only_where_it_may() {
    let api = start_with(Place::sqlite(), |mut settings| {
        settings.notifications.private_hosts.clear();
        settings
    })
    .await;
    let server = MailServer::start(Manners::default());
    let path = make(&api, channel(&server, "127.0.0.1", "none")).await;
    let answer = test(&api, &path).await;
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("not configured"), "{error}");
    assert!(server.clear().is_empty());
}
