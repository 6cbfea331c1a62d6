//! Facts about what leaves and where to: each form, tests, addresses, and nothing secret.

use serde_json::{Value, json};

use super::{CHANNELS, deliveries, later, make, start, start_with, webhook};
use crate::support::Place;
use crate::support::logs::Logs;
use crate::support::receiver::{Receiver, Reply};

#[tokio::test]
async fn a_test_answers_what_the_other_side_said() {
    let api = start(Place::sqlite()).await;
    let receiver = Receiver::start().await;
    let mut body = webhook(&receiver);
    body["enabled"] = false.into();
    body["most_per_minute"] = 2.into();
    let channel = make(&api, body).await;
    let test = format!("{channel}/test");
    let answer = api
        .post(&test, &api.admin, json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(answer["delivered"], true);
    assert_eq!(
        (&answer["status"], &answer["said"]),
        (&json!(200), &json!("thanks"))
    );
    assert_eq!(
        receiver.received()[0].json()["event"]["kind"],
        "notification.test"
    );
    receiver.reply([Reply::Status(403, Vec::new(), "wrong channel".into())]);
    let answer = api
        .post(&test, &api.admin, json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&answer["delivered"], &answer["status"]),
        (&json!(false), &json!(403))
    );
    assert_eq!(answer["said"], "wrong channel");
    // It counts as any message does.
    let refused = api.post(&test, &api.admin, json!({})).await.expect(429);
    assert_eq!(refused.header("retry-after"), "60");
    // Once, whatever became of it.
    later(&api, 25 * 3_600_000).await;
    assert_eq!(receiver.received().len(), 2);
    let states: Vec<Value> = deliveries(&api, &channel).await;
    assert_eq!(
        (&states[0]["state"], &states[1]["state"]),
        (&json!("failed"), &json!("delivered"))
    );
}

#[tokio::test]
async fn each_kind_speaks_its_form() {
    let api = start(Place::sqlite()).await;
    for kind in ["slack", "discord", "teams", "ntfy"] {
        let receiver = Receiver::start().await;
        let mut body =
            json!({ "name": kind, "type": kind, "events": ["*"], "url": receiver.url("/alerts") });
        if kind == "ntfy" {
            body["token"] = "tk_canary".into();
        }
        let channel = make(&api, body).await;
        let answer = api
            .post(&format!("{channel}/test"), &api.admin, json!({}))
            .await;
        assert_eq!(answer.expect(200).json()["delivered"], true);
        let [one] = receiver.received().try_into().unwrap();
        let expected_path = if kind == "ntfy" { "/" } else { "/alerts" };
        assert_eq!(one.path, expected_path);
        assert!(one.headers.get("x-holdfast-signature").is_none());
        let text = match kind {
            "slack" => one.json()["text"].clone(),
            "discord" => one.json()["content"].clone(),
            "ntfy" => {
                assert_eq!(one.header("authorization"), "Bearer tk_canary");
                assert_eq!(one.json()["topic"], "alerts");
                one.json()["title"].clone()
            }
            _ => one.json()["attachments"][0]["content"]["body"][0]["inlines"][0]["text"].clone(),
        };
        assert!(
            text.as_str().unwrap().contains("A test from Holdfast"),
            "{kind}: {text}"
        );
    }
}

#[tokio::test]
async fn messages_go_only_where_they_may() {
    // Nothing is configured: loopback is a private network like others.
    let api = start_with(Place::sqlite(), |mut settings| {
        settings.notifications.private_hosts.clear();
        settings
    })
    .await;
    let body =
        json!({ "name": "lan", "type": "slack", "events": ["*"], "url": "https://127.0.0.1:1/x" });
    let channel = make(&api, body).await;
    let answer = api
        .post(&format!("{channel}/test"), &api.admin, json!({}))
        .await
        .expect(200)
        .json();
    let error = answer["error"].as_str().unwrap();
    assert!(
        error.contains("in a private network, and not configured"),
        "{error}"
    );
    // A redirect is an answer, and not followed.
    let api = start(Place::sqlite()).await;
    let (first, second) = (Receiver::start().await, Receiver::start().await);
    let channel = make(&api, webhook(&first)).await;
    first.reply([Reply::Status(
        302,
        vec![("location", second.url("/"))],
        String::new(),
    )]);
    let answer = api
        .post(&format!("{channel}/test"), &api.admin, json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&answer["delivered"], &answer["status"]),
        (&json!(false), &json!(302))
    );
    assert_eq!(second.received().len(), 0);
}

#[tokio::test]
async fn no_secret_leaves_but_to_its_receiver() {
    let (logs, _guard) = Logs::keep();
    let api = start(Place::sqlite()).await;
    let receiver = Receiver::start().await;
    let hook = make(&api, webhook(&receiver)).await;
    let ntfy = json!({ "name": "n", "type": "ntfy", "events": ["device.*"], "url": receiver.url("/canary-topic"),
        "token": "tk_canary" });
    let ntfy = make(&api, ntfy).await;
    let mut seen = Vec::new();
    // The receiver repeats everything it was sent.
    receiver.reply([Reply::Echo, Reply::Echo, Reply::Echo, Reply::Echo]);
    for channel in [&hook, &ntfy] {
        let answer = api
            .post(&format!("{channel}/test"), &api.admin, json!({}))
            .await
            .expect(200)
            .json();
        assert_eq!(answer["delivered"], false);
        seen.push(answer);
    }
    api.enrol().await;
    later(&api, 0).await;
    assert_eq!(receiver.received().len(), 4);
    assert!(
        receiver
            .received()
            .iter()
            .any(|one| one.path.contains("canary"))
    );
    for path in [
        &hook,
        &ntfy,
        &format!("{hook}/deliveries"),
        &format!("{ntfy}/deliveries"),
    ] {
        seen.push(api.get(path, &api.admin).await.expect(200).json());
    }
    for path in [
        CHANNELS,
        "/api/v1/events?limit=200",
        "/api/v1/audit?limit=200",
    ] {
        seen.push(api.get(path, &api.admin).await.expect(200).json());
    }
    let failed = seen
        .iter()
        .any(|one| one.to_string().contains("notification.failed"));
    assert!(failed, "what was given up is an event");
    for one in seen {
        assert!(!one.to_string().contains("canary"), "{one}");
    }
    let logs = logs.text();
    assert!(logs.contains("a message was not taken"));
    let ours: Vec<&str> = logs
        .lines()
        .filter(|line| line.contains("canary"))
        .collect();
    assert!(ours.is_empty(), "{ours:#?}");
    // Nor does the store have any of it in the clear.
    let file = api.place.dir.path().join("holdfast.db");
    for file in [file.clone(), file.with_extension("db-wal")] {
        let bytes = std::fs::read(file).unwrap_or_default();
        assert!(!bytes.windows(6).any(|part| part == b"canary"));
    }
}
