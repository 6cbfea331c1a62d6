//! Facts about the local API, over a real socket.

use std::path::PathBuf;

use holdfast_proto::id::DeviceId;
use holdfast_proto::target::TargetState;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::{AskError, ask};
use super::*;
use crate::clock::SystemClock;
use crate::config::UpdateSettings;
use crate::enrolment::Token;
use crate::orders::Orders;
use crate::shared::Accepted;

const SECRET: &str = "hfd_canary";

struct Site {
    folder: tempfile::TempDir,
    enrolment: Enrolment,
    journal: Journal,
    shared: Shared,
    permission: Permission,
    clock: SystemClock,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let uuid = DeviceId::from_random([3; 16]);
        let settings = UpdateSettings {
            windows: Vec::new(),
            lock_dir: folder.path().join("locks"),
        };
        let body = json!({
            "uuid": uuid, "generation": 4,
            "apps": { "1": { "appId": 1, "appName": "a", "services": [
                { "serviceId": 1, "serviceName": "web", "imageName": "web:1", "config": {} } ] } }
        });
        let target = TargetState::parse(body.to_string().as_bytes()).unwrap();
        Self {
            enrolment: Enrolment {
                uuid,
                token: Token::new(SECRET.to_owned()),
                api_url: "http://127.0.0.1:1/".to_owned(),
                poll_interval_seconds: 30,
            },
            journal: Journal::open(folder.path()).unwrap().journal,
            shared: Shared::new(Some(Accepted { target, etag: None })),
            permission: Permission::new(&settings, Orders::load(folder.path())),
            clock: SystemClock::start(),
            folder,
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// Runs `test` beside the API.
    async fn while_serving<T>(&self, test: impl AsyncFnOnce(&Path) -> T) -> T {
        let socket = self.socket();
        let api = LocalApi {
            socket: &socket,
            enrolment: &self.enrolment,
            journal: &self.journal,
            shared: &self.shared,
            permission: &self.permission,
            clock: &self.clock,
            selfupdate: None,
        };
        tokio::select! {
            // First: it listens before the test asks.
            biased;
            () = api.run() => panic!("the API never ends"),
            outcome = test(&socket) => outcome,
        }
    }
}

fn refusal(outcome: Result<Value, AskError>) -> (u16, String) {
    match outcome {
        Err(AskError::Refused { status, detail }) => (status, detail),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn shows_status_and_plan_without_the_token() {
    let site = Site::new();
    site.while_serving(async |socket| {
        let status: Value = ask(socket, Method::GET, "/v1/status", None).await.unwrap();
        assert_eq!(status["uuid"], site.enrolment.uuid.to_string());
        assert_eq!(status["agent_pid"], std::process::id());
        assert_eq!(status["status"], "no_target");
        assert!(!status.to_string().contains(SECRET));
        let plan: PlanStatus = ask(socket, Method::GET, "/v1/plan", None).await.unwrap();
        assert_eq!(plan.steps, []);
        let alive: Value = ask(socket, Method::GET, "/livez", None).await.unwrap();
        assert_eq!(alive, "alive");
    })
    .await;
}

#[tokio::test]
async fn orders_are_taken_kept_and_shown() {
    let site = Site::new();
    site.while_serving(async |socket| {
        let post = async |path: &str, body: Value| {
            ask::<Value>(socket, Method::POST, path, Some(&body)).await
        };
        let delete = async |path: &str| ask::<Value>(socket, Method::DELETE, path, None).await;
        let lease = json!({ "owner": "till", "ttl_seconds": 60 });
        let control = post("/v1/lock/1/web", lease.clone()).await.unwrap();
        assert_eq!(control["locks"]["1/web"]["owner"], "till");
        assert_eq!(control["locks"]["1/web"]["seconds_left"], 60);
        post("/v1/lock", json!({})).await.unwrap();
        let (status, detail) = refusal(post("/v1/lock", lease).await);
        assert_eq!((status, detail.contains("device is locked")), (409, true));
        delete("/v1/lock").await.unwrap();
        let control = delete("/v1/lock/1/web").await.unwrap();
        assert_eq!(control["locks"], json!({}));

        let control = post("/v1/update-now", json!({ "force": true }))
            .await
            .unwrap();
        assert_eq!(control["forced"], true);
        assert!(site.shared.is_asking() && site.shared.take_hurry());
        let control = post("/v1/pause", json!({ "reason": "audit" }))
            .await
            .unwrap();
        assert_eq!(control["paused"]["reason"], "audit");
        assert_eq!(control["forced"], false);
        let (status, detail) = refusal(post("/v1/update-now", json!({ "force": true })).await);
        assert_eq!((status, detail.contains("resume")), (409, true));
        assert!(Orders::load(site.folder.path()).paused().is_some());
        let control = delete("/v1/pause").await.unwrap();
        assert_eq!(control["paused"], Value::Null);
    })
    .await;
    assert!(!site.folder.path().join("orders.json.new").exists());
}

#[tokio::test]
async fn wrong_requests_are_refused_and_say_why() {
    let site = Site::new();
    site.while_serving(async |socket| {
        let call = async |method: Method, path: &str, body: Value| {
            refusal(ask(socket, method, path, Some(&body)).await)
        };
        let (status, detail) = call(Method::POST, "/v1/lock", json!({ "ttl": 1 })).await;
        assert_eq!(status, 400);
        assert!(detail.contains("/ttl: unknown field"), "{detail}");
        let (status, _) = call(
            Method::POST,
            "/v1/lock",
            json!({ "owner": "x".repeat(5_000) }),
        )
        .await;
        assert_eq!(status, 413);
        let (status, detail) = call(Method::POST, "/v1/lock/1/wep", json!({})).await;
        assert_eq!(
            (status, detail.as_str()),
            (404, "the target names no service 1/wep")
        );
        assert_eq!(call(Method::GET, "/v1/nothing", json!({})).await.0, 404);
        assert_eq!(call(Method::GET, "/v1/lock/1/../x", json!({})).await.0, 404);
        let (status, detail) = call(Method::PUT, "/v1/pause", json!({})).await;
        assert_eq!((status, detail.contains("POST, DELETE")), (405, true));
    })
    .await;
    assert!(!site.folder.path().join("orders.json").exists());
}

#[tokio::test]
async fn silent_and_greedy_clients_keep_nobody_out_for_long() {
    let site = Site::new();
    site.while_serving(async |socket| {
        let mut greedy = UnixStream::connect(socket).await.unwrap();
        let header = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(64 << 10));
        // Refused while it is being written: either end may notice first.
        let _ = greedy.write_all(header.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = greedy.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));

        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS - 1 {
            silent.push(UnixStream::connect(socket).await.unwrap());
        }
        let alive: Value = ask(socket, Method::GET, "/livez", None).await.unwrap();
        assert_eq!(alive, "alive");
    })
    .await;
}

#[tokio::test]
async fn without_a_folder_for_the_socket_the_agent_goes_on() {
    let mut site = Site::new();
    site.enrolment.api_url = "x".to_owned();
    let socket = site.folder.path().join("none/agent.sock");
    let api = LocalApi {
        socket: &socket,
        enrolment: &site.enrolment,
        journal: &site.journal,
        shared: &site.shared,
        permission: &site.permission,
        clock: &site.clock,
        selfupdate: None,
    };
    let mut run = std::pin::pin!(api.run());
    assert!(futures_util::poll!(&mut run).is_pending());
    let nobody = ask::<Value>(&socket, Method::GET, "/livez", None).await;
    assert!(matches!(nobody, Err(AskError::NotRunning { .. })));
}
