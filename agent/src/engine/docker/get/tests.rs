//! Facts about reading over a connection that is kept, against a small engine of raw bytes.

use std::sync::{Arc, Mutex};

use bollard::ClientVersion;
use holdfast_plan::ContainerState;
use holdfast_proto::id::DeviceId;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::*;
use crate::engine::docker::{Agreed, Dialect, Docker, NO_BOUND_SECONDS, answers, only_of};

/// What the engine does when a request came.
enum Reply {
    /// Answers, and waits for the next.
    Say(String),
    /// Answers, and ends the connection.
    SayAndEnd(String),
    /// Ends the connection.
    End,
    /// Begins to answer, never goes on, and lets the time pass.
    Hang(String),
}

/// Each request line, after the number of the connection it came over.
type Seen = Arc<Mutex<Vec<(usize, String)>>>;

/// The connection's number and the request's number on it, from 0, decide on the reply.
type Script = fn(usize, usize) -> Reply;

struct Served {
    folder: TempDir,
    seen: Seen,
}

impl Served {
    fn start(script: Script) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("engine.sock")).unwrap();
        let seen = Seen::default();
        let writes = Arc::clone(&seen);
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, connection, script, Arc::clone(&writes)));
            }
        });
        Self { folder, seen }
    }

    /// An engine with which a version is agreed on already, so that only reads arrive.
    fn engine(&self) -> DockerEngine {
        let socket = self.folder.path().join("engine.sock");
        let engine = DockerEngine::looking(&socket);
        let version = ClientVersion {
            major_version: 1,
            minor_version: 41,
        };
        let path = socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, NO_BOUND_SECONDS, &version).unwrap();
        *engine.agreed.borrow_mut() = Some(Agreed {
            docker,
            dialect: Dialect::Docker,
        });
        engine
    }

    fn seen(&self) -> Vec<(usize, String)> {
        self.seen.lock().unwrap().clone()
    }

    fn connections(&self) -> Vec<usize> {
        let seen = self.seen();
        seen.into_iter().map(|(connection, _)| connection).collect()
    }
}

async fn serve(mut stream: UnixStream, connection: usize, script: Script, seen: Seen) {
    for nth in 0.. {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let line = head.lines().next().unwrap().to_owned();
        seen.lock().unwrap().push((connection, line));
        match script(connection, nth) {
            Reply::Say(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Reply::SayAndEnd(text) => return stream.write_all(text.as_bytes()).await.unwrap(),
            Reply::End => return,
            Reply::Hang(text) => {
                stream.write_all(text.as_bytes()).await.unwrap();
                tokio::time::pause();
                return std::future::pending().await;
            }
        }
    }
}

fn answer(status: u16, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}")
}

async fn list(engine: &DockerEngine) -> Result<Vec<answers::Listed>, EngineError> {
    engine.get(Operation::List, "/containers/json").await
}

