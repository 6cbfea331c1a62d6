//! Faults C01 to C18, the wire's: herds, silence, trickles, floods, documents without an end, and an end of the
//! program in the middle of a request.

use std::time::{Duration, SystemTime};

use axum::body::Body;
use futures_util::future::join_all;
use futures_util::stream;
use http::{Request, header};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::program::{Served, read_head, serve};
use crate::support::Place;
use crate::support::api::{Api, Device, report, target, wait_for};

/// A tenth of the fleet that the fault speaks of: client and server share this process and its files.
const HERD: usize = 1_000;
const DEVICES: usize = 100;
/// From the first poll of a herd to the last answer.
const RECOVERS_WITHIN: Duration = Duration::from_mins(1);
/// Sockets that say nothing or too little.
const SILENT: usize = 1_500;
/// The ten seconds of a request head, and what a busy machine adds.
const CLOSED_WITHIN: Duration = Duration::from_secs(20);
/// Others, meanwhile.
const SERVED_WITHIN: Duration = Duration::from_secs(3);
/// The ten seconds in which open requests may end, and what a busy machine adds.
const DRAINED_WITHIN: Duration = Duration::from_secs(15);

/// One request on a connection of its own; its answer's head.
async fn ask(served: &Served, request: &str) -> String {
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    read_head(&mut stream).await
}

fn poll(device: &Device, etag: &str) -> String {
    format!(
        "GET {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nif-none-match: {etag}\r\n\r\n",
        device.path("/state"),
        device.token
    )
}

/// Asks again and again on new connections, so often; each answer must come soon.
async fn others_are_served(served: &Served, times: usize) {
    for _ in 0..times {
        let request = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
        let head = timeout(SERVED_WITHIN, ask(served, request)).await;
        assert!(head.unwrap().starts_with("HTTP/1.1 200"));
    }
}

/// Devices that the cache knows, and the `ETag` of a device's target.
async fn fleet(api: &Api) -> Vec<(Device, String)> {
    let key = api.key(json!({})).await;
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        let body = json!({"name": format!("box {n}"), "agentVersion": "1.0.0",
            "platform": {"os": "linux", "architecture": "amd64"}});
        let body = api.post("/api/v1/enroll", &key, body).await.expect(201);
        let text = |name: &str| body.json()[name].as_str().unwrap().to_owned();
        let device = Device {
            uuid: text("uuid"),
            token: text("token"),
        };
        let etag = api.poll(&device, &[]).await.expect(200);
        devices.push((device, etag.header("etag").to_owned()));
    }
    devices
}

/// When the database was written to last, and how large it is.
fn written(api: &Api) -> Vec<(SystemTime, u64)> {
    ["holdfast.db", "holdfast.db-wal"]
        .iter()
        .map(|name| {
            let file = std::fs::metadata(api.place.dir.path().join(name)).unwrap();
            (file.modified().unwrap(), file.len())
        })
        .collect()
}

