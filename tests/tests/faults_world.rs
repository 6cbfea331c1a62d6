//! Faults A45 to A60: registries, networks, servers and clocks that misbehave.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::engine::Engine;
use holdfast_tests::http_tap::{Asked, HttpTap, reply};
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::place;
use holdfast_tests::registry::{self, Registry};
use holdfast_tests::serving::{Serving, id, life};
use holdfast_tests::site::{CONVERGES_WITHIN, Site, service, target};
use holdfast_tests::tap::{Rule, When};
use holdfast_tests::tcp_tap::{Mode, TcpTap};
use holdfast_tests::wait::wait_for;
use http::header::HeaderValue;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

/// What a client gets instead of an honest answer.
type Fault = fn(&Asked, Response<Bytes>) -> Response<Bytes>;
/// A version, what is wrong with its registry, and a word of what the device says of it.
type Case = (&'static str, Fault, &'static str);
type BoxedFault = Box<dyn Fn(&Asked, Response<Bytes>) -> Response<Bytes> + Send + Sync>;

/// A site whose device may be told to use a second registry, which is reached through a tap.
async fn with_second_registry(host: &str) -> anyhow::Result<Serving> {
    let mut options = holdfast_tests::api::Options::default();
    options
        .registries
        .push(json!({ "host": host, "plain_http": true }));
    let site = Site::start_with(options, registry::Login::Open, None).await?;
    Serving::at(site, |options| {
        options.set("pull", "no_progress_seconds", 3)
    })
    .await
}

/// The target that runs an image of the second registry.
fn through(host: &str, image: &Pushed, port: u16) -> Value {
    let reference = format!("{host}/{}:{}", image.repository, image.tag);
    let config = json!({ "ports": [format!("127.0.0.1:{port}:8080")] });
    target(&[service("web", &reference, &config)])
}

/// Pulls through a registry that answers wrongly, one way after the other; what runs is never touched,
/// and each time the update succeeds once the registry is well.
async fn outlives(faults: &[Case]) -> anyhow::Result<()> {
    let second = Registry::open().await?;
    let tap = HttpTap::start(second.host()).await?;
    let mut serving = with_second_registry(&tap.address()).await?;
    let mut page = "one".to_owned();
    for (version, fault, reason) in faults {
        // A layer that no engine has yet.
        let image = Image::healthy_web(&serving.repository, version)
            .file("only-here", place::unique())
            .push(&second, version)
            .await?;
        let before = serving.device.running("web").await?;
        // The API resolves an honest registry; then it turns bad before the device pulls.
        serving.device.agent.stop();
        let wanted = through(&tap.address(), &image, serving.port);
        serving.set_target(&wanted).await?;
        tap.alter(*fault);
        tap.forget();
        serving.device.agent.run()?;
        serving.says(&["pull_failed", reason]).await;
        let after = serving.device.running("web").await?;
        assert_eq!(life(&before), life(&after), "{version}");
        assert_eq!(serving.page().await.as_ref(), Ok(&page), "{version}");
        let asked = tap.asked().len();
        assert!(asked < 100, "{version}: {asked} requests are a storm");
        tap.honest();
        serving.serves(version).await;
        serving.only_container().await?;
        page = (*version).to_owned();
    }
    Ok(())
}

fn is_pull(asked: &Asked) -> bool {
    asked.path.contains("/manifests/") || asked.path.contains("/blobs/")
}

#[tokio::test(flavor = "multi_thread")]
async fn a45_a_registry_that_refuses_costs_nothing_that_runs() -> anyhow::Result<()> {
    outlives(&[
        ("after-500", |_, _| reply(500, &[], "broken"), "500"),
        (
            "after-404",
            |asked, honest| {
                if is_pull(asked) {
                    reply(404, &[], "")
                } else {
                    honest
                }
            },
            "404",
        ),
        (
            "after-401",
            |_, _| reply(401, &[("www-authenticate", "Basic realm=\"nobody\"")], ""),
            "401",
        ),
        (
            "after-429",
            |_, _| reply(429, &[("retry-after", "2")], "slow down"),
            "429",
        ),
    ])
    .await
}

/// Leaves everything but the layers as it is.
fn spoil(asked: &Asked, honest: Response<Bytes>, spoilt: fn(&Bytes) -> Bytes) -> Response<Bytes> {
    let layer = asked.path.contains("/blobs/") && honest.body().starts_with(&[0x1f, 0x8b]);
    if layer && asked.method == Method::GET {
        let body = spoilt(honest.body());
        honest.map(|_| body)
    } else {
        honest
    }
}

/// Without a length: it could go on for ever, or end at any time.
fn chunked(mut answer: Response<Bytes>) -> Response<Bytes> {
    let headers = answer.headers_mut();
    headers.remove("content-length");
    headers.insert("transfer-encoding", HeaderValue::from_static("chunked"));
    answer
}

