//! The registry client against a real registry, and against one that misbehaves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::image::{Digest, Platform, Reference};
use holdfast_registry::{
    Client, Credentials, Reach, RegistryError, RegistrySettings, Resolved, RetryAdvice, Secret,
    Settings, Timeouts,
};
use holdfast_tests::api;
use holdfast_tests::images::{Image, Kind};
use holdfast_tests::registry::{Login, Options, Registry};
use holdfast_tests::serve::{Request, Server};
use holdfast_tests::token_server::TokenPolicy;
use http::{Response, StatusCode};

fn client_with(adjust: impl FnOnce(&mut Settings)) -> Client {
    // The lab's own client installs the TLS provider.
    let _ = api::client();
    let mut settings = Settings {
        cache_ttl: Duration::ZERO,
        // The lab's registries are on this machine.
        reach: Reach::Anywhere,
        ..Settings::default()
    };
    adjust(&mut settings);
    Client::new(settings).expect("a client")
}

fn reference(text: &str) -> Reference {
    text.parse().expect("a reference")
}

fn platform(text: &str) -> Platform {
    text.parse().expect("a platform")
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_indexes_resolve_to_every_platforms_image() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let client = client_with(|_| {});
    for kind in [Kind::Oci, Kind::Docker] {
        let image = Image::web("multi", "1").kind(kind).attested();
        let image =
            image.platforms(&["linux/amd64", "linux/arm64", "linux/arm/v6", "linux/arm/v7"]);
        let pushed = image
            .push(&registry, &format!("{kind:?}").to_lowercase())
            .await?;
        let resolved = client.resolve(&reference(&pushed.reference())).await?;
        assert_eq!(resolved.top.digest().to_string(), pushed.top_digest);
        assert_eq!(resolved.platforms.len(), 4, "the attestation is no image");
        for (device, gets) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("linux/arm/v8", "linux/arm/v7"),
            ("linux/armv6l", "linux/arm/v6"),
        ] {
            let found = resolved.for_platform(&platform(device)).expect("an image");
            let child = pushed.child(gets);
            assert_eq!(
                found.manifest_digest.to_string(),
                child.manifest_digest,
                "{kind:?} {device}"
            );
            assert_eq!(
                found.config_digest.to_string(),
                child.config_digest,
                "{kind:?} {device}"
            );
            assert!(
                found.size_bytes > child.layers_size_bytes,
                "the configuration counts too"
            );
        }
        assert!(resolved.for_platform(&platform("linux/riscv64")).is_none());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_manifest_has_the_platform_of_its_configuration() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let client = client_with(|_| {});
    let pushed = Image::web("single", "1")
        .platforms(&["linux/arm/v7"])
        .single()
        .push(&registry, "1")
        .await?;
    for text in [pushed.reference(), pushed.pinned()] {
        let resolved = client.resolve(&reference(&text)).await?;
        assert_eq!(resolved.top.index(), None);
        assert_eq!(resolved.top.digest().to_string(), pushed.top_digest);
        assert_eq!(resolved.platforms[0].platform, platform("linux/arm/v7"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmoved_tag_costs_one_conditional_request_and_a_kept_answer_none() -> anyhow::Result<()>
{
    let registry = Registry::open().await?;
    let pushed = Image::web("same", "1").push(&registry, "1").await?;
    let wanted = reference(&pushed.reference());
    let counted = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&counted);
    let client = client_with(|settings| {
        settings.cache_ttl = Duration::from_mins(5);
        settings.observer = Some(Arc::new(move |exchange| {
            seen.lock().expect("not poisoned").push(exchange.status);
        }));
    });
    let many: Vec<_> = (0..20).map(|_| client.resolve(&wanted)).collect();
    for answer in futures_util::future::join_all(many).await {
        answer?;
    }
    let once = counted.lock().expect("not poisoned").len();
    assert_eq!(
        once, 2,
        "the index and its one child: twenty askers are one question"
    );
    client.resolve(&wanted).await?;
    assert_eq!(counted.lock().expect("not poisoned").len(), once);

    let digest: Digest = pushed.top_digest.parse()?;
    assert_eq!(
        client.ask(&wanted, Some(&digest)).await?,
        Resolved::Unchanged
    );
    assert_eq!(
        counted.lock().expect("not poisoned").last(),
        Some(&Some(304))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_asked_for_and_a_wrong_one_says_so() -> anyhow::Result<()> {
    let logins = [
        Login::Basic {
            username: "reader".to_owned(),
            password: "right".to_owned(),
        },
        Login::Token(TokenPolicy::user("reader", "right")),
    ];
    for login in logins {
        let registry = Registry::start(Options {
            login,
            ..Options::default()
        })
        .await?;
        let pushed = Image::web("private", "1").push(&registry, "1").await?;
        let wanted = reference(&pushed.reference());
        let known = |password: Option<&str>| {
            let credentials = password.map(|password| Credentials::Password {
                username: "reader".to_owned(),
                password: Secret::new(password.to_owned()),
            });
            let entry = RegistrySettings {
                credentials,
                ..RegistrySettings::default()
            };
            client_with(|settings| settings.registries = BTreeMap::from([(registry.host(), entry)]))
        };
        let right = known(Some("right"));
        assert_eq!(
            right.resolve(&wanted).await?.top.digest().to_string(),
            pushed.top_digest
        );
        right.resolve(&wanted).await?;
        for password in [Some("wrong"), None] {
            let refused = known(password).resolve(&wanted).await;
            assert!(
                matches!(refused, Err(RegistryError::Unauthorized { .. })),
                "{password:?}: {refused:?}"
            );
        }
        if let Some(tokens) = registry.tokens() {
            let before = tokens.asked();
            right.resolve(&wanted).await?;
            assert_eq!(tokens.asked(), before, "a good token is used again");
        }
    }
    Ok(())
}

/// A registry that answers whatever a test wants.
async fn odd(
    answer: impl Fn(&Request) -> Response<Bytes> + Send + Sync + 'static,
) -> anyhow::Result<(Server, String)> {
    let server = Server::start(move |request| answer(&request)).await?;
    let host = server.url().trim_start_matches("http://").to_owned();
    Ok((server, format!("{host}/app:1")))
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn respond(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::builder().status(StatusCode::from_u16(status).expect("a status"));
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).expect("an answer")
}

fn manifest() -> (String, String, String) {
    let config = r#"{"os":"linux","architecture":"amd64"}"#.to_owned();
    let digest = Digest::of(config.as_bytes());
    let body = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"digest":"{digest}","size":{}}},"layers":[]}}"#,
        config.len()
    );
    (
        body.clone(),
        Digest::of(body.as_bytes()).to_string(),
        config,
    )
}

