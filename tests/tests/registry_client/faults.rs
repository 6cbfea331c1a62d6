//! A registry that misbehaves in every known way: each has its own name, and none costs more than its
//! time-out.

use holdfast_registry::{RegistryError, RetryAdvice, Timeouts};
use holdfast_tests::fault_registry::{FaultRegistry, Head, Reply};
use holdfast_tests::registry::ACCEPT_ALL;

use super::*;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Far above what an answer takes on a busy machine.
const PATIENT: Duration = Duration::from_mins(1);

async fn fails(
    timeout: Duration,
    reply: impl Fn(&Head) -> Reply + Send + Sync + 'static,
) -> anyhow::Result<RegistryError> {
    let server = FaultRegistry::start(reply).await?;
    let client = client_with(|settings| {
        settings.timeouts = Timeouts {
            connect: timeout,
            request: timeout,
        };
    });
    let wanted = reference(&format!("{}/app:1", server.host()));
    Ok(client.resolve(&wanted).await.expect_err("a refusal"))
}

/// An index with one entry: whatever has this digest.
fn index_of(digest: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{INDEX}","digest":"{digest}","size":1}}]}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_every_lie_has_its_own_name() -> anyhow::Result<()> {
    let of_type =
        |media_type: &str, body: &str| Reply::whole(200, &[("content-type", media_type)], body);
    let (good, _, _) = manifest();
    let other = Digest::of(b"something else").to_string();
    let announced = [
        ("content-type", MANIFEST),
        ("docker-content-digest", other.as_str()),
    ];
    let json_depth = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let many = format!(r#"{{"digest":"{other}"}},"#).repeat(300);
    let many = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        many.trim_end_matches(',')
    );
    let cases = [
        ("unauthorized", Reply::whole(401, &[], "")),
        (
            "unauthorized",
            Reply::whole(401, &[("www-authenticate", "Negotiate")], ""),
        ),
        ("forbidden", Reply::whole(403, &[], "")),
        ("not_found", Reply::whole(404, &[], "")),
        ("rate_limited", Reply::whole(429, &[], "")),
        ("server_error", Reply::whole(500, &[], "")),
        ("server_error", Reply::whole(302, &[], "")),
        (
            "unreachable",
            Reply::cut(200, &[("content-type", MANIFEST)], &good),
        ),
        (
            "unreachable",
            Reply::Bytes(b"HTTP/1.1 200 OK\r\ncontent-le".to_vec()),
        ),
        (
            "unreachable",
            Reply::Bytes(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ),
        ("unreachable", Reply::Bytes(Vec::new())),
        ("digest_mismatch", Reply::whole(200, &announced, &good)),
        ("web_page", of_type("text/html", "<html>log in</html>")),
        ("bad_manifest", of_type(MANIFEST, "<html>log in</html>")),
        ("bad_manifest", of_type(INDEX, &good)),
        ("bad_manifest", of_type(MANIFEST, &json_depth)),
        ("bad_manifest", of_type(INDEX, &many)),
        ("bad_manifest", of_type(MANIFEST, "")),
        ("schema1", of_type(MANIFEST, r#"{"schemaVersion":1}"#)),
        (
            "schema1",
            of_type(
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                "{}",
            ),
        ),
        ("too_large", of_type(MANIFEST, &" ".repeat((4 << 20) + 1))),
        (
            "redirect_refused",
            Reply::whole(307, &[("location", "file:///etc/passwd")], ""),
        ),
        (
            "redirect_refused",
            Reply::whole(307, &[("location", "/v2/app/manifests/1")], ""),
        ),
        (
            "realm_refused",
            Reply::whole(
                401,
                &[(
                    "www-authenticate",
                    r#"Bearer realm="https://evil.example/t""#,
                )],
                "",
            ),
        ),
        (
            "realm_refused",
            Reply::whole(401, &[("www-authenticate", "Bearer service=x")], ""),
        ),
    ];
    for (code, reply) in cases {
        let shown = format!("{reply:?}").chars().take(200).collect::<String>();
        let error = fails(PATIENT, move |_| reply.clone()).await?;
        assert_eq!(error.code(), code, "{error} after {shown}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_a_compressed_bomb_counts_by_what_it_becomes() -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    coder.write_all(&vec![b' '; 64 << 20])?;
    let bomb = coder.finish()?;
    let headers = [("content-type", MANIFEST), ("content-encoding", "gzip")];
    let error = fails(PATIENT, move |_| Reply::whole(200, &headers, &bomb)).await?;
    assert_eq!(error.code(), "too_large", "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c37_silence_ends_at_the_time_out_wherever_it_begins() -> anyhow::Result<()> {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec();
    for reply in [Reply::Hang(Vec::new()), Reply::Hang(head)] {
        let error = fails(Duration::from_millis(500), move |_| reply.clone()).await?;
        assert_eq!(error.code(), "timed_out", "{error}");
    }
    // A token server that says nothing is no reason to wait longer.
    let error = fails(Duration::from_millis(500), |head| {
        let host = head.header("host").unwrap_or_default();
        let realm = format!(r#"Bearer realm="http://{host}/token""#);
        if head.target.starts_with("/token") {
            Reply::Hang(Vec::new())
        } else {
            Reply::whole(401, &[("www-authenticate", realm.as_str())], "")
        }
    })
    .await?;
    assert_eq!(error.code(), "timed_out", "{error}");
    let gone = FaultRegistry::start(|_| Reply::Bytes(Vec::new()))
        .await?
        .host();
    let wanted = reference(&format!("{gone}/app:1"));
    let error = client_with(|_| {}).resolve(&wanted).await;
    assert_eq!(error.expect_err("nobody there").code(), "unreachable");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_server_can_fail_in_every_way_too() -> anyhow::Result<()> {
    for (code, status, body) in [
        ("unauthorized", 401, String::new()),
        ("forbidden", 403, String::new()),
        ("not_found", 404, String::new()),
        ("rate_limited", 429, String::new()),
        ("server_error", 500, String::new()),
        ("server_error", 302, String::new()),
        ("bad_token", 200, "<html>log in</html>".to_owned()),
        ("bad_token", 200, r#"{"token":null}"#.to_owned()),
        ("too_large", 200, " ".repeat(1 << 20)),
        // A token that the registry does not take.
        ("unauthorized", 200, r#"{"token":"x"}"#.to_owned()),
    ] {
        let error = fails(PATIENT, move |head| {
            let host = head.header("host").unwrap_or_default();
            let realm = format!(r#"Bearer realm="http://{host}/token""#);
            if head.target.starts_with("/token") {
                Reply::whole(status, &[("location", "http://127.0.0.2:1/")], &body)
            } else {
                Reply::whole(401, &[("www-authenticate", realm.as_str())], "")
            }
        })
        .await?;
        assert_eq!(error.code(), code, "{status}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c37_peace_is_kept_for_as_long_as_it_is_wanted() -> anyhow::Result<()> {
    let date = ("date", "Sat, 21 Nov 2026 12:00:00 GMT");
    let until = ("retry-after", "Sat, 21 Nov 2026 12:00:30 GMT");
    for (status, headers) in [
        (429, vec![("retry-after", "30")]),
        (429, vec![date, until]),
        (503, vec![("retry-after", "30")]),
        (503, vec![date, until]),
    ] {
        let server = FaultRegistry::start(move |_| Reply::whole(status, &headers, "")).await?;
        let wanted = reference(&format!("{}/app:1", server.host()));
        let client = client_with(|_| {});
        for _ in 0..5 {
            let error = client.resolve(&wanted).await.expect_err("peace");
            let RetryAdvice::After(wait) = error.retry() else {
                panic!("{error:?}")
            };
            assert!(wait <= Duration::from_secs(30), "{wait:?}");
            assert!(!wait.is_zero());
        }
        assert_eq!(server.heads().len(), 1, "no storm");
    }
    // A wait of a year is a mistake, and none at all leaves it to the asker.
    let error = fails(PATIENT, |_| {
        Reply::whole(429, &[("retry-after", "31536000")], "")
    })
    .await?;
    assert_eq!(error.retry(), RetryAdvice::After(Duration::from_hours(1)));
    let error = fails(PATIENT, |_| Reply::whole(429, &[], "")).await?;
    assert_eq!(error.retry(), RetryAdvice::Later);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_told_as_the_registry_says_them() -> anyhow::Result<()> {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let server = FaultRegistry::start(|_| {
        let headers = [
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", "42;w=21600"),
        ];
        Reply::whole(404, &headers, "")
    })
    .await?;
    let told = std::sync::Arc::clone(&seen);
    let client = client_with(|settings| {
        settings.observer = Some(std::sync::Arc::new(move |exchange| {
            let limit = exchange.limit.map(|limit| (limit.limit, limit.remaining));
            told.lock()
                .expect("not poisoned")
                .push((exchange.status, limit));
        }));
    });
    let wanted = reference(&format!("{}/app:1", server.host()));
    let _ = client.resolve(&wanted).await;
    let seen = seen.lock().expect("not poisoned").clone();
    assert_eq!(seen, [(Some(404), Some((100, 42)))]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_indexes_are_followed_so_deep_and_no_deeper() -> anyhow::Result<()> {
    let (good, digest, config) = manifest();
    for (depth, expected) in [(1, None), (3, None), (4, Some("bad_manifest"))] {
        let mut documents = BTreeMap::from([(digest.clone(), (MANIFEST, good.clone()))]);
        let mut top = digest.clone();
        for _ in 0..depth {
            let body = index_of(&top);
            top = Digest::of(body.as_bytes()).to_string();
            documents.insert(top.clone(), (INDEX, body));
        }
        let config = config.clone();
        let name = top.clone();
        let server = FaultRegistry::start(move |head| {
            let last = head.target.rsplit('/').next().unwrap_or_default();
            let wanted = if last == "1" { top.as_str() } else { last };
            match documents.get(wanted) {
                Some((media_type, body)) => {
                    Reply::whole(200, &[("content-type", *media_type)], body)
                }
                None => Reply::whole(200, &[], &config),
            }
        })
        .await?;
        let wanted = reference(&format!("{}/app:1", server.host()));
        let found = client_with(|_| {}).resolve(&wanted).await;
        match expected {
            None => {
                let found = found?;
                assert_eq!(found.top.digest().to_string(), name);
                assert_eq!(found.platforms[0].manifest_digest.to_string(), digest);
            }
            Some(code) => assert_eq!(found.expect_err("too deep").code(), code),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_without_the_digest_header_the_bytes_tell() -> anyhow::Result<()> {
    let (body, digest, config) = manifest();
    let server = FaultRegistry::start(move |head| {
        let kinds: Vec<_> = ACCEPT_ALL.split(", ").collect();
        let accepts = head.header("accept").unwrap_or_default();
        if head.target.contains("/blobs/") {
            Reply::whole(200, &[], &config)
        } else if kinds.iter().all(|kind| accepts.contains(kind)) {
            // A proxy that takes headers away, and an entity tag that is no digest of this.
            let headers = [
                ("content-type", MANIFEST),
                (
                    "etag",
                    "\"sha256:0000000000000000000000000000000000000000000000000000000000000000\"",
                ),
            ];
            Reply::whole(
                200,
                &headers,
                if head.method == "HEAD" { "" } else { &body },
            )
        } else {
            Reply::whole(404, &[], "")
        }
    })
    .await?;
    let wanted = reference(&format!("{}/app:1", server.host()));
    let client = client_with(|_| {});
    let resolved = client.resolve(&wanted).await?;
    assert_eq!(resolved.top.digest().to_string(), digest);
    assert_eq!(resolved.platforms[0].platform, platform("linux/amd64"));
    let known = digest.parse()?;
    let again = client.ask(&wanted, Some(&known)).await?;
    assert_eq!(again, holdfast_registry::Resolved::Unchanged);
    Ok(())
}
