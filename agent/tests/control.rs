//! The agent's side of the conversation with a control API, against a small server on loopback.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, not only tests themselves"
)]

mod server;

use std::time::Duration;

use holdfast_agent::clock::{SystemClock, SystemRandomness};
use holdfast_agent::control::client::{Again, Client, ClientError, MAX_TARGET_BYTES, Origin};
use holdfast_agent::control::poll::{Asked, PollError, Polled, Poller, stored};
use holdfast_agent::control::report::Reporter;
use holdfast_agent::enrolment::{Enrolment, Token};
use holdfast_agent::journal::Journal;
use holdfast_agent::shared::Shared;
use holdfast_proto::id::DeviceId;
use server::{Reply, Server};

const DEVICE: &str = "00000000-0000-4000-8000-000000000001";

fn device() -> DeviceId {
    DEVICE.parse().unwrap()
}

fn target(generation: u64) -> String {
    format!(r#"{{"uuid":"{DEVICE}","generation":{generation},"apps":{{}}}}"#)
}

/// Everything a poller or reporter needs, against one server.
struct Bench {
    folder: tempfile::TempDir,
    client: Client,
    enrolment: Enrolment,
    journal: Journal,
    shared: Shared,
    clock: SystemClock,
    random: SystemRandomness,
}

impl Bench {
    fn new(server: &Server) -> Self {
        // Fails when another test of this process was faster, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap().journal;
        Self {
            client: Client::new(Origin::parse(&server.url()).unwrap(), None).unwrap(),
            enrolment: Enrolment {
                uuid: device(),
                token: Token::new("hfd_secret".to_owned()),
                api_url: server.url(),
                poll_interval_seconds: 30,
            },
            shared: Shared::new(None),
            clock: SystemClock::start(),
            random: SystemRandomness,
            journal,
            folder,
        }
    }

    fn poller(&self) -> Poller<'_, SystemClock, SystemRandomness> {
        Poller {
            client: &self.client,
            enrolment: &self.enrolment,
            journal: &self.journal,
            shared: &self.shared,
            clock: &self.clock,
            random: &self.random,
            interval_ms: Some(20),
            in_a_hurry: false,
        }
    }

    fn reporter(&self) -> Reporter<'_, SystemClock, SystemRandomness> {
        Reporter {
            client: &self.client,
            enrolment: &self.enrolment,
            journal: &self.journal,
            shared: &self.shared,
            clock: &self.clock,
            random: &self.random,
            heartbeat_ms: 10,
        }
    }

    async fn poll(&self, asked: &mut Asked) -> Result<Polled, PollError> {
        self.poller().once(false, asked).await
    }

    /// The target as an agent that starts without a network would take it up.
    fn after_restart(&self) -> Option<u64> {
        let journal = Journal::open_read_only(self.folder.path())
            .unwrap()
            .unwrap();
        stored(&journal, &device())
            .unwrap()
            .map(|accepted| accepted.target.generation)
    }

    fn notices(&self) -> Vec<String> {
        let notices = self.shared.notices();
        notices.into_iter().map(|notice| notice.code).collect()
    }
}

#[tokio::test]
async fn a_target_is_on_the_disk_before_it_is_announced_and_its_tag_is_sent_next_time() {
    let server = Server::start([
        Reply::ok(&target(1)).with("etag", "\"one\""),
        Reply::status(304),
        Reply::ok(&target(2)).with("etag", "\"two\""),
    ])
    .await;
    let bench = Bench::new(&server);
    let mut asked = Asked::default();
    assert_eq!(bench.poll(&mut asked).await.unwrap(), Polled::Accepted);
    assert_eq!(bench.after_restart(), Some(1));
    assert_eq!(bench.shared.target().unwrap().target.generation, 1);
    assert_eq!(bench.poll(&mut asked).await.unwrap(), Polled::Same);
    assert_eq!(bench.poll(&mut asked).await.unwrap(), Polled::Accepted);
    assert_eq!(bench.after_restart(), Some(2));
    let seen = server.seen();
    assert_eq!(seen[0].path, format!("/api/v1/devices/{DEVICE}/state"));
    assert_eq!(seen[0].header("authorization"), Some("Bearer hfd_secret"));
    assert_eq!(seen[0].header("if-none-match"), None);
    assert_eq!(seen[1].header("if-none-match"), Some("\"one\""));
    assert_eq!(seen[2].header("if-none-match"), Some("\"one\""));
}

