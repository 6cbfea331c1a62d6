//! Whatever a reference, a redirect, a realm or a name that changes its meaning points at: no forbidden
//! address is ever connected to. Counted by listeners that every address of a closed network leads to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use holdfast_registry::Client;
use holdfast_tests::alone;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// The registry that sends us astray, and another public host.
const PUBLIC: [&str; 2] = ["93.184.216.34", "151.101.1.69"];
/// Where registries, web servers, engines and key-value stores listen.
const PORTS: [u16; 5] = [80, 443, 5000, 2375, 6379];
/// Addresses that no registry asked by a stranger may have.
const FORBIDDEN_V4: [[u8; 4]; 28] = [
    [127, 0, 0, 1],
    [127, 1, 2, 3],
    [127, 255, 255, 254],
    [10, 0, 0, 1],
    [10, 255, 255, 254],
    [172, 16, 0, 1],
    [172, 31, 255, 254],
    [192, 168, 0, 1],
    [192, 168, 255, 254],
    [169, 254, 169, 254],
    [169, 254, 170, 2],
    [169, 254, 1, 1],
    [100, 64, 0, 1],
    [100, 127, 255, 254],
    [100, 100, 100, 200],
    [168, 63, 129, 16],
    [0, 0, 0, 0],
    [0, 1, 2, 3],
    [224, 0, 0, 1],
    [239, 255, 255, 250],
    [240, 0, 0, 1],
    [255, 255, 255, 255],
    [192, 0, 0, 192],
    [192, 0, 2, 1],
    [192, 88, 99, 1],
    [198, 18, 0, 1],
    [198, 51, 100, 1],
    [203, 0, 113, 1],
];
const FORBIDDEN_V6: [&str; 20] = [
    "::1",
    "::",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "fc00::1",
    "fd12:3456:789a::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "ff02::1",
    "ff0e::1",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:c0a8:1::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
];

/// Every way to write an address that some program somewhere understands.
fn spellings() -> Vec<String> {
    let mut all = Vec::new();
    for [a, b, c, d] in FORBIDDEN_V4 {
        let number = u32::from(Ipv4Addr::new(a, b, c, d));
        let (high, low) = (number >> 16, number & 0xffff);
        let dotted = format!("{a}.{b}.{c}.{d}");
        all.extend([
            format!("{number}"),
            format!("0x{number:x}"),
            format!("0{number:o}"),
            format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
            format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
            format!("{a}.{}", number & 0x00ff_ffff),
            format!("{a}.{b}.{low}"),
            format!("0x{a:x}.{b}.0{low:o}"),
            format!("{dotted}."),
            format!("[::ffff:{dotted}]"),
            format!("[::ffff:{high:x}:{low:x}]"),
            format!("[0:0:0:0:0:FFFF:{high:04X}:{low:04X}]"),
            format!("[::ffff:0:{high:x}:{low:x}]"),
            format!("[::{dotted}]"),
            format!("[2002:{high:x}:{low:x}::1]"),
            format!("[64:ff9b::{high:x}:{low:x}]"),
            format!("[64:ff9b:1::{high:x}:{low:x}]"),
            format!("[2001:0:{high:x}:{low:x}::1]"),
        ]);
        all.push(dotted);
    }
    for address in FORBIDDEN_V6 {
        all.push(format!("[{address}]"));
        all.push(format!("[{address}%25eth0]"));
        all.push(format!("[{address}%lo]"));
    }
    // Digits that only look different, and names that mean this machine or its network.
    all.extend(
        [
            "①②⑦.⓪.⓪.①",
            "１２７.０.０.１",
            "127。0。0。1",
            "localhost",
            "LocalHost",
            "localhost.",
            "metadata.google.internal",
            "kubernetes.default.svc",
            "host.docker.internal",
        ]
        .map(str::to_owned),
    );
    all
}

/// What the closed network saw.
#[derive(Debug, Default)]
struct Seen {
    /// Connections by the address that was meant, for those that are not public.
    forbidden: Mutex<Vec<IpAddr>>,
    public: AtomicUsize,
    /// What the registry answers: a status and a header.
    answer: Mutex<(u16, String)>,
}

