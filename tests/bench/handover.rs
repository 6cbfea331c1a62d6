//! Hand-over: a client in the app's network keeps asking a service by its name while it is updated.
//!
//! The client resolves the name for every request and tries the addresses it got in order; a request
//! that may be repeated goes on to the next one when a connection ends before a byte of the answer came,
//! as reverse proxies do unless told otherwise (RFC 9112, section 9.3.1, allows it). For a server that
//! stops listening resets whoever it has not accepted yet. A request fails when no address answers it.
//! The client runs in the network namespace of a container beside the service.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::place;
use holdfast_tests::site::{Site, service, target};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

/// The engine's resolver, as every container of an app's network sees it.
const RESOLVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
/// A connection or an answer that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two requests.
const EVERY: Duration = Duration::from_millis(5);
/// How many failures are kept in words.
const KEPT: usize = 5;

/// What a client saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Requests in all.
    pub(crate) requests: usize,
    /// Requests that got no good answer.
    pub(crate) failed: usize,
    /// Good ones whose first connection ended without an answer.
    pub(crate) repeated: usize,
    /// The slowest good one.
    pub(crate) slowest: Duration,
    /// The first failures, in words.
    pub(crate) failures: Vec<String>,
    /// The different pages, in the order they were first seen.
    pub(crate) pages: Vec<String>,
}

/// A web service that lets its open requests end before it goes.
fn graceful(repository: &str, version: &str) -> Image {
    const SERVE: &str = "#!/bin/sh\nhttpd -f -p 8080 -h /www &\nserver=$!\n\
        trap 'kill $server; sleep 0.3; exit 0' TERM INT\nwait\n";
    Image::healthy_web(repository, version).file("/bin/serve", SERVE)
}

fn app(web: &Pushed, beside: &Pushed) -> Value {
    let web = service(
        "web",
        &web.reference(),
        &json!({ "stop_grace_period": "5s", "x-holdfast": { "strategy": "hand-over" } }),
    );
    target(&[web, service("beside", &beside.reference(), &json!({}))])
}

/// So many updates; what a client beside the service saw meanwhile.
pub(crate) async fn updates(many: usize) -> anyhow::Result<Seen> {
    let site = Site::start().await?;
    let repository = format!("handed-{}", place::unique());
    let mut device = site.device().await?;
    device.agent.run()?;
    let beside = Image::idle(&repository, "1")
        .push(&site.registry, "beside")
        .await?;
    let first = graceful(&repository, "0").push(&site.registry, "0").await?;
    site.converge(&device, &app(&first, &beside)).await?;
    let running = device.running("beside").await?;
    let pid = running["State"]["Pid"].as_u64().context("a process id")?;
    let client = Visitor::start(pid)?;
    for version in 1..=many {
        let tag = version.to_string();
        let image = graceful(&repository, &tag)
            .push(&site.registry, &tag)
            .await?;
        site.converge(&device, &app(&image, &beside)).await?;
    }
    client.end().await
}

struct Visitor {
    done: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<anyhow::Result<Seen>>,
}

impl Visitor {
    /// Starts asking in the network of this process.
    fn start(pid: u64) -> anyhow::Result<Self> {
        let network = File::open(format!("/proc/{pid}/ns/net"))?;
        let done = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&done);
        // A thread of its own: it leaves this machine's network for good.
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            let mut seen = Seen::default();
            while !ends.load(Ordering::Relaxed) {
                seen.requests += 1;
                let begun = Stopwatch::start();
                match request("web", 8080) {
                    Ok((page, resets)) => {
                        seen.repeated += usize::from(resets > 0);
                        seen.slowest = seen.slowest.max(begun.elapsed());
                        if !seen.pages.contains(&page) {
                            seen.pages.push(page);
                        }
                    }
                    Err(error) => {
                        seen.failed += 1;
                        if seen.failures.len() < KEPT {
                            seen.failures.push(format!("{error:#}"));
                        }
                    }
                }
                std::thread::park_timeout(EVERY);
            }
            Ok(seen)
        });
        Ok(Self { done, thread })
    }

    async fn end(self) -> anyhow::Result<Seen> {
        self.done.store(true, Ordering::Relaxed);
        let joined = tokio::task::spawn_blocking(move || self.thread.join());
        joined.await?.ok().context("the client panicked")?
    }
}