async fn fails(text: &str) -> RegistryError {
    let client = client_with(|settings| {
        settings.timeouts = Timeouts {
            connect: Duration::from_secs(2),
            request: Duration::from_millis(600),
        };
    });
    client
        .resolve(&reference(text))
        .await
        .expect_err("a refusal")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_the_digest_header_is_hashed_instead() -> anyhow::Result<()> {
    let (body, digest, config) = manifest();
    let (_server, name) = odd(move |request| {
        if request.path.contains("/blobs/") {
            respond(200, &[], config.clone())
        } else {
            respond(200, &[("content-type", MANIFEST)], body.clone())
        }
    })
    .await?;
    let resolved = client_with(|_| {}).resolve(&reference(&name)).await?;
    assert_eq!(resolved.top.digest().to_string(), digest);
    assert_eq!(resolved.platforms[0].platform, platform("linux/amd64"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_what_they_are_called_are_refused() -> anyhow::Result<()> {
    let (body, _, _) = manifest();
    let other = Digest::of(b"something else").to_string();
    let (_server, name) = odd(move |_| {
        let headers = [
            ("content-type", MANIFEST),
            ("docker-content-digest", other.as_str()),
        ];
        respond(200, &headers, body.clone())
    })
    .await?;
    assert_eq!(fails(&name).await.code(), "digest_mismatch");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_own_name() -> anyhow::Result<()> {
    let huge = Bytes::from(vec![b' '; (4 << 20) + 1]);
    let cases: Vec<(&str, Response<Bytes>)> = vec![
        ("unauthorized", respond(401, &[], "")),
        ("forbidden", respond(403, &[], "")),
        ("not_found", respond(404, &[], "")),
        ("rate_limited", respond(429, &[("retry-after", "3")], "")),
        ("server_error", respond(500, &[], "")),
        (
            "bad_manifest",
            respond(200, &[("content-type", "text/html")], "<html>log in</html>"),
        ),
        (
            "too_large",
            respond(200, &[("content-type", MANIFEST)], huge),
        ),
        (
            "schema1",
            respond(
                200,
                &[(
                    "content-type",
                    "application/vnd.docker.distribution.manifest.v1+prettyjws",
                )],
                "{}",
            ),
        ),
        (
            "redirect_refused",
            respond(307, &[("location", "file:///etc/passwd")], ""),
        ),
    ];
    for (code, answer) in cases {
        let answer = Mutex::new(answer);
        let (_server, name) = odd(move |_| {
            let kept = answer.lock().expect("not poisoned");
            let mut copy = Response::new(kept.body().clone());
            *copy.status_mut() = kept.status();
            *copy.headers_mut() = kept.headers().clone();
            copy
        })
        .await?;
        let error = fails(&name).await;
        assert_eq!(error.code(), code, "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_keeps_everybody_away_for_its_time() -> anyhow::Result<()> {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let (_server, name) = odd(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        respond(429, &[("retry-after", "30")], "")
    })
    .await?;
    let client = client_with(|_| {});
    for _ in 0..5 {
        let error = client
            .resolve(&reference(&name))
            .await
            .expect_err("limited");
        let RetryAdvice::After(wait) = error.retry() else {
            panic!("{error:?}")
        };
        assert!(
            wait > Duration::from_secs(20) && wait <= Duration::from_secs(30),
            "{wait:?}"
        );
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "no storm");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_never_goes_to_a_realm_or_redirect_of_somebody_else() -> anyhow::Result<()> {
    // 127.0.0.2 is another host to the client, and still this machine.
    let evil_asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&evil_asked);
    let evil = Server::start(move |request| {
        seen.lock()
            .expect("not poisoned")
            .push(request.header("authorization").map(str::to_owned));
        respond(404, &[], "")
    })
    .await?;
    let port = evil
        .url()
        .rsplit_once(':')
        .map(|(_, port)| port.to_owned())
        .unwrap_or_default();
    let realm = format!(r#"Bearer realm="http://localhost:{port}/token",service="x""#);
    let (server, name) =
        odd(move |_| respond(401, &[("www-authenticate", realm.as_str())], "")).await?;
    let with_login = |host: String| {
        let credentials = Some(Credentials::Password {
            username: "u".to_owned(),
            password: Secret::new("canary".to_owned()),
        });
        let entry = RegistrySettings {
            credentials,
            ..RegistrySettings::default()
        };
        client_with(|settings| settings.registries = BTreeMap::from([(host, entry)]))
    };
    let host = server.url().trim_start_matches("http://").to_owned();
    let error = with_login(host)
        .resolve(&reference(&name))
        .await
        .expect_err("refused");
    assert_eq!(error.code(), "realm_refused", "{error}");
    assert!(
        evil_asked.lock().expect("not poisoned").is_empty(),
        "nothing was sent there"
    );

    let away = format!("http://localhost:{port}/blob");
    let (server, name) = odd(move |request| {
        if request.header("authorization").is_some() {
            respond(307, &[("location", away.as_str())], "")
        } else {
            respond(401, &[("www-authenticate", "Basic realm=x")], "")
        }
    })
    .await?;
    let host = server.url().trim_start_matches("http://").to_owned();
    let error = with_login(host)
        .resolve(&reference(&name))
        .await
        .expect_err("not there");
    assert_eq!(error.code(), "not_found", "{error}");
    assert_eq!(
        *evil_asked.lock().expect("not poisoned"),
        [None],
        "followed without the login"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_hangs_or_is_gone_is_given_up() -> anyhow::Result<()> {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = silent.local_addr()?;
    assert_eq!(fails(&format!("{address}/app:1")).await.code(), "timed_out");
    drop(silent);
    assert_eq!(
        fails(&format!("{address}/app:1")).await.code(),
        "unreachable"
    );
    Ok(())
}
