//! Facts about reports that no honest device sends: of two machines under one name, too many, too long.

use std::collections::BTreeMap;

use holdfast_api::http::device::report::MOST_REPORTS;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::api::{Answer, Api, Device, report};

crate::on_both_databases![
    c29_two_machines_under_one_name_are_found_out_and_kept_apart,
    c29_whoever_is_released_is_heard_anew,
    c30_a_flood_of_one_device_is_cut_and_others_are_heard,
    c32_long_texts_and_markup_stay_texts_within_their_bounds,
];

/// A machine that has the device's token.
struct Machine<'a> {
    api: &'a Api,
    device: &'a Device,
    journal: &'a str,
    boot: &'a str,
    sequence: u64,
}

impl Machine<'_> {
    async fn reports(&mut self) -> Answer {
        self.sequence += 1;
        let mut body = report(self.sequence, 0);
        body["journal"] = json!(self.journal);
        body["system"] = json!({
            "platform": { "os": "linux", "architecture": "amd64" }, "cpuPercent": 1.0,
            "memoryUsedBytes": 1, "memoryTotalBytes": 2, "diskFreeBytes": 1, "diskTotalBytes": 2,
            "uptimeSeconds": 5, "bootId": self.boot,
        });
        let path = self.device.path("/current-state");
        let answer = self.api.call("PUT", &path, &self.device.token, Some(body));
        answer.await
    }
}

async fn change(api: &Api, device: &Device, body: Value) -> Answer {
    let path = device.path("");
    api.call("PATCH", &path, &api.admin, Some(body)).await
}

async fn show(api: &Api, device: &Device) -> Value {
    let answer = api.get(&device.path(""), &api.admin).await;
    answer.expect(200).json()
}

async fn c29_two_machines_under_one_name_are_found_out_and_kept_apart(place: Place) {
    let api = Api::start(place).await;
    for (journals, sequences) in [
        (["j", "j"], [40, 40]),
        (["j", "j"], [900, 40]),
        (["j", "k"], [40, 0]),
    ] {
        let (device, other) = (api.enrol().await, api.enrol().await);
        let machine = |n: usize| Machine {
            api: &api,
            device: &device,
            journal: journals[n],
            boot: ["first", "second"][n],
            sequence: sequences[n],
        };
        let mut machines = [machine(0), machine(1)];
        // An honest device that starts again is one machine.
        let mut honest = Machine {
            device: &other,
            ..machine(0)
        };
        let mut taken = 0;
        for turn in 0.. {
            honest.boot = ["a", "b", "c", "d", "e", "f", "g", "h"][turn % 8];
            if turn < 8 {
                honest.reports().await.expect(204);
            }
            let answer = machines[turn % 2].reports().await;
            if answer.status == 409 {
                assert_eq!(answer.code(), "quarantined");
                break;
            }
            answer.expect(204);
            taken += 1;
            assert!(taken < 8, "nobody notices");
        }
        // Neither is believed any more, and neither gets anything; nobody else is concerned.
        for machine in &mut machines {
            assert_eq!(machine.reports().await.expect(409).code(), "quarantined");
        }
        api.poll(&device, &[]).await.expect(409);
        api.poll(&other, &[]).await.expect(200);
        honest.boot = "z";
        honest.reports().await.expect(204);
        assert!(show(&api, &device).await["quarantined_at"].is_string());
        assert!(show(&api, &other).await["quarantined_at"].is_null());
        let of = |kind: &str| format!("/api/v1/{kind}");
        let events = of("events?kind=device.quarantined");
        let events = api.get(&events, &api.admin).await.expect(200).json();
        assert_eq!(events["items"][0]["device"], device.uuid.as_str());
        assert_eq!(events["items"][0]["detail"]["severity"], "error");
        let told = events["items"].as_array().unwrap().iter();
        assert_eq!(
            told.filter(|one| one["device"] == device.uuid.as_str())
                .count(),
            1
        );
        let audit = api.get(&of("audit"), &api.admin).await.expect(200).json();
        assert_eq!(audit["items"][0]["action"], "device.quarantine");
        assert_eq!(audit["items"][0]["subject"], device.uuid.as_str());
        // Its token, which both have, makes no new one; an operator's leave and a key do.
        let body = json!({ "uuid": device.uuid, "agentVersion": "1.0.0",
            "platform": { "os": "linux", "architecture": "amd64" } });
        let path = "/api/v1/enroll";
        let refused = api
            .post(path, &device.token, body.clone())
            .await
            .expect(409);
        assert_eq!(refused.code(), "quarantined");
        let leave = json!({ "allow_re_enrolment": true });
        change(&api, &device, leave).await.expect(200);
        let key = api.key(json!({})).await;
        let enrolled = api.post(path, &key, body).await.expect(201).json();
        let again = Device {
            uuid: device.uuid.clone(),
            token: enrolled["token"].as_str().unwrap().to_owned(),
        };
        let mut right = Machine {
            device: &again,
            ..machine(0)
        };
        right.reports().await.expect(204);
        machines[1].reports().await.expect(401);
        assert!(show(&api, &device).await["quarantined_at"].is_null());
    }
}