/// Every address of this network on each of the ports.
async fn listen(seen: &Arc<Seen>) -> anyhow::Result<()> {
    let public: BTreeSet<IpAddr> = PUBLIC.iter().filter_map(|text| text.parse().ok()).collect();
    for port in PORTS {
        // It hears both families.
        let listener = TcpListener::bind(("::", port)).await?;
        let (seen, public) = (Arc::clone(seen), public.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let meant = stream
                    .local_addr()
                    .map(|address| address.ip().to_canonical());
                match meant {
                    Ok(address) if public.contains(&address) => {
                        seen.public.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(address) => seen.forbidden.lock().expect("whole").push(address),
                    Err(_) => continue,
                }
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let mut buffer = [0; 4_096];
                    let _ = stream.read(&mut buffer).await;
                    let (status, header) = seen.answer.lock().expect("whole").clone();
                    let answer = format!(
                        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: 0\r\n{header}\r\n\r\n"
                    );
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
    }
    Ok(())
}

/// The bare address of a spelling, if it is one that a resolver could answer.
fn meaning(spelling: &str) -> IpAddr {
    let url: Result<reqwest::Url, _> = format!("http://{spelling}/").parse();
    let host = url.ok().and_then(|url| url.host_str().map(str::to_owned));
    let bare = host.unwrap_or_default();
    let bare = bare.trim_matches(['[', ']']).parse();
    bare.unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

/// What every name but the registry's means: one thing when it is asked for the first time, and another
/// from then on.
#[derive(Debug, Default)]
struct Names(Mutex<(Vec<IpAddr>, Vec<IpAddr>)>);

impl Names {
    fn mean(&self, first: &[IpAddr], then: &[IpAddr]) {
        *self.0.lock().expect("whole") = (first.to_vec(), then.to_vec());
    }

    fn look_up(&self) -> Vec<IpAddr> {
        let mut meaning = self.0.lock().expect("whole");
        let then = meaning.1.clone();
        std::mem::replace(&mut meaning.0, then)
    }
}

/// A client of a server that others tell what to ask. It knows one registry, at a public address.
fn client(names: &Arc<Names>) -> Client {
    let entry = RegistrySettings {
        plain_http: true,
        credentials: Some(password("reader", "canary")),
        ..RegistrySettings::default()
    };
    let names = Arc::clone(names);
    let registry: IpAddr = PUBLIC[0].parse().expect("an address");
    client_with(|settings| {
        settings.reach = Reach::Configured;
        settings.registries = BTreeMap::from([("registry.example".to_owned(), entry)]);
        settings.lookup = Arc::new(move |name| {
            let found = if name == "registry.example" {
                vec![registry]
            } else {
                names.look_up()
            };
            Box::pin(std::future::ready(Ok(found)))
        });
    })
}

#[test]
fn c39_no_forbidden_address_is_ever_connected_to() -> anyhow::Result<()> {
    if !alone::is_alone() {
        return alone::in_empty_network("ssrf::c39_no_forbidden_address_is_ever_connected_to");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(every_target_in_every_way())
}

async fn every_target_in_every_way() -> anyhow::Result<()> {
    let seen = Arc::new(Seen::default());
    listen(&seen).await?;
    let public: IpAddr = PUBLIC[1].parse()?;
    let say = |status: u16, header: String| {
        *seen.answer.lock().expect("whole") = (status, header);
    };
    let sent = reference("registry.example/app:1");

    // The listeners see what is allowed: a registry at a public address, and a public host it sends to.
    say(307, format!("location: http://{public}/x"));
    let names = Arc::new(Names::default());
    let client = client(&names);
    client
        .resolve(&sent)
        .await
        .expect_err("an endless redirect");
    let control = seen.public.load(Ordering::SeqCst);
    assert!(control >= 2, "the listeners see nothing");
    say(404, String::new());
    let direct = client
        .resolve(&reference(&format!("{public}:443/app:1")))
        .await;
    assert_eq!(direct.expect_err("no TLS there").code(), "unreachable");
    assert_eq!(seen.public.load(Ordering::SeqCst), control + 1);

    let targets = spellings();
    assert!(targets.len() >= 300, "{}", targets.len());
    let mut tried = [0_usize; 4];
    for (at, target) in targets.iter().enumerate() {
        let port = PORTS[at % PORTS.len()];
        let meaning = meaning(target);
        let forbidden = vec![meaning];
        names.mean(&forbidden, &forbidden);

        // A reference, with and without a port; the grammar itself refuses many.
        for text in [format!("{target}/app:1"), format!("{target}:{port}/app:1")] {
            if let Ok(reference) = text.parse::<Reference>() {
                client.resolve(&reference).await.expect_err(&text);
            }
            tried[0] += 1;
        }
        // A redirect of a registry that is known.
        for url in [
            format!("http://{target}:{port}/x"),
            format!("https://{target}/x"),
        ] {
            // A header is bytes, as the registry likes.
            say(307, format!("location: {url}"));
            client.resolve(&sent).await.expect_err(&url);
            tried[1] += 1;
        }
        // A realm: at the target itself, and at a name below the registry's own that means the target.
        let below = format!("t{at}.registry.example");
        for realm in [
            format!("https://{target}:{port}/token"),
            format!("http://{target}/token"),
            format!("https://{below}/token"),
        ] {
            say(401, format!("www-authenticate: Bearer realm=\"{realm}\""));
            client.resolve(&sent).await.expect_err(&realm);
            tried[2] += 1;
        }
        // A name that means something else a moment later, or both at once.
        say(307, format!("location: http://moving.example:{port}/x"));
        for (first, then) in [
            (&[public][..], &[meaning][..]),
            (&[meaning], &[public]),
            (&[public, meaning], &[meaning, public]),
        ] {
            for text in [sent.to_string(), format!("moving.example:{port}/app:1")] {
                names.mean(first, then);
                for _ in 0..2 {
                    client.resolve(&reference(&text)).await.expect_err(&text);
                }
            }
            tried[3] += 1;
        }
    }
    assert!(tried.iter().all(|times| *times >= 300), "{tried:?}");
    let forbidden = seen.forbidden.lock().expect("whole").clone();
    assert!(forbidden.is_empty(), "of {tried:?}: {forbidden:?}");
    Ok(())
}