/// All of them at once, each poll on a connection of its own; the heads of the answers.
async fn herd(served: &Served, devices: &[(Device, String)]) -> Vec<String> {
    let polls = (0..HERD).map(|n| {
        let (device, etag) = &devices[n % devices.len()];
        let request = poll(device, etag);
        async move { ask(served, &request).await }
    });
    let answers = timeout(RECOVERS_WITHIN, join_all(polls)).await;
    answers.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn c01_a_herd_that_comes_back_at_once_is_answered_without_the_database() {
    let served = serve().await;
    let devices = fleet(&served.api).await;
    let before = written(&served.api);
    for head in herd(&served, &devices).await {
        assert!(head.starts_with("HTTP/1.1 304"), "{head}");
    }
    assert_eq!(written(&served.api), before, "polls were written down");
}

#[tokio::test(flavor = "multi_thread")]
async fn c02_a_target_that_changed_for_all_is_served_from_memory() {
    let served = serve().await;
    let api = &served.api;
    let devices = fleet(api).await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    for (device, _) in &devices {
        api.set(device, "nginx:1").await.expect(200);
    }
    for (device, _) in &devices {
        let slot = api.app.live.get(device.uuid.parse().unwrap()).unwrap();
        assert!(slot.served().body.is_some(), "not in memory");
    }
    let before = written(api);
    for head in herd(&served, &devices).await {
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    assert_eq!(written(api), before, "polls were written down");
}

#[tokio::test(flavor = "multi_thread")]
async fn c13_clients_that_say_nothing_or_little_are_closed_and_hold_up_nobody() {
    let served = serve().await;
    let begun = Instant::now();
    let mut quiet = Vec::new();
    for n in 0..SILENT {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let words: &[u8] = match n % 3 {
            0 => b"",
            1 => b"GET /livez HTTP/1.1\r\nhost: ",
            _ => b"POST /api/v1/tokens HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{",
        };
        stream.write_all(words).await.unwrap();
        quiet.push(stream);
    }
    others_are_served(&served, 200).await;
    for (n, mut stream) in quiet.into_iter().enumerate() {
        let mut said = Vec::new();
        let end = timeout_at(begun + CLOSED_WITHIN, stream.read_to_end(&mut said)).await;
        assert!(end.is_ok(), "socket {n} is still open");
        // Whoever has no credential is refused before the body.
        let refused = String::from_utf8(said).unwrap();
        assert!(
            n % 3 < 2 || refused.starts_with("HTTP/1.1 401"),
            "{refused}"
        );
    }
    others_are_served(&served, 10).await;
}

#[tokio::test(start_paused = true)]
async fn c13_a_body_that_does_not_come_is_given_up_after_a_minute() {
    let api = Api::start(Place::sqlite()).await;
    let beginning = Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"{"));
    let body = Body::from_stream(futures_util::StreamExt::chain(
        stream::iter([beginning]),
        stream::pending(),
    ));
    let request = Request::builder()
        .method("POST")
        .uri("/api/v1/tokens")
        .header(header::AUTHORIZATION, format!("Bearer {}", api.admin))
        .header(header::CONTENT_TYPE, "application/json");
    let begun = Instant::now();
    let refused = api.send(request.body(body).unwrap()).await.expect(408);
    assert_eq!(refused.code(), "timeout");
    assert_eq!(begun.elapsed().as_secs(), 60);
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn c14_http2_is_not_spoken_so_that_none_of_its_floods_arrives() {
    let served = serve().await;
    let upgrade = "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    assert!(ask(&served, upgrade).await.starts_with("HTTP/1.1 200"));
    // Streams that are opened and reset at once (CVE-2023-44487), and headers that never end.
    let mut rapid = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut endless = rapid.clone();
    rapid.extend(frame(4, 0, 0, b""));
    endless.extend(frame(4, 0, 0, b""));
    endless.extend(frame(1, 0, 1, b"\x82"));
    for n in 0..10_000_u32 {
        // `:method GET`, `:scheme http`, `:path /`.
        rapid.extend(frame(1, 5, 2 * n + 1, b"\x82\x86\x84"));
        rapid.extend(frame(3, 0, 2 * n + 1, &8_u32.to_be_bytes()));
        endless.extend(frame(9, 0, 1, &[0; 64]));
    }
    for flood in [rapid, endless] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        // The server closes before it took all of it.
        let _ = stream.write_all(&flood).await;
        let mut said = Vec::new();
        let end = timeout(SERVED_WITHIN, stream.read_to_end(&mut said)).await;
        assert!(end.is_ok(), "a connection that speaks HTTP/2 is kept");
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    }
    others_are_served(&served, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c14_ten_thousand_requests_in_one_connection_are_answered_beside_others() {
    const MANY: usize = 10_000;
    let served = serve().await;
    let (mut from, mut to) = TcpStream::connect(served.address)
        .await
        .unwrap()
        .into_split();
    let writing = tokio::spawn(async move {
        let request = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
        for _ in 0..MANY / 100 {
            to.write_all(&request).await.unwrap();
        }
        to
    });
    let reading = async {
        let (mut rest, mut chunk, mut answers) = (Vec::new(), vec![0; 64 * 1024], 0);
        while answers < MANY {
            let read = from.read(&mut chunk).await.unwrap();
            assert!(read > 0, "closed after {answers} answers");
            rest.extend_from_slice(&chunk[..read]);
            let text = String::from_utf8_lossy(&rest).into_owned();
            answers += text.matches("\r\n\r\nok\n").count();
            let taken = text.rfind("\r\n\r\nok\n").map_or(0, |at| at + 7);
            rest.drain(..taken);
        }
    };
    let read = timeout(RECOVERS_WITHIN, async {
        tokio::join!(reading, others_are_served(&served, 50));
    });
    assert!(read.await.is_ok(), "not all were answered");
    writing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn c15_a_body_without_an_end_is_refused_while_it_still_comes() {
    let served = serve().await;
    let device = served.api.enrol().await;
    for credential in [&*served.api.admin, "nobody's"] {
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {credential}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
            device.path("/target-state")
        );
        let stream = TcpStream::connect(served.address).await.unwrap();
        let (mut from, mut to) = stream.into_split();
        to.write_all(head.as_bytes()).await.unwrap();
        let sending = tokio::spawn(async move {
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x1_0000));
            let mut sent = 0_usize;
            while to.write_all(chunk.as_bytes()).await.is_ok() {
                sent += 0x1_0000;
            }
            sent
        });
        let mut said = [0; 12];
        timeout(CLOSED_WITHIN, from.read_exact(&mut said))
            .await
            .unwrap()
            .unwrap();
        let expected = if credential == served.api.admin {
            b"HTTP/1.1 413"
        } else {
            b"HTTP/1.1 401"
        };
        assert_eq!(&said, expected);
        // What the limit lets through, and what lies in the kernel's buffers on both sides.
        let sent = timeout(CLOSED_WITHIN, sending).await.unwrap().unwrap();
        assert!(sent < 16 << 20, "{sent} bytes were taken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c15_more_header_lines_than_anybody_needs_are_refused() {
    let served = serve().await;
    let lines = "x: y\r\n".repeat(65);
    let request = format!("GET /livez HTTP/1.1\r\nhost: x\r\n{lines}\r\n");
    assert!(ask(&served, &request).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn c15_documents_that_nest_without_end_or_unpack_are_refused() {
    let api = Api::start(Place::sqlite()).await;
    let device = api.enrol().await;
    let nested = [
        "[".repeat(60_000),
        r#"{"a":"#.repeat(12_000),
        format!(r#"{{"apps":{}}}"#, "[".repeat(50_000)),
    ];
    for text in nested {
        for (method, path, token) in [
            ("POST", device.path("/target-state"), &api.admin),
            ("PUT", device.path("/current-state"), &device.token),
            ("POST", "/api/v1/tokens".to_owned(), &api.admin),
            ("POST", "/api/v1/policies".to_owned(), &api.admin),
        ] {
            let body = Some(text.clone().into_bytes());
            api.call_raw(method, &path, token, body).await.expect(400);
        }
    }
    // The same ten times in each of ten lines: a billion at the end.
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..10 {
        let of = vec![format!("*a{}", n - 1); 10].join(", ");
        laughs += &[
            "a",
            &n.to_string(),
            ": &a",
            &n.to_string(),
            " [",
            &of,
            "]\n",
        ]
        .concat();
    }
    laughs += "services: *a9\n";
    for text in [laughs, "[".repeat(100_000), "a: ".repeat(50_000)] {
        let request = Request::builder()
            .method("PUT")
            .uri(device.path("/compose"))
            .header(header::AUTHORIZATION, format!("Bearer {}", api.admin))
            .header(header::CONTENT_TYPE, "application/yaml");
        let begun = Instant::now();
        let refused = api.send(request.body(Body::from(text)).unwrap()).await;
        assert!(refused.status.is_client_error(), "{}", refused.status);
        assert!(begun.elapsed() < SERVED_WITHIN);
    }
    // A good document, packed: nobody unpacks it, so nothing can be hidden in one.
    let packed: &[u8] = &[
        31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 171, 86, 202, 75, 204, 77, 85, 178, 82, 74, 84, 210, 81,
        42, 202, 207, 1, 49, 203, 50, 83, 203, 83, 139, 148, 106, 1, 209, 216, 88, 19, 28, 0, 0, 0,
    ];
    let request = Request::builder()
        .method("POST")
        .uri("/api/v1/tokens")
        .header(header::AUTHORIZATION, format!("Bearer {}", api.admin))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_ENCODING, "gzip");
    let refused = api.send(request.body(Body::from(packed)).unwrap()).await;
    assert!(refused.status.is_client_error(), "{}", refused.status);
}

/// Begins a report on a connection, up to the half of its body, which the server has begun to read.
async fn half(served: &Served, device: &Device, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let head = format!(
        "PUT {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        device.path("/current-state"),
        device.token,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100"));
    let half = &body.as_bytes()[..body.len() / 2];
    stream.write_all(half).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn c18_an_upload_under_way_is_finished_and_one_that_stands_still_is_not_waited_for() {
    let served = serve().await;
    let (device, other) = (served.api.enrol().await, served.api.enrol().await);
    let body = report(1, 0).to_string();
    let mut under_way = half(&served, &device, &body).await;
    let _stands_still = half(&served, &other, &body).await;
    let begun = Instant::now();
    served.api.stop.send(true).unwrap();
    wait_for("nobody new is taken", || async {
        TcpStream::connect(served.address).await.is_err()
    })
    .await;
    let rest = &body.as_bytes()[body.len() / 2..];
    under_way.write_all(rest).await.unwrap();
    let mut answer = String::new();
    under_way.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    let ended = timeout_at(begun + DRAINED_WITHIN, served.ended).await;
    ended.unwrap().unwrap();
    // What was acknowledged is there, and nothing of what was not.
    let api = &served.api;
    let path = device.path("/current-state");
    let kept = api.get(&path, &api.admin).await.expect(200);
    assert_eq!(kept.json()["sequence"], 1);
    let path = other.path("/current-state");
    api.get(&path, &api.admin).await.expect(404);
}

#[tokio::test]
async fn c18_whoever_asks_at_the_end_is_told_to_go_elsewhere() {
    let api = Api::start(Place::sqlite()).await;
    api.get("/readyz", "").await.expect(200);
    api.stop.send(true).unwrap();
    let refused = api.get("/readyz", "").await.expect(503);
    assert_eq!(refused.code(), "stopping");
    // A change that still comes in is made whole.
    let device = api.enrol().await;
    api.registry.push("nginx:1", "v1", &["linux/amd64"]);
    let path = device.path("/target-state");
    api.post(&path, &api.admin, target("nginx:1"))
        .await
        .expect(200);
}