async fn c29_whoever_is_released_is_heard_anew(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    let machine = |boot| Machine {
        api: &api,
        device: &device,
        journal: "j",
        boot,
        sequence: 7,
    };
    let [mut one, mut other] = [machine("one"), machine("other")];
    one.reports().await.expect(204);
    let served = api.poll(&device, &[]).await.expect(200);
    let tag = served.header("etag").to_owned();
    let headers = [("if-none-match", tag.as_str()), ("prefer", "wait=60")];
    let held = api.poll(&device, &headers);
    let quarantine = async {
        let body = json!({ "quarantined": true });
        change(&api, &device, body).await.expect(200).json()
    };
    // Whoever is waiting for a new target is told as well.
    let (told, shown) = tokio::join!(held, quarantine);
    assert_eq!(told.expect(409).code(), "quarantined");
    assert!(shown["quarantined_at"].is_string());
    one.reports().await.expect(409);
    let body = json!({ "quarantined": false });
    let changed = change(&api, &device, body).await.expect(200).json();
    assert!(changed["quarantined_at"].is_null());
    for _ in 0..5 {
        one.reports().await.expect(204);
    }
    // The same fault again is found out again.
    let mut turns = 0;
    while other.reports().await.status != 409 && one.reports().await.status != 409 {
        turns += 1;
        assert!(turns < 4, "nobody notices");
    }
}

async fn c30_a_flood_of_one_device_is_cut_and_others_are_heard(place: Place) {
    let api = Api::start(place).await;
    let (flooding, other) = (api.enrol().await, api.enrol().await);
    let send = |device: &Device, sequence: u32| {
        let path = device.path("/current-state");
        let (token, body) = (device.token.clone(), report(sequence.into(), 0));
        let api = &api;
        async move { api.call("PUT", &path, &token, Some(body)).await }
    };
    let mut statuses: BTreeMap<u16, u32> = BTreeMap::new();
    let begun = holdfast_api::clock::now();
    // In groups: a database has so many connections, and a busy one says so.
    for group in 0..(MOST_REPORTS / 100 + 4) {
        let flood = (0..100).map(|n| send(&flooding, group * 100 + n + 1));
        for answer in futures_util::future::join_all(flood).await {
            *statuses.entry(answer.status.as_u16()).or_default() += 1;
            if answer.status == 429 {
                let wait: u64 = answer.header("retry-after").parse().unwrap();
                assert!((1..=61).contains(&wait), "{wait}");
            }
        }
    }
    let refused = statuses.remove(&429).unwrap_or(0);
    // A slow machine may have taken more than a window for all of them.
    let windows = holdfast_api::clock::now().since_ms(begun) / 60_000 + 1;
    let taken: u32 = statuses.values().sum();
    assert!(refused > 0, "nothing is cut: {statuses:?}");
    assert!(
        i64::from(taken) <= i64::from(MOST_REPORTS) * windows,
        "{statuses:?}"
    );
    assert!(
        statuses.keys().all(|status| [204, 503].contains(status)),
        "{statuses:?}"
    );
    // It polls as before, and others report as before.
    api.poll(&flooding, &[]).await.expect(200);
    for sequence in 1..10 {
        send(&other, sequence).await.expect(204);
    }
}

async fn c32_long_texts_and_markup_stay_texts_within_their_bounds(place: Place) {
    let api = Api::start(place).await;
    let device = api.enrol().await;
    // What is larger than any report is refused before it is read.
    let path = device.path("/current-state");
    let mut huge = report(1, 0);
    huge["holds"] = json!([{ "code": "x", "detail": "x".repeat(5_000_000) }]);
    let refused = api.call("PUT", &path, &device.token, Some(huge)).await;
    assert_eq!(refused.expect(413).code(), "too_large");
    api.get(&path, &api.admin).await.expect(404);
    // Markup is a name like others, and comes back as it is, in JSON that no browser takes for a page.
    let markup = "<script>alert(1)</script>\"'&";
    let marked = json!({ "name": markup, "labels": { "site": markup } });
    change(&api, &device, marked).await.expect(200);
    let mut long = report(2, 0);
    long["status"] = json!("holding");
    long["holds"] = json!([{ "code": "x", "detail": format!("{markup}{}", "x".repeat(200_000)) }]);
    let taken = api.call("PUT", &path, &device.token, Some(long)).await;
    taken.expect(204);
    for path in [
        device.path(""),
        path,
        "/api/v1/devices".to_owned(),
        "/api/v1/audit".to_owned(),
    ] {
        let answer = api.get(&path, &api.admin).await.expect(200);
        assert_eq!(answer.header("content-type"), "application/json", "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        let text = String::from_utf8(answer.bytes.clone()).unwrap();
        assert!(text.contains("<script>alert(1)</script>"), "{path}");
    }
    let shown = show(&api, &device).await;
    assert_eq!(
        (&shown["name"], &shown["labels"]["site"]),
        (&json!(markup), &json!(markup))
    );
    // A name or a label beyond its bound is none.
    for (wrong, pointer) in [
        (json!({ "name": "x".repeat(5_000) }), "/name"),
        (json!({ "name": "a\u{0}b" }), "/name"),
        (
            json!({ "labels": { "site": "x".repeat(5_000) } }),
            "/labels/site",
        ),
        (json!({ "labels": { "<b>": "x" } }), "/labels/<b>"),
    ] {
        let refused = change(&api, &device, wrong).await.expect(422);
        assert_eq!(refused.pointers(), [pointer]);
    }
}