fn flip(body: &Bytes) -> Bytes {
    let mut body = body.to_vec();
    let middle = body.len() / 2;
    body[middle] ^= 0xff;
    body.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a46_layers_that_are_cut_short_or_altered_are_never_used() -> anyhow::Result<()> {
    outlives(&[
        (
            "after-truncation",
            |asked, honest| {
                // What is asked for after it broke off does not come either.
                let is_rest = honest.status() == StatusCode::PARTIAL_CONTENT;
                let cut = spoil(asked, honest, |body| body.slice(..body.len() / 2));
                chunked(if is_rest {
                    cut.map(|_| Bytes::new())
                } else {
                    cut
                })
            },
            "ended at byte",
        ),
        (
            "after-corruption",
            |asked, honest| spoil(asked, honest, flip),
            "hashes to",
        ),
        (
            "after-too-much",
            |asked, honest| {
                let twice = |body: &Bytes| [&body[..], &body[..]].concat().into();
                chunked(spoil(asked, honest, twice))
            },
            "more of it than its manifest says",
        ),
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a46_documents_that_are_not_what_was_pinned_are_never_used() -> anyhow::Result<()> {
    fn document(asked: &Asked, honest: Response<Bytes>, fault: Fault) -> Response<Bytes> {
        if asked.path.contains("/manifests/sha256:") {
            fault(asked, honest)
        } else {
            honest
        }
    }
    outlives(&[
        (
            "after-swap",
            |asked, honest| document(asked, honest, |_, honest| honest.map(|body| flip(&body))),
            "hashes to",
        ),
        (
            "after-wrong-type",
            |asked, honest| {
                document(asked, honest, |_, mut honest| {
                    let other = "application/vnd.docker.distribution.manifest.v2+json";
                    let headers = honest.headers_mut();
                    headers.insert("content-type", HeaderValue::from_static(other));
                    honest
                })
            },
            "calls itself",
        ),
        (
            "after-portal",
            |_, _| {
                let html = [("content-type", "text/html")];
                reply(200, &html, "<html>Log in to the network first</html>")
            },
            "answers with a web page",
        ),
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a47_a_rollback_needs_neither_api_nor_registry() -> anyhow::Result<()> {
    let mut serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    let bad = Image::never_healthy(&serving.repository, "bad");
    let bad = serving.push(bad, "bad").await?;
    let made = serving
        .device
        .tap
        .arm(Rule::on("POST /containers/create").when(When::AfterResponse));
    serving.set(&bad).await?;
    made.wait(CONVERGES_WITHIN).await?;
    serving.site.api.process().kill9();
    serving.site.registry.stop();
    serving.serves("bad").await;
    serving.one_is_back(&before).await?;
    serving.only_container().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a47_a_network_that_goes_silent_is_left_by_a_time_out() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let tap = TcpTap::start(site.api.address()).await?;
    let serving = Serving::through(tap.url(), site, |options| options).await?;
    let before = serving.device.running("web").await?;
    let two = serving.good("two").await?;
    tap.set(Mode::Stall);
    serving.set(&two).await?;
    // No answer comes; the device is looked after all the same.
    serving.device.docker().remove(id(&before)).await?;
    serving.serves("one").await;
    tap.set(Mode::Cut);
    tap.set(Mode::Open);
    serving.serves("two").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a48_a_slow_line_is_no_failure() -> anyhow::Result<()> {
    let second = Registry::open().await?;
    let slow = TcpTap::start(second.host()).await?;
    let serving = with_second_registry(&slow.address()).await?;
    let noise: Vec<u8> = (0_u32..60_000)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let image = Image::healthy_web(&serving.repository, "two")
        .file("/noise", noise)
        .push(&second, "two")
        .await?;
    // 256 kbit/s; the pull takes longer than the time without progress that ends one.
    slow.set(Mode::Slow {
        bytes_per_second: 32 << 10,
    });
    let wanted = through(&slow.address(), &image, serving.port);
    let report = serving.site.converge(&serving.device, &wanted).await?;
    assert!(!report.to_string().contains("pull_failed"), "{report}");
    serving.serves("two").await;
    Ok(())
}

/// A device that reaches its API through a tap.
async fn behind_a_tap() -> anyhow::Result<(Serving, HttpTap)> {
    let site = Site::start().await?;
    let tap = HttpTap::start(site.api.address()).await?;
    let serving = Serving::through(tap.url(), site, |options| options).await?;
    Ok((serving, tap))
}

fn is_poll(asked: &Asked) -> bool {
    asked.method == Method::GET && asked.path.ends_with("/state")
}

/// Waits until so many polls more were answered.
async fn polls(tap: &HttpTap, many: usize) {
    let asked = || tap.asked().iter().filter(|asked| is_poll(asked)).count();
    let before = asked();
    wait_for("more polls", CONVERGES_WITHIN, async || {
        asked() >= before + many
    })
    .await;
}

/// Answers polls wrongly for a while; what runs is untouched, and the next honest target is taken up.
async fn ignores(faults: Vec<(&str, BoxedFault)>) -> anyhow::Result<()> {
    let (serving, tap) = behind_a_tap().await?;
    let before = serving.device.running("web").await?;
    for (what, fault) in faults {
        tap.alter(fault);
        polls(&tap, 2).await;
        let after = serving.device.running("web").await?;
        assert_eq!(life(&before), life(&after), "{what}");
        assert!(serving.device.agent.process()?.ended().is_none(), "{what}");
        tap.honest();
        polls(&tap, 1).await;
    }
    assert_eq!(serving.page().await, Ok("one".to_owned()));
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    serving.serves("two").await;
    serving.only_container().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a49_a_captive_portal_is_never_taken_for_a_target() -> anyhow::Result<()> {
    const PAGE: &str = "<html><body>Welcome! Please sign in.</body></html>";
    ignores(vec![
        (
            "every URL is a page",
            Box::new(|_, _| reply(200, &[("content-type", "text/html")], PAGE)),
        ),
        (
            "a page with a tag of its own, said to be JSON",
            Box::new(move |_, _| {
                let headers = [("content-type", "application/json"), ("etag", "\"portal\"")];
                reply(200, &headers, PAGE)
            }),
        ),
        ("an empty body", Box::new(|_, _| reply(200, &[], ""))),
        ("another protocol", Box::new(|_, _| reply(511, &[], PAGE))),
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a50_a_server_in_trouble_is_asked_less_and_changes_nothing() -> anyhow::Result<()> {
    let (serving, tap) = behind_a_tap().await?;
    let before = serving.device.running("web").await?;
    let status = Arc::new(AtomicU16::new(503));
    let answered = Arc::clone(&status);
    tap.alter(move |_, _| reply(answered.load(Ordering::Relaxed), &[], "trouble"));
    for trouble in [503, 500] {
        status.store(trouble, Ordering::Relaxed);
        polls(&tap, 1).await;
    }
    // A server that says when to come back is obeyed.
    tap.alter(|_, _| reply(429, &[("retry-after", "3")], ""));
    polls(&tap, 1).await;
    let waiting = Stopwatch::start();
    tap.forget();
    let two = serving.good("two").await?;
    serving.set(&two).await?;
    tap.honest();
    wait_for("the next poll", CONVERGES_WITHIN, async || {
        tap.asked().iter().any(is_poll)
    })
    .await;
    // The first poll was answered a moment before the watch started.
    assert!(
        waiting.elapsed() > Duration::from_millis(2_500),
        "{waiting:?}"
    );
    serving.serves("two").await;
    let agent = serving.device.agent.process()?;
    assert!(agent.ended().is_none(), "the agent needs no server to live");
    assert_ne!(life(&before), life(&serving.only_container().await?));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a51_an_older_target_is_refused_whatever_its_tag() -> anyhow::Result<()> {
    let (serving, tap) = behind_a_tap().await?;
    // The first generation's answer is kept, and played again after the second.
    let kept = Arc::new(std::sync::Mutex::new(None::<Bytes>));
    let keep = Arc::clone(&kept);
    tap.alter(move |asked, honest| {
        if is_poll(asked) && honest.status() == 200 {
            *keep.lock().expect("nobody panicked") = Some(honest.body().clone());
        }
        honest
    });
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    let older = kept.lock().expect("nobody panicked").clone();
    let older = older.context("the second generation's answer")?;
    let three = serving.good("three").await?;
    serving.converge(&three).await?;
    let before = serving.device.running("web").await?;
    for tag in ["\"another\"", "\"the-same-again\""] {
        let older = older.clone();
        tap.alter(move |asked, honest| {
            if is_poll(asked) {
                let headers = [("content-type", "application/json"), ("etag", tag)];
                reply(200, &headers, older.clone())
            } else {
                honest
            }
        });
        polls(&tap, 2).await;
        serving.says(&["target_refused"]).await;
        let after = serving.device.running("web").await?;
        assert_eq!(life(&before), life(&after));
    }
    tap.honest();
    let four = serving.good("four").await?;
    serving.converge(&four).await?;
    serving.serves("four").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a52_a_target_is_taken_whole_or_not_at_all() -> anyhow::Result<()> {
    fn altered(change: fn(&Asked, String) -> String) -> BoxedFault {
        let known = Arc::new(std::sync::Mutex::new(None::<Bytes>));
        Box::new(move |asked, honest| {
            if !is_poll(asked) {
                return honest;
            }
            // The server is asked for the whole document only once; afterwards it says 304.
            let mut known = known.lock().expect("nobody panicked");
            if honest.status() == 200 {
                *known = Some(honest.body().clone());
            }
            let body = known
                .clone()
                .unwrap_or_else(|| Bytes::from_static(b"{\"apps\":{}}"));
            let text = change(asked, String::from_utf8_lossy(&body).into_owned());
            let headers = [("content-type", "application/json"), ("etag", "\"spoilt\"")];
            reply(200, &headers, text)
        })
    }
    ignores(vec![
        (
            "cut in the middle",
            altered(|_, text| text[..text.len() / 2].to_owned()),
        ),
        ("no apps at all", altered(|_, _| "{\"apps\":{}}".to_owned())),
        ("null", altered(|_, _| "null".to_owned())),
        (
            "another device's",
            altered(|_, _| {
                json!({
                    "uuid": "00000000-0000-4000-8000-00000000000a", "generation": 99, "apps": {},
                })
                .to_string()
            }),
        ),
        ("a number", altered(|_, _| "1e999".to_owned())),
        ("deep", altered(|_, _| "[".repeat(100_000))),
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a53_no_redirect_is_followed_and_the_token_goes_nowhere_else() -> anyhow::Result<()> {
    let other = HttpTap::start("127.0.0.1:1").await?;
    let elsewhere = format!("{}/api/v1/state", other.url());
    ignores(vec![(
        "a redirect",
        Box::new(move |_, _| reply(302, &[("location", &elsewhere)], "")),
    )])
    .await?;
    assert_eq!(other.asked(), [], "nobody was asked there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a54_a_wrong_or_jumping_clock_swaps_and_rolls_back_all_the_same() -> anyhow::Result<()> {
    holdfast_tests::apt::require(&["faketime"])?;
    let library = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|machine| format!("/usr/lib/{machine}/faketime/libfaketimeMT.so.1"));
    let library = library
        .iter()
        .find(|path| fs::exists(path).unwrap_or(false));
    let library = library.context("libfaketime")?.clone();
    let folder = place::temporary("clock")?;
    let clock = folder.path().join("clock");
    fs::write(&clock, "@1970-01-02 00:00:00\n")?;
    let path = clock.display().to_string();
    let serving = Serving::at(Site::start().await?, |mut options| {
        let env = [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", &path),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_NO_CACHE", "1"),
        ];
        let pairs = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        options.env.extend(pairs);
        options
    })
    .await?;
    let log = serving.device.agent.process()?.lines().join("\n");
    assert!(
        log.contains("1970-01-0"),
        "the agent lives in 1970: {}",
        log.len()
    );
    let versions = [
        ("@2036-05-01 12:00:00\n", "two"),
        ("@1970-01-02 00:00:00\n", "three"),
    ];
    for (time, version) in versions {
        let image = serving.good(version).await?;
        let started = serving.device.tap.arm(Rule::on("POST /containers/*/start"));
        let generation = serving.set(&image).await?;
        started.wait(CONVERGES_WITHIN).await?;
        // It jumps by decades while the candidate is on trial.
        fs::write(&clock, time)?;
        serving.reports(&generation, "converged").await;
        serving.serves(version).await;
    }
    let before = serving.device.running("web").await?;
    let bad = Image::never_healthy(&serving.repository, "bad");
    let bad = serving.push(bad, "bad").await?;
    let generation = serving.set(&bad).await?;
    fs::write(&clock, "@2036-05-01 12:00:00\n")?;
    serving.reports(&generation, "holding").await;
    serving.serves("three").await;
    let after = serving.only_container().await?;
    assert_eq!(before["Id"], after["Id"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a55_a_device_whose_token_died_keeps_what_runs() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let before = serving.device.running("web").await?;
    let path = format!("/devices/{}", serving.device.uuid);
    serving
        .site
        .api
        .call(Method::DELETE, &path, None)
        .await?
        .good()?;
    let agent = serving.device.agent.process()?;
    agent
        .wait_for_log(&["asking for the target failed"], CONVERGES_WITHIN)
        .await?;
    let after = serving.device.running("web").await?;
    assert_eq!(life(&before), life(&after));
    serving.device.docker().remove(id(&before)).await?;
    serving.serves("one").await;
    assert!(serving.device.agent.process()?.ended().is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a60_few_file_handles_are_enough_for_an_update() -> anyhow::Result<()> {
    holdfast_tests::apt::require(&["prlimit"])?;
    let mut serving = Serving::on(Engine::shared().await?).await?;
    serving.device.agent.stop();
    let under = ["prlimit", "--nofile=64", "--"].map(str::to_owned);
    serving.device.agent.run_under(&under)?;
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    serving.serves("two").await;
    let pid = serving.device.agent.process()?.pid();
    let handles = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    assert!(
        handles < 40,
        "{handles} handles are open on a device at rest"
    );
    Ok(())
}
