//! Facts about probes: what an answer means, and that all are asked side by side.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::clock::SystemClock;
use crate::engine::Operation;
use crate::engine::docker::DockerEngine;

/// Generous: each of these tests needs well under a second.
const DEADLINE: Duration = Duration::from_secs(20);

fn probe(value: &Value) -> Probe {
    serde_json::from_value(value.clone()).unwrap()
}

/// A container at 127.0.0.1.
fn trial(id: &str, value: &Value) -> Trial {
    Trial {
        id: id.to_owned(),
        started_at: "one".to_owned(),
        addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        probe: probe(value),
    }
}

/// No engine: HTTP and TCP probes need none.
fn no_engine() -> DockerEngine {
    DockerEngine::looking(Path::new("/no/engine.sock"))
}

/// Answers each connection with the next of these texts, the last one for ever; gives its port and
/// what was asked.
async fn serve(
    answers: Vec<&'static str>,
) -> (u16, Rc<RefCell<Vec<String>>>, impl Future<Output = ()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Rc::new(RefCell::new(Vec::new()));
    let noted = asked.clone();
    let serving = async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let number = noted.borrow().len().min(answers.len() - 1);
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            noted.borrow_mut().push(text);
            stream.write_all(answers[number].as_bytes()).await.unwrap();
        }
    };
    (port, asked, serving)
}

/// Probes until the state of `id` is as wanted, beside a server.
async fn until(
    prober: &mut Prober<'_, DockerEngine, SystemClock>,
    id: &str,
    serving: impl Future<Output = ()>,
    wanted: impl Fn(&ProbeState) -> bool,
) -> ProbeState {
    let probing = async {
        loop {
            let state = prober.state(id).unwrap();
            if wanted(state) {
                return state.clone();
            }
            prober.changed().await;
        }
    };
    tokio::time::timeout(DEADLINE, async {
        tokio::select! {
            state = probing => state,
            () = serving => panic!("a server never ends"),
        }
    })
    .await
    .unwrap()
}

const OK: &str = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
const DOWN: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
const ELSEWHERE: &str =
    "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn a_probe_passes_once_the_app_answers_well() {
    let (port, asked, serving) = serve(vec![DOWN, DOWN, OK]).await;
    let (engine, clock) = (no_engine(), SystemClock::start());
    let mut prober = Prober::new(&engine, &clock);
    let http = json!({ "http": { "port": port, "path": "/ready?x=1" }, "interval": "100ms", "retries": 9 });
    prober.watch(vec![trial("c1", &http)]);
    assert_eq!(prober.state("c1"), Some(&ProbeState::default()));
    let mut serving = std::pin::pin!(serving);
    let state = until(&mut prober, "c1", serving.as_mut(), |state| {
        state.failures_in_a_row == 2
    })
    .await;
    assert_eq!(
        state.last_error.unwrap(),
        format!("127.0.0.1:{port}: answered 503")
    );
    let state = until(&mut prober, "c1", serving.as_mut(), |state| state.passed).await;
    assert_eq!(
        state,
        ProbeState {
            passed: true,
            ..ProbeState::default()
        }
    );
    let request = asked.borrow()[0].clone();
    assert!(
        request.starts_with("GET /ready?x=1 HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains(&format!("host: 127.0.0.1:{port}\r\n")),
        "{request}"
    );
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_a_way() {
    let (port, asked, serving) = serve(vec![ELSEWHERE]).await;
    let (engine, clock) = (no_engine(), SystemClock::start());
    let mut prober = Prober::new(&engine, &clock);
    let wants = |status: Option<u16>| {
        let mut http =
            json!({ "http": { "port": port, "path": "/" }, "interval": "100ms", "retries": 1 });
        if let Some(status) = status {
            http["http"]["status"] = status.into();
        }
        http
    };
    let mut serving = std::pin::pin!(serving);
    prober.watch(vec![
        trial("any", &wants(None)),
        trial("ok", &wants(Some(200))),
    ]);
    until(&mut prober, "any", serving.as_mut(), |state| state.passed).await;
    let state = until(&mut prober, "ok", serving.as_mut(), |state| {
        state.failures_in_a_row == 1
    })
    .await;
    assert!(state.last_error.unwrap().ends_with("answered 302"));
    assert!(
        asked
            .borrow()
            .iter()
            .all(|request| request.starts_with("GET / HTTP/1.1\r\n"))
    );
}

#[tokio::test]
async fn what_is_no_http_closes_early_or_says_nothing_fails() {
    for (answer, expected) in [
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "gave no answer in HTTP"),
        ("", "gave no answer in HTTP"),
    ] {
        let (port, _, serving) = serve(vec![answer]).await;
        let (engine, clock) = (no_engine(), SystemClock::start());
        let mut prober = Prober::new(&engine, &clock);
        prober.watch(vec![trial(
            "c1",
            &json!({ "http": { "port": port, "path": "/" } }),
        )]);
        let state = until(&mut prober, "c1", serving, |state| {
            state.last_error.is_some()
        })
        .await;
        let error = state.last_error.unwrap();
        assert!(error.contains(expected), "{error}");
    }
    // A port that is open and silent: the kernel takes the connection, nobody answers.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let (engine, clock) = (no_engine(), SystemClock::start());
    let mut prober = Prober::new(&engine, &clock);
    let http = json!({ "http": { "port": port, "path": "/" }, "timeout": "50ms" });
    prober.watch(vec![
        trial("c1", &http),
        trial("c2", &json!({ "tcp": { "port": port } })),
    ]);
    let nothing = std::future::pending;
    let state = until(&mut prober, "c1", nothing(), |state| {
        state.last_error.is_some()
    })
    .await;
    assert_eq!(state.last_error.unwrap(), "no answer within 50 ms");
    until(&mut prober, "c2", nothing(), |state| state.passed).await;
}