/// One request: the name is resolved, its addresses are tried in order. The page, and how many
/// connections ended before it without a byte.
fn request(name: &str, port: u16) -> anyhow::Result<(String, usize)> {
    let addresses = resolve(name)?;
    let mut refused = Vec::new();
    let mut resets = 0;
    for address in &addresses {
        let at = SocketAddr::new(*address, port);
        let stream = match TcpStream::connect_timeout(&at, PATIENCE) {
            Ok(stream) => stream,
            Err(error) => {
                refused.push(format!("{address}: {error}"));
                continue;
            }
        };
        if let Some(page) = exchange(stream, name).with_context(|| address.to_string())? {
            return Ok((page, resets));
        }
        resets += 1;
        refused.push(format!("{address}: ended without a byte"));
    }
    bail!("no address of {name} answers: {refused:?}")
}

/// The page; nothing when the connection ended before a byte of it came.
fn exchange(mut stream: TcpStream, name: &str) -> anyhow::Result<Option<String>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let asked = write!(stream, "GET / HTTP/1.0\r\nHost: {name}\r\n\r\n");
    let mut text = String::new();
    let read = asked.and_then(|()| stream.read_to_string(&mut text));
    match read {
        Ok(0) => return Ok(None),
        Err(error) if text.is_empty() && was_ended(&error) => return Ok(None),
        other => other?,
    };
    let (head, body) = text.split_once("\r\n\r\n").context("half an answer")?;
    ensure!(head.contains(" 200 "), "{head}");
    Ok(Some(body.trim().to_owned()))
}

/// Whether the other side ended the connection; a silent one has not.
fn was_ended(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
    )
}

/// A question for the A records of a name (RFC 1035), and the addresses of the answer.
fn resolve(name: &str) -> anyhow::Result<Vec<IpAddr>> {
    let mut question = vec![0x48, 0x46, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(&question, RESOLVER)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).context("the resolver is silent")?;
    let answer = answer.get(..length).context("an answer")?;
    let records = usize::from(*answer.get(7).context("a header")?);
    let mut rest = answer.get(question.len()..).context("an answer section")?;
    let mut found = Vec::new();
    for _ in 0..records {
        let name_length = name_length(rest)?;
        let kind = rest.get(name_length..name_length + 2);
        let fixed = name_length + 10;
        let length = match rest.get(fixed - 2..fixed) {
            Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
            _ => bail!("a short record"),
        };
        let data = rest.get(fixed..fixed + length).context("a short record")?;
        if let (Some([0, 1]), [a, b, c, d]) = (kind, data) {
            found.push(IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d)));
        }
        rest = rest.get(fixed + length..).unwrap_or_default();
    }
    ensure!(!found.is_empty(), "{name} has no address");
    Ok(found)
}

/// How many bytes a name takes: labels up to an empty one or a pointer.
fn name_length(record: &[u8]) -> anyhow::Result<usize> {
    let mut at = 0;
    loop {
        match *record.get(at).context("a name without an end")? {
            0 => return Ok(at + 1),
            pointer if pointer >= 0xc0 => return Ok(at + 2),
            label => at += 1 + usize::from(label),
        }
    }
}

/// The section of `docs/figures.md`.
pub(crate) async fn measure(many: usize) -> anyhow::Result<String> {
    let seen = updates(many).await?;
    let failures = if seen.failures.is_empty() {
        String::new()
    } else {
        format!(
            "\nThe first failures:\n\n- {}\n",
            seen.failures.join("\n- ")
        )
    };
    Ok(format!(
        "A client in the app's network asks `http://web:8080/` every {} ms; it resolves the name each time \
         and tries the addresses in order, going on to the next where a connection ends without a byte (`repeated`). \
         The app ends its open requests on SIGTERM before it goes.\n\n\
         | updates | versions seen | requests | failed | repeated | slowest good one, ms |\n|---|---|---|---|---|---|\n\
         | {many} | {} | {} | {} | {} | {} |\n{failures}",
        EVERY.as_millis(),
        seen.pages.len(),
        seen.requests,
        seen.failed,
        seen.repeated,
        seen.slowest.as_millis(),
    ))
}