#[tokio::test]
async fn a52_a_target_that_cannot_be_used_changes_nothing_and_is_reported_until_it_changes() {
    let server = Server::start([
        Reply::ok(&target(5)).with("etag", "\"five\""),
        Reply::ok(&target(4)).with("etag", "\"four\""),
        Reply::status(304),
        Reply::ok("<html>sign in</html>"),
        Reply::ok(r#"{"uuid":"00000000-0000-4000-8000-000000000002","generation":9,"apps":{}}"#),
        Reply::ok(r#"{"uuid":"00000000-0000-4000-8000-000000000001","generation":9,"apps":{"#),
        Reply::ok(&target(6)).with("etag", "\"six\""),
    ])
    .await;
    let bench = Bench::new(&server);
    let mut asked = Asked::default();
    assert_eq!(bench.poll(&mut asked).await.unwrap(), Polled::Accepted);
    assert_eq!(bench.poll(&mut asked).await.unwrap(), Polled::Refused);
    assert_eq!(bench.notices(), ["target_refused"]);
    // The refused one is not sent again and again.
    assert_eq!(bench.poll(&mut asked).await.unwrap(), Polled::Same);
    assert_eq!(server.seen()[2].header("if-none-match"), Some("\"four\""));
    for _ in 0..3 {
        assert_eq!(bench.poll(&mut asked).await.unwrap(), Polled::Refused);
    }
    assert_eq!(bench.after_restart(), Some(5));
    assert_eq!(bench.shared.target().unwrap().target.generation, 5);
    assert_eq!(bench.poll(&mut asked).await.unwrap(), Polled::Accepted);
    assert_eq!(bench.notices(), [""; 0]);
}

#[tokio::test]
async fn a53_no_redirect_is_followed_and_the_token_stays_home() {
    let elsewhere = Server::start([Reply::ok(&target(1))]).await;
    let server = Server::start([Reply::status(302).with("location", &elsewhere.url())]).await;
    let bench = Bench::new(&server);
    let error = bench.poll(&mut Asked::default()).await.unwrap_err();
    assert!(error.to_string().contains("302"), "{error}");
    assert_eq!(elsewhere.seen().len(), 0);
    assert_eq!(bench.after_restart(), None);
}

#[tokio::test]
async fn a39_an_oversized_answer_is_given_up_early() {
    let server = Server::start([Reply::ok(&"x".repeat(MAX_TARGET_BYTES + 1))]).await;
    let bench = Bench::new(&server);
    assert!(matches!(
        bench.poll(&mut Asked::default()).await,
        Err(PollError::Client(ClientError::TooLarge { .. }))
    ));
}

#[tokio::test]
async fn refusals_say_when_to_ask_again() {
    let problem = r#"{"type":"about:blank","title":"Busy","status":503,"detail":"try later"}"#;
    let server = Server::start([
        Reply::status(503).with("retry-after", "7").body(problem),
        Reply::status(500),
        Reply::status(401),
    ])
    .await;
    let bench = Bench::new(&server);
    let mut refusals = Vec::new();
    for _ in 0..3 {
        match bench.poll(&mut Asked::default()).await {
            Err(PollError::Client(error)) => refusals.push(error),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refusals[0].retry(), Again::AfterMs(7_000));
    assert!(
        refusals[0].to_string().ends_with("503: try later"),
        "{}",
        refusals[0]
    );
    assert_eq!(refusals[1].retry(), Again::Later);
    assert_eq!(refusals[2].retry(), Again::Never);
    assert!(refusals[2].is_unauthorised());
}

#[tokio::test]
async fn a50_a_server_that_is_away_is_asked_later_and_keeps_the_target() {
    let server = Server::start([Reply::ok(&target(1)).with("etag", "\"one\"")]).await;
    let bench = Bench::new(&server);
    let mut asked = Asked::default();
    bench.poll(&mut asked).await.unwrap();
    drop(server);
    match bench.poll(&mut asked).await {
        Err(PollError::Client(error)) => assert_eq!(error.retry(), Again::Later),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.after_restart(), Some(1));
}

#[tokio::test]
async fn the_loop_polls_again_and_again() {
    let replies = (1..=4).map(|n| Reply::ok(&target(n)).with("etag", &format!("\"{n}\"")));
    let server = Server::start(replies).await;
    let bench = Bench::new(&server);
    let poller = bench.poller();
    tokio::select! {
        () = poller.run() => {}
        () = server.wait_for(3, Duration::from_secs(10)) => {}
    }
    assert!(bench.after_restart() >= Some(2));
}

#[tokio::test]
async fn reports_are_numbered_upwards_and_carry_the_notices() {
    let server = Server::start([Reply::status(204), Reply::status(204)]).await;
    let bench = Bench::new(&server);
    bench.shared.notice("journal_rebuilt", "it was damaged");
    for _ in 0..2 {
        bench.reporter().once(&mut None).await.unwrap();
    }
    let reports: Vec<serde_json::Value> = server
        .seen()
        .iter()
        .map(|request| serde_json::from_slice(&request.body).unwrap())
        .collect();
    assert_eq!(server.seen()[0].method, "PUT");
    assert_eq!(
        server.seen()[0].path,
        format!("/api/v1/devices/{DEVICE}/current-state")
    );
    assert!(reports[0]["sequence"].as_u64() < reports[1]["sequence"].as_u64());
    assert_eq!(reports[0]["status"], "no_target");
    assert_eq!(reports[0]["holds"][0]["code"], "journal_rebuilt");
    assert!(!reports[0].to_string().contains("hfd_secret"));
}