#[tokio::test]
async fn one_connection_serves_many_reads_also_after_a_refusal() {
    let served = Served::start(|_, nth| {
        Reply::Say(if nth == 1 {
            answer(404, r#"{"message":"no such container"}"#)
        } else {
            answer(200, r#"[{"Id":"c1","Names":null}]"#)
        })
    });
    let engine = served.engine();
    assert_eq!(list(&engine).await.unwrap()[0].id.as_deref(), Some("c1"));
    assert!(engine.inspect("c1").await.unwrap().is_none());
    assert_eq!(list(&engine).await.unwrap().len(), 1);
    let lines = [
        "GET /v1.41/containers/json HTTP/1.1",
        "GET /v1.41/containers/c1/json HTTP/1.1",
        "GET /v1.41/containers/json HTTP/1.1",
    ];
    assert_eq!(served.seen(), lines.map(|line| (0, line.to_owned())));
}

#[tokio::test]
async fn a_read_beside_another_has_a_connection_of_its_own() {
    let served = Served::start(|_, _| Reply::Say(answer(200, "[]")));
    let engine = served.engine();
    let (one, other) = tokio::join!(list(&engine), list(&engine));
    assert!(one.is_ok() && other.is_ok());
    list(&engine).await.unwrap();
    let connections = served.connections();
    assert_eq!(connections.iter().max(), Some(&1), "{connections:?}");
    assert_eq!(connections.len(), 3);
}

#[tokio::test]
async fn a_kept_connection_that_the_engine_closed_is_replaced() {
    for script in [
        // Between two requests, and when the second came.
        (|_, _| Reply::SayAndEnd(answer(200, "[]"))) as Script,
        |connection, nth| match (connection, nth) {
            (0, 1) => Reply::End,
            _ => Reply::Say(answer(200, "[]")),
        },
    ] {
        let served = Served::start(script);
        let engine = served.engine();
        for _ in 0..2 {
            list(&engine).await.unwrap();
        }
        assert_eq!(served.connections().last(), Some(&1));
        assert!(engine.agreed.borrow().is_some(), "it was never away");
    }
}

#[tokio::test]
async fn an_engine_that_answers_nothing_on_a_new_connection_is_away() {
    let served = Served::start(|_, _| Reply::End);
    let engine = served.engine();
    let failure = list(&engine).await.unwrap_err();
    assert!(
        matches!(failure, EngineError::Unreachable { .. }),
        "{failure}"
    );
    assert_eq!(served.connections(), [0], "it is asked once");
    assert!(engine.agreed.borrow().is_none());
}

#[tokio::test]
async fn an_engine_that_is_gone_is_away_and_its_connection_forgotten() {
    let served = Served::start(|_, _| Reply::SayAndEnd(answer(200, "[]")));
    let engine = served.engine();
    list(&engine).await.unwrap();
    std::fs::remove_file(&engine.socket).unwrap();
    let failure = list(&engine).await.unwrap_err();
    assert!(failure.is_engine_away(), "{failure}");
    assert!(engine.conversation.borrow().is_none());
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_answer() {
    for script in [
        (|_, _| Reply::SayAndEnd("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[".to_owned()))
            as Script,
        |_, _| Reply::SayAndEnd("HTTP/1.1 200 OK\r\n\r\n[".to_owned()),
        |_, _| {
            let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n[\r\n";
            Reply::SayAndEnd(chunked.to_owned())
        },
    ] {
        let served = Served::start(script);
        let failure = list(&served.engine()).await.unwrap_err();
        assert!(
            matches!(failure, EngineError::Unreachable { .. }),
            "{failure}"
        );
        assert_eq!(
            served.connections(),
            [0],
            "what was answered is not asked again"
        );
    }
}

#[tokio::test]
async fn refusals_are_told_as_the_engine_words_them() {
    let served = Served::start(|_, nth| {
        let (status, body) = [
            (404, r#"{"message":"no such\nthing"}"#),
            (
                500,
                r#"{"cause":"x","message":"c1: no such container","response":500}"#,
            ),
            (500, r#"{"message":"database is locked"}"#),
            (403, "<b>not you</b>"),
            (500, ""),
            (400, r#"{"message":"client version 1.41 is too old"}"#),
        ][nth];
        Reply::Say(answer(status, body))
    });
    let engine = served.engine();
    let words = "the engine refused to list containers";
    for expected in [
        "(404): no such thing",
        "(404): c1: no such container",
        "(500): database is locked",
        "(403): <b>not you</b>",
        "(500): ",
    ] {
        let failure = list(&engine).await.unwrap_err();
        assert_eq!(failure.to_string(), format!("{words} {expected}"));
        assert!(engine.agreed.borrow().is_some());
    }
    let failure = list(&engine).await.unwrap_err();
    assert!(failure.is_engine_away(), "{failure}");
    assert!(engine.agreed.borrow().is_none() && engine.conversation.borrow().is_none());
    assert_eq!(served.connections(), [0; 6]);
}

#[tokio::test]
async fn a_word_that_is_not_known_is_named() {
    let served = Served::start(|_, nth| {
        let said = ["", "stopping", "wobbling"][nth];
        let body = format!(r#"{{"Id":"c1","State":{{"Status":"{said}","ExitCode":3}}}}"#);
        Reply::Say(answer(200, &body))
    });
    let engine = served.engine();
    let looked = async || engine.look("c1").await;
    let exited = ContainerState::Exited { code: 3 };
    assert_eq!(looked().await.unwrap().unwrap().state, exited);
    let running = ContainerState::Running;
    assert_eq!(looked().await.unwrap().unwrap().state, running);
    let failure = looked().await.unwrap_err().to_string();
    assert!(failure.contains("wobbling"), "{failure}");
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_nonsense() {
    let served =
        Served::start(|_, nth| Reply::Say(answer(200, ["[{]", r#"[{"Id":7}]"#, "{}"][nth])));
    let engine = served.engine();
    for _ in 0..3 {
        let failure = list(&engine).await.unwrap_err();
        assert!(matches!(failure, EngineError::Nonsense { .. }), "{failure}");
    }
    assert_eq!(served.connections(), [0, 0, 0]);
}

#[tokio::test]
async fn an_answer_longer_than_any_is_not_read_to_its_end() {
    let served = Served::start(|connection, _| {
        Reply::Say(if connection == 0 {
            answer(200, &" ".repeat(MAX_ANSWER_BYTES + 1))
        } else {
            answer(200, "[]")
        })
    });
    let engine = served.engine();
    let failure = list(&engine).await.unwrap_err();
    assert_eq!(
        failure.to_string(),
        "the engine's answer cannot be understood: it is longer than 32 MiB"
    );
    list(&engine).await.unwrap();
    assert_eq!(served.connections(), [0, 1]);
}

#[tokio::test]
async fn an_answer_that_never_ends_is_waited_for_a_while() {
    for script in [(|_, _| Reply::Hang(String::new())) as Script, |_, _| {
        Reply::Hang("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[".to_owned())
    }] {
        let served = Served::start(script);
        let engine = served.engine();
        let failure = list(&engine).await.unwrap_err();
        tokio::time::resume();
        let EngineError::TimedOut { timeout_ms, .. } = failure else {
            panic!("{failure}");
        };
        assert_eq!(timeout_ms, 10_000);
        assert!(engine.conversation.borrow().is_none());
        assert_eq!(served.connections(), [0]);
    }
}

#[test]
fn names_and_filters_are_written_for_a_path_and_a_query() {
    let image = "registry.local:5000/a/b_c@sha256:0f";
    assert_eq!(name(image).to_string(), image);
    assert_eq!(name("a b?c#d%é").to_string(), "a%20b%3Fc%23d%25%C3%A9");
    let device = DeviceId::from_random([1; 16]);
    let query = only_of(&device);
    let url = reqwest::Url::parse(&format!("http://x/y?{query}")).unwrap();
    let pairs: Vec<_> = url.query_pairs().collect();
    let filters = format!(r#"{{"label":["io.holdfast.device={device}"]}}"#);
    assert_eq!(pairs, [("filters".into(), filters.into())]);
}
