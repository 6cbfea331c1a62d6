//! Facts about the program: its start, its first token, its sockets, its end.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use holdfast_api::systemd::Systemd;
use holdfast_api::{http as surface, server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::Place;
use crate::support::api::Api;

#[tokio::test]
async fn the_first_start_writes_an_admin_token_only_its_owner_can_read() {
    let api = Api::start(Place::sqlite()).await;
    let file = api.place.dir.path().join("admin-token");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    api.get("/api/v1/tokens", &api.admin).await.expect(200);
    // A second start makes no second one.
    let admin = api.admin.clone();
    let Api { place, app, .. } = api;
    drop(app);
    let again = Api::start(place).await;
    assert_eq!(again.admin, admin);
    let listed = again.get("/api/v1/tokens", &admin).await.json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
}

pub struct Served {
    pub api: Api,
    pub address: std::net::SocketAddr,
    pub ended: tokio::task::JoinHandle<()>,
}

pub async fn serve() -> Served {
    let api = Api::start(Place::sqlite()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, stopping) = (surface::router(api.app.clone()), api.app.stopping.clone());
    let ended = tokio::spawn(async move {
        let systemd = Systemd::default();
        server::serve(listener, router, Arc::default(), &systemd, stopping).await;
    });
    Served {
        api,
        address,
        ended,
    }
}

pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let served = serve().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    for _ in 0..3 {
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200"));
        let mut body = [0; 3];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"ok\n");
    }
}

#[tokio::test]
async fn c18_a_held_poll_is_answered_when_the_program_ends() {
    let served = serve().await;
    let device = served.api.enrol().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nif-none-match: *\r\nprefer: wait=60\r\n\r\n",
        device.path("/state"),
        device.token
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    crate::support::api::wait_for("the poll is held", || async {
        // The poll notes that the device was heard of before it waits.
        !served.api.app.live.take_seen().is_empty()
    })
    .await;
    served.api.stop.send(true).unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 304"));
    tokio::time::timeout(Duration::from_secs(10), served.ended)
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn c15_a_head_that_is_too_large_is_refused() {
    let served = serve().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let head = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    // The server may close before all of it is written.
    let _ = stream.write_all(head.as_bytes()).await;
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 431"));
}

#[test]
fn a_wrong_configuration_ends_the_program_with_the_code_that_stops_restarts() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "registires: []\n").unwrap();
    let ended = std::process::Command::new(env!("CARGO_BIN_EXE_holdfast-api"))
        .args(["serve", "--config"])
        .arg(file.path())
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(78));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("registires"), "{said}");
}