#[tokio::test]
async fn a_refused_connection_is_a_failure_and_no_wake_up_once_it_is_decided() {
    let (engine, clock) = (no_engine(), SystemClock::start());
    let mut prober = Prober::new(&engine, &clock);
    // Nothing listens on port 1, and nothing will.
    let tcp = json!({ "tcp": { "port": 1 }, "interval": "100ms", "retries": 2 });
    prober.watch(vec![trial("c1", &tcp)]);
    let state = until(&mut prober, "c1", std::future::pending(), |state| {
        state.failures_in_a_row == 2
    })
    .await;
    assert!(state.last_error.unwrap().contains("127.0.0.1:1: "));
    assert!(state.cannot_run.is_none());
    // It fails on and on, which is nothing new.
    let again = tokio::time::timeout(Duration::from_millis(500), prober.changed()).await;
    assert!(again.is_err());
}

#[tokio::test]
async fn one_address_of_several_is_enough_and_none_is_a_failure() {
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let (engine, clock) = (no_engine(), SystemClock::start());
    let mut prober = Prober::new(&engine, &clock);
    let mut here = trial("c1", &json!({ "tcp": { "port": port } }));
    here.addresses.push(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));
    let mut nowhere = trial(
        "c2",
        &json!({ "tcp": { "port": port }, "interval": "100ms" }),
    );
    nowhere.addresses.clear();
    prober.watch(vec![here.clone(), nowhere.clone()]);
    until(&mut prober, "c1", std::future::pending(), |state| {
        state.passed
    })
    .await;
    let state = until(&mut prober, "c2", std::future::pending(), |state| {
        state.last_error.is_some()
    })
    .await;
    assert_eq!(
        state.last_error.unwrap(),
        "the engine knows no address of the container"
    );
    // An address that becomes known later is used, and nothing that was counted is lost.
    nowhere.addresses = here.addresses.clone();
    prober.watch(vec![here, nowhere]);
    assert!(prober.state("c2").unwrap().failures_in_a_row > 0);
    until(&mut prober, "c2", std::future::pending(), |state| {
        state.passed
    })
    .await;
}

#[test]
fn another_start_or_probe_is_asked_from_the_beginning_and_what_is_not_on_trial_is_forgotten() {
    let (engine, clock) = (no_engine(), SystemClock::start());
    let mut prober = Prober::new(&engine, &clock);
    let tcp = trial("c1", &json!({ "tcp": { "port": 1 } }));
    prober.watch(vec![tcp.clone()]);
    let failed = || Outcome::Failed("x".to_owned());
    assert!(prober.note("c1", failed()));
    assert_eq!(prober.state("c1").unwrap().failures_in_a_row, 1);
    prober.watch(vec![tcp.clone()]);
    assert_eq!(prober.state("c1").unwrap().failures_in_a_row, 1);
    prober.watch(vec![Trial {
        started_at: "two".to_owned(),
        ..tcp
    }]);
    assert_eq!(prober.state("c1"), Some(&ProbeState::default()));
    prober.watch(vec![]);
    assert_eq!(prober.state("c1"), None);
    assert!(!prober.note("c1", failed()));
}

#[test]
fn failures_count_in_a_row_after_the_start_period_and_a_success_forgives_them() {
    let probe = probe(&json!({ "tcp": { "port": 1 }, "retries": 3 }));
    let failed = || Outcome::Failed("x".to_owned());
    let fresh = ProbeState::default();
    let starting = after(&fresh, failed(), &probe, true);
    assert_eq!((starting.failures_in_a_row, starting.passed), (0, false));
    assert_eq!(starting.last_error.as_deref(), Some("x"));
    let mut state = starting;
    for expected in [1, 2, 3, 3] {
        state = after(&state, failed(), &probe, false);
        assert_eq!(state.failures_in_a_row, expected);
    }
    assert_eq!(after(&state, Outcome::Unknown, &probe, false), state);
    let well = after(&state, Outcome::Well, &probe, false);
    assert_eq!(
        well,
        ProbeState {
            passed: true,
            ..ProbeState::default()
        }
    );
    let early = after(&fresh, Outcome::Well, &probe, true);
    assert!(early.passed);
}

#[test]
fn a_program_that_cannot_run_is_told_from_one_that_says_no() {
    let exited = |exit_code, output: &str| {
        executed(Ok(Executed {
            exit_code,
            output: output.to_owned(),
        }))
    };
    assert_eq!(exited(Some(0), "fine"), Outcome::Well);
    assert_eq!(
        exited(Some(1), ""),
        Outcome::Failed("exit code 1".to_owned())
    );
    assert!(matches!(exited(None, ""), Outcome::Failed(_)));
    assert!(
        matches!(exited(Some(127), "no such file"), Outcome::CannotRun(why) if why == "exit code 127: no such file")
    );
    assert!(matches!(exited(Some(126), ""), Outcome::CannotRun(_)));
    let refused = |status| {
        executed(Err(EngineError::Refused {
            operation: Operation::Exec,
            status,
            message: "container is not running".to_owned(),
        }))
    };
    assert!(matches!(refused(409), Outcome::Failed(_)));
    assert_eq!(refused(503), Outcome::Unknown);
    let probe = probe(&json!({ "exec": ["x"] }));
    let cannot = || Outcome::CannotRun("gone".to_owned());
    let fresh = ProbeState::default();
    assert_eq!(after(&fresh, cannot(), &probe, true).cannot_run, None);
    assert_eq!(
        after(&fresh, cannot(), &probe, false).cannot_run.as_deref(),
        Some("gone")
    );
}
